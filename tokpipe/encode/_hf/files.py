"""Files of a local model looked at before transformers reads them: what is wrong, by its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokpipe.errors import ModelError, WeightsMismatch, WeightsMissing

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
_COMPLETE = "copy the whole folder again, as `save_pretrained` or `hf download` wrote it"
#: Parts of names that come and go between versions of transformers.
_MOVED = frozenset({"model", "module", "vision_model"})


def check_config(folder: Path) -> None:
    """Check that ``config.json`` of a folder is there and an object.

    Raises:
        WeightsMissing: It is not there.
        ModelError: It is no JSON, or no object.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise WeightsMissing(f"no {CONFIG} in the folder `{folder}`", hint=_COMPLETE)
    if not isinstance(_json(path), dict):
        raise ModelError(f"`{path}` holds no JSON object", hint=_COMPLETE)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"`{path}` is no JSON: {error}", hint=_COMPLETE) from error


def check_index(folder: Path) -> None:
    """Check what says in which of a folder's files each tensor is; nothing where there is none.

    Raises:
        ModelError: It is no JSON.
        WeightsMismatch: It lacks ``metadata`` or ``weight_map``.
        WeightsMissing: It names a file that is not there.
    """
    path = folder / INDEX
    # A whole file beside it is read instead.
    if not path.is_file() or (folder / "model.safetensors").is_file():
        return
    index = _json(path)
    for key in ("metadata", "weight_map"):
        if not isinstance(index, dict) or not isinstance(index.get(key), dict):
            raise WeightsMismatch(f"`{path}` has no table `{key}`", hint=_COMPLETE)
    for name in sorted({str(name) for name in index["weight_map"].values()}):
        if not (folder / name).is_file():
            raise WeightsMissing(f"`{path}` names `{name}`, which is not there", hint=_COMPLETE)


def check_floats(found: dict[str, bool], model: nn.Module, what: str) -> None:
    """Refuse whole numbers where a model has parameters: a cast would not give their values.

    Args:
        found: Names in the checkpoint, and whether each tensor is of floats.
        model: Filled from it.
        what: The checkpoint's name.

    Raises:
        WeightsMismatch: A tensor of whole numbers stands for a parameter.
    """
    wrong = {_plain(name): name for name, floats in found.items() if not floats}
    if not wrong:
        return
    for name, _ in model.named_parameters():
        if _plain(name) in wrong:
            raise WeightsMismatch(
                f"`{wrong[_plain(name)]}` of `{what}` holds whole numbers, not floats",
                hint="quantised checkpoints do not work here; name the one they were made from",
            )


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _MOVED)


def floats_of(state: dict[str, Tensor]) -> dict[str, bool]:
    """Names of tensors and whether each is of floats."""
    return {name: tensor.is_floating_point() for name, tensor in state.items()}


def floats_in(folder: Path) -> dict[str, bool]:
    """The same of the safetensors files, or torch files of tensors, that a folder holds."""
    found: dict[str, bool] = {}
    for name, kind in _safetensors(folder):
        found[name] = kind.startswith(("F", "BF"))
    if not found:
        for path in sorted(folder.glob("pytorch_model*.bin")):
            state = torch.load(path, map_location="meta", weights_only=True)
            found |= floats_of({k: v for k, v in state.items() if isinstance(v, Tensor)})
    return found


def _safetensors(folder: Path) -> Iterator[tuple[str, str]]:
    """Names and types of tensors, from the files' headers alone."""
    from safetensors import safe_open

    single = folder / "model.safetensors"
    for path in [single] if single.is_file() else sorted(folder.glob("model-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                yield name, str(file.get_slice(name).get_dtype())
