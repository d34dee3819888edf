"""The page on transformers: its Python runs on a tiny model and a cache made of a film."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("transformers", minversion="5.18")
pytest.importorskip("torchvision")

import tokpipe
from tokpipe.export._models.kinds import KINDS
from tokpipe.testing.media import VideoTrack, write_media

PAGE = Path(__file__).parents[2] / "docs" / "consumers" / "transformers.md"


def test_page_runs_as_written(
    beside: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("TOKPIPE_CACHE_DIR", str(tmp_path / "bank"))
    monkeypatch.chdir(tmp_path)
    case: Any = beside("tiny_models").MAKERS["llava_onevision_video"]()
    for part in (case.model, case.processor):
        part.save_pretrained("model")
    write_media("talk.mp4", VideoTrack(size=(144, 80), fps=Fraction(2), frames=6))
    step = tokpipe.encoder_step(
        f"hf_vision:{tmp_path / 'model'}", stage="post_projector", fit="squash"
    )
    recipe = tokpipe.with_encoders(tokpipe.load_recipe("uniform"), [step])
    tokpipe.compress_file("talk.mp4", "talk.tokpipe.safetensors", recipe=recipe, budget=20)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    found: dict[str, Any] = {}
    for block in blocks:
        exec(block, found)
    assert len(blocks) == 6
    assert found["inputs"].media == 20 and not found["inputs"].notes
    assert found["batch"].ids.shape[0] == 2 and found["weighted"].weighted
    assert "original" in capsys.readouterr().out


def test_page_names_every_kind() -> None:
    text = re.sub(r"[^a-z0-9]", "", PAGE.read_text(encoding="utf-8").lower())
    names = {"llava": "llava15", "qwen3_omni_moe": "qwen3omni", "video_llama_3": "videollama3"}
    for kind in KINDS:
        short = kind.removesuffix("_thinker")
        assert re.sub("_", "", names.get(short, short)) in text, kind
