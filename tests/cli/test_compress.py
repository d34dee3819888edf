"""``tokpipe compress``: outputs, lines, events, exit codes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tokpipe.cache.reader import open_cache
from tokpipe.testing.odd_media import odd_file

END = ".tokpipe.safetensors"
ITEM = {
    "input", "output", "status", "reused", "candidates", "tokens", "frames", "seconds",
    "cpu_seconds",     "peak_rss_mb", "bytes", "layout", "recipe", "encoder", "warnings",
}  # fmt: skip


def tokens(path: Path) -> int:
    with open_cache(path) as cache:
        return cache.num_tokens()


def test_compress_writes_a_cache_and_three_lines(run: Any, clip: Path) -> None:
    result = run("compress", clip, "--budget", "64")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0] == "clip.mp4  2.0 s  192x108 10 fps h264 + aac"
    assert "-> 64 tokens (" in lines[1]
    assert "0:00-0:02" in lines[1]
    assert lines[2].startswith(str(clip.with_name("clip" + END)))
    assert result.stderr == ""
    assert tokens(clip.with_name("clip" + END)) == 64


def test_compress_says_what_of_the_budget_is_unused(run: Any, clip: Path) -> None:
    result = run("compress", clip, "-b", "100000")
    assert "of the budget of 100000 not used" in result.stderr


def test_compress_events_hold_the_contract(run: Any, clip: Path, events: Any) -> None:
    result = run("compress", clip, "-b", "64", "--json")
    item, summary = events(result)
    assert item["event"] == "item"
    assert set(item) >= ITEM
    assert set(item["tokens"]) == {"video", "audio", "text", "total"}
    assert set(item["frames"]) == {"decoded", "sampled", "encoded", "kept"}
    assert set(item["seconds"]) == {"scout", "decode", "encode", "compress", "write", "total"}
    assert item["status"] == "done"
    assert item["tokens"]["total"] == 64
    assert {k: summary[k] for k in ("done", "warned", "failed", "skipped")} == {
        "done": 1, "warned": 0, "failed": 0, "skipped": 0,
    }  # fmt: skip


def test_compress_goes_on_after_a_bad_input(run: Any, clip: Path, events: Any) -> None:
    bad = clip.with_name("bad.mp4")
    bad.write_text("no media")
    result = run("compress", bad, clip, clip.with_name("gone.mp4"), "-b", "16", "--json")
    assert result.exit_code == 1
    found = {Path(e["input"]).name: e for e in events(result) if e["event"] == "item"}
    assert found["clip.mp4"]["status"] in ("done", "warned")
    assert found["bad.mp4"]["error"]["code"] == "media.unsupported"
    assert found["gone.mp4"]["error"]["code"] == "media.not_found"
    assert set(found["bad.mp4"]) >= ITEM
    assert events(result)[-1]["failed"] == 2
    assert result.stderr.count("error: ") == 2


def test_compress_sums_up_several_inputs(run: Any, clip: Path) -> None:
    shutil.copy(clip, clip.with_name("b.mp4"))
    result = run("compress", clip.parent, "-b", "100")
    lines = result.stdout.splitlines()
    assert [line.partition("  ")[0] for line in lines[:2]] == ["b.mp4", "clip.mp4"]
    assert lines[2].startswith("2 done: 200 tokens, ")


def test_compress_skips_what_is_there(run: Any, clip: Path, events: Any) -> None:
    run("compress", clip, "-b", "16")
    before = clip.with_name("clip" + END).stat().st_mtime_ns
    result = run("compress", clip, "-b", "16", "--json")
    assert result.exit_code == 0
    assert events(result)[0]["status"] == "skipped"
    assert events(result)[0]["tokens"]["total"] == 16
    assert events(result)[-1]["skipped"] == 1
    assert clip.with_name("clip" + END).stat().st_mtime_ns == before
    assert "skipped" in run("compress", clip, "-b", "16").stdout


def test_compress_keeps_a_different_output_unless_forced(
    run: Any, clip: Path, two_lines: Any
) -> None:
    run("compress", clip, "-b", "16")
    result = run("compress", clip, "-b", "17")
    assert result.exit_code == 1
    assert "--force" in two_lines(result)[1]
    assert tokens(clip.with_name("clip" + END)) == 16
    assert run("compress", clip, "-b", "17", "--force").exit_code == 0
    assert tokens(clip.with_name("clip" + END)) == 17


def test_compress_mirrors_folders_and_keeps_colliding_suffixes(
    run: Any, clip: Path, tmp_path: Path
) -> None:
    talks = tmp_path / "talks"
    (talks / "day1").mkdir(parents=True)
    shutil.copy(clip, talks / "day1" / "a.mp4")
    shutil.copy(clip, talks / "day1" / "a.m4v")
    shutil.copy(clip, talks / "b.mp4")
    (talks / "notes.txt").write_text("not media")
    result = run("compress", talks, "-b", "16", "-o", tmp_path / "out")
    assert result.exit_code == 0
    made = sorted(
        str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()
    )
    assert made == [f"b{END}", f"day1/a.m4v{END}", f"day1/a.mp4{END}"]


def test_compress_again_over_a_folder_ignores_its_caches(run: Any, clip: Path, events: Any) -> None:
    run("compress", clip.parent, "-b", "16")
    result = run("compress", clip.parent, "-b", "16", "--json")
    assert [e["status"] for e in events(result) if e["event"] == "item"] == ["skipped"]


def test_compress_output_names(run: Any, clip: Path, tmp_path: Path) -> None:
    assert run("compress", clip, "-b", "8", "-o", tmp_path / "x" / "own.safetensors").exit_code == 0
    assert tokens(tmp_path / "x" / "own.safetensors") == 8
    assert run("compress", clip, "-b", "8", "-o", f"{tmp_path}/y/").exit_code == 0
    assert tokens(tmp_path / "y" / f"clip{END}") == 8


def test_compress_never_writes_over_an_input(run: Any, clip: Path, two_lines: Any) -> None:
    before = clip.read_bytes()
    result = run("compress", clip, "-o", clip, "--force")
    assert result.exit_code == 2
    assert "is one of the inputs" in two_lines(result)[0]
    assert clip.read_bytes() == before


def test_compress_ratio_is_percent(run: Any, clip: Path, events: Any) -> None:
    one = events(run("compress", clip, "--ratio", "0.1", "--json"))[0]
    two = events(run("compress", clip, "-b", "10%", "--json", "-o", clip.with_name("b" + END)))[0]
    assert one["budget"] == "10%"
    assert one["tokens"] == two["tokens"]


def test_compress_threshold_leaves_the_budget_out(run: Any, clip: Path, events: Any) -> None:
    low = events(
        run("compress", clip, "--threshold", "0.5", "--json", "-o", clip.with_name("a" + END))
    )[0]
    high = events(
        run("compress", clip, "--threshold", "5", "--json", "-o", clip.with_name("b" + END))
    )[0]
    assert low["budget"] is None
    assert 0 < high["tokens"]["video"] < low["tokens"]["video"]


def test_compress_cells_and_fps_change_the_recipe(run: Any, clip: Path) -> None:
    assert run("compress", clip, "-b", "8", "--fps", "1", "--cells", "8").exit_code == 0
    with open_cache(clip.with_name("clip" + END)) as cache:
        steps = cache.metadata["tokpipe.recipe"]["video"]
    assert {s["use"]: s for s in steps}["fps"]["fps"] == 1.0
    assert {s["use"]: s for s in steps}["pixels"]["cells"] == 8


@pytest.mark.parametrize("detail", ["low", "auto", "high"])
def test_compress_detail_is_that_of_the_recipe(detail: str, run: Any, clip: Path) -> None:
    assert run("compress", clip, "-b", "40", "--detail", detail).exit_code == 0
    with open_cache(clip.with_name("clip" + END)) as cache:
        steps = cache.metadata["tokpipe.recipe"]["video"]
    assert {s["use"]: s for s in steps}["coverage-updates"]["detail"] == detail


def test_plan_takes_a_detail(run: Any, clip: Path, events: Any) -> None:
    planned = events(run("plan", clip, "-b", "40", "--detail", "low", "--json"))[0]
    (step,) = [s for s in planned["steps"] if s["use"] == "coverage-updates"]
    assert step["params"]["detail"] == "low"
    assert planned["tokens"]["total"] == 40


def test_compress_is_quiet_when_asked(run: Any, clip: Path) -> None:
    result = run("compress", clip, "-b", "8", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_compress_tells_details_when_asked(run: Any, clip: Path) -> None:
    assert "frames: 20 decoded" in run("compress", clip, "-b", "8", "-v", "--no-bank").stderr


def test_compress_dry_run_is_plan_and_writes_nothing(run: Any, clip: Path, events: Any) -> None:
    plan, summary = events(run("compress", clip, "-b", "8", "--dry-run", "--json"))
    assert plan["event"] == "plan"
    assert plan["tokens"]["total"] == 8
    assert summary["event"] == "summary"
    assert not list(clip.parent.glob("*" + END))


@pytest.mark.parametrize(
    "extra", [["--workers", "2"], ["--prefetch", "0", "--batch-size", "3", "--no-bank"]]
)
def test_compress_gives_the_same_bytes_however_it_runs(
    extra: list[str], run: Any, clip: Path, events: Any, tmp_path: Path
) -> None:
    talks = tmp_path / "talks"
    talks.mkdir()
    shutil.copy(clip, talks / "a.mp4")
    odd_file("vfr.mp4").make(talks / "b.mp4")
    (talks / "bad.mp4").write_text("no media")
    made = {}
    for name, options in (("one", []), ("two", extra)):
        result = run("compress", talks, "-b", "40", "-o", tmp_path / name, "--json", *options)
        assert result.exit_code == 1
        items = [e for e in events(result) if e["event"] == "item"]
        assert [Path(e["input"]).name for e in items] == ["a.mp4", "b.mp4", "bad.mp4"]
        made[name] = [
            hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((tmp_path / name).iterdir())
        ]
    assert made["one"] == made["two"]


def test_compress_prints_names_that_are_no_text(run: Any, clip: Path) -> None:
    odd = clip.with_name(b"caf\xe9 \xf0\x9f\x8e\xac.mp4".decode("utf-8", "surrogateescape"))
    try:
        clip.rename(odd)
    except OSError:
        pytest.skip("this file system takes only valid names")
    result = run("compress", odd, "-b", "8", "--json")
    assert result.exit_code in (0, 1)
    assert all(json.loads(line)["v"] == 1 for line in result.stdout.splitlines())
    assert "Traceback" not in result.stderr
