"""Front ends with towers of one size, frame by frame: tokens are what the language model gets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokpipe.encode.hf_vision import HfVision
from tokpipe.errors import ModelError, WeightsMismatch, WeightsMissing

NAMES = ("llava", "llava_next", "llava_onevision", "internvl", "smolvlm", "idefics3")
CLASSES = {"llava": 1, "llava_next": 1, "internvl": 1}
SHUFFLED = {"internvl", "smolvlm", "idefics3"}


def pictures(count: int = 3, height: int = 50, width: int = 91) -> Tensor:
    made = torch.Generator().manual_seed(3)
    small = torch.rand(count, 3, 7, 9, generator=made)
    large = torch.nn.functional.interpolate(small, (height, width), mode="bicubic")
    return large.mul(255).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


@pytest.fixture(params=NAMES)
def front(request: pytest.FixtureRequest, front_of: Callable[[str], Any]) -> Any:
    return front_of(request.param)


def own_pixels(front: Any, pixels: Tensor) -> Tensor:
    """The tile [T, 3, S, S] a frame is to the model's own image processor."""
    frames = list(pixels.permute(0, 3, 1, 2))
    how: dict[str, Any] = {"return_tensors": "pt"}
    if front.name == "internvl":
        how["crop_to_patches"] = False
    if front.name in ("smolvlm", "idefics3"):
        how["do_image_splitting"] = False
    if front.name == "smolvlm":
        how["size"] = dict(front.video.size)
    made = front.image(frames, **how)["pixel_values"]
    # Of an image in crops the first is the whole; the small ones count images by batch.
    if made.ndim == 5:
        made = made.flatten(0, 1) if front.name in SHUFFLED else made[:, 0]
    return torch.as_tensor(made)


@torch.inference_mode()
def own_tokens(front: Any, prepared: Tensor) -> Tensor:
    """Rows [T, n, D] the model's own path gives of prepared frames [T, 1, 3, S, S]."""
    if front.name == "llava_onevision":
        video = front.model.get_video_features(prepared[:, 0][None]).pooler_output
        return torch.as_tensor(video[0, :-1]).reshape(len(prepared), -1, video.shape[-1])
    if front.name == "llava_next":
        # An image of this size is the whole and a crop on top of another.
        tiles = prepared.repeat(1, 3, 1, 1, 1)
        rows = front.features(tiles, image_sizes=torch.tensor([[64, 32]] * len(prepared)))
        return torch.stack([row[:16] for row in rows])
    small = front.name in ("smolvlm", "idefics3")
    rows = front.features(prepared if small else prepared[:, 0])
    return rows if isinstance(rows, Tensor) else torch.stack(list(rows))


@torch.inference_mode()
def own_project(front: Any, rows: Tensor) -> Tensor:
    model = front.model
    if front.name in ("smolvlm", "idefics3"):
        return torch.as_tensor(model.connector.modality_projection(rows))
    return torch.as_tensor(model.multi_modal_projector(rows))


def tower_of(model: Any) -> Any:
    return getattr(model, "vision_tower", None) or model.vision_model


def test_pixels_are_those_of_the_models_processor_on_pillow(front: Any) -> None:
    tower = front.of().load()
    for height, width in ((50, 91), (77, 40), (32, 32), (20, 21)):
        pixels = pictures(2, height, width)
        assert torch.equal(tower.prepare(pixels)[:, 0], own_pixels(front, pixels))


@pytest.mark.parametrize("name", ["llava_onevision", "internvl", "smolvlm"])
def test_pixels_are_within_a_grey_level_of_the_video_processor(
    name: str, front_of: Callable[[str], Any]
) -> None:
    front, pixels = front_of(name), pictures()
    made = front.video([pixels.permute(0, 3, 1, 2)], do_sample_frames=False, return_tensors="pt")
    found = made["pixel_values" if name == "smolvlm" else "pixel_values_videos"][0]
    levels = (front.of().load().prepare(pixels)[:, 0] - found).abs() * 255
    levels = levels * torch.tensor(front.video.image_std)[:, None, None]
    # Each resize may round the other way.
    assert levels.max() <= (2.01 if name == "smolvlm" else 1.01)
    assert (levels > 0.5).float().mean() < 0.05


def test_tokens_are_what_the_language_model_gets(front: Any) -> None:
    tower = front.of().load()
    prepared = tower.prepare(pictures())
    found = tower.encode(prepared)
    torch.testing.assert_close(found.data, own_tokens(front, prepared), atol=1e-5, rtol=1e-5)
    assert found.data.shape[2] == tower.outline.dim == 48
    assert found.data.shape[1] == len(front.of().places(50, 91))


def test_the_projector_of_a_row_is_the_token(front: Any) -> None:
    tower = front.of(stage="pre_projector").load()
    prepared = tower.prepare(pictures())
    rows = tower.encode(prepared).data
    assert rows.shape[2] == tower.outline.dim == (128 if front.name in SHUFFLED else 32)
    with torch.inference_mode():
        tokens = own_project(front, rows)
        # One row alone, or among others: the projector sees no neighbours.
        alone = own_project(front, rows[:, 3:4].contiguous())
        torch.testing.assert_close(alone, tokens[:, 3:4], atol=1e-6, rtol=1e-5)
        if front.name == "llava_onevision":
            tokens = front.model.apply_pooling(tokens)
    assert torch.equal(tokens, front.of().load().encode(prepared).data)
    assert len(front.of(stage="pre_projector").places(50, 91)) == rows.shape[1]


def test_a_picture_does_not_see_its_batch(front: Any) -> None:
    tower = front.of().load()
    prepared = tower.prepare(pictures(5))
    together = tower.encode(prepared, frozenset(tower.outline.extras))
    for i in range(5):
        alone = tower.encode(prepared[i : i + 1], frozenset(tower.outline.extras))
        # Some processors' kernels round by the size of a batch; runs look for sizes that do not.
        torch.testing.assert_close(alone.data[0], together.data[i], atol=1e-5, rtol=1e-5)
        for name, column in together.columns.items():
            torch.testing.assert_close(alone.columns[name][0], column[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("stage", ["pre_projector", "post_projector"])
def test_all_tokens_kept_are_the_picture(front: Any, stage: str) -> None:
    tower = front.of(stage=stage).load()
    prepared = tower.prepare(pictures(1))
    whole = tower.encode(prepared, frozenset(tower.outline.extras))
    live = torch.ones(whole.data.shape[1], dtype=torch.bool)
    kept = tower.encode_kept(prepared, live, frozenset(tower.outline.extras))
    assert torch.equal(kept.data, whole.data)
    assert all(torch.equal(kept.columns[name], whole.columns[name]) for name in whole.columns)


@torch.inference_mode()
def kept_rows(front: Any, prepared: Tensor, patches: Tensor) -> Tensor:
    """Hidden states the projector takes, of some patches, by the library's own forward."""
    tower, first = tower_of(front.model), CLASSES.get(front.name, 0)
    keep = torch.cat([torch.ones(first, dtype=torch.bool), patches])
    handle = tower.embeddings.register_forward_hook(lambda _m, _a, made: made[:, keep])
    try:
        out = tower(prepared[:, 0], output_hidden_states=True)
    finally:
        handle.remove()
    taken = {"llava": -2, "llava_next": -2, "llava_onevision": -1}.get(front.name)
    rows = out.last_hidden_state if taken is None else out.hidden_states[taken]
    return torch.as_tensor(rows[:, first:])


def test_some_tokens_kept_are_encoded_from_their_patches_alone(front: Any) -> None:
    tower = front.of(stage="pre_projector").load()
    prepared = tower.prepare(pictures(1))
    n = len(front.of(stage="pre_projector").places(50, 91))
    live = torch.rand(n, generator=torch.Generator().manual_seed(2)) < 0.4
    patches = live
    if front.name in SHUFFLED:
        side = int(n**0.5)
        patches = live.reshape(side, side).repeat_interleave(2, 0).repeat_interleave(2, 1).flatten()
    kept = tower.encode_kept(prepared, live)
    rows = kept_rows(front, prepared, patches)
    if front.name in SHUFFLED:
        # Of each group, four rows next to each other: put the kept patches back on their grid.
        whole = rows.new_zeros(len(patches), 32)
        whole[patches] = rows[0]
        grid = whole.reshape(side, 2, side, 2, 32).permute(0, 2, 1, 3, 4).reshape(1, n, 128)
        rows = grid[:, live]
    torch.testing.assert_close(kept.data, rows, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(kept.data, tower.encode(prepared).data[:, live], atol=1e-4)
    none = tower.encode_kept(prepared, torch.zeros(n, dtype=torch.bool), frozenset({"received"}))
    assert none.data.shape == (1, 0, tower.outline.dim) and none.columns["received"].numel() == 0


def test_pooled_tokens_kept_take_the_patches_they_are_made_of(
    front_of: Callable[[str], Any],
) -> None:
    front = front_of("llava_onevision")
    tower = front.of().load()
    prepared = tower.prepare(pictures(1))
    live = torch.tensor([True, False, False, False, True, False, False, False, False])
    # 5 patches become 3 tokens: token i is made of patches around (i + 1/2) 5/3 - 1/2.
    patches = torch.zeros(5, 5, dtype=torch.bool)
    patches[0:2, 0:2] = True
    patches[2, 2] = True
    rows = own_project(front, kept_rows(front, prepared, patches.flatten()))
    whole = rows.new_zeros(1, 25, 48)
    whole[:, patches.flatten()] = rows
    expected = front.model.apply_pooling(whole)[:, live]
    torch.testing.assert_close(
        tower.encode_kept(prepared, live).data, expected, atol=1e-6, rtol=1e-5
    )


def test_columns_are_the_models_own_attention(front: Any) -> None:
    from transformers import AutoModel

    tower = front.of(stage="pre_projector", attention_layer=1).load()
    prepared = tower.prepare(pictures(2))
    found = tower.encode(prepared, frozenset(tower.outline.extras)).columns
    eager = tower_of(AutoModel.from_pretrained(front.folder, attn_implementation="eager").eval())
    with torch.inference_mode():
        out = eager(prepared[:, 0], output_attentions=True)
    first = CLASSES.get(front.name, 0)
    shown = {"received": out.attentions[1].mean((1, 2))[:, first:]}
    if first:
        shown["attention"] = out.attentions[1][:, :, 0, 1:].transpose(1, 2)
        shown["attention_shallow"] = out.attentions[0][:, :, 0, 1:].transpose(1, 2)
    assert ("attention" in found) == bool(first)
    for name, patches in shown.items():
        expected = patches
        if front.name in SHUFFLED:
            side = int(patches.shape[1] ** 0.5) // 2
            grid = patches.reshape(2, side, 2, side, 2, *patches.shape[2:])
            expected = grid.mean((2, 4)).flatten(1, 2)
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5)


def test_places_of_a_squashed_and_a_padded_picture(front: Any) -> None:
    squashed = front.of(fit="squash", stage="pre_projector").places(50, 91)
    side = squashed.grid[0]
    used = 35 / 38 if front.name == "llava_onevision" else 1.0
    assert squashed.grid == (side, side) and len(squashed) == side**2
    assert squashed.box[0].tolist() == [0.0, 0.0, pytest.approx(used / side), squashed.box[0, 2]]
    assert squashed.box[-1, 2:].tolist() == pytest.approx([used, used])
    assert squashed.cell[:, 0].diff().min() >= 0 and not squashed.tile.any()
    padded = front.of(fit="pad", stage="pre_projector").places(50, 91)
    # A wide picture fills the width; rows above and below it are padding.
    assert padded.box[0, 1] == 0 and padded.box[0, 0] < 0 < 1 < padded.box[-1, 2]


def test_a_padded_picture_lies_where_places_says(front: Any) -> None:
    tower = front.of(fit="pad", stage="pre_projector").load()
    prepared = tower.prepare(torch.full((1, 50, 100, 3), 255, dtype=torch.uint8))
    box = front.of(fit="pad", stage="pre_projector").places(50, 100).box
    inside = (box[:, 0] >= 0) & (box[:, 2] <= 1)
    patch = int(tower.outline.about["patch"]) * int(tower.outline.about["merge"])
    cells = prepared[0, 0, 0].unfold(0, patch, patch).unfold(1, patch, patch).flatten(0, 1)
    bright = (cells == prepared[0, 0, 0].max()).flatten(1).all(1)
    assert torch.equal(bright, inside) and 0 < int(inside.sum()) < len(inside)


def test_half_precision_is_near(front: Any) -> None:
    prepared = front.of().load().prepare(pictures(2))
    exact = front.of().load().encode(prepared).data
    tower = front.of().load(dtype="bfloat16")
    half = tower.encode(tower.prepare(pictures(2)), frozenset(tower.outline.extras))
    assert half.data.dtype == torch.bfloat16
    assert torch.cosine_similarity(half.data.float(), exact, dim=-1).min() > 0.99
    assert all(column.isfinite().all() for column in half.columns.values())


def test_a_layer_of_ones_own_before_the_projector(front: Any) -> None:
    tower = front.of(stage="pre_projector", layer=1).load()
    prepared = tower.prepare(pictures(2))
    with torch.inference_mode():
        out = tower_of(front.model)(prepared[:, 0], output_hidden_states=True)
    rows = out.hidden_states[1][:, CLASSES.get(front.name, 0) :]
    if front.name in SHUFFLED:
        side = int(rows.shape[1] ** 0.5) // 2
        grid = rows.reshape(2, side, 2, side, 2, 32)
        rows = grid.permute(0, 1, 3, 2, 4, 5).reshape(2, side**2, 128)
    assert torch.equal(tower.encode(prepared).data, rows)
    assert len(tower.steps.vit.blocks) == 1


@pytest.mark.parametrize(
    "wrong", [{"layer": 1}, {"layer": 9}, {"attention_layer": 3}], ids=["taken", "absent", "block"]
)
def test_a_layer_the_model_does_not_take_is_an_error(front: Any, wrong: dict[str, int]) -> None:
    with pytest.raises(ModelError, match=r"hidden state|does not run") as caught:
        front.of(**wrong).outline()
    assert caught.value.hint


def test_the_digest_is_of_the_front_end_alone(
    front: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    digest = front.of().load().weights
    assert front.of(digest=digest).load().weights == digest
    shutil.copytree(front.folder, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    state = load_file(path)
    language = [name for name in state if "language_model" in name or "text_model" in name]
    assert language and len(language) < len(state)
    save_file(
        {name: v for name, v in state.items() if name not in language}, path, {"format": "pt"}
    )
    other = HfVision(model=str(tmp_path / "m"), stage="post_projector", fit=front.native)
    assert other.load().weights == digest
    for name in state:
        if "projector" in name or "modality_projection" in name:
            state[name] = state[name] + 1
    save_file(state, path, {"format": "pt"})
    with pytest.raises(WeightsMismatch):
        front.of(model=str(tmp_path / "m"), digest=digest).load()


def test_counting_needs_no_weights(front: Any, tmp_path: Path) -> None:
    shutil.copytree(front.folder, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    bare = front.of(model=str(tmp_path / "m"))
    assert bare.outline().dim == 48 and bare.outline().sparse
    assert len(bare.places(50, 91)) == (9 if front.name == "llava_onevision" else 16)
    assert bare.outline().about["target"] == str(tmp_path / "m")
    with pytest.raises(WeightsMissing):
        bare.load()


def test_there_is_no_text_tower(front: Any) -> None:
    tower = front.of().load()
    assert not tower.outline.text
    with pytest.raises(ModelError, match="text tower"):
        tower.embed_text("a dog")
