"""Weights: their digest, and loading without ever unpickling code."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from tokpipe.digest import canonical_json
from tokpipe.errors import WeightsMismatch, WeightsMissing


def digest_of(
    *modules: nn.Module | None,
    without: Sequence[str] = (),
    keep: Callable[[str], bool] | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """``sha256:...`` over names, shapes and values of all parameters and buffers.

    Computed on the tensors as they are loaded, in the dtype they have then, so that the same
    checkpoint in another file format has the same digest. None stands for an absent part.

    Args:
        without: Names of submodules that do not count, as if they were not there.
        keep: Tells by its name whether a tensor counts; None: all do.
        dtype: Floats as they would be in this one, such as the checkpoint's; None as they are.
    """
    total = hashlib.sha256()
    skipped = tuple(f"{name}." for name in without)
    for part, module in enumerate(modules):
        for name, found in _sorted(module):
            if name.startswith(skipped) or (keep is not None and not keep(name)):
                continue
            tensor = found.to(dtype) if dtype and found.is_floating_point() else found
            head = [part, name, str(tensor.dtype), list(tensor.shape)]
            total.update(canonical_json(head).encode())
            total.update(
                tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            )
    return f"sha256:{total.hexdigest()}"


#: A tensor of a numbered block, a tower's last norm, and what comes after that.
_BLOCK = re.compile(r"(?:^|\.)(?:layers?|blocks)\.(\d+)\.")
_NORM = re.compile(r"^(?:post_layernorm|layernorm|norm)\.")
_AFTER = ("head.", "pooler.", "merger.", "deepstack_merger_list.")


def part_digest(tower: nn.Module, blocks: int, *, normed: bool) -> dict[str, str]:
    """What tells whether two models share the part of a tower that made some hidden states.

    Args:
        blocks: Blocks that ran before those states.
        normed: The tower's last norm went over them.

    Returns:
        ``weights``, the digest of embeddings, those blocks and that norm, and the ``dtype`` they
        have in the checkpoint: only digests of one dtype can be compared.
    """

    def counts(name: str) -> bool:
        found = _BLOCK.search(name)
        if found is not None:
            return int(found.group(1)) < blocks
        return not name.startswith(_AFTER) and (normed or _NORM.match(name) is None)

    dtype = next(iter(tower.state_dict().values())).dtype
    return {"weights": digest_of(tower, keep=counts), "dtype": str(dtype).removeprefix("torch.")}


def _sorted(module: nn.Module | None) -> Iterable[tuple[str, Tensor]]:
    return sorted(module.state_dict().items()) if module is not None else ()


def check_digest(found: str, expected: str | None, what: str) -> None:
    """Raise WeightsMismatch unless the digest is the expected one (None: any)."""
    if expected is not None and found != expected:
        raise WeightsMismatch(
            f"the weights of {what} are not those on record: {found[:19]}, expected "
            f"{expected[:19]}",
            hint="name the checkpoint the cache was made with, or encode the media again",
        )


@contextmanager
def pickles_in_silence() -> Iterator[None]:
    """Without torch's warning on how a file was pickled: what it warns of is refused by name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        yield


def whole_numbers(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor of whole numbers that stands where a model has floats."""
    return next(
        (n for n, t in wanted.items() if t.is_floating_point() and n in state
         and not state[n].is_floating_point()),
        None,
    )  # fmt: skip


def load_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint file: safetensors, or a torch file with ``weights_only=True``.

    Raises:
        WeightsMissing: There is no such file.
        WeightsMismatch: It is no checkpoint, or holds more than tensors.
    """
    if not path.is_file():
        raise WeightsMissing(f"no weights at `{path}`", hint="check the path given with --weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with pickles_in_silence():
            found = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        # torch's own words advise to load it unsafely.
        raise WeightsMismatch(
            f"`{path.name}` cannot be read as weights: it holds more than tensors, or none; "
            "nothing of it was run",
            hint="save the model's state_dict as .safetensors",
        ) from error
    except Exception as error:
        # Of a file that is nothing of the kind, torch says no more than a key or a byte.
        said = str(error).partition("\n")[0] if isinstance(error, RuntimeError) else ""
        own = path.suffix == ".safetensors"
        why = str(error) if own else said or "it is no file of torch"
        raise WeightsMismatch(
            f"`{path.name}` cannot be read as weights: {why}",
            hint="use a .safetensors file, or a torch file that holds tensors only",
        ) from error
    state = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsMismatch(
            f"`{path.name}` holds no plain state dict", hint="save the model's state_dict alone"
        )
    return {str(k).removeprefix("module."): v for k, v in state.items()}
