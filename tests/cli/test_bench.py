"""``tokpipe bench``: tables for people, a checked report, wrong words in two lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokpipe.evaluate.bench_report import FileResult, Report


@pytest.mark.timeout(400)
def test_bench_prints_costs_and_ratios(run: Any, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = run("bench", clip, "--peers", "pyav", "--runs", "1", "-b", "64", "-o", out)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("clip.mp4  2.0 s  h264 192x108  1 round")
    for name in ("tokpipe", "tokpipe-bank", "tokpipe-reuse", "pyav-1", "pyav-auto"):
        assert f"\n {name} " in done.stdout
    assert "tokpipe / pyav-1" in done.stdout
    report = Report.model_validate_json(out.read_text(encoding="utf-8"))
    assert report.conditions["cores"] >= 1 and "av" in report.conditions["versions"]
    assert "pyav-1, imports" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_bench_events(run: Any, clip: Path, events: Any) -> None:
    found = events(run("bench", clip, "--peers", "pyav", "--runs", "1", "-b", "64", "--json", "-q"))
    made = FileResult.model_validate({k: v for k, v in found[0].items() if k not in {"v", "event"}})
    assert (found[0]["event"], made.file) == ("bench", "clip.mp4")
    assert (found[1]["event"], found[1]["done"], found[1]["failed"]) == ("summary", 1, 0)


def test_what_cannot_be_measured_is_said(run: Any, clip: Path, two_lines: Any) -> None:
    done = run("bench", clip, "--peers", "pyav,fly")
    assert done.exit_code == 2
    assert two_lines(done)[0] == "unknown peer `fly`"
    done = run("bench", clip, "--effort", "turbo")
    assert done.exit_code == 2
    assert two_lines(done)[0] == "unknown effort `turbo`"
    done = run("bench", clip.with_name("absent.mp4"))
    assert done.exit_code == 2
    assert "absent.mp4" in two_lines(done)[0]
    done = run("bench", clip, "--annotations", clip.with_name("absent.json"))
    assert done.exit_code == 2


def test_the_schema_of_the_report_is_on_its_page() -> None:
    page = Path(__file__).parents[2] / "docs" / "benchmarks" / "report.schema.json"
    assert json.loads(page.read_text(encoding="utf-8")) == Report.model_json_schema(), (
        "run: python docs/build.py"
    )
