"""A plan says what the run will do, without decoding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tokpipe.budget import Budget
from tokpipe.errors import BudgetError, UnsupportedMedia
from tokpipe.plan import Plan, plan_file
from tokpipe.run import Options, RunRecord, compress_file, prepare
from tokpipe.testing.odd_media import odd_file

BUDGETS = ("1", "7", "64", "2048", "100000", "10%", "8/frame", "40/s", "video=100,audio=28")
CLIPS = ("late_audio.mp4", "edit_list.mp4", "vfr.mp4")


def both(path: Path, folder: Path, recipe: str = "auto", **options: Any) -> tuple[Plan, RunRecord]:
    """Plan from packets alone, then run."""
    made = Options(**options)
    planned = plan_file(path, job=prepare(recipe, replace(made, keep_bank=False)))
    record = compress_file(path, folder / "out.tokpipe.safetensors", recipe=recipe, options=made)
    return planned, record


def check(planned: Plan, record: RunRecord) -> None:
    """Exact counts are the run's, all others bounds of it."""
    for name in ("video", "audio", "total"):
        if planned.exact[name]:
            assert planned.tokens[name] == record.tokens[name], name
        assert planned.tokens[name] >= record.tokens[name], name


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("clip", CLIPS)
def test_plan_counts_what_the_run_gives(
    clip: str, budget: str, samples: Path, tmp_path: Path
) -> None:
    planned, record = both(samples / clip, tmp_path, budget=Budget.parse(budget))
    check(planned, record)
    assert planned.frames == record.frames["sampled"]
    if budget.isdigit() and int(budget) <= planned.candidates["video"]:
        assert planned.exact["total"]


@pytest.mark.parametrize("budget", ["5", "64", "300", "2048", "video=300,audio=10"])
@pytest.mark.parametrize("layout", ["frames", "grid"])
def test_plan_counts_layouts(layout: str, budget: str, samples: Path, tmp_path: Path) -> None:
    planned, record = both(
        samples / "action.mp4", tmp_path, budget=Budget.parse(budget), layout=layout
    )
    check(planned, record)


@pytest.mark.parametrize("layout", ["frames", "grid"])
def test_plan_is_exact_about_whole_shapes_without_sound(
    layout: str, samples: Path, tmp_path: Path
) -> None:
    for budget in (5, 64, 300, 2048):
        planned, record = both(
            samples / "action.mp4", tmp_path, budget=Budget.parse(budget), layout=layout,
            audio_stream="none", force=True,
        )  # fmt: skip
        assert planned.exact["total"]
        check(planned, record)


@pytest.mark.parametrize(
    "recipe",
    ["fps:fps=1.0 | pixels | tome", "fps | pixels | uniform",
     "fps | pixels | temporal-drop | max-min",
     "fps | pixels | temporal-drop:threshold=1.0",
     "video: fps | pixels; audio: mel | silence-gate:drop=true"],
)  # fmt: skip
def test_plan_bounds_every_recipe(recipe: str, samples: Path, tmp_path: Path) -> None:
    check(*both(samples / "screen.mp4", tmp_path, recipe, budget=Budget.parse(200)))


def test_plan_of_a_threshold_is_a_bound(samples: Path, tmp_path: Path) -> None:
    planned, record = both(
        samples / "screen.mp4", tmp_path, "fps | pixels | temporal-drop:threshold=1.0"
    )
    assert planned.budget is None
    assert not planned.exact["total"]
    check(planned, record)


def test_plan_finds_the_bank(samples: Path, tmp_path: Path) -> None:
    path = samples / "screen.mp4"
    compress_file(path, tmp_path / "a.tokpipe.safetensors", budget=64)
    planned = plan_file(path, job=prepare("auto", Options(budget=Budget.parse(64))))
    assert planned.reused == ["decode", "encode"]
    assert planned.candidates_exact["audio"]


def test_plan_says_what_a_budget_cannot_carry(samples: Path) -> None:
    planned = plan_file(
        samples / "lecture.mp4", job=prepare("auto", Options(budget=Budget.parse(64)))
    )
    codes = {text.partition(":")[0] for text in planned.warnings}
    assert {"thin-video", "thin-audio"} <= codes


@pytest.mark.parametrize(
    ("budget", "share", "refused"),
    [("video=64,audio=0", 0.25, "audio"), ("64", 0.0, "audio"), ("audio=64", 0.25, "video")],
)
def test_a_stream_refused_on_purpose_is_not_called_thin(
    budget: str, share: float, refused: str, samples: Path, tmp_path: Path
) -> None:
    options = Options(budget=Budget.parse(budget), audio_share=share)
    job = prepare("auto", options)
    planned = plan_file(samples / "lecture.mp4", job=job)
    record = compress_file(samples / "lecture.mp4", tmp_path / "a.tokpipe.safetensors", job=job)
    for warnings in (planned.warnings, record.warnings):
        assert not [text for text in warnings if text.startswith(f"thin-{refused}")]
        assert [text for text in warnings if text.startswith("thin-")]


def test_plan_estimates_bytes_and_memory(samples: Path, tmp_path: Path) -> None:
    planned, record = both(samples / "action.mp4", tmp_path, budget=Budget.parse(1024))
    assert 0.4 * record.bytes < planned.bytes < 2.5 * record.bytes
    assert planned.peak_memory_mb > 100
    larger = plan_file(
        samples / "action.mp4", job=prepare("auto", Options(budget=Budget.parse(100_000)))
    )
    assert larger.bytes > planned.bytes


def test_plan_shows_every_step(samples: Path) -> None:
    planned = plan_file(samples / "action.mp4", job=prepare("auto", Options(keep_bank=False)))
    uses = [step.use for step in planned.steps]
    assert uses == [
        "fps",
        "pixels",
        "temporal-drop",
        "coverage-updates",
        "mel",
        "silence-gate",
        "adjacent-merge",
    ]
    assert planned.steps[1].tokens == planned.candidates["video"]


def test_plan_pool_follows_the_recipe(samples: Path) -> None:
    job = prepare("fps | pixels | max-min:scope=video", Options(budget=Budget.parse(10), pool=500))
    assert plan_file(samples / "action.mp4", job=job).pool == 500
    assert plan_file(samples / "action.mp4", job=prepare("auto")).pool is None


def test_plan_refuses_what_the_run_refuses(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_text("no media")
    with pytest.raises(UnsupportedMedia):
        plan_file(path, job=prepare("auto"))
    sound = odd_file("cover_art.m4a")
    sound.make(tmp_path / sound.name)
    with pytest.raises(BudgetError, match="needs video"):
        plan_file(
            tmp_path / sound.name, job=prepare("auto", Options(budget=Budget.parse("8/frame")))
        )
