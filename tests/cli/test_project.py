"""``tokpipe project`` as people call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tokpipe.cache.reader import open_cache

tf = pytest.importorskip("transformers", minversion="5.18")
pytest.importorskip("torchvision")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of 4 x 4 patches, 32 wide before its projector and 48 after it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llava"
    vision = tf.CLIPVisionConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                                 intermediate_size=64, image_size=32, patch_size=8)  # fmt: skip
    text = tf.LlamaConfig(vocab_size=64, hidden_size=48, intermediate_size=64,
                          num_hidden_layers=1, num_attention_heads=4)  # fmt: skip
    torch.manual_seed(1)
    config = tf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=1)
    tf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    tf.CLIPImageProcessor(**size).save_pretrained(folder)
    return folder


def test_project(run: Any, events: Any, two_lines: Any, clip: Path, llava: Path) -> None:
    made = run("compress", clip, "-b", 40, "-e", f"hf_vision:{llava}", "--stage", "pre_projector")
    assert made.exit_code == 0, made.stderr
    cache = clip.with_name("clip.tokpipe.safetensors")
    result = run("project", cache, "--to", llava)
    assert result.exit_code == 0, result.stderr
    out = clip.with_name("clip.tiny-llava.tokpipe.safetensors")
    assert result.stdout.splitlines()[-1].startswith(str(out))
    with open_cache(out) as found:
        assert found.column("video.tokens").shape[1] == 48
    # Of a folder what is projected already is no input.
    again = run("project", clip.parent, "--to", llava, "--json")
    items = [e for e in events(again) if e["event"] == "item"]
    assert [(e["status"], e["output"]) for e in items] == [("skipped", str(out))]
    assert items[0]["tokens"]["total"] == 40
    twice = run("project", out, "--to", llava, "-o", clip.with_name("x.tokpipe.safetensors"))
    assert twice.exit_code == 1 and "post_projector" in two_lines(twice)[0]


def test_what_is_asked_wrongly(run: Any, two_lines: Any, clip: Path, llava: Path) -> None:
    missing = run("project", clip.with_name("no.tokpipe.safetensors"), "--to", llava)
    assert missing.exit_code == 2 and "no such file" in two_lines(missing)[0]
    made = run("project", clip, "--to", llava, "--precision", "half")
    assert made.exit_code == 2 and "unknown precision" in two_lines(made)[0]
    assert run("project", clip).exit_code == 2
