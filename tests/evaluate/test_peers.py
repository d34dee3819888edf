"""Comparisons measure what ran, say why something did not, and count events right."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from tokpipe.errors import MediaError, ResourceError
from tokpipe.evaluate.peers import Plan, _shown, compare
from tokpipe.evaluate.recall import file_recall, hit_share, read_note, rows_of
from tokpipe.evaluate.timing import ProcessFailed, ratios, run_process
from tokpipe.evaluate.workloads import IMPORTS
from tokpipe.run import Options, compress_file
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media

BURN = "import sys, time\nwhile time.process_time() < {0}: pass\n"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "clip.mp4"
    write_media(path, VideoTrack(frames=40, fps=Fraction(10)), AudioTrack(duration=Fraction(4)))
    return path


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_cpu_time_counts_threads_and_children() -> None:
    child = f"import subprocess; subprocess.run({python(BURN.format(0.4))!r}, check=True)\n"
    assert run_process(python(child + BURN.format(0.3))).cpu > 0.65


def test_cost_beyond_imports_begins_where_the_process_says_so() -> None:
    code = (
        "import json, time\n" + BURN.format(0.3)
        + "print(json.dumps({'loaded': {'cpu': time.process_time(), 'at': time.monotonic()}}))\n"
        + BURN.format(0.5) + "print('no JSON'); print(json.dumps({'frames': 7}))\n"
        + "print(json.dumps({'event': 'summary', 'frames': 8}))"
    )  # fmt: skip
    cost = run_process(python(code))
    assert cost.output == {"frames": 7}
    assert 0.15 < cost.cpu_beyond < cost.cpu - 0.25
    assert 0.15 < cost.wall_beyond < cost.wall - 0.25


def test_peak_memory_is_that_of_the_process() -> None:
    assert run_process(python("x = bytearray(200 << 20)")).peak_mb > 200


def test_failures_say_their_last_line() -> None:
    with pytest.raises(ProcessFailed, match="ValueError: seven"):
        run_process(python("raise ValueError('seven')"))
    with pytest.raises(ProcessFailed, match=r"stopped after 0\.5 s"):
        run_process(python("import time; time.sleep(60)"), timeout=0.5)


def test_ratios_pair_rounds_and_leave_out_nothing_over_nothing() -> None:
    assert ratios([1.0, 3.0, 5.0], [2.0, 4.0, 0.0]) == [0.5, 0.75]


@pytest.mark.timeout(400)
def test_compare_measures_every_one(clip: Path) -> None:
    said: list[str] = []
    note = clip.with_name("note.json")
    note.write_text('{"clip.mp4": {"slide_changes_s": [2.0]}}', encoding="utf-8")
    plan = Plan(peers=("pyav",), runs=1, budget=64)
    made = compare(clip, plan, annotations=note, seen=said.append)
    found = {c.name: c for c in made.competitors}
    assert list(found) == ["tokpipe", "tokpipe-bank", "tokpipe-reuse", "pyav-1", "pyav-auto"]
    assert all(c.status == "done" and len(c.runs) == len(c.imports) == 1 for c in found.values())
    assert found["pyav-1"].runs[0].frames == found["tokpipe"].runs[0].frames == 40
    assert found["tokpipe"].detail["tokens"]["total"] == 64
    assert found["tokpipe-reuse"].detail["tokens"]["total"] == 32
    assert found["tokpipe-reuse"].detail["reused"] and not found["tokpipe-bank"].detail["reused"]
    assert found["pyav-1"].imports[0].cpu < found["tokpipe"].imports[0].cpu
    pairs = {(r.ours, r.theirs) for r in made.ratios}
    assert ("tokpipe", "pyav-1") in pairs and ("tokpipe-reuse", "tokpipe-bank") in pairs
    assert all(r.cpu_median > 0 for r in made.ratios)
    assert set(made.recall) == {"tokpipe", "tokpipe-reuse"}
    assert made.recall["tokpipe"].events == 2 and made.recall["tokpipe"].ours == 1.0
    assert said[:2] == ["tokpipe, imports", "tokpipe"] and len(said) == 8


def test_a_missing_peer_is_skipped_with_the_reason() -> None:
    shown = _shown("other", False, "another reader", "no_such_module_at_all")
    assert (shown.status, shown.reason) == ("skipped", "no_such_module_at_all is not installed")
    assert not shown.runs


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_round_starts_past_the_time_budget(clip: Path) -> None:
    assert compare(clip, Plan(peers=(), runs=3, time_budget=0.1)).rounds == 1
    with pytest.raises(ResourceError, match="0 runs"):
        compare(clip, Plan(runs=0))


def test_ours_failing_is_failed_with_its_error_line(clip: Path) -> None:
    made = compare(clip, Plan(peers=(), runs=1, efforts=("utmost",)))
    assert {c.status for c in made.competitors} == {"failed"}
    assert "utmost" in str(made.competitors[0].reason)


@pytest.mark.parametrize("name", ["tokpipe", "pyav-1", "pyav-auto"])
def test_imports_are_all_of_what_a_run_imports(name: str, clip: Path, tmp_path: Path) -> None:
    """No package is first imported while the clock of the work runs."""
    rest = [str(clip), "{}"]
    if name == "tokpipe":
        rest = ["compress", str(clip), "-b", "64", "-o", str(tmp_path / "o.safetensors")]
    code = (
        "import atexit, importlib, sys\n"
        "from tokpipe.evaluate import workloads\n"
        f"for module in {IMPORTS[name]!r}: importlib.import_module(module)\n"
        "before = {m.partition('.')[0] for m in sys.modules}\n"
        "late = lambda: {m.partition('.')[0] for m in sys.modules} - before\n"
        "atexit.register(lambda: print('late', *sorted(late() - set(sys.stdlib_module_names))))\n"
        f"workloads.main({[name, 'run', *rest]!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "late"


# Recall.


def test_share_of_states_hit_is_half_open() -> None:
    states = [(0.0, 2.0), (2.0, 5.0), (5.0, 9.0)]
    assert hit_share(states, [2.0]) == 0.3333
    assert hit_share(states, [1.9, 2.1, 5.0, 6.0]) == 1.0
    assert hit_share(states, []) == 0.0
    assert hit_share([(0.0, 0.6667), (0.6667, 1.0)], [0.0, 20 / 30]) == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"slide_changes_s": [1, 2]}', [1.0, 2.0]),
        ('{"a.mp4": {"cuts_s": [3.5]}, "b.mp4": {}}', [3.5]),
        ('{"a.mp4": {"cuts_s_machine": [4]}}', [4.0]),
    ],
)
def test_notes_are_of_one_file_or_by_name(tmp_path: Path, text: str, expected: list[float]) -> None:
    path = tmp_path / "note.json"
    path.write_text(text, encoding="utf-8")
    note = read_note(path, "a.mp4")
    assert note is not None and note["slide_changes_s"] == expected


@pytest.mark.parametrize("text", ["[1]", "no", '{"a.mp4": {"cuts_s": ["x"]}}', '{"a.mp4": 3}'])
def test_notes_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "note.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MediaError, match="no annotations"):
        read_note(path, "a.mp4")


def test_rows_in_the_ignored_box_do_not_count(clip: Path, tmp_path: Path) -> None:
    cache = tmp_path / "o.safetensors"
    compress_file(clip, cache, budget="video=64,audio=8", options=Options(keep_bank=False))
    at, cells = rows_of(cache)
    assert len(at) == 64 and cells == 7 * 4
    left, _ = rows_of(cache, (0.0, 0.0, 0.5, 1.0))
    right, _ = rows_of(cache, (0.5, 0.0, 1.0, 1.0))
    assert 0 < len(left) < 64 and rows_of(cache, (0, 0, 1, 1))[0].size == 0
    # Every cell counts in one of the halves, none that reaches over the border in both.
    assert len(left) + len(right) <= 64
    assert len(rows_of(cache, (0.0, 0.0, 0.01, 1.0))[0]) > len(left)


def test_recall_beside_the_loop_of_the_same_size(clip: Path, tmp_path: Path) -> None:
    cache, note = tmp_path / "o.safetensors", tmp_path / "n.json"
    compress_file(clip, cache, budget="video=28,audio=8", options=Options(keep_bank=False))
    note.write_text(json.dumps({"slide_changes_s": [1.0, 2.0, 3.0]}), encoding="utf-8")
    loop = [n / 2 for n in range(8)]
    found = file_recall(note, clip, 4.0, {"tokpipe": cache}, {"decord": loop, "pyav-1": None})
    row = found["tokpipe"]
    assert (row.events, row.tokens) == (4, 28)
    assert row.decord_all == 1.0 and row.decord_same_tokens == 0.25
    assert row.scenedetect is None
    assert file_recall(note, clip, 4.0, {}, {}) == {}
