"""Packets of an open container, read past damage and never for ever, and the clock they are on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import av

from tokpipe.decode._audio import RATE
from tokpipe.decode._probe import container_zero, reason
from tokpipe.decode._timeline import Timeline, common_scale
from tokpipe.spec import MediaInfo, VideoInfo

#: Consecutive failed reads after which the rest of a file is given up.
_PATIENCE = 200
#: How often the bytes of a file may be handed out; a broken index may point to them repeatedly.
_REPEATS, _SLACK = 16, 1 << 20


def open_timeline(box: Any, info: MediaInfo) -> Timeline:
    """The clock of the streams that ``info`` chose from an open container."""
    streams = [box.streams[i.index] for i in (info.video, info.audio) if i is not None]
    zero = container_zero(box)
    rates = [RATE, zero.denominator, *(s.time_base.denominator for s in streams)]
    if info.audio is not None:
        rates.append(info.audio.sample_rate)
    if info.video is not None and info.video.frame_rate:
        rates.append(info.video.frame_rate.numerator)
    line = Timeline(scale=common_scale(rates))
    line.zero = line.units(zero)
    line.expect(info.duration, info.size)
    return line


def frame_step(info: VideoInfo, timeline: Timeline) -> int:
    """Units of one frame at the average rate, 0 when the header has none."""
    return timeline.units(1 / info.frame_rate) if info.frame_rate else 0


def lacks_pts(box: Any, stream: Any) -> bool:
    """The container stores no presentation times, and the stream's pictures are reordered.

    FFmpeg then makes times up that may step back. An AVI's pictures are due one by one: the
    frames take their packets' decoding times in order.
    """
    return box.format.name == "avi" and bool(stream.codec_context.has_b_frames)


def read_packets(box: Any, streams: list[Any], damage: Callable[[str], None]) -> Iterator[Any]:
    """Packets with data of some streams in file order; ``damage`` hears of failed reads.

    The empty packets that PyAV adds to empty the decoders are left out: they name a wrong stream,
    and a container that cannot be read on has none. See :func:`flush`.
    """
    failures, left = 0, _REPEATS * box.size + _SLACK
    packets = box.demux(*streams)
    while failures < _PATIENCE:
        try:
            for packet in packets:
                failures = 0
                size = packet.size
                if size:
                    left -= size
                    if left < 0:
                        damage("the container's index points to the same bytes over and over")
                        return
                    yield packet
        except IndexError:
            # PyAV at the end of a file in which streams appeared while reading.
            return
        except av.FFmpegError as error:
            failures += 1
            damage(f"the container cannot be read: {reason(error)}")
            if isinstance(error, av.EOFError):
                return
            packets = box.demux(*streams)
        else:
            return


def flush(stream: Any) -> Iterator[Any]:
    """Frames that a stream's decoder still holds at the end."""
    try:
        frames = stream.decode(None)
    except av.FFmpegError:
        return
    for frame in frames:
        frame.time_base = stream.time_base
        yield frame
