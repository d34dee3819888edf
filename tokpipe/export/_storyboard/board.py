"""A board on disk: as many pictures, and as large, as the APIs it is made for take."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokpipe.export._storyboard.frames import (
    board_frames,
    board_moments,
    check_pictures,
    picture_size,
)
from tokpipe.export._storyboard.limits import (
    LIMITS,
    Wish,
    excess,
    first_look,
    most_frames,
    smaller,
    too_large,
)
from tokpipe.export._storyboard.moments import Moment, fewer, moments_of, time_labels
from tokpipe.export._storyboard.pictures import MANIFEST, SUFFIXES, Look, picture_name
from tokpipe.export._storyboard.transcript import Line, spans

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache

FOLDER = "frames"


@dataclass(frozen=True, slots=True)
class Shown:
    """One picture of a board.

    Attributes:
        moment: Its time, what it stands for, and what the cache says of it.
        label: Its time as text, ``[00:13.3]``.
        file: Path from the board's folder.
        size: Bytes.
        width, height: Pixels.
        cells: As ``BoardFrame.cells``.
        said: What is said from when it comes on until the next one does.
    """

    moment: Moment
    label: str
    file: str
    size: int
    width: int
    height: int
    cells: dict[str, Any]
    said: tuple[Line, ...] = ()

    @property
    def pts(self) -> float:
        """Seconds from the media's zero."""
        return self.moment.pts


@dataclass(slots=True)
class Board:
    """Pictures in a folder.

    Attributes:
        folder: Where their files are.
        shown: All of them, by rising time.
        by_api: Those each API gets.
        lines: The whole transcript.
        look: How they are written.
        end: Seconds at which the media ends.
        notes: What was left out or made smaller, and why.
        repeats: Moments that look like the one before and went into it.
    """

    folder: Path
    shown: list[Shown]
    by_api: dict[str, list[Shown]]
    lines: list[Line]
    look: Look
    end: float
    notes: list[str]
    repeats: int = 0


#: Bytes of a request beside its pictures, from the pictures it holds.
TextSize = Callable[[str, Sequence[Shown]], int]


def make_board(
    cache: TokenCache, folder: Path, apis: Sequence[str], wish: Wish, look: Look,
    lines: Sequence[Line], text_size: TextSize, *, from_source: str = "", repeats: bool = False,
) -> Board:  # fmt: skip
    """Write the pictures that the APIs take, and nothing else yet.

    Raises:
        RecipeError: A parameter asks for what the one API that was named does not take.
        CacheError, MediaError: As ``board_frames``.
    """
    if not from_source:
        check_pictures(cache)
    moments = board_moments(cache, repeats=repeats)
    maker = _Maker(cache, folder, lines, from_source, wish, text_size)
    counts = {}
    for api in apis:
        counts[api], note = most_frames(api, len(moments), wish)
        maker.notes += [note] if note else []
    size = picture_size(cache, from_source)
    asked, look = look, first_look(counts, look, size, wish)
    maker.fit(fewer(moments, max(counts.values())), counts, look)
    board = maker.board()
    board.repeats = len(moments_of(cache)) - len(moments)
    was, now = max(asked.size(*size)), max(board.look.size(*size))
    if now < was:
        board.notes.append(f"pictures are {now} instead of {was} pixels on their longer side, "
                           f"which is what {_names(apis)} can use")  # fmt: skip
    return board


def write_manifest(board: Board) -> None:
    """Write ``manifest.jsonl``, one line a picture."""
    rows = spans(board.lines, [one.pts for one in board.shown])
    with (board.folder / MANIFEST).open("w", encoding="utf-8") as file:
        for one, (first, last) in zip(board.shown, rows, strict=True):
            moment, cells = one.moment, one.cells
            line = {
                "pts": one.pts, "file": one.file, "duration": round(moment.stop - one.pts, 6),
                "segment": moment.segment if moment.segment >= 0 else None, "score": moment.score,
                "rank": moment.rank, "tokens": moment.tokens, "width": one.width,
                "height": one.height, "format": board.look.format,
                "quality": None if board.look.format == "png" else board.look.quality,
                "from": "cache" if cells else "source",
                "transcript": [first, last] if board.lines else None, **cells,
            }  # fmt: skip
            if cells:
                named = [k for k in cells if k != "cells"]
                line["share"] = {k: round(cells[k] / cells["cells"], 4) for k in named}
            file.write(json.dumps(line) + "\n")


class _Maker:
    """Writes pictures, looks at what they weigh, and writes fewer or smaller ones."""

    def __init__(
        self, cache: TokenCache, folder: Path, lines: Sequence[Line], from_source: str,
        wish: Wish, text_size: TextSize,
    ) -> None:  # fmt: skip
        self.cache, self.folder, self.lines = cache, folder, list(lines)
        self.from_source, self.wish, self.text_size = from_source, wish, text_size
        self.notes: list[str] = []
        self.shown: list[Shown] = []
        self.by_api: dict[str, list[Shown]] = {}
        self.look = Look()

    def fit(self, moments: list[Moment], counts: dict[str, int], look: Look) -> None:
        """Write pictures of the moments until every API can take its part of them."""
        self._write(moments, look)
        while True:
            over = {}
            for api, count in counts.items():
                part = self.by_api[api] = self._part(count)
                over[api] = excess(api, [one.size for one in part], self.text_size(api, part))
            if max(over.values()) <= 1:
                return
            side = max(self.shown[0].width, self.shown[0].height)
            less = None if self.wish.max_side else smaller(self.look, side, max(over.values()))
            if less is not None:
                self._write([one.moment for one in self.shown], less)
                continue
            for api, factor in over.items():
                if factor > 1:
                    counts[api] = self._leave_out(api, counts[api], factor)
            self._keep(max(counts.values()))

    def board(self) -> Board:
        """What came of it."""
        clock = self.cache.metadata.get("tokpipe.clock") or {}
        end = max(self.shown[-1].moment.stop, float(clock.get("end") or 0.0))
        return Board(self.folder, self.shown, self.by_api, self.lines, self.look, end, self.notes)

    def _write(self, moments: list[Moment], look: Look) -> None:
        for one in self.shown:
            (self.folder / one.file).unlink()
        (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
        self.look, self.shown = look, []
        frames = board_frames(
            self.cache, look=look, from_source=self.from_source, moments=moments
        )  # fmt: skip
        names: set[str] = set()
        for frame in frames:
            name = picture_name(frame.pts, SUFFIXES[look.format], names)
            names.add(name)
            file = f"{FOLDER}/{name}"
            (self.folder / file).write_bytes(frame.data)
            self.shown.append(Shown(frame.moment, "", file, len(frame.data), frame.width,
                                    frame.height, frame.cells))  # fmt: skip
        self.shown = self._told(self.shown)

    def _part(self, count: int) -> list[Shown]:
        """So many of the pictures, with what is said until the next of them."""
        chosen = fewer([one.moment for one in self.shown], count)
        if len(chosen) == len(self.shown):
            return self.shown
        by_time = {one.pts: one for one in self.shown}
        return self._told([replace(by_time[m.pts], moment=m) for m in chosen])

    def _told(self, shown: list[Shown]) -> list[Shown]:
        times = [one.pts for one in shown]
        rows = spans(self.lines, times)
        return [
            replace(one, label=label, said=tuple(self.lines[a:b]))
            for one, label, (a, b) in zip(shown, time_labels(times), rows, strict=True)
        ]

    def _leave_out(self, api: str, count: int, factor: float) -> int:
        wish = self.wish
        if count == 1 or (wish.only and wish.max_frames and wish.max_side):
            raise too_large(api, "max_frames, max_side or quality")
        fits = max(1, min(count - 1, int(count / factor)))
        size = f"{LIMITS[api].request / 1e6:g} MB"
        start = f"{api}: "
        self.notes = [note for note in self.notes if not note.startswith(start)]
        self.notes.append(f"{start}{fits} of {len(self.shown)} frames, spread evenly and chosen by "
                          f"rank, so that the request stays below {size}")  # fmt: skip
        return fits

    def _keep(self, most: int) -> None:
        """Remove the pictures that nobody gets."""
        kept = self._part(most)
        files = {one.file for one in kept}
        for one in self.shown:
            if one.file not in files:
                (self.folder / one.file).unlink()
        self.shown = kept


def _names(apis: Sequence[str]) -> str:
    return apis[0] if len(apis) == 1 else f"{', '.join(apis[:-1])} and {apis[-1]} all"
