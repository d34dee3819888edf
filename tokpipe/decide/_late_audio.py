"""The audio side of a tower: chunks with anything audible are encoded, then the rules decide."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokpipe.budget import Supply, largest_remainder
from tokpipe.chain import Chain
from tokpipe.compress._fit import fit_chain, own_count
from tokpipe.decide._stream import priority_of
from tokpipe.recipe import build
from tokpipe.spec import MODALITY_CODE, StepSpec
from tokpipe.tensors import Query, TokenBatch
from tokpipe.towers import SoundFeatures

#: Tokens decided together, so that memory stays flat however long the sound is.
GROUP = 15_000
#: Seconds of one cell of the signal.
CELL = 0.04
#: What a chain of features gets that names no rule: runs of alike neighbours become one token.
_MERGE = "fastadasp"


@dataclass(slots=True, kw_only=True)
class LateAudio:
    """What the engine asks of a side, for a chain with a tower; one window at a time.

    Args:
        heard: bool [cells], cells of 40 ms that the signal's rules kept; None: all.

    Attributes:
        supply: What the window offers: tokens at least half of which was heard, and all.
        source: Its candidates.
    """

    chain: Chain
    features: SoundFeatures
    device: str
    heard: Tensor | None = None
    only_heard: bool = False
    query: Query | None = None
    supply: Supply = field(default_factory=Supply)
    source: int = 0
    _chunks: list[int] = field(default_factory=list)
    _span: tuple[float, float | None] = (0.0, None)
    _until: Tensor | None = None

    def __post_init__(self) -> None:
        """Sum up what is heard: seconds before each cell's start, float64 [cells + 1]."""
        if self.heard is not None:
            sums = self.heard.double().cumsum(0) * CELL
            self._until = torch.cat([torch.zeros(1, dtype=torch.float64), sums])

    def window(self, start: float, stop: float | None) -> None:
        """Look at the chunks and count tokens that start within [start, stop)."""
        size = self.features.chunk / self.features.outline.rate
        last = self.features.chunks if stop is None else int(-(-stop // size))
        self._span = (start, stop)
        self._chunks = list(range(int(start // size), min(last, self.features.chunks)))
        heard = [int(self._live(c).sum()) for c in self._chunks]
        every = heard if self.only_heard else [int(self._inside(c).sum()) for c in self._chunks]
        self.source = sum(every)
        self.supply = Supply(sum(heard), sum(every))

    def rows(self, budget: int | None) -> tuple[TokenBatch, Tensor]:
        """Kept rows in order of time, and their priority float64 [K] in (0, 1): low stays."""
        few = self.only_heard or (budget is not None and budget <= self.supply.novel)
        groups = list(self._groups(heard=few))
        counts = [sum(n for _, n in group) for group in groups]
        shares: list[int | None] = [None] * len(groups)
        if budget is not None:
            shares = [*largest_remainder(min(budget, sum(counts)), counts, caps=counts)]
        made = [
            self._decide([c for c, _ in group], share, heard=few)
            for group, share in zip(groups, shares, strict=True) if share != 0
        ]  # fmt: skip
        made = [rows for rows in made if len(rows)]
        if not made:
            none = torch.zeros(0, dtype=torch.float64)
            return TokenBatch.build(torch.zeros(0, self.features.outline.dim), none), none
        kept = TokenBatch.cat(made).sorted()
        return kept, priority_of(kept)

    def _groups(self, *, heard: bool) -> list[list[tuple[int, int]]]:
        """Chunks with tokens, put together into groups, with the tokens of each."""
        groups: list[list[tuple[int, int]]] = []
        size = GROUP
        for chunk in self._chunks:
            n = int((self._live(chunk) if heard else self._inside(chunk)).sum())
            if not n:
                continue
            if size + n > GROUP:
                groups.append([])
                size = 0
            groups[-1].append((chunk, n))
            size += n
        return groups

    def _decide(self, chunks: list[int], budget: int | None, *, heard: bool) -> TokenBatch:
        tokens = self._tokens(chunks, heard=heard).to(self.device)
        late = self.chain.late
        assert late is not None  # noqa: S101 - only chains with a tower come here
        if budget is None:
            tmap = own_count(late.reducers, tokens, None, self.query)
        else:
            rules = late.reducers or [build(StepSpec(use=_MERGE))]
            told = [late.removes(rule) for rule in late.reducers]
            tmap = fit_chain(rules, tokens, budget, self.query, told=told)
        return tokens.reduce(tmap).to("cpu")

    def _tokens(self, chunks: list[int], *, heard: bool) -> TokenBatch:
        found = self.features.of(chunks)
        times = torch.cat([self.features.times(c) for c in chunks])
        number = torch.cat(
            [self._number(c) + torch.arange(len(self.features.times(c))) for c in chunks]
        )
        keep = torch.cat([self._live(c) if heard else self._inside(c) for c in chunks])
        cell = torch.zeros(len(number), 3, dtype=torch.int32)
        cell[:, 0] = number
        rows = TokenBatch.build(
            found.data, times[:, 0], pts=times, cell=cell, modality=MODALITY_CODE["audio"]
        ).with_extras(found.rules, **found.columns)
        return rows.take(keep)

    def _number(self, chunk: int) -> int:
        """Number of a chunk's first token: all chunks before it are whole."""
        return chunk * len(self.features.times(0)) if chunk else 0

    def _inside(self, chunk: int) -> Tensor:
        at = self.features.times(chunk)[:, 0]
        start, stop = self._span
        return (at >= start) & (at < (torch.inf if stop is None else stop))

    def _live(self, chunk: int) -> Tensor:
        """Tokens of a chunk at least half of whose time was heard."""
        inside = self._inside(chunk)
        if self.heard is None or self._until is None:
            return inside
        times = self.features.times(chunk)
        # Heard seconds up to any time: sums of whole cells, and a part of the one it lies in.
        edge = (times / CELL).clamp(0, len(self.heard))
        low = edge.floor().long().clamp(max=max(0, len(self.heard) - 1))
        part = (edge - low).clamp(0, 1) * CELL * self.heard.double()[low]
        until = self._until[low] + part
        return inside & (until[:, 1] - until[:, 0] >= (times[:, 1] - times[:, 0]) / 2 - 1e-9)
