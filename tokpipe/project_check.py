"""Before a cache is projected: whose projector fits its rows, and what is known of their tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from tokpipe.cache.reader import TokenCache
from tokpipe.chain import parameters_of
from tokpipe.encode._projection import Projection
from tokpipe.errors import CacheError, ModelError, WeightsMismatch

#: Facts on how pictures and sound were prepared: of the cache, whatever the model.
_PREPARED = (
    *("mean", "std", "interpolation", "processor", "min_pixels", "max_pixels", "image_size"),
    *("fit", "native_fit", "context", "kept_cosine", "picture", "inside", "rate", "chunk"),
    *("floor", "window_samples", "mel_bins", "chunk_exact", "tiles"),
)
#: Parameters of the encoder that say how a picture entered.
_ENTERED = ("fit", "tiles", "min_pixels", "max_pixels")
_ENCODER = {"video": "hf-vision", "audio": "hf-audio"}


@dataclass(frozen=True, slots=True)
class Target:
    """A stream and the model whose projector it goes through.

    Attributes:
        operator: ``HfVision`` or ``HfAudio`` at the stage ``post_projector``.
        about: What the cache says of the encoder.
    """

    stream: str
    operator: Any
    about: Mapping[str, Any]


def targets_of(cache: TokenCache, model: str, revision: str, weights: str) -> list[Target]:
    """Streams that the model has a projector for.

    Raises:
        CacheError: None of the cache's streams is features before a projector.
        ModelError: The model has no front end for those that are.
    """
    about = {s: cache.metadata.get(f"tokpipe.encoder.{s}") or {} for s in cache.streams}
    ready = [s for s, facts in about.items() if facts.get("stage") == "pre_projector"]
    if not ready:
        stages = ", ".join(f"{s} {facts.get('stage', 'signal')}" for s, facts in about.items())
        raise CacheError(
            f"nothing to project: the cache holds {stages}",
            hint="encode with --stage pre_projector, or with post_projector for one model",
            code="project.stage",
        )
    kinds = {stream: _operator(stream, model, revision, weights, about[stream]) for stream in ready}
    found = [Target(s, op, about[s]) for s, op in kinds.items() if op is not None]
    if not found:
        raise ModelError(
            f"`{model}` has no projector for the {' and '.join(ready)} of the cache",
            hint="name a multimodal model of the same tower",
        )
    return found


def _operator(
    stream: str, model: str, revision: str, weights: str, about: Mapping[str, Any]
) -> Any:
    """The operator of a stream, None where the model has no front end for it."""
    from tokpipe.encode import hf_audio, hf_vision
    from tokpipe.encode._hf.load import config_source, read_config

    made: Any = hf_vision.HfVision if stream == "video" else hf_audio.HfAudio
    known = hf_vision.FAMILIES if stream == "video" else hf_audio.FAMILIES
    operator = made(model=model, revision=revision, weights=weights, stage="post_projector")
    kind = str(getattr(read_config(*config_source(operator)), "model_type", ""))
    if kind not in known:
        return None
    told = about.get("params") or {}
    names = {f.name for f in fields(operator)}
    return replace(operator, **{k: told[k] for k in _ENTERED if k in told and k in names})


def check_rows(cache: TokenCache, target: Target) -> None:
    """Compare what the projector takes with what the rows are, from configuration alone.

    Raises:
        CacheError: Width, hidden state or deepstack rows do not fit.
    """
    stream, told = target.stream, target.about
    before = replace(target.operator, stage="pre_projector").outline()
    width = int(cache.column(f"{stream}.tokens", 0, 1).shape[1])
    model = target.operator.model
    if width != before.dim:
        raise CacheError(
            f"the {stream} rows are {width} wide, the projector of `{model}` takes {before.dim}",
            hint="name a model of the tower that made the rows", code="project.width",
        )  # fmt: skip
    for key in ("layer", "final_norm"):
        if key in told and key in before.about and told[key] != before.about[key]:
            raise CacheError(
                f"the {stream} rows were taken with {key} {told[key]}, the projector of `{model}` "
                f"takes {before.about[key]}",
                hint="encode again with the hidden state this model takes", code="project.layer",
            )  # fmt: skip
    stored = sum(name.startswith(f"{stream}.deepstack_") for name in cache.names)
    if stored != before.deepstack:
        raise CacheError(
            f"`{model}` takes {before.deepstack} deepstack rows beside each token, the cache holds "
            f"{stored}",
            hint="encode with this model's own tower", code="project.deepstack",
        )  # fmt: skip


def check_tower(target: Target, projection: Projection) -> tuple[str, list[str]]:
    """Compare the weights that made the rows with the model's.

    Returns:
        What agreed: ``model`` (tower and projector), ``tower``, or ``nothing`` where nothing could
        be compared; and warnings.

    Raises:
        WeightsMismatch: The tower is another one.
    """
    told, found = target.about, projection.part
    if projection.weights is not None and told.get("weights") == projection.weights:
        return "model", []
    made = told.get("tower") or {}
    if found is not None and made.get("dtype") == found["dtype"]:
        if made.get("weights") == found["weights"]:
            return "tower", []
        raise WeightsMismatch(
            f"the {target.stream} rows were made by another tower than that of "
            f"`{target.operator.model}`: {str(made.get('weights'))[:19]}, its own is "
            f"{found['weights'][:19]}",
            hint="name a model whose tower was never trained further, or encode the media again",
            code="project.tower",
        )
    if projection.weights is None:
        why = "the tower was not read"
    elif found is None or not made:
        why = "the cache does not say which weights made its rows"
    else:
        why = f"the cache has it in {made['dtype']}, the model in {found['dtype']}"
    text = f"that the {target.stream} rows are of this model's tower is not checked: {why}"
    return "nothing", [f"tower-unchecked: {text}"]


def describe(target: Target, projection: Projection, checked: str, dtype: str) -> dict[str, Any]:
    """``tokpipe.encoder.S`` of the projected rows.

    ``weights``, by which models know rows of their own, is there only if ``checked`` says that the
    tower is the model's.
    """
    told, operator = target.about, target.operator
    outline = operator.outline()
    entry: dict[str, Any] = {
        **outline.about, **{key: told[key] for key in _PREPARED if key in told},
        "name": _ENCODER[target.stream], "params": parameters_of(operator),
        "version": operator.version, "deepstack": outline.deepstack, "dtype": dtype,
        "projected": {"checked": checked, "rows": told.get("weights")},
    }  # fmt: skip
    if checked in ("model", "tower") and projection.weights is not None:
        entry["weights"] = projection.weights
    if target.stream == "video":
        side = projection.made
        entry["grid"] = told.get("grid") if projection.needs is None else [side, side]
        if "tokens_per_picture" in told:
            whole = told["tokens_per_picture"]
            entry["tokens_per_picture"] = whole if projection.needs is None else side * side
    return entry
