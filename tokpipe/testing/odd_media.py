"""Odd media files with known facts: what breaks video readers, one small file each.

`ODD_FILES` is the table. The facts follow from how a file is made (its bar codes and timestamps
are ours); nothing in it was taken from what a reader returned.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.testing.damage import (
    cut_inside_packet,
    damage_frames,
    find_box,
    find_chunk,
    join_files,
    patch_words,
)
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media

__all__ = ["ODD_FILES", "OddFile", "odd_file"]


@dataclass(frozen=True, slots=True)
class OddFile:
    """One odd file and what a right reader says about it.

    The clock is tokpipe's: zero is the container's start if positive, else 0; what lies before
    zero is not shown; timestamps that reset go on from the end of what came before.

    Attributes:
        name: File name.
        make: Writes the file to a path.
        frames: Pictures shown; 0 without video, None where damage leaves it open.
        first: Seconds of the first picture, None without video.
        last: Seconds of the last picture, None without video.
        shape: Height and width of the first picture, upright, before pixel aspect.
        warnings: Short codes of what a reader has to tell or to normalise.
        error: Name of the tokpipe error that an unreadable file raises.
        first_number: Bar code of the first picture; the others follow one by one. None where
            pictures carry no bar code.
        intact: Bar codes that must be shown, in order, where `frames` is None.
        audio: Seconds at which sound starts and ends, None without sound.
        gap: Span of seconds without sound in between.
    """

    name: str
    make: Callable[[Path], None]
    frames: int | None = 60
    first: float | None = 0.0
    last: float | None = 59 / 30
    shape: tuple[int, int] | None = (108, 192)
    warnings: tuple[str, ...] = ()
    error: str | None = None
    first_number: int | None = 0
    intact: tuple[int, ...] = ()
    audio: tuple[float, float] | None = (0.0, 2.0)
    gap: tuple[float, float] | None = None


class _WriteOnly:
    """A sink that cannot seek, like a pipe: the muxer cannot come back to write a duration."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def close(self) -> None:
        self._file.close()


def _clip(*, audio: AudioTrack | None = None, **video: Any) -> Callable[[Path], None]:
    """Make a writer of one video track and, unless told otherwise, 2 s of AAC."""

    def make(path: Path) -> None:
        write_media(path, VideoTrack(**video), audio or AudioTrack())

    return make


def _silent(path: Path) -> None:
    write_media(path, VideoTrack())


def _black(_number: int, _time: float) -> NDArray[np.uint8]:
    return np.zeros((108, 192, 3), dtype=np.uint8)


def _ten_bit(transfer: str) -> Callable[[Path], None]:
    return _clip(codec="libx265", pix_fmt="yuv420p10le", transfer=transfer)


def _vfr(path: Path) -> None:
    fast = [Fraction(n, 30) for n in range(90)]
    slow = [3 + Fraction(n, 6) for n in range(18)]
    write_media(path, VideoTrack(pts=fast + slow), AudioTrack(duration=Fraction(6)))


def _faststart(path: Path, **video: Any) -> None:
    write_media(path, VideoTrack(**video), AudioTrack(), options={"movflags": "+faststart"})


def _truncated(path: Path) -> None:
    _faststart(path, b_frames=0)
    cut_inside_packet(path, 35)


def _no_moov(path: Path) -> None:
    write_media(path, VideoTrack(), AudioTrack())
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])


def _text(path: Path) -> None:
    path.write_text("This is a text file, whatever its name says.\n" * 20, encoding="utf-8")


def _noise(path: Path) -> None:
    path.write_bytes(random.Random(7).randbytes(50_000))  # noqa: S311


def _damaged(path: Path) -> None:
    _faststart(path, frames=90)
    damage_frames(path, [*range(16, 30), *range(45, 60)], count=400)


def _size_change(path: Path) -> None:
    parts = [path.with_suffix(f".part{n}") for n in range(2)]
    second = {"size": (320, 180), "first_number": 30, "start": Fraction(1)}
    for part, change in zip(parts, ({}, second), strict=True):
        track = VideoTrack(**{"frames": 30, "b_frames": 0, **change})  # type: ignore[arg-type]
        write_media(part, track, container="mpegts", options=_JOINABLE)
    join_files(path, parts)


_JOINABLE = {"mpegts_flags": "+initial_discontinuity"}
# 50 packets of 1152 samples after the 481 samples of priming: sound ends with the 36th picture.
_MP2 = AudioTrack(
    codec="mp2",
    sample_rate=48000,
    start=Fraction(481, 48000),
    duration=Fraction(50 * 1152 - 481, 48000),
    bursts=(0.24, 0.74),
)


def _transport(path: Path) -> None:
    write_media(path, VideoTrack(frames=36), _MP2, options={"max_delay": "700000"})


def _reset(path: Path) -> None:
    parts = [path.with_suffix(f".part{n}") for n in range(2)]
    for n, part in enumerate(parts):
        track = VideoTrack(frames=36, first_number=36 * n)
        options = {**_JOINABLE, "max_delay": "700000"}
        write_media(part, track, _MP2, container="mpegts", options=options)
    join_files(path, parts)


def _cover_art(path: Path) -> None:
    cover = VideoTrack(codec="mjpeg", pix_fmt="yuvj420p", frames=1, attached=True)
    write_media(path, AudioTrack(), cover, container="mp4")


def _several_tracks(path: Path) -> None:
    write_media(
        path,
        VideoTrack(size=(96, 96), first_number=1000, language="eng"),
        VideoTrack(default=True, language="eng"),
        AudioTrack(codec="flac", language="deu", bursts=()),
        AudioTrack(codec="flac", language="eng", default=True),
    )


def _no_duration(path: Path) -> None:
    sink = _WriteOnly(path)
    write_media(sink, VideoTrack(), AudioTrack(codec="flac"), container="matroska")
    sink.close()


def _bad_mp4_header(path: Path) -> None:
    write_media(path, VideoTrack(), AudioTrack())
    data = path.read_bytes()
    track = "moov/trak/"
    absurd = 0x7FFF_FFFF
    patch_words(
        path,
        [
            (find_box(data, "moov/mvhd") + 16, absurd),
            (find_box(data, track + "tkhd") + 20, absurd),
            (find_box(data, track + "mdia/mdhd") + 16, absurd),
            (find_box(data, track + "edts/elst") + 8, absurd),
            (find_box(data, track + "mdia/minf/stbl/stts") + 8, 0x0FFF_FFFF),
        ],
    )


def _bad_avi_header(path: Path) -> None:
    video = VideoTrack(codec="mpeg4", time_base=Fraction(1, 30))
    write_media(path, video, AudioTrack(codec="pcm_s16le"))
    data = path.read_bytes()
    absurd = 0x7FFF_FFFF
    words = [(find_chunk(data, b"avih") + 16, absurd), (find_chunk(data, b"strh") + 32, absurd)]
    patch_words(path, words, byte_order="<")


def _gif(path: Path) -> None:
    write_media(
        path,
        VideoTrack(
            codec="gif", pix_fmt="rgb8", fps=Fraction(10), frames=20, time_base=Fraction(1, 100)
        ),
    )


_LATE = AudioTrack(start=Fraction(1, 2), duration=Fraction(7, 2), gaps=((1.5, 2.5),))
_UNREADABLE: dict[str, Any] = {
    "frames": None,
    "first": None,
    "last": None,
    "shape": None,
    "error": "UnsupportedMedia",
    "first_number": None,
    "audio": None,
}
_SOUND: dict[str, Any] = {
    "frames": 0,
    "first": None,
    "last": None,
    "shape": None,
    "first_number": None,
}
_SMALL = (192, 108)
_TALL = (108, 192)

ODD_FILES: tuple[OddFile, ...] = (
    OddFile("plain ü 頁.mp4", _clip()),
    OddFile(
        "rotated_90.mp4",
        _clip(size=_TALL, rotation=90),
        shape=(192, 108),
        warnings=("rotated",),
    ),
    OddFile("rotated_180.mp4", _clip(rotation=180), warnings=("rotated",)),
    OddFile(
        "rotated_270.mp4",
        _clip(size=_TALL, rotation=270),
        shape=(192, 108),
        warnings=("rotated",),
    ),
    OddFile("vfr.mp4", _vfr, frames=108, last=35 / 6, warnings=("vfr",), audio=(0.0, 6.0)),
    OddFile(
        "edit_list.mp4",
        _clip(frames=133, start=Fraction(-11, 30), audio=AudioTrack(duration=Fraction(4))),
        frames=122,
        last=121 / 30,
        warnings=("edit-list",),
        first_number=11,
        audio=(0.0, 4.0),
    ),
    OddFile(
        "late_video.mp4",
        _clip(start=Fraction(7, 10), audio=AudioTrack(duration=Fraction(3))),
        first=0.7,
        last=0.7 + 59 / 30,
        warnings=("late-video",),
        audio=(0.0, 3.0),
    ),
    OddFile(
        "late_audio_gap.mp4",
        _clip(frames=120, audio=_LATE),
        frames=120,
        last=119 / 30,
        warnings=("late-audio", "audio-gap"),
        audio=(0.5, 4.0),
        gap=(1.524, 2.484),
    ),
    OddFile("hdr_pq.mp4", _ten_bit("pq"), warnings=("hdr", "ten-bit")),
    OddFile("hdr_hlg.mp4", _ten_bit("hlg"), warnings=("hdr", "ten-bit")),
    OddFile("interlaced.mp4", _clip(interlaced=True), warnings=("interlaced",)),
    OddFile("pixel_aspect.mp4", _clip(pixel_aspect=Fraction(2)), warnings=("pixel-aspect",)),
    OddFile(
        "truncated.mp4",
        _truncated,
        frames=35,
        last=34 / 30,
        warnings=("truncated",),
        audio=(0.0, 34 / 30),
    ),
    OddFile("no_moov.mp4", _no_moov, **_UNREADABLE),
    OddFile("empty.mp4", Path.touch, **_UNREADABLE),
    OddFile("text.mp4", _text, **_UNREADABLE),
    OddFile("noise.mp4", _noise, **_UNREADABLE),
    OddFile(
        "damaged.mp4",
        _damaged,
        frames=None,
        last=89 / 30,
        warnings=("damaged",),
        intact=(*range(15), *range(30, 45), *range(60, 90)),
    ),
    OddFile(
        "size_change.ts",
        _size_change,
        warnings=("size-change", "no-audio"),
        audio=None,
    ),
    OddFile(
        "start_time.ts",
        _transport,
        frames=36,
        last=35 / 30,
        warnings=("start-offset",),
        audio=(0.0, 1.2),
    ),
    OddFile(
        "timestamp_reset.ts",
        _reset,
        frames=72,
        last=71 / 30,
        warnings=("start-offset", "timestamp-reset"),
        audio=(0.0, 2.4),
    ),
    OddFile(
        "one_frame.mp4",
        _clip(frames=1, audio=AudioTrack(duration=Fraction(1, 4), bursts=(0.1,))),
        frames=1,
        last=0.0,
        audio=(0.0, 0.25),
    ),
    OddFile("no_audio.mp4", _silent, warnings=("no-audio",), audio=None),
    OddFile("odd_size_444.mp4", _clip(size=(321, 181), pix_fmt="yuv444p"), shape=(181, 321)),
    OddFile(
        "audio_only.mp4",
        lambda path: write_media(path, AudioTrack()),
        warnings=("no-video",),
        **_SOUND,
    ),
    OddFile("cover_art.m4a", _cover_art, warnings=("attached-picture", "no-video"), **_SOUND),
    OddFile("several_tracks.mkv", _several_tracks, last=1.967, warnings=("extra-streams",)),
    OddFile("no_duration.mkv", _no_duration, last=1.967, warnings=("no-duration",)),
    OddFile("bad_header.mp4", _bad_mp4_header, warnings=("bad-header",)),
    OddFile("bad_header.avi", _bad_avi_header, warnings=("bad-header",)),
    OddFile("animation.gif", _gif, frames=20, last=1.9, warnings=("no-audio",), audio=None),
    OddFile("black.mp4", _clip(draw=_black), first_number=None),
)
"""All sixteen files of the reference list and sixteen more; about a minute of media in all."""


def odd_file(name: str) -> OddFile:
    """Look an odd file up by its name.

    Args:
        name: File name as in `ODD_FILES`.

    Returns:
        Its row.

    Raises:
        KeyError: There is no such file.
    """
    for row in ODD_FILES:
        if row.name == name:
            return row
    raise KeyError(name)
