"""Changes are found from packets alone, and little else is decoded."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tokpipe.decode import _wanted, open_source, probe
from tokpipe.decode._groups import Group
from tokpipe.decode._picture import DecodedPicture
from tokpipe.decode._timeline import Timeline
from tokpipe.decode._wanted import GAP, Chooser, Effort
from tokpipe.decode.scout import scan_packets
from tokpipe.sample.fps import Fps
from tokpipe.spec import VideoInfo
from tokpipe.testing.media import VideoTrack, write_media

SIZE, RATE, SECONDS = (320, 192), 15, 48
#: Frames at which a lecture shows something else: a slide, one of 3 s, a page of 2 s in between,
#: a single picture.
SLIDES = {100: 1, 200: 2, 245: 3, 400: 4, 430: 3, 560: 5, 561: 3}
LINE = 650


@pytest.fixture(autouse=True)
def _small_files_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clips here are small, and read in part all the same."""
    monkeypatch.setattr(_wanted, "SMALL", 0.0)


def slide(number: int) -> NDArray[np.uint8]:
    """Lines of dark blocks, as words are from afar."""
    generator = np.random.default_rng(number)
    picture = np.full((SIZE[1], SIZE[0], 3), 235, dtype=np.uint8)
    for y in range(16, SIZE[1] - 60, 14):
        for x in range(16, SIZE[0] - 24, 12):
            if generator.random() < 0.6:
                picture[y : y + 6, x : x + int(generator.integers(4, 11))] = 30
    return picture


def lecture(number: int, _time: float) -> NDArray[np.uint8]:
    """The slide of the hour, a moving hand below it, and at ``LINE`` a line of small print."""
    shown = 0
    for start, other in SLIDES.items():
        shown = other if number >= start else shown
    picture = slide(shown)
    if number >= LINE:
        words = np.random.default_rng(7)
        for x in range(16, 300, 4):
            picture[140:152, x : x + int(words.integers(1, 4))] = int(words.integers(20, 120))
    x = 240 + int(30 * np.sin(number / 20))
    picture[164:172, x : x + 6] = (180, 120, 90)
    return picture


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("talk") / "talk.mp4"
    track = VideoTrack(
        size=SIZE, fps=Fraction(RATE), frames=SECONDS * RATE, gop=250, b_frames=2, draw=lecture
    )
    write_media(path, track)
    return path


@pytest.mark.parametrize("effort", ["fast", "balanced", "thorough"])
def test_every_change_of_a_lecture_is_sampled(talk: Path, effort: Effort) -> None:
    source = open_source(talk, probe(talk), effort=effort, fps=2.0)
    events = (x for x in source.read() if isinstance(x, DecodedPicture))
    chosen = list(Fps(2.0).sample(events))
    at = [picture.index for picture in chosen]
    for start in (*SLIDES, LINE):
        if start == 561:
            continue
        # B-pictures before a change may show it already, at a lower quality.
        stop = start + (1 if start == 560 else 7)
        assert any(start <= i < stop for i in at), (start, at)
    if effort == "thorough":
        assert source.report.frames == SECONDS * RATE
    else:
        assert source.report.frames < 0.75 * SECONDS * RATE
        assert len(chosen) < SECONDS


def test_a_single_picture_is_what_was_inserted(talk: Path) -> None:
    source = open_source(talk, probe(talk), effort="balanced", fps=2.0)
    (one,) = [x for x in source.read() if isinstance(x, DecodedPicture) and x.index == 560]
    seen = one.rgb(*SIZE).astype(int)
    assert np.abs(seen - slide(5))[:150].mean() < 12
    assert np.abs(seen - slide(3))[:150].mean() > 15


def test_a_small_file_is_read_whole(talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = probe(talk)
    pixels = SIZE[0] * SIZE[1] * RATE * SECONDS
    monkeypatch.setattr(_wanted, "SMALL", 0.99 * pixels)
    assert _wanted.reads_whole(info) is None
    monkeypatch.setattr(_wanted, "SMALL", 1.01 * pixels)
    assert _wanted.reads_whole(info) == "too small to save anything"
    scan = scan_packets(talk, info, "balanced", 2.0)
    assert (scan.whole, scan.wanted) == ("too small to save anything", None)


@pytest.mark.parametrize("effort", ["fast", "balanced", "thorough"])
def test_the_choice_is_that_of_the_packets(talk: Path, effort: Effort) -> None:
    scan = scan_packets(talk, probe(talk), effort, 2.0)
    assert scan.whole is None
    assert scan.wanted is not None
    assert len(scan) == SECONDS * RATE
    counts = {"fast": (8, 20), "balanced": (8, 40), "thorough": (96, 100)}
    low, high = counts[effort]
    assert low <= np.count_nonzero(scan.wanted) <= high


SCALE = 1000


def chooser(effort: Effort = "balanced", size: tuple[int, int] = (448, 252)) -> Chooser:
    video = VideoInfo(
        index=0, codec="h264", width=size[0], height=size[1], time_base=Fraction(1, SCALE)
    )
    return Chooser(effort, 2.0, Timeline(scale=SCALE), video)


def groups(count: int, length: int, size: Callable[[int], int], step: int = 40) -> list[Group]:
    """Groups of ``length`` pictures ``step`` ms apart in showing order, a key of 10 kB first."""
    made = []
    for k in range(count):
        t = [(k * length + i) * step for i in range(length)]
        sizes = [10_000, *(size(k * length + i) for i in range(1, length))]
        made.append(
            Group(
                raw=t, t=t, duration=[step] * length, size=sizes, hidden=[False] * length,
                alone=False, next_t=(k + 1) * length * step,
            )
        )  # fmt: skip
    return made


def reached(parts: list[Group], choice: Chooser) -> float:
    """Part of the packets that are fed."""
    return sum(choice.choose(g).reach for g in parts) / sum(len(g) for g in parts)


def test_a_still_group_costs_its_key() -> None:
    parts = groups(8, 250, lambda _: 40)
    for k, group in enumerate(parts):
        group.size[0] += 200 * k
    choice = chooser()
    assert [choice.choose(g).places for g in parts] == [[0]] * 8


def test_a_key_that_shows_the_same_again_is_passed_over_for_a_while() -> None:
    parts = groups(8, 250, lambda _: 40)
    choice = chooser()
    assert [choice.choose(g).places for g in parts] == [[0], []] * 4
    busy = chooser()
    assert all(busy.choose(g).places for g in groups(8, 250, lambda _: 400))


def test_a_change_shortly_before_a_key_is_left_to_it() -> None:
    """One that the key still shows: of two in a row the first is decoded where it is."""

    def late(i: int) -> int:
        return 9000 if i in (90, 175, 190, 270) else 40

    parts = groups(4, 100, late)
    choice = chooser("fast")
    found = [choice.choose(g) for g in parts]
    chosen = [list(zip(w.places, w.marked, strict=True)) for w in found]
    # 90 comes 0.4 s before its key, 190 too; 270 comes 1.2 s before and would cost 2.8 s.
    assert chosen == [
        [(0, False)],
        [(0, True), (75, True)],
        [(0, True), (70, True)],
        [],
    ]
    assert [w.reach for w in found] == [1, 76, 71, 0]


def test_busy_groups_get_more_and_never_all() -> None:
    film = reached(groups(60, 50, lambda _: 1200), chooser())
    quiet = reached(groups(60, 50, lambda _: 100), chooser())
    large = reached(groups(60, 50, lambda _: 20_000), chooser(size=(1920, 1080)))
    assert quiet < 0.05 < film < large < 0.95


def test_changes_come_first_and_are_paid_for() -> None:
    """With a cut in every other group hardly anything is left for ticks."""

    def cut(i: int) -> int:
        return 9000 if i % 100 == 30 else 1200

    choice = chooser()
    found = [choice.choose(g) for g in groups(60, 50, cut)]
    marked = [w.places[i] for w in found for i, m in enumerate(w.marked) if m]
    assert marked == [30] * 30
    assert sum(w.reach for w in found) / 3000 < 0.5


def test_a_long_group_without_change_is_looked_at_now_and_then() -> None:
    (one,) = groups(1, 3000, lambda _: 5)
    places = chooser().choose(one).places
    times = [0.04 * i for i in places]
    assert max(np.diff([*times, 120.0])) <= GAP + 0.5
    assert len(places) < 10


def test_even_sizes_show_no_change() -> None:
    """A stream of constant bit rate: ticks are sampled all the same."""
    choice = chooser()
    found = [choice.choose(g) for g in groups(20, 50, lambda _: 9000)]
    assert not any(any(w.marked) for w in found)
    assert sum(len(w.places) for w in found) > 25


def test_large_pictures_of_a_pyramid_are_no_changes() -> None:
    """One picture in sixteen carries the others; of codecs that hide them it is the packet's."""
    parts = groups(4, 160, lambda i: 900 if i % 16 == 0 else 60)
    for group in parts:
        group.uneven = True
    choice = chooser("fast")
    assert [choice.choose(g).places for g in parts] == [[0]] * 4


def test_the_last_picture_is_marked() -> None:
    """It stands for what follows, although the next tick does not fall on it."""
    parts = groups(3, 100, lambda _: 40)
    parts[-1].next_t = None
    choice = chooser()
    assert [choice.choose(g).marked for g in parts] == [[False], [], [True]]


def test_a_change_at_a_key_is_marked(tmp_path: Path) -> None:
    """Where all is looked at, keys are compared with the last picture of the group before."""
    path = tmp_path / "keys.mp4"

    def draw(number: int, _time: float) -> NDArray[np.uint8]:
        return slide(0 if number < 40 else 1 if number == 40 else 2)

    track = VideoTrack(size=SIZE, fps=Fraction(10), frames=200, gop=20, b_frames=0, draw=draw)
    write_media(path, track)
    source = open_source(path, probe(path), effort="thorough", fps=2.0, threads=2)
    marked = [x.index for x in source.read() if isinstance(x, DecodedPicture) and x.marked]
    assert marked[0] == 40
    assert len(marked) <= 2
