"""Towers whose grid varies with the picture: packed patches, merge groups, no class token.

Letters: T pictures, gh x gw merge groups of one (n = gh gw tokens) of s x s patches each, F numbers
of one patch, D width of a token, S patches of the whole call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tokpipe.encode._attend import Seen, heads_of, keys, queries, received, turned_by, watching
from tokpipe.encode._hf.family import no_text_tower
from tokpipe.encode._hf.patches import Layout, Patches, kept, whole
from tokpipe.encode._tower import Encoded, Outline
from tokpipe.errors import ModelError

if TYPE_CHECKING:
    from tokpipe.tensors import Query


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of all groups of a call, in raster order.

    Attributes:
        data: [T * n, D].
        deepstack: The same, one tensor a level.
    """

    data: Tensor
    deepstack: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PatchTower(ABC):
    """A loaded front end that takes packed patches.

    Attributes:
        part: Digest of what makes the rows before the projector, where these are the tokens.
        visual: The vision tower.
        project: Rows before the projector to tokens, [m, Dp] to [m, D]; the same module
            ``post_projector`` runs.
        blocks: The tower's attention modules, in order.
        windowed: Those that see windows only.
        watched: Names of columns to the block they are taken from.
        pixels: Patches float32 [T, gh, gw, s^2, F] of uint8 [T, 3, H, W], by the model's own
            processor.
    """

    outline: Outline
    weights: str
    part: Mapping[str, str] | None
    layout: Layout
    visual: Any
    project: nn.Module
    blocks: tuple[nn.Module, ...]
    windowed: frozenset[nn.Module]
    watched: Mapping[str, int]
    pixels: Callable[[Tensor], Tensor]
    post: bool
    dtype: torch.dtype

    @abstractmethod
    def rows(self, hidden: Tensor, patches: Patches, where: Mapping[str, Any]) -> Rows:
        """Run the tower on patches [S, F] and give one row a group."""

    def prepare(self, pixels: Tensor) -> Tensor:
        """Patches of pictures, as the model's own processor makes them of images.

        Args:
            pixels: uint8 [T, H, W, 3].

        Returns:
            [T, gh, gw, s^2, F] in the tower's dtype. Each picture fills a temporal patch alone,
            repeated where that takes two frames, so that no two times ever mix.
        """
        return self.pixels(pixels.permute(0, 3, 1, 2)).to(self.dtype)

    def encode(self, prepared: Tensor, columns: frozenset[str] = frozenset()) -> Encoded:
        """Tokens of pictures [T, gh, gw, s^2, F] in raster order.

        Args:
            columns: Of the outline's extras: ``received`` and ``received_middle`` float32 [T, n],
                attention each patch receives (mean over heads and all queries of its picture);
                ``keys`` and ``queries`` [T, n, H, Dh] before rotation. All are means over the
                patches of a group.
        """
        t, high, wide = prepared.shape[:3]
        side = self.layout.merge
        patches = whole(self.layout, (high * side, wide * side), t, prepared.device)
        return self._encode(prepared.flatten(0, 3), patches, t, columns)

    def encode_kept(
        self, prepared: Tensor, live: Tensor, columns: frozenset[str] = frozenset()
    ) -> Encoded:
        """Tokens of the groups ``live`` bool [n] of one picture [1, ...], from them alone.

        Every patch keeps its place in the full grid; windows are those of the full grid without
        the absent patches.
        """
        high, wide = prepared.shape[1:3]
        side = self.layout.merge
        there = live.cpu()
        if not bool(there.any()):
            empty = torch.zeros(1, 0, self.outline.dim, dtype=self.dtype, device=prepared.device)
            return Encoded(data=empty, deepstack=(empty,) * self.outline.deepstack)
        patches = kept(self.layout, (high * side, wide * side), there, prepared.device)
        at = there.nonzero()[:, 0].to(prepared.device, non_blocking=True)
        entering = prepared[0].flatten(0, 1).index_select(0, at).flatten(0, 1)
        return self._encode(entering, patches, 1, columns)

    def embed_text(self, text: str) -> Query:
        """These front ends have no text tower.

        Raises:
            ModelError: Always.
        """
        raise no_text_tower()

    @torch.inference_mode()
    def _encode(
        self, hidden: Tensor, patches: Patches, pictures: int, columns: frozenset[str]
    ) -> Encoded:
        if unknown := columns - self.watched.keys():
            raise ModelError(
                f"this tower gives no {', '.join(sorted(unknown))}",
                hint="it gives " + (", ".join(self.watched) or "no columns"),
            )
        patches = replace(patches, segments=replace(patches.segments, windowed=self.windowed))
        where = {**patches.where, "segments": patches.segments}
        # The numbers of blocks whose attention is asked for, each watched once.
        asked = {self.watched[name] for name in columns}
        with watching({i: self.blocks[i] for i in asked}) as seen:
            rows = self.rows(hidden, patches, where)
        found = {
            name: self._column(name, self.blocks[i], seen[i], patches)
            for name, i in self.watched.items()
            if name in columns
        }
        return Encoded(
            data=_split(rows.data, pictures),
            deepstack=tuple(_split(level, pictures) for level in rows.deepstack),
            columns=found,
        )

    def _column(self, name: str, block: nn.Module, seen: Seen, patches: Patches) -> Tensor:
        """A column [T, n, ...] out of what its attention module was given, [1, S, D]."""
        pictures, unit = patches.segments.pictures, self.layout.unit
        hidden = _split(seen.hidden[0], pictures)
        at, heads = Seen(hidden, hidden), heads_of(block)
        if name in ("keys", "queries"):
            made = (keys if name == "keys" else queries)(at, heads).transpose(1, 2)
        else:
            cos, sin = (_split(x, pictures)[:, None] for x in seen.named["position_embeddings"])
            turn = turned_by(cos, sin, 0, half=True)
            made = received(queries(at, heads, turn=turn), keys(at, heads, turn), heads.scale)
        rows = made.flatten(0, 1)
        rows = rows.reshape(-1, unit, *rows.shape[1:]).float().mean(1).to(made.dtype)
        return _split(rows if patches.back is None else rows[patches.back], pictures)


def _split(rows: Tensor, pictures: int) -> Tensor:
    """[T * m, ...] as [T, m, ...]."""
    return rows.reshape(pictures, -1, *rows.shape[1:])


class QwenTower(PatchTower):
    """Qwen2-VL, Qwen2.5-VL and Qwen3-VL: the merger is the tower's own last part."""

    def rows(self, hidden: Tensor, patches: Patches, where: Mapping[str, Any]) -> Rows:
        """See the base class; before the merger a row is its s^2 patches side by side."""
        if self.post:
            out = self.visual(hidden, grid_thw=patches.grid, **where)
            return Rows(out.pooler_output, tuple(getattr(out, "deepstack_features", None) or ()))
        levels: list[Tensor] = []
        stacked = getattr(self.visual, "deepstack_merger_list", ())
        handles = [m.register_forward_pre_hook(_catcher(levels)) for m in stacked]
        try:
            out = self.visual(hidden, grid_thw=patches.grid, **where)
        finally:
            for handle in handles:
                handle.remove()
        return Rows(
            self._grouped(out.last_hidden_state, patches),
            tuple(self._grouped(level, patches) for level in levels),
        )

    def _grouped(self, hidden: Tensor, patches: Patches) -> Tensor:
        rows = hidden.reshape(-1, self.layout.unit * hidden.shape[-1])
        return rows if patches.back is None else rows[patches.back]


def _catcher(into: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def catch(_: nn.Module, args: tuple[Any, ...]) -> None:
        into.append(args[0])

    return catch


class VideoLlama3Tower(PatchTower):
    """VideoLLaMA3: the tower itself averages a group's patches, then an MLP projects the row."""

    def rows(self, hidden: Tensor, patches: Patches, where: Mapping[str, Any]) -> Rows:
        """See the base class; before the projector a row is the mean of its s^2 patches."""
        sides = torch.full((len(patches.grid),), self.layout.merge)
        out = self.visual(pixel_values=hidden, grid_thw=patches.grid, merge_sizes=sides, **where)
        made: Tensor = out.last_hidden_state
        return Rows(self.project(made) if self.post else made)
