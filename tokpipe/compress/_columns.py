"""Read a column that an operator needs, or say clearly that it is missing."""

from __future__ import annotations

from torch import Tensor

from tokpipe.errors import RecipeError
from tokpipe.spec import EXTRAS
from tokpipe.tensors import Query, TokenBatch


def column(tokens: TokenBatch, name: str, operator: str) -> Tensor:
    """The extra column ``name`` [N, ...] in float32.

    Raises:
        RecipeError: The tokens do not carry it; ``operator`` is who needs it.
    """
    value = tokens.extras.get(name)
    if value is None:
        what = EXTRAS.get(name, "a column of the encoder")
        raise RecipeError(
            f"`{operator}` needs the column `{name}` ({what})",
            hint="use an encoder that gives it",
            code="recipe.needs",
        )
    return value.float()


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
            hint="give --query and an encoder with a text tower",
            code="recipe.needs",
        )
    value = tokens.data if query.space == "data" else column(tokens, query.space, operator)
    return value, query
