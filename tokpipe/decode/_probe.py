"""What a file holds: streams chosen, header values checked, warnings for what is odd."""

from __future__ import annotations

import stat
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from tokpipe.decode._timeline import believable_duration
from tokpipe.digest import fingerprint
from tokpipe.errors import MediaNotFound, UnsupportedMedia
from tokpipe.spec import AudioInfo, MediaInfo, VideoInfo

#: Demuxers that take any text for a picture, or fetch other files while they open.
_REFUSED = {
    *("tty", "bin", "xbin", "adf", "idf", "hls", "hls,applehttp", "concat", "dash", "imf"),
    *("lavfi", "sdp", "rtsp", "rtp", "sap", "ffmetadata", "webm_dash_manifest"),
}
_TRANSFER = {16: "pq", 18: "hlg", 1: "bt709", 6: "bt601", 13: "srgb"}
#: Packets looked at to find the first picture, and pixels that no picture may exceed (16k x 8k).
_FIRST = 400
_MAX_PIXELS = 16384 * 8192
#: Width over height of a pixel, or its inverse, beyond which a header is not believed.
_MAX_ASPECT = 16
#: Sample rates in hertz that are believed.
SAMPLE_RATES = range(1000, 1_000_001)


@cache
def _readable_formats() -> str:
    return ",".join(sorted(set(av.formats_available) - _REFUSED))


def _check_file(path: Path) -> None:
    try:
        kind = path.stat()
    except FileNotFoundError as error:
        raise MediaNotFound(f"no such file `{path}`", hint="check the path") from error
    except (OSError, ValueError) as error:
        raise MediaNotFound(
            f"cannot read `{path}`: {reason(error)}", hint="check the path"
        ) from error
    if stat.S_ISDIR(kind.st_mode):
        raise MediaNotFound(f"`{path}` is a folder", hint="name a file")
    if not stat.S_ISREG(kind.st_mode):
        hint = "save it to a file first; pipes and devices are not read"
        raise UnsupportedMedia(f"`{path}` is not a regular file", hint=hint)
    if kind.st_size == 0:
        hint = "check that it was copied or downloaded whole"
        raise UnsupportedMedia(f"`{path.name}` is empty", hint=hint)


def open_container(path: Path) -> Any:
    """Open a local file for reading, as itself only (no playlists, no patterns, no network).

    Raises:
        MediaNotFound: It is not there or not readable.
        UnsupportedMedia: It is not a media file.
    """
    _check_file(path)
    # The list keeps FFmpeg from opening what a playlist names; a later look would be too late.
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": _readable_formats(),
        "pattern_type": "none",
    }
    try:
        return av.open(f"file:{path}", options=options, metadata_errors="replace")
    except PermissionError as error:
        hint = "check its permissions"
        raise MediaNotFound(f"cannot read `{path}`: permission denied", hint=hint) from error
    except av.ArgumentError as error:
        raise UnsupportedMedia(
            f"`{path.name}` is not video or audio (a playlist, text or a kind that is not read)",
            hint="name a media file",
        ) from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnsupportedMedia(
            f"`{path.name}` is not a media file that can be read: {reason(error)}",
            hint="check that it plays elsewhere; a file cut off while recording may lack its index",
        ) from error


def open_stream(box: Any, index: int) -> Any:
    """A stream of an open container with its decoder set up: one thread, no absurd picture."""
    stream = box.streams[index]
    stream.thread_type = "NONE"
    if stream.type == "video":
        stream.codec_context.options = {"max_pixels": str(_MAX_PIXELS)}
    return stream


def container_zero(box: Any) -> Fraction:
    """Container time that counts as 0, exact: its start if positive.

    The container's own start is rounded to microseconds; the stream it was taken from says it
    exactly, and a first frame must not fall before zero by a rounding.
    """
    if box.start_time is None or box.start_time <= 0:
        return Fraction(0)
    rounded = Fraction(box.start_time, 1_000_000)
    near = (s.start_time * s.time_base for s in box.streams if s.start_time and s.time_base)
    return min((t for t in near if abs(t - rounded) <= Fraction(1, 1_000_000)), default=rounded)


def reason(error: BaseException) -> str:
    """FFmpeg's words for an error, without the path."""
    return str(getattr(error, "strerror", None) or error).partition(":")[0].lower()


def probe(path: Path, *, video_stream: str = "auto", audio_stream: str = "auto") -> MediaInfo:
    """Describe a media file; decodes at most its first picture.

    Raises:
        MediaNotFound, UnsupportedMedia: As they say.
    """
    with open_container(path) as box:
        digest, _, size = fingerprint(path)
        warnings: list[tuple[str, str]] = []
        video = _choose_video(box, video_stream, warnings)
        audio = _choose_audio(box, audio_stream)
        if video is None and audio is None:
            raise UnsupportedMedia(
                f"`{path.name}` has no stream that can be decoded", hint=_streams_hint(box)
            )
        start = box.start_time / 1_000_000 if box.start_time is not None else None
        zero = float(container_zero(box))
        duration = believable_duration(Fraction(box.duration or 0, 1_000_000), size)
        if duration is None:
            word = "absurd" if box.duration and box.duration > 0 else "missing"
            code = "bad-header" if word == "absurd" else "no-duration"
            warnings.append((code, f"the header's duration is {word}; the file is read to its end"))
        video_info = _video_info(box, video, warnings) if video is not None else None
        audio_info = _audio_info(audio) if audio is not None else None
        _compare(box, video_info, audio_info, zero, warnings)
        return MediaInfo(
            name=path.name, container=box.format.name, fingerprint=digest, size=size,
            duration=duration, zero=zero, start=start, video=video_info, audio=audio_info,
            other_streams=_others(box, video, audio), warnings=tuple(warnings),
        )  # fmt: skip


def _choose_video(box: Any, wanted: str, warnings: list[tuple[str, str]]) -> Any:
    usable = [s for s in box.streams.video if s.codec_context is not None]
    if wanted == "none":
        return None
    if wanted != "auto":
        return _by_index(usable, wanted, "video")
    moving = [s for s in usable if not s.disposition & Disposition.attached_pic]
    if len(moving) < len(usable):
        warnings.append(("attached-picture", "an attached picture (cover art) is left out"))
    moving = [s for s in moving if s.codec_context.width > 0 and s.codec_context.height > 0]
    if len(moving) > 1:
        warnings.append(
            ("extra-streams", f"{len(moving)} video streams; --video-stream chooses another")
        )
    default = [s for s in moving if s.disposition & Disposition.default] or moving
    return max(
        default,
        key=lambda s: (s.codec_context.width * s.codec_context.height, -s.index),
        default=None,
    )


def _choose_audio(box: Any, wanted: str) -> Any:
    usable = [
        s
        for s in box.streams.audio
        if s.codec_context is not None and s.codec_context.sample_rate in SAMPLE_RATES
    ]
    if wanted == "none":
        return None
    if wanted != "auto":
        if not wanted.isdigit():
            for stream in usable:
                if stream.language == wanted:
                    return stream
        return _by_index(usable, wanted, "audio")
    default = [s for s in usable if s.disposition & Disposition.default] or usable
    return default[0] if default else None


def _by_index(streams: list[Any], wanted: str, kind: str) -> Any:
    for stream in streams:
        if str(stream.index) == wanted:
            return stream
    listed = ", ".join(f"{s.index} ({s.language or 'und'})" for s in streams) or "none"
    raise UnsupportedMedia(f"no {kind} stream `{wanted}`", hint=f"{kind} streams: {listed}")


def _streams_hint(box: Any) -> str:
    kinds = ", ".join(f"{s.index}: {s.type}" for s in box.streams) or "none"
    return f"streams in it: {kinds}"


def _first_picture(box: Any, index: int) -> tuple[Any, bool]:
    """The first decodable frame or None, and whether packets before it are not to be shown."""
    stream = open_stream(box, index)
    hidden = False
    try:
        for i, packet in enumerate(box.demux(stream)):
            hidden = hidden or packet.is_discard
            try:
                frames = packet.decode()
            except av.FFmpegError:
                frames = []
            if frames:
                return frames[0], hidden
            if i >= _FIRST:
                break
    except (av.FFmpegError, IndexError):
        pass
    return None, hidden


def _video_info(box: Any, stream: Any, warnings: list[tuple[str, str]]) -> VideoInfo:
    context = stream.codec_context
    frame, hidden = _first_picture(box, stream.index)
    turns = round(frame.rotation / 90) % 4 if frame is not None else 0
    transfer = _TRANSFER.get(
        int(frame.color_trc if frame is not None else context.color_trc or 0), "unspecified"
    )
    interlaced = bool(frame.interlaced_frame) if frame is not None else False
    width, height = (
        (frame.width, frame.height) if frame is not None else (context.width, context.height)
    )
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    strange = not Fraction(1, _MAX_ASPECT) <= aspect <= _MAX_ASPECT
    aspect = Fraction(1) if strange else aspect
    pixel_format = frame.format.name if frame is not None else context.pix_fmt
    average, base = stream.average_rate, stream.base_rate
    vfr = bool(
        average and base and base / average not in (1, 2) and abs(float(base / average) - 1) > 0.01
    )
    deep = "10" in (pixel_format or "") or "12" in (pixel_format or "")
    notes = (
        (hidden, "edit-list", "pictures before the edit list's start are decoded but not shown"),
        (turns != 0, "rotated", f"turned {(-turns * 90) % 360} degrees clockwise for display"),
        (interlaced, "interlaced", "interlaced; fields are joined by bwdif"),
        (transfer in ("pq", "hlg"), "hdr", f"HDR ({transfer}); tone-mapped to BT.709"),
        (deep, "ten-bit", f"{pixel_format}; reduced to 8 bits"),
        (strange, "bad-header", "the pixel aspect is absurd; square pixels are taken"),
        (aspect != 1, "pixel-aspect", f"pixels are {aspect} wide; the picture is stretched"),
        (vfr, "vfr", "frame rate varies; frames are chosen by their times"),
    )  # fmt: skip
    warnings.extend((code, text) for seen, code, text in notes if seen)
    if turns % 2:
        width, height, aspect = height, width, 1 / aspect
    return VideoInfo(
        index=stream.index, codec=context.name, width=width, height=height,
        time_base=stream.time_base, frame_rate=Fraction(average) if average else None, vfr=vfr,
        rotation=(-turns * 90) % 360, pixel_aspect=aspect, pixel_format=pixel_format,
        transfer=transfer, interlaced=interlaced, start=_seconds(stream.start_time, stream),
        duration=_believable(stream, box), language=stream.language,
    )  # fmt: skip


def _audio_info(stream: Any) -> AudioInfo:
    context = stream.codec_context
    return AudioInfo(
        index=stream.index, codec=context.name, sample_rate=context.sample_rate,
        channels=context.layout.nb_channels, time_base=stream.time_base,
        start=_seconds(stream.start_time, stream), duration=_believable(stream, stream.container),
        language=stream.language,
    )  # fmt: skip


def _seconds(ticks: int | None, stream: Any) -> float | None:
    return float(ticks * stream.time_base) if ticks is not None else None


def _believable(stream: Any, box: Any) -> float | None:
    ticks = stream.duration
    return believable_duration(ticks * stream.time_base if ticks else None, box.size)


def _compare(
    box: Any,
    video: VideoInfo | None,
    audio: AudioInfo | None,
    zero: float,
    warnings: list[tuple[str, str]],
) -> None:
    if zero > 0:
        warnings.append(
            ("start-offset", f"the container's clock starts at {zero:.3f} s; that is time 0 here")
        )
    for kind, info in (("video", video), ("audio", audio)):
        if info is None:
            warnings.append((f"no-{kind}", f"no {kind} stream"))
        elif info.start is not None and info.start - zero > 0.1:
            warnings.append((f"late-{kind}", f"{kind} starts {info.start - zero:.3f} s late"))
    audio_streams = sum(s.codec_context is not None for s in box.streams.audio)
    if audio_streams > 1:
        warnings.append(
            ("extra-streams", f"{audio_streams} audio streams; --audio-stream chooses another")
        )


def _others(box: Any, *chosen: Any) -> tuple[str, ...]:
    taken = {s.index for s in chosen if s is not None}
    out = []
    for stream in box.streams:
        if stream.index not in taken:
            codec = (
                stream.codec_context.name if stream.codec_context is not None else "unknown codec"
            )
            out.append(
                f"{stream.index}: {stream.type} {codec} {stream.metadata.get('language', 'und')}"
            )
    return tuple(out)
