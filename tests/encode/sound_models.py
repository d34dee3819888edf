"""Tiny sound models with random weights, and what each makes of a sound by its own path."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

RATE = 16_000
_TOWER = {
    "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
    "num_mel_bins": 80,
}  # fmt: skip
_TEXT = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip
_VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
           "out_hidden_size": 48}  # fmt: skip
_ROPE = {"rope_type": "default", "mrope_section": [4, 4, 4], "rope_theta": 1e4}
#: Places of a window of the Whisper kinds: 2 s.
PLACES = 100
AUDIO_ID = 9


def _whisper(t: Any) -> Any:
    config = t.WhisperConfig(
        **_TOWER, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32,
        max_source_positions=PLACES, vocab_size=60, pad_token_id=1, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    return t.WhisperForConditionalGeneration(config)


def _qwen2_audio(t: Any) -> Any:
    audio = {**_TOWER, "model_type": "qwen2_audio_encoder", "max_source_positions": PLACES}
    config = t.Qwen2AudioConfig(
        audio_config=audio, text_config={**_TEXT, "model_type": "qwen2"}, audio_token_id=AUDIO_ID
    )
    return t.Qwen2AudioForConditionalGeneration(config)


def _voxtral(t: Any) -> Any:
    audio = {
        "model_type": "voxtral_encoder", "hidden_size": 32, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_mel_bins": 80,
        "max_source_positions": PLACES,
    }  # fmt: skip
    config = t.VoxtralConfig(
        audio_config=audio, text_config={**_TEXT, "model_type": "llama"}, audio_token_id=AUDIO_ID
    )
    return t.VoxtralForConditionalGeneration(config)


def _omni25(t: Any) -> Any:
    config = t.Qwen2_5OmniThinkerConfig(
        audio_config={**_TOWER, "output_dim": 48, "n_window": 100},
        vision_config={**_VISION, "patch_size": 14},
        text_config={**_TEXT, "rope_parameters": _ROPE},
    )
    return t.Qwen2_5OmniThinkerForConditionalGeneration(config)


def _omni3(t: Any) -> Any:
    from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as kinds

    config = kinds.Qwen3OmniMoeThinkerConfig(
        audio_config={**_TOWER, "output_dim": 48, "n_window": 50, "n_window_infer": 800,
                      "downsample_hidden_size": 16},
        vision_config={**_VISION, "patch_size": 16, "deepstack_visual_indexes": [0],
                       "num_position_embeddings": 16},
        text_config={**_TEXT, "num_experts": 2, "num_experts_per_tok": 1, "head_dim": 24,
                     "moe_intermediate_size": 16, "rope_parameters": _ROPE},
    )  # fmt: skip
    return t.Qwen3OmniMoeThinkerForConditionalGeneration(config)


def _ast(t: Any) -> Any:
    config = t.ASTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_length=104, num_mel_bins=64,
    )  # fmt: skip
    return t.ASTForAudioClassification(config)


MAKERS: dict[str, Callable[[Any], Any]] = {
    "whisper": _whisper, "qwen2_audio": _qwen2_audio, "voxtral": _voxtral,
    "qwen2_5_omni": _omni25, "qwen3_omni": _omni3, "ast": _ast,
}  # fmt: skip


def make(kind: str, folder: Path) -> Any:
    """A model of a kind, saved into ``folder``; biases and norms are random too."""
    import transformers

    torch.manual_seed(1)
    model = MAKERS[kind](transformers).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "audio" in name or "encoder" in name or "projector" in name or kind == "ast":
                value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(folder)
    return model


def prepared(kind: str, wave: Tensor) -> dict[str, Tensor]:
    """What the model's own extractor makes of a clip, as its processor asks for it."""
    import transformers

    t: Any = transformers
    if kind == "ast":
        made = t.ASTFeatureExtractor(num_mel_bins=64, max_length=104)
        return dict(made(wave.numpy(), sampling_rate=RATE, return_tensors="pt"))
    seconds = 30 if "omni" in kind else 2
    extractor = t.WhisperFeatureExtractor(feature_size=80, chunk_length=seconds)
    how: dict[str, Any] = {"padding": "max_length"}
    if kind == "qwen3_omni":
        how = {"padding": True, "truncation": False}
    return dict(
        extractor(
            np.asarray(wave), sampling_rate=RATE, return_tensors="pt", return_attention_mask=True,
            **how,
        )
    )  # fmt: skip


def owner_of(model: Any) -> Any:
    """The part of a multimodal model that holds the audio tower; it moved between versions."""
    return model if hasattr(model, "audio_tower") else model.model


@torch.no_grad()
def own_tokens(kind: str, model: Any, wave: Tensor) -> Tensor:
    """Tokens [n, D] of a clip by the model's own path, projected where it projects."""
    fed = prepared(kind, wave)
    if kind == "ast":
        hidden: Tensor = model.audio_spectrogram_transformer(**fed).last_hidden_state
        return hidden[0]
    features, mask = fed["input_features"], fed["attention_mask"]
    if kind == "whisper":
        made: Tensor = model.model.encoder(features).last_hidden_state[0]
    elif kind == "voxtral":
        made = model.get_audio_features(features).pooler_output
    elif kind == "qwen2_audio":
        made = _through_the_model(model, features, mask)
    else:
        owner = owner_of(model)
        made = owner.get_audio_features(features, feature_attention_mask=mask).last_hidden_state
    return made


def _through_the_model(model: Any, features: Tensor, mask: Tensor) -> Tensor:
    """What Qwen2-Audio's language model is given: there is no method that gives only that."""
    caught: list[Tensor] = []
    keep = partial(_keep, caught)
    owner = owner_of(model)
    handle = owner.multi_modal_projector.register_forward_hook(keep)
    _, count = owner.audio_tower._get_feat_extract_output_lengths(mask.sum(-1))
    try:
        model(
            input_ids=torch.full((1, int(count)), AUDIO_ID), input_features=features,
            feature_attention_mask=mask,
        )  # fmt: skip
    finally:
        handle.remove()
    return caught[0][0, : int(count)]


def _keep(caught: list[Tensor], _module: Any, _args: Any, out: Tensor) -> None:
    caught.append(out)


def sound(samples: int, seed: int = 0) -> Tensor:
    """Float32 [samples]: noise that swells and ebbs, and a tone."""
    made = torch.Generator().manual_seed(seed)
    at = torch.arange(samples) / RATE
    noise = torch.randn(samples, generator=made) * (0.2 + torch.sin(at * 5) * 0.15)
    return noise + 0.3 * torch.sin(2 * torch.pi * (300 + 200 * seed) * at)
