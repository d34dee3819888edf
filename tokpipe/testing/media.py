"""Write video and audio files whose every frame and click is known.

Only PyAV is used. Pictures carry their number as a bar code (`tokpipe.testing.barcode`), sound
has a tone burst at known times, and each track says for itself when its samples are due, so a test
*reads* which frame it got instead of trusting a second reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.stream import VideoStream
from numpy.typing import NDArray

from tokpipe.testing.barcode import paint_frame, read_frame_number
from tokpipe.testing.interlace import FieldMarker, woven_frame
from tokpipe.testing.wide_gamut import hdr_frame

__all__ = [
    "AudioTrack",
    "VideoTrack",
    "encode_packets",
    "read_frame_number",
    "tone_bursts",
    "write_media",
]

Draw = Callable[[int, float], NDArray[np.uint8]]
Transfer = Literal["sdr", "pq", "hlg"]

# x264's macroblock tree gives other bits in one run of ten for pictures this small.
_CODEC_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast", "crf": "20", "sc_threshold": "0", "mbtree": "0"},
    "libx265": {"preset": "ultrafast", "crf": "18"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "crf": "10"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoTrack:
    """One video track to write.

    Attributes:
        size: Width and height in pixels as shown: after rotation, before pixel aspect.
        fps: Frames per second; ignored for timing where `pts` is given.
        frames: Number of coded pictures; ignored where `pts` is given.
        start: Seconds of the first picture. Below zero, an mp4 gets an edit list that hides the
            pictures before zero.
        pts: Seconds of every picture, ascending, for a variable rate.
        first_number: Bar code of the first picture.
        codec: Name of an FFmpeg encoder.
        pix_fmt: Pixel format; for `transfer` other than ``sdr`` it is ``yuv420p10le``.
        rotation: Degrees counter-clockwise by which a player must turn the coded picture: 0, 90,
            180 or 270. Pictures are turned the other way before coding, so they show upright.
        pixel_aspect: Width over height of one pixel.
        transfer: ``pq`` and ``hlg`` write BT.2020 pictures of 10 bits.
        interlaced: Weave two fields, the upper one first and the lower one half a frame later;
            needs ``yuv420p``, no rotation, and a height divisible by 4.
        gop: Largest distance of key pictures, in pictures.
        b_frames: Largest run of B-pictures.
        options: Further encoder options.
        time_base: Seconds per tick of the coded timestamps.
        default: Mark as the track that players choose.
        attached: Mark as an attached picture (cover art).
        language: ISO 639-2 code, or empty.
        draw: From number and seconds to an upright RGB picture [H, W, 3]; the standard bar-coded
            picture if absent.
    """

    size: tuple[int, int] = (192, 108)
    fps: Fraction = Fraction(30)
    frames: int = 60
    start: Fraction = Fraction(0)
    pts: Sequence[Fraction] | None = None
    first_number: int = 0
    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    rotation: int = 0
    pixel_aspect: Fraction = Fraction(1)
    transfer: Transfer = "sdr"
    interlaced: bool = False
    gop: int = 15
    b_frames: int = 2
    options: Mapping[str, str] = field(default_factory=dict)
    time_base: Fraction = Fraction(1, 90000)
    default: bool = False
    attached: bool = False
    language: str = ""
    draw: Draw | None = None

    def times(self) -> tuple[Fraction, ...]:
        """Seconds of every coded picture, in showing order, `start` included."""
        if self.pts is not None:
            return tuple(self.start + pts for pts in self.pts)
        return tuple(self.start + Fraction(n) / self.fps for n in range(self.frames))

    def picture(self, number: int, time: float) -> NDArray[np.uint8]:
        """Draw one upright picture [H, W, 3] (bar code ``number``, shapes at ``time`` seconds)."""
        if self.draw is not None:
            return self.draw(number, time)
        return paint_frame(number, time, self.size)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AudioTrack:
    """One audio track to write.

    Attributes:
        duration: Seconds of sound; ignored where `samples` is given.
        start: Seconds of the first sample.
        sample_rate: Hz.
        channels: 1 or 2; all channels carry the same sound.
        codec: Name of an FFmpeg encoder.
        bit_rate: Bits per second, 0 for the encoder's own choice.
        bursts: Seconds, from the first sample, at which a tone burst of 50 ms begins.
        gaps: Spans of seconds of file time; packets wholly inside are left out.
        samples: The sound itself [L], -1 to 1, instead of tone bursts.
        default: Mark as the track that players choose.
        language: ISO 639-2 code, or empty.
    """

    duration: Fraction = Fraction(2)
    start: Fraction = Fraction(0)
    sample_rate: int = 16000
    channels: int = 1
    codec: str = "aac"
    bit_rate: int = 0
    bursts: Sequence[float] = (0.25, 0.75, 1.25, 1.75)
    gaps: Sequence[tuple[float, float]] = ()
    samples: NDArray[np.float32] | None = None
    default: bool = False
    language: str = ""

    def sound(self) -> NDArray[np.float32]:
        """The samples [L] that are encoded, -1 to 1."""
        if self.samples is not None:
            return self.samples
        length = round(self.duration * self.sample_rate)
        return tone_bursts(length, self.sample_rate, self.bursts)


def tone_bursts(
    length: int, sample_rate: int, bursts: Sequence[float], *, duration: float = 0.05
) -> NDArray[np.float32]:
    """Make a faint 220 Hz tone with loud 1 kHz bursts at known times.

    Args:
        length: Number of samples.
        sample_rate: Hz.
        bursts: Seconds at which a burst begins.
        duration: Seconds of one burst.

    Returns:
        Samples [length], -1 to 1.
    """
    time = np.arange(length) / sample_rate
    sound = 0.02 * np.sin(2 * np.pi * 220.0 * time)
    for begin in bursts:
        inside = (time >= begin) & (time < begin + duration)
        sound[inside] = 0.7 * np.sin(2 * np.pi * 1000.0 * (time[inside] - begin))
    return sound.astype(np.float32)


def _mark(stream: Stream, *, default: bool, language: str, attached: bool = False) -> None:
    flags = Disposition.default if default else 0
    if attached:
        flags |= Disposition.attached_pic
    stream.disposition = Disposition(flags)
    if language:
        stream.metadata["language"] = language


def _add_video(output: OutputContainer, track: VideoTrack) -> VideoStream:
    options = {**_CODEC_OPTIONS.get(track.codec, {}), "threads": "1", **track.options}
    if track.codec == "libx265":
        options["x265-params"] = _x265_parameters(track)
    if track.interlaced:
        options["flags"] = "+ildct+ilme"
    stream: Any = output.add_stream(track.codec, rate=track.fps, options=options)
    width, height = track.size
    turned = track.rotation % 180 == 90
    stream.width, stream.height = (height, width) if turned else (width, height)
    stream.pix_fmt = track.pix_fmt
    stream.codec_context.time_base = stream.time_base = track.time_base
    stream.codec_context.gop_size = track.gop
    if track.codec in {"libx264", "libx265", "mpeg2video"}:
        stream.codec_context.max_b_frames = track.b_frames
    if track.pixel_aspect != 1:
        stream.codec_context.sample_aspect_ratio = track.pixel_aspect
    if track.rotation:
        stream.set_display_rotation(track.rotation)
    _mark(stream, default=track.default, language=track.language, attached=track.attached)
    return stream  # type: ignore[no-any-return]


def _x265_parameters(track: VideoTrack) -> str:
    transfer = {"sdr": "bt709", "pq": "smpte2084", "hlg": "arib-std-b67"}[track.transfer]
    rest = "bt709:colormatrix=bt709" if track.transfer == "sdr" else "bt2020:colormatrix=bt2020nc"
    return (
        f"log-level=none:pools=none:frame-threads=1:bframes={track.b_frames}:keyint={track.gop}"
        f":transfer={transfer}:colorprim={rest}"
    )


def _frames(track: VideoTrack) -> Iterator[av.VideoFrame]:
    marker = FieldMarker(track.size, track.time_base) if track.interlaced else None
    for number, pts in enumerate(track.times(), start=track.first_number):
        frame = _frame(track, number, pts)
        frame.time_base = track.time_base
        frame.pts = round(pts / track.time_base)
        yield frame if marker is None else marker.mark(frame)


def _frame(track: VideoTrack, number: int, pts: Fraction) -> av.VideoFrame:
    picture = track.picture(number, float(pts))
    if track.interlaced:
        return woven_frame(picture, track.picture(number, float(pts + 1 / track.fps / 2)))
    picture = np.ascontiguousarray(np.rot90(picture, -(track.rotation // 90)))
    if track.transfer != "sdr":
        return hdr_frame(picture, track.transfer)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    return frame.reformat(format=track.pix_fmt, interpolation="AREA")


def _add_audio(output: OutputContainer, track: AudioTrack) -> AudioStream:
    stream: Any = output.add_stream(track.codec, rate=track.sample_rate)
    stream.layout = "mono" if track.channels == 1 else "stereo"
    if track.bit_rate:
        stream.bit_rate = track.bit_rate
    stream.codec_context.time_base = Fraction(1, track.sample_rate)
    _mark(stream, default=track.default, language=track.language)
    return stream  # type: ignore[no-any-return]


def _blocks(track: AudioTrack, block: int) -> Iterator[av.AudioFrame]:
    sound = np.round(np.clip(track.sound(), -1.0, 1.0) * 32767).astype(np.int16)
    first = round(track.start * track.sample_rate)
    layout = "mono" if track.channels == 1 else "stereo"
    for begin in range(0, len(sound), block):
        piece = np.repeat(sound[begin : begin + block], track.channels)
        frame = av.AudioFrame.from_ndarray(piece[None, :], format="s16", layout=layout)
        frame.sample_rate = track.sample_rate
        frame.time_base = Fraction(1, track.sample_rate)
        frame.pts = first + begin
        yield frame


def encode_packets(
    stream: VideoStream | AudioStream, track: VideoTrack | AudioTrack
) -> list[Packet[Any]]:
    """Encode one track to packets, in decoding order, with the track's own timestamps.

    Args:
        stream: Output stream that was configured for ``track``.
        track: What to encode.

    Returns:
        The packets. Left out are those wholly inside a gap of an audio track, and the priming of
        an AAC track that starts after zero.
    """
    packets: list[Packet[Any]] = []
    if isinstance(track, VideoTrack):
        for frame in _frames(track):
            packets.extend(stream.encode(frame))  # type: ignore[arg-type]
    else:
        for block in _blocks(track, stream.codec_context.frame_size or 1024):  # type: ignore[union-attr]
            packets.extend(stream.encode(block))  # type: ignore[arg-type]
    packets.extend(stream.encode(None))
    if isinstance(track, AudioTrack):
        return [packet for packet in packets if not _left_out(packet, track)]
    spans = _tick_spans(track)
    for packet in packets:
        packet.duration = spans[packet.pts or 0]
    return packets


def _tick_spans(track: VideoTrack) -> dict[int, int]:
    """Ticks from each picture to the next; the encoder's own cut the end of a VFR track off."""
    ticks = [round(pts / track.time_base) for pts in track.times()]
    steps = [after - before for before, after in pairwise(ticks)]
    last = steps[-1] if steps else round(1 / track.fps / track.time_base)
    return dict(zip(ticks, [*steps, last], strict=True))


def _left_out(packet: Packet[Any], track: AudioTrack) -> bool:
    # The encoder's priming would make a late track begin early: no edit list hides it there.
    primes = track.start > 0 and track.codec == "aac" and _due(packet) < track.start
    return primes or any(_inside(packet, *gap) for gap in track.gaps)


def _inside(packet: Packet[Any], start: float, stop: float) -> bool:
    begin = float((packet.pts or 0) * packet.time_base)
    return start <= begin and begin + float((packet.duration or 0) * packet.time_base) <= stop


def _due(packet: Packet[Any]) -> Fraction:
    return Fraction(packet.dts or 0) * Fraction(packet.time_base)


def write_media(
    target: Path | str | object,
    *tracks: VideoTrack | AudioTrack,
    container: str | None = None,
    options: Mapping[str, str] | None = None,
) -> None:
    """Encode tracks and write them into one file.

    Args:
        target: A path, or an object with ``write`` (and ``seek`` if it can) to write to.
        *tracks: The tracks, in the order they get in the file.
        container: Name of an FFmpeg muxer; taken from the suffix of a path if absent.
        options: Muxer options.
    """
    place = str(target) if isinstance(target, Path) else target
    settings = {"fflags": "+bitexact", **(options or {})}
    with av.open(place, "w", format=container, options=settings) as output:
        streams = [
            _add_video(output, track)
            if isinstance(track, VideoTrack)
            else _add_audio(output, track)
            for track in tracks
        ]
        packets = [
            packet
            for stream, track in zip(streams, tracks, strict=True)
            for packet in encode_packets(stream, track)
        ]
        for packet in sorted(packets, key=_due):
            output.mux(packet)
