"""A loaded open_clip tower: prepares pictures, gives patch tokens, columns and text vectors.

Letters: T pictures, n patches of one, D width, E width of the text space, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tokpipe.device import image_layout
from tokpipe.encode._attend import (
    Heads,
    Seen,
    Turn,
    attention_rows,
    keys,
    queries,
    received,
    watching,
)
from tokpipe.encode._fit import Fit, fitted, frame_of
from tokpipe.encode._open_clip.trunk import Hidden, Maps, Trunk
from tokpipe.encode._tower import Encoded, Outline
from tokpipe.errors import ModelError

if TYPE_CHECKING:
    from tokpipe.encode._open_clip.text import TextTower
    from tokpipe.tensors import Query

Stage = Literal["pre_projector", "post_projector"]
#: Columns read from a block's attention, and which of the three blocks each is read from.
_DEEP = ("attention", "received", "keys", "queries")
_READ = {
    **dict.fromkeys(_DEEP, "deep"), "attention_shallow": "shallow", "received_middle": "middle",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layers:
    """Block indices: of the tokens, and of what columns are read from."""

    tokens: int
    deep: int
    shallow: int
    middle: int

    @staticmethod
    def of(depth: int, tokens: int, deep: int) -> Layers:
        """Resolve negative indices; shallow is a quarter, middle three eighths of the depth."""
        return Layers(tokens % depth, deep % depth, depth // 4, depth * 3 // 8)


def columns_of(trunk: Trunk) -> tuple[str, ...]:
    """Names of the columns a tower of this kind can give."""
    found = ["frame_embedding"]
    if trunk.has_text_space:
        found.append("text_space")
    if trunk.reader != "none":
        found += [*_DEEP, "attention_shallow", "received_middle"]
        if trunk.shift(0) is not None:
            found.append("layer_shift")
    return tuple(sorted(found))


class OpenClipTower:
    """Tower for pictures of one fixed size; what ``VisionTower`` of ``_tower`` says.

    Tokens come from the tower's own fused forward. Columns asked for are made beside it, logits
    and softmax in float32.
    """

    def __init__(
        self, trunk: Trunk, text: TextTower, *, outline: Outline, weights: str, layers: Layers,
        stage: Stage, fit: Fit, preprocess: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.outline, self.weights = outline, weights
        self._trunk, self._text, self._layers = trunk, text, layers
        self._stage, self._fit = stage, fit
        where = next(trunk.visual.parameters())
        self._dtype = where.dtype
        self._bicubic = preprocess["interpolation"] != "bilinear"
        mean, std = torch.tensor(preprocess["mean"]), torch.tensor(preprocess["std"])
        self._mean, self._std = (v.to(where.device).view(3, 1, 1) for v in (mean, std))
        self._fill = [round(level) for level in (mean * 255).tolist()]

    @torch.inference_mode()
    def prepare(self, pixels: Tensor) -> Tensor:
        """Fit and normalise uint8 [T, H, W, 3]; [T, 3, h, w] in the tower's dtype and device.

        On the CPU with ``fit="crop"`` (or ``squash``, for towers trained so) this is open_clip's
        own transform to the bit.
        """
        made = self._fitted(pixels).permute(0, 3, 1, 2).to(self._mean.device).float()
        made = made.div_(255).sub_(self._mean).div_(self._std)
        return made.to(self._dtype).contiguous(memory_format=image_layout(made.device))

    def _fitted(self, pixels: Tensor) -> Tensor:
        canvas = self._trunk.canvas
        frame = frame_of(pixels.shape[1], pixels.shape[2], canvas, self._trunk.patch, self._fit)
        if self._fit == "pad" and pixels.device.type == "cpu":
            # No transform pads as we do, so there are no bits of Pillow's to match: torch's
            # resize of bytes is within two grey levels of it at a tenth of the time.
            pixels = torch.nn.functional.interpolate(
                pixels.permute(0, 3, 1, 2), (frame.height, frame.width),
                mode="bicubic" if self._bicubic else "bilinear", antialias=True,
            ).permute(0, 2, 3, 1)  # fmt: skip
        return fitted(pixels, frame, canvas, bicubic=self._bicubic, fill=self._fill)

    @torch.inference_mode()
    def encode(self, prepared: Tensor, columns: frozenset[str] = frozenset()) -> Encoded:
        """Patch tokens [T, n, D] in raster order, with ``columns`` [T, n, ...]."""
        if self._trunk.kind == "maps" and prepared.device.type == "cpu" and len(prepared) > 1:
            # A convolution of one picture rounds otherwise than one of several.
            return _stacked([self.encode(one[None], columns) for one in prepared])
        return self._encode(prepared, columns, nullcontext())

    @torch.inference_mode()
    def encode_kept(
        self, prepared: Tensor, live: Tensor, columns: frozenset[str] = frozenset()
    ) -> Encoded:
        """Tokens ``live`` bool [n] of one picture, encoded without the others.

        A patch keeps the position it has in the full grid; class and register tokens enter.
        """
        if not self.outline.sparse:
            raise ModelError(
                "this open_clip tower cannot encode some patches without the others",
                hint="encode whole frames (context frame)",
            )
        # Found where the mask is: of one on the CPU nothing is read back from a GPU.
        index = live.nonzero().flatten().to(prepared.device, non_blocking=True)
        if len(index) == 0:
            raise ValueError("OpenClipTower.encode_kept: no token is live")
        return self._encode(prepared, columns, self._trunk.only(index))

    def embed_text(self, text: str) -> Query:
        """Vectors of the text; longer ones than the tower reads at once in several segments."""
        return self._text.embed(text)

    def _encode(
        self, prepared: Tensor, columns: frozenset[str], some: AbstractContextManager[None]
    ) -> Encoded:
        unknown = columns - set(self.outline.extras)
        if unknown:
            raise ModelError(
                f"this open_clip tower gives no {', '.join(sorted(unknown))}",
                hint=f"it gives: {', '.join(self.outline.extras)}",
            )
        if isinstance(self._trunk, Maps):
            return self._encode_map(self._trunk, prepared, columns)
        layers, last = self._layers, self._trunk.depth - 1
        read = {kind: getattr(layers, kind) for kind in {_READ[c] for c in columns if c in _READ}}
        wanted = {layers.tokens, *read.values()}
        if columns & {"frame_embedding", "text_space", "attention"}:
            wanted.add(last)
        if "layer_shift" in columns:
            wanted.add(layers.deep)
        order = sorted(wanted)
        blocks = self._trunk.blocks()
        modules = {kind: blocks[block].attn for kind, block in read.items()}
        with some, watching(modules) as seen, self._shifts(columns) as shifts:
            hidden = dict(zip(order, self._trunk.hidden(prepared, order), strict=True))
        tokens = hidden[layers.tokens].patches
        data = self._trunk.normed(tokens) if layers.tokens == last else tokens
        if self._stage == "post_projector":
            data = self._alone(tokens)
        found = self._pictures(columns, hidden)
        looks = {kind: self._look(kind, seen[kind]) for kind in read}
        found |= {name: self._read(name, looks, hidden) for name in columns if name in _READ}
        if shifts:
            found["layer_shift"] = shifts[0]
        return Encoded(data=data, columns=found)

    def _encode_map(self, trunk: Maps, prepared: Tensor, columns: frozenset[str]) -> Encoded:
        data, vector = trunk.tokens(prepared, pooled="frame_embedding" in columns)
        found = {}
        if vector is not None:
            found["frame_embedding"] = _spread(vector, data.shape[1])
        if "text_space" in columns:
            found["text_space"] = trunk.alone(data).float()
        if self._stage == "post_projector":
            data = trunk.alone(data)
        return Encoded(data=data, columns=found)

    def _alone(self, patches: Tensor) -> Tensor:
        return self._trunk.alone(self._trunk.normed(patches))

    def _pictures(self, columns: frozenset[str], hidden: Mapping[int, Hidden]) -> dict[str, Tensor]:
        """Columns made of the last block's output."""
        found, last = {}, hidden.get(self._trunk.depth - 1)
        if last is not None and "text_space" in columns:
            found["text_space"] = self._alone(last.patches).float()
        if last is not None and "frame_embedding" in columns:
            # Libraries multiply a single row by other code than several, to other bits.
            twice = Hidden(_twice(last.prefix), _twice(last.patches)) if _single(last) else last
            vector = self._trunk.pooled(twice)[: len(last.patches)]
            found["frame_embedding"] = _spread(vector, last.patches.shape[1])
        return found

    def _look(self, kind: str, seen: Seen) -> _Look:
        block = getattr(self._layers, kind)
        return _Look(seen, self._trunk.heads(block), self._trunk.turn(block, seen))

    def _read(self, name: str, looks: Mapping[str, _Look], hidden: Mapping[int, Hidden]) -> Tensor:
        """One column [T, n, ...] of a block's attention; prefix tokens have no row in it."""
        look, prefix = looks[_READ[name]], self._trunk.prefix
        if name in ("keys", "queries"):
            made = look.keys if name == "keys" else look.queries
            return made[:, :, prefix:].transpose(1, 2)
        if name == "attention" and self._trunk.reader == "pooling-head":
            last = hidden[self._trunk.depth - 1]
            rows = attention_rows(*self._trunk.reading(last))
            return rows[:, :, 0, -last.patches.shape[1] :].transpose(1, 2)
        if name.startswith("attention") and self._trunk.reader == "class-token":
            rows = attention_rows(look.seen, look.heads, turn=look.turn)
            return rows[:, :, 0, prefix:].transpose(1, 2)
        return received(look.queries, look.keys, look.heads.scale)[:, prefix:]

    @contextmanager
    def _shifts(self, columns: frozenset[str]) -> Iterator[list[Tensor]]:
        """Catch the length of what the deep block's MLP adds to each patch, if asked for."""
        made: list[Tensor] = []
        module = self._trunk.shift(self._layers.deep) if "layer_shift" in columns else None
        if module is None:
            yield made
            return

        def keep(_module: nn.Module, _args: object, out: Tensor) -> None:
            made.append(out[:, self._trunk.prefix :].float().norm(dim=2))

        handle = module.register_forward_hook(keep)
        try:
            yield made
        finally:
            handle.remove()


class _Look:
    """One block's queries and keys, made when first needed."""

    def __init__(self, seen: Seen, heads: Heads, turn: Turn | None) -> None:
        self.seen, self.heads, self.turn = seen, heads, turn

    @cached_property
    def queries(self) -> Tensor:
        return queries(self.seen, self.heads, turn=self.turn)

    @cached_property
    def keys(self) -> Tensor:
        return keys(self.seen, self.heads, self.turn)


def _spread(vector: Tensor, n: int) -> Tensor:
    """The picture's vector [T, E] beside each of its tokens: a view [T, n, E]."""
    return vector.float().unsqueeze(1).expand(-1, n, -1)


def _single(hidden: Hidden) -> bool:
    return len(hidden.patches) == 1


def _twice(x: Tensor | None) -> Any:
    return None if x is None else torch.cat([x, x])


def _stacked(parts: list[Encoded]) -> Encoded:
    """Pictures encoded one by one, put together."""
    return Encoded(
        data=torch.cat([part.data for part in parts]),
        columns={k: torch.cat([part.columns[k] for part in parts]) for k in parts[0].columns},
    )
