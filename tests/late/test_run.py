"""From media to features: exact budgets, lossless where all fits, nothing encoded twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokpipe.cache.bank import Bank, bank_root
from tokpipe.cache.reader import open_cache
from tokpipe.cache.verify import verify
from tokpipe.chain import build_chain
from tokpipe.decode import probe
from tokpipe.encode.hf_audio import HfAudio
from tokpipe.encode.hf_vision import HfVision
from tokpipe.encoder_choice import encoder_step, with_encoders
from tokpipe.errors import CacheError, RecipeError, WeightsMismatch, WeightsMissing
from tokpipe.ingest import bank_key
from tokpipe.plan import plan_file
from tokpipe.recipe import Recipe, from_line, load_recipe
from tokpipe.run import Options, RunRecord, compress_file


def recipe_of(*folders: Path, base: str = "auto", **told: Any) -> Recipe:
    families = {"clip": "hf_vision", "whisper": "hf_audio"}
    steps = [encoder_step(f"{families[f.name.rstrip('0123456789')]}:{f}", **told) for f in folders]
    return with_encoders(load_recipe(base), steps)


def run(film: Path, target: Path, recipe: Recipe, budget: Any, **told: Any) -> RunRecord:
    record = compress_file(film, target, recipe=recipe, budget=budget, options=Options(**told))
    report = verify(target, deep=True)
    assert report.ok, report.problems
    return record


@contextmanager
def bank_of(film: Path, recipe: Recipe) -> Iterator[Bank]:
    info = probe(film)
    chains = {s: build_chain(s, c) for s, c in recipe.chains.items()}
    found = Bank.find(bank_key(info, chains, False), bank_root())
    assert found is not None
    with closing(found):
        yield found


def test_all_tokens_are_lossless(film: Path, clip_folder: Path, tmp_path: Path) -> None:
    """Identical tokens, order and times where the budget holds everything."""
    recipe = recipe_of(clip_folder, fit="squash")
    out = tmp_path / "all.tokpipe.safetensors"
    record = run(film, out, recipe, "video=100000,audio=10")
    tower = HfVision(model=str(clip_folder), fit="squash").load()
    with bank_of(film, recipe) as bank:
        pictures = [p for _, p in bank.pictures(list(range(bank.num_frames)))]
        pts = bank.frames()["pts"].copy()
    own = torch.cat(
        [tower.encode(tower.prepare(torch.from_numpy(p.copy())[None])).data for p in pictures]
    )
    assert record.frames["encoded"] == len(pts) == 24
    with open_cache(out) as cache:
        rows = cache.tokens()["video"]
        assert cache.domain == "feature"
        assert np.array_equal(rows.tokens, own.reshape(-1, 32).numpy())
        assert np.array_equal(rows.at, np.repeat(pts, 64))
        assert np.array_equal(rows.cell[:64, 1] * 8 + rows.cell[:64, 2], np.arange(64))
        assert np.array_equal(rows.pts[:-64, 1], np.repeat(pts[1:], 64))
        assert (rows.mass == 1).all()


@pytest.mark.parametrize("budget", [1, 7, 40, 300, "video=90,audio=3", "10%", "20/s", "5/frame"])
def test_budgets_are_met_to_the_token(
    film: Path, clip_folder: Path, tmp_path: Path, budget: Any
) -> None:
    recipe = recipe_of(clip_folder)
    out = tmp_path / "b.tokpipe.safetensors"
    record = run(film, out, recipe, budget)
    planned = plan_file(film, recipe=recipe, budget=budget)
    due = {"video=90,audio=3": 93, "20/s": 240, "10%": record.candidates // 10}
    if budget == "5/frame":
        with open_cache(out) as cache:
            assert np.unique(cache.column("video.at"), return_counts=True)[1].max() <= 5
        assert record.tokens["total"] == 5 * 24
    else:
        assert record.tokens["total"] == due.get(str(budget), budget)
    assert planned.tokens["total"] == record.tokens["total"]
    assert planned.candidates["total"] == record.candidates


def test_few_pictures_are_encoded_and_none_twice(
    film: Path, clip_folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(clip_folder, attention_layer=1)
    first = run(film, tmp_path / "a.tokpipe.safetensors", recipe, "video=96,audio=4")
    # 48 live tokens a picture: two would do, three leave the rules a choice.
    assert first.frames["encoded"] == 3
    again = run(film, tmp_path / "b.tokpipe.safetensors", recipe, "video=90,audio=4")
    assert again.frames == {"decoded": 0, "sampled": 24, "encoded": 0, "kept": again.frames["kept"]}
    assert again.reused == ["decode", "encode"]
    same = run(film, tmp_path / "c.tokpipe.safetensors", recipe, "video=96,audio=4",
               keep_bank=False)  # fmt: skip
    assert same.frames["encoded"] == 3
    assert (tmp_path / "a.tokpipe.safetensors").read_bytes() == (
        tmp_path / "c.tokpipe.safetensors"
    ).read_bytes()


def test_other_budgets_share_their_pictures(film: Path, clip_folder: Path, tmp_path: Path) -> None:
    """A smaller budget encodes nothing anew, whatever recipes asked for columns in between."""
    folder, encoded = tmp_path, []
    for i, (base, budget) in enumerate(
        [("auto", 300), ("fastervlm", 200), ("auto", 120), ("fastervlm", 60), ("auto", 30)]
    ):
        recipe = recipe_of(clip_folder, base=base, layer=2)
        record = run(film, folder / f"{i}.tokpipe.safetensors", recipe, f"video={budget},audio=4")
        assert record.tokens["video"] == budget
        encoded.append(record.frames["encoded"])
    # The first time a method asks for columns, pictures are encoded once more.
    assert encoded[0] > 0
    assert encoded[2:] == [0, 0, 0]


def test_every_scene_is_represented(film: Path, clip_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.tokpipe.safetensors"
    run(film, out, recipe_of(clip_folder), "video=200,audio=4")
    with open_cache(out) as cache:
        assert set((cache.column("video.at") // 3).tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", ["tome", "divprune", "fastervlm", "visionzip", "dycoke", "dpc-knn",
                                  "hiprune", "dart", "cdpruner", "trim", "aks"])  # fmt: skip
def test_methods_run_on_features(film: Path, clip_folder: Path, tmp_path: Path, name: str) -> None:
    """Columns a method needs come from the tower, a query from its text half."""
    recipe = recipe_of(clip_folder, base=name)
    out = tmp_path / "m.tokpipe.safetensors"
    record = run(film, out, recipe, "video=50,audio=4", query="w3 w7")
    assert record.tokens["video"] == 50


@pytest.mark.parametrize("rule", ["tome:r=4", "tome:r=4,class_token=true", "dymu:threshold=0.9"])
def test_patches_merge_inside_the_tower(
    film: Path, clip_folder: Path, tmp_path: Path, rule: str
) -> None:
    """Mass, times and budgets hold for tokens that patches became inside the tower."""
    recipe = recipe_of(clip_folder, inside=rule)
    out = tmp_path / "i.tokpipe.safetensors"
    record = run(film, out, recipe, "video=100,audio=4")
    assert record.tokens["video"] == 100
    every = run(film, tmp_path / "e.tokpipe.safetensors", recipe, "video=100000,audio=4")
    assert every.tokens["video"] < every.candidates - 300
    if "tome" in rule:
        assert every.tokens["video"] <= 24 * (64 - 12)
    with open_cache(tmp_path / "e.tokpipe.safetensors") as cache:
        mass = cache.column("video.mass")
        assert mass.max() > 1
        assert cache.metadata["tokpipe.encoder.video"]["inside"] == rule
        assert mass.sum() + cache.metadata["tokpipe.counts"]["video"]["dropped"] == 24 * 48


def test_a_wrong_rule_inside_shows_in_the_plan(film: Path, clip_folder: Path) -> None:
    with pytest.raises(RecipeError, match="decides nothing"):
        plan_file(film, recipe=recipe_of(clip_folder, inside="fps"), budget=9)


def test_explicit_rules_of_the_signal_mark_live_tokens(
    film: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """Cells that did not change are no candidates: the static parts are encoded once."""
    line = f'pixels | temporal-drop:threshold=1.0 | hf-vision:model="{clip_folder}"'
    out = tmp_path / "t.tokpipe.safetensors"
    record = run(film, out, from_line(f"video: fps | {line}"), None)
    with open_cache(out) as cache:
        counts = np.unique(cache.column("video.at"), return_counts=True)[1]
    assert counts.max() == 48
    assert 0 < record.tokens["video"] < 24 * 48 / 2
    assert counts[1:].min() < 48


def test_sound_goes_through_its_tower(
    film: Path, whisper_folder: Path, clip_folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(whisper_folder, clip_folder)
    out = tmp_path / "a.tokpipe.safetensors"
    record = run(film, out, recipe, "video=50,audio=100000")
    # AAC adds a little sound at the end.
    assert 600 <= record.tokens["audio"] <= 603
    with bank_of(film, recipe) as bank:
        sound = bank.rows("audio", 0, int(bank.meta["samples"]), np.dtype("<i2"))
    wave = torch.from_numpy(sound.astype(np.float32) / 32768)
    tower = HfAudio(model=str(whisper_folder)).load()
    own = torch.cat([tower.encode([c])[0].data[0] for c in torch.split(wave, tower.chunk)])
    with open_cache(out) as cache:
        rows = cache.tokens()["audio"]
        assert np.array_equal(rows.tokens, own[: len(rows)].numpy())
        assert np.allclose(rows.at, np.arange(len(rows)) / 50)
        about = cache.metadata["tokpipe.encoder.audio"]
    assert about["weights"] == tower.weights
    few = run(film, tmp_path / "f.tokpipe.safetensors", recipe, "video=10,audio=60")
    assert few.tokens["audio"] == 60
    with open_cache(tmp_path / "f.tokpipe.safetensors") as cache:
        at = cache.column("audio.at")
    assert (((at > 1.5) & (at < 5.5)) | (at > 7.5)).all(), "silence was encoded before sound"


def test_weights_are_recorded_and_checked(film: Path, clip_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "w.tokpipe.safetensors"
    run(film, out, recipe_of(clip_folder), 20)
    with open_cache(out) as cache:
        digest = cache.metadata["tokpipe.encoder.video"]["weights"]
        assert str(clip_folder.parent) not in str(cache.metadata)
    assert digest.startswith("sha256:")
    open_cache(out, expect={"tokpipe.encoder.video": {"weights": digest}}).close()
    with pytest.raises(CacheError, match="another"):
        open_cache(out, expect={"tokpipe.encoder.video": {"weights": "sha256:0"}})
    with pytest.raises(WeightsMismatch):
        run(film, tmp_path / "x.tokpipe.safetensors",
            recipe_of(clip_folder, digest="sha256:" + "0" * 64), 20, keep_bank=False)  # fmt: skip


def test_kept_context_reports_how_near_it_is(film: Path, clip_folder: Path, tmp_path: Path) -> None:
    line = f'pixels | temporal-drop:threshold=1.0 | hf-vision:model="{clip_folder}"'
    out = tmp_path / "k.tokpipe.safetensors"
    record = run(film, out, from_line(f"video: fps | {line}"), 100, context="kept")
    noted = [text for text in record.warnings if text.startswith("kept-context")]
    assert len(noted) == 1
    with open_cache(out) as cache:
        cosine = cache.metadata["tokpipe.encoder.video"]["kept_cosine"]
    assert 0.2 < cosine < 1
    again = tmp_path / "a.tokpipe.safetensors"
    reused = run(film, again, from_line(f"video: fps | {line}"), 100, context="kept")
    assert reused.frames["encoded"] == 0
    assert again.read_bytes() == out.read_bytes()


def test_half_precision_is_stored_as_it_is(film: Path, clip_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "h.tokpipe.safetensors"
    run(film, out, recipe_of(clip_folder), "video=60,audio=4", precision="bfloat16")
    with open_cache(out) as cache:
        assert cache.tokens()["video"].dtype == "BF16"


@pytest.mark.parametrize(
    ("text", "words"),
    [("hf_vision:/nowhere/model", "nowhere"), ("clop:x", "unknown encoder"),
     ("hf_vision:", "names no model"), ("tome:x", "unknown encoder")],
)  # fmt: skip
def test_wrong_encoders_say_what_is_wrong(
    film: Path, tmp_path: Path, text: str, words: str
) -> None:
    def compress() -> None:
        recipe = with_encoders(load_recipe("auto"), [encoder_step(text)])
        compress_file(film, tmp_path / "x.tokpipe.safetensors", recipe=recipe, budget=9)

    with pytest.raises((RecipeError, WeightsMissing), match=words) as caught:
        compress()
    assert caught.value.hint


def test_notes_say_what_had_no_part(
    film: Path, clip_folder: Path, whisper_folder: Path, tmp_path: Path, samples: Path
) -> None:
    record = run(film, tmp_path / "q.tokpipe.safetensors", recipe_of(clip_folder), 100, query="w3")
    assert any(w.startswith("query-unused") for w in record.warnings)
    assert not any(w.startswith("thin-video") for w in record.warnings)
    used = run(film, tmp_path / "u.tokpipe.safetensors",
               recipe_of(clip_folder, base="text-score | top-k"), 100, query="w3")  # fmt: skip
    assert not any(w.startswith("query-unused") for w in used.warnings)
    assert used.tokens["audio"] > 0
    assert min(used.seconds.values()) >= 0
    mute = run(samples / "screen.mp4", tmp_path / "m.tokpipe.safetensors",
               recipe_of(whisper_folder), 100, audio_stream="none")  # fmt: skip
    assert any(w.startswith("encoder-unused") for w in mute.warnings)


@pytest.mark.parametrize("query", ["", "  ", "caf\udce9"])
def test_a_query_must_be_text(film: Path, clip_folder: Path, tmp_path: Path, query: str) -> None:
    with pytest.raises(RecipeError, match="query"):
        run(film, tmp_path / "x.tokpipe.safetensors", recipe_of(clip_folder), 9, query=query)


def test_a_query_needs_a_text_tower(film: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="text tower"):
        compress_file(film, tmp_path / "x.tokpipe.safetensors", budget=9,
                      options=Options(query="what is it"))  # fmt: skip
