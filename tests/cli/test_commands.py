"""probe, plan, inspect, verify, ops, doctor: lines for people, objects for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokpipe import registry
from tokpipe.cache.reader import open_cache
from tokpipe.testing.caches import write_features
from tokpipe.testing.odd_media import odd_file
from tokpipe_cli.complete import operator_names, recipe_names

END = ".tokpipe.safetensors"


@pytest.fixture
def cache(run: Any, clip: Path) -> Path:
    """A cache of the clip: 2 s, 150 tokens."""
    run("compress", clip, "-b", "150")
    return clip.with_name("clip" + END)


@pytest.mark.parametrize(
    ("name", "says"),
    [("rotated_180.mp4", "180 degrees"), ("hdr_pq.mp4", "HDR (pq)"),
     ("interlaced.mp4", "interlaced"),
     ("pixel_aspect.mp4", "pixel aspect 2"), ("vfr.mp4", "variable"), ("no_audio.mp4", "none")],
)  # fmt: skip
def test_probe_prints_what_will_be_normalised(
    name: str, says: str, run: Any, tmp_path: Path
) -> None:
    odd_file(name).make(tmp_path / name)
    result = run("probe", tmp_path / name)
    assert result.exit_code == 0
    assert says in result.stdout


def test_probe_json_has_every_field(run: Any, clip: Path, events: Any) -> None:
    found, summary = events(run("probe", clip, "--json"))
    assert found["event"] == "probe"
    assert found["duration"] == pytest.approx(2.0, abs=0.1)
    assert found["video"]["codec"] == "h264"
    assert found["video"]["frame_rate"] == "10"
    assert found["audio"]["sample_rate"] == 16000
    assert set(found) >= {
        "container",
        "fingerprint",
        "size",
        "zero",
        "start",
        "other_streams",
        "warnings",
    }
    assert summary["done"] == 1


def test_probe_goes_on_after_a_bad_file(run: Any, clip: Path, events: Any) -> None:
    bad = clip.with_name("bad.mp4")
    bad.write_text("no media")
    result = run("probe", bad, clip, "--json")
    assert result.exit_code == 1
    assert [e["event"] for e in events(result)] == ["error", "probe", "summary"]


def test_plan_shows_the_steps(run: Any, clip: Path) -> None:
    result = run("plan", clip, "-b", "64", "--no-bank")
    assert result.exit_code == 0
    for word in ("temporal-drop", "scored", "4 frames", "-> 64 tokens", "memory about", "at most"):
        assert word in result.stdout


def test_plan_json_is_what_the_run_gives(run: Any, clip: Path, events: Any) -> None:
    plan, summary = events(run("plan", clip, "-b", "64", "--no-bank", "--json"))
    item = events(run("compress", clip, "-b", "64", "--json"))[0]
    assert plan["exact"]["total"]
    assert plan["tokens"]["total"] == item["tokens"]["total"] == summary["tokens"]
    assert plan["frames"] == item["frames"]["sampled"]
    assert {
        "steps",
        "candidates",
        "bytes",
        "peak_memory_mb",
        "reused",
        "warnings",
        "budget",
        "pool",
    } <= set(plan)


def test_plan_goes_on_after_a_bad_input(run: Any, clip: Path, events: Any) -> None:
    bad = clip.with_name("bad.mp4")
    bad.write_text("no media")
    result = run("plan", clip.parent, "-b", "8", "--json")
    assert result.exit_code == 1
    assert sorted(e["event"] for e in events(result)) == ["error", "plan", "summary"]


def test_inspect_json_holds_the_contract(run: Any, cache: Path) -> None:
    result = run("inspect", cache, "--json")
    found = json.loads(result.stdout)
    assert set(found) == {
        "v", "event", "format", "duration", "start", "tokens", "streams", "segments", "speech",
        "frames",         "layout", "provenance",
    }  # fmt: skip
    assert found["tokens"]["total"] == 150
    assert sum(f["cells"] for f in found["frames"]) == found["tokens"]["video"]
    assert all(a < b for a, b in found["segments"] + found["speech"])
    assert found["provenance"]["source"]["name"] == "clip.mp4"


@pytest.mark.parametrize(
    ("stored", "name"), [("BF16", "bfloat16"), ("F16", "float16"), ("F32", "float32")]
)
def test_inspect_tells_the_stored_dtype(stored: str, name: str, run: Any, tmp_path: Path) -> None:
    path = write_features(tmp_path / f"a{END}", dtype=stored)
    found = json.loads(run("inspect", path, "--json").stdout)
    assert found["streams"]["video"]["dtype"] == name
    assert f"D 8 {name}" in run("inspect", path).stdout


def test_inspect_takes_a_stretch(run: Any, cache: Path) -> None:
    whole, first, rest = (
        json.loads(run("inspect", cache, "--json", *extra).stdout)["tokens"]["total"]
        for extra in ([], ["--stop", "1"], ["--at", "1"])
    )
    assert first + rest == whole
    assert 0 < first < whole
    assert run("inspect", cache, "--at", "2", "--stop", "1").exit_code == 2


def test_inspect_writes_pictures(run: Any, cache: Path, tmp_path: Path) -> None:
    result = run("inspect", cache, "--frames", tmp_path / "out", "--json")
    times = [f["pts"] for f in json.loads(result.stdout)["frames"]]
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    ]
    assert [row["pts"] for row in rows] == times
    with open_cache(cache) as opened:
        for row, frame in zip(rows, opened.frames(), strict=True):
            with Image.open(tmp_path / "out" / row["file"]) as picture:
                assert np.array_equal(np.asarray(picture), frame.pixels)


def test_inspect_prints_a_table(run: Any, cache: Path) -> None:
    result = run("inspect", cache)
    assert "clip.mp4" in result.stdout
    assert "layout" in result.stdout
    assert "temporal-drop" in result.stdout


def test_verify_passes_and_fails(run: Any, cache: Path, events: Any) -> None:
    assert "ok (deep)" in run("verify", "--deep", cache).stdout
    data = bytearray(cache.read_bytes())
    data[-40] ^= 0xFF
    bad = cache.with_name("bad" + END)
    bad.write_bytes(data)
    result = run("verify", "--deep", cache, bad, "--json")
    assert result.exit_code == 1
    assert [e.get("ok") for e in events(result)] == [True, False, None]
    assert "problem" in run("verify", "--deep", bad).stdout


def test_ops_list_names_all(run: Any, events: Any) -> None:
    result = run("ops", "list")
    assert all(name in result.stdout for name in registry.entries())
    found = [e["name"] for e in events(run("ops", "list", "--json")) if e["event"] == "operator"]
    assert sorted(found) == sorted(registry.entries())


def test_ops_list_takes_a_kind(run: Any, events: Any, two_lines: Any) -> None:
    found = events(run("ops", "list", "--json", "--kind", "similarity"))
    assert {e["mechanism"] for e in found[:-1]} == {"similarity"}
    assert "use one of" in two_lines(run("ops", "list", "--kind", "magic"))[1]


@pytest.mark.parametrize("name", sorted(registry.entries()))
def test_ops_show_everything_there_is(name: str, run: Any) -> None:
    result = run("ops", "show", name)
    assert result.exit_code == 0
    found = json.loads(run("ops", "show", name, "--json").stdout)
    if found["kind"] == "preset":
        assert found["line"] in result.stdout
        assert 'use = "' in found["toml"]
    else:
        assert found["source"]
        assert all(
            p["name"] in result.stdout and "object at" not in p["type"] for p in found["parameters"]
        )
        assert found["scope"] in ("", "frame", "window", "stream", "video")


def test_ops_list_tells_where_and_what_each_needs(run: Any, events: Any) -> None:
    found = {e["name"]: e for e in events(run("ops", "list", "--json")) if "name" in e}
    facts = found["visionzip"]
    assert facts["modalities"] == ["video"] and facts["mechanism"] == "attention"
    assert facts["where"] == "outputs" and "attention" in facts["needs"]
    assert facts["parity"] == "golden" and facts["budget"] == "exact" and not facts["causal"]
    lines = run("ops", "list").stdout.splitlines()
    line = next(line for line in lines if line.startswith("visionzip "))
    assert all(word in line for word in ("attention", "video", "outputs", "exact", "golden"))


def test_ops_list_all_says_why_the_others_do_not_run(run: Any, events: Any) -> None:
    assert "hivtp" not in run("ops", "list").stdout
    text = run("ops", "list", "--all").stdout
    assert all(name in text for name in ("hivtp", "topv", "adafv", "zoo-prune"))
    rows = [e for e in events(run("ops", "list", "--all", "--json")) if e["event"] == "method"]
    assert {"llm", "trained", "unspecified"} <= {row["status"] for row in rows}


def test_ops_show_takes_aliases_and_methods_that_do_not_run(run: Any, two_lines: Any) -> None:
    assert run("ops", "show", "llava-scissor").stdout.startswith("scissor")
    assert "not published" in run("ops", "show", "agilepruner").stdout
    result = run("compress", "x.mp4", "--recipe", "agilepruner")
    assert result.exit_code == 2 and "not specified well enough" in two_lines(result)[0]


def test_ops_schema_knows_every_operator(run: Any) -> None:
    schema = json.loads(run("ops", "schema").stdout)
    operators = {n for n, e in registry.entries().items() if e.kind != "preset"}
    assert set(schema["$defs"]) == operators
    assert schema["$defs"]["tome"]["properties"]["every"]["minimum"] == 2


def test_ops_show_ranges(run: Any) -> None:
    found = json.loads(run("ops", "show", "pixels", "--json").stdout)["parameters"]
    (cells,) = found
    assert {k: cells[k] for k in ("name", "type", "default", "ge", "le", "range")} == {
        "name": "cells", "type": "int", "default": 16, "ge": 8, "le": 64, "range": "8 to 64",
    }  # fmt: skip
    assert "long side" in cells["about"]
    assert "8 to 64" in run("ops", "show", "pixels").stdout


def test_ops_show_suggests_the_nearest_name(run: Any, two_lines: Any) -> None:
    result = run("ops", "show", "tomme")
    assert result.exit_code == 2
    assert "`tome`" in two_lines(result)[1]


def test_doctor_finds_what_is_needed(run: Any) -> None:
    result = run("doctor", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0, [f for f in found["findings"] if f["state"] == "missing"]
    assert found["ok"]
    names = {f["name"]: f for f in found["findings"]}
    assert names["self-test"]["state"] == "ok"
    assert {"torch", "FFmpeg", "H.264", "Opus", "WebP", "folder", "encoders"} <= set(names)
    assert all(
        f["fix"] for f in found["findings"] if f["topic"] == "extra" and f["state"] == "optional"
    )


def test_doctor_says_when_the_bank_cannot_be_written(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TOKPIPE_CACHE_DIR", str(tmp_path / "file"))
    result = run("doctor")
    assert result.exit_code == 3
    assert "TOKPIPE_CACHE_DIR" in result.stdout


def test_completion_offers_names() -> None:
    assert ("tome" in dict(operator_names("to"))) and "tome" in dict(recipe_names("to"))
    assert "pixels" in dict(operator_names("pi")) and "pixels" not in dict(recipe_names("pi"))
    assert "ma-lmm" in dict(recipe_names("ma-"))
    assert "auto" in dict(recipe_names("a"))
