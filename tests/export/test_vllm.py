"""What vLLM is given: the shapes of its parsers, times, names; and what is refused."""

from __future__ import annotations

import ast
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tokpipe.cache.reader import open_cache
from tokpipe.encode.hf_vision import HfVision
from tokpipe.errors import CacheError, RecipeError, WeightsMismatch
from tokpipe.export import exporter_from
from tokpipe.export._models.rope import Pictures, Span, Text, mrope_positions, time_ticks
from tokpipe.export._run import export_cache
from tokpipe.export._servers.serial import decoded
from tokpipe.export.sglang import to_sglang
from tokpipe.export.vllm import to_vllm

pytest.importorskip("transformers", minversion="5.18")
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
MERGE = 2


@pytest.fixture(scope="session")
def served(beside: Callable[[str], Any]) -> Any:
    return beside("served_models")


@pytest.fixture(scope="session")
def model(
    served: Any, beside: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """Folder of a kind's configuration, made once."""
    made: dict[str, str] = {}

    def of(kind: str) -> str:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = served.save(kind, folder, beside("mrope_models"))
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


def export(path: Path, target: Path, how: str = "vllm", **more: Any) -> Any:
    _, exporter = exporter_from(how, **more)
    with open_cache(path) as opened:
        return exporter.write(opened, target)


def told(written: Any) -> list[str]:
    """Notes, without that on weights: most folders here hold a configuration alone."""
    return [note for note in written.notes if "weights" not in note]


def request(folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    return made


def parts(folder: Path) -> list[dict[str, Any]]:
    (message,) = request(folder)["messages"]
    return list(message["content"])


def stored(path: Path, stream: str = "video") -> Tensor:
    """Rows of a cache with those beside them."""
    with open_cache(path) as opened:
        names = [n for n in opened.names if n.startswith(f"{stream}.deepstack_")]
        columns = [opened.column(f"{stream}.tokens"), *map(opened.column, sorted(names))]
        return torch.from_numpy(np.concatenate(columns, 1))


@pytest.mark.parametrize("kind", QWEN)
def test_a_video_over_http(
    kind: str, cache: Callable[..., Path], served: Any, tmp_path: Path
) -> None:
    path = cache(kind)
    written = export(path, tmp_path / "out", "vllm:form=http", prompt="What is shown?")
    part, question = parts(tmp_path / "out")
    assert question == {"type": "text", "text": "What is shown?"}
    assert part["type"] == "video_embeds"
    value = part["video_embeds"]
    rows = decoded(value["video_embeds"])
    t, h, w = value["video_grid_thw"]
    assert (t, h, w) == (4, served.GRID[0] * MERGE, served.GRID[1] * MERGE)
    levels = served.LEVELS.get(kind, 0)
    assert rows.shape == (t * h * w // MERGE**2, served.WIDTH * (1 + levels))
    assert torch.equal(rows, stored(path))
    # Arrays of JSON are refused by vLLM unless they size the prompt; the pace does not.
    arrays = {name for name, found in value.items() if isinstance(found, list)}
    assert arrays == {"video_grid_thw"} | ({"timestamps"} if kind == "qwen3_vl" else set())
    if kind == "qwen3_vl":
        assert value["timestamps"] == list(served.TIMES)
    if kind == "qwen2_5_vl":
        assert float(decoded(value["second_per_grid_ts"])) == 1.5
    assert len(part["uuid"]) == 64 and int(part["uuid"], 16) >= 0
    assert written.tokens == len(rows) and written.items == {"videos": 1}
    # A character is a token here.
    stamps = 4 * (2 + len("<1.0 seconds>"))
    assert written.added == 2 + (stamps if kind == "qwen3_vl" else 0)
    assert (
        '--enable-mm-embeds --limit-mm-per-prompt \'{"image": 0, "video": 0}\'' in written.example
    )
    assert ("--video-pruning-rate" in written.example) == (kind != "qwen2_vl")
    lost = any("not their times" in note for note in written.notes)
    assert lost == (kind == "qwen2_vl")


def test_stored_precision_is_kept_or_cast(cache: Callable[..., Path], tmp_path: Path) -> None:
    path = cache("qwen2_5_vl", dtype=torch.bfloat16)
    export(path, tmp_path / "own")
    export(path, tmp_path / "cast", dtype="float16")
    own, cast = (
        decoded(parts(tmp_path / name)[0]["video_embeds"]["video_embeds"])
        for name in ("own", "cast")
    )
    assert (own.dtype, cast.dtype) == (torch.bfloat16, torch.float16)
    assert torch.equal(own.half(), cast)


@pytest.mark.parametrize("kind", QWEN)
def test_python_takes_the_same(
    kind: str, cache: Callable[..., Path], served: Any, tmp_path: Path
) -> None:
    path = cache(kind)
    export(path, tmp_path / "out", "vllm:form=offline", prompt="Why?")
    inputs = torch.load(tmp_path / "out" / "inputs.pt", weights_only=True)
    with open_cache(path) as opened:
        made = to_vllm(opened, prompt="Why?")
    assert inputs["prompt"] == made["prompt"]
    assert made["prompt"] == "<|vision_start|><|video_pad|><|vision_end|>\nWhy?"
    assert inputs["multi_modal_uuids"] == made["multi_modal_uuids"]
    data = inputs["multi_modal_data"]["video"]
    assert torch.equal(data["video_embeds"], stored(path))
    assert data["video_grid_thw"].tolist() == [[4, 4, 6]]
    assert ("timestamps" in data) == (kind == "qwen3_vl")
    assert ("second_per_grid_ts" in data) == (kind == "qwen2_5_vl")
    if kind == "qwen3_vl":
        assert data["timestamps"].tolist() == [list(served.TIMES)]
    ast.parse((tmp_path / "out" / "run.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "media",
    ["C:\\users\\x.mp4", "a\\Nb.mp4", 'q"""+exit()+""".mp4', "line\nbreak.mp4", 'ends with "'],
)
def test_the_script_runs_whatever_the_media_is_called(
    media: str, cache: Callable[..., Path], tmp_path: Path
) -> None:
    export(cache("qwen3_vl", media=media), tmp_path / "out", "vllm:form=offline")
    made = runpy.run_path(str(tmp_path / "out" / "run.py"), run_name="read")
    assert "multi_modal_data" in made["inputs"]


def test_http_and_python_name_the_same_item_alike(
    cache: Callable[..., Path], tmp_path: Path
) -> None:
    path = cache("qwen3_vl")
    export(path, tmp_path / "http")
    with open_cache(path) as opened:
        (name,) = to_vllm(opened)["multi_modal_uuids"]["video"]
    assert parts(tmp_path / "http")[0]["uuid"] == name
    other = cache("qwen3_vl", times=(1.0, 2.5, 4.0, 5.6))
    export(other, tmp_path / "other")
    assert parts(tmp_path / "other")[0]["uuid"] != name


@pytest.mark.parametrize("kind", QWEN)
def test_pictures_as_images_tell_their_times(
    kind: str, cache: Callable[..., Path], tmp_path: Path
) -> None:
    path = cache(kind)
    export(path, tmp_path / "out", "vllm:media=image", prompt="Why?")
    content = parts(tmp_path / "out")
    texts = [p["text"] for p in content if p["type"] == "text"]
    assert texts == ["<1.0 seconds>", "<2.5 seconds>", "<4.0 seconds>", "<5.5 seconds>", "Why?"]
    images = [p["image_embeds"] for p in content if p["type"] == "image_embeds"]
    assert [image["image_grid_thw"] for image in images] == [[1, 4, 6]] * 4
    assert torch.equal(
        torch.cat([decoded(image["image_embeds"]) for image in images]), stored(path)
    )
    assert len({p["uuid"] for p in content if p["type"] != "text"}) == 4


@pytest.mark.parametrize(
    "kind", ["llava", "llava_next", "llava_onevision", "internvl", "paligemma"]
)
def test_models_that_count_rows_take_any_subset(
    kind: str, cache: Callable[..., Path], served: Any, tmp_path: Path
) -> None:
    keep = torch.rand(24, generator=torch.Generator().manual_seed(3)) < 0.6
    keep[6:12] = False
    path = cache(kind, keep=keep)
    written = export(path, tmp_path / "out", prompt="Why?")
    content = parts(tmp_path / "out")
    images = [p for p in content if p["type"] == "image_embeds"]
    counts = [len(decoded(p["image_embeds"])) for p in images]
    # The picture of which nothing is left is not there.
    assert counts == [n for n in keep.view(4, 6).sum(1).tolist() if n]
    assert torch.equal(torch.cat([decoded(p["image_embeds"]) for p in images]), stored(path))
    assert next(p["text"] for p in content if p["type"] == "text") == "<1.0 seconds>"
    with open_cache(path) as opened:
        listed = to_vllm(opened, stamps=False)
    assert [len(one) for one in listed["multi_modal_data"]["image"]] == counts
    assert any("compact" in note for note in written.notes)
    # A view would be saved with all rows of the cache.
    assert max(len(p["image_embeds"]) for p in images) < 4 * 6 * served.WIDTH * 4 + 4000


def test_sound(cache: Callable[..., Path], tmp_path: Path) -> None:
    path = cache("qwen2_audio", video=False, audio=7)
    export(path, tmp_path / "out", prompt="Who?")
    (part, _) = parts(tmp_path / "out")
    assert part["type"] == "audio_embeds"
    assert torch.equal(decoded(part["audio_embeds"]), stored(path, "audio"))
    export(path, tmp_path / "ec", "vllm:form=ec")
    assert parts(tmp_path / "ec")[0]["audio_embeds"] == {"audio_num_tokens": [7]}


def test_a_stream_that_is_not_taken_is_told(cache: Callable[..., Path], tmp_path: Path) -> None:
    written = export(cache("qwen2_5_vl", audio=5), tmp_path / "out")
    assert [p["type"] for p in parts(tmp_path / "out")] == ["video_embeds"]
    assert any(note.startswith("5 audio tokens are left out") for note in written.notes)


@pytest.mark.parametrize("kind", QWEN)
def test_the_encoder_cache_on_disk(kind: str, cache: Callable[..., Path], tmp_path: Path) -> None:
    path = cache(kind)
    written = export(path, tmp_path / "out", "vllm:form=ec", prompt="Why?")
    part, _ = parts(tmp_path / "out")
    assert "video_embeds" not in part["video_embeds"]
    (file,) = (tmp_path / "out").glob("*/*")
    assert file == tmp_path / "out" / part["uuid"] / "encoder_cache.safetensors"
    held = load_file(file)
    assert list(held) == ["ec_cache"]
    assert torch.equal(held["ec_cache"], stored(path))
    t, h, w = part["video_embeds"]["video_grid_thw"]
    assert len(held["ec_cache"]) == t * h * w // MERGE**2
    assert "ECExampleConnector" in written.example and "ec_consumer" in written.example
    export(path, tmp_path / "named", "vllm:form=ec,uuid=talk-7")
    assert (tmp_path / "named" / "talk-7" / "encoder_cache.safetensors").is_file()


def vllm_positions(before: int, grid: list[int], pace: float, per_second: float) -> list[list[int]]:
    """What vLLM 0.33 counts for Qwen2.5-VL, written again from its description."""
    t, h, w = grid[0], grid[1] // MERGE, grid[2] // MERGE
    text = [[n, n, n] for n in range(before)]
    cells = [
        [before + int(i * pace * per_second), before + y, before + x]
        for i in range(t) for y in range(h) for x in range(w)
    ]  # fmt: skip
    after = 1 + max(max(cell) for cell in cells)
    return [*text, *cells, [after] * 3]


def test_positions_vllm_will_count(cache: Callable[..., Path], tmp_path: Path) -> None:
    """4 steps of 1.5 s, 2 positions a second, from position 6 on: 6, 9, 12, 15, then 16."""
    export(cache("qwen2_5_vl"), tmp_path / "out")
    value = parts(tmp_path / "out")[0]["video_embeds"]
    pace = float(decoded(value["second_per_grid_ts"]))
    counted = torch.tensor(vllm_positions(6, value["video_grid_thw"], pace, 2)).T
    assert counted[0, 6::6].tolist() == [6, 9, 12, 15, 16]
    spans: list[Span] = [
        Text(6),
        Pictures(time_ticks(torch.tensor([0, 1.5, 3, 4.5]), 2.0), 2, 3),
        Text(1),
    ]
    assert torch.equal(counted, mrope_positions(spans, "vllm"))


def test_uneven_times_are_told_where_the_model_cannot_know(
    cache: Callable[..., Path], tmp_path: Path
) -> None:
    uneven = (1.0, 13.3, 13.7, 20.0)
    written = export(cache("qwen2_5_vl", times=uneven), tmp_path / "a")
    assert any("unevenly apart" in note and "6.333 s" in note for note in written.notes)
    written = export(cache("qwen3_vl", times=uneven), tmp_path / "b")
    assert parts(tmp_path / "b")[0]["video_embeds"]["timestamps"] == list(uneven)
    assert told(written) == []


def test_a_still_is_an_image(cache: Callable[..., Path], tmp_path: Path) -> None:
    export(cache("qwen2_5_vl", times=(0.0,), duration=None), tmp_path / "out")
    (part,) = parts(tmp_path / "out")
    assert part["image_embeds"]["image_grid_thw"] == [1, 4, 6]


REFUSED = [
    ("qwen2_vl", {"keep": torch.arange(24) % 5 > 0}, "", "export.layout", "ragged"),
    ("qwen2_vl", {"width": 40}, "", "export.width", "48"),
    ("qwen2_vl", {"stage": "pre_projector"}, "", "export.stage", "projector"),
    ("qwen3_vl", {"levels": 0}, "", "export.deepstack", "3"),
    ("qwen2_vl", {"levels": 1}, "", "export.deepstack", "0"),
    ("gemma3", {}, "", "export.kind", "asserts"),
    ("voxtral", {"video": False, "audio": 5}, "", "export.kind", "no input for audio"),
    ("smolvlm", {}, "", "export.kind", "pixels"),
    ("idefics3", {}, "", "export.kind", "pixels"),
    ("llava_next_video", {}, "", "export.kind", "pixels"),
    ("video_llama_3", {}, "", "export.kind", "does not serve"),
    ("mistral3", {}, "", "export.kind", "mistral3"),
    ("llava", {}, "media=video", "export.modality", "video"),
    ("llava", {}, "form=ec", "export.form", "encoder cache"),
    ("qwen2_vl", {}, "form=ec,uuid=a/b", "export.uuid", "a/b"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "how", "params", "code", "said"), REFUSED)
def test_refusals(
    kind: str, how: dict[str, Any], params: str, code: str, said: str,
    cache: Callable[..., Path], tmp_path: Path,
) -> None:  # fmt: skip
    path = cache(kind, **how)
    with pytest.raises(CacheError) as refused:
        export(path, tmp_path / "out", f"vllm:{params}" if params else "vllm")
    assert refused.value.code == code
    assert said in refused.value.message
    assert refused.value.hint
    if code == "export.layout":
        assert "transformers" in refused.value.hint and "sglang" in refused.value.hint
        assert "--layout frames" in refused.value.hint


def test_the_example_names_the_folder(cache: Callable[..., Path], tmp_path: Path) -> None:
    _, exporter = exporter_from("vllm:form=ec")
    record = export_cache(cache("qwen2_vl"), tmp_path / "ec", "vllm", exporter)
    assert str(tmp_path / "ec") in record.example and ".tmp" not in record.example


def test_no_model_on_record(served: Any, tmp_path: Path) -> None:
    path = served.cache_of(tmp_path / "film.tokpipe.safetensors", "")
    with pytest.raises(CacheError, match="does not say which model") as refused:
        export(path, tmp_path / "out")
    assert refused.value.code == "export.model"
    with pytest.raises(RecipeError, match="dtype"):
        exporter_from("vllm:dtype=int8")


def test_rows_of_other_weights(served: Any, beside: Callable[[str], Any], tmp_path: Path) -> None:
    talker = beside("mrope_models").make("qwen2_5_vl")
    for part in (talker.model, talker.processor):
        part.save_pretrained(tmp_path / "own")
    with torch.no_grad():
        talker.model.model.visual.patch_embed.proj.weight += 1
    for part in (talker.model, talker.processor):
        part.save_pretrained(tmp_path / "other")
    weights = HfVision(model=str(tmp_path / "own"), stage="post_projector").load().weights
    path = served.cache_of(
        tmp_path / "film.tokpipe.safetensors", str(tmp_path / "own"), weights=weights
    )
    assert export(path, tmp_path / "a").notes == ()
    with pytest.raises(WeightsMismatch, match="other weights") as refused:
        export(path, tmp_path / "b", model=str(tmp_path / "other"))
    assert refused.value.code == "export.weights"
    written = export(path, tmp_path / "c", model=str(tmp_path / "other"), allow_mismatch=True)
    assert any("other weights" in note for note in written.notes)
    with open_cache(path) as opened, pytest.raises(WeightsMismatch):
        to_sglang(opened, str(tmp_path / "other"), "Why?")
