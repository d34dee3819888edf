"""Where speech is: the silero-vad network through onnxruntime, without importing its package.

Source: https://github.com/snakers4/silero-vad. Frames of 512 samples (32 ms) at 16 kHz, each seen
with the 64 samples before it, a state carried from frame to frame. The package itself would set
the number of threads of the whole process when it is imported, so only its file is read.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokpipe.encode._log_mel import clean
from tokpipe.encode._sound.speech_spans import SpeechRules, spans_of
from tokpipe.errors import MissingExtra

SAMPLE_RATE = 16_000
FRAME, CONTEXT = 512, 64
#: Frames of one call: 16 s.
BLOCK = 512
#: Decibels of full scale under which a frame is no speech, whatever the network says of it: on
#: digital near-silence it may say anything.
QUIETEST = -60.0
_STATE = (1, 1, 128)
_FILE = "silero_vad_16k_sequence.onnx"


def _missing(what: str) -> MissingExtra:
    return MissingExtra(f"speech detection needs {what}", hint="pip install 'tokpipe[audio]'")


@cache
def _session() -> Any:
    """The network, one thread; shared, its state is in the arguments."""
    package = importlib.util.find_spec("silero_vad")
    if package is None or package.origin is None:
        raise _missing("the package silero-vad, which holds the network")
    path = Path(package.origin).parent / "data" / _FILE
    if not path.is_file():
        raise _missing(f"silero-vad 6.2.1 or newer: this one has no {_FILE}")
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise _missing("onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def available() -> bool:
    """Whether speech can be detected here; imports neither package."""
    return all(importlib.util.find_spec(name) for name in ("silero_vad", "onnxruntime"))


@dataclass(slots=True)
class SpeechDetector:
    """Probabilities of speech, piece by piece; any pieces give what the whole gives.

    Memory does not grow with the length of the sound.
    """

    _state: list[NDArray[np.float32]] = field(
        default_factory=lambda: [np.zeros(_STATE, np.float32), np.zeros(_STATE, np.float32)]
    )
    _rest: NDArray[np.float32] = field(default_factory=lambda: np.zeros(CONTEXT, np.float32))

    def push(self, samples: Tensor | NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities float32 of the frames that ``samples`` float32 [L] completes."""
        kept = np.concatenate([self._rest, clean(samples).cpu().numpy()])
        frames = (len(kept) - CONTEXT) // FRAME
        self._rest = kept[frames * FRAME :]
        found = [
            self._run(kept[a * FRAME : min(frames, a + BLOCK) * FRAME + CONTEXT])
            for a in range(0, frames, BLOCK)
        ]
        return np.concatenate([np.zeros(0, np.float32), *found])

    def finish(self) -> NDArray[np.float32]:
        """The last frame, filled with zeros, if samples are left over."""
        over = len(self._rest) - CONTEXT
        return self.push(np.zeros(FRAME - over, np.float32)) if over else np.zeros(0, np.float32)

    def _run(self, kept: NDArray[np.float32]) -> NDArray[np.float32]:
        """Whole frames with the context of the first before them."""
        rows = np.lib.stride_tricks.sliding_window_view(kept, FRAME + CONTEXT)[::FRAME]
        values, *self._state = _session().run(
            ["speech_probs", "hn", "cn"],
            {"input": np.ascontiguousarray(rows), "h": self._state[0], "c": self._state[1]},
        )
        return np.asarray(values, dtype=np.float32).reshape(-1)


def speech_probabilities(wave: Tensor | NDArray[np.float32]) -> NDArray[np.float32]:
    """Probability of speech of every 32 ms.

    Args:
        wave: float32 [L] at 16 kHz in [-1, 1].

    Returns:
        float32 [ceil(L / 512)]; a last short frame is filled with zeros.

    Raises:
        MissingExtra: silero-vad or onnxruntime is not installed.
    """
    detector = SpeechDetector()
    return np.concatenate([detector.push(wave), detector.finish()])


def speech_spans(
    wave: Tensor | NDArray[np.float32],
    rules: SpeechRules | None = None,
    *,
    quietest: float = QUIETEST,
) -> Tensor:
    """Where speech is in a sound.

    Args:
        wave: float32 [L] at 16 kHz in [-1, 1].
        rules: When speech begins and ends; default ``SpeechRules()``.
        quietest: Decibels of full scale (RMS of a frame); below it nothing is speech.

    Returns:
        float64 [S, 2], seconds from the sound's start, in order, not overlapping.

    Raises:
        MissingExtra: silero-vad or onnxruntime is not installed.

    Example:
        >>> import torch
        >>> speech_spans(torch.zeros(16_000)).shape
        torch.Size([0, 2])
    """
    samples = clean(wave).cpu()
    probabilities = speech_probabilities(samples)
    full = torch.nn.functional.pad(samples, (0, len(probabilities) * FRAME - len(samples)))
    loud = full.view(-1, FRAME).square().mean(1) >= 10 ** (quietest / 10)
    heard = np.where(loud.numpy(), probabilities, np.float32(0))
    spans = spans_of(heard.tolist(), len(samples), rules, rate=SAMPLE_RATE, frame=FRAME)
    return torch.tensor(spans, dtype=torch.float64).reshape(-1, 2) / SAMPLE_RATE
