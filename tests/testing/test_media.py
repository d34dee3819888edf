"""The bar code survives what files do to it, and written files hold what was asked for."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokpipe.testing.barcode import MAX_NUMBER, paint_frame, paint_number, read_frame_number
from tokpipe.testing.media import AudioTrack, VideoTrack, tone_bursts, write_media


def decode(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def rgb(frame: av.VideoFrame) -> NDArray[np.uint8]:
    picture: NDArray[np.uint8] = frame.to_ndarray(format="rgb24").astype(np.uint8)
    return picture


@settings(max_examples=40, deadline=None)
@given(
    number=st.integers(0, MAX_NUMBER),
    width=st.integers(88, 400),
    height=st.integers(48, 300),
)
def test_barcode_reads_back_at_any_size(number: int, width: int, height: int) -> None:
    assert read_frame_number(paint_frame(number, 0.3, (width, height))) == number


@pytest.mark.parametrize("size", [(448, 252), (320, 180), (56, 28), (44, 24)])
def test_barcode_survives_scaling(size: tuple[int, int]) -> None:
    frame = av.VideoFrame.from_ndarray(paint_frame(43690, 1.0, (192, 108)), format="rgb24")
    small = frame.reformat(width=size[0], height=size[1], interpolation="AREA")
    assert read_frame_number(rgb(small)) == 43690


def test_barcode_refuses_a_torn_strip() -> None:
    picture = paint_frame(0b0110, 0.0, (220, 108))
    other = paint_frame(0b1000, 0.0, (220, 108))
    picture[:, 170:] = other[:, 170:]
    picture[:, :180] = paint_frame(0b0100, 0.0, (220, 108))[:, :180]
    with pytest.raises(ValueError, match="parity"):
        read_frame_number(picture)


def test_barcode_refuses_a_picture_without_one() -> None:
    with pytest.raises(ValueError, match="no bar code"):
        read_frame_number(np.full((108, 192, 3), 128, dtype=np.uint8))


@pytest.mark.parametrize("number", [-1, MAX_NUMBER + 1])
def test_paint_number_refuses_what_does_not_fit(number: int) -> None:
    with pytest.raises(ValueError, match="frame number"):
        paint_number(np.zeros((108, 192, 3), dtype=np.uint8), number)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("libx264", "yuv420p", "mp4"),
        ("libx265", "yuv420p", "mp4"),
        ("libvpx", "yuv420p", "webm"),
        ("mpeg2video", "yuv420p", "mkv"),
        ("ffv1", "yuv444p", "mkv"),
    ],
)
def test_write_media_keeps_numbers_and_times(
    tmp_path: Path, codec: str, pix_fmt: str, suffix: str
) -> None:
    path = tmp_path / f"clip.{suffix}"
    base = Fraction(1, 30) if codec == "mpeg2video" else Fraction(1, 90000)
    write_media(
        path,
        VideoTrack(codec=codec, pix_fmt=pix_fmt, frames=20, first_number=700, time_base=base),
    )
    frames = decode(path)
    assert [read_frame_number(rgb(frame)) for frame in frames] == list(range(700, 720))
    assert [frame.time for frame in frames] == pytest.approx([n / 30 for n in range(20)], abs=1e-3)


def test_write_media_survives_hard_compression(tmp_path: Path) -> None:
    path = tmp_path / "poor.mp4"
    write_media(path, VideoTrack(frames=20, options={"crf": "36"}))
    assert [read_frame_number(rgb(frame)) for frame in decode(path)] == list(range(20))


def test_write_media_is_deterministic(tmp_path: Path) -> None:
    pictures = []
    for name in ("a.mp4", "b.mp4"):
        write_media(tmp_path / name, VideoTrack(frames=10), AudioTrack(duration=Fraction(1, 3)))
        pictures.append([rgb(frame) for frame in decode(tmp_path / name)])
    for first, second in zip(*pictures, strict=True):
        np.testing.assert_array_equal(first, second)


def test_interlaced_pictures_hold_two_moments(tmp_path: Path) -> None:
    path = tmp_path / "woven.mp4"
    write_media(path, VideoTrack(interlaced=True, frames=10, fps=Fraction(5)))
    frame = decode(path)[5]
    assert frame.interlaced_frame
    expected = paint_frame(5, 1.0, (192, 108)), paint_frame(5, 1.1, (192, 108))
    grey = [moment.astype(int) @ [299, 587, 114] // 1000 for moment in expected]
    moved = np.abs(grey[0] - grey[1]) > 40
    luma = frame.to_ndarray(format="gray").astype(int)
    for parity, moment in enumerate(grey):
        error = np.abs(luma - moment)
        assert error[parity::2][moved[parity::2]].mean() < 15
        assert error[1 - parity :: 2][moved[1 - parity :: 2]].mean() > 40


@pytest.mark.parametrize(("transfer", "white"), [("pq", 0.5807), ("hlg", 0.75)])
def test_hdr_white_has_the_signal_of_the_standard(
    tmp_path: Path, transfer: str, white: float
) -> None:
    path = tmp_path / "hdr.mp4"
    write_media(
        path,
        VideoTrack(codec="libx265", pix_fmt="yuv420p10le", transfer=transfer, frames=3),  # type: ignore[arg-type]
    )
    frame = decode(path)[0]
    assert frame.format.name == "yuv420p10le"
    plane = frame.planes[0]
    luma = np.frombuffer(memoryview(plane), dtype="<u2").reshape(plane.height, -1)[:, : plane.width]
    assert (luma[15:25, 12:14].mean() - 64) / 876 == pytest.approx(white, abs=0.01)


def test_tone_bursts_begin_where_asked() -> None:
    sound = tone_bursts(16000, 16000, (0.25, 0.5))
    loud = np.flatnonzero(np.abs(sound) > 0.1)
    starts = loud[np.flatnonzero(np.diff(loud, prepend=-1000) > 400)] / 16000
    assert starts == pytest.approx([0.25, 0.5], abs=1e-3)
