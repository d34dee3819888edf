"""What a run refuses, and what it repairs, instead of writing something wrong."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tokpipe.budget import Budget
from tokpipe.cache.bank import bank_root
from tokpipe.cache.reader import open_cache
from tokpipe.errors import BudgetError, OutputExists, RecipeError
from tokpipe.run import Options, compress_file, prepare

FRESH = Options(keep_bank=False)


@pytest.mark.parametrize(
    "name", ["audio", "descriptors", "frames", "mel", "pictures", "entry.json"]
)
def test_damaged_bank_entry_is_made_anew(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TOKPIPE_CACHE_DIR", str(tmp_path / "cache"))
    source = samples / "late_audio.mp4"
    compress_file(source, tmp_path / "first", budget=300)
    (entry,) = [p for p in bank_root().iterdir() if not p.name.startswith(".")]
    data = bytearray((entry / name).read_bytes())
    data[len(data) // 2] ^= 1
    (entry / name).write_bytes(data)
    again = compress_file(source, tmp_path / "second", budget=300)
    assert again.reused == []
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize("layout", ["frames", "grid"])
@pytest.mark.parametrize("each", [7, 150])
def test_per_frame_budget_keeps_the_layout(
    samples: Path, tmp_path: Path, layout: str, each: int
) -> None:
    options = replace(FRESH, layout=layout)  # type: ignore[arg-type]
    compress_file(samples / "action.mp4", tmp_path / "a", budget=f"{each}/frame", options=options)
    with open_cache(tmp_path / "a") as cache:
        _, counts = np.unique(cache.column("video.at"), return_counts=True)
    assert len(set(counts.tolist())) == 1
    assert counts[0] <= each


@pytest.mark.parametrize("layout", ["frames", "grid"])
def test_threshold_gives_no_regular_layout(layout: str) -> None:
    recipe = "fps | pixels | temporal-drop:threshold=1.0"
    with pytest.raises(RecipeError, match="layout"):
        prepare(recipe, replace(FRESH, layout=layout))  # type: ignore[arg-type]


def test_force_replaces_token_caches_only(samples: Path, tmp_path: Path) -> None:
    source, forced = samples / "vfr.mp4", replace(FRESH, force=True)
    foreign = tmp_path / "film.mp4"
    foreign.write_bytes((samples / "rotated.mp4").read_bytes())
    with pytest.raises(OutputExists, match="no token cache"):
        compress_file(source, foreign, budget=50, options=forced)
    assert foreign.read_bytes() == (samples / "rotated.mp4").read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputExists, match="no token cache"):
        compress_file(source, pipe, budget=50, options=forced)
    cache = tmp_path / "a"
    compress_file(source, cache, budget=50, options=FRESH)
    assert compress_file(source, cache, budget=60, options=forced).tokens["total"] == 60


def test_budget_that_leaves_nothing_is_said(samples: Path, tmp_path: Path) -> None:
    only_audio = Options(budget=Budget.parse("audio=5"), audio_stream="none", keep_bank=False)
    with pytest.raises(BudgetError, match="leaves nothing"):
        compress_file(samples / "rotated.mp4", tmp_path / "a", options=only_audio)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("recipe", "budget", "count"),
    [
        ("fps | pixels | temporal-drop | top-k:keep=500", None, 500),
        ("fps | pixels | temporal-drop | top-k:keep=500", 100, 100),
        ("fps | pixels | temporal-drop | top-k:keep=500", 2048, 500),
        ("fps | pixels | uniform:frames=4", None, 576),
        ("fps | pixels | grid-pool:rows=3,cols=4", None, 336),
    ],
)
def test_counts_of_a_recipe_remove_whatever_the_budget(
    samples: Path, tmp_path: Path, recipe: str, budget: int | None, count: int
) -> None:
    source = samples / "action.mp4"
    record = compress_file(source, tmp_path / "a", recipe=recipe, budget=budget, options=FRESH)
    assert record.tokens["total"] == count


def test_second_sampler_is_refused() -> None:
    with pytest.raises(RecipeError, match="second sampler"):
        prepare("fps:fps=0.5 | fps | pixels")


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("video: mel", "video chain"),
        ("audio: pixels", "audio chain"),
        ("fps | pixels | top-k", "needs `score`"),
        ("audio: mel | temporal-drop", "audio chain"),
        ("audio: mel | adjacent-merge | anchor-updates", "audio chain"),
    ],
)
def test_needs_are_checked_before_anything_starts(recipe: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        prepare(recipe)
