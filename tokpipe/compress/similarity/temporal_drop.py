"""Drop cells that repeat the last kept cell at their place.

Source: tokpipe; the rule of run-length tokenization (Choudhury et al., RLT, arXiv:2411.05222,
section 3) with the last kept cell instead of the previous frame as reference.
Differs: the distance is taken on DCT descriptors, luma and chroma apart, so that grain and codec
noise do not count; without ``threshold`` nothing is removed, cells are only scored.

A cell is a repeat when its luma coefficients differ by less than ``luma`` and its chroma
coefficients by less than ``chroma`` grey levels (root mean square over the cell). Score = the
larger of both ratios, so 1 is the border of novel; a first cell is compared with mid-grey and
scores at least 1. Repeats are kept first: the keeper stands for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from tokpipe.compress._cell_distance import (
    CHROMA_LEVEL,
    DIM,
    LUMA_LEVEL,
    follow,
)
from tokpipe.compress._states import StateMapper, frame_slices
from tokpipe.errors import RecipeError
from tokpipe.spec import Layout, Scope
from tokpipe.tensors import TokenBatch, TokenMap


@dataclass(slots=True)
class _State:
    mapper: StateMapper = field(default_factory=StateMapper)
    last: NDArray[np.float32] | None = None
    settled: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class TemporalDrop:
    """Stream reducer over ``pixels`` tokens of whole frames.

    Attributes:
        luma, chroma: Grey levels under which a cell counts as unchanged.
        reference: Compare with the last ``kept`` cell, or with the ``previous`` frame's.
        threshold: Remove cells that score under this; None only scores them.
    """

    source: ClassVar[str] = "Choudhury et al., RLT, arXiv:2411.05222, section 3; tokpipe"
    scope: ClassVar[Scope] = "stream"
    needs: ClassVar[tuple[str, ...]] = ("pixels",)
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    causal: ClassVar[bool] = True
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)

    luma: Annotated[float, Field(ge=0.01, le=255)] = LUMA_LEVEL
    chroma: Annotated[float, Field(ge=0.01, le=255)] = CHROMA_LEVEL
    reference: Literal["kept", "previous"] = "kept"
    threshold: Annotated[float | None, Field(gt=0)] = None

    @property
    def stored(self) -> str | None:
        """Column of the bank that holds these very scores of a stream from its first frame."""
        return "changes" if self == TemporalDrop() else None

    def start(self, budget: int | None = None, steps: int | None = None) -> _State:
        """Fresh state; neither the budget nor the length matters."""
        return _State()

    def push(
        self, state: _State, carried: TokenBatch | None, new: TokenBatch
    ) -> tuple[_State, TokenMap]:
        """Score the block; map over [carried; new]."""
        score = self.score(state, new)
        held = 0 if carried is None else len(carried)
        if self.threshold is None:
            state.settled = torch.ones(held + len(new), dtype=torch.bool)
            keep = TokenMap.identity(held + len(new))
            return state, TokenMap.keep(
                keep.anchor, keep.num_sources, score=torch.from_numpy(score)
            )
        frames = len(frame_slices(new))
        novel = (score >= self.threshold).reshape(frames, -1)
        tmap = state.mapper.push(held, novel, novel)
        state.settled = state.mapper.settled
        before = np.zeros(0, np.float32) if carried is None else carried.score.numpy()
        rows = torch.from_numpy(np.concatenate([before, score]))[tmap.anchor]
        return state, TokenMap(
            src=tmap.src, dst=tmap.dst, weight=tmap.weight, share=tmap.share, anchor=tmap.anchor,
            num_sources=tmap.num_sources, score=rows,
        )  # fmt: skip

    def finish(self, state: _State, carried: TokenBatch) -> TokenMap:
        """Every carried row is kept."""
        state.settled = torch.ones(len(carried), dtype=torch.bool)
        return TokenMap.identity(len(carried))

    def score(self, state: _State, new: TokenBatch) -> NDArray[np.float32]:
        """Change of each cell against its reference, float32 [N]; moves the reference on."""
        if new.data.shape[1] != DIM:
            raise RecipeError(
                "`temporal-drop` compares `pixels` descriptors, "
                f"got tokens of width {new.data.shape[1]}",
                hint="use it after the `pixels` encoder",
            )
        sizes = {b - a for a, b in frame_slices(new)}
        if state.last is not None:
            sizes.add(len(state.last))
        if len(sizes) > 1:
            raise RecipeError(
                "`temporal-drop` needs whole frames of one size",
                hint="put it right after `pixels`",
            )
        if not len(new):
            return np.zeros(0, np.float32)
        data = new.data.float().cpu().numpy().reshape(-1, sizes.pop(), DIM)
        scores, state.last = follow(
            data, state.last, self.luma, self.chroma, kept=self.reference == "kept",
            border=1.0 if self.threshold is None else self.threshold,
        )  # fmt: skip
        return scores.reshape(-1)
