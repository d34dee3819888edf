"""Lay windows of consecutive tokens out for learned queries, overlapping or not.

Source: Tang et al., "SALMONN: Towards Generic Hearing Abilities for Large Language Models", ICLR
2024, arXiv:2310.13289, section 3 (window-level Q-Former); windows of Granite speech and Typhoon2.
Differs: only the layout; the learned queries of each window are the consumer's.

A projector: the width grows from D to size x D, a window's tokens side by side in order of time
(reshape to [W, size, D]). Receptive field: ``size`` consecutive tokens.

Shapes: [N, D] in order of time to [W, size D], W = (N - size) // stride + 1, or rounded up with
``pad``. Cost: O(W size D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tokpipe.compress._time_windows import time_windows, window_count
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Windows of tokens as rows; a token in several windows splits its share.

    Attributes:
        size: Tokens of a window, 1 to 1024 (SALMONN 17 at 50 Hz, Granite 15).
        stride: Tokens from one window to the next, 1 to 1024; None is ``size``.
        tail: ``drop`` the tokens that fill no window, or ``pad`` them with zeros (Granite).

    Example:
        >>> import torch
        >>> tokens = TokenBatch.build(torch.arange(4.0)[:, None], torch.arange(4).double())
        >>> Windows(size=2, stride=1).project(tokens).data.tolist()
        [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]]
    """

    source: ClassVar[str] = "arXiv:2310.13289, section 3"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ("features",)
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("pool_stack_window",)

    size: Annotated[int, Field(ge=1, le=1024)] = 17
    stride: Annotated[int, Field(ge=1, le=1024)] | None = None
    tail: Literal["drop", "pad"] = "drop"

    @property
    def receptive_field(self) -> tuple[int, int, int]:
        """Steps, rows and columns a new token depends on."""
        return self.size, 1, 1

    def project(self, tokens: TokenBatch) -> TokenBatch:
        """New tokens, one a window, ``size`` times as wide, in order of time."""
        return time_windows(tokens, self.size, self._stride, padded=self.tail == "pad")

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact; a budget does not change them."""
        return window_count(n, self.size, self._stride, padded=self.tail == "pad"), True

    @property
    def _stride(self) -> int:
        return self.size if self.stride is None else self.stride
