"""Figures of the benchmarks page hold to their schema, and the tables are made of them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tokpipe.evaluate.bench_report import (
    Competitor,
    FileResult,
    Ratio,
    Recall,
    Report,
    Run,
    Usage,
)
from tokpipe.testing.long_media import write_action

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "benchmarks"
CONDITIONS: dict[str, Any] = {
    "machine": "x86_64", "system": "Linux", "processor": "a processor", "cores": 2, "load": 0.5,
    "python": "3.11.7", "versions": {"av": "18.1.0"},
}  # fmt: skip


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return script(ROOT / "docs" / "benchmark_tables.py")


def competitor(name: str, cpu: float) -> Competitor:
    run = Run(wall=cpu, cpu=cpu, peak_mb=50.0, cpu_beyond=cpu, wall_beyond=cpu, frames=36000)
    imports = [Usage(wall=0.2, cpu=0.1, peak_mb=30.0)]
    return Competitor(
        name=name, ours=name.startswith("tokpipe"), what=name, imports=imports, runs=[run],
        median=run,
    )  # fmt: skip


@pytest.fixture
def report() -> Report:
    absent = Competitor(name="decord", ours=False, what="decord", status="skipped", reason="no it")
    made = FileResult(
        file="a.mp4", label="lecture", duration=1200.0, video="h264 1280x720", budget=8192,
        rounds=1,
        competitors=[competitor("tokpipe:balanced", 2.0), competitor("pyav-auto", 16.0), absent],
        ratios=[
            Ratio(ours="tokpipe:balanced", theirs="pyav-auto", cpu=[0.125], cpu_median=0.125,
                  wall=[0.1], wall_median=0.1)
        ],
        recall={"tokpipe:balanced": Recall(events=40, moments=60, tokens=1500, ours=1.0,
                                           decord_same_moments=0.9)},
    )  # fmt: skip
    return Report(conditions=CONDITIONS, asked={"fps": 2.0}, files=[made])


def test_peers_tables_hold_what_was_measured(
    tables: ModuleType, report: Report, tmp_path: Path
) -> None:
    (tmp_path / "peers.json").write_text(report.model_dump_json(), encoding="utf-8")
    text = tables.filled("a\n<!-- peers: made -->\nold\n<!-- end -->\nb\n", tmp_path)
    assert text.startswith("a\n<!-- peers: made -->\n\nConditions: 2 cores (a processor, Linux)")
    assert text.endswith("<!-- end -->\nb\n") and "old" not in text
    assert "### Lecture\n\n20.0 minutes, h264 1280x720, 8192 tokens, 1 round." in text
    assert "| tokpipe:balanced | 2.00 | 2.00 | 2.00 | 0.10 | 50 | 36,000 |" in text
    assert "| decord | skipped: no it | | | | | |" in text
    assert "| tokpipe:balanced / pyav-auto | 0.125 | 0.125 | 0.1 |" in text
    assert "| tokpipe:balanced | 40 | 1.00 | 0.90 |  |  |  |" in text


def test_a_page_without_figures_says_so(tables: ModuleType, tmp_path: Path) -> None:
    page = "<!-- scale: made -->\n<!-- end -->\n"
    once = tables.filled(page, tmp_path)
    assert "Not measured yet." in once
    assert tables.filled(once, tmp_path) == once


def test_aims_are_compared_with_what_was_measured(report: Report) -> None:
    lines = script(ROOT / "tests" / "benchmarks" / "peers.py").aims_met(report.files)
    assert lines[0].startswith("met     lecture: tokpipe:balanced / pyav-auto 0.125")
    assert lines[1].startswith("met     lecture: tokpipe:balanced recall 1.000")
    report.files[0].ratios[0].cpu_median = 0.2
    report.files[0].recall["tokpipe:balanced"].ours = 0.975
    lines = script(ROOT / "tests" / "benchmarks" / "peers.py").aims_met(report.files)
    assert [line[:7] for line in lines] == ["NOT met", "NOT met"]


def test_published_figures_hold_to_their_schema() -> None:
    for path in FIGURES.glob("peers*.json"):
        Report.model_validate_json(path.read_text(encoding="utf-8"))
    for path in FIGURES.glob("scale*.json"):
        check_scale(json.loads(path.read_text(encoding="utf-8")))


def test_published_figures_of_datasets_hold_what_their_table_needs(tables: ModuleType) -> None:
    path = FIGURES / "dataset.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["version"] == 1
    assert found["random_access"]["items"] >= 10_000
    assert found["random_access"]["item_bytes"] >= 1_000_000
    assert found["slice"]["item_tokens"] == 2000 and found["loader"]["items"] == 200
    text = tables.dataset_tables(path)
    assert "| `Trainer`'s loader, 2 workers | " in text and "| 10,000 items of 1.08 MB | " in text
    loader = found["loader"]
    sound = {**loader, "ratio": {"workers_2": 0.8}}
    aims = list(script(ROOT / "tests" / "benchmarks" / "dataset.py").aims_met(
        {**found, "loader": sound, "slice": {"share": 0.1}}
    ))  # fmt: skip
    assert [line[:7] for line in aims] == ["met    ", "met    ", "NOT met"]


def check_scale(found: dict[str, Any]) -> None:
    assert set(found) == {
        "version", "conditions", "file", "effort", "budget", "lengths", "most_over_least"
    }  # fmt: skip
    assert found["version"] == 1 and found["most_over_least"] >= 1
    for row in found["lengths"]:
        assert row["hours"] > 0
        if row["status"] != "done":
            assert row["status"] == "skipped" and row["reason"]
            continue
        assert set(row) == {
            "hours", "status", "reason", "media_mb", "bank_mb", "first", "again", "speedup"
        }  # fmt: skip
        for run in (row["first"], row["again"]):
            assert set(run) == {
                "wall_beyond", "cpu_beyond", "cpu_per_hour", "peak_mb", "selection_share",
                "seconds", "frames", "tokens",
            }  # fmt: skip
            assert 0 <= run["selection_share"] <= 1 and run["peak_mb"] > 50


def test_scale_measures_copied_packets_and_the_run_from_the_bank(
    tables: ModuleType, tmp_path: Path
) -> None:
    clip, out = tmp_path / "clip.mp4", tmp_path / "scale.json"
    write_action(clip, 2, size=(160, 96), threads=1)
    benchmark = str(ROOT / "tests" / "benchmarks" / "scale.py")
    asked = ["--hours", "0.002,1", "--seconds", "1", "--budget", "64", "--out", str(out)]
    command = [sys.executable, benchmark, str(clip), *asked]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads(out.read_text(encoding="utf-8"))
    check_scale(found)
    done, left = found["lengths"]
    assert done["first"]["frames"]["decoded"] > 0 == done["again"]["frames"]["decoded"]
    assert done["first"]["tokens"]["total"] == 64 and done["again"]["tokens"]["total"] == 32
    assert left["status"] == "skipped"
    text = tables.filled("<!-- scale: made -->\n<!-- end -->", tmp_path)
    assert "| 1 | not run: would take about" in text and "| 0.002 |" in text
