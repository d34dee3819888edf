"""The clock is exact for any time base, through resets, joins and absurd jumps."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tokpipe.decode._timeline import (
    LONGEST_DURATION,
    FrameRanks,
    StreamClock,
    Timeline,
    believable_duration,
    common_scale,
)

DENOMINATORS = [1, 24, 25, 30, 1000, 1001, 12800, 30000, 44100, 48000, 90000, 10**6, 10**9]
TIME_BASES = st.builds(Fraction, st.integers(1, 1001), st.sampled_from(DENOMINATORS))


def line_of(
    *time_bases: Fraction, duration: float | None = None, zero: Fraction | int = 0
) -> Timeline:
    line = Timeline(scale=common_scale([16000, *(base.denominator for base in time_bases)]))
    line.zero = line.units(zero)
    line.expect(duration, 10**9)
    return line


def exact(line: Timeline, units: int) -> Fraction:
    return Fraction(units, line.scale)


@given(TIME_BASES, st.lists(st.integers(0, 2**31), min_size=1, max_size=40))
def test_place_is_exact_for_any_time_base(base: Fraction, ticks: list[int]) -> None:
    line = line_of(base, duration=LONGEST_DURATION)
    line.span = None
    line.gap = None
    clock = line.stream(base)
    for tick in sorted(ticks):
        assert exact(line, clock.place(tick, 0)) == tick * base
    assert line.resets == 0


@given(TIME_BASES, st.integers(0, 10**6), st.integers(0, 10**4))
def test_zero_is_subtracted_exactly(base: Fraction, zero: int, ahead: int) -> None:
    line = line_of(base, zero=zero * base, duration=10**9)
    assert exact(line, line.stream(base).place(zero + ahead, 0)) == ahead * base


@given(TIME_BASES, TIME_BASES)
def test_two_streams_with_the_same_time_agree(one: Fraction, other: Fraction) -> None:
    line = line_of(one, other, duration=10**7)
    ticks = other.numerator * one.denominator, one.numerator * other.denominator
    first, second = line.stream(one).place(ticks[0], 0), line.stream(other).place(ticks[1], 0)
    assert first == second


@given(st.lists(st.integers(50, 300), min_size=2, max_size=5), st.integers(0, 10**6))
def test_reset_goes_on_where_the_last_part_ended(lengths: list[int], first: int) -> None:
    base = Fraction(1, 25)
    line = line_of(base, duration=10**5)
    clock = line.stream(base)
    times = [clock.place(first + tick, clock.tick) for length in lengths for tick in range(length)]
    start = first * base
    assert [exact(line, t) - start for t in times] == [n * base for n in range(sum(lengths))]
    assert line.resets == len(lengths) - 1
    assert clock.disordered == 0


@given(st.booleans(), st.integers(-20, 20))
def test_second_stream_joins_the_epoch_of_the_first(video_first: bool, shift: int) -> None:
    """After a reset both streams get the same offset, so they stay together."""
    video, audio = Fraction(1, 30), Fraction(1, 1000)
    line = line_of(video, audio, duration=100)
    clocks = {"v": line.stream(video), "a": line.stream(audio)}
    plan = [("v", n, 1) for n in range(90)] + [("a", n * 100, 100) for n in range(30)]
    plan.sort(key=lambda item: item[1] * (video if item[0] == "v" else audio))
    for name, tick, span in plan:
        clocks[name].place(tick, span * clocks[name].tick)
    ahead = shift * 10  # milliseconds by which audio's first packet differs
    order = ["v", "a"] if video_first else ["a", "v"]
    first = {"v": 30, "a": 1000 + ahead}
    got = {name: clocks[name].place(first[name], clocks[name].tick) for name in order}
    assert line.resets == 1
    assert exact(line, got["a"] - got["v"]) == Fraction(ahead, 1000)
    assert exact(line, got[order[0]]) == 3


def test_small_step_back_is_disorder_and_no_reset() -> None:
    base = Fraction(1, 1000)
    line = line_of(base, duration=60)
    clock = line.stream(base)
    times = [exact(line, clock.place(t, 40)) for t in (0, 1000, 900, 2000)]
    assert times == [0, 1, Fraction(9, 10), 2]
    assert (clock.disordered, line.resets) == (1, 0)


@pytest.mark.parametrize("jump", [10**9, 2**40, 2**62])
@pytest.mark.parametrize("duration", [None, 10.0])
def test_absurd_jump_forward_is_re_based(jump: int, duration: float | None) -> None:
    base = Fraction(1, 1000)
    line = line_of(base, duration=duration)
    clock = line.stream(base)
    times = [clock.place(t, 40 * clock.tick) for t in (0, 40, 80, jump, jump + 40, 120, 160)]
    assert [round(float(exact(line, t)) * 1000) for t in times] == [0, 40, 80, 120, 160, 200, 240]
    assert line.resets == 2


def test_believable_gap_is_kept() -> None:
    base = Fraction(1, 1000)
    line = line_of(base, duration=7200)
    clock = line.stream(base)
    assert [exact(line, clock.place(t, 0)) for t in (0, 7_000_000)] == [0, 7000]
    assert line.resets == 0


def test_jumps_cannot_outgrow_a_small_file() -> None:
    base = Fraction(1, 1000)
    line = Timeline(scale=common_scale([1000]))
    line.expect(None, 4000)  # bytes: believable are 500 s and a minute
    clock = line.stream(base)
    for n in range(100):
        clock.place(n * 3_600_000, 0)
    assert exact(line, line.end) < 600


def test_missing_pts_goes_on_at_the_end_of_the_item_before() -> None:
    line = line_of(Fraction(1, 25), duration=10)
    clock = line.stream(Fraction(1, 25))
    clock.place(0, clock.tick)
    assert [exact(line, clock.place(None, clock.tick)) for _ in range(3)] == [
        Fraction(n, 25) for n in (1, 2, 3)
    ]


def _packets(order: list[int], seconds: int) -> list[tuple[int, int]]:
    """(pts, dts) of frames that last ``seconds`` ticks each, coded in this order."""
    delay = max(place - rank for place, rank in enumerate(order)) if order else 0
    return [(rank * seconds, (place - delay) * seconds) for place, rank in enumerate(order)]


@st.composite
def coding_orders(draw: st.DrawFn) -> list[int]:
    """Groups of one reference frame followed by the B-frames shown before it, in any order."""
    order, at = [0], 0
    for run in draw(st.lists(st.integers(0, 5), min_size=1, max_size=12)):
        between = list(range(at + 1, at + 1 + run))
        at += run + 1
        order += [at, *draw(st.permutations(between))]
    return order


def _decoder(order: list[int]) -> list[tuple[int, list[int]]]:
    """After each packet, what comes out: each frame as soon as none below it is missing."""
    out, seen, ready = [], set(), 0
    for rank in order:
        seen.add(rank)
        batch = []
        while ready in seen:
            batch.append(ready)
            ready += 1
        out.append((rank, batch))
    return out


@given(coding_orders(), st.sampled_from([1, 3, 10]), st.booleans())
def test_packets_of_slow_b_frames_are_no_reset(order: list[int], seconds: int, dated: bool) -> None:
    """Frames that last seconds reorder by many seconds; only decoding times tell a reset."""
    base = Fraction(1, 1)
    line = line_of(base, duration=10**5)
    clock = line.stream(base)
    for pts, dts in _packets(order, seconds):
        t = clock.place_packet(pts, dts if dated else None, seconds * clock.tick)
        assert exact(line, t) == pts
    assert line.resets == 0


@given(coding_orders(), st.integers(1, 3))
def test_frames_follow_the_epochs_that_packets_opened(order: list[int], parts: int) -> None:
    """The decoder's delay changes no time: frames and packets agree in every part."""
    assume(len(order) >= 8)  # a step back of less than a second would be disorder
    base = Fraction(1, 2)
    line = line_of(base, duration=10**4)
    packets, frames = line.stream(base), line.stream(base)
    expected, got = [], []
    for _ in range(parts):
        for (pts, dts), (_, ready) in zip(_packets(order, 1), _decoder(order), strict=True):
            expected.append(packets.place_packet(pts, dts, packets.tick))
            got += [frames.place(rank, frames.tick) for rank in ready]
    assert got == sorted(expected)
    assert all(after > before for before, after in pairwise(got))
    assert exact(line, line.end) == parts * len(order) * base


@given(coding_orders(), st.integers(1, 5000))
def test_rank_is_the_place_in_presentation_order(order: list[int], span: int) -> None:
    ranks = FrameRanks()
    for rank, ready in _decoder(order):
        ranks.add(rank * span)
        for frame in ready:
            assert ranks.rank(frame * span) == frame


@given(coding_orders(), st.data())
def test_rank_counts_frames_that_never_came(order: list[int], data: st.DataObject) -> None:
    """Packets that do not decode leave holes in the ranks, never a shift."""
    lost = data.draw(st.sets(st.sampled_from(order)))
    ranks = FrameRanks()
    for rank, ready in _decoder(order):
        ranks.add(rank)
        for frame in ready:
            if frame not in lost:
                assert ranks.rank(frame) == frame


def test_clock_keeps_exactness_over_a_day_of_odd_ticks() -> None:
    base = Fraction(1001, 30000)
    line = line_of(base, duration=86400.0)
    clock: StreamClock = line.stream(base)
    last = 2_589_410
    assert exact(line, clock.place(last, clock.tick)) == last * base


@pytest.mark.parametrize(
    ("seconds", "size", "expected"),
    [
        (None, 1000, None),
        (0, 1000, None),
        (-5, 1000, None),
        (10, 1000, 10.0),
        (10, 70, None),
        (LONGEST_DURATION + 1, 10**12, None),
        (Fraction(7, 2), 1000, 3.5),
    ],
)
def test_believable_duration(
    seconds: Fraction | float | None, size: int, expected: float | None
) -> None:
    assert believable_duration(seconds, size) == expected
