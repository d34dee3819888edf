"""A loaded tower of one fixed size and its projector, as multimodal models join them.

Letters: T pictures, K tiles of one, B = T K, P patches of a tile in a grid of g x g, p of them when
some are left out, m = P / s^2 merge groups of s x s patches (raster order; inside a group raster
order too), n tokens of a picture, D width of the tower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokpipe.encode._hf.family import no_text_tower
from tokpipe.encode._hf.head import Head, spread
from tokpipe.encode._hf.steps import Steps
from tokpipe.encode._hf.views import Layout, Look, read_stamp, stamped
from tokpipe.encode._tower import Encoded, Outline
from tokpipe.errors import ModelError

if TYPE_CHECKING:
    from tokpipe.tensors import Query


@dataclass(frozen=True, kw_only=True)
class FrontTower:
    """A loaded tower and projector.

    Attributes:
        part: Digest of what makes the rows before the projector, where these are the tokens.
        layout: What is seen of a picture of some height and width.
        look: How its pixels become numbers.
        post: Tokens are those after the projector.
        head: Projector, and pooling where tokens of this stage are pooled.
        members: int64 [m, s^2], the rows of the tower in each merge group.
        classes: Class tokens among the tower's rows; these are tokens too.
        newline: What ends a line of crops, where the model has that.
        stamp: Prepared pictures carry their size, see ``views.stamped``.
    """

    outline: Outline
    weights: str
    part: Mapping[str, str] | None
    layout: Callable[[int, int], Layout]
    look: Look
    steps: Steps
    post: bool
    head: Head
    members: Tensor
    classes: int
    newline: Tensor | None
    dtype: torch.dtype
    stamp: bool

    @torch.inference_mode()
    def prepare(self, pixels: Tensor) -> Tensor:
        """Tiles [T, K, 3, S, S] of uint8 [T, H, W, 3], in the tower's dtype."""
        height, width = int(pixels.shape[1]), int(pixels.shape[2])
        tiles = self.look.tiles(pixels, self.layout(height, width).views).to(self.dtype)
        return stamped(tiles, height, width) if self.stamp else tiles

    @torch.inference_mode()
    def encode(self, prepared: Tensor, columns: frozenset[str] = frozenset()) -> Encoded:
        """Tokens of pictures, in the order the model packs them.

        No picture sees another. A matrix library may still round otherwise for another number of
        rows: at full size float32 rows on a CPU differ by 1e-6 of their size.

        Args:
            columns: Of the outline's extras: ``attention`` and ``attention_shallow`` float32
                [T, n, H], the class token's row in its tile; ``received`` and
                ``received_middle`` float32 [T, n]; ``keys`` [T, n, H, d]. Means over the patches
                of a group; pooled where tokens are; 0 for newlines.
        """
        layout = None
        if self.stamp:
            prepared, height, width = read_stamp(prepared)
            layout = self.layout(height, width)
        shape = tuple(prepared.shape[:2])
        rows, found = self.steps.run(self.steps.embed(prepared.flatten(0, 1)), columns)
        rows = _grouped(rows, self.members)
        data = self.head.tokens(rows) if self.post else rows
        data = _packed(data, shape, layout, self.newline)
        made = {name: _mean(values, self.members) for name, values in found.items()}
        if self.head.pool is not None:
            made = {name: self.head.pool.columns(values) for name, values in made.items()}
        return Encoded(
            data=data, columns={name: _packed(v, shape, layout) for name, v in made.items()}
        )

    @torch.inference_mode()
    def encode_kept(
        self, prepared: Tensor, live: Tensor, columns: frozenset[str] = frozenset()
    ) -> Encoded:
        """Tokens ``live`` bool [n] of one picture [1, 1, 3, S, S], from their patches alone.

        The class token always enters. Where tokens are pooled, so do all patches a live token
        is made of.
        """
        if not self.outline.sparse:
            raise ModelError("crops cannot be encoded in part", hint="set tiles to false")
        if not bool(live.any()):
            whole = self.encode(prepared, columns)
            none = {name: values[:, :0] for name, values in whole.columns.items()}
            return Encoded(data=whole.data[:, :0], columns=none)
        live = live.to(self.members.device)
        # Pooled tokens reach over their neighbours' patches.
        pool = self.head.pool
        groups = live if pool is None else pool.needed(live)
        patches = torch.zeros(self.members.numel(), dtype=torch.bool, device=live.device)
        patches[self.members[groups].flatten()] = True
        # Class tokens enter also where they are no tokens, or not live ones.
        patches[: self.classes] = True
        members = (patches.cumsum(0) - 1)[self.members[groups]]
        hidden = self.steps.embed(prepared.flatten(0, 1))
        classes = torch.ones(self.steps.vit.prefix, dtype=torch.bool, device=live.device)
        rows, found = self.steps.run(_some(hidden, torch.cat([classes, patches])), columns)
        if self.classes and not bool(live[: self.classes].all()):
            rows = rows[:, members[:, 0]]
            found = {name: values[:, members[:, 0]] for name, values in found.items()}
            members = torch.arange(len(members), device=live.device)[:, None]
        made = {name: _mean(values, members) for name, values in found.items()}
        if pool is not None:
            made = {n: pool.columns(spread(v, groups))[:, live] for n, v in made.items()}
        data = _grouped(rows, members)
        if self.post:
            data = self.head.kept(data, groups, live)
        return Encoded(data=data, columns=made)

    def embed_text(self, text: str) -> Query:
        """These front ends have no text tower.

        Raises:
            ModelError: Always.
        """
        raise no_text_tower()


def _packed(
    values: Tensor, shape: tuple[int, ...], layout: Layout | None, newline: Tensor | None = None
) -> Tensor:
    """Values of pictures [T, n, ...] from those of their tiles [B, m, ...]; ``shape`` is T, K."""
    whole = values.reshape(*shape, *values.shape[1:]).flatten(1, 2)
    if layout is None:
        return whole
    flat = whole.reshape(*whole.shape[:2], -1)
    end = flat.new_zeros(flat.shape[2]) if newline is None else newline
    made = layout.arranged(flat, end)
    return made.reshape(*made.shape[:2], *whole.shape[2:])


def _some(hidden: Tensor, there: Tensor) -> Tensor:
    """Rows ``there`` of [B, p + P, D], laid out in memory as they were.

    How products round depends on the layout: all rows must give what no choice gives.
    """
    if hidden.stride(1) == 1:
        return hidden.transpose(1, 2)[:, :, there].transpose(1, 2)
    return hidden[:, there]


def _grouped(rows: Tensor, members: Tensor) -> Tensor:
    """Rows of groups [B, m, s^2 D] of rows of patches [B, P, D]."""
    return rows if members.shape[1] == 1 else rows[:, members].flatten(2)


def _mean(values: Tensor, members: Tensor) -> Tensor:
    """Means over the patches of each group, [B, m, ...] of [B, P, ...]."""
    if members.shape[1] == 1:
        return values
    return values[:, members].float().mean(2).to(values.dtype)
