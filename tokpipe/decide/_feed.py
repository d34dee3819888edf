"""Where the video side gets its candidates: cells of the bank, or live tokens of a tower."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tokpipe.cache.bank import Bank
from tokpipe.compress._moments import Facts
from tokpipe.compress._picture_space import DIM as PLACE_DIM
from tokpipe.encode.pixels import DIM, cell_tokens
from tokpipe.late import Coverage, Survivors
from tokpipe.tensors import TokenBatch
from tokpipe.towers import Found, PictureFeatures

#: Frames of one block of cells: fixed, so that results depend on nothing else.
BLOCK = 64
#: Part of a tick that rounding of times may take; seconds a frame of unknown length lasts.
_HAIR, _SHORT = 1e-6, 1 / 60
#: The same for towers, in tokens: their rows are wide.
_BLOCK_TOKENS = 8192


class Feed(Protocol):
    """Candidates frame by frame.

    Attributes:
        pts: float64 [T], seconds of the frames.
        step: int64 [T], number of each frame, the ``t`` of its tokens' cells.
        grid: Rows and columns of a frame's tokens.
        block: Frames read together.
    """

    pts: NDArray[np.float64]
    step: NDArray[np.int64]
    grid: tuple[int, int]
    block: int

    def count(self, first: int, last: int) -> int:
        """Candidates of frames ``first:last``."""
        ...

    def tokens(self, first: int, last: int) -> TokenBatch:
        """Source tokens of frames ``first:last``, at least one frame."""
        ...

    def empty(self) -> TokenBatch:
        """No tokens, of the right width."""
        ...


class CellFeed:
    """Cells of the bank's pictures, with their descriptors."""

    def __init__(self, bank: Bank) -> None:
        """Read the frames' times."""
        self.bank = bank
        self.grid: tuple[int, int] = (int(bank.meta["grid"][0]), int(bank.meta["grid"][1]))
        self.cells = self.grid[0] * self.grid[1]
        self.block = BLOCK
        self.pts: NDArray[np.float64] = bank.frames()["pts"].copy()
        self.step: NDArray[np.int64] = np.arange(len(self.pts))

    def count(self, first: int, last: int) -> int:
        """C for each frame."""
        return (last - first) * self.cells

    def spans(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Start and stop float64 [T] and rank int64 [T]: each stands until the next frame."""
        records = self.bank.frames(first, min(last + 1, self.bank.num_frames))
        start = records["pts"][: last - first]
        stop = records["pts"][1:]
        if last == self.bank.num_frames:
            end = float(records["pts"][-1] + records["duration"][-1])
            stop = np.append(stop, max(end, float(self.bank.meta["video_end"])))
        index = records["index"][: last - first]
        return (
            torch.from_numpy(start.copy()), torch.from_numpy(np.maximum(stop, start)),
            torch.from_numpy(index.copy()),
        )  # fmt: skip

    def tokens(self, first: int, last: int) -> TokenBatch:
        """Source tokens of sampled frames ``first:last``."""
        start, stop, index = self.spans(first, last)
        rows = (first * self.cells, last * self.cells)
        data = self.bank.rows("descriptors", *rows, np.dtype("<f2"), DIM)
        return cell_tokens(
            torch.from_numpy(data.copy()), start, stop, index,
            torch.arange(first, last, dtype=torch.int32), *self.grid,
        )  # fmt: skip

    def scores(self, first: int, last: int) -> NDArray[np.float32]:
        """How much cells [t, C] of the frames ``first:last`` change against the last kept ones.

        As ``temporal-drop`` scores a stream from the first frame.
        """
        return self.bank.rows("changes", first, last, np.dtype("<f4"), self.cells).reshape(
            last - first, self.cells
        )

    def described(self, frames: NDArray[np.int64]) -> NDArray[np.float16]:
        """Descriptors [n, C, 24] of some frames, rising."""
        return self._of("descriptors", np.dtype("<f2"), DIM, frames)

    def _of(
        self, name: str, dtype: np.dtype[Any], width: int, frames: NDArray[np.int64]
    ) -> NDArray[Any]:
        """Rows [n, C, width] of some frames, rising."""
        out = np.empty((len(frames), self.cells, width), dtype)
        row = 0
        for run in np.split(frames, np.flatnonzero(np.diff(frames) != 1) + 1):
            rows = (int(run[0]) * self.cells, (int(run[-1]) + 1) * self.cells)
            data = self.bank.rows(name, *rows, dtype, width)
            out[row : row + len(run)] = data.reshape(len(run), self.cells, width)
            row += len(run)
        return out

    @cached_property
    def known(self) -> bool:
        """Scores are in the bank, and times and ranks never step back from frame to frame."""
        if "changes" not in self.bank.meta["files"]:
            return False
        return all(bool((column.diff() >= 0).all()) for column in self.spans(0, len(self.pts)))

    def standing(
        self, ids: NDArray[np.int64], begin: NDArray[np.int64], end: NDArray[np.int64]
    ) -> TokenBatch:
        """Rows of the cells ``ids`` [K], rising, each standing for the frames ``begin:end`` [K].

        Ids count cells frame by frame. Only where all is ``known``.
        """
        start, stop, index = (column.numpy() for column in self.spans(0, len(self.pts)))
        frame, cell = np.divmod(ids, self.cells)
        used, place = np.unique(frame, return_inverse=True)
        data, score = np.empty((len(ids), DIM), np.float16), np.empty(len(ids), np.float32)
        for a in range(0, len(used), BLOCK):
            mine = slice(*np.searchsorted(place, [a, a + BLOCK]))
            here = (place[mine] - a, cell[mine])
            data[mine] = self.described(used[a : a + BLOCK])[here]
            score[mine] = self._of("changes", np.dtype("<f4"), 1, used[a : a + BLOCK])[..., 0][here]
        one = np.ones_like(ids)
        return TokenBatch.build(
            torch.from_numpy(data), torch.from_numpy(start[frame]),
            pts=_columns(start[begin], stop[end - 1]),
            cell=_columns(frame, cell // self.grid[1], cell % self.grid[1]).int(),
            frame=_columns(index[begin], index[end - 1]),
            extent=_columns(end - begin, one, one).int(),
            mass=torch.from_numpy(end - begin).float(),
            score=torch.from_numpy(score),
        )  # fmt: skip

    def facts(self, first: int, last: int, fps: float | None) -> Facts:
        """What is known of frames besides their cells.

        Args:
            fps: Ticks a second of the sampler, None without ticks. A frame is even where it is the
                first after a tick, or stays as long as one.
        """
        finest = np.ones(self.bank.num_frames, dtype=np.int64)
        fine = self.bank.fine()
        finest[fine["step"]] = fine["times"]
        records = self.bank.frames(first, last)
        even = np.ones(last - first, dtype=np.bool_)
        if fps is not None and last > first:
            ticks = (records["pts"] - self.pts[0]) * fps + _HAIR
            even = ticks - np.floor(ticks) <= np.maximum(records["duration"], _SHORT) * fps
            start, stop, _ = self.spans(first, last)
            even |= (stop - start).numpy() * fps >= 1 - _HAIR
        return Facts(
            text=records["text"].copy(), finest=finest[first:last], even=even,
            places=lambda a, b: self.places(first + a, first + b),
            cells=lambda frames: self.described(first + frames),
        )  # fmt: skip

    def places(self, first: int, last: int) -> NDArray[np.float16]:
        """Where pictures lie [n, E], see ``compress/_picture_space.py``."""
        return self.bank.rows("places", first, last, np.dtype("<f2"), PLACE_DIM)

    def empty(self) -> TokenBatch:
        """No cells."""
        none = torch.zeros(0, dtype=torch.float64)
        return TokenBatch.build(torch.zeros(0, DIM, dtype=torch.float16), none)


def _columns(*values: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.stack(values, 1))


class TowerFeed:
    """Live tokens of the surviving pictures; only these are encoded, and none twice."""

    def __init__(self, survivors: Survivors, coverage: Coverage, features: PictureFeatures) -> None:
        """Count the live tokens of every picture, and leave out those with none."""
        self.survivors, self.coverage, self.features = survivors, coverage, features
        parts = [
            self._live(a, min(a + BLOCK, len(survivors))).sum(1)
            for a in range(0, len(survivors), BLOCK)
        ]
        counts = torch.cat([torch.zeros(0, dtype=torch.int64), *parts])
        self.survivors = survivors = survivors.take(torch.nonzero(counts).flatten())
        self._counts: NDArray[np.int64] = counts[counts > 0].numpy()
        features.fill(survivors.step.tolist())
        if features.merges:
            each = [self.tokens(a, a + 1) for a in range(len(survivors))]
            self._counts = np.array([len(rows) for rows in each], dtype=np.int64)
        self.grid = features.places.grid
        self.block = max(1, _BLOCK_TOKENS // len(features.places))
        self.pts: NDArray[np.float64] = survivors.at.numpy()
        self.step: NDArray[np.int64] = survivors.step.numpy()

    def count(self, first: int, last: int) -> int:
        """Live tokens."""
        return int(self._counts[first:last].sum())

    def tokens(self, first: int, last: int) -> TokenBatch:
        """Live tokens of pictures ``first:last``, in the order of their rows and columns."""
        chosen, places = self.survivors, self.features.places
        live = self._live(first, last)
        times, ranks = chosen.spans(self.coverage, first, last)
        step = chosen.step[first:last]
        found = self.features.of(step.tolist(), live)
        whole = torch.ones_like(live) if found.maps else live
        row, token = torch.nonzero(whole, as_tuple=True)
        cell = torch.cat([step[row, None].int(), places.cell[token]], 1)
        data = torch.zeros(len(row), 1) if found.maps else found.data
        rows = TokenBatch.build(
            data, chosen.at[first:last][row], pts=times[row, token], cell=cell,
            frame=ranks[row, token], tile=places.tile[token], kind=places.kind[token],
        )  # fmt: skip
        if found.maps:
            return _merged(rows, live.flatten(), found)
        return rows.with_extras(found.rules, **found.columns)

    def empty(self) -> TokenBatch:
        """No tokens."""
        none = torch.zeros(0, dtype=torch.float64)
        return TokenBatch.build(torch.zeros(0, self.features.outline.dim), none)

    def _live(self, first: int, last: int) -> torch.Tensor:
        return self.coverage.live(self.survivors.kept(first, last))


def _merged(patches: TokenBatch, live: torch.Tensor, found: Found) -> TokenBatch:
    """Tokens that patches became inside the tower.

    Only live patches count: they alone give mass and times, and a token most of whose patches are
    padding, or were not kept, is none.
    """
    size, begin, parts = found.maps[0].num_sources, 0, []
    for i, tmap in enumerate(found.maps):
        own = slice(i * size, (i + 1) * size)
        here = patches.take(own).reduce(tmap)
        shown = patches.take(own).with_columns(mass=live[own].float()).reduce(tmap)
        stays = torch.nonzero(shown.mass >= here.mass / 2).flatten()
        # Times are those of live patches: the share of all others is taken away.
        seen = replace(tmap, share=tmap.share * live[own][tmap.src])
        rows = patches.take(own).reduce(seen)
        data = found.data[begin : begin + len(tmap)]
        parts.append(rows.with_columns(data=data).take(stays))
        begin += len(tmap)
    return TokenBatch.cat(parts)
