"""Write tokens that are in memory as a feature cache.

The file is what a run with ``--encoder`` writes: the same columns, the same checks, the same
consumers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokpipe import __version__
from tokpipe.assemble import deepstack_columns, describe_media, row_columns, set_ranks
from tokpipe.cache.format import KIND_LAYOUT, deepstack_level
from tokpipe.cache.writer import CacheWriter, sweep_stale
from tokpipe.digest import chain as digest_chain
from tokpipe.errors import CacheError, RecipeError
from tokpipe.run import SUFFIX, refuse_foreign
from tokpipe.spec import LAYOUTS, MODALITY_CODE, Layout
from tokpipe.tensors import TokenBatch

if TYPE_CHECKING:
    import os

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_STAGES = ("pre_projector", "post_projector")
#: What is one of them is also each of those before it.
_FIT: tuple[Layout, ...] = ("ragged", "grid", "frames")


def save_cache(
    path: str | os.PathLike[str],
    tokens: TokenBatch | Mapping[str, TokenBatch],
    *,
    encoder: Mapping[str, Any] | None = None,
    source: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    grid: tuple[int, int] | None = None,
    dropped: float | Mapping[str, float] = 0.0,
    layout: Layout | None = None,
    rank: Mapping[str, Tensor] | None = None,
    recipe: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Write tokens that are in memory as a feature cache.

    Args:
        path: The file; its folder is made. ``NAME.tokpipe.safetensors`` is what others look for.
        tokens: Tokens of the pictures, of the sound, or both as ``{"video": .., "audio": ..}``.
            Rows may come in any order. Columns as in :class:`TokenBatch`; ``deepstack_1`` ... among
            the extras are stored beside the tokens, other extras are not. Stored as they are:
            float32, bfloat16 or float16.
        encoder: Facts on what made them, see :func:`encoder_facts`; by stream where there are two.
            ``stage`` says whether a projector is behind them (``pre_projector`` when left out).
        source: The media they come from, whose name and fingerprint are stored; or what another
            cache says of it (``cache.info``).
        grid: Rows and columns of a whole picture's tokens; found from the cells where left out.
        dropped: Source tokens that no row stands for, so that the counts are true.
        layout: ``frames``, ``grid`` or ``ragged``; found from the cells where left out. Frames may
            be called a grid, and both ragged.
        rank: Whole numbers [N] by stream: whatever the budget, low ones stay longest, over both
            streams (also as ``rank`` among the extras). By default rows with a higher ``score``,
            and among equals those that lie evenly spread over time.
        recipe: What was done to the tokens, for the record.
        force: Replace a cache that is there.

    Raises:
        CacheError: A column breaks the format, features are not finite, or there are none; ranks
            or the layout are not those of the rows.
        RecipeError: The facts on the encoder do not fit the tokens.
        OutputExists: The file is there and ``force`` is off, or is no cache.
        MediaError: ``source`` cannot be read.
    """
    target = Path(path)
    streams = _by_stream(tokens, rank or {})
    facts = _by_facts(encoder, streams)
    about = {name: _about(name, rows, facts[name], grid) for name, rows in streams.items()}
    found = _layout(layout, streams.get("video"), about.get("video", {}))
    _make_room(target, force=force)
    dtype = {name: _DTYPES[rows.data.dtype] for name, rows in streams.items()}
    with CacheWriter(target, force=force, dtype=dtype) as writer:
        for name, rows in streams.items():
            columns = row_columns(rows, np.zeros(0))
            writer.append(name, {**columns, **deepstack_columns(rows)})
        set_ranks(writer, _priority(streams))
        counts = {name: _counts(rows, name, dropped) for name, rows in streams.items()}
        return writer.finish({
            **_metadata(about, recipe or {}), "tokpipe.counts": counts,
            "tokpipe.layout": found, "tokpipe.source": _source(source, target, streams),
        })  # fmt: skip


def _make_room(target: Path, *, force: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if force and target.exists():
        refuse_foreign(target)
    sweep_stale(target.parent)


def _layout(told: Layout | None, rows: TokenBatch | None, about: Mapping[str, Any]) -> Layout:
    """The layout told, or that of the rows.

    Args:
        rows: Those of pictures; sound fits any layout.
        about: What the cache says of their encoder.

    Raises:
        CacheError: The rows have another one.
    """
    if told is not None and told not in LAYOUTS:
        raise CacheError(f"unknown layout `{told}`", hint=f"one of {', '.join(LAYOUTS)}",
                         code="cache.layout")  # fmt: skip
    grid, merged = about.get("grid"), (about.get("params") or {}).get("inside")
    found: Layout = "ragged" if rows is None else layout_of(rows, grid)
    if told is None or rows is None or _FIT.index(told) <= _FIT.index(found):
        return told or found
    real = rows.kind < KIND_LAYOUT
    step = torch.unique(rows.at[real], return_inverse=True)[1]
    sizes, mass = torch.bincount(step), torch.bincount(step, rows.mass[real].double())
    # Cells tell it, unless there are crops beside the picture, no cells at all, or each row is of
    # several cells, as in towers that merge patches.
    told_by_cells = bool((rows.cell[real] >= 0).any()) and not bool(rows.tile[real].any())
    whole = grid is not None and bool((mass - grid[0] * grid[1]).abs().max() < 1e-3)
    if len(torch.unique(sizes)) > 1 or (told_by_cells and not whole and not merged):
        raise CacheError(
            f"the layout is said to be {told}, that of the rows is {found}", code="cache.layout",
            hint="leave out layout, or give the same cells of every picture, and the grid",
        )  # fmt: skip
    return told


def layout_of(tokens: TokenBatch, grid: Sequence[int] | None) -> Layout:
    """Which layout the rows of pictures have, sorted by (at, tile, y, x).

    Args:
        grid: Rows and columns of a whole picture.
    """
    real = tokens.kind < KIND_LAYOUT
    times, step = torch.unique(tokens.at[real], return_inverse=True)
    pictures = len(times)
    # Class tokens have no cell: each picture has all of them, or some are missing.
    beside = (tokens.cell[real, 1:] < 0).any(1)
    equal = len(set(torch.bincount(step[beside], minlength=pictures).tolist())) == 1
    cell = tokens.cell[real][~beside].long()
    if grid is None or not len(cell) or not equal or bool(tokens.tile[real].any()):
        return "ragged"
    n, rest = divmod(len(cell), pictures)
    y, x = torch.unique(cell[:, 1]), torch.unique(cell[:, 2])
    raster = torch.cartesian_prod(y, x).reshape(-1, 2)
    if rest or n != len(raster) or not bool((cell[:, 1:] == raster.repeat(pictures, 1)).all()):
        return "ragged"
    if n == grid[0] * grid[1]:
        return "frames"
    # Pooled from all cells of each picture, or every k-th line of cells kept.
    mass = tokens.mass[real][~beside].reshape(pictures, n).sum(1)
    pooled = bool(torch.isclose(mass, mass.new_tensor(float(grid[0] * grid[1]))).all())
    return "grid" if pooled or (_even(y, grid[0]) and _even(x, grid[1])) else "ragged"


def _even(lines: Tensor, size: int) -> bool:
    """Lines of cells lie evenly over all ``size`` of them."""
    gap = lines.diff()
    step = int(gap[0]) if len(gap) else 1
    return bool((gap == step).all()) and int(lines[0]) < step and size - int(lines[-1]) <= step


def _by_stream(
    tokens: TokenBatch | Mapping[str, TokenBatch], rank: Mapping[str, Tensor]
) -> dict[str, TokenBatch]:
    """Rows of each stream in the order of the file, with their ranks where these are given."""
    if isinstance(tokens, TokenBatch):
        given = {name: tokens.take(tokens.modality == code) for name, code in MODALITY_CODE.items()}
    else:
        given = dict(tokens)
    for name in (*given, *rank):
        if name not in MODALITY_CODE:
            raise CacheError(f"unknown stream `{name}`", hint="give video, audio or both",
                             code="cache.invalid")  # fmt: skip
    made = {}
    for name in MODALITY_CODE:
        if name in given and len(given[name]):
            rows = given[name].to("cpu")
            if name in rank:
                rows = rows.with_extras(rank=_ranks(name, rank[name], len(rows)))
            made[name] = rows.sorted()
    if not made:
        raise CacheError("there is no token to write", code="cache.empty")
    for name in rank:
        if name not in made:
            raise CacheError(f"ranks of {name}, of which there is no token", code="cache.rank",
                             hint=f"give those of {' and '.join(made)}")  # fmt: skip
    return made


def _ranks(stream: str, given: Any, count: int) -> Tensor:
    """Ranks [N] of a stream."""
    ranks: Tensor = torch.as_tensor(given).cpu()
    if ranks.shape != (count,) or not bool(torch.isfinite(ranks).all()):
        raise CacheError(
            f"{stream}: ranks {list(ranks.shape)} for {count} tokens"
            if ranks.shape != (count,)
            else f"{stream}: a rank is not finite",
            hint="give a number for each row, in the order of the rows", code="cache.rank",
        )  # fmt: skip
    return ranks


def _by_facts(
    encoder: Mapping[str, Any] | None, streams: Mapping[str, TokenBatch]
) -> dict[str, Mapping[str, Any]]:
    if encoder is None:
        return {name: {} for name in streams}
    by_stream = [name for name in encoder if name in MODALITY_CODE]
    for name in by_stream:
        if name not in streams and encoder[name]:
            raise RecipeError(
                f"facts on the encoder of {name}, of which there is no token",
                hint=f"give those of {' and '.join(streams)}",
            )
    if len(by_stream) == len(encoder):
        return {name: encoder.get(name) or {} for name in streams}
    if by_stream:
        odd = next(name for name in encoder if name not in MODALITY_CODE)
        raise RecipeError(f"the facts on the encoder name both streams and `{odd}`",
                          hint="give facts of each stream alone")  # fmt: skip
    if len(streams) > 1:
        raise RecipeError("the facts on the encoder do not say of which stream",
                          hint='give encoder={"video": ..., "audio": ...}')  # fmt: skip
    return dict.fromkeys(streams, encoder)


def _about(
    stream: str, rows: TokenBatch, facts: Mapping[str, Any], grid: tuple[int, int] | None
) -> dict[str, Any]:
    """``tokpipe.encoder.S``."""
    levels = sorted(filter(None, (deepstack_level(name) for name in rows.extras)))
    told = facts.get("deepstack")
    if levels != list(range(1, len(levels) + 1)) or (told is not None and told != len(levels)):
        raise RecipeError(
            f"{stream}: deepstack levels {levels}, the encoder has {told or 'as many in a row'}",
            hint="give extras deepstack_1 to deepstack_k",
        )
    entry: dict[str, Any] = {
        "name": "own", "params": {}, "version": 1, "stage": "pre_projector",
        "dtype": str(rows.data.dtype).removeprefix("torch."), **facts, "deepstack": len(levels),
    }  # fmt: skip
    if entry["stage"] not in _STAGES:
        raise RecipeError(f"{stream}: unknown stage {entry['stage']!r}",
                          hint=f"expected {' or '.join(_STAGES)}")  # fmt: skip
    if stream == "video":
        found = grid or facts.get("grid") or _grid(rows)
        entry["grid"] = None if found is None else [int(found[0]), int(found[1])]
        _check_inside(rows, entry["grid"])
    return entry


def _grid(rows: TokenBatch) -> tuple[int, int] | None:
    """Rows and columns the cells of whole pictures reach to."""
    real = (rows.kind < KIND_LAYOUT) & (rows.tile == 0) & (rows.cell >= 0).all(1)
    if not bool(real.any()):
        return None
    reach = (rows.cell[real, 1:] + rows.extent[real, 1:]).amax(0)
    return int(reach[0]), int(reach[1])


def _check_inside(rows: TokenBatch, grid: list[int] | None) -> None:
    real = (rows.kind < KIND_LAYOUT) & (rows.tile == 0)
    if grid is not None and bool((rows.cell[real, 1:] >= torch.tensor(grid)).any()):
        raise RecipeError(f"video: a cell lies outside the grid of {grid[0]} x {grid[1]}",
                          hint="give the grid of a whole picture's tokens")  # fmt: skip


def _metadata(about: Mapping[str, dict[str, Any]], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What does not depend on the rows."""
    made = {"saved": {n: e.get("target") or e["name"] for n, e in about.items()}, **recipe}
    return {
        **{f"tokpipe.encoder.{name}": entry for name, entry in about.items()},
        "tokpipe.domain": "feature", "tokpipe.writer": f"tokpipe {__version__}",
        "tokpipe.recipe": made, "tokpipe.recipe_sha256": digest_chain(made),
        "tokpipe.warnings": [],
    }  # fmt: skip


def _counts(rows: TokenBatch, stream: str, dropped: float | Mapping[str, float]) -> dict[str, Any]:
    lost = dropped.get(stream, 0.0) if isinstance(dropped, Mapping) else dropped
    if not 0 <= lost < math.inf:
        raise CacheError(f"{stream}: {lost} dropped tokens", code="cache.counts")
    mass = float(rows.mass.double().sum())
    whole = round(mass + lost)
    near = abs(whole - mass - lost) <= 1e-3 * max(whole, 1)
    source = whole if near else mass + lost
    return {"source": source, "dropped": max(0.0, float(source - mass))}


def _priority(streams: Mapping[str, TokenBatch]) -> dict[str, NDArray[np.float64]]:
    """float64 [N] of each stream: low ones stay longest."""
    if all("rank" in rows.extras for rows in streams.values()):
        return {n: rows.extras["rank"].numpy().astype(np.float64) for n, rows in streams.items()}
    made = {}
    for name, rows in streams.items():
        score = np.nan_to_num(rows.score.numpy().astype(np.float64), nan=-np.inf)
        place = np.empty(len(rows))
        place[np.lexsort((_spread(len(rows)), -score))] = np.arange(len(rows))
        made[name] = (place + 0.5) / len(rows)
    return made


def _spread(n: int) -> NDArray[np.int64]:
    """For each of n rows, when it comes in an order whose every beginning is spread evenly."""
    bits = max(1, (n - 1).bit_length())
    row, flipped = np.arange(n), np.zeros(n, dtype=np.int64)
    for bit in range(bits):
        flipped |= ((row >> bit) & 1) << (bits - 1 - bit)
    return flipped


def _source(
    source: str | os.PathLike[str] | Mapping[str, Any] | None, target: Path,
    streams: Mapping[str, TokenBatch],
) -> dict[str, Any]:  # fmt: skip
    """``tokpipe.source``."""
    if isinstance(source, Mapping):
        return dict(source)
    if source is not None:
        from tokpipe.decode import probe

        return describe_media(probe(Path(source)), "head-middle-tail")
    return {
        "name": target.name.removesuffix(SUFFIX), "size": None, "fingerprint": None,
        "method": None, "duration": None, "container": None,
        "streams": [{"kind": name} for name in streams],
    }  # fmt: skip
