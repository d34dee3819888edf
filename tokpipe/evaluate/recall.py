"""Which annotated events have something kept of them: rows of a cache, pictures of a loop.

Annotations are JSON, either of one file or by file name: ``slide_changes_s`` (or ``cuts_s``,
``cuts_s_machine``) are times at which something new begins, ``person_present_s`` spans. An optional
``ignore_box`` (left, top, right, bottom as parts of the picture) holds what is no event, such as a
speaker who moves all the time: rows of cells that reach into it do not count.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.cache.reader import open_cache
from tokpipe.errors import MediaError, MediaNotFound
from tokpipe.evaluate._cover import states_of, uniform
from tokpipe.evaluate.bench_report import Recall

#: Seconds that a rounded annotation may be off.
ROUNDING = 0.005
_TIMES = ("slide_changes_s", "cuts_s", "cuts_s_machine")
_HINT = 'write {"slide_changes_s": [7.1, 50.8]}, or such an object by file name'
Span = tuple[float, float]


def read_note(path: Path, media: str) -> Mapping[str, Any] | None:
    """The annotation of one media file, None if there is none for it.

    Raises:
        MediaNotFound: The annotations cannot be read.
        MediaError: They are no such JSON.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        note = found if {*_TIMES, "person_present_s"} & set(found) else found.get(media)
        if note is None:
            return None
        times = next((note[name] for name in _TIMES if name in note), None)
        if times is not None:
            return {**note, "slide_changes_s": [float(t) for t in times]}
        return {**note, "person_present_s": [(float(a), float(b)) for a, b in
                                             note.get("person_present_s", ())]}  # fmt: skip
    except OSError as error:
        raise MediaNotFound(f"cannot read `{path}`: {error.strerror}", hint=_HINT) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise MediaError(f"`{path}` holds no annotations: {error}", hint=_HINT) from error


def hit_share(states: Sequence[Span], times: Sequence[float]) -> float:
    """Part of the half-open spans that hold one of the times, 0 to 1, to four places."""
    # Annotations are rounded: a picture at the change itself belongs to what it shows.
    kept = sorted(time + ROUNDING for time in times)
    hit = sum(bisect.bisect_left(kept, a) < bisect.bisect_left(kept, b) for a, b in states)
    return round(hit / len(states), 4)


def rows_of(cache: Path, box: Sequence[float] | None = None) -> tuple[NDArray[np.float64], int]:
    """Times of a cache's video rows outside the box [N], and the cells of a whole picture."""
    with open_cache(cache) as found:
        if not found.num_tokens("video"):
            return np.zeros(0), 1
        at = np.asarray(found.column("video.at"))
        grid = found.metadata.get("tokpipe.grid")
        cells = np.asarray(found.column("video.cell"))
        extent = np.asarray(found.column("video.extent"))
        rows, cols = (
            (grid["rows"], grid["cols"])
            if grid
            else ((cells + extent)[:, 1].max(), (cells + extent)[:, 2].max())
        )
    if box is not None:
        # A cell that only touches the box shows some of what moves in it.
        top, left = cells[:, 1] / rows, cells[:, 2] / cols
        bottom, right = (cells + extent)[:, 1] / rows, (cells + extent)[:, 2] / cols
        inside = (right > box[0]) & (left < box[2]) & (bottom > box[1]) & (top < box[3])
        at = at[~inside]
    return at, int(rows * cols)


def file_recall(
    annotations: Path,
    media: Path,
    duration: float | None,
    caches: Mapping[str, Path],
    times: Mapping[str, Sequence[float] | None],
) -> dict[str, Recall]:
    """Recall of every cache, and of the other readers' pictures beside it.

    Args:
        annotations: See the module.
        media: The media file, looked up by its name.
        duration: Its seconds, the end of the last state.
        caches: Files by the name of the competitor that wrote them.
        times: Seconds of the pictures that other competitors chose, by their names.

    Returns:
        By the names of ``caches``; empty if there is no annotation for the file.
    """
    note = read_note(annotations, media.name)
    states = states_of(note, 0.0, duration or float("inf")) if note else []
    if not note or not states:
        return {}
    found = {}
    loop = times.get("decord")
    for name, cache in caches.items():
        at, cells = rows_of(cache, note.get("ignore_box"))
        moments = len(np.unique(at))
        scenes = times.get("scenedetect")
        found[name] = Recall(
            events=len(states), moments=moments, tokens=len(at),
            ours=hit_share(states, at.tolist()),
            decord_same_moments=_even(states, loop, moments),
            decord_same_tokens=_even(states, loop, max(1, len(at) // cells)),
            decord_all=None if loop is None else hit_share(states, loop),
            scenedetect=None if scenes is None else hit_share(states, scenes),
        )  # fmt: skip
    return found


def _even(states: Sequence[Span], loop: Sequence[float] | None, count: int) -> float | None:
    """Recall of so many pictures of a loop, evenly chosen."""
    if not loop:
        return None
    return hit_share(states, [loop[i] for i in uniform(len(loop), min(count, len(loop)))])
