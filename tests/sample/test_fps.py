"""The first frame at or after each tick, once, never a damaged one while another is there."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokpipe.sample.fps import Fps
from tokpipe.spec import AudioInfo, MediaInfo, VideoInfo


@dataclass(frozen=True)
class Frame:
    pts: float
    duration: float = 0.0
    usable: bool = True
    corrupt: bool = False


@dataclass(frozen=True)
class Sound:
    pts: float


def clip(times: list[float], end: float) -> list[Frame]:
    """Frames that each last until the next."""
    return [Frame(a, b - a) for a, b in zip(times, [*times[1:], end], strict=True)]


def first_after(frames: list[Frame], fps: float) -> list[Frame]:
    """The definition: at each tick the first frame at or after it, each once."""
    out: list[Frame] = []
    starts = [frame.pts for frame in frames]
    tick = 0
    # 1e-6 of a tick: times are rounded, and a frame due at a tick is there then.
    while (n := bisect.bisect_left(starts, starts[0] + (tick - 1e-6) / fps)) < len(frames):
        if not out or out[-1] is not frames[n]:
            out.append(frames[n])
        tick += 1
    return out


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(25), Fraction(24), Fraction(10)])
@pytest.mark.parametrize("fps", [0.5, 1.0, 2.0, 3.0])
def test_constant_rate_picks_the_first_frame_from_each_tick(rate: Fraction, fps: float) -> None:
    frames = clip([float(n / rate) for n in range(300)], float(300 / rate))
    chosen = list(Fps(fps).sample(frames))
    assert chosen == first_after(frames, fps)
    assert [frames.index(frame) for frame in chosen] == [
        math.ceil(Fraction(n) / Fraction(fps) * rate) for n in range(len(chosen))
    ]


@given(
    st.lists(st.integers(1, 4000), min_size=1, max_size=60),
    st.sampled_from([0.5, 1.0, 2.0, 5.0, 24.0]),
    st.integers(0, 5000),
)
def test_variable_rate_picks_the_first_frame_from_each_tick(
    steps: list[int], fps: float, start: int
) -> None:
    times = [start / 1000]
    for step in steps:
        times.append(times[-1] + step / 1000)
    frames = clip(times[:-1], times[-1])
    chosen = list(Fps(fps).sample(frames))
    assert chosen == first_after(frames, fps)
    assert len({frame.pts for frame in chosen}) == len(chosen)


def test_slow_source_shows_the_first_frame_of_each_tick_once() -> None:
    frames = clip([0.0, 3.0, 6.5, 6.7], 9.0)
    assert list(Fps(2.0).sample(frames)) == frames[:3]
    assert list(Fps(0.5).sample(frames)) == frames[:3]


def test_grid_begins_at_the_first_frame() -> None:
    frames = clip([0.7 + n / 30 for n in range(60)], 2.7)
    chosen = [frame.pts for frame in Fps(2.0).sample(frames)]
    assert chosen == pytest.approx([0.7, 1.2, 1.7, 2.2])


def test_one_frame_without_duration_is_chosen() -> None:
    assert list(Fps(2.0).sample([Frame(0.0)])) == [Frame(0.0)]


def test_corrupt_frames_are_never_chosen() -> None:
    frames = clip([n / 10 for n in range(40)], 4.0)
    bad = set(range(5, 9)) | {20}
    frames = [
        Frame(f.pts, f.duration, usable=n not in bad, corrupt=n in bad)
        for n, f in enumerate(frames)
    ]
    chosen = [round(frame.pts * 10) for frame in Fps(2.0).sample(frames)]
    assert chosen == [0, 9, 10, 15, 21, 25, 30, 35]


def test_all_corrupt_gives_nothing() -> None:
    frames = [Frame(n / 10, 0.1, usable=False, corrupt=True) for n in range(20)]
    assert list(Fps(2.0).sample(frames)) == []


def test_doubtful_frame_only_where_nothing_else_comes_before_the_next_tick() -> None:
    frames = clip([n / 10 for n in range(40)], 4.0)
    doubtful = set(range(8, 23))
    frames = [Frame(f.pts, f.duration, usable=n not in doubtful) for n, f in enumerate(frames)]
    chosen = [round(frame.pts * 10) for frame in Fps(2.0).sample(frames)]
    assert chosen == [0, 5, 10, 15, 23, 25, 30, 35]


def test_sound_passes_in_place() -> None:
    frames = clip([n / 10 for n in range(20)], 2.0)
    items: list[Frame | Sound] = []
    for n, frame in enumerate(frames):
        items.append(frame)
        if n % 5 == 2:
            items.append(Sound(frame.pts))
    out = list(Fps(2.0).sample(items))
    assert [item for item in out if isinstance(item, Sound)] == [
        item for item in items if isinstance(item, Sound)
    ]
    chosen = [item for item in out if isinstance(item, Frame)]
    assert [round(item.pts * 10) for item in chosen] == [0, 5, 10, 15]
    for item in chosen:
        # A frame leaves once the next tick's is there: at most one tick of sound overtakes it.
        later = [x for x in out[: out.index(item)] if isinstance(x, Sound)]
        assert all(x.pts < item.pts + 0.5 for x in later)


def info_of(
    frames: int, rate: Fraction, *, start: float = 0.0, zero: float = 0.0, known: bool = True
) -> MediaInfo:
    duration = float(frames / rate)
    video = VideoInfo(
        index=0, codec="h264", width=192, height=108, time_base=Fraction(1, 90000),
        frame_rate=rate, start=start, duration=duration if known else None,
    )  # fmt: skip
    return MediaInfo(
        name="x.mp4", container="mp4", fingerprint="", size=10**6, zero=zero, video=video,
        duration=start - zero + duration if known else None,
    )  # fmt: skip


@given(
    st.integers(1, 400),
    st.sampled_from([Fraction(30000, 1001), Fraction(30), Fraction(25), Fraction(1), Fraction(10)]),
    st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    st.sampled_from([(0.0, 0.0), (0.7, 0.0), (1.4, 1.4)]),
)
def test_count_is_what_sample_yields(
    frames: int, rate: Fraction, fps: float, clock: tuple[float, float]
) -> None:
    start, zero = clock
    first = start - zero
    items = clip([first + float(n / rate) for n in range(frames)], first + float(frames / rate))
    expected = len(list(Fps(fps).sample(items)))
    assert Fps(fps).count(info_of(frames, rate, start=start, zero=zero)) == expected


def test_count_without_video_or_duration() -> None:
    sound = AudioInfo(index=0, codec="aac", sample_rate=16000, channels=1, time_base=Fraction(1))
    only = MediaInfo(name="a", container="mp4", fingerprint="", size=1, audio=sound)
    assert Fps().count(only) == 0
    assert Fps().count(info_of(10, Fraction(5), known=False)) is None


@dataclass(frozen=True)
class Change(Frame):
    marked: bool = True


def test_marked_frames_are_chosen_between_ticks() -> None:
    frames: list[Frame] = clip([n / 10 for n in range(20)], 2.0)
    for n in (3, 12):
        frames[n] = Change(n / 10, 0.1)
    chosen = [round(frame.pts * 10) for frame in Fps(2.0).sample(frames)]
    assert chosen == [0, 3, 5, 10, 12, 15]


def test_a_marked_frame_still_on_screen_at_the_tick_is_not_chosen_twice() -> None:
    frames = [Frame(0.0, 0.4), Change(0.4, 0.4), Frame(0.8, 0.4), Frame(1.2, 0.4)]
    assert list(Fps(2.0).sample(frames)) == frames


def test_sparse_frames_are_all_chosen() -> None:
    """As those that are decoded: a still group, a change, a still group again."""
    frames = [Frame(0.0, 0.04), Change(3.21, 0.04), Frame(5.25, 0.04), Change(8.3, 0.04)]
    assert list(Fps(2.0).sample(frames)) == frames


def test_at_most_eight_marked_frames_a_second() -> None:
    frames = [Change(n / 64, 1 / 64) for n in range(65)]
    chosen = [frame.pts for frame in Fps(2.0).sample(frames)]
    assert chosen == [n / 8 for n in range(9)]


def test_a_damaged_frame_is_no_change() -> None:
    frames = [Frame(0.0, 0.2), Change(0.2, 0.2, usable=False), Change(0.4, 0.2, corrupt=True)]
    assert list(Fps(2.0).sample(frames)) == [frames[0]]
