"""Join every few consecutive tokens into one wider token.

Source: Ma et al., "An Embarrassingly Simple Approach for LLM with Strong ASR Capacity"
(SLAM-ASR), arXiv:2402.08846, section 3; the same in LLaMA-Omni (arXiv:2409.06666) and Lyra.
Differs: only the stacking; the learned layers behind it are the consumer's. The tail may also be
filled with zeros.

A projector: the width grows from D to size x D, so the cache must hold features. Receptive field:
``size`` consecutive tokens, none of them in two rows.

Shapes: [N, D] in order of time to [N // size, size D]. Cost: O(N D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tokpipe.compress._time_windows import time_windows, window_count
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Time to channels.

    Attributes:
        size: Tokens of a row, 1 to 1024 (SLAM-ASR, LLaMA-Omni, Lyra 5; Voxtral 4; Llama-AVSR 3).
        tail: ``drop`` the tokens that fill no row, or ``pad`` them with zeros.

    Example:
        >>> import torch
        >>> tokens = TokenBatch.build(torch.arange(5.0)[:, None], torch.arange(5).double())
        >>> Stack(size=2).project(tokens).data.tolist()
        [[0.0, 1.0], [2.0, 3.0]]
    """

    source: ClassVar[str] = "arXiv:2402.08846, section 3"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ("features",)
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("pool_stack_window",)

    size: Annotated[int, Field(ge=1, le=1024)] = 5
    tail: Literal["drop", "pad"] = "drop"

    @property
    def receptive_field(self) -> tuple[int, int, int]:
        """Steps, rows and columns a new token depends on."""
        return self.size, 1, 1

    def project(self, tokens: TokenBatch) -> TokenBatch:
        """New tokens, ``size`` times as wide, in order of time."""
        return time_windows(tokens, self.size, self.size, padded=self.tail == "pad")

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact; a budget does not change them."""
        return window_count(n, self.size, self.size, padded=self.tail == "pad"), True
