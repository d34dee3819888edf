"""Read configuration, processors and front ends of transformers models; never their code.

The only file that imports transformers for loading. A front end is built by the model's own class
with its language model taken out, and filled through transformers' own ``from_pretrained``, which
knows how tensors were renamed between versions; tensors of what was taken out are never read.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import nn

from tokpipe.encode._hf.files import check_config, check_floats, check_index, floats_in, floats_of
from tokpipe.encode._weights import load_state, pickles_in_silence
from tokpipe.errors import (
    MissingExtra,
    ModelError,
    RecipeError,
    TokpipeError,
    WeightsMismatch,
    WeightsMissing,
)

T = TypeVar("T")
#: Value of ``weights`` that draws them from the configuration.
RANDOM = "random"


class Settings(Protocol):
    """The parameters by which an operator names a model and its weights."""

    @property
    def model(self) -> str:
        """Hub name or local folder."""
        ...

    @property
    def revision(self) -> str:
        """Branch, tag or commit; empty for the main branch."""
        ...

    @property
    def weights(self) -> str:
        """Local folder or file used instead of the model's own, ``random``, or empty."""
        ...


def library() -> ModuleType:
    """The transformers package.

    Raises:
        MissingExtra: It is not installed, or older than 5.18.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra(
            "this encoder needs transformers", hint="pip install 'tokpipe[encoders]'"
        ) from error
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    if (major, minor) < (5, 18):
        raise MissingExtra(
            f"this encoder needs transformers 5.18 or newer, found {transformers.__version__}",
            hint="pip install 'tokpipe[encoders]'",
        )
    return transformers


def config_source(settings: Settings) -> tuple[str, str]:
    """Model and revision whose configuration files count.

    A ``weights`` folder that holds ``config.json`` stands for the whole model.

    Raises:
        RecipeError: A revision of a local folder is asked for.
    """
    if settings.revision and Path(settings.model).is_dir():
        raise RecipeError(
            f"`{settings.model}` is a folder, it has no revision `{settings.revision}`",
            hint="leave out @REV",
        )
    folder = Path(settings.weights)
    if settings.weights not in ("", RANDOM) and (folder / "config.json").is_file():
        return str(folder), ""
    return settings.model, settings.revision


def find_family(settings: Settings, families: Mapping[str, str], encoder: str, what: str) -> Any:
    """The class for a model's kind, made of its configuration and the operator's parameters.

    Args:
        families: ``module:Class`` by ``model_type``.
        encoder, what: Name of the operator, and what it looks for, for messages.

    Raises:
        ModelError: The kind is none of ``families``.
    """
    config = read_config(*config_source(settings))
    kind = str(getattr(config, "model_type", ""))
    if kind not in families:
        raise ModelError(
            f"{encoder} cannot use `{settings.model}`: its kind `{kind}` has no {what} front end "
            "here",
            hint="kinds that work: " + ", ".join(sorted(families)),
        )
    module, _, name = families[kind].partition(":")
    return getattr(import_module(module), name)(config, settings)


@lru_cache(maxsize=32)
def read_config(model: str, revision: str = "") -> Any:
    """The transformers configuration of a hub name or local folder; treat it as read-only.

    Raises:
        WeightsMissing: Neither on disk, nor cached, nor reachable.
        ModelError: No configuration transformers can read without running foreign code.
    """
    if Path(model).is_dir():
        check_config(Path(model))
    return _found(library().AutoConfig.from_pretrained, model, revision, "config.json")


@lru_cache(maxsize=32)
def read_processor(
    model: str, revision: str = "", kind: Literal["image", "video"] = "image"
) -> Any:
    """The image or video processor of a hub name or local folder; treat it as read-only.

    Raises:
        WeightsMissing: It is not there.
    """
    auto = library().AutoImageProcessor if kind == "image" else library().AutoVideoProcessor
    return _found(auto.from_pretrained, model, revision, f"{kind} processor")


@lru_cache(maxsize=8)
def read_tokenizer(model: str, revision: str = "") -> Any:
    """The tokenizer of a hub name or local folder; treat it as read-only.

    Raises:
        WeightsMissing: It is not there.
    """
    return _found(library().AutoTokenizer.from_pretrained, model, revision, "tokenizer")


@lru_cache(maxsize=8)
def read_feature_extractor(model: str, revision: str = "") -> Any:
    """What prepares sound for a hub name or local folder; treat it as read-only.

    Raises:
        WeightsMissing: It is not there.
    """
    read = library().AutoFeatureExtractor.from_pretrained
    return _found(read, model, revision, "feature extractor")


def front_end(
    kind: Any,
    config: Any,
    settings: Settings,
    *,
    drop: Sequence[str] = (),
) -> Any:
    """The model ``kind(config)`` without the parts ``drop``, filled with its weights.

    Args:
        kind: A transformers class, such as ``LlavaModel`` (not ``...ForConditionalGeneration``,
            whose head would be built and read too).
        drop: Dotted names of submodules left out: their tensors are not read and take no memory.

    Returns:
        The module on the CPU in the checkpoint's own dtype, in eval mode, without gradients. Take
        ``digest_of`` now, then ``placed``.

    Raises:
        WeightsMissing: No checkpoint, or one that lacks a tensor of the front end (the first is
            named).
        WeightsMismatch: Shapes differ, the file holds more than tensors, or whole numbers
            where the model has floats.
    """
    what = settings.weights or settings.model
    with _quiet(), pickles_in_silence():
        try:
            made, report = _from_pretrained(_without(kind, tuple(drop)), config, settings)
        except TokpipeError:
            raise
        except OSError as error:
            raise _missing(what, "weights", error) from error
        except Exception as error:  # whatever a foreign checkpoint raises
            # torch's own words advise to load it unsafely.
            pickled = "Weights only load failed" in str(error)
            why = "they hold more than tensors; nothing of it was run" if pickled else _line(error)
            raise WeightsMismatch(
                f"the weights of `{what}` cannot be read: {why}",
                hint="use safetensors, or torch files that hold tensors only, of this very model",
            ) from error
    if settings.weights != RANDOM:
        _check(report, what)
    return made.requires_grad_(False).eval()


def placed(module: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Move to ``device`` and cast what a checkpoint holds to ``dtype``.

    Tables that are computed, not stored (rotary frequencies), keep their precision.
    """
    stored = set(module.state_dict())
    tables = [n for n, b in module.named_buffers() if n not in stored and b.is_floating_point()]
    kept = {name: module.get_buffer(name).to(device) for name in tables}
    module.to(device=device, dtype=dtype)
    for name, table in kept.items():
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, table)
    return module


def _from_pretrained(kind: Any, config: Any, settings: Settings) -> tuple[Any, dict[str, Any]]:
    how: dict[str, Any] = {
        "config": config, "dtype": "auto", "attn_implementation": "sdpa",
        "output_loading_info": True, "ignore_mismatched_sizes": True,
    }  # fmt: skip
    if settings.weights == RANDOM:
        return _drawn(lambda: kind.from_pretrained(None, state_dict={}, **how))
    made: tuple[Any, dict[str, Any]]
    path = Path(settings.weights)
    if settings.weights and not path.is_dir():
        state = load_state(path)
        found = floats_of(state)
        made = kind.from_pretrained(None, state_dict=state, **how)
        check_floats(found, made[0], path.name)
        return made
    model, revision = (str(path), "") if settings.weights else (settings.model, settings.revision)
    how |= {"weights_only": True, "trust_remote_code": False}
    folder = Path(model)
    if folder.is_dir():
        check_index(folder)
    made = _local_first(kind.from_pretrained, model, revision, **how)
    if folder.is_dir():
        check_floats(floats_in(folder), made[0], model)
    return made


def _drawn(build: Callable[[], tuple[Any, dict[str, Any]]]) -> tuple[Any, dict[str, Any]]:
    """Weights by the library's own initialisers from a fixed seed.

    What those leave as it lay in memory is drawn too: memory is filled with NaN meanwhile.
    """
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.use_deterministic_algorithms(True)
        try:
            made, report = build()
        finally:
            torch.use_deterministic_algorithms(before)
        for _, tensor in sorted(made.state_dict().items()):
            if tensor.is_floating_point() and tensor.isnan().any():
                tensor.copy_(torch.randn(tensor.shape) * 0.02)
    return made, report


@lru_cache(maxsize=64)
def _without(kind: Any, drop: tuple[str, ...]) -> Any:
    """The class with some of its parts left out once it is built (on the meta device).

    Name and module stay those of the class, by which transformers finds the renamings.
    """
    if not drop:
        return kind
    build = kind.__init__

    def init(self: nn.Module, config: Any, *args: Any, **more: Any) -> None:
        build(self, config, *args, **more)
        for name in drop:
            owner, _, leaf = name.rpartition(".")
            # A placeholder, not nothing: the library's initialisers ask for the attribute.
            setattr(self.get_submodule(owner), leaf, nn.Identity())

    init.__signature__ = inspect.signature(build)  # type: ignore[attr-defined]
    return type(kind.__name__, (kind,), {"__init__": init, "__module__": kind.__module__})


def _check(report: dict[str, Any], what: str) -> None:
    missing = sorted(report["missing_keys"])
    if missing:
        raise WeightsMissing(
            f"the weights of `{what}` lack {len(missing)} tensors of its front end, first "
            f"`{missing[0]}`",
            hint="is the checkpoint complete and of this model? compare its config.json",
        )
    wrong = sorted(report["mismatched_keys"], key=str)
    if wrong:
        name, found, wanted = wrong[0][:3]
        raise WeightsMismatch(
            f"`{name}` of `{what}` has shape {list(found)}, the configuration says {list(wanted)}",
            hint="name the checkpoint that belongs to this config.json",
        )
    if report.get("error_msgs"):
        raise WeightsMismatch(
            f"the weights of `{what}` do not load: {_line(report['error_msgs'][0])}",
            hint="name the checkpoint that belongs to this config.json",
        )


def _found(reader: Callable[..., Any], model: str, revision: str, part: str) -> Any:
    with _quiet():
        try:
            return _local_first(reader, model, revision, trust_remote_code=False)
        except OSError as error:
            raise _missing(model, part, error) from error
        except Exception as error:  # whatever a foreign configuration raises
            raise ModelError(
                f"the {part} of `{model}` cannot be used: {_line(error)}",
                hint="tokpipe runs no code of model repositories; use a model transformers knows",
            ) from error


def _local_first(reader: Callable[..., T], model: str, revision: str, **how: Any) -> T:
    """Read what is on disk or cached; ask the network only for what is not."""
    if revision:
        how["revision"] = revision
    if Path(model).is_dir():
        return reader(model, local_files_only=True, **how)
    if Path(model).is_absolute() or model.startswith("."):
        raise FileNotFoundError(f"no folder `{model}`")
    try:
        return reader(model, local_files_only=True, **how)
    except OSError:
        return reader(model, **how)


def _fetch(model: str) -> str:
    """What to do about a model that is not there."""
    path = Path(model)
    local = path.is_absolute() or path.exists() or model.count("/") > 1
    if local or model.startswith(("./", "../", "~")):
        return "check the folder: it needs what `save_pretrained` of model and processor writes"
    return f"give a local folder, or fetch it while online: hf download {model}"


def _missing(model: str, part: str, error: Exception) -> WeightsMissing:
    return WeightsMissing(
        f"no {part} of `{model}`: {_line(error)}",
        hint=_fetch(model),
    )


def _line(error: object) -> str:
    """The first line of what a library said, without its advice."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' own reports; ours name what matters."""
    told = library().utils.logging
    level, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    # The hub's client says every retry of a network that is not there.
    hub = logging.getLogger("huggingface_hub")
    before = hub.level
    told.set_verbosity(told.CRITICAL)
    told.disable_progress_bar()
    hub.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        told.set_verbosity(level)
        hub.setLevel(before)
        if bars:
            told.enable_progress_bar()
