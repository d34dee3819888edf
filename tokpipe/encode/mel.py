"""Turn sound into 40 ms cells of Whisper's log-mel spectrogram.

Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022,
arXiv:2212.04356, section 2.2; mel scale and area norm of M. Slaney's Auditory Toolbox.
Differs: the floor (8 decades below the maximum) needs the whole file, so tokens hold the raw
log10 mel and the floor is applied on reading (``apply_floor``); the end is filled with zeros to a
whole cell, so no sound is lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokpipe.encode._log_mel import (
    BLOCK,
    BLOCK_COLUMNS,
    CONTEXT,
    FLOOR_COLUMNS,
    HOP,
    SAMPLE_RATE,
    Floor,
    apply_floor,
    block_columns,
    clean,
    log_mel,
    mirror,
    raw_log_mel,
    slaney_filterbank,
)
from tokpipe.errors import UnsupportedMedia
from tokpipe.spec import MODALITY_CODE, MediaInfo, TokenSpec
from tokpipe.tensors import AudioChunk, Reduction, TokenBatch

__all__ = [
    "CELL",
    "FIRST_CHANGE",
    "SILENCE_DB",
    "Mel",
    "MelStream",
    "apply_floor",
    "log_mel",
    "raw_log_mel",
    "slaney_filterbank",
]

#: Samples and columns of one token: 40 ms.
CELL = 640
CELL_COLUMNS = CELL // HOP
BLOCK_CELLS = BLOCK_COLUMNS // CELL_COLUMNS
#: Level of digital silence, the lowest ``rms_db``.
SILENCE_DB = -120.0
#: ``change`` of the first cell: above every distance there is.
FIRST_CHANGE = 100.0
_AUDIBLE = 3.0
#: Noise floor: this quantile of the levels of 30 s, sound below -90 dBFS left out, ...
_NOISE_QUANTILE, _DIGITAL_DB, _NOISE_CELLS = 0.1, -90.0, 3 * BLOCK_CELLS
#: ... but at least this far below the loud parts: steady music or rain is no background.
_LOUD_QUANTILE, _NOISE_DEPTH = 0.95, 31.0
_RULES: dict[str, Reduction] = {
    "rms_db": "max", "near_db": "max", "noise_db": "anchor", "change": "max",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mel:
    """Raw log10 mel of 16 kHz mono sound, four 10 ms columns a token.

    Shapes: data float16 [N, 4 x bins], time-major: column 0's bins, then column 1's and so on.
    ``at`` is the cell's start, ``pts`` its 40 ms, ``cell`` (i, 0, 0).
    Extras: ``rms_db`` level of the cell, ``near_db`` loudest level of it and its two neighbours,
    ``noise_db`` background around it (all dBFS, -120 or more), ``change`` distance to the cell
    before (decades, see ``MelStream``).
    Cost: about 1 s of CPU for an hour; memory for some 20 s of sound.

    Attributes:
        bins: Mel bands: 80, or 128 as Whisper large-v3 takes.
        floor: Whisper's floor when the tokens are read: per 30 s ``window`` or per ``file``.
            It does not change the tokens; it is recorded.
    """

    source: ClassVar[str] = "Radford et al., Whisper, 2022, arXiv:2212.04356; Slaney mel scale"
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    causal: ClassVar[bool] = False
    version: ClassVar[int] = 1
    extras: ClassVar[tuple[str, ...]] = tuple(_RULES)

    bins: Literal[80, 128] = 80
    floor: Floor = "window"

    def out_spec(self, info: MediaInfo, steps: int | None = None) -> TokenSpec:
        """Count the cells from the header's duration; the sound may end earlier or later."""
        seconds = _audio_end(info)
        tokens = None if seconds is None else math.ceil(round(seconds * SAMPLE_RATE) / CELL)
        return TokenSpec(
            modality="audio", dim=CELL_COLUMNS * self.bins, tokens=tokens,
            exact=info.audio is None, steps=1, grid=(1, 1), extras=self.extras,
        )  # fmt: skip

    def stream(self) -> MelStream:
        """A fresh encoder of one track."""
        return MelStream(self.bins)

    def encode(self, batch: AudioChunk) -> TokenBatch:
        """Encode one chunk as if it were a whole track that begins at ``batch.pts``.

        Raises:
            UnsupportedMedia: The sound is not 16 kHz.
        """
        if batch.sample_rate != SAMPLE_RATE:
            raise UnsupportedMedia(
                f"mel takes {SAMPLE_RATE} Hz, got {batch.sample_rate} Hz",
                hint="resample first; the decoder does so by itself",
            )
        stream = self.stream()
        parts = stream.push(batch.samples.mean(0)) + stream.finish()
        tokens = TokenBatch.cat(parts) if parts else stream.empty()
        cell = tokens.cell.clone()
        cell[:, 0] += batch.index // CELL
        return tokens.with_columns(at=tokens.at + batch.pts, pts=tokens.pts + batch.pts, cell=cell)


class MelStream:
    """Encode one track, given piece by piece, with memory for two blocks of 10 s.

    Tokens are the same bits for any pieces, and their columns are those of ``raw_log_mel`` of the
    whole track filled with zeros to a multiple of 640 samples.

    ``change`` is the root mean square over the bins of the difference between a cell's and the
    cell before's mean column, both clipped 3 decades (30 dB) below the louder one's maximum. Of
    21 distances tried on seven speech files it kept the held spectrum closest at 30 and 50 % of
    the cells (0.188 and 0.104 decades; cosine 0.227 and 0.150, evenly spread cells 0.211 and
    0.141).

    ``noise_db`` is the 10 % quantile of the levels in the cell's own 10 s block and the two
    before it, at most the 95 % quantile minus 31 dB. It never looks past the block.

    Attributes:
        samples: Samples taken so far.
        maximum: Largest raw value so far, None before any.
        window_maxima: The same for each 30 s, for ``apply_floor``.
    """

    def __init__(self, bins: int = 80) -> None:
        """Start at the media's zero with ``bins`` mel bands (80 or 128)."""
        self.bins = bins
        self.samples = 0
        self.window_maxima: list[float] = []
        self._held: list[Tensor] = []
        self._held_len = 0
        self._block = 0
        self._levels = np.zeros(0, dtype=np.float64)
        self._last: Tensor | None = None
        self._finished = False

    @property
    def maximum(self) -> float | None:
        """Largest raw log10 mel so far, None before any token."""
        return max(self.window_maxima, default=None)

    def push(self, samples: Tensor | NDArray[np.float32]) -> list[TokenBatch]:
        """Take more of the track.

        Args:
            samples: float32 [L] at 16 kHz in [-1, 1], following those before; any L.

        Returns:
            Finished tokens, at most 250 (10 s) each.
        """
        if self._finished:
            raise ValueError("MelStream.push after finish")
        wave = clean(samples)
        self.samples += wave.shape[0]
        out = []
        # A block needs the cell after it. Long pieces are fed in bits, so little is held.
        for piece in torch.split(wave, BLOCK):
            self._held.append(piece.clone())
            self._held_len += piece.shape[0]
            while self._held_len >= self._before + BLOCK + CELL:
                out.append(self._emit(self._joined(), BLOCK_CELLS))
        return out

    def finish(self) -> list[TokenBatch]:
        """End the track: the rest of its tokens, the last cell filled with zeros."""
        if self._finished:
            return []
        self._finished = True
        if not self.samples:
            return []
        held = self._joined()
        held = torch.cat([held, held.new_zeros(-self.samples % CELL)])
        out = []
        while (left := (held.shape[0] - self._before) // CELL) > BLOCK_CELLS:
            out.append(self._emit(held, BLOCK_CELLS))
            held = self._joined()
        out.append(self._emit(held, left, last=True))
        self._held, self._held_len = [], 0
        return out

    def empty(self) -> TokenBatch:
        """A batch of no tokens with every column."""
        none = torch.zeros(0, dtype=torch.float32)
        data = torch.zeros(0, CELL_COLUMNS * self.bins, dtype=torch.float16)
        return self._batch(data, 0, dict.fromkeys(_RULES, none))

    @property
    def _before(self) -> int:
        """Samples held before the block's start."""
        return CONTEXT if self._block else 0

    def _joined(self) -> Tensor:
        held = torch.cat(self._held) if len(self._held) != 1 else self._held[0]
        self._held = [held]
        return held

    def _emit(self, held: Tensor, cells: int, *, last: bool = False) -> TokenBatch:
        """Encode the ``cells`` cells of the next block; drop what no later block needs."""
        first, before, length = self._block * BLOCK_CELLS, self._before, cells * CELL
        wave = held[before:]
        left = 0 if before else CONTEXT
        right = CONTEXT if last else 0
        context = mirror(held, left, right) if left or right else held
        columns = block_columns(context[: BLOCK + 2 * CONTEXT - HOP], self.bins)
        mel = columns.reshape(BLOCK_CELLS, CELL_COLUMNS, self.bins)
        self._note_maxima(columns[: cells * CELL_COLUMNS])
        extras = {**self._level_columns(wave, cells), "change": self._change(mel)[:cells]}
        self._last = mel[cells - 1].clone()
        self._held = [held[before + length - CONTEXT :].clone()]
        self._held_len = self._held[0].shape[0]
        self._block += 1
        data = mel.reshape(BLOCK_CELLS, -1)[:cells].to(torch.float16)
        return self._batch(data, first, extras)

    def _batch(self, data: Tensor, first: int, extras: dict[str, Tensor]) -> TokenBatch:
        rank = torch.arange(first, first + data.shape[0] + 1)
        clock = rank.double() / (SAMPLE_RATE // CELL)
        cell = torch.zeros(data.shape[0], 3, dtype=torch.int32)
        cell[:, 0] = rank[:-1]
        pts = torch.stack([clock[:-1], clock[1:]], 1)
        return TokenBatch.build(
            data, clock[:-1], pts=pts, cell=cell, modality=MODALITY_CODE["audio"]
        ).with_extras(_RULES, **extras)

    def _note_maxima(self, columns: Tensor) -> None:
        # 30 s are three blocks, so a block lies in one window.
        window = self._block * BLOCK_COLUMNS // FLOOR_COLUMNS
        top = float(columns.max())
        if window == len(self.window_maxima):
            self.window_maxima.append(top)
        else:
            self.window_maxima[window] = max(self.window_maxima[window], top)

    def _level_columns(self, wave: Tensor, cells: int) -> dict[str, Tensor]:
        """Levels of the block's cells, from [L] samples that begin with the block."""
        full = wave.new_zeros((BLOCK_CELLS + 1) * CELL)
        usable = min(wave.shape[0] // CELL, BLOCK_CELLS + 1) * CELL
        full[:usable] = wave[:usable]
        power = full.reshape(-1, CELL).double().square().mean(1).numpy()
        level = np.maximum(10 * np.log10(np.maximum(power, 1e-30)), SILENCE_DB)
        past = self._levels[-1:] if self._levels.size else np.array([SILENCE_DB])
        around = np.concatenate([past, level])
        near = np.maximum(np.maximum(around[:-2], around[1:-1]), around[2:])
        recent = np.concatenate([self._levels, level[:cells]])
        self._levels = recent[-(_NOISE_CELLS - BLOCK_CELLS) :]
        noise = np.full(cells, _noise(recent))
        columns = {"rms_db": level[:cells], "near_db": near[:cells], "noise_db": noise}
        return {name: torch.from_numpy(v.astype(np.float32)) for name, v in columns.items()}

    def _change(self, mel: Tensor) -> Tensor:
        """float32 [BLOCK_CELLS]: distance of each cell [columns, bins] to the one before."""
        start = mel[:1] if self._last is None else self._last[None]
        before = torch.cat([start, mel[:-1]])
        floor = torch.maximum(mel.amax((1, 2)), before.amax((1, 2)))[:, None, None] - _AUDIBLE
        step = torch.maximum(mel, floor).mean(1) - torch.maximum(before, floor).mean(1)
        change = step.square().mean(1).sqrt()
        if self._last is None:
            change[0] = FIRST_CHANGE
        return change


def _noise(levels: NDArray[np.float64]) -> float:
    heard = levels[levels > _DIGITAL_DB]
    if not heard.size:
        return SILENCE_DB
    low = float(np.quantile(heard, _NOISE_QUANTILE, method="lower"))
    loud = float(np.quantile(heard, _LOUD_QUANTILE, method="lower"))
    return max(min(low, loud - _NOISE_DEPTH), SILENCE_DB)


def _audio_end(info: MediaInfo) -> float | None:
    """Seconds from the media's zero to where the header says the sound ends."""
    if info.audio is None:
        return 0.0
    if info.audio.duration is None:
        return info.duration
    start = 0.0 if info.audio.start is None else info.audio.start - info.zero
    end = max(0.0, start + info.audio.duration)
    return end if info.duration is None else min(end, info.duration)
