"""Rows of a report: coverage, baselines, events and legibility of a film that is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokpipe.errors import (
    BudgetError,
    MediaError,
    MediaNotFound,
    ModelError,
    RecipeError,
    UnsupportedMedia,
)
from tokpipe.evaluate import EvalReport, Row, evaluate_file, load_embedders, read_annotations
from tokpipe.evaluate._walk import dense_times
from tokpipe.evaluate.budgets import frames_of, parse_budgets, tokens_of
from tokpipe.evaluate.report import averages
from tokpipe.job import Options
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media

NOTE = {"slide_changes_s": [2.0, 5.0, 9.0]}
FEATURES = "descriptors"


def by_way(report: EvalReport, budget: str | None = None) -> dict[str, Row]:
    """Rows by way; baselines have a mark, since a recipe may have their name."""
    return {
        ("=" if row.kind in ("baseline", "oracle") else "") + row.way: row
        for row in report.rows
        if row.budget == (budget or report.rows[0].budget)
    }


@pytest.fixture(scope="module")
def report(film: Path) -> EvalReport:
    return evaluate_file(film, ["auto", "uniform"], ["2f", "5f"], note=NOTE)


def test_dense_frames_and_cells(report: EvalReport) -> None:
    assert (report.dense_frames, report.cells, report.picture) == (20, 144, (448, 252))
    assert report.text_frames == 4 + 8
    assert report.features == (FEATURES,)
    assert report.budgets == ["2f", "5f"]
    assert set(report.seconds) == {"compress", "measure", "total"}


def test_every_way_is_there_at_every_budget(report: EvalReport) -> None:
    ways = ["auto", "uniform", "=uniform", "=random", "=downsampled", "=oracle"]
    assert list(by_way(report, "2f")) == list(by_way(report, "5f")) == ways
    assert [row.tokens for row in report.rows] == [288] * 6 + [720] * 6
    assert all(row.used is None or row.used <= row.tokens for row in report.rows)


def test_numbers_hang_together(report: EvalReport) -> None:
    for budget in report.budgets:
        rows = by_way(report, budget)
        even, best = rows["=uniform"].coverage[FEATURES], rows["=oracle"].coverage[FEATURES]
        assert best.mean >= even.mean
        for row in rows.values():
            found = row.coverage[FEATURES]
            assert -1 <= found.min <= found.p5 <= found.mean + 1e-9 <= 1 + 1e-6
            if best.mean - even.mean >= 0.002:
                gap = (found.mean - even.mean) / (best.mean - even.mean)
                assert row.gap_closed[FEATURES] == pytest.approx(gap)
            else:
                assert row.gap_closed[FEATURES] is None


def test_uniform_misses_what_the_oracle_finds(report: EvalReport) -> None:
    rows = by_way(report, "5f")
    # Frames at 1, 3, 5, 7 and 9 s see all four states; two frames see two of them.
    assert rows["=uniform"].events is not None and rows["=uniform"].events.recall == 1
    assert rows["=oracle"].coverage[FEATURES].min > 0.99
    two = by_way(report, "2f")
    assert two["=uniform"].events is not None and two["=uniform"].events.hit < 4
    assert two["=uniform"].coverage[FEATURES].mean < 0.99


def test_auto_keeps_every_state(report: EvalReport) -> None:
    auto = by_way(report, "5f")["auto"]
    assert auto.events is not None and (auto.events.states, auto.events.hit) == (4, 4)
    assert auto.coverage[FEATURES].min > 0.95


def test_pages_are_legible_and_less_so_at_half_their_sides(report: EvalReport) -> None:
    rows = by_way(report, "5f")
    plain, half = rows["uniform"].legibility, rows["=downsampled"].legibility
    assert plain is not None and plain.mean is not None and plain.min is not None
    assert half is not None and half.mean is not None
    assert plain.mean > 0.95 > half.mean
    # Frames at 1, 5 and 7 s of those at 1, 3, 5, 7 and 9 s are pages.
    even = rows["=uniform"].legibility
    assert even is not None and even.pictures == 3
    assert rows["=random"].legibility is None and rows["=oracle"].events is None


def test_report_is_plain_json(report: EvalReport) -> None:
    found = json.loads(json.dumps(report.to_dict()))
    row = found["rows"][0]
    assert row["coverage"][FEATURES].keys() == {"mean", "p5", "min"}
    assert row["events"].keys() == {"states", "hit", "recall"}
    assert row["legibility"].keys() == {"mean", "min", "pictures"}


def test_report_repeats(film: Path, report: EvalReport) -> None:
    again = evaluate_file(film, ["auto", "uniform"], ["2f", "5f"], note=NOTE)
    assert again.rows == report.rows


def test_storyboard_of_all_states_covers_all(film: Path, board: Any) -> None:
    folder = board(1.0, 3.0, 6.0, 9.5)
    report = evaluate_file(film, (), storyboards=[folder], note=NOTE)
    rows = by_way(report)
    assert report.budgets == ["4f"]
    mine = rows["board"]
    assert (mine.kind, mine.pictures, mine.used) == ("storyboard", 4, None)
    assert mine.coverage[FEATURES].min > 0.98
    assert mine.events is not None and mine.events.recall == 1
    assert mine.legibility is not None and mine.legibility.pictures == 2
    assert mine.legibility.min is not None and mine.legibility.min > 0.9


def test_storyboard_is_compared_with_the_frame_on_screen(film: Path, board: Any) -> None:
    # The first page, said to be shown just before and just after it is replaced by the clouds.
    right, late = board(1.95, name="right"), board(1.0, name="late")
    (late / "manifest.jsonl").write_text('{"pts": 5.1, "file": "0.png"}\n')
    report = evaluate_file(film, (), storyboards=[right, late])
    ssim = {row.way: row.legibility for row in report.rows if row.kind == "storyboard"}
    assert ssim["right"] is not None and ssim["right"].mean is not None
    assert ssim["late"] is not None and ssim["late"].mean is not None
    assert ssim["right"].mean > 0.9 > 0.6 > ssim["late"].mean


def test_storyboard_of_other_size_and_beyond_the_end(film: Path, board: Any) -> None:
    folder = board(-1.0, 6.0, 99.0, size=(200, 150))
    report = evaluate_file(film, (), ["144"], storyboards=[folder])
    mine = by_way(report)["board"]
    assert (mine.budget, mine.tokens, mine.pictures) == ("144", 144, 3)


def test_coverage_in_a_tower_stands_beside(film: Path, tower: Any) -> None:
    embedders = load_embedders([tower], Options())
    report = evaluate_file(film, ["uniform"], ["2f"], encoders=embedders)
    assert len(report.features) == 2 and report.features[0] == FEATURES
    for row in report.rows:
        assert row.coverage.keys() == set(report.features) == row.gap_closed.keys()
    assert by_way(report)["=oracle"].coverage[report.features[1]].mean <= 1 + 1e-6


def test_layout_of_whole_frames(film: Path) -> None:
    report = evaluate_file(film, budgets=["3f"], options=Options(layout="frames"))
    row = by_way(report)["auto"]
    assert (row.pictures, row.used) == (3, 432)


def test_bank_is_not_left_without_keep(film: Path, tmp_path: Path) -> None:
    options = Options(keep_bank=False)
    assert by_way(evaluate_file(film, budgets=["1f"], options=options))["auto"].pictures >= 1


def test_late_picture_and_slow_video(tmp_path: Path) -> None:
    from fractions import Fraction

    path = tmp_path / "slow.mp4"
    write_media(path, VideoTrack(fps=Fraction(1), frames=5, start=Fraction(2)), AudioTrack())
    report = evaluate_file(path, ["uniform"], ["2f"])
    assert report.dense_frames == 5


def test_ticks_take_the_first_frame_at_or_after_each() -> None:
    assert dense_times([n / 30 for n in range(60)], 2.0) == [0, 0.5, 1.0, 1.5]
    # After a hole one frame is taken, not one for each tick that was missed.
    assert dense_times([0.0, 0.1, 5.0, 5.1, 5.2, 5.5], 2.0) == [0.0, 5.0, 5.5]


def test_video_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "sound.m4a"
    write_media(path, AudioTrack(), container="mp4")
    with pytest.raises(UnsupportedMedia, match="holds no video") as caught:
        evaluate_file(path)
    assert caught.value.hint


def test_recipes_must_keep_pictures(film: Path) -> None:
    for recipe in ("audio: mel", "pixels | open-clip"):
        with pytest.raises(RecipeError, match="keeps no pictures"):
            evaluate_file(film, [recipe])


def test_towers_must_be_of_pictures(film: Path) -> None:
    with pytest.raises(RecipeError, match="encodes sound"):
        evaluate_file(film, encoders=["hf_audio:openai/whisper-tiny"])
    with pytest.raises((ModelError, RecipeError)):
        evaluate_file(film, encoders=["open_clip:no-such-model"])


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_dense_rate_must_be_a_rate(film: Path, fps: float) -> None:
    with pytest.raises(RecipeError, match="dense frames a second"):
        evaluate_file(film, fps=fps)


def test_budgets() -> None:
    assert parse_budgets("8f, 2048,8f") == ("8f", "2048")
    assert (tokens_of("8f", 144), tokens_of("2048", 144)) == (1152, 2048)
    assert (frames_of(100, 144), frames_of(300, 144)) == (1, 2)
    for wrong in ("", "0", "f", "8g", "8f,,16f", "-3", "1.5f"):
        with pytest.raises(BudgetError, match="cannot read budget"):
            parse_budgets(wrong)


def test_annotations(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_text(json.dumps({"_note": "text", "a.mp4": NOTE, "b.mp4": {"fps": 3}}))
    assert read_annotations(path) == {"a.mp4": NOTE, "b.mp4": {"fps": 3}}
    with pytest.raises(MediaNotFound):
        read_annotations(tmp_path / "gone.json")
    for wrong in ("{", "[1]", '{"a": {"slide_changes_s": ["x"]}}', '{"a": {"slide_changes_s": 3}}',
                  '{"a": {"person_present_s": [[1]]}}'):  # fmt: skip
        path.write_text(wrong)
        with pytest.raises(MediaError):
            read_annotations(path)


def test_storyboards_that_cannot_be_read(film: Path, tmp_path: Path, board: Any) -> None:
    with pytest.raises(MediaNotFound, match="no storyboard"):
        evaluate_file(film, (), storyboards=[tmp_path / "gone"])
    folder = board(1.0)
    for text, wrong in (("", "names no picture"), ("{}", "line 1"), ('{"pts": "x"}', "line 1"),
                        ('{"pts": 1, "file": "gone.png"}', "cannot be read")):  # fmt: skip
        (folder / "manifest.jsonl").write_text(text)
        with pytest.raises(MediaError, match=wrong):
            evaluate_file(film, (), storyboards=[folder])


def test_averages_over_files(report: EvalReport) -> None:
    (first, *_) = averages([report, report])
    assert (first.way, first.files, first.features) == ("auto", 2, FEATURES)
    assert first.coverage == pytest.approx(report.rows[0].coverage[FEATURES].mean)
    assert averages([]) == []


def test_slides_of_the_lecture(samples: Path) -> None:
    truth = json.loads((samples / "ground_truth.json").read_text())["files"]["lecture.mp4"]
    note = {"slide_changes_s": [slide["start"] for slide in truth["slides"][1:]]}
    report = evaluate_file(samples / "lecture.mp4", budgets=["8f"], note=note)
    auto = by_way(report)["auto"].events
    assert auto is not None and auto.states == len(truth["slides"])
    assert auto.hit >= auto.states - 1
