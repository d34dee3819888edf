"""Outputs of exports: written under another name, put in place in one step, nothing else touched.

A folder that an export made holds :data:`MARK`: what it was made of, and its files. Only such a
folder is ever replaced, and only while it holds no other files.
"""

from __future__ import annotations

import errno
import filecmp
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tokpipe.cache._publish import exists_error, publish, stale, temp_path
from tokpipe.errors import OutputExists

MARK = ".tokpipe-export.json"
#: What renaming onto something that is there says, by the kind of both.
_THERE = frozenset((errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR))
Outcome = Literal["written", "there"]


class Output:
    """One output; use :func:`output` to write it.

    Args:
        goal: File or folder to make.
        made_of: What it is made of, plain values.
        sources: Files it is made from, which it must not replace.
        force: Replace a file, or a folder that an export made.

    Raises:
        OutputExists: Something is there that must stay.
    """

    def __init__(
        self, goal: Path, made_of: Mapping[str, Any], sources: Sequence[Path], *, force: bool
    ) -> None:
        self.goal, self.force = goal, force
        self.made_of = json.loads(json.dumps(made_of))
        if goal.exists() and any(s.exists() and goal.samefile(s) for s in sources):
            raise OutputExists(
                "the output is the cache itself", hint="name another with -o", where=str(goal)
            )
        goal.parent.mkdir(parents=True, exist_ok=True)
        _restore(goal)
        if goal.is_dir() and not self.there:
            self._check_folder()

    @property
    def there(self) -> bool:
        """The folder is there, made of the same, with all its files."""
        mark = _marked(self.goal) if self.goal.is_dir() and not self.force else None
        if not mark or mark["made_of"] != self.made_of:
            return False
        return all((self.goal / n).is_file() and (self.goal / n).stat().st_size == size
                   for n, size in mark["files"].items())  # fmt: skip

    def put(self, temporary: Path) -> Outcome:
        """Give what was written its name.

        Raises:
            OutputExists: Something appeared there meanwhile.
        """
        if temporary.is_dir():
            self._put_folder(temporary)
            return "written"
        try:
            publish(temporary, self.goal, force=self.force, warnings=[])
        except OutputExists:
            if self.goal.is_file() and filecmp.cmp(temporary, self.goal, shallow=False):
                return "there"
            raise
        except OSError as error:
            raise self._renamed(error) from error
        return "written"

    def _put_folder(self, temporary: Path) -> None:
        files = {str(p.relative_to(temporary)): p.stat().st_size for p in _files(temporary)}
        mark = {"made_of": self.made_of, "files": files}
        (temporary / MARK).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
        aside = temp_path(self.goal)
        try:
            if self.force and self.goal.is_dir():
                self._check_folder()
                # Folders cannot be exchanged in one step; a kill in between is mended by _restore.
                self.goal.rename(aside)
            temporary.rename(self.goal)
        except OSError as error:
            raise self._renamed(error) from error
        shutil.rmtree(aside, ignore_errors=True)

    def _check_folder(self) -> None:
        """Refuse a folder that is not ours to replace; an empty one is."""
        if not any(self.goal.iterdir()):
            return
        if not self.force:
            raise exists_error(self.goal)
        found = sorted(str(p.relative_to(self.goal)) for p in _files(self.goal))
        mark = _marked(self.goal)
        foreign = [name for name in found if mark is None or name not in mark["files"]]
        if foreign:
            raise OutputExists(
                f"the output is a folder with files that no export made, first `{foreign[0]}`",
                hint="name another with -o; --force replaces files, and folders made by an export",
                where=str(self.goal),
            )

    def _renamed(self, error: OSError) -> Exception:
        return exists_error(self.goal) if error.errno in _THERE else error


@contextmanager
def output(target: Output) -> Iterator[Path]:
    """A path beside the goal to write to; what is left there is removed."""
    temporary = temp_path(target.goal)
    try:
        yield temporary
    finally:
        _remove(temporary)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size


def _restore(goal: Path) -> None:
    """Clear away what killed exports to this output left; what was whole takes its place again."""
    for left in sorted(goal.parent.glob(f".{_escaped(goal.name)}.*.tmp")):
        if not stale(left):
            continue
        if left.is_dir() and not os.path.lexists(goal) and _marked(left) is not None:
            left.rename(goal)
        else:
            _remove(left)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _marked(folder: Path) -> Any:
    """What a folder's mark says, None where it has none."""
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
        return mark if {"made_of", "files"} <= set(mark) else None
    except (OSError, ValueError, TypeError):
        return None


def _files(folder: Path) -> list[Path]:
    """Every file below a folder but its mark."""
    return [p for p in folder.rglob("*") if not p.is_dir() and p != folder / MARK]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
