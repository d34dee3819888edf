"""Write long files as people have them: a lecture with slides, a clip that never rests.

Slides are drawn once and only the speaker's inset is painted anew, so twenty minutes of 720p are
limited by the encoder. The encoder is set as recorders set it: a key picture every 250 pictures
and none at a slide change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokpipe.testing._slides import Slide, slide_shows

__all__ = ["Lecture", "repeat_packets", "write_action", "write_lecture"]

GOP = 250
SAMPLE_RATE = 44100


@dataclass(frozen=True, slots=True)
class Lecture:
    """What a written lecture shows and when.

    Attributes:
        duration: Seconds of video.
        slide_changes_s: Seconds of the first picture of every slide but the first, ascending.
        small_changes_s: Those of them that alter only a few lines.
        short_s: Start and stop of the slide that is shown for three seconds only.
        ignore_box: Left, top, right and bottom of the speaker, as parts of the picture: what moves
            there is no event.
    """

    duration: float
    slide_changes_s: tuple[float, ...]
    small_changes_s: tuple[float, ...]
    short_s: tuple[float, float]
    ignore_box: tuple[float, float, float, float]


class _Planes:
    """One picture as yuv420p planes that can be painted on in place."""

    def __init__(self, width: int, height: int) -> None:
        self.buffer = np.zeros((height * 3 // 2, width), dtype=np.uint8)
        flat, luma, chroma = self.buffer.reshape(-1), height * width, height * width // 4
        self.y = flat[:luma].reshape(height, width)
        self.u = flat[luma : luma + chroma].reshape(height // 2, width // 2)
        self.v = flat[luma + chroma :].reshape(height // 2, width // 2)

    def load(self, picture: Image.Image) -> None:
        frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
        self.buffer[:] = frame.to_ndarray(format="yuv420p")

    def frame(self, number: int, rate: int) -> av.VideoFrame:
        frame = av.VideoFrame.from_ndarray(self.buffer, format="yuv420p")
        frame.pts, frame.time_base = number, Fraction(1, rate)
        return frame


class _Speaker:
    """The inset: a head and two hands before a wall, with the noise of a cheap camera."""

    def __init__(self, size: tuple[int, int], generator: np.random.Generator) -> None:
        width = size[0] // 6 // 4 * 4
        height = width * 3 // 4 // 4 * 4
        self.top, self.left = size[1] - height - 16, size[0] - width - 16
        self.shape = (height, width)
        rows, columns = np.mgrid[0:height, 0:width]
        self.rows, self.columns = rows / height, columns / width
        self.wall = (95 + 40 * self.columns).astype(np.int16)
        noise = generator.normal(0.0, 4.0, (32, height, width))
        self.noise = np.rint(noise).astype(np.int16)

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Left, top, right and bottom, down to the corner, as parts of the picture."""
        return (round(self.left / size[0], 4), round(self.top / size[1], 4), 1.0, 1.0)

    def _disc(self, row: float, column: float, high: float, wide: float) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = ((self.rows - row) / high) ** 2 + (
            (self.columns - column) / wide
        ) ** 2 < 1
        return inside

    def paint(self, planes: _Planes, number: int, time: float) -> None:
        sway = 0.05 * math.sin(0.9 * time) + 0.03 * math.sin(2.3 * time)
        body = self._disc(1.0, 0.5 + 0.6 * sway, 0.42, 0.3)
        head = self._disc(0.38, 0.5 + sway, 0.2, 0.12)
        hands = self._disc(0.75 + 0.1 * math.sin(3.1 * time), 0.22, 0.07, 0.05) | self._disc(
            0.75 + 0.1 * math.sin(2.7 * time + 1.0), 0.78, 0.07, 0.05
        )
        luma = np.where(body, 60, self.wall)
        luma[head | hands] = 170
        luma = luma + self.noise[(number * 7) % len(self.noise)]
        height, width = self.shape
        top, left = self.top, self.left
        planes.y[top : top + height, left : left + width] = np.clip(luma, 16, 235)
        skin = (head | hands)[::2, ::2]
        place = (
            slice(top // 2, (top + height) // 2),
            slice(left // 2, (left + width) // 2),
        )
        planes.u[place] = np.where(skin, 110, np.where(body[::2, ::2], 145, 126))
        planes.v[place] = np.where(skin, 152, np.where(body[::2, ::2], 118, 130))


def _speech(seconds: float, generator: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """Speech-like sound, one second at a time: phrases of syllables, breaths and pauses."""
    speaking, left = True, 2
    for _ in range(math.ceil(seconds)):
        time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
        sound = 0.0006 * generator.standard_normal(SAMPLE_RATE)
        if speaking:
            pitch = generator.uniform(110.0, 160.0) * (1 + 0.08 * np.sin(2 * np.pi * 1.5 * time))
            phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
            voice = sum(np.sin(k * phase) / k for k in range(1, 9))
            hiss = 0.25 * generator.standard_normal(SAMPLE_RATE)
            syllables = np.clip(np.sin(2 * np.pi * generator.uniform(3.5, 5.5) * time), 0.0, None)
            consonants = np.clip(np.sin(2 * np.pi * 4.3 * time + 2.5), 0.6, None) - 0.6
            sound += 0.12 * voice * syllables + 0.2 * hiss * consonants
        left -= 1
        if left == 0:
            speaking = not speaking
            left = int(generator.integers(3, 9)) if speaking else 1
        yield np.clip(sound, -1.0, 1.0).astype(np.float32)


def _write(
    path: Path,
    frames: Iterator[av.VideoFrame],
    sound: Iterator[NDArray[np.float32]],
    size: tuple[int, int],
    fps: int,
    threads: int,
) -> None:
    """Encode both tracks, a second of each in turn."""
    options = {
        "preset": "veryfast", "crf": "23", "threads": str(threads),
        "x264-params": f"keyint={GOP}:min-keyint={GOP}:scenecut=0",
    }  # fmt: skip
    with av.open(str(path), "w") as output:
        video: Any = output.add_stream("libx264", rate=fps, options=options)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.codec_context.time_base = Fraction(1, fps)
        audio: Any = output.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        audio.bit_rate = 64000
        for number, frame in enumerate(frames):
            if number % fps == 0:
                samples = av.AudioFrame.from_ndarray(
                    next(sound)[None], format="fltp", layout="mono"
                )
                samples.sample_rate = SAMPLE_RATE
                samples.pts = number // fps * SAMPLE_RATE
                samples.time_base = Fraction(1, SAMPLE_RATE)
                output.mux(audio.encode(samples))
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        output.mux(audio.encode(None))


def write_lecture(
    path: Path | str,
    minutes: float = 20.0,
    *,
    size: tuple[int, int] = (1280, 720),
    fps: int = 30,
    changes: int | None = None,
    seed: int = 0,
    threads: int = 2,
) -> Lecture:
    """Write a lecture: text slides, a speaker in the corner, H.264 and AAC.

    About one change in four alters only a few lines; one slide is shown for three seconds. No
    change falls on a key picture or near one. The same arguments give the same pictures.

    Args:
        path: The file; the suffix chooses the container.
        minutes: Length.
        size: Width and height in pixels, both divisible by 8.
        fps: Pictures per second.
        changes: Number of slide changes, 2 or more; 39 per 20 minutes if absent.
        seed: Of times, words, noise and sound.
        threads: Threads of the encoder (part of what fixes the bits).

    Returns:
        What is shown when.

    Raises:
        ValueError: If so many changes do not fit, each with four seconds of its own.
    """
    total = round(minutes * 60 * fps)
    shows = slide_shows(total, fps, GOP, changes or max(2, round(39 * minutes / 20)), seed)
    generator = np.random.default_rng(seed + 1)
    speaker, planes = _Speaker(size, generator), _Planes(*size)

    def frames() -> Iterator[av.VideoFrame]:
        stops = [show.first for show in shows[1:]] + [total]
        for show, stop in zip(shows, stops, strict=True):
            planes.load(Slide.draw(show.slide, size))
            for number in range(show.first, stop):
                speaker.paint(planes, number, number / fps)
                yield planes.frame(number, fps)

    sound = _speech(total / fps, np.random.default_rng(seed + 2))
    _write(Path(path), frames(), sound, size, fps, threads)
    short = next(n for n, show in enumerate(shows) if show.short)
    return Lecture(
        duration=total / fps,
        slide_changes_s=tuple(round(s.first / fps, 4) for s in shows[1:]),
        small_changes_s=tuple(round(s.first / fps, 4) for s in shows[1:] if s.small),
        short_s=(round(shows[short].first / fps, 4), round(shows[short + 1].first / fps, 4)),
        ignore_box=speaker.box(size),
    )


def write_action(
    path: Path | str,
    seconds: float = 180.0,
    *,
    size: tuple[int, int] = (1280, 720),
    fps: int = 30,
    seed: int = 0,
    threads: int = 2,
) -> None:
    """Write a camera that never stops panning over a textured scene, with noise and sound.

    Args:
        path: The file; the suffix chooses the container.
        seconds: Length.
        size: Width and height in pixels, both divisible by 8.
        fps: Pictures per second.
        seed: Of texture, noise and sound.
        threads: Threads of the encoder.
    """
    width, height = size
    generator = np.random.default_rng(seed)
    scene = _Planes(2 * width, 2 * height)
    texture = np.zeros((2 * height, 2 * width, 3))
    for cells, weight in ((8, 90.0), (32, 60.0), (128, 45.0), (512, 30.0)):
        coarse = generator.uniform(-1, 1, (cells, cells, 3)).astype(np.float32)
        for plane in range(3):
            layer = Image.fromarray(coarse[:, :, plane])
            texture[:, :, plane] += weight * np.asarray(
                layer.resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
            )
    scene.load(Image.fromarray(np.clip(128 + texture, 0, 255).astype(np.uint8)))
    noise = np.rint(generator.normal(0.0, 3.0, (8, height, width))).astype(np.int16)
    planes, total = _Planes(width, height), round(seconds * fps)

    def frames() -> Iterator[av.VideoFrame]:
        for number in range(total):
            time = number / fps
            top = int(height / 4 * (1 + math.sin(0.83 * time))) * 2
            left = int(width / 4 * (1 + math.sin(0.57 * time + 0.4))) * 2
            luma = scene.y[top : top + height, left : left + width] + noise[(5 * number) % 8]
            planes.y[:] = np.clip(luma, 16, 235)
            half = (
                slice(top // 2, (top + height) // 2),
                slice(left // 2, (left + width) // 2),
            )
            planes.u[:], planes.v[:] = scene.u[half], scene.v[half]
            yield planes.frame(number, fps)

    sound = _speech(seconds, np.random.default_rng(seed + 2))
    _write(Path(path), frames(), sound, size, fps, threads)


def repeat_packets(
    source: Path | str,
    target: Path | str,
    *,
    times: int | None = None,
    seconds: float | None = None,
) -> float:
    """Lengthen a file by copying its packets end to end, nothing decoded.

    First video and first audio stream; timestamps move on by the length of the video (of the
    sound, where there is no video), the same for both. Sound packets before zero (an encoder's
    priming) or past that length are left out, so a join may lack up to two packets of sound.

    Args:
        source: A file with packets that carry timestamps, its pictures from zero on.
        target: The file to write; the suffix chooses the container.
        times: How often; or
        seconds: until when. The file ends with the last packet that starts before.

    Returns:
        Seconds of the written file.

    Raises:
        ValueError: Unless exactly one of `times` and `seconds` is given.
    """
    if (times is None) == (seconds is None):
        raise ValueError("give times or seconds, one of them")
    packets, length = _packets(source)
    stop = Fraction(seconds) if seconds is not None else length * (times or 0)
    with av.open(str(source)) as box, av.open(str(target), "w") as output:
        made = [output.add_stream_from_template(s) for s in _wanted(box)]
        round_ = 0
        while length * round_ < stop:
            offset = length * round_
            for place, data, pts, dts, duration, base, key in packets:
                late = pts * base + offset >= stop
                if late or pts < 0 or (pts + duration) * base > length:
                    continue
                packet = av.Packet(data)
                shift = round(offset / base)
                packet.pts, packet.dts, packet.duration = pts + shift, dts + shift, duration
                packet.time_base, packet.is_keyframe = base, key
                packet.stream = made[place]
                output.mux(packet)
            round_ += 1
    return float(stop)


_Copied = tuple[int, bytes, int, int, int, Fraction, bool]


def _wanted(box: Any) -> list[Any]:
    return [*box.streams.video[:1], *box.streams.audio[:1]]


def _packets(source: Path | str) -> tuple[list[_Copied], Fraction]:
    """Read all packets of a file (they are kept in memory) and the length of its first stream."""
    found: list[_Copied] = []
    with av.open(str(source)) as box:
        places = {stream.index: n for n, stream in enumerate(_wanted(box))}
        for packet in box.demux(*_wanted(box)):
            if packet.pts is None or packet.dts is None:
                continue
            found.append(
                (
                    places[packet.stream.index], bytes(packet), packet.pts, packet.dts,
                    packet.duration or 0, Fraction(packet.time_base), packet.is_keyframe,
                )
            )  # fmt: skip
    length = max((pts + d) * base for place, _, pts, _, d, base, _ in found if place == 0)
    return found, Fraction(length)
