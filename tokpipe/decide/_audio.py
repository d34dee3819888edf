"""The audio side: light columns decide, the mel itself is read for kept cells only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tokpipe.budget import Supply, largest_remainder
from tokpipe.cache.bank import Bank
from tokpipe.chain import Chain
from tokpipe.compress._fit import expanded, fit_chain, own_count
from tokpipe.decide._stream import meets_budget, priority_of, together
from tokpipe.recipe import build
from tokpipe.spec import MODALITY_CODE, StepSpec
from tokpipe.tensors import TokenBatch, TokenMap

#: Cells decided together (an hour): memory stays flat however long the sound is.
CHUNK = 90_000
#: The same for reducers that look at the mel itself.
HEAVY_CHUNK = 15_000
_CELL = 0.04
_TAIL = ("silence-gate", "adjacent-merge")


class AudioSide:
    """Runs an audio chain's reducers, one window at a time.

    Attributes:
        supply: What the window offers; set by :meth:`window`.
        source: Its candidates, also those that the chain removes for good.
    """

    def __init__(self, bank: Bank, chain: Chain, *, budgeted: bool, device: str) -> None:
        """A chain that only encodes gets the default tail."""
        self.bank, self.device = bank, device
        self.width = 4 * int(chain.encoder.bins)
        self.columns: list[str] = list(bank.meta["columns"])
        reducers = list(chain.reducers)
        if budgeted and (not reducers or not meets_budget(reducers[-1])):
            reducers = [build(StepSpec(use=name)) for name in _TAIL]
        elif budgeted and getattr(reducers[-1], "drop", False):
            # What a gate was told to remove must not fill the budget again.
            reducers.append(build(StepSpec(use=_TAIL[-1])))
        cut = together(chain, reducers)
        self.scorers: list[Any] = reducers[:cut] if reducers else []
        self.tail: list[Any] = reducers[cut:] if reducers else []
        self.told = [chain.removes(rule) for rule in self.tail]
        self.light = all(
            getattr(r, "light", False) and getattr(r, "mode", "keep") == "keep" for r in reducers
        )
        self.supply, self.source = Supply(), 0
        self._chunks: list[tuple[int, int]] = []
        self._supplies: list[Supply] = []

    def window(self, start: float, stop: float | None) -> None:
        """Look at the cells that start within [start, stop) and count what they offer."""
        cells = int(self.bank.meta["cells"])
        first = min(cells, round(start / _CELL))
        last = cells if stop is None else min(cells, round(stop / _CELL))
        self.source = last - first
        size = CHUNK if self.light else HEAVY_CHUNK
        self._chunks = [(a, min(a + size, last)) for a in range(first, last, size)]
        self._supplies = [self._count(a, b) for a, b in self._chunks]
        self.supply = Supply(
            sum(s.novel for s in self._supplies), sum(s.total for s in self._supplies)
        )

    def rows(self, budget: int | None) -> tuple[TokenBatch, torch.Tensor]:
        """Kept rows in order of time and their priority float64 [K] in (0, 1), low kept longest."""
        totals = [s.total for s in self._supplies]
        parts: list[int | None] = [None] * len(totals)
        if budget is not None:
            novel = [s.novel for s in self._supplies]
            first = largest_remainder(budget, novel, caps=novel)
            more = largest_remainder(
                budget - sum(first),
                totals,
                caps=[t - n for t, n in zip(totals, first, strict=True)],
            )
            parts = [n + m for n, m in zip(first, more, strict=True)]
        made = [
            rows for (a, b), n in zip(self._chunks, parts, strict=True)
            if n != 0 and len(rows := self._decide(a, b, n))
        ]  # fmt: skip
        kept = TokenBatch.cat(made).sorted() if made else self._tokens(0, 0, light=False)
        order = torch.cat(
            [torch.zeros(0, dtype=torch.float64), *(priority_of(rows) for rows in made)]
        )
        return kept, order

    def _count(self, a: int, b: int) -> Supply:
        tokens = self._scored(a, b)[0]
        if len(self.tail) == 1 and hasattr(self.tail[0], "worth"):
            return Supply(self.tail[0].worth(tokens), len(tokens))
        return Supply(int((tokens.score != 0).sum()), len(tokens))

    def _scored(self, a: int, b: int) -> tuple[TokenBatch, TokenMap | None]:
        tokens, done = self._tokens(a, b, light=self.light), None
        for reducer in self.scorers:
            tmap = expanded(reducer.decide(tokens, None))
            tokens = tokens.reduce(tmap)
            done = tmap if done is None else done.then(tmap)
        return tokens, done

    def _decide(self, a: int, b: int, budget: int | None) -> TokenBatch:
        tokens, done = self._scored(a, b)
        if not self.tail:
            return tokens
        placed = tokens.to(self.device)
        if budget is None:
            tmap = own_count(self.tail, placed, None).to("cpu")
        else:
            tmap = fit_chain(self.tail, placed, budget, told=self.told).to("cpu")
        rows = tokens.reduce(tmap)
        if not self.light:
            return rows
        source = tmap.anchor if done is None else done.anchor[tmap.anchor]
        data = (
            torch.stack([self._mel(a + i) for i in source.tolist()])
            if len(rows)
            else self._mel_rows(0, 0)
        )
        return rows.with_columns(data=data)

    def _mel(self, cell: int) -> torch.Tensor:
        return self._mel_rows(cell, cell + 1)[0]

    def _mel_rows(self, a: int, b: int) -> torch.Tensor:
        return torch.from_numpy(self.bank.rows("mel", a, b, np.dtype("<f2"), self.width).copy())

    def _tokens(self, a: int, b: int, *, light: bool) -> TokenBatch:
        """Cells ``a:b``; light ones have no data, only the columns that reducers decide by."""
        data = torch.zeros(b - a, 0, dtype=torch.float16) if light else self._mel_rows(a, b)
        at = torch.arange(a, b + 1, dtype=torch.float64) / 25
        cell = torch.zeros(b - a, 3, dtype=torch.int32)
        cell[:, 0] = torch.arange(a, b)
        columns = self.bank.rows("mel_columns", a, b, np.dtype("<f4"), len(self.columns)).copy()
        extras = {
            name: torch.from_numpy(columns[:, i].copy()) for i, name in enumerate(self.columns)
        }
        return TokenBatch.build(
            data, at[:-1], pts=torch.stack([at[:-1], at[1:]], 1), cell=cell,
            modality=MODALITY_CODE["audio"],
        ).with_extras(None, **extras)  # fmt: skip

    def spans(self) -> Iterator[tuple[float, float]]:
        """Stretches of sound the chain's own gate does not call silent, gaps under 0.3 s closed."""
        begin = end = None
        for a in range(0, int(self.bank.meta["cells"]), CHUNK):
            tokens, _ = self._scored(a, min(a + CHUNK, int(self.bank.meta["cells"])))
            for start, stop in _runs(tokens.score != 0, tokens.pts):
                if end is not None and begin is not None and start - end > 0.3:
                    yield begin, end
                    begin = None
                begin, end = (start if begin is None else begin), stop
        if begin is not None and end is not None:
            yield begin, end

    def heard(self) -> torch.Tensor:
        """Cells bool [cells] of these stretches."""
        mask = torch.zeros(int(self.bank.meta["cells"]), dtype=torch.bool)
        for start, stop in self.spans():
            mask[round(start / _CELL) : round(stop / _CELL)] = True
        return mask


def _runs(heard: torch.Tensor, pts: torch.Tensor) -> Iterator[tuple[float, float]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], heard.numpy().astype(np.int8), [0]])))
    for a, b in edges.reshape(-1, 2):
        yield float(pts[a, 0]), float(pts[b - 1, 1])
