"""Front ends that pool before their projector or keep a class token: the model's own path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokpipe.encode._hf.live import weights_of
from tokpipe.errors import ModelError

Front = Callable[[str], Any]
NAMES = ("llava_next_video", "video_llava", "paligemma", "gemma3")
VIDEO = NAMES[:2]
#: Tokens of a frame after the projector, rows before it.
TOKENS = {"llava_next_video": 4, "video_llava": 17, "paligemma": 64, "gemma3": 16}
ROWS = {"llava_next_video": 16, "video_llava": 17, "paligemma": 64, "gemma3": 64}


def pictures(count: int = 3, height: int = 50, width: int = 91) -> Tensor:
    made = torch.Generator().manual_seed(3)
    small = torch.rand(count, 3, 7, 9, generator=made)
    large = torch.nn.functional.interpolate(small, (height, width), mode="bicubic")
    return large.mul(255).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


@pytest.fixture(params=NAMES)
def front(request: pytest.FixtureRequest, front_of: Front) -> Any:
    return front_of(request.param)


@torch.inference_mode()
def own_tokens(front: Any, prepared: Tensor) -> Tensor:
    """Rows [T, n, D] of prepared frames [T, 1, 3, S, S] by the model's own path."""
    frames = prepared[:, 0]
    if front.name in VIDEO:
        rows = front.model.get_video_features(frames[None]).pooler_output
        return torch.as_tensor(rows).reshape(len(frames), -1, rows.shape[-1])
    return torch.as_tensor(front.features(frames))


def test_tokens_are_what_the_language_model_gets(front: Any) -> None:
    tower = front.of().load()
    prepared = tower.prepare(pictures())
    found = tower.encode(prepared)
    assert torch.equal(found.data, own_tokens(front, prepared))
    assert found.data.shape[1:] == (TOKENS[front.name], tower.outline.dim) == (
        len(front.of().places(50, 91)), 48
    )  # fmt: skip


def test_pixels_are_those_of_the_models_processor(front: Any) -> None:
    tower = front.of().load()
    for height, width in ((50, 91), (77, 40), (32, 32)):
        pixels = pictures(2, height, width)
        if front.name in VIDEO:
            # On torchvision: a grey level of rounding at most.
            made = front.video([pixels.permute(0, 3, 1, 2)], do_sample_frames=False,
                               return_tensors="pt")["pixel_values_videos"][0]  # fmt: skip
            levels = (tower.prepare(pixels)[:, 0] - made).abs() * 255
            levels = levels * torch.tensor(front.video.image_std)[:, None, None]
            assert levels.max() <= 1.01 and (levels > 0.5).float().mean() < 0.05
        else:
            own = front.image(list(pixels.permute(0, 3, 1, 2)), return_tensors="pt")
            assert torch.equal(tower.prepare(pixels)[:, 0], torch.as_tensor(own["pixel_values"]))


def test_rows_before_the_projector_are_the_towers(front: Any) -> None:
    tower = front.of(stage="pre_projector").load()
    prepared = tower.prepare(pictures())
    rows = tower.encode(prepared).data
    assert rows.shape[1:] == (ROWS[front.name], 32) and tower.outline.dim == 32
    model = front.model
    own = getattr(model, "video_tower", None) or model.vision_tower
    with torch.inference_mode():
        out = own(prepared[:, 0], output_hidden_states=True)
        if front.name == "llava_next_video":
            assert torch.equal(rows, out.hidden_states[-2][:, 1:])
            tokens = model.multi_modal_projector(model.vision_resampler(rows))
        else:
            hidden = out.hidden_states[-2] if front.name == "video_llava" else out.last_hidden_state
            assert torch.equal(rows, hidden)
            tokens = model.multi_modal_projector(rows)
    assert torch.equal(tokens, front.of().load().encode(prepared).data)


@pytest.mark.parametrize("mode", ["average", "max", "conv"])
def test_each_way_of_pooling_is_the_models(front_of: Front, tmp_path: Path, mode: str) -> None:
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    front = front_of("llava_next_video")
    config = LlavaNextVideoConfig.from_pretrained(front.folder)
    config.spatial_pool_mode = mode
    torch.manual_seed(3)
    model: Any = LlavaNextVideoForConditionalGeneration(config)
    model.eval()
    model.save_pretrained(tmp_path)
    front.image.save_pretrained(tmp_path)
    front.video.save_pretrained(tmp_path)
    tower = front.of(model=str(tmp_path)).load()
    prepared = tower.prepare(pictures())
    with torch.inference_mode():
        own = model.model.get_video_features(prepared[:, 0][None]).pooler_output
    assert torch.equal(tower.encode(prepared).data.flatten(0, 1), own[0])
    assert mode in tower.outline.about["pool"]


@pytest.mark.parametrize("stage", ["pre_projector", "post_projector"])
def test_all_tokens_kept_are_the_picture(front: Any, stage: str) -> None:
    tower = front.of(stage=stage).load()
    prepared = tower.prepare(pictures(1))
    names = frozenset(tower.outline.extras)
    whole = tower.encode(prepared, names)
    kept = tower.encode_kept(prepared, torch.ones(whole.data.shape[1], dtype=torch.bool), names)
    assert torch.equal(kept.data, whole.data)
    assert all(torch.equal(kept.columns[name], whole.columns[name]) for name in whole.columns)
    assert all(len(value[0]) == whole.data.shape[1] for value in whole.columns.values())


@pytest.mark.parametrize("name", ["llava_next_video", "gemma3"])
def test_pooled_tokens_kept_take_the_windows_they_are_made_of(front_of: Front, name: str) -> None:
    front = front_of(name)
    post, pre = front.of().load(), front.of(stage="pre_projector").load()
    prepared = post.prepare(pictures(1))
    n, side = TOKENS[name], int(ROWS[name] ** 0.5)
    live = torch.zeros(n, dtype=torch.bool)
    live[[0, n - 1]] = True
    few = int(n**0.5)
    patches = live.reshape(few, few).repeat_interleave(side // few, 0)
    patches = patches.repeat_interleave(side // few, 1).flatten()
    rows = pre.encode_kept(prepared, patches).data
    whole = rows.new_zeros(1, side**2, 32)
    whole[:, patches] = rows
    with torch.inference_mode():
        if name == "llava_next_video":
            whole = front.model.vision_resampler(whole)
        expected = front.model.multi_modal_projector(whole)[:, live]
    torch.testing.assert_close(
        post.encode_kept(prepared, live).data, expected, atol=1e-6, rtol=1e-5
    )


def test_the_class_token_is_a_token_without_a_cell(front_of: Front) -> None:
    front = front_of("video_llava")
    places = front.of().places(50, 91)
    assert places.grid == (4, 4) and len(places) == 17
    assert places.cell[0].tolist() == [-1, -1] and bool((places.cell[1:] >= 0).all())
    assert places.box[0].tolist() == [0, 0, 1, 1] and int(places.kind[0]) == 0
    tower = front.of().load()
    prepared = tower.prepare(pictures(1))
    live = torch.zeros(17, dtype=torch.bool)
    live[[3, 9]] = True
    with_it = live.clone()
    with_it[0] = True
    few = tower.encode_kept(prepared, live, frozenset(tower.outline.extras))
    more = tower.encode_kept(prepared, with_it, frozenset(tower.outline.extras))
    # The class token always enters, whether it is wanted or not.
    assert few.data.shape[1] == 2
    torch.testing.assert_close(few.data, more.data[:, 1:], atol=1e-6, rtol=1e-5)
    assert all(len(value[0]) == 2 for value in few.columns.values())


def test_images_of_video_llava_go_through_their_own_tower(front_of: Front) -> None:
    front = front_of("video_llava")
    tower = front.of(tiles=True).load()
    prepared = tower.prepare(pictures())
    with torch.inference_mode():
        own = front.model.get_image_features(prepared[:, 0]).pooler_output
    assert torch.equal(tower.encode(prepared).data, own) and own.shape[1] == 16
    assert tower.weights != front.of().load().weights


def test_images_of_llava_next_video_are_llava_nexts(front_of: Front) -> None:
    front = front_of("llava_next_video")
    tower = front.of(tiles=True).load()
    pixels = pictures(1, 60, 30)
    prepared = tower.prepare(pixels)
    made = front.image(list(pixels.permute(0, 3, 1, 2)), return_tensors="pt")
    tiles = torch.as_tensor(made["pixel_values"])
    with torch.inference_mode():
        own = front.model.get_image_features(tiles, image_sizes=torch.tensor([[60, 30]]))
    assert torch.equal(tower.encode(prepared).data[0], own.pooler_output[0])


def test_the_digest_of_a_loaded_model_agrees(front: Any) -> None:
    assert weights_of(front.model, "video") == front.of().load().weights
    if front.name == "video_llava":
        assert weights_of(front.model, "video", tiles=True) == front.of(tiles=True).load().weights


@pytest.mark.parametrize("name", ["paligemma", "gemma3"])
def test_crops_are_refused(front_of: Front, name: str) -> None:
    with pytest.raises(ModelError, match="no crops"):
        front_of(name).of(tiles=True).outline()


def test_places_lie_on_the_picture(front: Any) -> None:
    places = front.of(fit="squash").places(50, 91)
    box = places.box[places.cell[:, 0] >= 0]
    side = places.grid[0]
    assert len(box) == side**2
    assert box[0].tolist() == pytest.approx([0, 0, 1 / side, 1 / side])
    assert box[-1, 2:].tolist() == pytest.approx([1, 1])


def test_half_precision_is_near(front: Any) -> None:
    exact = front.of().load()
    half = front.of().load(dtype="bfloat16")
    found = half.encode(half.prepare(pictures(2))).data
    assert found.dtype == torch.bfloat16
    whole = exact.encode(exact.prepare(pictures(2))).data
    assert torch.cosine_similarity(found.float(), whole, dim=-1).min() > 0.99
