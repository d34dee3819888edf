"""Pictures in crops, as multimodal models take images: tokens are the model's own, in its order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tokpipe.errors import ModelError
from tokpipe.spec import KIND_KEPT, KIND_NEWLINE

PACKED = ("llava_next", "llava_onevision")
NAMES = (*PACKED, "internvl", "smolvlm", "idefics3")
#: Wide, tall, nearly square, larger than all crops, small.
SIZES = ((50, 91), (91, 40), (70, 71), (300, 210), (20, 33))


def pictures(count: int, height: int, width: int) -> Tensor:
    made = torch.Generator().manual_seed(5)
    small = torch.rand(count, 3, 7, 9, generator=made)
    large = torch.nn.functional.interpolate(small, (height, width), mode="bicubic")
    return large.mul(255).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


@pytest.fixture(params=NAMES)
def front(request: pytest.FixtureRequest, front_of: Callable[[str], Any]) -> Any:
    return front_of(request.param)


def own_tiles(front: Any, pixels: Tensor) -> Tensor:
    """Tiles [T, K, 3, S, S] by the model's own image processor on Pillow."""
    frames = list(pixels.permute(0, 3, 1, 2))
    if front.name in ("smolvlm", "idefics3"):
        frames = [[frame] for frame in frames]
    how: dict[str, Any] = {"crop_to_patches": True} if front.name == "internvl" else {}
    made = torch.as_tensor(front.image(frames, return_tensors="pt", **how)["pixel_values"])
    return made if made.ndim == 5 else made.reshape(len(pixels), -1, *made.shape[1:])


def own_tokens(front: Any, tiles: Tensor, size: tuple[int, int]) -> Tensor:
    """Rows [T, n, D] of tiles by the model's own path."""
    if front.name in PACKED:
        sizes = torch.tensor([size] * len(tiles))
        return torch.stack(list(front.features(tiles, image_sizes=sizes)))
    if front.name == "internvl":
        rows = torch.as_tensor(front.features(tiles.flatten(0, 1)))
        return rows.reshape(len(tiles), -1, rows.shape[-1])
    return torch.stack(list(front.features(tiles)))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles_and_tokens_are_the_models_own(front: Any, size: tuple[int, int]) -> None:
    tower = front.of(tiles=True).load()
    pixels = pictures(2, *size)
    prepared = tower.prepare(pixels)
    tiles = own_tiles(front, pixels)
    side = tiles.shape[-1]
    assert torch.equal(prepared[..., :side, :], tiles)
    found = tower.encode(prepared).data
    assert torch.equal(found, own_tokens(front, tiles, size))
    assert found.shape[1] == len(front.of(tiles=True).places(*size))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_boxes_of_all_tiles_show_the_same_picture(front: Any, size: tuple[int, int]) -> None:
    places = front.of(tiles=True).places(*size)
    height, width = places.box[:, 2] - places.box[:, 0], places.box[:, 3] - places.box[:, 1]
    assert (height > 0).all() and (width > 0).all()
    assert (places.box >= -0.5).all() and (places.box <= 1.5).all()
    cells = places.kind == KIND_KEPT
    for tiled in {bool(tile) for tile in places.tile}:
        some = cells & ((places.tile > 0) == tiled)
        # Boxes cover the picture once: all but what no whole patch is left for.
        seen = (places.box[some, 2:].clamp(0, 1) - places.box[some, :2].clamp(0, 1)).prod(1).sum()
        assert 0.75 < seen <= 1 + 1e-9
    whole = places.tile == 0
    assert int(whole.sum()) == places.grid[0] * places.grid[1]


@pytest.mark.parametrize("how", ["tiles", "pad", "squash", "crop"])
@pytest.mark.parametrize("size", SIZES[:4], ids=str)
def test_boxes_say_which_pixels_a_token_sees(front: Any, size: tuple[int, int], how: str) -> None:
    # Red grows from left to right and green from top to bottom: a patch's mean tells its place.
    fit = {"tiles": True} if how == "tiles" else {"fit": how}
    encoder = front.of(stage="pre_projector", **fit)
    tower, places = encoder.load(), encoder.places(*size)
    y, x = (torch.linspace(20, 235, length) for length in size)
    ramps = torch.stack([x.expand(size), y[:, None].expand(size), torch.zeros(size)], -1)
    prepared = tower.prepare(ramps.round().byte()[None])[0]
    about = tower.outline.about
    step, side = int(about["patch"]) * int(about["merge"]), int(about["image_size"])
    cells = prepared[:, :2, :side].unfold(2, step, step).unfold(3, step, step).mean((-1, -2))
    std, mean = (torch.tensor(about[name][:2])[:, None, None] for name in ("std", "mean"))
    seen = ((cells * std + mean) * 255).permute(0, 2, 3, 1).flatten(0, 2)
    take = tower.layout(*size).take
    seen = seen if take is None else seen[take]
    assert len(seen) == len(places)
    centre = (places.box[:, 2:] + places.box[:, :2]).flip(1) / 2
    inside = ((places.box[:, :2] >= 0) & (places.box[:, 2:] <= 1)).all(1)
    expected = (centre * torch.tensor(size).flip(0) - 0.5) / (torch.tensor(size).flip(0) - 1)
    apart = (seen - (20 + 215 * expected))[inside].abs()
    assert int(inside.sum()) > 3 and apart.max() < 2.5


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_caches_order_is_the_models(
    name: str, size: tuple[int, int], front_of: Callable[[str], Any]
) -> None:
    places = front_of(name).of(tiles=True).places(*size)
    key = places.tile.long() * 10**6 + places.cell[:, 0] * 1000 + places.cell[:, 1]
    assert (key.diff() > 0).all()
    newline = places.kind == KIND_NEWLINE
    lines = places.cell[places.tile == 1, 0].unique()
    assert int(newline.sum()) == len(lines)
    row = (places.tile == 1) & ~newline & (places.cell[:, 0] == 1)
    end = newline & (places.cell[:, 0] == 1)
    assert places.box[end][0].tolist() == [
        float(places.box[row, 0].min()), float(places.box[row, 1].min()),
        float(places.box[row, 2].max()), float(places.box[row, 3].max()),
    ]  # fmt: skip


@pytest.mark.parametrize("stage", ["post_projector", "pre_projector"])
@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("size", [(21, 421), (8, 157), (12, 200), (421, 21), (200, 12)], ids=str)
def test_very_long_pictures_may_leave_no_crops(
    name: str, size: tuple[int, int], stage: str, front_of: Callable[[str], Any]
) -> None:
    """Lines of crops are all padding there, or nothing but newlines; the model's path has that."""
    front = front_of(name)
    operator = front.of(tiles=True, stage=stage)
    tower, pixels, places = operator.load(), pictures(1, *size), operator.places(*size)
    prepared = tower.prepare(pixels)
    found = tower.encode(prepared, frozenset(tower.outline.extras))
    assert found.data.shape[1] == len(places)
    assert all(column.shape[1] == len(places) for column in found.columns.values())
    assert (places.box[:, 2:] > places.box[:, :2]).all()
    if stage == "post_projector":
        tiles = own_tiles(front, pixels)
        assert torch.equal(found.data, own_tokens(front, tiles, size))
    if name == "llava_next":
        assert not ((places.tile == 1) & (places.kind == KIND_KEPT)).any()


@pytest.mark.parametrize("name", PACKED)
def test_newlines_come_after_the_projector(name: str, front_of: Callable[[str], Any]) -> None:
    front = front_of(name)
    post, pre = (front.of(tiles=True, stage=f"{s}_projector").load() for s in ("post", "pre"))
    pixels = pictures(1, 91, 40)
    tokens, rows = (tower.encode(tower.prepare(pixels)).data for tower in (post, pre))
    places = front.of(tiles=True).places(91, 40)
    newline = places.kind == KIND_NEWLINE
    assert torch.equal(tokens[0, newline], front.model.image_newline.expand(int(newline.sum()), -1))
    before = front.of(tiles=True, stage="pre_projector").places(91, 40)
    assert len(before) == rows.shape[1] and not (before.kind == KIND_NEWLINE).any()
    if name == "llava_next":
        assert torch.equal(before.box, places.box[~newline])
        with torch.inference_mode():
            made = front.model.multi_modal_projector(rows)
        torch.testing.assert_close(made, tokens[:, ~newline], atol=1e-6, rtol=1e-5)


def test_a_large_grid_of_crops_is_shrunk(front_of: Callable[[str], Any]) -> None:
    # 3 x 3 crops of 5 x 5 patches may have the tokens of 4 tiles.
    front = front_of("llava_onevision")
    places = front.of(tiles=True).places(300, 310)
    crops = places.cell[(places.tile == 1) & (places.kind == KIND_KEPT)]
    assert crops.amax(0).tolist() == [9, 9]
    before = front.of(tiles=True, stage="pre_projector").places(300, 310)
    assert before.cell[before.tile == 1].amax(0).tolist() == [14, 14]


def test_columns_lie_where_their_tokens_do(front: Any) -> None:
    tower = front.of(tiles=True).load()
    prepared = tower.prepare(pictures(2, 50, 91))
    found = tower.encode(prepared, frozenset(tower.outline.extras))
    assert torch.equal(found.data, tower.encode(prepared).data)
    places = front.of(tiles=True).places(50, 91)
    for column in found.columns.values():
        assert column.shape[:2] == found.data.shape[:2]
        assert not column[:, places.kind == KIND_NEWLINE].any()
        assert column[:, places.kind == KIND_KEPT].any()


@pytest.mark.parametrize("name", ["llava_next", "internvl"])
def test_the_whole_picture_has_the_columns_of_a_frame(
    name: str, front_of: Callable[[str], Any]
) -> None:
    front, pixels = front_of(name), pictures(2, 50, 91)
    tiled, frame = front.of(tiles=True).load(), front.of(fit="squash").load()
    columns = frozenset(frame.outline.extras)
    found = tiled.encode(tiled.prepare(pixels), columns).columns
    inside = front.of(tiles=True).places(50, 91).tile == 0
    alone = frame.encode(frame.prepare(pixels), columns).columns
    for column in columns:
        torch.testing.assert_close(
            found[column][:, inside], alone[column], atol=1e-5, rtol=1e-4
        )  # fmt: skip


def test_half_precision_keeps_the_size(front: Any) -> None:
    # 300 is no number bfloat16 has: the size must travel in digits.
    exact, half = front.of(tiles=True).load(), front.of(tiles=True).load(dtype="bfloat16")
    pixels = pictures(1, 299, 515)
    found = half.encode(half.prepare(pixels)).data
    expected = exact.encode(exact.prepare(pixels)).data
    assert found.dtype == torch.bfloat16 and found.shape == expected.shape
    assert torch.cosine_similarity(found.float(), expected, dim=-1).min() > 0.98


def test_a_picture_does_not_see_its_batch(front: Any) -> None:
    tower = front.of(tiles=True).load()
    prepared = tower.prepare(pictures(3, 50, 91))
    together = tower.encode(prepared).data
    for i in range(3):
        alone = tower.encode(prepared[i : i + 1]).data[0]
        assert torch.equal(alone, together[i])


def test_crops_are_not_encoded_in_part(front: Any) -> None:
    tower = front.of(tiles=True).load()
    assert not tower.outline.sparse
    prepared = tower.prepare(pictures(1, 50, 91))
    with pytest.raises(ModelError, match="in part"):
        tower.encode_kept(prepared, torch.ones(16, dtype=torch.bool))


def test_a_model_without_crops_says_so(front_of: Callable[[str], Any]) -> None:
    with pytest.raises(ModelError, match="no crops") as caught:
        front_of("llava").of(tiles=True).places(50, 91)
    assert "llava_next" in str(caught.value.hint)
