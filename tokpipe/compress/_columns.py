"""Read a column that an operator needs, or say clearly that it is missing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from tokpipe.checks import check
from tokpipe.errors import ModelError, RecipeError
from tokpipe.spec import EXTRAS
from tokpipe.tensors import Query, TokenBatch

#: Dimensions of columns wider than one value a head; any other is [N] or [N, H].
_RANKS = {
    "keys": (2, 3), "queries": (2, 3), "frame_embedding": (2,), "text_space": (2,),
    "spatial": (2,), "patch_pixels": (2,), "attention_rows": (3, 4, 5),
}  # fmt: skip


def column(tokens: TokenBatch, name: str, operator: str, *, own: bool = False) -> Tensor:
    """The extra column ``name`` [N, ...] in float32, or in its ``own`` type.

    Raises:
        RecipeError: The tokens do not carry it; ``operator`` is who needs it.
        ModelError: It holds NaN or infinity.
    """
    value = tokens.extras.get(name)
    if value is None:
        what = EXTRAS.get(name, "a column of the encoder")
        raise RecipeError(
            f"`{operator}` needs the column `{name}` ({what})",
            hint=f"add it with `tokens.with_extras({name}=...)`, or use an encoder that gives it",
            code="recipe.needs",
        )
    allowed = _RANKS.get(name, (1, 2))
    if value.ndim not in allowed:
        raise RecipeError(
            f"`{operator}`: the column `{name}` is {list(value.shape)}",
            hint=f"expected: {EXTRAS.get(name, '[N]')}",
            code="recipe.needs",
        )
    if len(value):
        finite = value.sum(dtype=torch.float32).isfinite().reshape(1)
        check(finite, partial(_refuse_values, name))
    return value if own else value.float()


def _refuse_values(name: str, holds: Sequence[bool]) -> None:
    del holds
    raise ModelError(
        f"the column `{name}` holds values that are not finite",
        hint="compute it in float32 or bfloat16",
        code="model.finite",
    )


def head_mean(tokens: TokenBatch, name: str, operator: str) -> Tensor:
    """The extra column ``name`` as float32 [N]; heads, where there are any, are averaged."""
    value = column(tokens, name, operator)
    return value.mean(1) if value.ndim == 2 else value


def compared(tokens: TokenBatch, query: Query | None, operator: str) -> tuple[Tensor, Query]:
    """What the query is compared with, float [N, E], and the query.

    Raises:
        RecipeError: There is no query, or the tokens lack the column of its space.
    """
    if query is None:
        raise RecipeError(
            f"`{operator}` needs a query",
            hint="from Python give a `tokpipe.Query`; files need an encoder with a text tower",
            code="recipe.needs",
        )
    data = query.space == "data"
    value = tokens.data if data else column(tokens, query.space, operator, own=True)
    for name, text in (("pooled", query.pooled), ("tokens", query.tokens)):
        if text is not None and (text.ndim != 2 or text.shape[1] != value.shape[1]):
            raise RecipeError(
                f"`{operator}`: the query's `{name}` is {list(text.shape)}, "
                f"`{query.space}` is {list(value.shape)}",
                hint="both need the same width, [M, E] and [N, E]",
                code="recipe.needs",
            )
    return value, query
