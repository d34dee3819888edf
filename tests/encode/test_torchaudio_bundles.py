"""Speech encoders of torchaudio: their own hidden states, chunk by chunk."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

pytest.importorskip("torchaudio")

from tokpipe.encode.torchaudio_bundles import TorchaudioBundles
from tokpipe.errors import ModelError, WeightsMismatch, WeightsMissing

KINDS = ("Wav2Vec2", "WavLM")
#: The same strides as the real ones: 320 samples a token, 400 for the first.
CONVS = [[32, 10, 5], *[[32, 3, 2]] * 4, *[[32, 2, 2]] * 2]


def params(kind: str, mode: str = "group_norm", heads: int | None = 5) -> dict[str, Any]:
    """Arguments of torchaudio's factory for a tiny model."""
    made: dict[str, Any] = {
        "extractor_mode": mode, "extractor_conv_layer_config": CONVS,
        "extractor_conv_bias": mode == "layer_norm", "encoder_embed_dim": 32,
        "encoder_projection_dropout": 0.1, "encoder_pos_conv_kernel": 16,
        "encoder_pos_conv_groups": 2, "encoder_num_layers": 3, "encoder_num_heads": 4,
        "encoder_attention_dropout": 0.1, "encoder_ff_interm_features": 64,
        "encoder_ff_interm_dropout": 0.0, "encoder_dropout": 0.1,
        "encoder_layer_norm_first": mode == "layer_norm", "encoder_layer_drop": 0.05,
        "aux_num_out": heads,
    }  # fmt: skip
    if kind == "WavLM":
        made |= {"encoder_max_distance": 50, "encoder_num_buckets": 8}
    return made


def model_of(kind: str, folder: Path, mode: str = "group_norm", *, normalize: bool = False) -> Any:
    """A tiny model with random weights, and the folder that describes it."""
    torchaudio: Any = importlib.import_module("torchaudio")
    torch.manual_seed(3)
    given = params(kind, mode)
    factory: Any = getattr(
        torchaudio.models, {"Wav2Vec2": "wav2vec2_model"}.get(kind, "wavlm_model")
    )
    model = factory(**given).eval()
    folder.mkdir(exist_ok=True)
    card = {"kind": kind, "normalize": normalize, "params": given}
    (folder / "torchaudio_model.json").write_text(json.dumps(card))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return model


def sound(samples: int, seed: int = 0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(samples, generator=made) * 0.2 + 0.05


def encoded(tower: Any, wave: Tensor) -> Tensor:
    data: Tensor = tower.encode([wave])[0].data
    return data[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", ["group_norm", "layer_norm"])
def test_tokens_are_the_models_own(kind: str, mode: str, normalize: bool, tmp_path: Path) -> None:
    model = model_of(kind, tmp_path, mode, normalize=normalize)
    wave = sound(16_000)
    with torch.inference_mode():
        fed = torch.nn.functional.layer_norm(wave, wave.shape) if normalize else wave
        hidden, _ = model.extract_features(fed[None])
        convolved, _ = model.feature_extractor(fed[None], None)
        last = model.encoder(convolved, None)
    tower = TorchaudioBundles(weights=str(tmp_path)).load()
    found = encoded(tower, wave)
    assert found.shape == (49, 32)
    assert torch.equal(found, last[0])
    for layer in (1, 2, 3):
        chosen: Any = TorchaudioBundles(weights=str(tmp_path), layer=layer).load()
        assert torch.equal(encoded(chosen, wave), hidden[layer - 1][0])
        assert len(chosen.tower.encoder.transformer.layers) == layer
        assert chosen.weights == tower.weights
    first = encoded(TorchaudioBundles(weights=str(tmp_path), layer=0).load(), wave)
    assert first.shape == (49, 32) and not torch.equal(first, hidden[0][0])


@pytest.mark.parametrize("samples", [1, 399, 400, 719, 720, 12_345, 480_000])
def test_times_cover_the_chunk(samples: int, tmp_path: Path) -> None:
    model_of("Wav2Vec2", tmp_path)
    operated = TorchaudioBundles(weights=str(tmp_path))
    times = operated.times(samples)
    assert len(times) == max(1, (samples - 400) // 320 + 1)
    assert times[0, 0] == 0
    assert torch.equal(times[1:, 0], times[:-1, 1])
    assert torch.allclose(times[:-1, 1] - times[:-1, 0], torch.tensor(0.02).double())
    assert float(times[-1, 1]) == pytest.approx(samples / 16_000, abs=1e-12)
    if samples < 20_000:
        tower = operated.load()
        found = encoded(tower, sound(samples))
        assert found.shape == (len(times), 32) and found.isfinite().all()


def test_nothing_gives_nothing(tmp_path: Path) -> None:
    model_of("Wav2Vec2", tmp_path)
    tower = TorchaudioBundles(weights=str(tmp_path)).load()
    assert encoded(tower, torch.zeros(0)).shape == (0, 32)
    assert tower.times(0).shape == (0, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_depends_on_the_batch(kind: str, tmp_path: Path) -> None:
    model_of(kind, tmp_path)
    tower = TorchaudioBundles(weights=str(tmp_path)).load()
    waves = [sound(n, n) for n in (9_000, 16_000, 100)]
    for wave, item in zip(waves, tower.encode(waves), strict=True):
        assert torch.equal(item.data[0], encoded(tower, wave))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_runs_and_stays_near(kind: str, tmp_path: Path) -> None:
    model_of(kind, tmp_path)
    operated = TorchaudioBundles(weights=str(tmp_path))
    half = encoded(operated.load("cpu", "bfloat16"), sound(8_000))
    full = encoded(operated.load(), sound(8_000))
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float(), full, dim=1).min() > 0.98


def test_outline_of_bundles() -> None:
    base, large = TorchaudioBundles().outline(), TorchaudioBundles(model="WAVLM_LARGE").outline()
    assert (base.dim, large.dim, base.rate) == (768, 1024, 16_000)
    assert base.about["chunk_exact"] is False
    assert (base.about["normalize"], large.about["normalize"]) == (False, True)
    assert TorchaudioBundles().chunk() == 480_000


def test_digest_and_files(tmp_path: Path) -> None:
    model = model_of("WavLM", tmp_path)
    tower = TorchaudioBundles(weights=str(tmp_path)).load()
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    again = TorchaudioBundles(weights=str(tmp_path), digest=tower.weights, layer=2).load()
    assert again.weights == tower.weights
    with pytest.raises(WeightsMismatch, match="not those on record"):
        TorchaudioBundles(weights=str(tmp_path), digest="sha256:" + "0" * 64).load()
    (tmp_path / "model.pt").unlink()
    with pytest.raises(WeightsMissing, match="0 checkpoints"):
        TorchaudioBundles(weights=str(tmp_path), layer=1).load()


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    state = model_of("Wav2Vec2", tmp_path).state_dict()
    for file in tmp_path.glob("model.*"):
        file.unlink()
    name = next(name for name in state if name.endswith("weight"))
    torch.save({**state, name: state[name].sign().to(torch.int8)}, tmp_path / "model.pt")
    with pytest.raises(WeightsMismatch, match=f"`{name}` of .* holds whole numbers"):
        TorchaudioBundles(weights=str(tmp_path)).load()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no bundle `TACOTRON2`") as caught:
        TorchaudioBundles(model="TACOTRON2").outline()
    assert "HUBERT_BASE" in str(caught.value.hint)
    with pytest.raises(ModelError, match="12 blocks"):
        TorchaudioBundles(layer=13).outline()
    with pytest.raises(WeightsMissing, match="no weights"):
        TorchaudioBundles(weights=str(tmp_path / "none.pt")).load()
    model_of("Wav2Vec2", tmp_path / "tiny")
    with pytest.raises(WeightsMismatch, match="do not fit") as wrong:
        TorchaudioBundles(weights=str(tmp_path / "tiny" / "model.safetensors")).load()
    assert len(wrong.value.message) < 400
    (tmp_path / "tiny" / "torchaudio_model.json").write_text('{"kind": "BERT"}')
    with pytest.raises(ModelError, match="describes no model"):
        TorchaudioBundles(weights=str(tmp_path / "tiny")).outline()


def test_without_a_network_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    with pytest.raises(WeightsMissing, match="WAV2VEC2_BASE") as caught:
        TorchaudioBundles().load()
    assert "weights=PATH" in str(caught.value.hint)
