"""Qwen-VL and VideoLLaMA3 front ends against the models' own paths, at random weights."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokpipe.errors import ModelError

pytest.importorskip("transformers", minversion="5.18")
pytest.importorskip("torchvision")


def _beside(name: str) -> ModuleType:
    """A module that lies beside this one; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


models = _beside("qwen_models")
NAMES, QWEN, MERGE, PATCH, HIGH = (
    models.NAMES, models.QWEN, models.MERGE, models.PATCH, models.HIGH,
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Make each kind of model once."""
    return cache(lambda name: models.make(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(params=NAMES)
def tiny(request: pytest.FixtureRequest, tiny_of: Callable[[str], Any]) -> Any:
    return tiny_of(request.param)


@pytest.fixture(params=QWEN)
def qwen(request: pytest.FixtureRequest, tiny_of: Callable[[str], Any]) -> Any:
    return tiny_of(request.param)


# Tokens are those of the model's own path.


@pytest.mark.parametrize(("height", "width"), [(48, 72), (50, 91)])
def test_tokens_are_the_models_own(tiny: Any, height: int, width: int) -> None:
    pictures = models.pictures(3, height, width)
    video = tiny.name not in QWEN
    if video:
        own = [tiny.video_pixels(picture[None]) for picture in pictures]
        patches, grid = (torch.cat(parts) for parts in zip(*own, strict=True))
    else:
        patches, grid = tiny.image_pixels(pictures)
    tower = tiny.of().load()
    prepared = tower.prepare(pictures)
    assert torch.equal(prepared.flatten(0, 3), patches)
    features = tiny.features(patches, grid, video=video)
    encoded = tower.encode(prepared)
    assert torch.equal(encoded.data.flatten(0, 1), models.flat(features))
    assert encoded.data.shape == (3, len(tiny.of().places(height, width)), 48)
    levels = getattr(features, "deepstack_features", None) or []
    assert len(encoded.deepstack) == len(levels) == (3 if tiny.name == "qwen3_vl" else 0)
    for mine, level in zip(encoded.deepstack, levels, strict=True):
        # One tensor, or one a picture, by version.
        assert torch.equal(mine.flatten(0, 1), torch.cat(list(level)).view(-1, 48))


def test_a_doubled_frame_is_an_image(qwen: Any) -> None:
    picture = models.pictures(1)
    image = qwen.features(*qwen.image_pixels(picture), video=False)
    video = qwen.features(*qwen.video_pixels(picture.repeat(2, 1, 1, 1)), video=True)
    assert torch.equal(models.flat(image), models.flat(video))
    tower = qwen.of().load()
    assert torch.equal(tower.encode(tower.prepare(picture)).data[0], models.flat(video))


def test_pictures_one_by_one_are_the_whole_video(qwen: Any) -> None:
    """One temporal patch at a time, to the bit; unrelated pictures never share one."""
    pictures = models.pictures(4, 50, 91)
    video = qwen.features(*qwen.video_pixels(pictures.repeat_interleave(2, 0)), video=True)
    tower = qwen.of().load()
    alone = [tower.encode(tower.prepare(picture[None])).data[0] for picture in pictures]
    assert torch.equal(torch.cat(alone), models.flat(video))


def test_batches_change_nothing(tiny: Any) -> None:
    tower = tiny.of().load()
    names = frozenset(tower.outline.extras)
    prepared = tower.prepare(models.pictures(3, 50, 91))
    together = tower.encode(prepared, names)
    for i in range(3):
        alone = tower.encode(prepared[i : i + 1], names)
        assert torch.equal(tower.prepare(models.pictures(3, 50, 91)[i : i + 1])[0], prepared[i])
        assert torch.equal(alone.data[0], together.data[i])
        for mine, other in zip(alone.deepstack, together.deepstack, strict=True):
            assert torch.equal(mine[0], other[i])
        for name in names:
            assert torch.equal(alone.columns[name][0], together.columns[name][i])


# Before the projector.


def test_rows_before_the_projector_give_the_tokens(tiny: Any) -> None:
    pictures = models.pictures(2, 50, 91)
    before = tiny.of(stage="pre_projector").load()
    after = tiny.of().load()
    rows = before.encode(before.prepare(pictures))
    tokens = after.encode(after.prepare(pictures))
    qwen = tiny.name in QWEN
    width = 32 * MERGE**2 if qwen else 32
    assert rows.data.shape[2] == before.outline.dim == width
    project = tiny.visual.merger if qwen else tiny.model.projector
    with torch.inference_mode():
        flat = rows.data.reshape(-1, 32)
        assert torch.equal(project(flat).view_as(tokens.data), tokens.data)
        assert len(rows.deepstack) == before.outline.deepstack == after.outline.deepstack
        for i, (level, token) in enumerate(zip(rows.deepstack, tokens.deepstack, strict=True)):
            merger = tiny.visual.deepstack_merger_list[i]
            assert torch.equal(merger(level.reshape(-1, 32)).view_as(token), token)


def test_window_order_is_undone(tiny_of: Callable[[str], Any]) -> None:
    tiny = tiny_of("qwen2_5_vl")
    picture = models.pictures(1)
    out = tiny.features(*tiny.image_pixels(picture), video=False)
    tower = tiny.of(stage="pre_projector").load()
    rows = tower.encode(tower.prepare(picture)).data[0]
    raw = out.last_hidden_state.view_as(rows)
    # The same rows, in another order: as they come they would belong to other places.
    assert not torch.equal(raw, rows)
    assert torch.equal(raw[raw[:, 0].argsort()], rows[rows[:, 0].argsort()])


@pytest.mark.parametrize("layer", [0, 2])
def test_rows_of_an_earlier_layer(tiny: Any, layer: int) -> None:
    pictures = models.pictures(2)
    settings = tiny.of(stage="pre_projector", layer=layer)
    tower = settings.load()
    prepared = tower.prepare(pictures)
    seen: list[Tensor] = []
    hook = tiny.blocks[layer].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    grid = torch.tensor([[2, 12, 18]])
    tiny.features(prepared.flatten(0, 3), grid, video=True)
    hook.remove()
    groups = seen[0].reshape(-1, MERGE**2, 32)
    encoded = tower.encode(prepared)
    rows = encoded.data.flatten(0, 1)
    if tiny.name == "qwen2_5_vl":
        from transformers.vision_utils import get_vision_window_index

        order, _ = get_vision_window_index(grid, MERGE, 16, PATCH)
        groups = groups[order.argsort()]
    if tiny.name in QWEN:
        assert torch.equal(rows, groups.flatten(1))
    else:
        torch.testing.assert_close(rows, groups.mean(1), rtol=0, atol=1e-6)
    assert tower.outline.about["layer"] == layer
    assert len(encoded.deepstack) == (min(layer, 3) if tiny.name == "qwen3_vl" else 0)


def test_layers_that_are_not_there(tiny: Any) -> None:
    with pytest.raises(ModelError, match="has hidden states 0 to"):
        tiny.of(stage="pre_projector", layer=9).outline()
    with pytest.raises(ModelError, match="takes the last hidden state"):
        tiny.of(layer=1).outline()


# Some groups alone.


def test_all_groups_kept_is_the_picture(tiny: Any) -> None:
    tower = tiny.of().load()
    prepared = tower.prepare(models.pictures(1, 50, 91))
    whole = tower.encode(prepared, frozenset(("received", "keys")))
    live = torch.ones(whole.data.shape[1], dtype=torch.bool)
    kept = tower.encode_kept(prepared, live, frozenset(("received", "keys")))
    assert torch.equal(kept.data, whole.data)
    for mine, other in zip(kept.deepstack, whole.deepstack, strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(kept.columns["received"], whole.columns["received"])
    assert torch.equal(kept.columns["keys"], whole.columns["keys"])


def test_no_group_kept_is_no_token(tiny: Any) -> None:
    tower = tiny.of().load()
    prepared = tower.prepare(models.pictures(1))
    live = torch.zeros(len(tiny.of().places(48, 72)), dtype=torch.bool)
    kept = tower.encode_kept(prepared, live)
    assert kept.data.shape == (1, 0, 48)
    assert len(kept.deepstack) == tower.outline.deepstack


@contextmanager
def _naive(tiny: Any, mask: dict[nn.Module, Tensor]) -> Iterator[list[Tensor]]:
    """The model's own tower with a mask added to every logit; catches weights [H, S, S]."""
    from transformers import AttentionInterface

    caught: list[Tensor] = []

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Any:
        logits = query @ key.transpose(2, 3) * how["scaling"] + mask[module]
        caught.append(logits.softmax(-1)[0])
        return (caught[-1] @ value).transpose(1, 2), None

    AttentionInterface.register("tests_naive", attend)
    before = tiny.visual.config._attn_implementation
    tiny.visual.set_attn_implementation("tests_naive")
    try:
        yield caught
    finally:
        tiny.visual.set_attn_implementation(before)


def _one_sequence(tiny: Any, high: int, wide: int, live: Tensor) -> tuple[dict[str, Any], Any]:
    """Arguments that make one picture one sequence in raster order of groups, and its masks."""
    groups = (high // MERGE) * (wide // MERGE)
    whole = torch.tensor([0, high * wide], dtype=torch.int32)
    more: dict[str, Any] = {"cu_seqlens": whole}
    patch = live.repeat_interleave(MERGE**2)
    seen = torch.where(patch, 0.0, -1e9).expand(high * wide, -1)
    masks = dict.fromkeys(tiny.attention(), seen)
    if tiny.name == "qwen2_5_vl":
        more |= {"window_index": torch.arange(groups), "cu_window_seqlens": whole}
        number = torch.arange(groups)
        row, col = number // (wide // MERGE), number % (wide // MERGE)
        window = (row // 2 * 100 + col // 2).repeat_interleave(MERGE**2)
        windowed = torch.where(window[:, None] == window, seen, -1e9)
        masks |= {tiny.attention()[i]: windowed for i in (0, 2)}
    return more, masks


def test_half_the_groups_against_a_mask(tiny: Any) -> None:
    """Absent patches hidden from all others in the full model: the same tokens."""
    tower = tiny.of().load()
    prepared = tower.prepare(models.pictures(1, 56, 88))
    high, wide = 14, 22
    live = torch.rand(high * wide // 4, generator=torch.Generator().manual_seed(3)) < 0.5
    live[:4] = False
    more, masks = _one_sequence(tiny, high, wide, live)
    flat, grid = prepared.flatten(0, 3), torch.tensor([[1, high, wide]])
    with _naive(tiny, masks), torch.inference_mode():
        if tiny.name in QWEN:
            out = tiny.visual(flat, grid_thw=grid, **more)
            tokens, levels = out.pooler_output, getattr(out, "deepstack_features", [])
        else:
            out = tiny.visual(flat, grid, torch.tensor([MERGE]), **more)
            tokens, levels = tiny.model.projector(out.last_hidden_state), []
    kept = tower.encode_kept(prepared, live)
    torch.testing.assert_close(kept.data[0], tokens[live], rtol=0, atol=1e-5)
    for mine, level in zip(kept.deepstack, levels, strict=True):
        torch.testing.assert_close(mine[0], level[live], rtol=0, atol=1e-5)
    # Tokens of the whole picture are others: the test would see a mask that is not there.
    assert (tower.encode(prepared).data[0, live] - tokens[live]).abs().max() > 1e-3


# Columns.


def test_columns_are_the_models_attention(tiny: Any) -> None:
    tower = tiny.of().load()
    assert tower.outline.extras == ("received", "received_middle", "keys", "queries")
    prepared = tower.prepare(models.pictures(1, 56, 88))
    high, wide = 14, 22
    more, masks = _one_sequence(tiny, high, wide, torch.ones(high * wide // 4, dtype=torch.bool))
    flat, grid = prepared.flatten(0, 3), torch.tensor([[1, high, wide]])
    deep: Any = tiny.attention()[-1]
    made: list[Tensor] = []
    parts = [deep.qkv] if tiny.name in QWEN else [deep.q_proj, deep.k_proj]
    hooks = [p.register_forward_hook(lambda _, __, out: made.append(out)) for p in parts]
    sides = {} if tiny.name in QWEN else {"merge_sizes": torch.tensor([MERGE])}
    with _naive(tiny, masks) as weights, torch.inference_mode():
        tiny.visual(flat, grid_thw=grid, **sides, **more)
    for hook in hooks:
        hook.remove()
    columns = tower.encode(prepared, frozenset(tower.outline.extras)).columns
    layers = tower.outline.about["attention_layers"]
    for name in ("received", "received_middle"):
        naive = weights[layers[name]].mean((0, 1)).view(-1, MERGE**2).mean(1)
        torch.testing.assert_close(columns[name][0], naive, rtol=0, atol=1e-6)
        assert float(columns[name].sum()) == pytest.approx(1 / MERGE**2, abs=1e-6)
    for name, keys in zip(
        ("queries", "keys"), torch.cat(made, 1).view(high * wide, -1, 32).unbind(1), strict=False
    ):
        grouped = keys.reshape(-1, MERGE**2, 2, 16).mean(1)
        torch.testing.assert_close(columns[name][0], grouped, rtol=0, atol=1e-6)


def test_windows_show_no_attention(tiny_of: Callable[[str], Any]) -> None:
    tiny = tiny_of("qwen2_5_vl")
    assert tiny.of().outline().about["attention_layers"]["received_middle"] == 1
    with pytest.raises(ModelError, match=r"block 2 .* does not see whole pictures"):
        tiny.of(attention_layer=2).outline()
