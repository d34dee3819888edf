"""Weights that changed after they were compared once are compared anew."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("torchvision")

from tokpipe.errors import WeightsMismatch
from tokpipe.export._models.seal import seal_of
from tokpipe.export.transformers import to_model_inputs

MAKERS: dict[str, Callable[[], Any]] = import_module("tiny_models").MAKERS
tiny: Any = import_module("tiny_case")


def _fused(projector: nn.Module) -> None:
    for parameter in projector.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(projector.parameters(), lr=0.1, fused=True).step()


def _copied(projector: nn.Module) -> None:
    for parameter in projector.parameters():
        parameter.data.copy_(torch.randn_like(parameter))


def _set(projector: nn.Module) -> None:
    for parameter in projector.parameters():
        parameter.data = torch.randn_like(parameter)


def _rolled(projector: nn.Module) -> None:
    for parameter in projector.parameters():
        parameter.data = parameter.data.roll(1, 0)


def _loaded(projector: nn.Module) -> None:
    state = {name: torch.randn_like(t) for name, t in projector.state_dict().items()}
    projector.load_state_dict(state, assign=True)


@pytest.mark.skipif(not tiny.NEW, reason="the record is made by transformers 5")
@pytest.mark.parametrize("change", [_fused, _copied, _set, _rolled, _loaded])
def test_a_projector_changed_in_any_way_is_seen(
    tmp_path: Path, change: Callable[[nn.Module], None]
) -> None:
    case = MAKERS["llava"]()
    cache = case.cache(tmp_path, tiny.pictures())
    asked = (cache, case.model, case.processor, case.asked())
    was = copy.deepcopy(case.model.model.multi_modal_projector)
    to_model_inputs(*asked)
    to_model_inputs(*asked)
    change(case.model.model.multi_modal_projector)
    with pytest.raises(WeightsMismatch):
        to_model_inputs(*asked)
    case.model.model.multi_modal_projector = was
    assert not to_model_inputs(*asked).notes


@pytest.mark.skipif(not tiny.NEW, reason="the record is made by transformers 5")
def test_a_projector_of_another_checkpoint_is_seen(tmp_path: Path) -> None:
    case, other = MAKERS["llava"](), MAKERS["llava"]()
    cache = case.cache(tmp_path, tiny.pictures())
    with torch.no_grad():
        next(other.model.model.multi_modal_projector.parameters()).add_(1)
    models = []
    for name, made in (("one", case.model), ("two", other.model)):
        made.save_pretrained(tmp_path / name)
        models.append(type(made).from_pretrained(tmp_path / name).eval())
    to_model_inputs(cache, models[0], case.processor, case.asked())
    models[0].model.multi_modal_projector = models[1].model.multi_modal_projector
    with pytest.raises(WeightsMismatch):
        to_model_inputs(cache, models[0], case.processor, case.asked())


def _same(one: Tensor, other: Tensor) -> bool:
    return seal_of([one]) == seal_of([other])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (3,), (33, 65), (40, 512)])
def test_a_seal_is_that_of_the_values_and_their_order(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    drawn = torch.Generator().manual_seed(0)
    made = (torch.randn(shape, generator=drawn) * 100).to(dtype)
    assert _same(made, made.clone())
    assert _same(torch.cat([made[None], made[None]])[1], made), "wherever it lies"
    for place in {0, made.numel() // 2, made.numel() - 1}:
        other = made.clone()
        other.view(-1)[place] += 1
        assert not _same(made, other)
    if made.ndim:
        assert not _same(made, made.flip(0)) and not _same(made, made.roll(1))
        assert not _same(made, made[None])
        other = made.clone()
        other[0] += 3
        other[1] -= 1
        assert not _same(made, other)
        assert _same(made.flip(0), made.flip(0).clone())
    if made.ndim == 2:
        assert _same(made.t(), made.t().contiguous())
        assert not _same(made, made.flip(1))
        swapped = made.clone()
        swapped[[0, 1], [0, 1]] = made[[1, 0], [1, 0]]
        assert not _same(made, swapped)
    assert seal_of([made, made[None]]) != seal_of([made[None], made])
