"""Needles: where they lie in the made video, what they show, and how they are counted."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tokpipe.decode import probe
from tokpipe.decode.scout import scan_packets
from tokpipe.errors import RecipeError, UnsupportedMedia
from tokpipe.evaluate._hiding import GROUP, MARGIN, made_fps, made_size
from tokpipe.evaluate._needle_pictures import paint
from tokpipe.evaluate.needles import NeedleReport, NeedleRow, find_needles
from tokpipe.job import Options
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media

THOROUGH = Options(effort="thorough", keep_bank=False)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty seconds of slowly moving bar codes."""
    path = tmp_path_factory.mktemp("host") / "host.mp4"
    write_media(path, VideoTrack(size=(224, 126), fps=Fraction(10), frames=400, gop=100))
    return path


@pytest.fixture(scope="module")
def found(host: Path, tmp_path_factory: pytest.TempPathFactory) -> NeedleReport:
    target = tmp_path_factory.mktemp("made") / "needles.mp4"
    return find_needles(
        host, ["auto"], ["40f"], count=4, needle_seconds=2.0, keep=target, options=THOROUGH
    )


def pictures_of(path: Path) -> dict[float, Any]:
    with av.open(str(path)) as box:
        return {round(float(f.time or 0), 4): f.to_ndarray(format="rgb24")
                for f in box.decode(video=0)}  # fmt: skip


def rows_of(report: NeedleReport) -> dict[str, NeedleRow]:
    return {row.way: row for row in report.rows}


def test_needles_lie_inside_groups(found: NeedleReport) -> None:
    assert found.video is not None
    path = Path(found.video)
    scan = scan_packets(path, probe(path))
    keys = scan.pts[scan.key]
    np.testing.assert_allclose(keys, [0.0, GROUP / 10], atol=1e-4)
    assert len(scan) == 400 and found.duration == 40
    assert len(found.needles) == 4
    for start, stop in found.needles:
        assert stop - start == pytest.approx(2.0)
        assert not ((keys >= start - MARGIN / 10 + 1e-6) & (keys < stop)).any()
    assert found.keys_inside == 0
    gaps = [b[0] - a[1] for a, b in zip(found.needles, found.needles[1:], strict=False)]
    assert min(gaps) >= MARGIN / 20


def test_needles_are_what_was_painted(found: NeedleReport) -> None:
    shown = pictures_of(Path(str(found.video)))
    for number, (start, stop) in enumerate(found.needles):
        expected = paint(number, (224, 126), 0).astype(float)
        for time in (start, stop - 0.1):
            assert np.abs(shown[round(time, 4)] - expected).mean() < 12
        assert np.abs(shown[round(start - 0.1, 4)] - expected).mean() > 30
        assert np.abs(shown[round(stop, 4)] - expected).mean() > 30


def test_the_host_between_needles_is_the_hosts(found: NeedleReport, host: Path) -> None:
    before, after = pictures_of(host), pictures_of(Path(str(found.video)))
    for time in (0.0, 24.9, 25.0, 39.9):
        assert np.abs(before[time].astype(float) - after[time]).mean() < 12


def test_everything_is_found_where_everything_fits(found: NeedleReport) -> None:
    rows = rows_of(found)
    assert rows["auto"].found == 4 and rows["auto"].which == (0, 1, 2, 3)
    assert [row.tokens for row in found.rows] == [40 * found.cells] * 3
    # Forty even pictures of forty seconds: one a second.
    assert rows["uniform"].found == 4
    assert 0 < rows["random"].found <= 4 and rows["random"].which is None
    json.dumps(found.to_dict())


def test_few_pictures_find_few(host: Path) -> None:
    report = find_needles(host, ["uniform"], ["1f"], count=6, options=THOROUGH)
    assert all(row.found <= 1 for row in report.rows)


def test_single_pictures(host: Path, tmp_path: Path) -> None:
    target = tmp_path / "one.mp4"
    report = find_needles(
        host, count=8, needle_seconds=None, budgets=["1f"], keep=target, options=THOROUGH
    )
    assert len({start for start, _ in report.needles}) == 8
    assert all(stop - start == pytest.approx(0.1) for start, stop in report.needles)
    assert report.keys_inside == 0
    shown = pictures_of(target)
    first = round(report.needles[0][0], 4)
    assert np.abs(shown[first] - paint(0, (224, 126), 0).astype(float)).mean() < 15


def test_longer_than_the_host(host: Path, tmp_path: Path) -> None:
    target = tmp_path / "long.mp4"
    report = find_needles(host, count=5, hours=0.05, budgets=["2f"], keep=target, options=THOROUGH)
    # Whole groups of the host: 180 s are reached, not cut.
    assert 180 <= report.duration < 180 + GROUP / 10
    assert report.needles[-1][0] > 100
    assert report.keys_inside == 0
    scan = scan_packets(target, probe(target))
    np.testing.assert_allclose(np.diff(scan.pts), 0.1, atol=1e-4)


def test_same_seed_same_bytes(host: Path, tmp_path: Path) -> None:
    made = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        path = tmp_path / f"{name}.mp4"
        find_needles(host, (), (), count=2, keep=path, seed=seed)
        made.append(path.read_bytes())
    assert made[0] == made[1] != made[2]


def test_needles_from_another_video(host: Path, tmp_path: Path, samples: Path) -> None:
    target = tmp_path / "from.mp4"
    report = find_needles(
        host, ["auto"], ["40f"], count=2, needle_from=samples / "screen.mp4", keep=target,
        options=THOROUGH,
    )  # fmt: skip
    shown, plain = pictures_of(target), pictures_of(host)
    for start, _ in report.needles:
        time = round(start, 4)
        assert np.abs(shown[time].astype(float) - plain[time]).mean() > 20
    assert rows_of(report)["auto"].found == 2


def test_no_room_is_said(host: Path) -> None:
    with pytest.raises(RecipeError, match="there is room for") as caught:
        find_needles(host, count=100)
    assert caught.value.hint is not None and "--hours" in caught.value.hint


@pytest.mark.parametrize("wrong", [{"count": 0}, {"hours": -1.0}, {"needle_seconds": 0.0}])
def test_ranges(host: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        find_needles(host, **wrong)


def test_hosts_need_video(host: Path, tmp_path: Path) -> None:
    path = tmp_path / "sound.m4a"
    write_media(path, AudioTrack(), container="mp4")
    with pytest.raises(UnsupportedMedia):
        find_needles(path)
    with pytest.raises(UnsupportedMedia):
        find_needles(host, count=1, needle_from=path)


def test_sizes_and_rates(tmp_path: Path) -> None:
    path = tmp_path / "small.mp4"
    write_media(path, VideoTrack(size=(108, 192), fps=Fraction(5), frames=5))
    info = probe(path)
    assert made_size(info) == (108, 192)
    assert made_fps(info) == 5
