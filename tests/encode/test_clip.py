"""The clip of kept sound: runs with true context, offsets to the sample."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tokpipe.encode._clip import CELL, CONTEXT, RATE, ClipBuilder, ClipCodec

Wave = NDArray[np.int16]


def chirp(seconds: float) -> Wave:
    """Sound that is nowhere like itself: a sweep and noise bursts."""
    n = round(seconds * RATE)
    time = np.arange(n) / RATE
    sweep = 0.5 * np.sin(2 * np.pi * (200 * time + 60 * time**2))
    bursts = np.random.default_rng(0).normal(0, 0.2, n) * (np.sin(2 * np.pi * 3 * time) > 0)
    return np.asarray((sweep + bursts).clip(-1, 1) * 20000, dtype=np.int16)


def build(wave: Wave, cells: list[int], codec: ClipCodec) -> tuple[bytes, list[int], int]:
    clip = ClipBuilder(lambda a, b: wave[a:b], codec)
    offsets = [clip.add(cell) for cell in cells]
    data = b"".join(clip.finish())
    return data, offsets, clip.samples


def decoded(data: bytes) -> Wave:
    """Every sample, as a player that knows nothing of us gets them at 16 kHz."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    parts = []
    with av.open(io.BytesIO(data), "r") as box:
        for frame in box.decode(audio=0):
            parts += [f.to_ndarray()[0] for f in resampler.resample(frame)]
        parts += [f.to_ndarray()[0] for f in resampler.resample(None)]
    return np.concatenate(parts)


CELLS = [0, 1, 2, 10, 11, 50, 51, 60, 99]


def test_flac_clip_gives_the_cells_exactly() -> None:
    wave = chirp(4)
    data, offsets, samples = build(wave, CELLS, "flac")
    back = decoded(data)
    assert len(back) == samples
    for cell, offset in zip(CELLS, offsets, strict=True):
        expected = wave[cell * CELL : (cell + 1) * CELL]
        np.testing.assert_array_equal(back[offset : offset + CELL], expected)


def test_clip_has_80_ms_of_true_context_on_both_sides() -> None:
    wave = chirp(4)
    data, offsets, _ = build(wave, [30], "flac")
    back = decoded(data)
    assert offsets == [CONTEXT]
    first = 30 * CELL - CONTEXT
    np.testing.assert_array_equal(back, wave[first : 31 * CELL + CONTEXT])


def test_clip_joins_runs_whose_context_meets() -> None:
    wave = chirp(4)
    # The end context of cell 10 and the start context of cell 15 meet exactly.
    _, near, samples = build(wave, [10, 15], "flac")
    assert near[1] - near[0] == 5 * CELL
    assert samples == 6 * CELL + 2 * CONTEXT
    _, near, samples = build(wave, [10, 14], "flac")
    assert near[1] - near[0] == 4 * CELL
    assert samples == 5 * CELL + 2 * CONTEXT
    _, far, samples = build(wave, [10, 16], "flac")
    assert far[1] - far[0] == CELL + 2 * CONTEXT
    assert samples == 2 * (CELL + 2 * CONTEXT)


def test_clip_beyond_the_end_is_silence() -> None:
    wave = chirp(1.0)
    data, offsets, samples = build(wave, [24], "flac")
    back = decoded(data)
    assert len(back) == samples
    assert not back[offsets[0] + CELL :].any()


def test_clip_of_long_runs_equals_the_source() -> None:
    wave = chirp(23)
    data, _, _ = build(wave, list(range(23 * 25)), "flac")
    np.testing.assert_array_equal(decoded(data)[: len(wave)], wave)


def lag_of(piece: NDArray[np.float64], around: NDArray[np.float64]) -> int:
    """Samples by which ``piece`` lies off the middle of ``around``, by correlation."""
    scores = np.correlate(around - around.mean(), piece - piece.mean(), "valid")
    return int(np.argmax(scores)) - (len(scores) - 1) // 2


def test_opus_clip_places_cells_within_2_ms() -> None:
    wave = chirp(4)
    data, offsets, samples = build(wave, CELLS, "opus")
    back = decoded(data).astype(np.float64)
    assert samples <= len(back) <= samples + RATE // 10
    for cell, offset in zip(CELLS, offsets, strict=True):
        start = max(0, cell * CELL - 320)
        shift = offset + start - cell * CELL
        piece = back[shift : shift + CELL + 640]
        around = np.pad(wave.astype(np.float64), 200)[start : start + CELL + 640 + 400]
        assert abs(lag_of(piece, around)) <= 0.002 * RATE, cell


@pytest.mark.parametrize("codec", ["opus", "flac"])
def test_clip_repeats_byte_for_byte(codec: ClipCodec) -> None:
    wave = chirp(3)
    assert build(wave, CELLS[:-1], codec) == build(wave, CELLS[:-1], codec)
