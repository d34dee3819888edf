"""What goes into open_clip towers: pictures, weights, names, text; and what is refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokpipe.encode._open_clip.model import choose
from tokpipe.encode.open_clip import OpenClip
from tokpipe.errors import MissingExtra, ModelError, RecipeError, WeightsMismatch, WeightsMissing

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("timm")


def _beside(name: str) -> Any:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


models = _beside("clip_models")
made, pictures = models.made, models.pictures
SIZES = [(32, 32), (90, 160), (160, 90), (31, 47), (20, 100), (7, 5), (224, 225), (720, 1280)]


# Pictures.


def transformed(operator: OpenClip, pixels: Tensor) -> Tensor:
    """What open_clip's own transform makes of the same pictures."""
    about = choose(operator.model, operator.weights).preprocess
    size = operator.outline().about["image_size"]
    transform = open_clip.image_transform(
        size[0], is_train=False, mean=about["mean"], std=about["std"],
        interpolation=about["interpolation"], resize_mode=about["resize_mode"],
    )  # fmt: skip
    return torch.stack([transform(Image.fromarray(one.numpy())) for one in pixels])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
def test_crop_is_open_clips_own_transform(
    how: str, size: tuple[int, int], made: Callable[[str], Any], tmp_path: Path
) -> None:
    operator = variant(made("vit"), tmp_path, {"interpolation": how}).operator(fit="crop")
    pixels = pictures(2, *size)
    assert torch.equal(operator.load().prepare(pixels), transformed(operator, pixels))


@pytest.mark.parametrize("size", SIZES)
def test_squash_is_the_transform_of_towers_trained_so(
    size: tuple[int, int], made: Callable[[str], Any], tmp_path: Path
) -> None:
    stated = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    operator = variant(made("vit"), tmp_path, stated).operator(fit="squash")
    pixels = pictures(2, *size)
    assert torch.equal(operator.load().prepare(pixels), transformed(operator, pixels))


def variant(held: Any, folder: Path, preprocess: dict[str, Any]) -> Any:
    """The same model with another preprocessing on record."""
    config = json.loads((held.folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = preprocess
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return models.Made(held.model, folder, held.path)


def test_pad_shows_the_whole_picture_on_the_mean_colour(made: Callable[[str], Any]) -> None:
    operator = made("vit").operator()
    tower = operator.load()
    pixels = pictures(2, 90, 180)
    x = tower.prepare(pixels)
    assert x.shape == (2, 3, 32, 32)
    # 16 rows of 32, moved to a border of patches.
    assert x[:, :, :8].abs().max() < 0.01
    assert x[:, :, 24:].abs().max() < 0.01
    expected = Image.fromarray(pixels[0].numpy()).resize((32, 16), Image.Resampling.BICUBIC)
    mean, std = (torch.tensor(operator.outline().about[k])[:, None, None] for k in ("mean", "std"))
    shown = (x[0, :, 8:24] * std + mean) * 255
    level = torch.tensor(list(expected.tobytes())).reshape(16, 32, 3).permute(2, 0, 1)
    assert (shown - level).abs().max() < 1.01
    boxes = operator.places(90, 180).box
    whole = ((boxes[:, :2] > -1e-9) & (boxes[:, 2:] < 1 + 1e-9)).all(1)
    assert whole.tolist() == [False] * 4 + [True] * 8 + [False] * 4


def test_patches_that_do_not_reach_the_edge_have_their_true_places() -> None:
    # 27 patches of 14 pixels on 384.
    operator = OpenClip(model="ViT-SO400M-14-SigLIP-384", fit="squash")
    places = operator.places(384, 384)
    assert places.grid == (27, 27)
    torch.testing.assert_close(places.box[0, 2:], torch.tensor([14 / 384] * 2).double())
    torch.testing.assert_close(places.box[-1, 2:], torch.tensor([378 / 384] * 2).double())


# Names and weights.


def test_outlines_of_known_models_need_no_weights() -> None:
    found = OpenClip().outline()
    assert (found.dim, found.sparse, found.text) == (768, True, True)
    assert found.about["grid"] == [7, 7]
    # The first tag of ViT-B-32 was trained with the quick GELU its configuration leaves out.
    assert found.about["tag"] == "openai"
    assert found.about["quick_gelu"]
    assert not OpenClip(weights="laion2b_s34b_b79k").outline().about["quick_gelu"]
    siglip = OpenClip(model="ViT-B-16-SigLIP", stage="post_projector").outline()
    assert siglip.dim == 768
    assert siglip.about["mean"] == [0.5] * 3
    assert siglip.about["resize_mode"] == "squash"
    assert siglip.about["reader"] == "pooling-head"
    assert OpenClip(model="RN50").outline().about["grid"] == [7, 7]


def test_a_cache_never_stores_a_folder(made: Callable[[str], Any]) -> None:
    held = made("vit")
    text = json.dumps(dict(held.operator().outline().about))
    assert str(held.folder.parent) not in text
    assert held.folder.name in text


def test_random_weights_are_the_same_each_time(made: Callable[[str], Any]) -> None:
    operator = made("vit").operator(weights="random")
    torch.manual_seed(5)
    first = operator.load()
    state = torch.random.get_rng_state()
    second = operator.load()
    assert first.weights == second.weights
    assert first.weights != made("vit").operator().load().weights
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_folders_own_weights_are_found(made: Callable[[str], Any]) -> None:
    held = made("vit")
    assert held.operator(weights="").load().weights == held.operator().load().weights


def test_torch_files_are_read_without_unpickling(
    made: Callable[[str], Any], tmp_path: Path
) -> None:
    held = made("coca")
    state = {f"module.{k}": v for k, v in load_file(held.path).items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "ours.pt")
    tower = held.operator(weights=str(tmp_path / "ours.pt")).load()
    assert tower.weights == held.operator().load().weights


def test_half_precision_files_are_loaded_whole(made: Callable[[str], Any], tmp_path: Path) -> None:
    held = made("vit")
    state = {k: v.half() for k, v in load_file(held.path).items()}
    save_file(state, tmp_path / "half.safetensors")
    tower = held.operator(weights=str(tmp_path / "half.safetensors")).load()
    x = tower.prepare(pictures(1))
    exact = held.operator().load().encode(x).data
    torch.testing.assert_close(tower.encode(x).data, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.proj": torch.zeros(64, 7)}, r"`visual.proj` is \[64, 7\], expected \[64, 24\]"),
        ({"visual.proj": None}, "it holds no `visual.proj`"),
        ({"visual.extra": torch.zeros(2)}, "it holds `visual.extra`, which the model has not"),
    ],
)
def test_another_models_weights_are_named(
    change: dict[str, Any], message: str, made: Callable[[str], Any], tmp_path: Path
) -> None:
    held = made("vit")
    state = {k: v for k, v in {**load_file(held.path), **change}.items() if v is not None}
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(WeightsMismatch, match=message) as caught:
        held.operator(weights=str(tmp_path / "other.safetensors")).load()
    assert "`other.safetensors`" in str(caught.value)


def test_whole_numbers_are_no_weights(made: Callable[[str], Any], tmp_path: Path) -> None:
    held, name = made("vit"), "visual.transformer.resblocks.0.mlp.c_fc.weight"
    state = load_file(held.path)
    save_file(state | {name: state[name].sign().to(torch.int8)}, tmp_path / "whole.safetensors")
    with pytest.raises(WeightsMismatch, match=f"`{name}` holds whole numbers"):
        held.operator(weights=str(tmp_path / "whole.safetensors")).load()


def test_what_is_not_there_is_named(made: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="knows no model `ViT-B-33`") as wrong:
        OpenClip(model="ViT-B-33").outline()
    assert "ViT-B-32" in (wrong.value.hint or "")
    with pytest.raises(WeightsMissing, match="no pretrained weights `webli`") as tag:
        OpenClip(weights="webli").outline()
    assert "openai" in (tag.value.hint or "")
    with pytest.raises(WeightsMissing, match="no weights at"):
        made("vit").operator(weights=str(tmp_path / "none.safetensors")).load()
    with pytest.raises(WeightsMissing, match=r"open_clip_config\.json"):
        OpenClip(model=f"local-dir:{tmp_path}").outline()
    with pytest.raises(WeightsMissing, match="no pretrained weights that open_clip could fetch"):
        OpenClip(model="ViT-S-32-alt").load()
    with pytest.raises(RecipeError, match=r"layer=4, but the tower .* has 4 blocks"):
        made("vit").operator(layer=4).outline()
    with pytest.raises(RecipeError, match="has 1 block"):
        OpenClip(model="RN50", layer=-2).outline()


def test_without_a_network_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsMissing, match="cannot be fetched") as caught:
        OpenClip(weights="laion2b_s34b_b79k").load()
    assert "--weights PATH" in (caught.value.hint or "")
    with pytest.raises(WeightsMissing, match=r"open_clip_config\.json"):
        OpenClip(model="hf-hub:nobody/nothing").outline()


def test_without_open_clip_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtra) as caught:
        OpenClip().outline()
    assert "tokpipe[encoders]" in (caught.value.hint or "")


# Text.


@pytest.mark.parametrize("kind", ["vit", "coca", "timm"])
def test_text_is_the_models_own(kind: str, made: Callable[[str], Any]) -> None:
    held = made(kind)
    text = "a red apple on the table"
    query = held.operator().load().embed_text(text)
    ids = open_clip.get_tokenizer(f"local-dir:{held.folder}")([text])
    model = held.model
    with torch.inference_mode():
        pooled = model.encode_text(ids, normalize=True)
        part = getattr(model, "text", model)
        if kind == "vit":
            x = model.token_embedding(ids) + model.positional_embedding
            x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
        else:
            x = part.forward_intermediates(
                ids, indices=1, normalize_intermediates=True, output_fmt="NLC"
            )["text_intermediates"][0]
        pieces = (x @ part.text_projection)[0, 1:7]
    assert (query.text, query.space) == (text, "text_space")
    torch.testing.assert_close(query.pooled, pooled, rtol=0, atol=1e-6)
    assert query.tokens is not None
    torch.testing.assert_close(query.tokens, pieces, rtol=0, atol=1e-6)


def test_long_text_is_cut_into_segments_and_nothing_is_lost(made: Callable[[str], Any]) -> None:
    tower = made("vit").operator().load()
    words = [*"abcdefghijklm"]
    query = tower.embed_text(" ".join(words))
    # Ten pieces a segment beside start and end.
    assert query.pooled.shape == (2, 24)
    assert query.tokens is not None
    assert query.tokens.shape == (13, 24)
    torch.testing.assert_close(query.pooled[0], tower.embed_text(" ".join(words[:10])).pooled[0])
    torch.testing.assert_close(query.pooled[1], tower.embed_text(" ".join(words[10:])).pooled[0])


def test_text_through_a_tokenizer_of_the_hub(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds

    special = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    words = {"[PAD]": 0, "[UNK]": 1, **{f"w{i}": i + 2 for i in range(30)}}
    fast = Tokenizer(kinds.WordLevel(words, special["unk_token"]))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=fast, **special)
    wrapped.save_pretrained(tmp_path)
    config = {
        "embed_dim": 24, "vision_cfg": models.VIT, "custom_text": True,
        "text_cfg": {**models.TEXT, "hf_tokenizer_name": "itself", "vocab_size": 32,
                     "pool_type": "last"},
    }  # fmt: skip
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    tower = OpenClip(model=f"local-dir:{tmp_path}", weights="random").load()
    said = [f"w{i}" for i in range(30)]
    query = tower.embed_text(" ".join(said))
    # Twelve words a segment; where special pieces lie is the tokenizer's secret.
    assert query.pooled.shape == (3, 24)
    assert query.tokens is None
    torch.testing.assert_close(query.pooled[1], tower.embed_text(" ".join(said[12:24])).pooled[0])


def test_no_text_is_still_a_vector(made: Callable[[str], Any]) -> None:
    query = made("vit").operator().load().embed_text("")
    assert query.pooled.shape == (1, 24)
    assert query.tokens is None
