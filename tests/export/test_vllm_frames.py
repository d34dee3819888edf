"""Keyframes for vLLM: JPEG pictures as a video, each with its own time."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokpipe.cache.reader import open_cache
from tokpipe.errors import CacheError, WeightsMissing
from tokpipe.export import exporter_from
from tokpipe.export.vllm import to_vllm

pytest.importorskip("transformers", minversion="5.18")


@pytest.fixture(scope="module")
def model(
    beside: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """Folder of a kind's configuration."""

    def of(kind: str) -> str:
        folder = tmp_path_factory.mktemp(kind)
        made: str = beside("served_models").save(kind, folder, beside("mrope_models"))
        return made

    return of


def export(path: Path, target: Path, how: str = "vllm", **more: Any) -> Any:
    _, exporter = exporter_from(how, **more)
    with open_cache(path) as opened:
        return exporter.write(opened, target)


def request(folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    return made


@pytest.fixture
def board(beside: Callable[[str], Any], tmp_path: Path) -> Path:
    """A signal cache of three pictures."""
    made: Path = beside("board_caches").write_board(
        tmp_path / "board.tokpipe.safetensors", [1.0, 13.3, 13.7], duration=20.0
    )
    return made


def jpegs(folder: Path) -> list[bytes]:
    (message,) = request(folder)["messages"]
    url = message["content"][0]["video_url"]["url"]
    head, *listed = url.split(",")
    assert head == "data:video/jpeg;base64"
    return [base64.b64decode(text, validate=True) for text in listed]


def test_keyframes_keep_their_times(
    board: Path, model: Callable[[str], str], tmp_path: Path
) -> None:
    written = export(board, tmp_path / "once", prompt="Why?")
    timing = request(tmp_path / "once")["media_io_kwargs"]["video"]
    assert timing["num_frames"] == -1
    assert [i / timing["fps"] for i in timing["frames_indices"]] == [1.0, 13.3, 13.7]
    assert timing["total_num_frames"] / timing["fps"] == 20.0
    once = jpegs(tmp_path / "once")
    assert [Image.open(io.BytesIO(data)).size for data in once] == [(84, 56)] * 3
    assert any("doubled=yes" in note for note in written.notes)

    written = export(board, tmp_path / "twice", model=model("qwen3_vl"))
    indices = request(tmp_path / "twice")["media_io_kwargs"]["video"]["frames_indices"]
    assert indices == [1000, 1000, 13300, 13300, 13700, 13700]
    assert jpegs(tmp_path / "twice") == [data for data in once for _ in (0, 1)]
    assert written.items == {"keyframes": 3, "frames": 6}
    assert written.notes == ()

    export(board, tmp_path / "llava", model=model("llava"))
    assert jpegs(tmp_path / "llava") == once
    export(board, tmp_path / "no", "vllm:doubled=no,max_frames=2", model=model("qwen3_vl"))
    assert len(jpegs(tmp_path / "no")) == 2


def test_keyframes_in_python(board: Path, model: Callable[[str], str]) -> None:
    with open_cache(board) as opened:
        ((frames, timing),) = to_vllm(opened, model("qwen2_5_vl"))["multi_modal_data"]["video"]
    assert frames.shape == (6, 56, 84, 3) and frames.dtype == np.uint8
    assert np.array_equal(frames[0::2], frames[1::2])
    assert timing["do_sample_frames"] is False
    assert timing["frames_indices"] == [1000, 1000, 13300, 13300, 13700, 13700]


def test_a_model_that_is_not_here_is_not_needed_once_doubling_is_told(
    board: Path, tmp_path: Path
) -> None:
    absent = str(tmp_path / "absent")
    with pytest.raises(WeightsMissing) as missing:
        export(board, tmp_path / "auto", model=absent)
    assert "doubled=yes" in str(missing.value.hint) and "doubled=no" in str(missing.value.hint)
    told: tuple[tuple[Any, int], ...] = (("yes", 6), ("no", 3))
    for doubled, count in told:
        export(board, tmp_path / doubled, f"vllm:doubled={doubled}", model=absent)
        assert len(jpegs(tmp_path / doubled)) == count
        assert request(tmp_path / doubled)["model"] == absent
        with open_cache(board) as opened:
            made = to_vllm(opened, absent, doubled=doubled)
        assert len(made["multi_modal_data"]["video"][0][0]) == count
    with open_cache(board) as opened, pytest.raises(WeightsMissing, match="absent"):
        to_vllm(opened, absent)


def test_signal_is_no_token_of_a_model(board: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError) as refused:
        export(board, tmp_path / "out", "vllm:form=http")
    assert refused.value.code == "export.domain" and "form=frames" in str(refused.value.hint)
