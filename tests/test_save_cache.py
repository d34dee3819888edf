"""Tokens in memory become caches: what goes in comes out; a model's own features are its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tokpipe
from tokpipe.cache.verify import verify
from tokpipe.errors import CacheError, ModelError, OutputExists, RecipeError
from tokpipe.save import layout_of

GRID = (3, 4)


def pictures(count: int = 5, width: int = 8, **more: Any) -> tokpipe.TokenBatch:
    features = torch.randn(count, GRID[0] * GRID[1], width, generator=torch.manual_seed(0))
    return tokpipe.picture_tokens(features, [i * 0.7 for i in range(count)], GRID, **more)


def sound(count: int = 9, width: int = 6) -> tokpipe.TokenBatch:
    edges = torch.arange(count + 1, dtype=torch.float64) * 0.04
    return tokpipe.sound_tokens(torch.randn(count, width), torch.stack([edges[:-1], edges[1:]], 1))


def saved(path: Path, *args: Any, **more: Any) -> Path:
    made: Path = tokpipe.save_cache(path / "own.tokpipe.safetensors", *args, **more)
    report = verify(made, deep=True)
    assert report.ok, report.problems
    return made


def test_both_streams_come_back(tmp_path: Path) -> None:
    video, audio = pictures(), sound()
    with tokpipe.open_cache(saved(tmp_path, {"video": video, "audio": audio})) as cache:
        assert cache.domain == "feature" and cache.layout == "frames"
        back = {name: rows.to_tokens() for name, rows in cache.tokens().items()}
        assert cache.metadata["tokpipe.counts"]["video"] == {
            "source": 60, "dropped": 0.0, "kept": 60
        }  # fmt: skip
        assert cache.metadata["tokpipe.encoder.video"]["grid"] == [3, 4]
    for name, rows in (("video", video), ("audio", audio)):
        for column in ("data", "at", "pts", "cell", "extent", "tile", "mass", "kind"):
            assert torch.equal(getattr(back[name], column), getattr(rows, column)), column


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    video = pictures()
    video = video.with_columns(data=video.data.to(dtype))
    with tokpipe.open_cache(saved(tmp_path, video)) as cache:
        back = cache.tokens()["video"].to_tokens().data
    assert back.dtype == dtype and torch.equal(back, video.data)


def test_rows_in_any_order_are_sorted_with_their_ranks(tmp_path: Path) -> None:
    video = pictures()
    shuffled = torch.randperm(60, generator=torch.manual_seed(1))
    path = saved(tmp_path, video.take(shuffled), rank={"video": shuffled})
    with tokpipe.open_cache(path) as cache:
        rows = cache.tokens()["video"]
    assert np.array_equal(rows.tokens, video.data.numpy())
    assert np.array_equal(rows.rank, np.arange(60))


def test_ranks_go_by_score_then_evenly_over_time(tmp_path: Path) -> None:
    video = pictures(16)
    with tokpipe.open_cache(saved(tmp_path, video)) as cache:
        few = cache.tokens(budget=16)["video"]
    assert len(np.unique(few.at)) >= 14
    score = torch.rand(len(video), generator=torch.manual_seed(2))
    score[5] = float("nan")
    with tokpipe.open_cache(saved(tmp_path, video.with_columns(score=score), force=True)) as cache:
        best = cache.tokens(budget=10)["video"]
        rank = cache.tokens()["video"].rank
    wanted = torch.sort(score.nan_to_num(nan=-1.0).topk(10).indices).values
    assert np.array_equal(best.rows, wanted.numpy())
    assert rank[5] == len(video) - 1


def test_ranks_of_a_cache_survive(tmp_path: Path) -> None:
    with tokpipe.open_cache(saved(tmp_path, {"video": pictures(), "audio": sound()})) as cache:
        first = cache.tokens()
    again = saved(tmp_path, {n: rows.to_tokens() for n, rows in first.items()}, force=True)
    with tokpipe.open_cache(again) as cache:
        for name, rows in cache.tokens().items():
            assert np.array_equal(rows.rank, first[name].rank)


def test_reduced_tokens_count_what_they_stand_for(tmp_path: Path) -> None:
    few = tokpipe.reduce_tokens(pictures(), "tome", budget=20)
    path = saved(tmp_path, few, grid=GRID, dropped=60 - float(few.mass.sum()))
    with tokpipe.open_cache(path) as cache:
        assert cache.metadata["tokpipe.counts"]["video"]["source"] == 60
        assert cache.layout == "ragged" and cache.num_tokens() == 20


def test_layout_is_found_from_the_cells() -> None:
    video = pictures()
    y, x = video.cell[:, 1], video.cell[:, 2]
    assert layout_of(video, GRID) == "frames"
    assert layout_of(video.take(video.at > 1), GRID) == "frames"
    assert layout_of(video.take((y % 2 == 0) & (x % 2 == 0)), GRID) == "grid"
    assert layout_of(video.take(y == 1), GRID) == "ragged"  # a strip is no smaller picture
    assert layout_of(video.take(x < 2), GRID) == "ragged"
    assert layout_of(video.take(torch.arange(60) != 7), GRID) == "ragged"
    assert layout_of(video.with_columns(cell=torch.full_like(video.cell, -1)), GRID) == "ragged"
    pooled = tokpipe.reduce_tokens(video, "grid-pool", budget=15, exact=False)
    assert layout_of(pooled.sorted(), GRID) == "grid"


@pytest.mark.parametrize("layout", ["frames", "grid", "ragged"])
def test_a_layout_that_is_true_is_stored(tmp_path: Path, layout: Any) -> None:
    """Whole pictures are all three."""
    with tokpipe.open_cache(saved(tmp_path, pictures(), layout=layout)) as cache:
        assert cache.layout == layout
    bare = pictures().with_columns(cell=torch.full((60, 3), -1, dtype=torch.int32))
    with tokpipe.open_cache(saved(tmp_path, bare, layout=layout, force=True)) as cache:
        assert cache.layout == layout  # without cells nothing speaks against it


def test_merged_rows_of_whole_pictures_are_frames(tmp_path: Path) -> None:
    """As many rows of each picture, which stand for all of it, wherever they are."""
    rows = pictures().take(torch.arange(60) % 12 < 5)
    path = saved(tmp_path, rows.with_columns(mass=torch.full((25,), 12 / 5)), grid=GRID,
                 layout="frames")  # fmt: skip
    with tokpipe.open_cache(path) as cache:
        assert cache.layout == "frames"


def test_numpy_features_are_taken(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 12, 8), dtype=np.float32)
    rows.flags.writeable = False
    whole = tokpipe.picture_tokens(rows, np.arange(5.0), GRID, deepstack=[rows[::-1]])
    assert torch.equal(whole.data, torch.tensor(rows.reshape(60, 8)))
    assert torch.equal(whole.extras["deepstack_1"], torch.tensor(rows[::-1].reshape(60, 8).copy()))
    assert torch.equal(tokpipe.picture_tokens(list(rows), range(5), GRID).data, whole.data)
    spans = np.stack([np.arange(9.0), np.arange(9.0) + 1], 1)
    sound = tokpipe.sound_tokens(rows[0, :9].astype(np.float16), spans)
    assert sound.data.dtype == torch.float16 and sound.pts.tolist() == spans.tolist()
    with pytest.raises(CacheError, match="no type of features"):
        tokpipe.picture_tokens(np.full((1, 12, 8), "x"), [0.0], GRID)


def test_deepstack_rows_lie_beside_the_tokens(tmp_path: Path) -> None:
    first, second = torch.randn(60, 8), [torch.randn(12, 8) for _ in range(5)]
    video = pictures(deepstack=[first, second])
    with tokpipe.open_cache(saved(tmp_path, video)) as cache:
        assert cache.metadata["tokpipe.encoder.video"]["deepstack"] == 2
        back = cache.tokens()["video"].extras
    assert np.array_equal(back["deepstack_1"], first)
    assert np.array_equal(back["deepstack_2"], torch.cat(second))
    with pytest.raises(RecipeError, match="deepstack"):
        saved(tmp_path, video, encoder={"deepstack": 3}, force=True)


def test_source_is_named_and_fingerprinted(tmp_path: Path) -> None:
    from tokpipe.testing.media import VideoTrack, write_media

    film = tmp_path / "film.mp4"
    write_media(film, VideoTrack(frames=12))
    with tokpipe.open_cache(saved(tmp_path, pictures(), source=film)) as cache:
        assert cache.info["name"] == "film.mp4"
        assert cache.info["fingerprint"] == tokpipe.probe(film).fingerprint
        told = cache.info
    with tokpipe.open_cache(saved(tmp_path, pictures(), source=told, force=True)) as cache:
        assert cache.info == told


@pytest.mark.parametrize(
    ("tokens", "more", "error", "said"),
    [
        ({"text": pictures()}, {}, CacheError, "unknown stream"),
        ({}, {}, CacheError, "no token"),
        (pictures(), {"encoder": {"stage": "projected"}}, RecipeError, "unknown stage"),
        (pictures(), {"grid": (2, 4)}, RecipeError, "outside the grid"),
        (pictures(), {"dropped": -1.0}, CacheError, "dropped"),
        (pictures(), {"dropped": float("inf")}, CacheError, "dropped"),
        (pictures(), {"encoder": {"audio": {"stage": "post_projector"}}}, RecipeError,
         "of audio, of which there is no token"),
        (pictures(), {"encoder": {"video": {"stage": "post_projector"}, "stage": "pre_projector"}},
         RecipeError, "both streams and `stage`"),
        (pictures().take(torch.arange(60) != 7), {"layout": "frames"}, CacheError,
         "said to be frames, that of the rows is ragged"),
        (pictures().take(torch.arange(60) % 4 < 2), {"layout": "grid", "grid": GRID}, CacheError,
         "said to be grid"),
        (pictures(), {"layout": "round"}, CacheError, "unknown layout `round`"),
        (pictures(), {"rank": {"audio": torch.arange(60)}}, CacheError, "ranks of audio"),
        (pictures(), {"rank": {"video": torch.arange(3)}}, CacheError, r"ranks \[3\] for 60"),
        (pictures(), {"rank": {"video": torch.full((60,), torch.nan)}}, CacheError, "not finite"),
        ({"video": pictures(), "audio": sound()}, {"encoder": {"stage": "pre_projector"}},
         RecipeError, "which stream"),
        (pictures().with_columns(data=torch.full((60, 8), torch.nan)), {}, CacheError, "finite"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    tmp_path: Path, tokens: Any, more: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        tokpipe.save_cache(tmp_path / "x.tokpipe.safetensors", tokens, **more)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = saved(tmp_path, pictures())
    with pytest.raises(OutputExists):
        tokpipe.save_cache(path, pictures(2))
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    with pytest.raises(OutputExists):
        tokpipe.save_cache(other, pictures(), force=True)
    assert other.read_text() == "mine"


@pytest.mark.parametrize("rows", [11, 13])
def test_a_row_too_many_is_no_grid(rows: int) -> None:
    with pytest.raises(CacheError, match="expected 12"):
        tokpipe.picture_tokens(torch.randn(1, rows, 4), [0.0], GRID)


def test_class_tokens_stand_before_the_grid_without_a_cell(tmp_path: Path) -> None:
    features = torch.randn(2, 13, 4)
    video = tokpipe.picture_tokens(features, [0.0, 1.0], GRID, class_tokens=1)
    assert video.cell[[0, 1, 13]].tolist() == [[0, -1, -1], [0, 0, 0], [1, -1, -1]]
    with tokpipe.open_cache(saved(tmp_path, video, grid=GRID)) as cache:
        assert np.array_equal(cache.column("video.tokens"), features.flatten(0, 1))
        assert cache.layout == "frames"
    lost = video.take(torch.arange(26) != 13)
    with tokpipe.open_cache(saved(tmp_path, lost, grid=GRID, force=True)) as cache:
        assert cache.layout == "ragged"


def test_times_must_rise() -> None:
    with pytest.raises(CacheError, match="rise"):
        tokpipe.picture_tokens(torch.randn(2, 12, 4), [1.0, 1.0], GRID)


def _helper(name: str) -> Any:
    """A module of the tests of encoders, which makes tiny models."""
    path = Path(__file__).parent / "encode" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[name] = made  # dataclasses look their module up
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "video_llama_3"])
def test_own_features_equal_those_of_the_encoder(name: str, tmp_path: Path) -> None:
    """Rows, facts and digest: as if tokpipe had encoded the pictures."""
    pytest.importorskip("transformers", minversion="5.18")
    models = _helper("qwen_models")
    tiny = models.make(name, tmp_path)
    pixels = models.pictures(3)
    patches, sizes = tiny.video_pixels(pixels.repeat_interleave(2, 0) if name in models.QWEN
                                       else pixels)  # fmt: skip
    made = tiny.features(patches, sizes, video=True)
    operator = tiny.of()
    grid = operator.places(*pixels.shape[1:3]).grid
    tokens = tokpipe.picture_tokens(
        list(made.pooler_output), [0.0, 1.0, 2.0], grid,
        deepstack=getattr(made, "deepstack_features", None) or (),
    )  # fmt: skip
    facts = tokpipe.encoder_facts(tiny.model)
    tower = operator.load()
    about = tower.outline.about
    assert facts["weights"] == tower.weights
    shared = {"rope", "patch", "merge", "temporal_patch", "deepstack_layers", "stage"}
    assert {k: facts[k] for k in shared & {*facts} & {*about}} == {
        k: about[k] for k in shared & {*facts} & {*about}
    }
    with tokpipe.open_cache(saved(tmp_path / "out", tokens, encoder=facts)) as cache:
        rows = cache.tokens()["video"]
    encoded = tower.encode(tower.prepare(pixels))
    assert np.array_equal(rows.tokens, encoded.data.flatten(0, 1))
    for k, level in enumerate(encoded.deepstack, 1):
        assert np.array_equal(rows.extras[f"deepstack_{k}"], level.flatten(0, 1))


@pytest.mark.parametrize(
    "name", ["llava", "llava_next", "llava_onevision", "internvl", "smolvlm", "idefics3"]
)
def test_digest_of_a_loaded_model_is_the_encoders(name: str, tmp_path: Path) -> None:
    tf = pytest.importorskip("transformers", minversion="5.18")
    helper = _helper("conftest")
    torch.manual_seed(1)
    helper.write_front(tmp_path, *helper.MAKERS[name][0](tf))
    tiny = helper.TinyFront(name, tmp_path, helper.MAKERS[name][1])
    whole = tf.AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="auto")
    expected = tiny.of().load().weights
    assert tokpipe.encoder_facts(whole)["weights"] == expected
    assert tokpipe.encoder_facts(tiny.model)["weights"] == expected
    part = "vision_model" if name in ("smolvlm", "idefics3") else "vision_tower"
    delattr(whole.model, part)
    assert "weights" not in tokpipe.encoder_facts(whole)  # the tower is gone: nothing to check


@pytest.mark.parametrize("name", ["qwen2_audio", "voxtral", "qwen2_5_omni", "qwen3_omni"])
def test_digest_of_a_loaded_sound_model_is_the_encoders(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", minversion="5.18")
    helper = _helper("sound_models")
    made = helper.make(name, tmp_path)
    from tokpipe.encode.hf_audio import HfAudio

    expected = HfAudio(model=str(tmp_path)).load().weights
    facts = tokpipe.encoder_facts(made, "pre_projector", "audio")
    assert facts["weights"] == expected


def test_models_of_unknown_kind_are_named() -> None:
    tf = pytest.importorskip("transformers", minversion="5.18")
    config = tf.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                           intermediate_size=8, vocab_size=8)  # fmt: skip
    with pytest.raises(ModelError, match="bert"):
        tokpipe.encoder_facts(tf.BertModel(config))
