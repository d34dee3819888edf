"""Projectors alone: what they make of a tower's rows is what the whole front end gives."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokpipe.encode._weights import part_digest
from tokpipe.encode.hf_audio import HfAudio
from tokpipe.encode.hf_vision import HfVision
from tokpipe.errors import CacheError, ModelError
from tokpipe.own import picture_tokens, sound_tokens
from tokpipe.tensors import TokenBatch

Front = Callable[[str], Any]
FRONTS = (
    "llava", "llava_next", "llava_onevision", "llava_next_video", "video_llava", "paligemma",
    "gemma3", "internvl", "smolvlm", "idefics3",
)  # fmt: skip
POOLED = ("llava_onevision", "llava_next_video", "gemma3")
CPU = torch.device("cpu")


def _beside(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def pictures(count: int = 2, height: int = 48, width: int = 72) -> Tensor:
    drawn = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=drawn)


def rows_of(operator: HfVision, tower: Any, prepared: Tensor) -> TokenBatch:
    """Rows of one picture as a cache holds them."""
    encoded = tower.encode(prepared)
    places = operator.places(48, 72)
    n = len(places)
    levels = [level[0] for level in encoded.deepstack]
    made = picture_tokens(encoded.data[0], [1.5], (n, 1), deepstack=levels)
    cell = torch.cat([torch.zeros(n, 1, dtype=torch.int32), places.cell], 1)
    return made.with_columns(cell=cell, kind=places.kind, tile=places.tile)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("name", FRONTS)
def test_rows_through_the_projector_are_the_tokens(front_of: Front, name: str, check: bool) -> None:
    pre, post = front_of(name).of(stage="pre_projector"), front_of(name).of()
    before, after = pre.load(), post.load()
    prepared = before.prepare(pictures(1))
    projection = post.load_projector(check=check)
    made, lacking = projection.unit(rows_of(pre, before, prepared), CPU)
    assert torch.equal(made.data, after.encode(prepared).data[0]) and lacking == 0
    places = post.places(48, 72)
    assert torch.equal(made.cell[:, 1:], places.cell)
    assert (projection.weights, projection.part) == (
        (after.weights, before.part) if check else (None, None)
    )


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "video_llama_3"])
def test_merge_groups_and_deepstack_rows(name: str, check: bool, tmp_path: Path) -> None:
    tiny = _beside("qwen_models").make(name, tmp_path)
    pre, post = tiny.of(stage="pre_projector"), tiny.of()
    before, after = pre.load(), post.load()
    prepared = before.prepare(pictures(1))
    projection = post.load_projector(check=check)
    made, _ = projection.unit(rows_of(pre, before, prepared), CPU)
    tokens = after.encode(prepared)
    assert torch.equal(made.data, tokens.data[0])
    assert len(projection.levels) == len(tokens.deepstack)
    for k, level in enumerate(tokens.deepstack, 1):
        assert torch.equal(made.extras[f"deepstack_{k}"], level[0])
    if check:
        assert projection.weights == after.weights and projection.part == before.part


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("name", ["qwen2_audio", "voxtral", "qwen2_5_omni", "qwen3_omni"])
def test_sound(name: str, check: bool, tmp_path: Path) -> None:
    sounds = _beside("sound_models")
    sounds.make(name, tmp_path)
    pre, post = HfAudio(model=str(tmp_path)), HfAudio(model=str(tmp_path), stage="post_projector")
    before, after = pre.load(), post.load()
    wave = sounds.sound(before.chunk)
    rows = sound_tokens(before.encode([wave])[0].data[0], before.times(len(wave)))
    projection = post.load_projector(check=check)
    units = projection.units(rows.at, rows.cell) if projection.needs is not None else None
    groups = [rows] if units is None else [rows.take(units == u) for u in range(int(units[-1]) + 1)]
    made = TokenBatch.cat([projection.unit(group, CPU)[0] for group in groups])
    torch.testing.assert_close(made.data, after.encode([wave])[0].data[0], atol=1e-6, rtol=1e-5)
    times = after.times(len(wave))
    assert torch.allclose(made.at, times[:, 0]) and torch.allclose(made.pts, times)
    assert made.cell[:, 0].tolist() == list(range(len(times)))
    if check:
        assert projection.weights == after.weights


@pytest.mark.parametrize("name", POOLED)
def test_tokens_whose_rows_are_missing_are_left_out_and_counted(front_of: Front, name: str) -> None:
    pre, post = front_of(name).of(stage="pre_projector"), front_of(name).of()
    before = pre.load()
    prepared = before.prepare(pictures(1))
    rows = rows_of(pre, before, prepared)
    projection = post.load_projector()
    assert projection.needs is not None
    there = torch.ones(len(rows), dtype=torch.bool)
    there[0] = False
    made, lacking = projection.unit(rows.take(there), CPU)
    hit = projection.needs[:, 0]
    assert lacking == int(hit.sum()) >= 1 and len(made) == int((~hit).sum())
    whole = projection.unit(rows, CPU)[0]
    torch.testing.assert_close(made.data, whole.data[~hit], atol=1e-6, rtol=1e-5)
    assert torch.equal(made.cell, whole.cell[~hit])
    # Tokens none of whose rows is there were dropped before: they are not counted again.
    few = projection.needs[-1]
    last, lacking = projection.unit(rows.take(few), CPU)
    assert torch.equal(last.cell[-1], whole.cell[-1])
    assert lacking == int((projection.needs & few).any(1).sum()) - len(last)


def test_rows_that_were_merged_are_not_pooled(front_of: Front) -> None:
    pre, post = front_of("gemma3").of(stage="pre_projector"), front_of("gemma3").of()
    before = pre.load()
    rows = rows_of(pre, before, before.prepare(pictures(1)))
    mass = rows.mass.clone()
    mass[3] = 2
    with pytest.raises(CacheError, match="merged"):
        post.load_projector(check=False).unit(rows.with_columns(mass=mass), CPU)


def test_one_tower_in_two_models_has_one_digest(front_of: Front, tmp_path: Path) -> None:
    """A CLIP alone, and inside a LLaVA that never trained it."""
    tf: Any = pytest.importorskip("transformers")
    front = front_of("llava")
    tower = front.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    tower.save_pretrained(tmp_path)
    front.image.save_pretrained(tmp_path)
    alone: Any = HfVision(model=str(tmp_path), layer=2).load()
    shorter: Any = HfVision(model=str(tmp_path), layer=1).load()
    found = front.of().load_projector().part
    assert found == alone.part == front.of(stage="pre_projector").load().part
    assert found["dtype"] == "float32" and shorter.part != found
    with torch.no_grad():
        other = tf.AutoModel.from_pretrained(tmp_path)
        next(other.parameters()).add_(1)
    assert part_digest(other, 2, normed=False) != found


@pytest.mark.parametrize("name", ["llava_next", "llava_next_video", "llava_onevision"])
def test_crops_that_are_packed_later_are_refused(front_of: Front, name: str) -> None:
    with pytest.raises(ModelError, match="packed after"):
        front_of(name).of(tiles=True).load_projector()


def test_a_plain_tower_has_no_projector(tmp_path: Path) -> None:
    tf: Any = pytest.importorskip("transformers")
    config = tf.Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                             image_size=16, patch_size=8)  # fmt: skip
    tf.Dinov2Model(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no projector"):
        HfVision(model=str(tmp_path)).load_projector()
