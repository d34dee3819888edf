"""Golden cases of rotary positions: pictures and sound of the Omni models woven together."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from tokpipe.encode._sound import lengths
from tokpipe.export._models.rope import (
    Pictures,
    Sound,
    Text,
    mrope_position_delta,
    mrope_positions,
    time_ticks,
)
from tokpipe.export._models.weave import (
    order_of,
    released_chunks,
    weave_chunks,
    weave_merged,
    woven,
)
from tokpipe.testing.golden import Adapter, Case, assert_index, assert_values

#: Ids of the cases, positions a second and chunk (2 s) of Qwen2.5-Omni.
_VIDEO, _AUDIO, _OPEN = 2, 3, 11
_PER_SECOND, _CHUNK, _MERGE = 25, 50, 2


def _slices(ticks: Tensor) -> Tensor:
    return torch.tensor(released_chunks(ticks, _CHUNK))


def tmrope(case: Case) -> None:
    """Ids, positions and delta; Qwen3-Omni is told by its positions a second."""
    newer = "position_id_per_seconds" in case
    ids = case("input_ids")
    count, rows, columns = case("grid_thw").tolist()
    rows, columns = rows // _MERGE, columns // _MERGE
    per_second = case.value("position_id_per_seconds", _PER_SECOND)
    columns_of_mel = case.value("mel_len")
    heard = (
        lengths.qwen3_omni_tokens(columns_of_mel) if newer
        else lengths.qwen2_audio_tokens(columns_of_mel)
    )  # fmt: skip
    assert heard == case.value("audio_tokens")

    times = torch.arange(count).double() * case.value("second_per_grid")
    pictures = Pictures(time_ticks(times, per_second, whole=not newer), rows, columns)
    sound = Sound(torch.arange(heard))
    seen = pictures.places()[0]
    if newer:
        pieces = weave_merged(seen, sound.ticks)
    else:
        pieces = weave_chunks(seen, sound.ticks, _CHUNK, compatible=True)
        assert_index(_slices(seen), case("video_chunks"))
        assert_index(_slices(sound.ticks), case("audio_chunks"))
        if case.value("second_per_grid") * _PER_SECOND <= _CHUNK:
            assert pieces == weave_chunks(seen, sound.ticks, _CHUNK)

    before = int(torch.nonzero(ids == _OPEN)[0]) - 1
    after = len(ids) - before - len(pictures) - len(sound) - 4
    mark = Text(2, shared=not newer)
    laid_out = woven(pictures, sound, pieces)
    found = mrope_positions([Text(before), mark, laid_out, mark, Text(after)])
    assert found.dtype == (torch.float32 if newer else torch.int64)
    assert_values(found, case("position_ids"), atol=0, rtol=0)
    assert mrope_position_delta(found) == case.value("delta")
    laid = torch.where(order_of(pieces) < len(pictures), _VIDEO, _AUDIO)
    assert_index(laid, ids[before + 2 : before + 2 + len(laid)])


def chunk_quirk(case: Case) -> None:
    """Slices of the released chunker by seconds per grid step, its flaw included."""
    frames, size = case.value("frames"), case.value("tokens_per_frame")
    checked = 0
    for name in case.arrays:
        found = re.fullmatch(r"spg(\d+\.\d+)", name)
        if found is None:
            continue
        times = torch.arange(frames).double() * float(found[1])
        ticks = time_ticks(times, _PER_SECOND).repeat_interleave(size)
        assert_index(_slices(ticks), case(name))
        # Ours parts no picture, whatever the step.
        assert all(end % size == 0 for _, _, end in weave_chunks(ticks, ticks[:0], _CHUNK))
        checked += 1
    assert checked


ADAPTERS: dict[str, Adapter] = {"tmrope": tmrope, "tmrope_q25_chunk_quirk": chunk_quirk}
