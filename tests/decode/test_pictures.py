"""Pictures come out upright, joined, tone-mapped and at the size asked for."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tokpipe.decode import open_media
from tokpipe.decode._picture import DecodedPicture, tone_map
from tokpipe.testing.barcode import paint_frame
from tokpipe.testing.media import VideoTrack, write_media
from tokpipe.testing.odd_media import odd_file


def pictures(path: Path) -> list[DecodedPicture]:
    source = open_media(path, audio_stream="none")
    return [item for item in source.read() if isinstance(item, DecodedPicture)]


def _pq_light(signal: float) -> float:
    """SMPTE ST 2084, equation 4.1: cd/m2."""
    m1, m2 = 0.1593017578125, 78.84375
    c1, c2, c3 = 0.8359375, 18.8515625, 18.6875
    root = signal ** (1 / m2)
    return float(10000 * (max(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1))


def _hlg_scene(signal: float) -> float:
    """Rec. ITU-R BT.2100, table 5, inverse OETF: 0 to 1."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return signal**2 / 3 if signal <= 0.5 else float((np.exp((signal - c) / a) + b) / 12)


def _expected(rgb: tuple[int, int, int], transfer: str) -> list[float]:
    """The documented mapping of one pixel, in double precision, step by step."""
    signal = [value / 65535 for value in rgb]
    if transfer == "pq":
        light = [_pq_light(value) for value in signal]
    else:
        scene = [_hlg_scene(value) for value in signal]
        luma = 0.2627 * scene[0] + 0.6780 * scene[1] + 0.0593 * scene[2]
        light = [1000 * luma**0.2 * value for value in scene]
    matrix = [  # BT.2087: linear BT.2020 to linear BT.709
        (1.660491, -0.587641, -0.072850),
        (-0.124550, 1.132900, -0.008349),
        (-0.018151, -0.100579, 1.118730),
    ]
    linear = [max(0.0, sum(k * x for k, x in zip(row, light, strict=True))) / 203 for row in matrix]
    top = max(linear)
    scale = (1 + top / (1000 / 203) ** 2) / (1 + top) if top > 0 else 1.0
    out = []
    for value in linear:
        mapped = min(value * scale, 1.0)
        video = 4.5 * mapped if mapped < 0.018 else 1.099 * mapped**0.45 - 0.099
        out.append(255 * video)
    return out


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_tone_map_follows_its_formulas(transfer: str) -> None:
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 65536, (1, 200, 3)).astype(np.uint16)
    pixels[0, :4] = [(0, 0, 0), (65535,) * 3, (38056,) * 3, (65535, 0, 0)]
    mapped = tone_map(pixels, transfer)[0]
    for pixel, got in zip(pixels[0], mapped, strict=True):
        red, green, blue = (int(value) for value in pixel)
        assert got == pytest.approx(_expected((red, green, blue), transfer), abs=0.51)


@pytest.mark.parametrize("name", ["hdr_pq.mp4", "hdr_hlg.mp4"])
def test_hdr_file_shows_grey_as_grey(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    odd_file(name).make(path)
    rgb = pictures(path)[3].rgb(192, 108).astype(int)
    original = paint_frame(3, 0.1, (192, 108)).astype(int)
    white, black = rgb[14:26, 10:14].mean(), rgb[14:26, 19:22].mean()
    transfer = "pq" if "pq" in name else "hlg"
    signal = 0.5807 if transfer == "pq" else 0.75
    code = round(signal * 65535)
    assert white == pytest.approx(_expected((code, code, code), transfer)[0], abs=4)
    assert black < 12
    shade = rgb[60, 5:60].mean(axis=0)
    assert shade[2] > shade[0]  # the gradient's blue side stays blue
    assert original[60, 5:60].mean(axis=0)[2] > original[60, 5:60].mean(axis=0)[0]


def _ramp(_number: int, _time: float) -> NDArray[np.uint8]:
    """Grey from 0 to 255, left to right: no colour matrix changes it."""
    row = np.linspace(0, 255, 192).round().astype(np.uint8)
    return np.repeat(np.repeat(row[None, :, None], 108, axis=0), 3, axis=2)


def test_ten_bit_sdr_equals_its_source(tmp_path: Path) -> None:
    path = tmp_path / "deep.mp4"
    write_media(path, VideoTrack(codec="libx265", pix_fmt="yuv420p10le", frames=4, draw=_ramp))
    assert "ten-bit" in {code for code, _ in open_media(path).info.warnings}
    rgb = pictures(path)[2].rgb(192, 108)
    assert rgb.dtype == np.uint8
    assert np.abs(rgb.astype(int) - _ramp(0, 0.0)).max() <= 4


def _corner(_number: int, _time: float) -> NDArray[np.uint8]:
    """A white corner at the upper left, a grey one at the upper right."""
    picture = np.zeros((120, 80, 3), dtype=np.uint8)
    picture[:30, :20] = 255
    picture[:30, 60:] = 128
    return picture


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotated_picture_has_its_corners_in_place(tmp_path: Path, rotation: int) -> None:
    path = tmp_path / "turned.mp4"
    write_media(path, VideoTrack(size=(80, 120), rotation=rotation, frames=2, draw=_corner))
    shown = pictures(path)[0]
    rgb = shown.rgb(80, 120)
    assert rgb.shape == (120, 80, 3)
    assert rgb.flags.c_contiguous
    corners = [rgb[4:26, 4:16], rgb[4:26, 64:76], rgb[94:116, 4:16], rgb[94:116, 64:76]]
    assert [round(float(c.mean()) / 64) for c in corners] == [4, 2, 0, 0]
    half = shown.rgb(40, 60)
    assert half.shape == (60, 40, 3)
    assert half[2:13, 2:8].mean() > 240


def test_pixel_aspect_is_told_and_leaves_pixels_alone(tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    write_media(path, VideoTrack(pixel_aspect=Fraction(2), frames=2))
    video = open_media(path).info.video
    assert video is not None
    assert (video.width, video.height, video.pixel_aspect) == (192, 108, Fraction(2))
    assert video.display_size == (384.0, 108.0)


def test_pixel_aspect_turns_with_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    write_media(path, VideoTrack(pixel_aspect=Fraction(2), rotation=90, size=(108, 192), frames=2))
    video = open_media(path).info.video
    assert video is not None
    assert (video.width, video.height, video.pixel_aspect) == (108, 192, Fraction(1, 2))


def _combing(luma: NDArray[Any]) -> float:
    """How much rows differ from both neighbours in the same direction (woven fields do)."""
    rows = luma.astype(np.int64)
    up, down = rows[1:-1] - rows[:-2], rows[1:-1] - rows[2:]
    return float(np.mean((up * down > 0) * np.minimum(np.abs(up), np.abs(down))))


def _moving(number: int, time: float) -> NDArray[np.uint8]:
    picture = np.full((108, 192, 3), 40, dtype=np.uint8)
    left = 20 + round(150 * time)
    picture[20:90, left : left + 30] = 220
    return picture


def test_deinterlacing_leaves_no_combs(tmp_path: Path) -> None:
    path = tmp_path / "woven.mp4"
    track = VideoTrack(
        interlaced=True, fps=Fraction(10), frames=10, draw=_moving, options={"crf": "8"}
    )
    write_media(path, track)
    with av.open(str(path)) as container:
        woven = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    shown = pictures(path)
    assert [picture.pts for picture in shown] == pytest.approx([n / 10 for n in range(10)])
    assert [picture.duration for picture in shown] == pytest.approx([0.1] * 10)
    for before, picture in zip(woven[1:-1], shown[1:-1], strict=True):
        after = picture.rgb(192, 108)[..., 1]
        assert _combing(before) > 4
        assert _combing(after) < 0.25 * _combing(before)
        # The first field's moment is kept: the bar begins where it was then.
        expected = _moving(0, picture.pts)[..., 1].astype(int)
        assert np.abs(after[30:80].astype(int) - expected[30:80]).mean() < 8


def test_size_change_keeps_the_grid_of_the_first_picture(tmp_path: Path) -> None:
    path = tmp_path / "size_change.ts"
    odd_file("size_change.ts").make(path)
    source = open_media(path)
    assert source.info.video is not None
    assert (source.info.video.width, source.info.video.height) == (192, 108)
    shown = pictures(path)
    assert {(picture.frame.width, picture.frame.height) for picture in shown} == {
        (192, 108),
        (320, 180),
    }
    assert {picture.rgb(96, 54).shape for picture in shown} == {(54, 96, 3)}
    late = shown[45].rgb(192, 108).astype(int)
    expected = paint_frame(45, 1.5, (192, 108)).astype(int)
    assert np.abs(late - expected).mean() < 8
