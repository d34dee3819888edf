"""The tensors that flow: frames, audio, tokens, and how a map is applied to tokens.

Letters: T frames, H W pixels, N tokens, K tokens kept, D width, L samples, E query width.
Everything is frozen, checked on construction, and prints shapes and spans, never data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from tokpipe.maps import GridMap, TokenMap, check_tensor, counted
from tokpipe.spec import KIND_KEPT, KIND_MERGED

__all__ = ["AudioChunk", "FrameBatch", "GridMap", "Query", "Reduction", "TokenBatch", "TokenMap"]

Reduction = Literal["linear", "anchor", "sum", "max", "drop"]


_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def _span(pts: Tensor) -> str:
    return f"{float(pts.min()):.3f}..{float(pts.max()):.3f} s" if pts.numel() else "empty"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FrameBatch:
    """Consecutive sampled pictures.

    Attributes:
        pixels: uint8 [T, H, W, 3] RGB, BT.709 or BT.601 primaries as the source, full range.
        pts: float64 [T] seconds from the media's zero.
        duration: float64 [T] seconds on screen.
        index: int64 [T] rank of the frame's pts in its stream, -1 unknown.
    """

    pixels: Tensor
    pts: Tensor
    duration: Tensor
    index: Tensor

    def __post_init__(self) -> None:
        """Check that all four agree on T."""
        if self.pixels.ndim != 4 or self.pixels.shape[3] != 3:
            raise ValueError(
                f"FrameBatch.pixels: expected [T, H, W, 3], got {list(self.pixels.shape)}"
            )
        t = self.pixels.shape[0]
        check_tensor(self, "pixels", self.pixels, torch.uint8, self.pixels.shape)
        check_tensor(self, "pts", self.pts, torch.float64, (t,))
        check_tensor(self, "duration", self.duration, torch.float64, (t,))
        check_tensor(self, "index", self.index, torch.int64, (t,))

    def __len__(self) -> int:
        """Return T."""
        return int(self.pixels.shape[0])

    def __repr__(self) -> str:
        """Show shape and span."""
        return f"FrameBatch({list(self.pixels.shape)}, {_span(self.pts)})"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class AudioChunk:
    """A stretch of samples.

    Attributes:
        samples: float32 [C, L] in [-1, 1].
        pts: Seconds of the first sample from the media's zero.
        sample_rate: Hertz.
        index: Index of the first sample on the media's clock.
    """

    samples: Tensor
    pts: float
    sample_rate: int
    index: int

    def __post_init__(self) -> None:
        """Check shape, dtype and rate."""
        if self.samples.ndim != 2:
            raise ValueError(f"AudioChunk.samples: expected [C, L], got {list(self.samples.shape)}")
        check_tensor(self, "samples", self.samples, torch.float32, self.samples.shape)
        if self.sample_rate <= 0:
            raise ValueError(f"AudioChunk.sample_rate: expected > 0 Hz, got {self.sample_rate}")

    def __len__(self) -> int:
        """Return L."""
        return int(self.samples.shape[1])

    def __repr__(self) -> str:
        """Show shape and span."""
        stop = self.pts + len(self) / self.sample_rate
        return f"AudioChunk({list(self.samples.shape)}, {self.pts:.3f}..{stop:.3f} s)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What the user asks, as vectors.

    Attributes:
        text: The words.
        pooled: float32 [M, E], one row a text segment.
        tokens: float32 [L, E] or None.
        space: Name of the extras column it is compared with.
    """

    text: str
    pooled: Tensor
    tokens: Tensor | None = None
    space: str = "data"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TokenBatch:
    """Tokens, flat and ragged; the columns of the cache's table.

    Attributes:
        data: float16, bfloat16 or float32 [N, D].
        at: float64 [N] the token's own time in seconds (its anchor's pts).
        pts: float64 [N, 2] start and stop of everything it stands for.
        frame: int64 [N, 2] first and last decoded frame it stands for, -1 audio.
        cell: int32 [N, 3] (t, y, x) in the encoder's grid, -1 none.
        extent: int32 [N, 3] size in cells of the source grid.
        tile: int32 [N] 0 whole picture, else crop number.
        mass: float32 [N] source tokens represented.
        kind: uint8 [N] 0 kept, 1 merged, 2 pooled, 3 newline, 4 separator.
        segment: int32 [N] row of the segment table, -1 none.
        score: float32 [N] NaN when the method has none.
        modality: uint8 [N] 0 video, 1 audio.
        extras: Further columns [N, ...], each with its rule in ``rules``.
        rules: How each extra is reduced: linear, anchor (default), sum, max, drop.
    """

    data: Tensor
    at: Tensor
    pts: Tensor
    frame: Tensor
    cell: Tensor
    extent: Tensor
    tile: Tensor
    mass: Tensor
    kind: Tensor
    segment: Tensor
    score: Tensor
    modality: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    rules: Mapping[str, Reduction] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check dtypes and that all columns agree on N."""
        if self.data.ndim != 2 or self.data.dtype not in _FLOATS:
            raise ValueError(
                "TokenBatch.data: expected float32, bfloat16 or float16 [N, D], "
                f"got {self.data.dtype} {list(self.data.shape)}"
            )
        n = self.data.shape[0]
        for name, (dtype, tail) in _COLUMNS.items():
            check_tensor(self, name, getattr(self, name), dtype, (n, *tail))
        for name, value in self.extras.items():
            if value.shape[0] != n:
                raise ValueError(
                    f"TokenBatch.extras[{name!r}]: {value.shape[0]} rows, expected {n}"
                )

    def __len__(self) -> int:
        """Return N."""
        return int(self.data.shape[0])

    def __repr__(self) -> str:
        """Show shape and span."""
        return f"TokenBatch({list(self.data.shape)} {self.data.dtype}, {_span(self.at)})"

    @staticmethod
    def build(data: Tensor, at: Tensor, *, pts: Tensor | None = None, cell: Tensor | None = None,
              modality: int = 0, **columns: Tensor) -> TokenBatch:  # fmt: skip
        """Make a batch of fresh source tokens; columns not given take their neutral value."""
        n, device = data.shape[0], data.device
        defaults: dict[str, Tensor] = {
            "pts": torch.stack([at, at], 1) if pts is None else pts,
            "cell": torch.full((n, 3), -1, dtype=torch.int32, device=device)
            if cell is None
            else cell,
            "frame": torch.full((n, 2), -1, dtype=torch.int64, device=device),
            "extent": torch.ones((n, 3), dtype=torch.int32, device=device),
            "tile": torch.zeros(n, dtype=torch.int32, device=device),
            "mass": torch.ones(n, dtype=torch.float32, device=device),
            "kind": torch.full((n,), KIND_KEPT, dtype=torch.uint8, device=device),
            "segment": torch.full((n,), -1, dtype=torch.int32, device=device),
            "score": torch.full((n,), float("nan"), dtype=torch.float32, device=device),
            "modality": torch.full((n,), modality, dtype=torch.uint8, device=device),
        }
        return TokenBatch(data=data, at=at, **{**defaults, **columns})  # type: ignore[arg-type]

    def take(self, index: Tensor | slice) -> TokenBatch:
        """Rows ``index`` int64, bool [N] or a slice (views), every column permuted alike."""
        return self._placed(index, self.data[index])

    def _placed(self, index: Tensor | slice, data: Tensor) -> TokenBatch:
        """Columns of the rows ``index`` around ``data``."""
        columns = {name: getattr(self, name)[index] for name in _COLUMNS}
        extras = {k: v[index] for k, v in self.extras.items()}
        return TokenBatch(data=data, **columns, extras=extras, rules=self.rules)

    def with_columns(self, **columns: Tensor) -> TokenBatch:
        """A copy with some columns replaced."""
        return replace(self, **columns)  # type: ignore[arg-type]

    def with_extras(
        self, rules: Mapping[str, Reduction] | None = None, **extras: Tensor
    ) -> TokenBatch:
        """A copy with extra columns added or replaced."""
        return replace(
            self, extras={**self.extras, **extras}, rules={**self.rules, **(rules or {})}
        )

    def to(self, device: torch.device | str) -> TokenBatch:
        """Move every column to ``device``."""
        columns = {name: getattr(self, name).to(device) for name in ("data", *_COLUMNS)}
        extras = {k: v.to(device) for k, v in self.extras.items()}
        return TokenBatch(**columns, extras=extras, rules=self.rules)

    def order(self) -> Tensor:
        """Permutation int64 [N] that sorts stably by (at, tile, y, x), the cache's row order."""
        index = torch.arange(len(self), device=self.at.device)
        for key in (self.cell[:, 2], self.cell[:, 1], self.tile, self.at):
            index = index[torch.argsort(key[index], stable=True)]
        return index

    def sorted(self) -> TokenBatch:
        """Rows in the cache's order."""
        return self.take(self.order())

    @staticmethod
    def cat(batches: Sequence[TokenBatch]) -> TokenBatch:
        """Put batches of equal D and extras end to end; at least one."""
        if len(batches) == 1:
            return batches[0]
        first = batches[0]
        columns = {
            name: torch.cat([getattr(b, name) for b in batches]) for name in ("data", *_COLUMNS)
        }
        extras = {k: torch.cat([b.extras[k] for b in batches]) for k in first.extras}
        return TokenBatch(**columns, extras=extras, rules=first.rules)

    def reduce(self, decision: TokenMap | GridMap) -> TokenBatch:
        """Apply a map: the one routine that makes reduced tokens from a decision.

        data and linear extras follow ``weight`` (summed in float32, never normalised); mass is
        the sum of share x mass; pts, frame and extent are hulls over entries with share > 0 (a
        row without any keeps its anchor's); at, cell, tile and segment are the anchor's.
        """
        tmap = decision.expand() if isinstance(decision, GridMap) else decision
        if tmap.num_sources != len(self):
            raise ValueError(f"map of {tmap.num_sources} sources applied to {len(self)} tokens")
        if tmap.is_identity:
            return self if tmap.score is None else replace(self, score=tmap.score)
        if (tmap.anchor < 0).any():
            tmap = replace(tmap, anchor=_heaviest(tmap))
        if isinstance(decision, GridMap) and not decision.sparse:
            data, merged = decision.apply(self.data), None
        elif tmap.gathers:
            live = tmap.weight != 0
            source = torch.empty_like(tmap.anchor)
            source[tmap.dst[live]] = tmap.src[live]
            data, merged = self.data.index_select(0, source), None
        else:
            data = _weighted(tmap, self.data)
            merged = counted(tmap.dst, len(tmap), tmap.weight != 0) > 1
        place = self._placed(tmap.anchor, data)
        shared = tmap.share > 0
        src, dst, share = tmap.src[shared], tmap.dst[shared], tmap.share[shared]
        mass = torch.zeros(len(tmap), device=data.device).index_add_(0, dst, share * self.mass[src])
        kind = tmap.kind
        if kind is None:
            kind = place.kind
            if merged is not None:
                kind = torch.where(merged, KIND_MERGED, kind.long()).to(torch.uint8)
        score = place.score if tmap.score is None else tmap.score
        return replace(
            place, mass=mass, kind=kind, score=score,
            pts=_hull(self.pts, place.pts, src, dst),
            frame=_hull(self.frame, place.frame, src, dst),
            extent=_extent(self, place, src, dst), extras=_extras(self, place, tmap),
        )  # fmt: skip


_COLUMNS: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "at": (torch.float64, ()), "pts": (torch.float64, (2,)), "frame": (torch.int64, (2,)),
    "cell": (torch.int32, (3,)), "extent": (torch.int32, (3,)), "tile": (torch.int32, ()),
    "mass": (torch.float32, ()), "kind": (torch.uint8, ()), "segment": (torch.int32, ()),
    "score": (torch.float32, ()), "modality": (torch.uint8, ()),
}  # fmt: skip


def _heaviest(tmap: TokenMap) -> Tensor:
    """Anchors with -1 replaced by the row's source of largest weight, lowest index first."""
    k, n = len(tmap), tmap.num_sources
    lowest = torch.full((k,), -torch.inf, device=tmap.weight.device)
    top = lowest.scatter_reduce(0, tmap.dst, tmap.weight, "amax")
    heavy = tmap.weight == top[tmap.dst]
    best = tmap.anchor.new_full((k,), n).scatter_reduce(0, tmap.dst[heavy], tmap.src[heavy], "amin")
    best = torch.where(best == n, -1, best)
    if (best[tmap.anchor < 0] < 0).any():
        raise ValueError("TokenMap: a row has neither an anchor nor a source")
    return torch.where(tmap.anchor >= 0, tmap.anchor, best)


def _weighted(tmap: TokenMap, data: Tensor) -> Tensor:
    """Rows [K, ...] of sums of weight x source, in float32, dtype kept."""
    live = torch.nonzero(tmap.weight).flatten()
    live = live[torch.argsort(tmap.dst[live], stable=True)]
    flat = data.reshape(data.shape[0], -1).float()
    start = torch.zeros(len(tmap) + 1, dtype=torch.int64, device=data.device)
    torch.cumsum(counted(tmap.dst[live], len(tmap)), 0, out=start[1:])
    # One fused pass: gathering the sources first would cost seven times as much on a CPU.
    out = torch.nn.functional.embedding_bag(
        tmap.src[live], flat, start, mode="sum", per_sample_weights=tmap.weight[live],
        include_last_offset=True,
    )  # fmt: skip
    return out.to(data.dtype).reshape(len(tmap), *data.shape[1:])


def _hull(source: Tensor, place: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    k = place.shape[0]
    low, high = place[:, 0].clone(), place[:, 1].clone()
    has = counted(dst, k) > 0
    top = torch.finfo(source.dtype) if source.is_floating_point() else torch.iinfo(source.dtype)
    first = torch.full_like(low, top.max).scatter_reduce(0, dst, source[src, 0], "amin")
    last = torch.full_like(high, top.min).scatter_reduce(0, dst, source[src, 1], "amax")
    return torch.stack([torch.where(has, first, low), torch.where(has, last, high)], 1)


def _extent(tokens: TokenBatch, place: TokenBatch, src: Tensor, dst: Tensor) -> Tensor:
    sizes = []
    for axis in range(3):
        box = torch.stack([tokens.cell[:, axis], tokens.cell[:, axis] + tokens.extent[:, axis]], 1)
        here = torch.stack([place.cell[:, axis], place.cell[:, axis] + place.extent[:, axis]], 1)
        hull = _hull(box, here, src, dst)
        sizes.append(hull[:, 1] - hull[:, 0])
    return torch.stack(sizes, 1).to(torch.int32)


def _extras(tokens: TokenBatch, place: TokenBatch, tmap: TokenMap) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, value in tokens.extras.items():
        rule = tokens.rules.get(name, "anchor")
        if rule == "anchor":
            out[name] = place.extras[name]
        elif rule == "linear":
            out[name] = _weighted(tmap, value)
        elif rule in ("sum", "max"):
            keep = tmap.share > 0
            src, dst = tmap.src[keep], tmap.dst[keep]
            zeros = value.new_zeros((len(tmap), *value.shape[1:]))
            if rule == "sum":
                out[name] = zeros.index_add_(0, dst, value[src])
            else:
                index = dst.reshape(-1, *[1] * (value.ndim - 1)).expand(-1, *value.shape[1:])
                out[name] = zeros.scatter_reduce(0, index, value[src], "amax", include_self=False)
    return out
