"""Queries through the text halves of CLIP and SigLIP; grids of SigLIP2 with NaFlex."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tokpipe.encode.hf_vision import HfVision
from tokpipe.errors import ModelError, WeightsMissing
from tokpipe.testing.tokenizer import word_tokenizer

tf = pytest.importorskip("transformers", minversion="5.18")
pytest.importorskip("tokenizers")
pytest.importorskip("torchvision")

TEXT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    "max_position_embeddings": 12,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()


def save(folder: Path, model: Any, processor: Any) -> HfVision:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return HfVision(model=str(folder))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> HfVision:
    config = tf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    folder = tmp_path_factory.mktemp("clip")
    return save(folder, tf.CLIPModel(config), tf.CLIPImageProcessor(**size))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> HfVision:
    config = tf.SiglipConfig(text_config=TEXT, vision_config=VISION)
    processor = tf.SiglipImageProcessor(size={"height": 32, "width": 32})
    return save(tmp_path_factory.mktemp("siglip"), tf.SiglipModel(config), processor)


@pytest.fixture(scope="module")
def naflex(tmp_path_factory: pytest.TempPathFactory) -> HfVision:
    vision = {k: v for k, v in VISION.items() if k != "image_size"} | {"num_patches": 16}
    config = tf.Siglip2Config(text_config=TEXT, vision_config=vision)
    processor = tf.Siglip2ImageProcessor(patch_size=8, max_num_patches=20)
    return save(tmp_path_factory.mktemp("naflex"), tf.Siglip2Model(config), processor)


def test_a_query_of_clip_is_the_models_text_vector(clip: HfVision) -> None:
    query = clip.load().embed_text("w1 w2 w3")
    own = tf.AutoModel.from_pretrained(clip.model).eval()
    with torch.inference_mode():
        vector = own.get_text_features(**word_tokenizer()(["w1 w2 w3"], return_tensors="pt"))
    assert torch.equal(query.pooled, vector.pooler_output)
    assert (query.space, query.text) == ("text_space", "w1 w2 w3")
    assert clip.outline().text and "text_space" in clip.outline().extras


def test_a_query_of_siglip_is_padded_as_in_training(siglip: HfVision) -> None:
    query = siglip.load().embed_text("w1 w2 w3")
    own = tf.AutoModel.from_pretrained(siglip.model).eval()
    ids = word_tokenizer()(["w1 w2 w3"], padding="max_length", max_length=12, return_tensors="pt")
    with torch.inference_mode():
        vector = own.get_text_features(input_ids=ids["input_ids"]).pooler_output
    assert torch.equal(query.pooled, vector)
    assert query.space == "frame_embedding"


def test_a_long_query_is_taken_in_parts_and_loses_nothing(clip: HfVision) -> None:
    tower = clip.load()
    words = [f"w{i}" for i in range(25)]
    query = tower.embed_text(" ".join(words))
    # Twelve positions, two of which are begin and end.
    alone = [tower.embed_text(" ".join(words[a : a + 10])).pooled for a in (0, 10, 20)]
    assert torch.equal(query.pooled, torch.cat(alone))


def test_what_has_no_text_half_says_so(tmp_path: Path) -> None:
    config = tf.Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=32, patch_size=8
    )
    processor = tf.BitImageProcessor(size={"shortest_edge": 32}, do_center_crop=False)
    settings = save(tmp_path, tf.Dinov2Model(config), processor)
    assert not settings.outline().text
    with pytest.raises(ModelError, match="no text tower"):
        settings.load().embed_text("w1")


def test_a_missing_tokenizer_is_named(clip: HfVision, tmp_path: Path) -> None:
    for file in Path(clip.model).iterdir():
        if not file.name.startswith("tokenizer"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(WeightsMissing, match="tokenizer"):
        replace(clip, model=str(tmp_path)).load().embed_text("w1")


# SigLIP2 with NaFlex.


@pytest.mark.parametrize(
    ("size", "grid"),
    [((50, 90), (3, 6)), ((90, 50), (6, 3)), ((64, 64), (4, 4)), ((8, 99), (1, 13))],
)
def test_grids_follow_the_pictures_shape(
    naflex: HfVision, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    places = naflex.places(*size)
    assert places.grid == grid
    assert places.box[0, :2].tolist() == [0, 0] and places.box[-1, 2:].tolist() == [1, 1]
    processor = tf.AutoImageProcessor.from_pretrained(naflex.model)
    made = processor(images=[torch.zeros(3, *size, dtype=torch.uint8)], return_tensors="pt")
    assert made["spatial_shapes"].tolist() == [list(grid)]


def test_tokens_without_padding_are_those_with(naflex: HfVision) -> None:
    """The processor pads to 20 patches; frames of one size need none."""
    seen = torch.randint(0, 256, (2, 50, 90, 3), dtype=torch.uint8)
    processor = tf.AutoImageProcessor.from_pretrained(naflex.model, backend="pil")
    inputs = processor(images=[p.numpy() for p in seen], return_tensors="pt")
    own = tf.AutoModel.from_pretrained(naflex.model).eval()
    with torch.inference_mode():
        padded = own.vision_model(**inputs)
    tower = naflex.load()
    made = tower.encode(tower.prepare(seen), frozenset(("frame_embedding",)))
    assert inputs["pixel_attention_mask"].sum(1).tolist() == [18, 18]
    torch.testing.assert_close(made.data, padded.last_hidden_state[:, :18], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        made.columns["frame_embedding"][:, 0], padded.pooler_output, rtol=1e-5, atol=1e-5
    )


def test_a_bound_in_pixels_is_a_number_of_patches(naflex: HfVision) -> None:
    small = replace(naflex, max_pixels=8 * 64)
    rows, columns = small.places(64, 64).grid
    assert rows * columns <= 8 < len(naflex.places(64, 64))
    assert small.outline().about["max_patches"] == 8
    tower = small.load()
    seen = tower.prepare(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    assert tower.encode(seen).data.shape == (1, rows * columns, 32)
