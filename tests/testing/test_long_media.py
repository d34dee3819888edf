"""Generated lectures change when they say; copied packets keep one clock."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tokpipe.testing._slides import Slide, slide_shows
from tokpipe.testing.long_media import GOP, Lecture, repeat_packets, write_action, write_lecture

SIZE = (320, 184)


@pytest.fixture(scope="module")
def lecture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lecture]:
    path = tmp_path_factory.mktemp("lecture") / "lecture.mp4"
    return path, write_lecture(path, 1, size=SIZE, changes=5, threads=1)


def luma(path: Path) -> tuple[NDArray[np.int16], list[float], list[bool]]:
    planes, times, keys = [], [], []
    with av.open(str(path)) as box:
        for frame in box.decode(video=0):
            assert frame.time is not None
            planes.append(frame.to_ndarray(format="gray").astype(np.int16))
            times.append(frame.time)
            keys.append(frame.key_frame)
    return np.stack(planes), times, keys


def test_slides_change_at_the_given_times_and_the_speaker_always(
    lecture: tuple[Path, Lecture],
) -> None:
    path, said = lecture
    pictures, times, keys = luma(path)
    assert len(times) == 1800 and times[0] == 0.0
    assert [n for n, key in enumerate(keys) if key] == list(range(0, 1800, GOP))
    steps = np.abs(np.diff(pictures, axis=0))
    # Parts of the slide that change by far; key pictures refresh the whole a little.
    slides = (steps[:, :150, :200] > 50).mean(axis=(1, 2))
    changed = [times[n + 1] for n in np.flatnonzero(slides > 0.001)]
    assert changed == pytest.approx(said.slide_changes_s, abs=1e-3)
    speaker = steps[:, -40:-20, -45:-25].mean(axis=(1, 2))
    assert (speaker > 0.5).mean() > 0.7
    left, top = round(said.ignore_box[0] * SIZE[0]), round(said.ignore_box[1] * SIZE[1])
    between = 100  # no slide changes, no key picture
    assert steps[between, :top].max() < 12 < steps[between, top:, left:].max()
    small = [slides[times.index(t) - 1] for t in times if round(t, 4) in said.small_changes_s]
    assert len(small) == 1 and max(small) < np.max(slides) / 5


def test_lecture_has_sound_with_pauses(lecture: tuple[Path, Lecture]) -> None:
    with av.open(str(lecture[0])) as box:
        assert box.streams.audio[0].channels == 1
        sound = np.concatenate([f.to_ndarray()[0] for f in box.decode(audio=0)])
    loudness = np.abs(sound[: 55 * 44100]).reshape(55, 44100).mean(axis=1)
    assert loudness.max() > 0.02 and loudness.min() < 0.002
    assert len(sound) / 44100 == pytest.approx(60.0, abs=0.05)


def test_plan_of_twenty_minutes_keeps_off_key_pictures() -> None:
    shows = slide_shows(36000, 30, GOP, 39, 0)
    assert len(shows) == 40 and shows[0].first == 0
    assert all(3 <= show.first % GOP <= GOP - 3 for show in shows[1:])
    shown = [b.first - a.first for a, b in pairwise(shows)]
    assert [n for n, show in zip(shown, shows, strict=False) if show.short] == [90]
    assert min(n for n, show in zip(shown, shows, strict=False) if not show.short) > 90
    assert 5 <= sum(show.small for show in shows) <= 12
    assert slide_shows(36000, 30, GOP, 39, 0) == shows != slide_shows(36000, 30, GOP, 39, 1)


def test_too_many_changes_are_refused() -> None:
    with pytest.raises(ValueError, match="40 changes need 164 s"):
        slide_shows(1800, 30, GOP, 40, 0)


def test_slides_with_the_same_words_are_the_same_picture() -> None:
    slide = Slide(3, "Title", ("one", "two"), (0.5, 1.0))
    assert slide.draw(SIZE).tobytes() == slide.draw(SIZE).tobytes()
    assert slide.draw(SIZE) != Slide(3, "Title", ("one", "too"), (0.5, 1.0)).draw(SIZE)


def test_action_moves_everywhere(tmp_path: Path) -> None:
    write_action(tmp_path / "action.mp4", 2, size=(160, 96), threads=1)
    pictures, times, _ = luma(tmp_path / "action.mp4")
    assert len(times) == 60
    steps = np.abs(np.diff(pictures, axis=0)).reshape(59, 6, 16, 10, 16).mean(axis=(2, 4))
    assert np.median(steps.min(axis=(1, 2))) > 1.0


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_repeated_packets_decode_to_the_same_pictures(tmp_path: Path, suffix: str) -> None:
    source, target = tmp_path / "one.mp4", tmp_path / f"three.{suffix}"
    write_action(source, 2, size=(160, 96), threads=1)
    assert repeat_packets(source, target, times=3) == 6.0
    first, times, _ = luma(source)
    pictures, later, keys = luma(target)
    assert np.array_equal(pictures, np.concatenate([first] * 3))
    expected = [round_ * 2 + time for round_ in range(3) for time in times]
    assert later == pytest.approx(expected, abs=2e-3)
    assert [n for n, key in enumerate(keys) if key] == [0, 60, 120]
    with av.open(str(target)) as box:
        stamps = [float(p.pts * p.time_base) for p in box.demux(audio=0) if p.pts is not None]
    gaps = np.diff(stamps)
    assert gaps.min() > 0 and gaps.max() < 0.06 and 5.9 < stamps[-1] < 6.0


def test_repeated_packets_stop_at_the_second(tmp_path: Path) -> None:
    source, target = tmp_path / "one.mp4", tmp_path / "long.mp4"
    write_action(source, 2, size=(160, 96), threads=1)
    assert repeat_packets(source, target, seconds=5) == 5.0
    assert len(luma(target)[1]) == 150
    with pytest.raises(ValueError, match="times or seconds"):
        repeat_packets(source, target)
