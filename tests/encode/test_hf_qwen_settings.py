"""Qwen-VL and VideoLLaMA3: what configuration alone says, bounds, loading, precision."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from tokpipe.encode.hf_vision import HfVision
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


# Configuration alone.


@pytest.mark.parametrize(
    ("height", "width"), [(8, 8), (47, 33), (128, 256), (129, 255), (1080, 1920), (6, 300), (3, 5)]
)
def test_places_follow_the_processor(tiny: Any, height: int, width: int) -> None:
    pixels = models.pictures(1, height, width)
    _, grid = tiny.image_pixels(pixels) if tiny.name in QWEN else tiny.video_pixels(pixels)
    places = tiny.of().places(height, width)
    rows, cols = (grid[0, 1:] // MERGE).tolist()
    assert places.grid == (rows, cols)
    assert places.cell.tolist() == [[r, c] for r in range(rows) for c in range(cols)]
    torch.testing.assert_close(
        places.box[-1], torch.tensor([1 - 1 / rows, 1 - 1 / cols, 1, 1], dtype=torch.float64)
    )
    if height % 8 == width % 8 == 0 and height * width <= HIGH:
        assert places.grid == (height // 8, width // 8)


def test_videollama3_takes_images_patch_by_patch(tiny_of: Callable[[str], Any]) -> None:
    tiny, pictures = tiny_of("video_llama_3"), models.pictures(2, 50, 91)
    settings = tiny.of(tiles=True)
    tower = settings.load()
    patches, grid = tiny.image_pixels(pictures)
    prepared = tower.prepare(pictures)
    assert torch.equal(prepared.flatten(0, 3), patches)
    with torch.inference_mode():
        own = tiny.model.get_image_features(patches, grid, torch.ones(2, dtype=torch.int64))
    encoded = tower.encode(prepared)
    assert torch.equal(encoded.data.flatten(0, 1), models.flat(own))
    assert encoded.data.shape[1] == len(settings.places(50, 91)) == 12 * 23
    assert tower.outline.about["merge"] == 1


def test_bounds_of_ones_own(tiny: Any) -> None:
    assert tiny.of(min_pixels=64 * 64).places(16, 16).grid == (8, 8)
    assert tiny.of(max_pixels=32 * 32).places(64, 64).grid == (4, 4)
    settings = tiny.of(max_pixels=32 * 32)
    assert settings.load().prepare(models.pictures(1, 64, 64)).shape[1:3] == (4, 4)
    with pytest.raises(ModelError, match="no picture has at least"):
        tiny.of(min_pixels=500, max_pixels=400).outline()


def test_a_picture_too_long(tiny: Any) -> None:
    with pytest.raises(ModelError, match="2 x 500 does not fit"):
        tiny.of().places(2, 500)
    with pytest.raises(ModelError, match="2 x 500 does not fit"):
        tiny.of().load().prepare(models.pictures(1, 2, 500))


def test_outline_and_places_need_no_weights(tiny: Any, tmp_path: Path) -> None:
    for file in Path(tiny.path).glob("*.json"):
        shutil.copy(file, tmp_path)
    for stage, dim in (("post_projector", 48), ("pre_projector", 128)):
        settings = HfVision(model=str(tmp_path), stage=stage)  # type: ignore[arg-type]
        outline = settings.outline()
        assert outline.sparse and not outline.text
        assert outline.dim == (32 if (tiny.name, dim) == ("video_llama_3", 128) else dim)
        assert len(settings.places(48, 72)) == 6 * 9
    about = outline.about
    assert (about["patch"], about["merge"]) == (PATCH, MERGE)
    assert about["temporal_patch"] == (2 if tiny.name in QWEN else 1)
    assert about["window"] == (16 if tiny.name == "qwen2_5_vl" else 0)
    json.dumps(dict(about))


def test_a_processor_of_another_model(tiny: Any, tmp_path: Path) -> None:
    for file in Path(tiny.path).glob("*.json"):
        text = file.read_text()
        if "processor" in file.name:
            text = json.dumps({**json.loads(text), "patch_size": 7})
        (tmp_path / file.name).write_text(text)
    with pytest.raises(ModelError, match=r"processor .* cuts patches"):
        HfVision(model=str(tmp_path)).outline()


# Loading.


def test_only_the_front_end_is_loaded(tiny: Any) -> None:
    tower: Any = tiny.of().load()
    own = sum(p.numel() for p in tiny.visual.parameters())
    assert sum(p.numel() for p in tower.visual.parameters()) == own
    assert not any(p.requires_grad for p in tower.visual.parameters())
    assert tower.weights.startswith("sha256:")
    assert tower.weights == tiny.of(stage="pre_projector").load().weights
    with pytest.raises(ModelError, match="no text tower"):
        tower.embed_text("a slide")
    with pytest.raises(ModelError, match="gives no attention"):
        tower.encode(tower.prepare(models.pictures(1)), frozenset(("attention",)))


@pytest.mark.parametrize("only", [False, True], ids=["own", "front-end-alone"])
def test_names_of_tensors_in_other_checkpoints(tiny: Any, tmp_path: Path, only: bool) -> None:
    """The model's own names, as trainers save them, and its parts alone."""
    from safetensors.torch import save_file

    for file in Path(tiny.path).glob("*.json"):
        shutil.copy(file, tmp_path)
    state = {f"model.{k}": v.contiguous() for k, v in tiny.model.state_dict().items()}
    if only:
        # Nothing but the front end, named from it on.
        parts = ("model.visual.", "model.vision_model.", "model.projector.")
        state = {k.removeprefix("model."): v for k, v in state.items() if k.startswith(parts)}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = HfVision(model=str(tmp_path)).load()
    assert found.weights == tiny.of().load().weights


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision(tiny: Any, dtype: str) -> None:
    pictures = models.pictures(2, 50, 91)
    full: Any = tiny.of().load()
    tower: Any = tiny.of().load(dtype=dtype)
    prepared = tower.prepare(pictures)
    assert prepared.dtype == tower.dtype == getattr(torch, dtype)
    # Angles are computed from a table that must not be rounded.
    assert tower.visual.rotary_pos_emb.inv_freq.dtype == torch.float32
    made = tower.encode(prepared, frozenset(("received",)))
    exact = full.encode(full.prepare(pictures))
    assert made.data.dtype == tower.dtype
    near = nn.functional.cosine_similarity(made.data.float(), exact.data, dim=-1)
    assert float(near.min()) > 0.995
    live = torch.arange(made.data.shape[1]) % 2 == 0
    assert tower.encode_kept(prepared[:1], live).data.shape == (1, int(live.sum()), 48)
    assert bool(made.columns["received"].isfinite().all())


@pytest.mark.slow
def test_compiled(tiny_of: Callable[[str], Any]) -> None:
    tiny = tiny_of("qwen2_5_vl")
    plain, tower = tiny.of().load(), tiny.of().load(compile=True)
    prepared = plain.prepare(models.pictures(3, 50, 91))
    whole = plain.encode(prepared).data
    for count in (3, 2):
        made = tower.encode(prepared[:count]).data
        torch.testing.assert_close(made, whole[:count], rtol=0, atol=1e-5)
    live = torch.arange(whole.shape[1]) % 3 == 0
    torch.testing.assert_close(
        tower.encode_kept(prepared[:1], live).data, plain.encode_kept(prepared[:1], live).data,
        rtol=0, atol=1e-5,
    )  # fmt: skip
