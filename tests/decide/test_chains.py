"""Chains of several rules: what is told holds, what is not told is filled, order is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokpipe.chain import build_chain
from tokpipe.errors import RecipeError
from tokpipe.job import Options
from tokpipe.recipe import from_toml, load_recipe
from tokpipe.run import compress_file

CELLS = 84  # of late_audio.mp4: 7 x 12


@pytest.mark.parametrize(
    ("line", "budget", "video"),
    [
        ("uniform:frames=4 | max-min", 900, 4 * CELLS),
        ("temporal-drop | top-k:keep=50 | tome", 400, 50),
        ("top-k:by=score,keep=60,scope=video", 400, 60),
        ("dycoke:merging_ratio=0.7 | scissor", 100, 100),
        ("longvu-frames | longvu-stc", 500, 500),
        ("uniform:frames=4 | stc-pruner", 200, 200),
        ("temporal-drop | dycoke", 300, 300),
    ],
)
def test_chain_keeps_what_it_was_told_and_fills_the_rest(
    line: str, budget: int, video: int, samples: Path, tmp_path: Path
) -> None:
    if line.startswith("top-k"):
        line = f"temporal-drop | {line}"
    record = compress_file(
        samples / "late_audio.mp4", tmp_path / "out.safetensors", recipe=f"video: {line}",
        budget=budget,
    )  # fmt: skip
    assert record.tokens["video"] == video


def test_a_pool_that_holds_few_frames_still_meets_the_budget(samples: Path, tmp_path: Path) -> None:
    for line in ("max-pool | tome:scope=video", "tome:scope=video", "dycoke"):
        record = compress_file(
            samples / "late_audio.mp4", tmp_path / f"{line[:4]}.safetensors",
            recipe=f"video: {line}", budget=200, options=Options(pool=300),
        )  # fmt: skip
        assert record.tokens["video"] == 200


@pytest.mark.parametrize(
    "line",
    [
        "dycoke | temporal-drop | tome",
        "dycoke | max-pool | tome",
        "temporal-drop | anchor-updates | tome",
        "temporal-drop | dpc-knn | anchor-updates",
        "evtp-ivs | temporal-drop",
    ],
)
def test_steps_that_need_whole_frames_are_refused_after_others(line: str) -> None:
    with pytest.raises(RecipeError, match="cannot follow"):
        build_chain("video", load_recipe(f"video: {line}").video)


def test_a_parameter_at_its_default_is_told_as_well() -> None:
    told = build_chain("video", load_recipe("video: dycoke:merging_ratio=0.7").video)
    plain = build_chain("video", load_recipe("video: dycoke").video)
    assert told.removes(told.reducers[0]) and not plain.removes(plain.reducers[0])
    filled = build_chain("video", load_recipe("video: dycoke:merging_ratio=0.7").video, fill=True)
    assert not filled.removes(filled.reducers[0])


def test_a_base_hands_on_that_it_fills_and_never_leads_to_itself(tmp_path: Path) -> None:
    text = 'format = 1\nbase = "longvlm"\n[[audio.step]]\nuse = "mel"\n'
    assert from_toml(text).fill
    path = tmp_path / "own.toml"
    path.write_text(text.replace("longvlm", str(path)), encoding="utf-8")
    with pytest.raises(RecipeError, match="leads back"):
        load_recipe(str(path))
