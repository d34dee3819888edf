"""One item from media to cache: the record, what is skipped, and the same bytes always."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tokpipe
from tokpipe.errors import OutputExists, RecipeError, TokpipeError
from tokpipe.run import Job, Options, RunRecord, compress_file, output_path, prepare

Pixels = NDArray[np.uint8]
FRESH = Options(keep_bank=False, force=True)


def run(source: Path, target: Path, budget: str | int = 300, **options: Any) -> RunRecord:
    return compress_file(source, target, budget=budget, options=replace(FRESH, **options))


def check_whole(path: Path) -> None:
    assert tokpipe.verify(path, deep=True).ok


# The record.

FIELDS = {
    "input", "output", "status", "reused", "candidates", "tokens", "frames", "seconds",
    "cpu_seconds", "peak_rss_mb", "bytes", "layout", "recipe", "encoder", "warnings",
}  # fmt: skip


def test_record_has_the_fields_of_the_item_event(samples: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    record = run(samples / "action.mp4", target)
    found = json.loads(json.dumps(record.to_dict(), allow_nan=False))
    assert set(found) >= FIELDS
    assert set(found["tokens"]) == {"video", "audio", "text", "total"}
    assert set(found["frames"]) == {"decoded", "sampled", "encoded", "kept"}
    assert set(found["seconds"]) >= {"scout", "decode", "encode", "compress", "write", "total"}
    assert found["status"] == "done"
    assert found["tokens"]["total"] == 300 == found["tokens"]["video"] + found["tokens"]["audio"]
    assert found["candidates"] == 28 * 144 + 351
    assert found["frames"]["decoded"] == 350
    assert found["frames"]["sampled"] == found["frames"]["encoded"] == 28
    assert found["bytes"] == target.stat().st_size
    assert found["reused"] == []
    assert found["recipe"] == "auto"
    assert found["encoder"] == {"video": "pixels", "audio": "mel"}
    assert 0 < found["seconds"]["total"] < 60
    assert found["cpu_seconds"] > 0
    assert found["peak_rss_mb"] > 50
    with tokpipe.open_cache(target) as cache:
        assert len(np.unique(cache.column("video.at"))) == found["frames"]["kept"]


def test_budget_of_a_request_wins_over_the_recipe(samples: Path, tmp_path: Path) -> None:
    recipe = "video: fps | pixels; audio: mel; budget=40"
    own = compress_file(samples / "action.mp4", tmp_path / "a", recipe=recipe, options=FRESH)
    other = compress_file(
        samples / "action.mp4", tmp_path / "b", recipe=recipe, budget=50, options=FRESH
    )
    assert (own.tokens["total"], other.tokens["total"]) == (40, 50)
    assert (own.budget, other.budget) == ("40", "50")


def test_default_budget_is_2048(samples: Path, tmp_path: Path) -> None:
    assert (
        compress_file(samples / "action.mp4", tmp_path / "a", options=FRESH).tokens["total"] == 2048
    )


def test_output_path_rules(tmp_path: Path) -> None:
    source = tmp_path / "talk.v1.mp4"
    assert output_path(source) == tmp_path / "talk.v1.tokpipe.safetensors"
    assert output_path(source, tmp_path) == tmp_path / "talk.v1.tokpipe.safetensors"
    assert output_path(source, "x.safetensors") == Path("x.safetensors")


def test_prepare_refuses_before_anything_is_opened() -> None:
    for options in (Options(layout="round"), Options(audio_share=1.5)):  # type: ignore[arg-type]
        with pytest.raises(RecipeError):
            prepare("auto", options)
    with pytest.raises(TokpipeError):
        prepare("fps | pixels | tomme")


def test_one_job_serves_many_files(samples: Path, tmp_path: Path) -> None:
    job: Job = prepare("auto", replace(FRESH, budget=tokpipe.Budget.parse(64)))
    for name in ("action.mp4", "screen.mp4"):
        assert compress_file(samples / name, tmp_path / name, job=job).tokens["total"] == 64


# Skipping, refusing, replacing.


def test_identical_rerun_is_skipped(samples: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    options = Options(keep_bank=False)
    first = compress_file(samples / "action.mp4", target, budget=100, options=options)
    before = target.read_bytes(), target.stat().st_mtime_ns
    again = compress_file(samples / "action.mp4", target, budget=100, options=options)
    assert first.status != "skipped" == again.status
    assert (target.read_bytes(), target.stat().st_mtime_ns) == before
    assert again.tokens["total"] == 100
    assert again.bytes == first.bytes


def test_a_default_spelled_out_is_the_same_recipe(samples: Path, tmp_path: Path) -> None:
    options = Options(keep_bank=False)
    for recipe in ("fps | pixels", "fps:fps=2.0 | pixels:cells=16"):
        record = compress_file(
            samples / "screen.mp4", tmp_path / "out", recipe=recipe, budget=10, options=options
        )
    assert record.status == "skipped"


@pytest.mark.parametrize("change", ["budget", "layout", "source", "recipe", "share"])
def test_a_different_output_is_never_replaced_unasked(
    samples: Path, tmp_path: Path, change: str
) -> None:
    target, source = tmp_path / "out", samples / "action.mp4"
    plain = Options(keep_bank=False)
    compress_file(source, target, budget=100, options=plain)
    before = target.read_bytes()
    arguments: dict[str, Any] = {"budget": 100, "options": plain}
    if change == "budget":
        arguments["budget"] = 101
    elif change == "layout":
        arguments["options"] = replace(plain, layout="frames")
    elif change == "source":
        source = samples / "screen.mp4"
    elif change == "recipe":
        arguments["recipe"] = "video: fps | pixels; audio: mel"
    else:
        arguments["options"] = replace(plain, audio_share=0.5)
    with pytest.raises(OutputExists) as caught:
        compress_file(source, target, **arguments)
    assert "--force" in str(caught.value.hint)
    assert target.read_bytes() == before
    arguments["options"] = replace(arguments["options"], force=True)
    assert compress_file(source, target, **arguments).status != "skipped"
    assert target.read_bytes() != before


def test_a_foreign_file_is_never_replaced_unasked(samples: Path, tmp_path: Path) -> None:
    target = tmp_path / "notes.txt"
    target.write_text("mine", encoding="utf-8")
    with pytest.raises(OutputExists):
        compress_file(samples / "screen.mp4", target, budget=10)
    assert target.read_text(encoding="utf-8") == "mine"


# The same bytes, however the run went.


def test_bank_reuse_gives_the_same_bytes(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKPIPE_CACHE_DIR", str(tmp_path / "cache"))
    source, kept = samples / "late_audio.mp4", Options(force=True)
    made = []
    for name, budget, options in (
        ("first", 77, kept), ("fresh", 300, FRESH), ("reused", 300, kept), ("again", 300, kept),
    ):  # fmt: skip
        made.append(compress_file(source, tmp_path / name, budget=budget, options=options))
    assert [bool(r.reused) for r in made] == [False, False, True, True]
    assert made[2].frames["decoded"] == 0
    fresh, reused, again = ((tmp_path / n).read_bytes() for n in ("fresh", "reused", "again"))
    assert fresh == reused == again
    bank = tmp_path / "cache" / "bank"
    assert len(list(bank.iterdir())) == 1


@pytest.mark.parametrize("name", ["late_audio.mp4", "damaged.mp4"])
def test_batch_size_and_prefetch_change_no_byte(samples: Path, tmp_path: Path, name: str) -> None:
    reference = None
    for batch_size, prefetch in ((16, 2), (1, 0), (5, 8), (16, 0), (5, 2)):
        target = tmp_path / f"{batch_size}_{prefetch}"
        run(samples / name, target, batch_size=batch_size, prefetch=prefetch)
        reference = reference or target.read_bytes()
        assert target.read_bytes() == reference, (batch_size, prefetch)


@pytest.mark.parametrize("layout", ["ragged", "frames", "grid"])
def test_two_runs_are_identical(samples: Path, tmp_path: Path, layout: str) -> None:
    for target in ("a", "b"):
        run(samples / "action.mp4", tmp_path / target, layout=layout)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    check_whole(tmp_path / "a")


@pytest.mark.parametrize("name", ["lecture.mp4", "action.mp4"])
def test_ranks_are_joint_and_give_every_smaller_budget(
    samples: Path, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "out"
    run(samples / name, target, 1000)
    with tokpipe.open_cache(target) as cache:
        streams = cache.streams
        ranks = np.concatenate([cache.column(f"{s}.rank") for s in streams])
        assert sorted(ranks.tolist()) == list(range(1000))
        share = cache.num_tokens("audio") / 1000
        for budget in (1, 2, 7, 64, 500, 999, 1000, 5000):
            part = cache.tokens(budget=budget)
            counts = {s: len(part[s].at) for s in streams}
            assert sum(counts.values()) == min(budget, 1000)
            if 64 <= budget <= 1000:
                assert counts["audio"] == pytest.approx(share * budget, abs=2 + 0.02 * budget)
        half = cache.tokens(budget=500)["audio"].at
    duration = float(half.max() - half.min())
    assert duration > 0.6 * 14, "the smaller budget still covers the time"
