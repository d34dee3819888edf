"""The pictures on screen at given times, decoded from as few groups of pictures as will do.

Groups that hold none of the times are passed over; a file that cannot be read in part is read from
end to end. Times, pixels and rotation are those of the reference reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokpipe.decode._groups import Group, Unsafe
from tokpipe.decode._sparse import SparseSource
from tokpipe.decode._wanted import Chooser, Wanted
from tokpipe.decode.pyav import MediaSource
from tokpipe.tensors import AudioChunk

if TYPE_CHECKING:
    from tokpipe.decode._timeline import Timeline
    from tokpipe.decode.pyav import StreamReader
    from tokpipe.protocols import Picture
    from tokpipe.spec import MediaInfo, VideoInfo

#: Seconds by which a time may miss its picture's: times are written in decimals.
_NEAR = 1e-6


def pictures_at(
    path: Path, info: MediaInfo, times: Sequence[float]
) -> Iterator[tuple[int, Picture]]:
    """The picture shown at each of some times: the last that began by then, else the first.

    Args:
        path: The file.
        info: As :func:`tokpipe.decode.probe` described it.
        times: Seconds on the media's clock, rising.

    Yields:
        (place in ``times``, picture), by rising place. Where the file turns out not to be readable
        in part, places begin again at 0, and what came before is void.

    Raises:
        DecodeError: Nothing of the video could be decoded.
    """
    if info.video is None or not times:
        return
    if not info.video.interlaced:
        try:
            yield from _TimedSource(path, replace(info, audio=None), times).placed()
            return
        except Unsafe:
            pass
    # With the sound, whose times count where those of the file start again.
    yield from _sequential(MediaSource(path, info), times)


def _sequential(source: MediaSource, times: Sequence[float]) -> Iterator[tuple[int, Picture]]:
    """Read all pictures, keep the one on screen; damaged ones count where nothing else is shown."""
    place, shown = 0, None
    for picture in source.read():
        if isinstance(picture, AudioChunk):
            continue
        while shown is not None and place < len(times) and times[place] + _NEAR < picture.pts:
            yield place, shown
            place += 1
        if place == len(times):
            return
        if shown is None or picture.usable or not shown.usable:
            shown = picture
    while shown is not None and place < len(times):
        yield place, shown
        place += 1


class _TimedSource(SparseSource):
    """Decodes only what is on screen at some times."""

    def __init__(self, path: Path, info: MediaInfo, times: Sequence[float]) -> None:
        super().__init__(path, info, effort="fast", fps=1.0, threads=None)
        self.times = times
        self.chosen: _ByTime | None = None

    def _pictures(self, box: Any, timeline: Timeline) -> StreamReader:
        reader = super()._pictures(box, timeline)
        assert self._reader is not None  # noqa: S101 - just made
        self.chosen = self._reader.chooser = _ByTime(self.times, timeline, self._reader.info)
        return reader

    def placed(self) -> Iterator[tuple[int, Picture]]:
        """Each picture with the places of its times.

        Raises:
            Unsafe: The file must be read from end to end.
        """
        given = 0
        for picture in self.read():
            assert self.chosen and not isinstance(picture, AudioChunk)  # noqa: S101 - no sound
            for place in self.chosen.places.pop(picture.pts):
                yield place, picture
                given += 1
        if given < len(self.times):
            raise Unsafe("pictures that did not come")


class _ByTime(Chooser):
    """Chooses the pictures on screen at some times.

    Attributes:
        places: Places of the times that a picture is shown at, by its seconds.
    """

    def __init__(self, times: Sequence[float], timeline: Timeline, video: VideoInfo) -> None:
        super().__init__("fast", 1.0, timeline, video)
        self.times = np.asarray(times, dtype=np.float64) + _NEAR
        self.places: dict[float, list[int]] = {}
        self.done = 0

    def choose(self, group: Group) -> Wanted:
        """The pictures of the next group that are on screen at one of the times."""
        seconds = self.timeline.seconds
        hidden = [
            seconds(t) for t, is_hidden in zip(group.t, group.hidden, strict=True) if is_hidden
        ]
        # A picture before this group's key may have been the one on screen at a time already given.
        if hidden and self.done and self.times[self.done - 1] >= min(hidden):
            raise Unsafe("a picture that needs the group before")
        last = np.inf if group.next_t is None else seconds(group.next_t)
        stop = int(np.searchsorted(self.times, last, "left"))
        # Times between groups belong to the earlier one; those before all pictures to the first.
        order = sorted(range(len(group)), key=lambda i: group.t[i])
        starts = np.array([seconds(group.t[i]) for i in order])
        found: dict[int, None] = {}
        for place in range(self.done, stop):
            i = order[max(0, int(np.searchsorted(starts, self.times[place], "right")) - 1)]
            if group.hidden[i]:
                raise Unsafe("a picture that needs the group before")
            found[i] = None
            self.places.setdefault(seconds(group.t[i]), []).append(place)
        self.done = max(self.done, stop)
        places = list(found)
        return Wanted(places, [False] * len(places), 1 + max(places, default=-1))
