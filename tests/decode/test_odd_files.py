"""Every odd file comes through the reader as its row states: count, times, codes, sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tokpipe.decode import open_media, probe
from tokpipe.errors import DecodeError, UnsupportedMedia
from tokpipe.spec import MediaInfo
from tokpipe.tensors import AudioChunk
from tokpipe.testing.barcode import read_frame_number
from tokpipe.testing.odd_media import ODD_FILES, OddFile, odd_file

READABLE = [row for row in ODD_FILES if row.error is None]
DAMAGED = ("truncated.mp4", "damaged.mp4")


@dataclass
class Shown:
    """What the reader delivers; pixels only of every fifth picture."""

    info: MediaInfo
    codes: set[str] = field(default_factory=set)
    times: list[float] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    numbers: list[int | None] = field(default_factory=list)
    usable: list[bool] = field(default_factory=list)
    corrupt: list[bool] = field(default_factory=list)
    pixels: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    sound: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))


def _number(rgb: NDArray[np.uint8]) -> int | None:
    try:
        return read_frame_number(rgb)
    except ValueError:
        return None


def show(path: Path, **choice: Any) -> Shown:
    source = open_media(path, **choice)
    out = Shown(source.info)
    blocks: list[NDArray[np.float32]] = []
    at = 0
    for item in source.read():
        if isinstance(item, AudioChunk):
            assert item.index == at
            assert item.pts == at / 16000
            blocks.append(item.samples[0].numpy())
            at += item.samples.shape[1]
            continue
        rgb = item.rgb(192, 108)
        out.times.append(item.pts)
        out.index.append(item.index)
        out.numbers.append(_number(rgb))
        out.usable.append(item.usable)
        out.corrupt.append(item.corrupt)
        if len(out.times) % 5 == 1:
            out.pixels[item.index] = rgb
    out.sound = np.concatenate([out.sound, *blocks])
    out.codes = {code for code, _ in (*source.info.warnings, *source.report.notes)}
    return out


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("odd")

    def made(name: str) -> Path:
        path = folder / name
        if not path.exists():
            odd_file(name).make(path)
        return path

    return made


@pytest.fixture(scope="module")
def shown(make: Callable[[str], Path]) -> Callable[[str], Shown]:
    known: dict[str, Shown] = {}

    def of(name: str) -> Shown:
        if name not in known:
            known[name] = show(make(name))
        return known[name]

    return of


@pytest.mark.parametrize("row", READABLE, ids=lambda row: row.name)
def test_odd_file_shows_what_its_row_states(shown: Callable[[str], Shown], row: OddFile) -> None:
    seen = shown(row.name)
    assert set(row.warnings) <= seen.codes
    if row.name in {"plain ü 頁.mp4", "one_frame.mp4", "black.mp4", "odd_size_444.mp4"}:
        assert seen.codes == set()
    video = seen.info.video
    if row.frames == 0:
        assert video is None
        assert not seen.times
        return
    assert video is not None
    assert (video.height, video.width) == row.shape
    assert seen.times[0] == pytest.approx(row.first, abs=1e-6)
    assert seen.times[-1] == pytest.approx(row.last, abs=1e-6)
    assert all(after > before for before, after in pairwise(seen.times))
    if row.frames is not None:
        assert len(seen.times) == row.frames
        assert seen.index == list(range(row.frames))
        assert all(seen.usable)


@pytest.mark.parametrize(
    "row", [row for row in READABLE if row.first_number is not None], ids=lambda row: row.name
)
def test_odd_file_bar_codes_are_in_order(shown: Callable[[str], Shown], row: OddFile) -> None:
    seen, first = shown(row.name), row.first_number
    assert first is not None
    if row.frames is not None:
        assert seen.numbers == list(range(first, first + row.frames))
        return
    pairs = zip(seen.index, seen.numbers, seen.usable, strict=True)
    assert set(row.intact) <= {number for index, number, fine in pairs if fine and index == number}


def test_damaged_pictures_are_never_usable(shown: Callable[[str], Shown]) -> None:
    seen = shown("damaged.mp4")
    pictures = list(zip(seen.index, seen.numbers, seen.usable, seen.corrupt, strict=True))
    assert any(corrupt for *_, corrupt in pictures)
    assert not any(usable and corrupt for *_, usable, corrupt in pictures)
    assert all(number == index for index, number, usable, _ in pictures if usable)


def _loud(sound: NDArray[np.float32]) -> NDArray[np.float64]:
    """Seconds at which tone bursts begin."""
    at = np.flatnonzero(np.abs(sound) > 0.15)
    return at[np.flatnonzero(np.diff(at, prepend=-10_000) > 800)] / 16000


@pytest.mark.parametrize("row", READABLE, ids=lambda row: row.name)
def test_odd_file_sound_is_where_it_belongs(shown: Callable[[str], Shown], row: OddFile) -> None:
    sound = shown(row.name).sound
    if row.audio is None:
        assert len(sound) == 0
        return
    audible = np.flatnonzero(np.abs(sound) > 1e-3) / 16000
    start, stop = row.audio
    assert audible[0] == pytest.approx(start, abs=0.03)
    slack = 0.2 if row.name == "truncated.mp4" else 0.07  # an AAC packet at 16 kHz lasts 64 ms
    assert audible[-1] == pytest.approx(stop, abs=slack)
    assert len(sound) / 16000 == pytest.approx(stop, abs=slack)
    if row.gap is not None:
        a, b = (round(t * 16000) for t in row.gap)
        assert np.abs(sound[a + 1600 : b - 1600]).max() < 1e-4
        assert np.abs(sound[: round(start * 16000)]).max(initial=0) < 0.02


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("plain ü 頁.mp4", [0.25, 0.75, 1.25, 1.75]),
        ("late_video.mp4", [0.25, 0.75, 1.25, 1.75]),
        ("late_audio_gap.mp4", [0.75, 1.25]),
        ("start_time.ts", [0.25, 0.75]),
        ("timestamp_reset.ts", [0.25, 0.75, 1.45, 1.95]),
        ("several_tracks.mkv", [0.25, 0.75, 1.25, 1.75]),
    ],
)
def test_tone_bursts_keep_their_times(
    shown: Callable[[str], Shown], name: str, begins: list[float]
) -> None:
    assert _loud(shown(name).sound) == pytest.approx(begins, abs=0.003)


def test_sound_of_a_transport_stream_has_its_exact_length(shown: Callable[[str], Shown]) -> None:
    assert len(shown("start_time.ts").sound) == 50 * 1152 // 3
    assert len(shown("timestamp_reset.ts").sound) == 2 * 50 * 1152 // 3


@pytest.mark.parametrize("row", [row for row in ODD_FILES if row.error], ids=lambda row: row.name)
def test_unreadable_files_are_refused_with_a_hint(
    make: Callable[[str], Path], row: OddFile
) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        open_media(make(row.name))
    assert row.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("name", DAMAGED)
def test_strict_refuses_damage(make: Callable[[str], Path], name: str) -> None:
    with pytest.raises(DecodeError, match=name) as caught:
        show(make(name), strict=True)
    assert caught.value.hint


def test_strict_reads_a_clean_file(make: Callable[[str], Path]) -> None:
    assert len(show(make("timestamp_reset.ts"), strict=True).times) == 72


@pytest.mark.parametrize("row", READABLE, ids=lambda row: row.name)
def test_second_read_is_bit_identical(
    make: Callable[[str], Path], shown: Callable[[str], Shown], row: OddFile
) -> None:
    first, again = shown(row.name), show(make(row.name))
    assert first.times == again.times
    assert first.usable == again.usable
    assert first.codes == again.codes
    assert first.sound.tobytes() == again.sound.tobytes()
    assert first.pixels.keys() == again.pixels.keys()
    for index, pixels in first.pixels.items():
        assert pixels.tobytes() == again.pixels[index].tobytes(), index


@pytest.mark.parametrize(
    ("choice", "first", "tracks"),
    [
        ({}, 0, (1, 3)),
        ({"video_stream": "0"}, 1000, (0, 3)),
        ({"video_stream": "1", "audio_stream": "2"}, 0, (1, 2)),
        ({"audio_stream": "deu"}, 0, (1, 2)),
        ({"audio_stream": "none"}, 0, (1, None)),
        ({"video_stream": "none"}, None, (None, 3)),
    ],
)
def test_streams_can_be_chosen(
    make: Callable[[str], Path],
    choice: dict[str, str],
    first: int | None,
    tracks: tuple[int | None, int | None],
) -> None:
    seen = show(make("several_tracks.mkv"), **choice)
    video, audio = seen.info.video, seen.info.audio
    assert (video and video.index, audio and audio.index) == tracks
    assert (seen.numbers[0] if seen.numbers else None) == first
    assert len(seen.info.other_streams) == 4 - sum(track is not None for track in tracks)
    assert len(_loud(seen.sound)) == (4 if tracks[1] == 3 else 0)


@pytest.mark.parametrize(
    "choice", [{"video_stream": "7"}, {"video_stream": "2"}, {"audio_stream": "fra"}]
)
def test_a_stream_that_is_not_there_is_refused_with_the_list(
    make: Callable[[str], Path], choice: dict[str, str]
) -> None:
    with pytest.raises(UnsupportedMedia, match=r"no (video|audio) stream") as caught:
        probe(make("several_tracks.mkv"), **choice)
    kind = next(iter(choice)).partition("_")[0]
    listed = {"video": "0 (eng), 1 (eng)", "audio": "2 (deu), 3 (eng)"}[kind]
    assert caught.value.hint == f"{kind} streams: {listed}"


def test_no_stream_left_is_refused(make: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedMedia):
        probe(make("no_audio.mp4"), video_stream="none")
