"""Sound towers through transformers: their own tokens, chunk by chunk."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from tokpipe.encode.hf_audio import HfAudio
from tokpipe.errors import ModelError


def _beside(name: str) -> ModuleType:
    """A module that lies beside this one; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


kinds = _beside("sound_models")
KINDS = list(kinds.MAKERS)
PROJECTED = [kind for kind in KINDS if kind not in ("whisper", "ast")]
LENGTHS = (1, 159, 160, 161, 400, 640, 801, 7_999, 12_345, 16_000)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, str]]:
    """The model of each kind, and the folder it is saved in."""
    folder = tmp_path_factory.mktemp("models")
    return {kind: (kinds.make(kind, folder / kind), str(folder / kind)) for kind in KINDS}


def operator(models: dict[str, tuple[Any, str]], kind: str, **more: Any) -> HfAudio:
    """The operator at the stage the model's own path ends with."""
    stage = "post_projector" if kind in PROJECTED else "pre_projector"
    return HfAudio(**{"model": models[kind][1], "stage": stage, **more})


def encoded(tower: Any, wave: Tensor) -> Tensor:
    data: Tensor = tower.encode([wave])[0].data
    return data[0]


# Tokens.


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "ast"])
@pytest.mark.parametrize("samples", [32_000, 20_007, 3_333])
def test_tokens_are_the_models_own(
    models: dict[str, tuple[Any, str]], kind: str, samples: int
) -> None:
    wave = kinds.sound(samples)
    tower = operator(models, kind).load()
    found, own = encoded(tower, wave), kinds.own_tokens(kind, models[kind][0], wave)
    assert found.shape[1] == tower.outline.dim
    if kind in ("whisper", "voxtral"):
        # Their own paths keep the tokens of the filling.
        assert len(own) >= len(found)
        own = own[: len(found)]
    assert len(found) == len(own) == len(tower.times(samples))
    if kind == "qwen2_5_omni":
        # Its own extractor makes all 30 s of columns, which the product rounds otherwise.
        torch.testing.assert_close(found, own, atol=1e-5, rtol=0)
    else:
        assert torch.equal(found, own)
    assert found.std() > 1e-3


def test_patches_of_the_spectrogram_transformer_in_order_of_time(
    models: dict[str, tuple[Any, str]],
) -> None:
    samples = 104 * 160
    wave, (model, _) = kinds.sound(samples), models["ast"]
    operated = operator(models, "ast")
    tower: Any = operated.load()
    rows, cols = 5, 9
    features = kinds.prepared("ast", wave)["input_values"]
    close = tower.family.features(wave)
    torch.testing.assert_close(close, features, atol=2e-4, rtol=0)
    # From the same bank to the bit: ours and torchaudio's differ in the last digits.
    with torch.inference_mode():
        own = model.audio_spectrogram_transformer(close).last_hidden_state[0, 2:]
    found = encoded(tower, wave)
    assert torch.equal(found, own.view(rows, cols, -1).transpose(0, 1).flatten(0, 1))
    torch.testing.assert_close(
        found.view(cols, rows, -1).transpose(0, 1).flatten(0, 1),
        kinds.own_tokens("ast", model, wave)[2:], atol=1e-2, rtol=0,
    )  # fmt: skip
    times = tower.times(samples)
    assert times[:rows].tolist() == [[0.0, 0.1]] * rows
    assert times[-1].tolist() == pytest.approx([0.8, 1.04])
    assert len(encoded(tower, wave[:2_000])) == len(tower.times(2_000)) == 2 * rows


@pytest.mark.parametrize("kind", ["qwen2_5_omni", "qwen3_omni"])
def test_chunk_by_chunk_is_the_whole(models: dict[str, tuple[Any, str]], kind: str) -> None:
    operated = operator(models, kind)
    tower: Any = operated.load()
    assert tower.chunk == operated.chunk() == {"qwen2_5_omni": 480_000, "qwen3_omni": 384_000}[kind]
    waves = [kinds.sound(tower.chunk, 1), kinds.sound(tower.chunk, 2), kinds.sound(9_000, 3)]
    columns = torch.cat([tower.family.features(wave) for wave in waves], 1)
    mask = torch.ones(1, columns.shape[1], dtype=torch.long)
    owner = kinds.owner_of(models[kind][0])
    with torch.inference_mode():
        whole = owner.get_audio_features(columns[None], feature_attention_mask=mask)
    found = torch.cat([item.data[0] for item in tower.encode(waves)])
    torch.testing.assert_close(found, whole.last_hidden_state, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["qwen2_5_omni", "qwen3_omni"])
def test_only_columns_at_borders_miss_the_sound_beyond(
    models: dict[str, tuple[Any, str]], kind: str
) -> None:
    tower: Any = operator(models, kind).load()
    wave = kinds.sound(2 * tower.chunk)
    whole = tower.family.features(wave)
    first = tower.family.features(wave[: tower.chunk])
    second = tower.family.features(wave[tower.chunk :])
    n = first.shape[1]
    torch.testing.assert_close(first[:, :-1], whole[:, : n - 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(second[:, 2:], whole[:, n + 2 :], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_depends_on_the_batch(models: dict[str, tuple[Any, str]], kind: str) -> None:
    tower = operator(models, kind).load()
    waves = [kinds.sound(n, n) for n in (16_000, 9_000, 100, 16_640)]
    together = tower.encode(waves)
    for wave, item in zip(waves, together, strict=True):
        assert item.data.shape[0] == 1
        assert torch.equal(item.data[0], encoded(tower, wave))
    assert tower.encode([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_runs_and_stays_near(models: dict[str, tuple[Any, str]], kind: str) -> None:
    wave = kinds.sound(16_000)
    half = encoded(operator(models, kind).load("cpu", "bfloat16"), wave)
    full = encoded(operator(models, kind).load(), wave)
    assert half.dtype == torch.bfloat16
    close = torch.nn.functional.cosine_similarity(half.float(), full, dim=1)
    assert close.min() > 0.99


def test_voxtral_keeps_its_positions_in_float32(models: dict[str, tuple[Any, str]]) -> None:
    tower: Any = operator(models, "voxtral").load("cpu", "bfloat16")
    assert tower.tower.embed_positions.weight.dtype == torch.float32
    assert tower.tower.conv1.weight.dtype == torch.bfloat16


def test_what_is_no_number_is_silence(models: dict[str, tuple[Any, str]]) -> None:
    tower = operator(models, "whisper").load()
    wave = kinds.sound(8_000)
    broken = wave.clone()
    broken[100:200] = torch.nan
    wave[100:200] = 0
    assert torch.equal(encoded(tower, broken), encoded(tower, wave))


# Times.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", LENGTHS)
def test_times_cover_the_chunk_once(
    models: dict[str, tuple[Any, str]], kind: str, samples: int
) -> None:
    tower = operator(models, kind).load()
    times = tower.times(samples)
    found = encoded(tower, kinds.sound(samples))
    assert found.shape == (len(times), tower.outline.dim)
    assert times.dtype == torch.float64 and times.shape[1] == 2
    assert torch.equal(times, operator(models, kind).times(samples))
    if not len(times):
        assert samples < 800
        return
    spans = torch.unique_consecutive(times, dim=0)
    assert spans[0, 0] == 0
    assert torch.equal(spans[1:, 0], spans[:-1, 1])
    assert (spans[:, 1] > spans[:, 0]).all()
    assert float(spans[-1, 1]) == pytest.approx(samples / 16_000, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "tokens"), [("whisper", 50), ("qwen2_audio", 25), ("voxtral", 12.5),
                         ("qwen2_5_omni", 25), ("qwen3_omni", 13)],
)  # fmt: skip
def test_tokens_of_a_second(models: dict[str, tuple[Any, str]], kind: str, tokens: float) -> None:
    assert len(operator(models, kind).times(32_000)) == 2 * tokens


def test_thirteenth_token_of_qwen3_is_short(models: dict[str, tuple[Any, str]]) -> None:
    times = operator(models, "qwen3_omni").times(32_000)
    lengths = (times[:, 1] - times[:, 0]).reshape(2, 13)
    assert torch.allclose(lengths[:, :12], torch.tensor(0.08).double())
    assert torch.allclose(lengths[:, 12], torch.tensor(0.04).double())


# Stages and layers.


@pytest.mark.parametrize("kind", PROJECTED)
def test_projected_is_the_projection_of_what_comes_before(
    models: dict[str, tuple[Any, str]], kind: str
) -> None:
    wave = kinds.sound(32_000)
    before = encoded(operator(models, kind, stage="pre_projector").load(), wave)
    after = encoded(operator(models, kind).load(), wave)
    owner = kinds.owner_of(models[kind][0])
    with torch.inference_mode():
        if kind == "voxtral":
            made = owner.multi_modal_projector(before.reshape(-1, 128))
        elif kind == "qwen2_audio":
            made = owner.multi_modal_projector(before)
        elif kind == "qwen2_5_omni":
            made = owner.audio_tower.proj(before)
        else:
            tower = owner.audio_tower
            made = tower.proj2(tower.act(tower.proj1(before)))
    torch.testing.assert_close(made, after, atol=1e-6, rtol=1e-5)
    assert operator(models, kind).outline().dim == 48
    assert operator(models, kind, stage="pre_projector").outline().dim == 32


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_of_chosen_layers(models: dict[str, tuple[Any, str]], kind: str) -> None:
    wave = kinds.sound(16_000)
    made = [
        operator(models, kind, stage="pre_projector", layer=layer).load() for layer in (0, 1, 2)
    ]
    found = [encoded(tower, wave) for tower in made]
    assert not torch.equal(found[0], found[1])
    assert [len(t.tower.layers) for t in made] == [1, 1, 2]  # type: ignore[attr-defined]
    assert len({tower.weights for tower in made}) == 1
    own: Any = operator(models, kind, stage="pre_projector").load()
    with torch.inference_mode():
        last = found[2]
        if kind in ("qwen2_audio", "qwen2_5_omni"):
            last = last.view(-1, 2, 32).mean(1)
        norm = next(getattr(own.tower, n) for n in ("layer_norm", "ln_post", "layernorm")
                    if hasattr(own.tower, n))  # fmt: skip
        torch.testing.assert_close(norm(last), encoded(own, wave), atol=1e-6, rtol=1e-5)


def test_refuses_what_a_family_has_not(models: dict[str, tuple[Any, str]]) -> None:
    with pytest.raises(ModelError, match="no projector"):
        operator(models, "whisper", stage="post_projector").outline()
    with pytest.raises(ModelError, match="2 blocks"):
        operator(models, "whisper", layer=3).outline()
    with pytest.raises(ModelError, match="own output"):
        operator(models, "voxtral", layer=1).outline()


# Columns.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [16_000, 9_001])
def test_columns_are_the_last_blocks(
    models: dict[str, tuple[Any, str]], kind: str, samples: int
) -> None:
    tower: Any = operator(models, kind).load()
    assert set(tower.outline.extras) == {"attention", "received", "keys", "queries"}
    wave = kinds.sound(samples)
    [item] = tower.encode([wave], frozenset(tower.outline.extras))
    n = len(tower.times(samples))
    assert torch.equal(item.data[0], encoded(tower, wave))
    assert item.columns["received"].shape == (1, n)
    assert item.columns["keys"].shape == item.columns["queries"].shape == (1, n, 2, 16)
    attention = item.columns["attention"]
    assert attention.shape == ((1, n, 2) if kind == "ast" else (1, n))
    own = _attention_by_hand(tower, wave)
    if kind == "ast":
        torch.testing.assert_close(attention[0].T, _in_time(own[:, 0, 2:], n), atol=1e-6, rtol=0)
        per_place = _in_time(own.mean((0, 1))[None, 2:], n)[0]
    else:
        per_place = own.mean((0, 1))
    size = {"qwen2_audio": 2, "qwen2_5_omni": 2, "voxtral": 4}.get(kind, 1)
    expected = per_place[: n * size].reshape(n, size).mean(1)
    torch.testing.assert_close(item.columns["received"][0], expected, atol=1e-6, rtol=0)
    assert tower.encode([wave], frozenset({"keys"}))[0].columns.keys() == {"keys"}
    assert tower.encode([torch.zeros(1)], frozenset({"keys"}))[0].columns["keys"].shape[0] == 1


@pytest.mark.parametrize(("kind", "seconds"), [("qwen2_5_omni", 6), ("qwen3_omni", 24)])
def test_attention_stays_in_its_stretch(
    models: dict[str, tuple[Any, str]], kind: str, seconds: int
) -> None:
    tower = operator(models, kind).load()
    [item] = tower.encode([kinds.sound(seconds * 16_000)], frozenset({"received"}))
    size = 2 if kind == "qwen2_5_omni" else 1
    sums = item.columns["received"][0].view(3, -1).sum(1) * size
    torch.testing.assert_close(sums, torch.ones(3))


def _attention_by_hand(tower: Any, wave: Tensor) -> Tensor:
    """Attention [H, P, P] of the last block among the places that are sound or attend to it."""
    attention = tower.family.attending(tower.tower)
    caught: list[Tensor] = []
    handles = [
        part.register_forward_hook(lambda _m, _a, out: caught.append(out))
        for part in (attention.q_proj, attention.k_proj)
    ]
    tower.encode([wave])
    for handle in handles:
        handle.remove()
    query, key = (one.reshape(-1, 2, 16).transpose(0, 1) for one in caught)
    if type(tower.family).__name__ == "Qwen2AudioSound":
        places = (-(-len(wave) // 160) - 1) // 2 + 1
        query, key = query[:, :places], key[:, :places]
    return (query @ key.transpose(1, 2) / 4).softmax(-1)


def _in_time(values: Tensor, tokens: int) -> Tensor:
    """[H, 5 x 9] in the network's order to [H, tokens] in order of time."""
    return values.view(len(values), 5, 9).transpose(1, 2).flatten(1)[:, :tokens]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_towers_stay_near(models: dict[str, tuple[Any, str]]) -> None:
    for kind in ("whisper", "qwen2_5_omni"):
        plain, fast = (operator(models, kind).load(compile=c) for c in (False, True))
        for samples in (16_000, 9_000):
            wave = kinds.sound(samples)
            torch.testing.assert_close(encoded(fast, wave), encoded(plain, wave), atol=1e-5, rtol=0)
            [item] = fast.encode([wave], frozenset({"keys"}))
            assert torch.equal(item.data[0], encoded(plain, wave)) and "keys" in item.columns
