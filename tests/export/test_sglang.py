"""What SGLang is given: placeholders, offsets and positions fit together; what is refused."""

from __future__ import annotations

import ast
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokpipe.cache.reader import open_cache
from tokpipe.errors import CacheError
from tokpipe.export import exporter_from
from tokpipe.export.sglang import to_sglang
from tokpipe.export.transformers import to_model_inputs

pytest.importorskip("transformers", minversion="5.18")
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
KEEP = torch.rand(24, generator=torch.Generator().manual_seed(3)) < 0.6


@pytest.fixture(scope="session")
def served(beside: Callable[[str], Any]) -> Any:
    return beside("served_models")


@pytest.fixture(scope="session")
def mrope(beside: Callable[[str], Any]) -> Any:
    return beside("mrope_models")


@pytest.fixture(scope="session")
def model(
    served: Any, mrope: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """Folder of a kind's configuration and tokenizer, made once."""
    made: dict[str, str] = {}

    def of(kind: str) -> str:
        if kind not in made:
            made[kind] = served.save(kind, tmp_path_factory.mktemp(kind), mrope)
        return made[kind]

    return of


@pytest.fixture
def cache(served: Any, model: Callable[[str], str], tmp_path: Path) -> Callable[..., Path]:
    """A cache of a kind."""

    def of(kind: str, **how: Any) -> Path:
        how = {"levels": served.LEVELS.get(kind, 0), **how}
        made: Path = served.cache_of(tmp_path / "film.tokpipe.safetensors", model(kind), **how)
        return made

    return of


def asked(path: Path, messages: Any = "Why?", **how: Any) -> tuple[list[int], dict[str, Any]]:
    """Ids and the one dictionary."""
    with open_cache(path) as opened:
        inputs = to_sglang(opened, messages=messages, **how)
    ids = inputs.pop("input_ids")
    ((items),) = inputs.values()
    (item,) = items
    return ids, item


def covered(item: dict[str, Any]) -> list[int]:
    """Indices of the prompt that the offsets name; both ends belong to a run."""
    return [at for first, last in item["offsets"] for at in range(first, last + 1)]


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("kind", QWEN)
def test_everything_fits_together(
    kind: str, image: bool, positions: Any, cache: Callable[..., Path], served: Any, mrope: Any
) -> None:
    path = cache(kind, keep=KEEP)
    ids, item = asked(path, media="image" if image else "video", positions=positions)
    pad = mrope.ID["image" if image else "video"]
    slots = [at for at, number in enumerate(ids) if number == pad]
    assert covered(item) == slots
    assert len(slots) == len(item["precomputed_embeddings"]) == int(KEEP.sum())
    # Each run is the longest: beside it stands something else.
    assert all(ids[a - 1] != pad and ids[b + 1] != pad for a, b in item["offsets"])
    width = served.WIDTH * (1 + served.LEVELS.get(kind, 0))
    assert item["precomputed_embeddings"].shape[1] == width
    found = item["mrope_positions"]
    assert found.dtype == torch.int64 and found.shape == (3, len(ids))
    assert item["mrope_position_delta"].tolist() == [[int(found.max()) + 1 - len(ids)]]
    if positions == "compact":
        assert torch.equal(found, torch.arange(len(ids)).expand(3, -1))
    grids = [[1, 4, 6]] * 4 if image else [[4, 4, 6]]
    assert item[f"{'image' if image else 'video'}_grid_thw"].tolist() == grids
    assert item["modality"] == ("IMAGE" if image else "VIDEO")
    assert 0 <= item["hash"] < 2**63


@pytest.mark.parametrize("kind", QWEN)
def test_kept_tokens_stand_where_they_stood(kind: str, cache: Callable[..., Path]) -> None:
    """Rows, ids and positions are those of the whole prompt without the dropped tokens."""
    whole_ids, whole = asked(cache(kind))
    ids, item = asked(cache(kind, keep=KEEP))
    kept = torch.ones(len(whole_ids), dtype=torch.bool)
    kept[torch.tensor(covered(whole))[~KEEP]] = False
    assert ids == torch.tensor(whole_ids)[kept].tolist()
    assert torch.equal(item["mrope_positions"], whole["mrope_positions"][:, kept])
    rows = whole["precomputed_embeddings"][KEEP]
    assert torch.equal(item["precomputed_embeddings"], rows)
    assert item["hash"] != whole["hash"]


@pytest.mark.parametrize("kind", QWEN)
def test_the_prompt_is_that_of_transformers(
    kind: str, cache: Callable[..., Path], mrope: Any
) -> None:
    path, talker = cache(kind, keep=KEEP), mrope.make(kind)
    ids, item = asked(path)
    inputs = to_model_inputs(path, talker.model, talker.processor, "Why?")
    assert inputs.ids[0].tolist() == ids
    (video,) = inputs["mm_encoder_outputs"].values()
    own = torch.cat(list(video.pooler_output))
    assert torch.equal(item["precomputed_embeddings"][:, : own.shape[1]], own)


def test_positions_as_sglang_counts(cache: Callable[..., Path], mrope: Any) -> None:
    """4 steps of 1.5 s, 2 positions a second, from position 6 on: 6, 9, 12, 15, then 16."""
    letters = [mrope.VOCABULARY[letter] for letter in "abcdef"]
    prompt = [*letters, mrope.ID["video"], *letters[:2]]
    ids, item = asked(cache("qwen2_5_vl"), prompt)
    assert ids == [*letters, *[mrope.ID["video"]] * 24, *letters[:2]]
    assert item["offsets"] == [[6, 29]]
    found: Tensor = item["mrope_positions"]
    assert found[0, 6:30:6].tolist() == [6, 9, 12, 15]
    assert found[1, 6:12].tolist() == [6, 6, 6, 7, 7, 7]
    assert found[2, 6:12].tolist() == [6, 7, 8, 6, 7, 8]
    assert found[:, 30:].tolist() == [[16, 17]] * 3
    assert item["mrope_position_delta"].item() == 18 - 32


def test_uneven_times_have_positions_of_their_own(cache: Callable[..., Path]) -> None:
    _, item = asked(cache("qwen2_5_vl", times=(1.0, 13.0, 13.5, 20.0)))
    first = item["offsets"][0][0]
    ticks = item["mrope_positions"][0, first : first + 24 : 6]
    assert (ticks - ticks[0]).tolist() == [0, 24, 25, 38]


def test_pictures_of_which_nothing_is_kept_are_not_in_the_prompt(
    cache: Callable[..., Path],
) -> None:
    keep = KEEP.clone()
    keep[6:12] = False
    _, item = asked(cache("qwen3_vl", keep=keep))
    assert len(item["offsets"]) == 3
    assert item["video_grid_thw"].tolist() == [[3, 4, 6]]
    assert len(covered(item)) == int(keep.sum())


def test_names_follow_content(cache: Callable[..., Path]) -> None:
    path = cache("qwen2_vl", keep=KEEP)
    names = [
        asked(path, positions=positions, dtype=dtype)[1]["hash"]
        for positions in ("original", "compact") for dtype in ("", "bfloat16")
    ]  # fmt: skip
    assert len(set(names)) == 4
    assert asked(path)[1]["hash"] == names[0]


def test_files(cache: Callable[..., Path], tmp_path: Path) -> None:
    path = cache("qwen3_vl", keep=KEEP, audio=4)
    _, exporter = exporter_from("sglang", prompt="Why?")
    with open_cache(path) as opened:
        written = exporter.write(opened, tmp_path / "out")
    inputs = torch.load(tmp_path / "out" / "inputs.pt", weights_only=True)
    ids, item = asked(path)
    (held,) = inputs["video_data"]
    assert inputs["input_ids"] == ids and held.keys() == item.keys()
    assert all(
        torch.equal(held[name], value) if isinstance(value, Tensor) else held[name] == value
        for name, value in item.items()
    )
    told = json.loads((tmp_path / "out" / "request.json").read_text(encoding="utf-8"))
    assert told["input_ids"] == ids
    (facts,) = told["video_data"]
    assert facts["precomputed_embeddings"] == {"shape": [int(KEEP.sum()), 192], "dtype": "float32"}
    assert facts["offsets"] == item["offsets"] and facts["video_grid_thw"] == [[4, 4, 6]]
    ast.parse((tmp_path / "out" / "run.py").read_text(encoding="utf-8"))
    assert written.tokens == int(KEEP.sum())
    # A character is a token here: 4 times <1.0 seconds> and two marks.
    assert written.added == 4 * (len("<1.0 seconds>") + 2)
    assert any("4 audio tokens are left out" in note for note in written.notes)


@pytest.mark.parametrize(
    "media",
    ["C:\\users\\x.mp4", "a\\Nb.mp4", 'q"""+exit()+""".mp4', "line\nbreak.mp4", 'ends with "'],
)
def test_the_script_runs_whatever_the_media_is_called(
    media: str, cache: Callable[..., Path], tmp_path: Path
) -> None:
    path = cache("qwen3_vl", media=media)
    _, exporter = exporter_from("sglang", prompt="Why?")
    with open_cache(path) as opened:
        exporter.write(opened, tmp_path / "out")
    made = runpy.run_path(str(tmp_path / "out" / "run.py"), run_name="read")
    assert "input_ids" in made["inputs"]


@pytest.mark.parametrize(
    ("kind", "how", "asks", "code", "said"),
    [
        ("llava", {}, {}, "export.kind", "vision tower"),
        ("qwen2_audio", {"video": False, "audio": 5}, {}, "export.kind", "prompt"),
        ("mistral3", {}, {}, "export.kind", "mistral3"),
        ("qwen2_vl", {"width": 40}, {}, "export.width", "48"),
        ("qwen2_vl", {"stage": "pre_projector"}, {}, "export.stage", "projector"),
        ("qwen3_vl", {"levels": 0}, {}, "export.deepstack", "3"),
        ("qwen2_5_vl", {}, {"format": "precomputed_embedding"}, "export.form", "video"),
        ("qwen3_vl", {}, {"format": "precomputed_embedding", "media": "image"}, "export.form",
         "image rows of qwen3_vl"),
    ],
)  # fmt: skip
def test_refusals(
    kind: str, how: dict[str, Any], asks: dict[str, Any], code: str, said: str,
    cache: Callable[..., Path],
) -> None:  # fmt: skip
    with pytest.raises(CacheError) as refused:
        asked(cache(kind, **how), **asks)
    assert refused.value.code == code and said in refused.value.message
    assert refused.value.hint


def test_the_spelling_that_tells_rows_by_their_width(
    cache: Callable[..., Path], served: Any, mrope: Any, tmp_path: Path
) -> None:
    """Qwen2.5-VL images only; rows as wide as a patch are taken for pixels."""
    asks: dict[str, Any] = {"format": "precomputed_embedding", "media": "image"}
    path = cache("qwen2_5_vl", keep=KEEP)
    ids, item = asked(path, **asks)
    assert item["feature"].shape == (int(KEEP.sum()), served.WIDTH)
    assert len(ids) == item["mrope_positions"].shape[1]

    folder = Path(served.save("qwen2_5_vl", tmp_path / "wide", mrope))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = 1176
    (folder / "config.json").write_text(json.dumps(config))
    wide = served.cache_of(tmp_path / "wide.tokpipe.safetensors", str(folder), width=1176)
    with pytest.raises(CacheError, match="1176") as refused:
        asked(wide, **asks)
    assert "processor_output" in str(refused.value.hint)
    assert asked(wide, media="image")[1]["precomputed_embeddings"].shape[1] == 1176
