"""Small films as streams of scored cells, and selectors of whole streams run over them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from tokpipe.compress._detail import Finer
from tokpipe.compress._moments import Facts
from tokpipe.compress._states import StateMapper
from tokpipe.compress.similarity.coverage_updates import CoverageUpdates, Detail, State
from tokpipe.compress.similarity.temporal_drop import TemporalDrop
from tokpipe.encode.pixels import cell_tokens, describe
from tokpipe.spec import Layout
from tokpipe.tensors import TokenBatch

Pictures = NDArray[np.uint8]
Grid = tuple[int, int]


def scene(seed: int, grid: Grid) -> Pictures:
    """A picture of soft patches, each seed another."""
    draw = np.random.default_rng(seed)
    patches = draw.integers(20, 236, (2 * grid[0], 2 * grid[1], 3))
    return np.kron(patches, np.ones((14, 14, 1))).astype(np.uint8)


def film(grid: Grid, lengths: list[int], *, still: bool = False) -> Pictures:
    """Scenes of so many frames; in each a block moves, unless they are still."""
    out = []
    for number, length in enumerate(lengths):
        for t in range(length):
            picture = scene(number, grid).copy()
            if not still:
                left = (t * 9) % (picture.shape[1] - 28)
                picture[10:38, left : left + 28] = (250, 250, 20)
            out.append(picture)
    return np.stack(out)


def scored_stream(pictures: Pictures, block: int = 64) -> list[TokenBatch]:
    """Scored tokens of pictures, one a second, in blocks of frames."""
    rows, cols = pictures.shape[1] // 28, pictures.shape[2] // 28
    scorer, out = TemporalDrop(), []
    memory = scorer.start()
    for a in range(0, len(pictures), block):
        part = torch.from_numpy(pictures[a : a + block])
        start = torch.arange(a, a + len(part))
        tokens = cell_tokens(
            describe(part).reshape(-1, 24).half(), start.double(), start.double() + 1, start,
            start.int(), rows, cols,
        )  # fmt: skip
        score = torch.as_tensor(scorer.score(memory, tokens)).reshape(-1)
        out.append(tokens.with_columns(score=score.float()))
    return out


class CoverageRun:
    """A stream seen once, settled for as many budgets as wanted."""

    def __init__(
        self, pictures: Pictures, *, detail: Detail = "auto", block: int = 64,
        text: float | None = None, finest: int = 1,
    ) -> None:  # fmt: skip
        self.grid: Grid = (pictures.shape[1] // 28, pictures.shape[2] // 28)
        self.cells = self.grid[0] * self.grid[1]
        self.frames, self.total = len(pictures), len(pictures) * self.cells
        self.blocks = scored_stream(pictures, block) if len(pictures) else []
        self.operator = CoverageUpdates(detail=detail)
        self.seen = self.operator.begin(self.total, *self.grid)
        for tokens in self.blocks:
            self.operator.observe(self.seen, tokens)
        if text is not None:
            every = np.ones(self.frames, np.bool_)
            facts = Facts(
                text=np.full(self.frames, text, np.float32),
                finest=np.full(self.frames, finest, np.int64), even=every,
            )  # fmt: skip
            self.operator.inform(self.seen, facts)

    @property
    def data(self) -> NDArray[np.float16]:
        """Descriptors [T, C, 24] as they came."""
        rows = torch.cat([b.data for b in self.blocks]).numpy()
        out: NDArray[np.float16] = rows.reshape(self.frames, self.cells, 24)
        return out

    def settled(self, budget: int, layout: Layout = "ragged", each: int | None = None) -> State:
        """The state after the first pass."""
        # What the second half changes is made anew; the rest is only read.
        state = replace(
            self.seen, coarse={}, changes={}, pieces=[], finer=Finer(), mapper=StateMapper()
        )
        self.operator.settle(state, budget, layout, each)
        return state

    def kept(
        self, budget: int, layout: Layout = "ragged", each: int | None = None
    ) -> tuple[TokenBatch, State]:
        """Kept rows in the cache's order, at the video's own grid."""
        state = self.settled(budget, layout, each)
        carried: TokenBatch | None = None
        out = []
        for new in self.blocks:
            state, tmap = self.operator.push(state, carried, new)
            made = (new if carried is None else TokenBatch.cat([carried, new])).reduce(tmap)
            assert state.settled is not None
            out.append(made.take(state.settled))
            carried = made.take(~state.settled)
        assert carried is not None
        out.append(carried.reduce(self.operator.finish(state, carried)))
        kept = TokenBatch.cat(out).sorted()
        if (pooled := self.operator.conclude(state, kept)) is not None:
            kept = kept.reduce(pooled).sorted()
        return kept, state
