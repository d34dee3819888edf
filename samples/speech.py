"""The lecture's voice: espeak-ng where installed, else tone bursts in the same places."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import wave
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16000
TOLERANCE = 0.25

# Start and stop in seconds, and the words. The stops are those of espeak-ng 1.51 at 140 words a
# minute; what another version says is cut there or followed by silence.
SENTENCES: tuple[tuple[float, float, str], ...] = (
    (1.0, 5.95, "Welcome. Today we look at how a long video becomes a few tokens."),
    (6.8, 11.45, "The title says it all: keep what matters, and drop what repeats."),
    (13, 15.55, "Here is the plan for the next two minutes."),
    (18, 23.54, "First the problem, then tokens, then the clock, and at last some results."),
    (29.5, 33.73, "A token is a small piece of the signal, with a time and a place."),
    (36, 39.13, "It may stand for many pieces that look the same."),
    (44.3, 46.8, "Remember this line. Measure first."),
    (48.5, 53.54, "Time is the next topic. A phone does not record frames at an even rate."),
    (55, 59.55, "So we trust the time stamp of every frame, and never its number."),
    (61, 64.21, "Sound has a clock too, and it may start late."),
    (67.5, 72.96, "This slide shows the budget. Two thousand and forty eight tokens are shared."),
    (74.2, 78.29, "Three quarters go to pictures and one quarter goes to sound."),
    (81.5, 85.46, "Look at the table again. One number has just changed."),
    (91.5, 96.4, "Now the results. The bars show how many tokens each method keeps."),
    (98, 101.19, "The last bar is ours, and it is the shortest one."),
    (107.5, 112.98, "To sum up: decode once, decide many times, and keep an honest clock."),
    (114.5, 117.77, "Thank you for listening. Questions are welcome."),
)


def _spoken(words: str, folder: Path) -> NDArray[np.float32]:
    path = folder / "line.wav"
    command = ["espeak-ng", "-v", "en", "-s", "140", "-w", str(path), words]
    subprocess.run(command, check=True, capture_output=True)
    with wave.open(str(path)) as sound:
        rate = sound.getframerate()
        raw = np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2")
    frame = av.AudioFrame.from_ndarray(raw[None, :].copy(), format="s16", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    pieces = [
        piece.to_ndarray()[0] for piece in (*resampler.resample(frame), *resampler.resample(None))
    ]
    return np.concatenate(pieces).astype(np.float32)


def _babble(length: int, seed: int) -> NDArray[np.float32]:
    """Syllables for machines without a voice: 150 Hz with harmonics, five bursts a second."""
    time = np.arange(length) / SAMPLE_RATE
    pitch = 150.0 + 10.0 * (seed % 5)
    tone = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 9))
    return (0.15 * tone * (0.55 - 0.45 * np.cos(2 * np.pi * 5.0 * time))).astype(np.float32)


def lecture_sound(duration: float) -> NDArray[np.float32]:
    """Make the whole sound track: every sentence at its time over a very faint room noise.

    Args:
        duration: Seconds.

    Returns:
        Samples [duration x 16000], -1 to 1.
    """
    sound = 0.0005 * np.random.default_rng(11).standard_normal(round(duration * SAMPLE_RATE))
    voice = shutil.which("espeak-ng") is not None
    with tempfile.TemporaryDirectory() as folder:
        for number, (start, stop, words) in enumerate(SENTENCES):
            begin, room = round(start * SAMPLE_RATE), round((stop - start) * SAMPLE_RATE)
            line = _spoken(words, Path(folder)) if voice else _babble(room, number)
            sound[begin : begin + min(room, len(line))] += line[:room]
    return np.clip(sound, -1.0, 1.0).astype(np.float32)
