"""The model a cache goes to: its configuration, and whether its encoder made the rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokpipe.encode._hf.load import read_config
from tokpipe.errors import CacheError, ModelError, WeightsMismatch
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


def check_weights(media: Media, target: Target, *, allow_mismatch: bool) -> tuple[str, ...]:
    """Refuse rows that another encoder made; the encoder of a local folder is read for it.

    Returns:
        Sentences on what could not be compared.

    Raises:
        WeightsMismatch: The digest on record is another one.
    """
    known, name = media.about.get("weights"), target.name
    if media.unproven:
        return (media.unproven,)
    if not Path(name).is_dir():
        # Its weights may be many gigabytes away; what is recorded under its name is believed.
        same = name == (media.about.get("target") or (media.about.get("params") or {}).get("model"))
        note = f"the weights of `{name}` are not compared with those that made the rows"
        return () if same else (f"{note}: give a local folder",)
    try:
        found = _digest(name, media.stream, _stamp(Path(name)))
    except WeightsMismatch:
        raise
    except ModelError as error:
        return (f"the weights in `{name}` are not compared: {error.message}",)
    if found == known:
        return ()
    if allow_mismatch:
        return (f"the {media.stream} rows were made by other weights than those of `{name}`",)
    raise WeightsMismatch(
        f"the {media.stream} rows were made by other weights than those of `{name}`: "
        f"{str(known)[:19]}, found {found[:19]}",
        hint="name the checkpoint the cache was made with, encode the media for this one, or set "
        "allow_mismatch",
        code="export.weights",
    )


@lru_cache(maxsize=16)
def _digest(model: str, stream: str, _changed: float) -> str:
    """Digest of a model's own front end, as encoders record it."""
    from tokpipe.encode.hf_audio import HfAudio
    from tokpipe.encode.hf_vision import HfVision

    kind = HfVision if stream == "video" else HfAudio
    tower: Any = kind(model=model, stage="post_projector").load("cpu", "bfloat16")
    return str(tower.weights)


def _stamp(folder: Path) -> float:
    """Changes when a file of the folder does."""
    return max((path.stat().st_mtime for path in folder.iterdir()), default=0.0)
