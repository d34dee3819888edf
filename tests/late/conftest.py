"""Tiny towers with random weights, saved as any model is, and a short film of our own."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tokpipe.testing.media import AudioTrack, VideoTrack, write_media
from tokpipe.testing.tokenizer import word_tokenizer

tf = pytest.importorskip("transformers", minversion="5.18")
pytest.importorskip("torchvision")
pytest.importorskip("tokenizers")

_TEXT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    "max_position_embeddings": 12,
}  # fmt: skip
_VISION = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 64, "patch_size": 8,
}  # fmt: skip


def _stirred(model: Any) -> Any:
    """Weights large enough that tokens differ."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of 8 x 8 patches of 8 px, width 32, with its text tower."""
    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("clip")
    config = tf.CLIPConfig(text_config=_TEXT, vision_config=_VISION, projection_dim=16)
    _stirred(tf.CLIPModel(config)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    tf.CLIPImageProcessor(**size).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Whisper with windows of 2 s, width 32."""
    folder = tmp_path_factory.mktemp("whisper")
    config = tf.WhisperConfig(
        d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64,
        num_mel_bins=80, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32,
        max_source_positions=100, vocab_size=60, pad_token_id=1, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    _stirred(tf.WhisperForConditionalGeneration(config)).save_pretrained(folder)
    tf.WhisperFeatureExtractor(feature_size=80, chunk_length=2).save_pretrained(folder)
    return folder


def draw(_number: int, time: float) -> NDArray[np.uint8]:
    """A new scene each 3 s; in it a block moves, the rest stays."""
    rng = np.random.default_rng(int(time / 3))
    picture = np.kron(rng.integers(30, 220, (4, 6, 3)), np.ones((30, 30, 1))).astype(np.uint8)
    left = int(time * 30) % 150
    picture[60:90, left : left + 30] = (250, 240, 10)
    return picture


def _sound() -> NDArray[np.float32]:
    """12 s, audible from 2 s to 5 s and from 8 s on, silent otherwise."""
    time = np.arange(12 * 16000) / 16000
    on = ((time > 2) & (time < 5)) | (time > 8)
    return (0.4 * np.sin(2 * np.pi * 300 * time) * on).astype(np.float32)


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 s of 180 x 120 at 8 fps with sound."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    video = VideoTrack(size=(180, 120), fps=Fraction(8), frames=96, draw=draw)
    write_media(path, video, AudioTrack(samples=_sound()))
    return path
