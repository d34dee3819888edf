"""Rotary positions equal those of the models' own code, for any grid and any times."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tokpipe.encode._sound import lengths
from tokpipe.export._models.rope import (
    VERSIONS,
    Pictures,
    Sound,
    Span,
    Text,
    Version,
    index_ticks,
    mrope_position_delta,
    mrope_positions,
    time_ticks,
    transformers_version,
)
from tokpipe.export._models.weave import (
    order_of,
    released_chunks,
    weave_chunks,
    weave_merged,
    woven,
)

#: Ids of the made-up vocabulary.
TEXT, IMAGE, VIDEO, AUDIO = 30, 1, 2, 3
VISION_START, VISION_END, AUDIO_START, AUDIO_END = 10, 12, 11, 13
CHUNK = 50


def steps(count: int, step: float) -> Tensor:
    return torch.arange(count).double() * step


@pytest.mark.parametrize(
    ("version", "times", "after", "delta"),
    [
        ("transformers-4.57", [6, 8, 10, 12], 13, 14 - 31),
        ("transformers-5", [6, 9, 12, 15], 9, 16 - 31),
        ("vllm", [6, 9, 12, 15], 16, 17 - 31),
    ],
)
def test_consumers_count_the_same_video_each_in_its_way(
    version: Version, times: list[int], after: int, delta: int
) -> None:
    video = Pictures(time_ticks(steps(4, 1.5), 2, version), rows=2, columns=3)
    found = mrope_positions([Text(6), video, Text(1)], version)
    assert found[0, 6:30:6].tolist() == times
    assert found[1, 6:12].tolist() == [6, 6, 6, 7, 7, 7]
    assert found[2, 6:12].tolist() == [6, 7, 8, 6, 7, 8]
    assert found[:, 30].tolist() == [after] * 3
    assert mrope_position_delta(found) == delta


def test_versions_are_those_documented() -> None:
    assert set(VERSIONS) == {"transformers-4.57", "transformers-5", "vllm"}
    assert transformers_version("4.57.6") == transformers_version("5.2.0") == "transformers-4.57"
    assert transformers_version("5.3.0") == transformers_version("5.24.0.dev0") == "transformers-5"


def test_uneven_times_give_each_picture_its_own_position() -> None:
    times = torch.tensor([1.0, 13.3, 13.7, 40.0], dtype=torch.float64)
    for version in ("transformers-4.57", "transformers-5", "vllm"):
        assert time_ticks(times, 2, version).tolist() == [0, 24, 25, 78]
    # A time cut to whole milliseconds does not lose a tick.
    assert time_ticks(torch.tensor([0.0, 0.999, 4.0]), 2).tolist() == [0, 2, 8]
    assert time_ticks(times, 25, start=0.0).tolist() == [25, 332, 342, 1000]
    floats = time_ticks(times, 13, start=0.5, whole=False)
    assert torch.equal(floats, ((times - 0.5) * 13).float())
    assert time_ticks(times[:0], 2).tolist() == [] and time_ticks(times[2:3], 2).tolist() == [0]


def test_even_times_cut_to_milliseconds_do_not_share_a_position() -> None:
    def ticks(*times: float, per_second: float = 2, version: Version = "vllm") -> list[int]:
        made: list[int] = time_ticks(torch.tensor(times).double(), per_second, version).tolist()
        return made

    assert ticks(0.0, 0.5, 0.999) == ticks(0.0, 0.5, 1.0) == [0, 1, 2]
    assert ticks(0.0, 0.499, 1.0) == ticks(0.034, 0.533, 1.034) == [0, 1, 2]
    assert ticks(7.0, 8.0, 8.999, version="transformers-4.57") == [0, 2, 4]
    assert ticks(0.0, 0.04, 0.0797, per_second=25) == [0, 1, 2]
    # What is even is counted as the consumer does, that cuts 1.998 too.
    assert ticks(0.0, 0.999, 1.998) == [0, 1, 3]
    assert ticks(*(n / 3 for n in range(7))) == [0, 0, 1, 2, 2, 3, 4]
    assert ticks(*(round(n / 3, 3) for n in range(7))) == [0, 0, 1, 2, 2, 3, 4]


def test_an_empty_prompt_and_empty_spans_have_no_positions() -> None:
    assert mrope_positions([]).shape == (3, 0)
    found = mrope_positions([Text(0), Text(2), Sound(torch.arange(0)), Text(1)])
    assert found.tolist() == [[0, 1, 2]] * 3


# Against the models' own functions.


def grids(seed: int) -> tuple[int, int, int, float]:
    made = torch.Generator().manual_seed(seed)
    count, rows, columns = (int(n) for n in torch.randint(1, 6, (3,), generator=made))
    return count, rows, columns, float(torch.randint(1, 9, (1,), generator=made)) / 4


def qwen(name: str) -> tuple[Any, Version]:
    """A model's ``get_rope_index`` without its model, and how the installed version counts."""
    transformers = importlib.import_module("transformers")
    folder = {"Qwen2VL": "qwen2_vl", "Qwen2_5_VL": "qwen2_5_vl", "Qwen3VL": "qwen3_vl"}[name]
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    kind = getattr(module, f"{name}Model")
    config = SimpleNamespace(
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START,
        vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=2),
    )  # fmt: skip
    return _unbound(kind, config), transformers_version(transformers.__version__)


def _unbound(kind: Any, config: Any, **more: Any) -> Any:
    stub = SimpleNamespace(config=config, **more)
    for name in ("get_vision_position_ids", "get_llm_pos_ids_for_vision", "get_chunked_index"):
        if hasattr(kind, name):
            setattr(stub, name, getattr(kind, name).__get__(stub))
    return kind.get_rope_index.__get__(stub)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["Qwen2VL", "Qwen2_5_VL", "Qwen3VL"])
def test_vision_models_count_alike(name: str, seed: int) -> None:
    own, version = qwen(name)
    count, rows, columns, step = grids(seed)
    size = rows * columns
    each = [VISION_START, *[VIDEO] * size, VISION_END]
    spans: list[Span]
    if name == "Qwen3VL":
        ids = [TEXT] * 3 + (([TEXT] * 4 + each) * count) + [TEXT] * 2
        block: list[Span] = [Text(5), Pictures(index_ticks(1), rows, columns), Text(1)]
        spans = [Text(3), *block * count, Text(2)]
    else:
        ids = [TEXT] * 3 + [VISION_START] + [VIDEO] * size * count + [VISION_END] + [TEXT] * 2
        timed = name == "Qwen2_5_VL"
        ticks = time_ticks(steps(count, step), 2, version) if timed else index_ticks(count)
        spans = [Text(4), Pictures(ticks, rows, columns), Text(3)]
    fed = torch.tensor([ids])
    more: dict[str, Any] = {"attention_mask": torch.ones_like(fed)}
    if version == "transformers-5":
        more["mm_token_type_ids"] = torch.where(fed == VIDEO, 2, 0)
    if name == "Qwen2_5_VL":
        more["second_per_grid_ts"] = [step]
    theirs, delta = own(fed, video_grid_thw=torch.tensor([[count, 2 * rows, 2 * columns]]), **more)
    found = mrope_positions(spans, version)
    assert torch.equal(found, theirs[:, 0])
    assert mrope_position_delta(found) == float(delta)


def omni(newer: bool) -> Any:
    folder, name = ("qwen3_omni_moe", "Qwen3OmniMoe") if newer else ("qwen2_5_omni", "Qwen2_5Omni")
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    kind = getattr(module, f"{name}PreTrainedModelForConditionalGeneration")
    config = SimpleNamespace(
        image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=AUDIO,
        vision_start_token_id=VISION_START, audio_start_token_id=AUDIO_START,
        position_id_per_seconds=13 if newer else 25, seconds_per_chunk=2,
        audio_config=SimpleNamespace(n_window=50),
    )  # fmt: skip
    return _unbound(kind, config, spatial_merge_size=2)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("newer", [False, True], ids=["qwen2_5_omni", "qwen3_omni"])
def test_omni_models_weave_and_count_alike(newer: bool, seed: int) -> None:
    count, rows, columns, step = grids(seed)
    columns_of_mel = [40, 150, 333, 480, 601, 800, 90, 1200][seed]
    heard = (lengths.qwen3_omni_tokens if newer else lengths.qwen2_audio_tokens)(columns_of_mel)
    ticks = time_ticks(steps(count, step), 13 if newer else 25, whole=not newer)
    pictures, sound = Pictures(ticks, rows, columns), Sound(torch.arange(heard))
    seen = pictures.places()[0]
    pieces = weave_merged(seen, sound.ticks) if newer else weave_chunks(seen, sound.ticks, CHUNK)
    mark = Text(2, shared=not newer)
    found = mrope_positions([Text(3), mark, woven(pictures, sound, pieces), mark, Text(4)])

    laid = torch.where(order_of(pieces) < len(pictures), VIDEO, AUDIO).tolist()
    ids = [TEXT] * 3 + [VISION_START, AUDIO_START, *laid, AUDIO_END, VISION_END] + [TEXT] * 4
    theirs, delta = omni(newer)(
        torch.tensor([ids]), None, torch.tensor([[count, 2 * rows, 2 * columns]]),
        torch.ones(1, len(ids)), True, torch.tensor([columns_of_mel]), torch.tensor([step]),
    )  # fmt: skip
    assert torch.equal(found, theirs[:, 0])
    assert mrope_position_delta(found) == float(delta)


def test_a_picture_is_never_parted_but_in_the_released_way() -> None:
    ticks = time_ticks(steps(4, 4.0), 25).repeat_interleave(4)
    assert released_chunks(ticks, CHUNK)[1] == (4, 5)
    sound = torch.arange(110)
    assert weave_chunks(ticks, sound, CHUNK) == (
        (False, 0, 4), (True, 0, 50), (True, 50, 100), (False, 4, 8), (True, 100, 110),
        (False, 8, 12), (False, 12, 16),
    )  # fmt: skip
    assert len(weave_chunks(ticks, sound, CHUNK, compatible=True)) > 7
    assert weave_chunks(ticks[:0], sound[:3], CHUNK) == ((True, 0, 3),)


def test_pictures_come_before_the_sound_of_the_same_position() -> None:
    pictures, sound = torch.tensor([0.0, 0.0, 6.5, 6.5]), torch.arange(8)
    assert weave_merged(pictures, sound) == (
        (False, 0, 2), (True, 0, 7), (False, 2, 4), (True, 7, 8)
    )  # fmt: skip
    assert order_of(weave_merged(pictures, sound)).tolist() == [
        0,
        1,
        2 + 2,
        5,
        6,
        7,
        8,
        9,
        10,
        2,
        3,
        11,
    ]
