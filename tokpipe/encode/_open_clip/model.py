"""open_clip's models: configuration, preprocessing and weights. The one file that imports it."""

from __future__ import annotations

import difflib
import importlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokpipe.encode._weights import load_state, whole_numbers
from tokpipe.errors import MissingExtra, ModelError, WeightsMismatch, WeightsMissing

#: Value of ``weights`` that asks for seeded random weights.
RANDOM = "random"
_OFFLINE = (
    "connect to the network (and unset HF_HUB_OFFLINE), or name a local checkpoint with "
    "--weights PATH"
)
#: Parts of a checkpoint that no token depends on.
_IDLE = ("logit_scale", "logit_bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A model and where its weights come from, resolved without touching any weights.

    Attributes:
        name: As open_clip knows it.
        config: Its model configuration.
        preprocess: mean, std, interpolation, resize_mode and what else its transform is told.
        tag: Pretrained tag, ``random``, or empty.
        path: A local checkpoint.
        remote: The name says where the weights are (``hf-hub:``, ``local-dir:``).
        quick_gelu: The tag was trained with the sigmoid approximation of GELU.
    """

    name: str
    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    tag: str = ""
    path: Path | None = None
    remote: bool = False
    quick_gelu: bool = False

    @property
    def label(self) -> str:
        """The name without any folder of this machine."""
        scheme, local, place = self.name.partition("local-dir:")
        return f"{local}{Path(place).name}" if local else scheme


def library() -> Any:
    """The module ``open_clip``. Raises MissingExtra when it is not installed."""
    try:
        return importlib.import_module("open_clip")
    except ImportError as error:
        raise MissingExtra(
            f"open_clip is not installed: {error}", hint="pip install 'tokpipe[encoders]'"
        ) from error


def choose(name: str, weights: str) -> Chosen:
    """Resolve a model name and a tag, a path or ``random``.

    Raises:
        ModelError: open_clip knows no such model.
        WeightsMissing: ``weights`` is neither a tag of the model nor looks like a file, or the
            configuration is on a hub that cannot be reached.
    """
    known = library()
    path = Path(weights) if weights and _is_path(weights) else None
    if name.startswith(("hf-hub:", "local-dir:")):
        found = _remote(name)
        config, preprocess = found.get("model_cfg", found), found.get("preprocess_cfg", {})
        if weights and weights != RANDOM and path is None:
            raise WeightsMissing(
                f"`{name}` has no tags such as `{weights}`",
                hint="leave --weights out, or name a local checkpoint",
            )
        return Chosen(
            name=name, config=config, preprocess=_preprocess(preprocess), path=path,
            tag=weights if weights == RANDOM else "", remote=True,
        )  # fmt: skip
    name = name.replace("/", "-")
    config = known.get_model_config(name)
    if config is None:
        near = difflib.get_close_matches(name, known.list_models(), 3, 0.5)
        raise ModelError(
            f"open_clip knows no model `{name}`",
            hint=f"did you mean {', '.join(near)}?" if near else "see open_clip.list_models()",
        )
    tags = known.list_pretrained_tags_by_model(name)
    tag = weights if weights and path is None else "" if path or not tags else tags[0]
    about = known.get_pretrained_cfg(name, tag) if tag and tag != RANDOM else {}
    if tag and tag != RANDOM and not about:
        listed = ", ".join(tags[:6]) or "none"
        raise WeightsMissing(
            f"`{name}` has no pretrained weights `{tag}`",
            hint=f"tags: {listed}; or name a file with --weights PATH",
        )
    # A checkpoint of one's own says nothing of its preprocessing: that of the model's first tag.
    stated = about or (known.get_pretrained_cfg(name, tags[0]) if tags else {})
    return Chosen(
        name=name, config=config, preprocess=_preprocess(stated), tag=tag, path=path,
        quick_gelu=bool(about.get("quick_gelu")) or bool(config.get("quick_gelu")),
    )  # fmt: skip


def _is_path(weights: str) -> bool:
    return "/" in weights or "\\" in weights or Path(weights).suffix != ""


def _remote(name: str) -> dict[str, Any]:
    """The file ``open_clip_config.json`` of a folder or of a repository on the hub."""
    place = name.partition(":")[2]
    try:
        if name.startswith("local-dir:"):
            path = Path(place) / "open_clip_config.json"
        else:
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(place, "open_clip_config.json"))
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except Exception as error:
        raise WeightsMissing(
            f"`{name}` has no open_clip_config.json that can be read: {error}", hint=_OFFLINE
        ) from error
    return found


def _preprocess(stated: Mapping[str, Any]) -> dict[str, Any]:
    known = library().transform
    merged: dict[str, Any] = known.merge_preprocess_dict(known.PreprocessCfg(), dict(stated))
    return merged


def skeleton(chosen: Chosen) -> Any:
    """The vision tower without values, on the device ``meta``: shapes and parts only."""
    return _skeleton(json.dumps(dict(chosen.config), sort_keys=True))


@cache
def _skeleton(config: str) -> Any:
    stated = json.loads(config)
    vision = {**stated["vision_cfg"]}
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    # The smallest text tower there can be: only the other half is looked at.
    text = {"width": 8, "heads": 1, "layers": 1, "vocab_size": 1, "context_length": 1}
    with torch.device("meta"), _quiet():
        model = library().CLIP(stated["embed_dim"], vision_cfg=vision, text_cfg=text)
    return model.visual.eval()


def load(chosen: Chosen) -> Any:
    """The model in float32 on the CPU, in eval mode, with its weights.

    Raises:
        WeightsMissing: They are not on disk and cannot be fetched.
        WeightsMismatch: The checkpoint is another model's.
    """
    if chosen.path is not None:
        state = load_state(chosen.path)
        model = _built(chosen)
        _fill(model, state, chosen)
    elif chosen.tag == RANDOM:
        model = _built(chosen)
    elif chosen.remote:
        model = _built(chosen, load_weights=True)
    elif chosen.tag:
        model = _pretrained(chosen)
    else:
        raise WeightsMissing(
            f"`{chosen.name}` has no pretrained weights that open_clip could fetch",
            hint="name a local checkpoint with --weights PATH",
        )
    if hasattr(model, "text_decoder"):
        del model.text_decoder  # CoCa's captions are not for us
    return model.eval().requires_grad_(False)


def _built(chosen: Chosen, *, load_weights: bool = False) -> nn.Module:
    """The architecture; the same random weights each time unless it loads its own."""
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: nn.Module = library().create_model(
                chosen.name, load_weights=load_weights, require_pretrained=load_weights,
                pretrained_text=False, force_quick_gelu=chosen.quick_gelu,
            )  # fmt: skip
    except Exception as error:
        if "loading state_dict" in str(error):
            raise _mismatch(chosen.name, chosen, str(error)) from error
        raise WeightsMissing(f"`{chosen.name}` cannot be built: {error}", hint=_OFFLINE) from error
    return model


def _pretrained(chosen: Chosen) -> nn.Module:
    known = library()
    try:
        path = known.download_pretrained(known.get_pretrained_cfg(chosen.name, chosen.tag))
    except Exception as error:
        raise WeightsMissing(
            f"the weights `{chosen.tag}` of `{chosen.name}` are not here and cannot be fetched: "
            f"{error}",
            hint=_OFFLINE,
        ) from error
    model = _built(chosen)
    try:
        known.load_checkpoint(model, path, weights_only=True)
    except Exception as error:
        raise _mismatch(Path(path).name, chosen, str(error)) from error
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip from warning on the root logger that weights are random: we know."""
    root, handler = logging.getLogger(), logging.NullHandler()

    def silent(record: logging.LogRecord) -> bool:
        return "initialized" not in record.getMessage()

    root.addHandler(handler)
    root.addFilter(silent)
    try:
        yield
    finally:
        root.removeFilter(silent)
        root.removeHandler(handler)


def _fill(model: nn.Module, state: dict[str, Tensor], chosen: Chosen) -> None:
    """Load a state dict whose names and shapes must all be the model's."""
    known = library()
    state = known.convert.convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = known.model.convert_to_custom_text_state_dict(state)
    wanted = model.state_dict()
    for key in _IDLE:
        if key in wanted:
            state[key] = state.get(key, wanted[key]).reshape(wanted[key].shape)
        else:
            state.pop(key, None)
    state = {k: v for k, v in state.items() if k in wanted or not k.endswith("position_ids")}
    what = chosen.path.name if chosen.path else chosen.name
    for key, value in wanted.items():
        if key not in state:
            raise _mismatch(what, chosen, f"it holds no `{key}`")
        if state[key].shape != value.shape:
            found, expected = list(state[key].shape), list(value.shape)
            raise _mismatch(what, chosen, f"`{key}` is {found}, expected {expected}")
    extra = next((k for k in state if k not in wanted), None)
    if extra is not None:
        raise _mismatch(what, chosen, f"it holds `{extra}`, which the model has not")
    wrong = whole_numbers(state, wanted)
    if wrong is not None:
        raise _mismatch(what, chosen, f"`{wrong}` holds whole numbers, not floats")
    model.load_state_dict(state)


def _mismatch(what: str, chosen: Chosen, why: str) -> WeightsMismatch:
    return WeightsMismatch(
        f"`{what}` does not hold the weights of `{chosen.name}`: {why}",
        hint="name the model the checkpoint was made with",
    )


def text_part(model: nn.Module) -> nn.Module:
    """What embeds text, with the same names in both of open_clip's arrangements."""
    if isinstance(text := getattr(model, "text", None), nn.Module):
        return text
    part = nn.Module()
    for name in ("transformer", "token_embedding", "ln_final", "positional_embedding",
                 "text_projection"):  # fmt: skip
        setattr(part, name, getattr(model, name))
    return part


def tokenizer_of(chosen: Chosen) -> Any:
    """The model's tokenizer.

    Raises:
        WeightsMissing: It is on a hub that cannot be reached.
    """
    try:
        return library().get_tokenizer(chosen.name)
    except Exception as error:
        raise WeightsMissing(
            f"the tokenizer of `{chosen.name}` is not here and cannot be fetched: {error}",
            hint=_OFFLINE,
        ) from error
