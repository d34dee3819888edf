"""Which files to work on, in a fixed order, and the name of each output."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokpipe.errors import MediaError, MediaNotFound, UnsupportedMedia

#: Ending of a token cache; such files are never inputs.
CACHE_SUFFIX = ".tokpipe.safetensors"
#: Suffixes taken from folders; a file that is named itself may have any.
MEDIA_SUFFIXES = frozenset(
    f".{name}"
    for name in re.split(
        r"\s+",
        "3gp aac ac3 aiff amr asf avi flac flv gif m2ts m4a m4b m4v mka mkv mov mp2 mp3 mp4 mpeg "
        "mpg mts mxf oga ogg ogv opus ts vob wav webm wma wmv y4m",
    )
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One input.

    Attributes:
        source: The file.
        relative: Its place below the folder that was named; the bare name of a file named itself.
        named: It was named itself, not found in a folder.
    """

    source: Path
    relative: Path
    named: bool = True


@dataclass(slots=True)
class Manifest:
    """Inputs in order, and what was named but cannot be one.

    Attributes:
        problems: ``(path, error)`` of what is missing or unreadable.
        ignored: Named files that are token caches.
    """

    entries: list[Entry] = field(default_factory=list)
    problems: list[tuple[Path, MediaError]] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)


def expand(inputs: Iterable[str | Path]) -> Manifest:
    """Files named or found below the folders named, each once.

    Folders are searched to any depth, in order of name; hidden entries, token caches and other
    suffixes than :data:`MEDIA_SUFFIXES` are passed over, and no folder is entered twice, so links
    in a circle end.
    """
    manifest, seen = Manifest(), set[str]()
    paths = [Path(p) for p in inputs]
    folders = sum(p.is_dir() for p in paths)
    for path in paths:
        if path.is_dir():
            # Several folders keep their names, so that their trees do not run into each other.
            base = Path(path.resolve().name) if folders > 1 else Path()
            below = _walk(path, manifest)
            found = [Entry(p, base / p.relative_to(path), named=False) for p in below]
        elif path.name.endswith(CACHE_SUFFIX) and path.exists():
            manifest.ignored.append(path)
            continue
        elif (problem := _problem(path)) is not None:
            manifest.problems.append((path, problem))
            continue
        else:
            found = [Entry(path, Path(path.name))]
        for entry in found:
            # Links are not resolved: two names of one file are two inputs.
            if (key := os.path.abspath(entry.source)) not in seen:  # noqa: PTH100
                seen.add(key)
                manifest.entries.append(entry)
    return manifest


def _problem(path: Path) -> MediaError | None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return MediaNotFound(f"no such file `{path}`", hint="check the path")
        return MediaNotFound(
            f"cannot read `{path}`: {error.strerror}", hint="check the path and its permissions"
        )
    except ValueError:
        return MediaNotFound(f"`{path!r}` is not a path", hint="check the path")
    if not stat.S_ISREG(mode):
        return UnsupportedMedia(
            f"`{path}` is not a regular file", hint="save the stream to a file first"
        )
    return None


def _walk(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """Media files below a folder, in order of name, without recursion in Python."""
    entered: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        try:
            if path.is_dir():
                info = path.stat()
                if (info.st_dev, info.st_ino) in entered:
                    continue
                entered.add((info.st_dev, info.st_ino))
                names = sorted(os.listdir(path), reverse=True)
                waiting.extend(path / name for name in names if not name.startswith("."))
            elif path.suffix.lower() in MEDIA_SUFFIXES:
                if (problem := _problem(path)) is not None:
                    manifest.problems.append((path, problem))
                else:
                    yield path
        except OSError as error:
            text = f"cannot read `{path}`: {error.strerror or error}"
            manifest.problems.append((path, MediaNotFound(text, hint="check its permissions")))


def assign_outputs(
    entries: Sequence[Entry], output: str | Path | None = None, *, suffix: str = CACHE_SUFFIX
) -> list[Path]:
    """The output of each entry, no two alike.

    Beside the input without ``output``. One file named itself goes to ``output`` as a file (into
    it where it is a folder or ends with a slash). Everything else goes below it, like the tree.
    The name is the input's without its last suffix; where two collide, both keep theirs, and where
    they still do, their folders are kept too.

    Raises:
        FileExistsError: ``output`` is a file, but must be a folder.
    """
    if output is not None and len(entries) == 1 and entries[0].named:
        as_folder = Path(output).is_dir() or str(output).endswith(os.sep)
        if not as_folder:
            return [Path(output)]
    if output is not None and Path(output).exists() and not Path(output).is_dir():
        raise FileExistsError(f"`{output}` is a file, but there are several inputs")
    places = [e.source if output is None else Path(output) / e.relative for e in entries]
    short = [p.with_name(p.stem + suffix) for p in places]
    long = [p.with_name(p.name + suffix) for p in places]
    targets = _spread(short, long)
    if output is not None and entries:
        parents = [os.path.abspath(e.source.parent) for e in entries]  # noqa: PTH100
        common = os.path.commonpath(parents)
        deep = [
            Path(output) / os.path.relpath(parent, common) / target.name
            for parent, target in zip(parents, targets, strict=True)
        ]
        targets = _spread(targets, deep)
    return targets


def _spread(first: list[Path], second: list[Path]) -> list[Path]:
    """The first names, and the second ones for all that collide, until nothing more changes."""
    targets = list(first)
    while True:
        count: dict[Path, int] = {}
        for target in targets:
            count[target] = count.get(target, 0) + 1
        clashing = [i for i, t in enumerate(targets) if count[t] > 1 and t != second[i]]
        if not clashing:
            return targets
        for i in clashing:
            targets[i] = second[i]
