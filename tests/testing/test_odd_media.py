"""Plain PyAV sees in every odd file what its row states, as far as plain PyAV can."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tokpipe.testing.barcode import read_frame_number
from tokpipe.testing.odd_media import ODD_FILES, OddFile, odd_file

CODES = {
    *("rotated", "vfr", "edit-list", "late-video", "late-audio", "hdr", "ten-bit", "interlaced"),
    *("truncated", "damaged", "size-change", "start-offset", "no-duration", "pixel-aspect"),
    *("attached-picture", "extra-streams", "timestamp-reset", "audio-gap", "no-audio"),
    *("no-video", "bad-header"),
}
READABLE = [row for row in ODD_FILES if row.error is None]


@dataclass
class Seen:
    """What plain decoding delivers; seconds count from the container's start."""

    start: float = 0.0
    duration: int | None = None
    pictures: list[tuple[float, av.VideoFrame]] = field(default_factory=list)
    sound: list[tuple[float, float]] = field(default_factory=list)
    errors: int = 0


def see(path: Path) -> Seen:
    seen = Seen()
    with av.open(str(path)) as container:
        seen.start = max(0.0, (container.start_time or 0) / 1e6)
        seen.duration = container.duration
        streams: list[Any] = [container.streams.best("video"), container.streams.best("audio")]
        wanted = [
            s for s in streams if s and not s.disposition & av.stream.Disposition.attached_pic
        ]
        for packet in container.demux(wanted):
            try:
                frames: list[Any] = list(packet.decode())
            except av.FFmpegError:
                seen.errors += 1
                continue
            for frame in frames:
                begin = float(frame.pts * frame.time_base) - seen.start
                if isinstance(frame, av.VideoFrame):
                    seen.pictures.append((begin, frame))
                else:
                    seen.sound.append((begin, begin + frame.samples / frame.sample_rate))
    return seen


def upright(frame: av.VideoFrame) -> NDArray[np.uint8]:
    picture = frame.to_ndarray(format="rgb24").astype(np.uint8)
    return np.ascontiguousarray(np.rot90(picture, frame.rotation // 90))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    for row in ODD_FILES:
        row.make(folder / row.name)
    return folder


def test_odd_files_have_distinct_names_and_known_codes() -> None:
    assert len({row.name for row in ODD_FILES}) == len(ODD_FILES) == 32
    assert {code for row in ODD_FILES for code in row.warnings} == CODES


def test_odd_file_finds_rows_by_name() -> None:
    assert odd_file("vfr.mp4").frames == 108
    with pytest.raises(KeyError):
        odd_file("none.mp4")


def test_odd_files_leave_nothing_else_behind(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {row.name for row in ODD_FILES}


@pytest.mark.parametrize("row", [row for row in ODD_FILES if row.error], ids=lambda row: row.name)
def test_unreadable_files_do_not_open(folder: Path, row: OddFile) -> None:
    with pytest.raises((av.FFmpegError, OSError)):
        av.open(str(folder / row.name)).close()


@pytest.mark.parametrize("row", READABLE, ids=lambda row: row.name)
def test_odd_file_pictures_are_as_stated(folder: Path, row: OddFile) -> None:
    seen = see(folder / row.name)
    if row.frames == 0:
        assert not seen.pictures
        return
    # PyAV delivers what is left of a cut or damaged picture too; its bar code tells it apart.
    whole = row.frames is not None and "truncated" not in row.warnings
    times = [time for time, _ in seen.pictures]
    assert upright(seen.pictures[0][1]).shape[:2] == row.shape
    assert times[0] == pytest.approx(row.first, abs=1e-3)
    if whole:
        assert len(times) == row.frames
    if whole and "timestamp-reset" not in row.warnings:
        assert times[-1] == pytest.approx(row.last, abs=1e-3)
        assert all(after > before for before, after in pairwise(times))


@pytest.mark.parametrize(
    "row", [row for row in READABLE if row.first_number is not None], ids=lambda row: row.name
)
def test_odd_file_bar_codes_count_up(folder: Path, row: OddFile) -> None:
    assert row.first_number is not None
    shown = []
    for _, frame in see(folder / row.name).pictures:
        try:
            shown.append(read_frame_number(upright(frame)))
        except ValueError:
            assert "damaged" in row.warnings
    if row.frames is None:
        assert set(row.intact) <= set(shown)
    elif "truncated" in row.warnings:
        assert shown[: row.frames] == list(range(row.frames))
        assert len(shown) <= row.frames + 1
    else:
        assert shown == list(range(row.first_number, row.first_number + row.frames))


@pytest.mark.parametrize("row", READABLE, ids=lambda row: row.name)
def test_odd_file_sound_is_as_stated(folder: Path, row: OddFile) -> None:
    sound = see(folder / row.name).sound
    if row.audio is None:
        assert not sound
        return
    slack = 0.2 if "truncated" in row.warnings else 0.065  # one AAC packet at 16 kHz
    assert sound[0][0] == pytest.approx(row.audio[0], abs=1e-3)
    if "timestamp-reset" not in row.warnings:
        assert sound[-1][1] == pytest.approx(row.audio[1], abs=slack)
    holes = [
        (before[1], after[0]) for before, after in pairwise(sound) if after[0] - before[1] > 0.01
    ]
    assert holes == ([] if row.gap is None else [pytest.approx(row.gap, abs=1e-3)])


@pytest.mark.parametrize(("name", "degrees"), [("90", 90), ("180", -180), ("270", -90)])
def test_rotation_is_in_the_display_matrix(folder: Path, name: str, degrees: int) -> None:
    frame = see(folder / f"rotated_{name}.mp4").pictures[0][1]
    assert (frame.rotation, frame.width, frame.height) == (degrees, 192, 108)


def test_flags_of_pictures_are_as_stated(folder: Path) -> None:
    pictures = {row.name: see(folder / row.name).pictures for row in READABLE if row.frames != 0}
    interlaced = {name for name, seen in pictures.items() if seen[0][1].interlaced_frame}
    ten_bit = {name for name, seen in pictures.items() if "10" in seen[0][1].format.name}
    assert interlaced == {"interlaced.mp4"}
    assert ten_bit == {"hdr_pq.mp4", "hdr_hlg.mp4"}
    assert pictures["hdr_pq.mp4"][0][1].color_trc == 16
    assert pictures["hdr_hlg.mp4"][0][1].color_trc == 18
    sizes = [(frame.width, frame.height) for _, frame in pictures["size_change.ts"]]
    assert sizes == [(192, 108)] * 30 + [(320, 180)] * 30


def test_edit_list_hides_pictures_that_packets_still_carry(folder: Path) -> None:
    with av.open(str(folder / "edit_list.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert len(packets) == 133
    assert sum(packet.is_discard for packet in packets) == 11
    assert min(packet.pts or 0 for packet in packets) < 0


def test_transport_stream_starts_late_and_resets(folder: Path) -> None:
    assert see(folder / "start_time.ts").start == pytest.approx(1.4667, abs=1e-3)
    times = [time for time, _ in see(folder / "timestamp_reset.ts").pictures]
    back = [n for n in range(1, len(times)) if times[n] < times[n - 1]]
    assert back == [36]
    assert times[36] == pytest.approx(0.0, abs=1e-3)


def test_headers_lie_where_stated(folder: Path) -> None:
    assert see(folder / "no_duration.mkv").duration is None
    for name in ("bad_header.mp4", "bad_header.avi"):
        with av.open(str(folder / name)) as container:
            assert container.streams.video[0].frames > 1e8
            assert (container.duration or 0) > 1e10
    with av.open(str(folder / "pixel_aspect.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == 2


def test_several_tracks_mark_their_default(folder: Path) -> None:
    with av.open(str(folder / "several_tracks.mkv")) as container:
        default = [bool(s.disposition & av.stream.Disposition.default) for s in container.streams]
        assert default == [False, True, False, True]
        assert [stream.language for stream in container.streams] == ["eng", "eng", "deu", "eng"]
        first = next(container.decode(video=0))
    assert read_frame_number(upright(first)) == 1000


def test_cover_art_is_an_attached_picture(folder: Path) -> None:
    with av.open(str(folder / "cover_art.m4a")) as container:
        video = container.streams.video[0]
        assert video.disposition & av.stream.Disposition.attached_pic


def test_damage_makes_packets_fail(folder: Path) -> None:
    assert see(folder / "damaged.mp4").errors > 0


@pytest.mark.parametrize("name", ["rotated_90.mp4", "vfr.mp4", "damaged.mp4", "timestamp_reset.ts"])
def test_making_again_gives_the_same_pictures(folder: Path, tmp_path: Path, name: str) -> None:
    odd_file(name).make(tmp_path / name)
    first, again = see(folder / name).pictures, see(tmp_path / name).pictures
    assert [time for time, _ in first] == [time for time, _ in again]
    for (_, one), (_, other) in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.to_ndarray(), other.to_ndarray())
