"""Families of multimodal models with towers of one fixed size: what they share.

Letters: g patches on a side of a tile, s patches on a side of a merge group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tokpipe.encode._hf.front_tower import FrontTower
from tokpipe.encode._hf.head import Head, Pool, halved
from tokpipe.encode._hf.live import part_with
from tokpipe.encode._hf.load import config_source, front_end, library, placed, read_processor
from tokpipe.encode._hf.pixels import frame_for
from tokpipe.encode._hf.steps import prefix_of, steps_of
from tokpipe.encode._hf.views import Layout, Look, View, look_of, raster, spans, with_class
from tokpipe.encode._hf.vit import Depth
from tokpipe.encode._projection import Projection
from tokpipe.encode._tower import Outline, Places
from tokpipe.encode._weights import digest_of, part_digest
from tokpipe.errors import ModelError, TokpipeError

if TYPE_CHECKING:
    from tokpipe.encode.hf_vision import HfVision


@dataclass
class FrontFamily:
    """See ``_hf.family.Family``; a family says what differs.

    Attributes:
        grid: g of the untiled picture.
        merge: s.
        prefix: Class tokens of the tower.
        states: Hidden states taken.
        normed: The one taken is the last, after the tower's final norm.
        post: Tokens are those after the projector.
    """

    #: transformers' class of the model without its head.
    model: ClassVar[str]
    #: Where its language model, tower and projector are.
    language: ClassVar[str] = "language_model"
    tower: ClassVar[str] = "vision_tower"
    projector: ClassVar[str] = "multi_modal_projector"
    #: Whose processor says how a frame looks.
    kind: ClassVar[Literal["image", "video"]] = "image"
    #: Tokens are pooled, see ``_pool``.
    pools: ClassVar[bool] = False
    #: Lines of crops end with a row of the model's own.
    newlines: ClassVar[bool] = False
    #: Prepared crops carry the picture's size, as the packing depends on it.
    stamps: ClassVar[bool] = False

    config: Any
    settings: HfVision
    _layouts: dict[tuple[int, int], Layout] = field(default_factory=dict, init=False, repr=False)
    _look: Look | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that the parameters fit the model."""
        self.vision = self.config.vision_config
        self.prefix = prefix_of(self.vision, self.settings.model)
        self.patch = _one(self.vision.patch_size)
        self.post = self.settings.stage == "post_projector"
        self.tiled = self.settings.tiles
        self.merge = self._merge()
        self.states, self.normed = self._states()
        self.depth = self._depth()

    # What differs.

    def _merge(self) -> int:
        return 1

    def _side(self) -> int:
        """Pixels on a side of a tile."""
        return _one(self.vision.image_size)

    def _layer(self) -> int | list[int]:
        """Hidden states the projector takes, counted from the end where negative."""
        raise NotImplementedError

    def _tiled(self, height: int, width: int) -> Layout:
        """Whole picture and crops as the model makes them of an image."""
        raise NotImplementedError

    def _before(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Sizes a squashed picture is resized to before the last."""
        return ()

    def _project(self, model: Any) -> nn.Module:
        made: nn.Module = getattr(model, self.projector)
        return made

    def _kernel(self) -> int:
        """Patches on a side of a window that is pooled; 0: the grid is interpolated to a half."""
        return 0

    def _pool(self, model: Any) -> Pool:
        """How ``model`` pools the rows of a tile; windows or a half as ``_kernel`` says."""
        return halved(self.grid)

    def _classes(self) -> int:
        """Class tokens that are tokens of a picture, before its patches."""
        return 0

    def _dim(self) -> int:
        """Width after the projector."""
        return int(self.config.text_config.hidden_size)

    def _dropped(self) -> tuple[str, ...]:
        """Parts of the model that are not needed."""
        return (self.language,)

    def _facts(self) -> Mapping[str, Any]:
        """More for the outline."""
        return {}

    # What is common.

    @classmethod
    def digest(cls, model: Any) -> str | None:
        """Digest of the front end of a model in memory; None where parts of it are not there."""
        part = part_with(model, cls.tower, cls.projector)
        return None if part is None else digest_of(part, without=(cls.language,))

    @property
    def side(self) -> int:
        """Pixels on a side of a tile."""
        return self._side()

    @property
    def grid(self) -> int:
        """Patches on a side of a tile."""
        return self.side // self.patch

    @property
    def pooling(self) -> bool:
        """Tokens of this stage are pooled."""
        return self.pools and self.post and not self.tiled

    @property
    def tokens(self) -> int:
        """Tokens on a side of a tile."""
        if not self.pooling:
            return self.grid // self.merge
        return self.grid // self._kernel() if self._kernel() else math.ceil(self.grid / 2)

    @property
    def look(self) -> Look:
        """How the model's processor makes pictures into numbers."""
        if self._look is None:
            self._look = look_of(self.processor())
        return self._look

    def processor(self) -> Any:
        """The video processor for frames where there is one, else the image processor."""
        source = config_source(self.settings)
        if self.kind == "video" and not self.tiled:
            try:
                return read_processor(*source, "video")
            except TokpipeError:
                return read_processor(*source, "image")
        return read_processor(*source, "image")

    def outline(self) -> Outline:
        """See ``Family``."""
        width = int(self.vision.hidden_size) * len(self.states) * self.merge**2
        select = list(self.states) if len(self.states) > 1 else self.states[0]
        about = {
            "stage": self.settings.stage, "patch": self.patch, "merge": self.merge,
            "temporal_patch": 1, "image_size": self.side, **self.depth.about(), "layer": select,
            "final_norm": self.normed, "class_token": self._class_token(),
            "rope": "1-D", "tiles": self.tiled,
            "fit": "the model's own, for images" if self.tiled else self.settings.fit,
            "target": self.settings.model, **self.look.about(), **self._facts(),
        }  # fmt: skip
        return Outline(
            dim=self._dim() if self.post else width,
            extras=self._columns(), sparse=not self.tiled, about=about,
        )  # fmt: skip

    def _class_token(self) -> str:
        if self._classes():
            return "first of each picture's tokens, at cell -1"
        return "dropped" if self.prefix else "none"

    def places(self, height: int, width: int) -> Places:
        """See ``Family``."""
        return self.layout(height, width).places

    def layout(self, height: int, width: int) -> Layout:
        """What the tower sees of a picture of this size, and where its tokens lie."""
        key = (height, width)
        if key not in self._layouts:
            make = self._tiled if self.tiled else self._whole
            self._layouts[key] = make(height, width)
        return self._layouts[key]

    def load(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        compile: bool,  # noqa: A002
    ) -> FrontTower:
        """See ``Family``."""
        outline = self.outline()
        made = front_end(
            getattr(library(), self.model), self.config, self.settings, drop=self._dropped()
        )
        weights = digest_of(made)  # as ``digest`` says of a whole model
        part = None if self.post else self._part(made)
        made = placed(made, device, dtype)
        tower = getattr(made, self.tower)
        return FrontTower(
            outline=outline, weights=weights, part=part, layout=self.layout, look=self.look,
            post=self.post,
            steps=steps_of(
                tower, self.states, self.depth, normed=self.normed, compiled=compile,
                classes=self._classes(),
            ),
            head=self._head(made), members=self._members().to(device), classes=self._classes(),
            newline=getattr(made, "image_newline", None), dtype=dtype,
            stamp=self.tiled and self.stamps,
        )  # fmt: skip

    def _head(self, model: Any) -> Head:
        return Head(project=self._project(model), pool=self._pool(model) if self.pooling else None)

    def _part(self, model: Any) -> dict[str, str]:
        """Digest of what makes the rows before the projector."""
        tower = getattr(model, self.tower)
        tower = getattr(tower, "vision_model", tower)
        return part_digest(tower, max(self.states), normed=self.normed)

    def load_projector(
        self, device: torch.device, dtype: torch.dtype, *, check: bool
    ) -> Projection:
        """See ``Family``."""
        if self.tiled and self.newlines:
            raise ModelError(
                f"crops of `{self.settings.model}` are packed after the projector, which a cache "
                "from before it does not allow",
                hint="encode the media with --stage post_projector",
            )
        drop = self._dropped() if check else (*self._dropped(), self.tower)
        made = front_end(getattr(library(), self.model), self.config, self.settings, drop=drop)
        weights = digest_of(made) if check else None
        part = self._part(made) if check else None
        head = self._head(placed(made, device, dtype))
        return Projection(
            project=lambda rows: head.tokens(rows[None])[0], weights=weights, part=part,
            needs=None if head.pool is None else head.pool.members(),
            side=0 if head.pool is None else self.grid, made=self.tokens,
        )  # fmt: skip

    def _states(self) -> tuple[tuple[int, ...], bool]:
        """Hidden states taken, 0 the embeddings, and whether the final norm goes over them."""
        every, asked = int(self.vision.num_hidden_layers), self.settings.layer
        own = self._layer()
        listed = own if isinstance(own, list | tuple) else [own]
        states = tuple(s if s >= 0 else every + 1 + s for s in listed)
        normed = self._norms() and own == -1
        if asked < 0 or ((asked,) == states and not normed):
            return states, normed
        if asked > every:
            raise ModelError(
                f"`{self.settings.model}` has hidden states 0 to {every}, not {asked}",
                hint=f"choose a layer of at most {every}, or -1 for the projector's",
            )
        if self.post:
            raise ModelError(
                f"the projector of `{self.settings.model}` takes hidden state {own}, not {asked}",
                hint="leave layer at -1, or choose stage pre_projector",
            )
        return (asked,), False

    def _divides(self, merge: int) -> int:
        """``merge``, where patches fill whole groups of that side.

        Raises:
            ModelError: They do not.
        """
        if merge < 1 or self.grid % merge:
            raise ModelError(
                f"`{self.settings.model}` has {self.grid} patches on a side of a tile, which do "
                f"not fill groups of {merge}",
                hint="use the configuration and processor that belong to the model",
            )
        return merge

    def _norms(self) -> bool:
        """The projector takes the last hidden state after the tower's norm."""
        return False

    def _depth(self) -> Depth:
        """The blocks that run."""
        blocks, asked = max(self.states), self.settings.attention_layer
        if asked >= blocks:
            raise ModelError(
                f"block {asked} of `{self.settings.model}` does not run: {blocks} blocks do",
                hint=f"choose an attention_layer below {blocks}, or -1 for the last",
            )
        return Depth(blocks, blocks, asked if asked >= 0 else blocks - 1)

    def _columns(self) -> tuple[str, ...]:
        if self.depth.blocks == 0:
            return ()
        classes = ("attention", "attention_shallow") if self.prefix else ()
        return (*classes, "received", "received_middle", "keys", "queries")

    def _members(self) -> Tensor:
        """int64 [m, s^2] as pixel shuffle takes them: groups and patches of one in raster order."""
        if self._classes():
            return torch.arange(self._classes() + self.grid**2)[:, None]
        patch = torch.arange(self.grid**2).reshape(self.grid, self.grid)
        high = patch.unfold(0, self.merge, self.merge).unfold(1, self.merge, self.merge)
        return high.reshape(-1, self.merge**2)

    def _whole(self, height: int, width: int) -> Layout:
        """The picture fitted into one tile."""
        canvas, fit = (self.side, self.side), self.settings.fit
        # The same at both stages, so that pooling never moves a picture.
        step = self.patch * self.merge
        frame = frame_for(self.look.pixels, (height, width), canvas, (step, step), fit)
        view = View(
            frame=frame, side=self.side, fill=self.look.pixels.fill,
            before=self._before(height, width) if fit == "squash" else (),
        )  # fmt: skip
        size = self.grid * self.patch / self.tokens
        if self.pooling and self._kernel():
            size = float(self._kernel() * self.patch)
        y = spans(self.tokens, size, frame.top, frame.height)
        x = spans(self.tokens, size, frame.left, frame.width)
        places = raster(y, x, 0)
        return Layout(views=(view,), places=with_class(places) if self._classes() else places)


def _one(size: Any) -> int:
    """The side of a square given as a number or as two."""
    if isinstance(size, list | tuple):
        high, wide = size
        if high != wide:
            raise ModelError(
                f"a tower for {high} x {wide} pixels is not square",
                hint="use an encoder whose tower is",
            )
        return int(high)
    return int(size)
