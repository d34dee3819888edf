"""Rows of a report from what a walk saw: storyboards beside baselines of the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.evaluate import _cover as cover
from tokpipe.evaluate._boards import Board
from tokpipe.evaluate._walk import Seen
from tokpipe.evaluate.budgets import frames_of
from tokpipe.evaluate.report import Coverage, Events, Kind, Legibility, Row

#: The downsampled baseline takes this many times as many frames, at half their sides.
FINER = 4


@dataclass(frozen=True, slots=True)
class At:
    """A budget: as asked, in tokens, and the cells of a frame."""

    budget: str
    tokens: int
    cells: int

    @property
    def frames(self) -> int:
        """Whole frames it is worth, at least one."""
        return frames_of(self.tokens, self.cells)


class Bench:
    """Dense frames, and for each number of frames what uniform and the oracle reach.

    Args:
        features: Names of the features.
        counts: Numbers of frames the budgets are worth.
    """

    def __init__(
        self, seen: Seen, features: tuple[str, ...], counts: Sequence[int],
        note: Mapping[str, Any] | None, seed: int,
    ) -> None:  # fmt: skip
        self.seen, self.features, self.seed = seen, features, seed
        self.frames = {name: seen.frames(name) for name in features}
        self.states = cover.states_of(note, seen.times[0], seen.times[-1]) if note else []
        self.uniform = {k: cover.uniform(len(seen.times), k) for k in counts}
        self.even: dict[tuple[str, int], Coverage] = {}
        self.best: dict[tuple[str, int], Coverage] = {}
        for name, frames in self.frames.items():
            chosen = cover.oracle(frames, counts)
            for k in counts:
                self.even[name, k] = self.covered(name, frames[self.uniform[k]])
                self.best[name, k] = self.covered(name, frames[chosen[k]])

    @staticmethod
    def halves(planned: int, counts: Sequence[int]) -> set[int]:
        """Dense frames, of as many as are expected, that are needed at half their sides."""
        return {i for k in counts for i in cover.uniform(planned, FINER * k)}

    def covered(self, features: str, pictures: NDArray[np.float32]) -> Coverage:
        """Coverage by some vectors [K, E]."""
        return cover.summed(cover.best_cosines(self.frames[features], pictures))

    def gap(self, features: str, count: int, got: Coverage) -> float | None:
        """How much of the way from uniform to the oracle was made."""
        even, best = self.even[features, count], self.best[features, count]
        return cover.gap_closed(got.mean, even.mean, best.mean)

    def events(self, times: Sequence[float]) -> Events | None:
        """States hit by pictures at these seconds."""
        return cover.event_recall(self.states, times)

    def row(
        self, at: At, way: str, kind: Kind, coverage: Mapping[str, Coverage], pictures: int,
        **more: Any,
    ) -> Row:  # fmt: skip
        """A row with the gap worked out."""
        gaps = {name: self.gap(name, at.frames, found) for name, found in coverage.items()}
        return Row(
            way=way, kind=kind, budget=at.budget, tokens=at.tokens, pictures=pictures,
            coverage=coverage, gap_closed=gaps, **more,
        )  # fmt: skip


def board_row(bench: Bench, at: At, board: Board, kind: Kind, used: int | None) -> Row:
    """What a storyboard's pictures cover."""
    coverage = {n: bench.covered(n, np.stack(board.vectors[n])) for n in bench.features}
    return bench.row(
        at, board.name, kind, coverage, len(board.times),
        used=used, events=bench.events(board.times), legibility=Legibility.of(board.ssim),
    )  # fmt: skip


def baseline_rows(bench: Bench, at: At) -> list[Row]:
    """Uniform, random, downsampled and the oracle."""
    k, seen, names = at.frames, bench.seen, bench.features
    even = bench.uniform[k]
    count, used = len(even), len(even) * at.cells
    rich = [1.0 for i in even if i in seen.rich]
    random = {n: cover.random_coverage(bench.frames[n], k, bench.seed) for n in names}
    return [
        bench.row(
            at, "uniform", "baseline", {n: bench.even[n, k] for n in names}, count, used=used,
            events=bench.events([seen.times[i] for i in even]), legibility=Legibility.of(rich),
        ),
        bench.row(at, "random", "baseline", random, count, used=used),
        _downsampled(bench, at),
        bench.row(at, "oracle", "oracle", {n: bench.best[n, k] for n in names}, count, used=used),
    ]  # fmt: skip


def _downsampled(bench: Bench, at: At) -> Row:
    """Four times as many frames on a quarter of the cells each."""
    seen, wanted = bench.seen, cover.uniform(len(bench.seen.times), FINER * at.frames)
    # Damage may show other frames than the packets promised: the nearest ones serve.
    there = np.array(sorted(next(iter(seen.halves.values()))))
    chosen = sorted({int(there[np.abs(there - i).argmin()]) for i in wanted})
    coverage = {
        n: bench.covered(n, np.stack([seen.halves[n][i] for i in chosen])) for n in bench.features
    }
    values = [v for i in chosen if (v := seen.rich.get(i)) is not None]
    return bench.row(
        at, "downsampled", "baseline", coverage, len(chosen),
        used=-(-len(chosen) * at.cells // FINER),
        events=bench.events([seen.times[i] for i in chosen]), legibility=Legibility.of(values),
    )  # fmt: skip
