"""Plain vision towers of transformers: CLIP, SigLIP (and SigLIP2 of fixed size), DINOv2, DINOv3.

Tokens are patches in raster order; class and register tokens never are. ``layer`` -1 is the
model's ``last_hidden_state``: for CLIP before ``post_layernorm``, for SigLIP and DINO after their
last norm. ``layer`` k is ``hidden_states[k]``, without that norm. ``post_projector`` is CLIP's
visual projection of each token (after ``post_layernorm``); the others have no projector.

Columns: ``attention`` of the class token, for SigLIP of its pooling head; ``frame_embedding`` the
model's own pooled vector (CLIP: projected); ``text_space`` CLIP's projection of the last hidden
state. SigLIP compares a text with the pooled vector only, so it has no ``text_space``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tokpipe.encode._attend import Seen, attention_rows, heads_of
from tokpipe.encode._hf.load import config_source, front_end, library, placed, read_processor
from tokpipe.encode._hf.pixels import Pixels, frame_for, patch_places, pixels_of
from tokpipe.encode._hf.text import TextTower
from tokpipe.encode._hf.vit import Vit, Walked, blocks_of, class_row, depth_of
from tokpipe.encode._projection import Projection
from tokpipe.encode._tower import Encoded, Outline, Places
from tokpipe.encode._weights import digest_of, part_digest
from tokpipe.errors import ModelError

if TYPE_CHECKING:
    from tokpipe.encode.hf_vision import HfVision
    from tokpipe.tensors import Query


@dataclass(frozen=True, slots=True)
class Kind:
    """How a kind of model is put together.

    Attributes:
        model: Name of the class, a part of which may be the tower, under ``vision_model``.
        text: Its parts for text, left out of the vision half.
        norm: The tower's last norm.
        own: That norm belongs to ``last_hidden_state``.
        pooling: ``class`` (the class token) or ``head`` (a learnt query).
        rope: Family of rotary positions, None for learnt ones.
    """

    model: str
    text: tuple[str, ...] = ()
    norm: str = "post_layernorm"
    own: bool = True
    pooling: str = "class"
    rope: str | None = None


_KINDS = {
    "clip": Kind("CLIPModel", ("text_model", "text_projection"), own=False),
    "clip_vision_model": Kind("CLIPVisionModel", own=False),
    "siglip": Kind("SiglipModel", ("text_model",), pooling="head"),
    "siglip_vision_model": Kind("SiglipVisionModel", pooling="head"),
    "siglip2": Kind("Siglip2Model", ("text_model",), pooling="head"),
    "siglip2_vision_model": Kind("Siglip2VisionModel", pooling="head"),
    "dinov2": Kind("Dinov2Model", norm="layernorm"),
    "dinov2_with_registers": Kind("Dinov2WithRegistersModel", norm="layernorm"),
    "dinov3_vit": Kind("DINOv3ViTModel", norm="norm", rope="2d"),
}


class PlainFamily:
    """Towers of one input size, see the module."""

    def __init__(self, config: Any, settings: HfVision) -> None:
        """Check the parameters against the configuration."""
        self.config, self.settings = config, settings
        self.vision = getattr(config, "vision_config", config)
        self.kind = _KINDS[config.model_type]
        self.patch = _pair(self.vision.patch_size)
        self.depth = depth_of(
            int(self.vision.num_hidden_layers),
            settings.layer,
            settings.attention_layer,
            settings.model,
        )
        if settings.stage == "post_projector" and not self.projects:
            raise ModelError(
                f"`{settings.model}` has no projector: its tokens are what the tower gives",
                hint='use stage = "pre_projector"',
            )

    @classmethod
    def digest(cls, model: Any) -> str | None:
        """Digest of the vision half of a model in memory."""
        tower = getattr(model, "vision_model", model)
        return digest_of(tower, getattr(model, "visual_projection", None))

    @property
    def projects(self) -> bool:
        """A linear layer takes tokens into the space of texts."""
        named = getattr(self.config, "architectures", None) or ()
        alone = "CLIPVisionModelWithProjection" in named
        return self.config.model_type == "clip" or alone

    @property
    def normed(self) -> bool:
        """Tokens before the projector went through the tower's last norm."""
        return self.kind.own and self.settings.layer < 0

    def load_projector(
        self, device: torch.device, dtype: torch.dtype, *, check: bool
    ) -> Projection:
        """See ``Family``: none of these has one.

        Raises:
            ModelError: Always.
        """
        raise ModelError(
            f"`{self.settings.model}` has no projector to a language model",
            hint="name a multimodal model that shares the tower",
        )

    @property
    def pools(self) -> bool:
        """It has a pooled vector."""
        return self.kind.pooling == "class" or bool(getattr(self.vision, "vision_use_head", True))

    @property
    def prefix(self) -> int:
        """Class and register tokens."""
        if self.kind.pooling == "head":
            return 0
        return 1 + int(getattr(self.vision, "num_register_tokens", 0))

    @cached_property
    def pixels(self) -> Pixels:
        """The processor."""
        return pixels_of(read_processor(*config_source(self.settings)))

    @cached_property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the input: DINO's is the processor's, its positions stretch."""
        size = getattr(self.vision, "image_size", None)
        stretches = self.config.model_type.startswith("dino")
        return self.pixels.size if stretches and self.pixels.size[0] else _pair(size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; a rest of the input belongs to none."""
        return self.canvas[0] // self.patch[0], self.canvas[1] // self.patch[1]

    def outline(self) -> Outline:
        """See ``Family``."""
        post = self.settings.stage == "post_projector"
        return Outline(
            dim=self.projection if post else int(self.vision.hidden_size),
            extras=self._extras(),
            text=bool(self.kind.text),
            sparse=True,
            about=self.about() | self.where(),
        )

    @property
    def projection(self) -> int:
        """Width of the space of texts."""
        return int(self.config.projection_dim)

    def _extras(self) -> tuple[str, ...]:
        found = ["received", "received_middle", "keys", "queries", "layer_shift"]
        if self.pools:
            found += ["attention", "frame_embedding"]
        if self.kind.pooling == "class":
            found.append("attention_shallow")
        if self.projects:
            found.append("text_space")
        return tuple(sorted(found))

    def about(self) -> dict[str, Any]:
        """Facts of the cache that all plain towers share."""
        name = self.settings.model
        return {
            "model": Path(name).name if Path(name).is_dir() else name,
            "revision": self.settings.revision or None,
            "class": self.kind.model,
            "library": f"transformers {library().__version__}",
            "attention": "sdpa",
            "stage": self.settings.stage,
            "patch": list(self.patch),
            "merge": 1,
            "temporal_patch": 1,
            "prefix": self.prefix,
            "rope": self.kind.rope,
            **self.depth.about(),
            "final_norm": self.normed and self.settings.stage == "pre_projector",
            **self.pixels.about(),
        }

    def where(self) -> dict[str, Any]:
        """Facts of the cache on the input's size."""
        return {
            "image_size": list(self.canvas),
            "fit": self.settings.fit,
            "native_fit": "crop" if self.pixels.short else "squash",
        }

    def places(self, height: int, width: int) -> Places:
        """See ``Family``."""
        frame = frame_for(self.pixels, (height, width), self.canvas, self.patch, self.settings.fit)
        return patch_places(frame, self.patch, self.grid)

    def load(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        compile: bool,  # noqa: A002
    ) -> PlainTower:
        """See ``Family``."""
        return PlainTower(self, device, dtype, compile=compile)

    def read(self) -> nn.Module:
        """The vision half of the model, as the checkpoint holds it."""
        name = self.kind.model
        if name == "CLIPVisionModel" and self.projects:
            name = "CLIPVisionModelWithProjection"
        model: nn.Module = front_end(
            getattr(library(), name), self.config, self.settings, drop=self.kind.text
        )
        return model

    def text(self, device: torch.device, dtype: torch.dtype) -> TextTower:
        """The text half."""
        clip = self.projects
        return TextTower(
            getattr(library(), self.kind.model), self.config, self.settings, (device, dtype),
            drop=("vision_model", "visual_projection") if clip else ("vision_model",),
            space="text_space" if clip else "frame_embedding", fill=not clip,
        )  # fmt: skip


class PlainTower:
    """A loaded plain tower; see ``VisionTower``.

    Attributes:
        vit: Its blocks.
    """

    def __init__(
        self,
        family: PlainFamily,
        device: torch.device,
        dtype: torch.dtype,
        *,
        compile: bool = False,  # noqa: A002
    ) -> None:
        """Read the weights."""
        self._family, self._place = family, (device, dtype)
        model: Any = family.read()
        self._tower = getattr(model, "vision_model", model)
        projection: Any = getattr(model, "visual_projection", None)
        self.weights = digest_of(self._tower, projection)
        self.part: dict[str, str] | None = None
        if family.settings.stage == "pre_projector":
            self.part = part_digest(self._tower, family.depth.layer, normed=family.normed)
        self._model, self._projection = placed(model, device, dtype), projection
        self._norm: nn.Module = getattr(self._tower, family.kind.norm)
        blocks = blocks_of(self._tower, family.depth.blocks)
        self.vit = Vit(blocks, family.prefix, family.depth, compile=compile)
        self.outline = family.outline()
        self._text: TextTower | None = None

    def prepare(self, pixels: Tensor) -> Tensor:
        """[T, 3, h, w] of the tower's size and dtype from uint8 [T, H, W, 3]."""
        family = self._family
        picture = (int(pixels.shape[1]), int(pixels.shape[2]))
        frame = frame_for(family.pixels, picture, family.canvas, family.patch, family.settings.fit)
        return family.pixels.placed(pixels, frame, family.canvas).to(self._place[1])

    @torch.inference_mode()
    def encode(self, prepared: Tensor, columns: frozenset[str] = frozenset()) -> Encoded:
        """Tokens [T, n, D] of prepared pictures."""
        hidden, named = self._entered(prepared)
        return self._tokens(hidden, named, columns)

    @torch.inference_mode()
    def encode_kept(
        self, prepared: Tensor, live: Tensor, columns: frozenset[str] = frozenset()
    ) -> Encoded:
        """Tokens of the patches ``live`` bool [n] of one picture, class and registers with them.

        Raises:
            ModelError: No patch is live, or it is not one picture.
        """
        if len(prepared) != 1 or not live.any():
            raise ModelError(
                f"encode_kept takes one picture with a live token, got {len(prepared)} pictures "
                f"and {int(live.sum())} live tokens",
                hint="encode pictures one by one and leave out those without a live token",
            )
        hidden, named = self._entered(prepared)
        # Found where the mask is: of one on the CPU nothing is read back from a GPU.
        at = live.nonzero()[:, 0].to(hidden.device, non_blocking=True)
        prefix = self._family.prefix
        hidden = torch.cat([hidden[:, :prefix], hidden[:, prefix:].index_select(1, at)], 1)
        rope = named.get("position_embeddings")
        if rope is not None:
            named = named | {"position_embeddings": tuple(r.index_select(-2, at) for r in rope)}
        return self._tokens(hidden, named, columns)

    def embed_text(self, text: str) -> Query:
        """The text half's vector, one a part where the text is longer than it takes.

        Raises:
            ModelError: The model has no text half.
        """
        if not self._family.kind.text:
            raise ModelError(
                f"`{self._family.settings.model}` has no text tower",
                hint="ask with a CLIP or SigLIP encoder",
            )
        if self._text is None:
            self._text = self._family.text(*self._place)
        return self._text.embed(text)

    def _entered(self, prepared: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """What enters block 0, [T, p + n, D], and what every block is told."""
        prepared = prepared.to(self._place[1])
        named: dict[str, Any] = {"attention_mask": None}
        if self._family.kind.rope:
            named["position_embeddings"] = self._tower.rope_embeddings(prepared)
        hidden = self._tower.embeddings(prepared)
        # CLIP's own spelling.
        before = getattr(self._tower, "pre_layrnorm", None)
        return (hidden if before is None else before(hidden)), named

    def _tokens(self, hidden: Tensor, named: dict[str, Any], wanted: frozenset[str]) -> Encoded:
        wanted = self._known(wanted)
        head = self._family.kind.pooling == "head"
        last = wanted & {"frame_embedding", "text_space", *(("attention",) if head else ())}
        walked = self.vit.walk(hidden, wanted - last, named, whole=bool(last))
        tokens = walked.hidden[:, self._family.prefix :]
        if self._family.settings.stage == "post_projector":
            tokens = self._projected(tokens)
        elif self._family.normed:
            tokens = self._norm(walked.hidden)[:, self._family.prefix :]
        columns = self.vit.columns(walked, wanted - last)
        return Encoded(data=tokens, columns=columns | self._last_columns(walked, last))

    def _known(self, wanted: frozenset[str]) -> frozenset[str]:
        unknown = sorted(wanted - set(self.outline.extras))
        if unknown:
            raise ModelError(
                f"`{self._family.settings.model}` has no column `{unknown[0]}`",
                hint="it has " + ", ".join(self.outline.extras),
            )
        return wanted

    def _projected(self, tokens: Tensor) -> Tensor:
        made: Tensor = self._projection(self._norm(tokens))
        return made

    def _last_columns(self, walked: Walked, wanted: frozenset[str]) -> dict[str, Tensor]:
        """Columns made of the last hidden state."""
        if not wanted or walked.last is None:
            return {}
        prefix, made = self._family.prefix, {}
        n = walked.last.shape[1] - prefix
        if "text_space" in wanted:
            made["text_space"] = self._projected(walked.last[:, prefix:])
        if self._family.kind.pooling == "head":
            final = self._norm(walked.last)
            head = self._tower.head
            if "attention" in wanted:
                seen = Seen(final, head.probe.expand(len(final), -1, -1))
                made["attention"] = class_row(attention_rows(seen, heads_of(head.attention)))
            pooled = head(final) if "frame_embedding" in wanted else None
        else:
            first = walked.last[:, 0]
            projects = self._projection is not None
            pooled = self._projected(first) if projects else self._norm(walked.last)[:, 0]
        if "frame_embedding" in wanted and pooled is not None:
            made["frame_embedding"] = pooled[:, None].expand(-1, n, -1)
        return made


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return int(value[0]), int(value[1])
