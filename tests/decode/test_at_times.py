"""Pictures at given times: those of the reference, from as few groups as will do."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tokpipe.decode import open_media, probe
from tokpipe.decode.at_times import pictures_at
from tokpipe.decode.pyav import MediaSource
from tokpipe.tensors import AudioChunk
from tokpipe.testing.barcode import read_frame_number
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media

SAMPLES = ("lecture", "action", "damaged", "edit_list", "late_audio", "rotated", "screen", "vfr")
Small = dict[float, NDArray[np.uint8]]


def reference(path: Path) -> Small:
    """Every usable picture of the reference reader, small, by its time."""
    pictures = (p for p in open_media(path).read() if not isinstance(p, AudioChunk))
    return {p.pts: p.rgb(48, 32) for p in pictures if p.usable}


def found(path: Path, times: list[float]) -> list[tuple[float, NDArray[np.uint8]]]:
    """Time and pixels of what comes for each time; what was begun again is void."""
    out: list[tuple[float, NDArray[np.uint8]]] = []
    for place, picture in pictures_at(path, probe(path), times):
        del out[place:]
        assert len(out) == place
        out.append((picture.pts, picture.rgb(48, 32)))
    return out


@pytest.mark.parametrize("name", SAMPLES)
def test_pictures_are_those_of_the_reference(samples: Path, name: str) -> None:
    path = samples / f"{name}.mp4"
    known = reference(path)
    times = [sorted(known)[i] for i in sorted({0, 7, 8, len(known) // 2, len(known) - 1})]
    got = found(path, times)
    assert [pts for pts, _ in got] == times
    for pts, pixels in got:
        assert (pixels == known[pts]).all()


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Ten groups of ten numbered frames, one a tenth of a second."""
    path = tmp_path / "film.mp4"
    write_media(path, VideoTrack(fps=Fraction(10), frames=100, gop=10), AudioTrack())
    return path


def numbers(path: Path, times: list[float]) -> list[int]:
    pictures = dict(pictures_at(path, probe(path), times))
    return [read_frame_number(pictures[i].rgb(192, 108)) for i in range(len(times))]


def test_the_picture_on_screen_is_found_between_frames(film: Path) -> None:
    times = [-1.0, 0.05, 0.1 - 1e-9, 0.95, 3.0, 3.0, 99.0]
    assert numbers(film, times) == [0, 0, 1, 9, 30, 30, 99]


def test_groups_without_a_wanted_picture_are_not_decoded(
    film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = []
    read = MediaSource.read

    def watched(source: MediaSource) -> object:
        reports.append(source.report)
        return read(source)

    monkeypatch.setattr(MediaSource, "read", watched)
    assert numbers(film, [2.0, 7.1]) == [20, 71]
    assert len(reports) == 1 and reports[0].frames <= 4


def test_open_groups_are_read_from_end_to_end(tmp_path: Path) -> None:
    """Pictures that are shown before their key need the group before."""
    path = tmp_path / "open.mp4"
    options = {"x265-params": "open-gop=1:bframes=3:b-adapt=0:keyint=10:min-keyint=10:log-level=0"}
    try:
        write_media(path, VideoTrack(fps=Fraction(10), frames=40, codec="libx265", b_frames=3,
                                     gop=10, options=options))  # fmt: skip
    except (ValueError, OSError) as error:
        pytest.skip(f"no HEVC encoder: {error}")
    known = sorted(reference(path))
    assert numbers(path, known) == list(range(40))


def test_nothing_comes_of_sound_or_of_no_times(film: Path) -> None:
    info = probe(film)
    assert list(pictures_at(film, replace(info, video=None), [1.0])) == []
    assert list(pictures_at(film, info, [])) == []
