"""The model a cache goes to, read from its configuration; its weights are not read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokpipe.encode._hf.load import read_config
from tokpipe.errors import CacheError
from tokpipe.export._servers.kinds import Kind, kind_of

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache
    from tokpipe.export._media import Media


@dataclass(frozen=True, slots=True)
class Target:
    """A model that is served.

    Attributes:
        name: Hub name or local folder.
        model_type: As its configuration says.
        kind: What servers do with tokens that are given to it.
        width: Columns its language model takes.
        levels: Rows beside each token (deepstack).
        merge: Patches on a side of a token.
        config: The configuration; read-only.
    """

    name: str
    model_type: str
    kind: Kind
    width: int
    levels: int
    merge: int
    config: Any


def recorded_model(cache: TokenCache, stream: str) -> str:
    """The model whose encoder made the tokens of a stream; empty where none is recorded."""
    about = cache.metadata.get(f"tokpipe.encoder.{stream}") or {}
    return str(about.get("target") or (about.get("params") or {}).get("model") or "")


def read_target(cache: TokenCache, stream: str, model: str = "") -> Target:
    """The model given, or else the one the cache was made for.

    Raises:
        CacheError: None is given and none recorded, or nothing is known of its kind.
        WeightsMissing: Its configuration is not on disk and cannot be fetched.
        ModelError: Its configuration is none that transformers knows.
    """
    name = model or recorded_model(cache, stream)
    if not name:
        raise CacheError(
            f"the cache does not say which model its {stream} is for",
            hint="name it: --model NAME_OR_PATH", code="export.model",
        )  # fmt: skip
    config = read_config(name)
    model_type = str(getattr(config, "model_type", ""))
    vision = getattr(config, "vision_config", None)
    return Target(
        name=name, model_type=model_type, kind=kind_of(name, model_type),
        width=int(config.get_text_config().hidden_size),
        levels=len(getattr(vision, "deepstack_visual_indexes", None) or ()),
        merge=int(getattr(vision, "spatial_merge_size", 1) or 1), config=config,
    )  # fmt: skip


def check_rows(media: Media, target: Target) -> None:
    """Refuse rows the model's language model would not understand.

    Raises:
        CacheError: They are those before the projector, of another width, or deepstack rows are
            missing or too many.
    """
    stage = str(media.about.get("stage", ""))
    if stage != "post_projector":
        raise CacheError(
            f"`{target.name}` takes tokens after its projector, these are {stage}",
            hint=f"tokpipe project CACHE --to {target.name}", code="export.stage",
        )  # fmt: skip
    if media.data.shape[1] != target.width:
        raise CacheError(
            f"`{target.name}` takes {target.width} columns, the cache has {media.data.shape[1]}",
            hint="name the model the cache was made for, or encode the media for this one",
            code="export.width",
        )
    if len(media.deepstack) != (target.levels if media.stream == "video" else 0):
        raise CacheError(
            f"`{target.name}` takes {target.levels} deepstack rows beside each token, the cache "
            f"has {len(media.deepstack)}",
            hint="encode the media with this model's own vision tower", code="export.deepstack",
        )  # fmt: skip
