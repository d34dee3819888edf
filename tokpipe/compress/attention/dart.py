"""Keep a few pivots with long keys and the tokens least like each of them.

Source: Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication
Matters More", EMNLP 2025, arXiv:2502.11494, section 3 (pivots by key norm).
Differs: runs on encoder outputs. Pivots are used by falling norm, those of the picture first; the
released code takes them in the order of a CPython set of their positions in the prompt, which
``compat="released"`` reproduces. Its count overshoots (pivots, plus an equal part per pivot); with
a budget the parts are made to fit. Candidates that run out end the walk, there an error.

Shapes: data [N, D]; kept tokens in the order they come. Passes: 1 N x K with K pivots, no
pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._columns import column
from tokpipe.compress._cosine import DENSE, Cosines
from tokpipe.compress._neighbors import blocks
from tokpipe.compress._stacks import Rows, Stack, stacks
from tokpipe.errors import RecipeError
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Dart:
    """Pivots of largest L1 key norm, then per pivot the candidates of lowest cosine to it.

    Keys are the extra ``keys`` ([N, D'] or [N, H, D']) where the encoder offers it, else the data.
    Text pivots come from the query's ``tokens`` where there are any: [L, E] vectors in the
    query's space, or [L, E + H D'] with their keys after them; without keys their own norm counts.

    Attributes:
        pivots: Pivots among the tokens of a frame, 1 or more.
        text_pivots: Pivots among the query's tokens, 0 or more.
        ratio: Part of the tokens given up without a budget, 0 to below 1.
        tokens: Tokens aimed at in place of ``ratio``, 1 or more; None takes ``ratio``.
        image_start: Position of the first token in the prompt, 0 or more; matters to
            ``compat="released"`` alone.
        compat: Order of the pivots: by norm, or as the released code has it.
        scope: Pivots of a frame, or of the whole video.

    Example:
        >>> data = torch.tensor([[3.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(3).double())
        >>> Dart(pivots=1).decide(tokens, budget=2).anchor.tolist()
        [0, 2]
    """

    source: ClassVar[str] = "arXiv:2502.11494, section 3"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "llm"
    golden: ClassVar[tuple[str, ...]] = ("dart",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True

    pivots: Annotated[int, Field(ge=1)] = 4
    text_pivots: Annotated[int, Field(ge=0)] = 4
    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.778
    tokens: Annotated[int, Field(ge=1)] | None = None
    image_start: Annotated[int, Field(ge=0)] = 35
    compat: Literal["paper", "released"] = "paper"
    scope: Literal["frame", "video"] = "frame"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep ``budget`` tokens, or what ``ratio`` or ``tokens`` ask for.

        Raises:
            RecipeError: The query's tokens are not as wide as what they are compared with.
        """
        n, device = len(tokens), tokens.data.device
        if budget is not None and budget >= n:
            return TokenMap.identity(n, device)
        keys = tokens.extras.get("keys", tokens.data).flatten(1)
        space = "data" if query is None else query.space
        data = tokens.data if space == "data" else column(tokens, space, "dart")
        text, weight = _text(query, data.shape[1], keys.shape[1])
        rows = Rows(n, device)
        for stack in stacks(tokens, budget, self.scope, DENSE):
            norm = _sizes(stack.of(keys))
            own, words, order = self.order(norm, weight)
            cosines = Cosines(stack.of(data), pairs=0)
            near = cosines.rows(own)
            if words.numel():
                asked = text[words][None].expand(near.shape[0], -1, -1)
                near = torch.cat([near, cosines.to(asked)], 1)
            near = near.gather(1, order[..., None].expand_as(near))
            kept = _walk(near, own, self._parts(stack, own.shape[1], near.shape[1]))
            rows.add(stack, stack.own(), kept)
        return rows.keep()

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Exact with a budget, else a bound (text pivots make more rows)."""
        return (n, False) if budget is None else (min(n, budget), True)

    def order(self, norm: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pivots, and the order they are used in.

        Args:
            norm: float32 [T, C] key norms of the tokens.
            text: float32 [L] those of the query's tokens.

        Returns:
            Pivots int64 [T, P], pivots int64 [Q] of the text, and int64 [T, P + Q] the order of
            use of both, put one after the other.
        """
        size = norm.shape[1]
        own = torch.argsort(norm, dim=1, descending=True, stable=True)[:, : self.pivots]
        words = torch.argsort(text, descending=True, stable=True)[: self.text_pivots]
        order = torch.arange(own.shape[1] + words.shape[0], device=norm.device)
        order = order.expand(norm.shape[0], -1)
        if self.compat == "paper":
            return own, words, order
        after = (words + size).expand(norm.shape[0], -1)
        place = torch.cat([own, after], 1) + self.image_start
        used = [[row.index(p) for p in set(row)] for row in place.tolist()]
        return own, words, torch.tensor(used, device=norm.device)

    def _parts(self, stack: Stack, own: int, pivots: int) -> Tensor:
        """Tokens int64 [T, P + Q] that each pivot adds; a first column -1 cuts pivots short."""
        steps, size = stack.index.shape
        device = stack.index.device
        if stack.quota is None:
            wanted = size * (1 - self.ratio) if self.tokens is None else self.tokens
            return torch.full((steps, pivots), int(wanted // pivots), device=device)
        rest = (stack.quota - own)[:, None]
        part = rest.clamp(min=0) // pivots
        more = torch.arange(pivots, device=device)[None] < rest.clamp(min=0) - part * pivots
        # A budget under the number of pivots is met by dropping the last of them.
        return torch.where(rest < 0, rest, part + more)


def _sizes(keys: Tensor) -> Tensor:
    """Sum of magnitudes float32 [T, C] of keys [T, C, D'], block by block."""
    out = torch.empty(keys.shape[:2], device=keys.device)
    for a, b in blocks(keys.shape[1], keys.shape[0] * keys.shape[2]):
        out[:, a:b] = keys[:, a:b].float().abs().sum(2)
    return out


def _walk(near: Tensor, own: Tensor, parts: Tensor) -> Tensor:
    """Kept tokens bool [T, C].

    Args:
        near: float32 [T, P, C] cosines to each pivot, in order of use.
        own: int64 [T, Q] the pivots that are tokens, kept, by falling norm.
        parts: int64 [T, P] tokens each pivot adds; negative, pivots to drop.
    """
    steps, pivots, size = near.shape
    place = torch.arange(size, device=near.device).expand(steps, size)
    kept = torch.zeros(steps, size, dtype=torch.bool, device=near.device)
    stay = place[:, : own.shape[1]] < own.shape[1] + parts[:, :1].clamp(max=0)
    kept.scatter_(1, own, stay)
    gone = kept.scatter(1, own, True)
    left = size - own.shape[1]
    for i in range(pivots):
        order = torch.argsort(near[:, i].masked_fill(gone, torch.inf), dim=1, stable=True)
        taken = torch.zeros_like(kept).scatter_(
            1, order, place < parts[:, i : i + 1].clamp(max=left)
        )
        taken &= ~gone
        kept |= taken
        gone |= taken
    return kept


def _text(query: Query | None, width: int, keys: int) -> tuple[Tensor, Tensor]:
    """Vectors of the query's tokens float32 [L, E] and the norm of their keys [L]."""
    if query is None or query.tokens is None:
        none = torch.empty(0, width) if query is None else query.pooled.new_empty(0, width)
        return none, none.new_empty(0)
    both = query.tokens.float()
    if both.shape[1] not in (width, width + keys):
        raise RecipeError(
            f"`dart` compares text tokens of width {width}, or {width + keys} with keys; "
            f"got {both.shape[1]}",
            hint="use an encoder with a text tower of the same space",
            code="recipe.needs",
        )
    own = both[:, width:] if both.shape[1] > width else both
    return both[:, :width], own.abs().sum(1)
