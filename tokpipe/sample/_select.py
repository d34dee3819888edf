"""Choose whole frames of a batch of tokens: scores of frames, counts, and the map that keeps them.

Letters: N tokens, T frames, E width of an embedding, M text segments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from tokpipe.errors import RecipeError
from tokpipe.frames import Frames, frames_of, placed, raster_shape
from tokpipe.grid import regular_shape
from tokpipe.maps import GridMap, TokenMap
from tokpipe.tensors import Query, TokenBatch

#: What a frame is judged by: likeness to the query, change since the frame before, or the mean of
#: the column ``score``.
ScoreKind = Literal["query", "novelty", "column"]


def needs_of(score: ScoreKind) -> tuple[str, ...]:
    """What a selector with this score needs."""
    return ("query",) if score == "query" else ()


def frame_embeddings(tokens: TokenBatch, found: Frames, space: str = "data") -> Tensor:
    """Mean vector of each frame, float32 [T, E], of the data or of an extra column.

    Raises:
        RecipeError: The column is not there.
    """
    value = tokens.data if space == "data" else tokens.extras.get(space)
    if value is None:
        raise RecipeError(
            f"frames cannot be compared: the column `{space}` is missing",
            hint="use an encoder that gives it",
            code="recipe.needs",
        )
    flat = value.float().flatten(1)
    total = flat.new_zeros(len(found), flat.shape[1]).index_add_(0, found.index, flat)
    return total / found.counts[:, None]


def unit(rows: Tensor) -> Tensor:
    """Rows [N, E] divided by their length; zero rows stay zero."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / length.clamp(min=1e-12)


def query_scores(embedding: Tensor, query: Query, *, scaled: bool = True) -> Tensor:
    """Likeness [T] of frames [T, E] to the nearest text segment: cosine, or plain product.

    Raises:
        RecipeError: The query has another width.
    """
    text = query.pooled.to(embedding)
    if text.ndim != 2 or not len(text) or text.shape[1] != embedding.shape[1]:
        raise RecipeError(
            f"the query's `pooled` is {list(text.shape)}, frames are {list(embedding.shape)}",
            hint="both need the same width, [M, E] and [T, E]",
            code="recipe.needs",
        )
    both = (unit(embedding), unit(text)) if scaled else (embedding, text)
    return (both[0] @ both[1].T).amax(1)


def changes(embedding: Tensor) -> Tensor:
    """How much each frame [T, E] differs from the one before, [T - 1] in 0..1, free of scale."""
    apart: Tensor = torch.linalg.vector_norm(embedding.diff(dim=0), dim=1)
    length: Tensor = torch.linalg.vector_norm(embedding, dim=1)
    return apart / (length[1:] + length[:-1]).clamp(min=1e-12)


def frame_scores(
    tokens: TokenBatch,
    found: Frames,
    kind: ScoreKind,
    query: Query | None,
    operator: str,
    *,
    scaled: bool = True,
) -> Tensor:
    """Scores of frames, float64 [T].

    Args:
        tokens: N tokens.
        found: Their frames.
        kind: What frames are judged by; the first frame's novelty is the largest of all.
        query: What they are compared with.
        operator: Who asks.
        scaled: Cosine to the query instead of the plain product.

    Raises:
        RecipeError: No query, no column of its space, or no score at all.
    """
    if kind == "query":
        if query is None:
            raise RecipeError(
                f"`{operator}` needs a query",
                hint="give --query and an encoder with a text tower, or score=novelty",
                code="recipe.needs",
            )
        embedding = frame_embeddings(tokens, found, query.space)
        return query_scores(embedding, query, scaled=scaled).double()
    if kind == "novelty":
        change = changes(frame_embeddings(tokens, found)).double()
        first = change.amax(0, keepdim=True) if len(found) > 1 else change.new_zeros(1)
        return torch.cat([first, change])
    return _column_scores(tokens, found, operator)


def _column_scores(tokens: TokenBatch, found: Frames, operator: str) -> Tensor:
    value = tokens.score.double()
    known = ~value.isnan()
    if not bool(known.any()):
        raise RecipeError(
            f"`{operator}`: no token has a score",
            hint="put a step before it that scores tokens, such as `temporal-drop`",
            code="recipe.needs",
        )
    total = value.new_zeros(len(found)).index_add_(0, found.index, value.masked_fill(~known, 0))
    count = value.new_zeros(len(found)).index_add_(0, found.index, known.double())
    mean = total / count.clamp(min=1)
    return torch.where(count > 0, mean, mean[count > 0].min())


def select(
    tokens: TokenBatch,
    budget: int | None,
    frames: int | None,
    score: Callable[[Frames], Tensor],
    choose: Callable[[Tensor, int], Tensor],
) -> TokenMap:
    """Keep whole frames.

    Args:
        tokens: N tokens of any frames.
        budget: Most rows; below one frame the best frame is averaged to a regular grid.
        frames: Most frames; None as many as the budget pays.
        score: Scores float64 [T] of the frames.
        choose: Frames int64 out of T, by scores and how many are wanted (1 .. T - 1).

    Returns:
        Tokens of the chosen frames, in the order they come; their score is the frame's.
    """
    n, device = len(tokens), tokens.data.device
    if n == 0:
        return TokenMap.identity(0, device)
    found = frames_of(tokens)
    total = len(found)
    count = total if frames is None else min(total, frames)
    if budget is not None and budget < n:
        count = min(count, budget // int(found.counts.max()))
    value = score(found)
    if count == 0:
        return smaller(tokens, found.index == value.argmax(), budget or 1)
    chosen = torch.arange(total, device=device) if count == total else choose(value, count)
    index = torch.nonzero(torch.isin(found.index, chosen.to(device))).flatten()
    return TokenMap.keep(index, n, score=value[found.index[index]].float())


def smaller(tokens: TokenBatch, member: Tensor, budget: int) -> TokenMap:
    """One frame, bool [N], averaged to the largest regular grid within ``budget`` rows."""
    source = torch.nonzero(member).flatten()
    frame = tokens.take(source)
    # A frame with holes, tiles or no grid is cut into runs of its tokens.
    rows, cols = raster_shape(frame) or (1, len(frame))
    a, b = regular_shape(rows, cols, budget)
    axes = (torch.eye(1), GridMap.average(rows, a), GridMap.average(cols, b))
    made = GridMap(**{k: m.to(source.device) for k, m in zip("tyx", axes, strict=True)}).expand()
    return placed(made if a * b < len(frame) else replace(made, kind=None), source, len(tokens))


def topped_up(chosen: Tensor, score: Tensor, count: int) -> Tensor:
    """``chosen`` frames once each and the best others up to ``count`` in all, ascending."""
    taken = torch.zeros_like(score, dtype=torch.bool)
    taken[chosen] = True
    order = torch.argsort(score, descending=True, stable=True)
    rest = order[~taken[order]][: max(0, count - int(taken.sum()))]
    taken[rest] = True
    return torch.nonzero(taken).flatten()


def spread(score: Tensor) -> Tensor:
    """Scores [T] moved to 0..1; all zero where they are equal."""
    low, high = score.min(), score.max()
    return (score - low) / (high - low) if high > low else torch.zeros_like(score)
