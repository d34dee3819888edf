"""``--encoder`` and ``tokpipe encode`` as people call them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tokpipe.cache.reader import open_cache

tf = pytest.importorskip("transformers", minversion="5.18")
pytest.importorskip("torchvision")


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 of 5 x 5 patches, width 32, saved as any model is."""
    folder = tmp_path_factory.mktemp("dino")
    config = tf.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=40, patch_size=8
    )
    tf.Dinov2Model(config).save_pretrained(folder)
    tf.BitImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}
    ).save_pretrained(folder)
    return folder


def test_compress_with_an_encoder(run: Any, events: Any, clip: Path, dino: Path) -> None:
    result = run("compress", clip, "-b", 40, "-e", f"hf_vision:{dino}", "--json")
    assert result.exit_code == 0, result.stderr
    item, summary = events(result)[-2:]
    assert item["tokens"]["total"] == 40
    assert item["encoder"] == {"video": "hf-vision", "audio": "mel"}
    assert 0 < item["frames"]["encoded"] <= item["frames"]["sampled"]
    assert item["seconds"]["encode"] > 0
    assert summary["done"] == 1
    with open_cache(item["output"]) as cache:
        assert cache.domain == "feature"
        assert cache.column("video.tokens").shape[1] == 32
    again = run("compress", clip, "-b", 40, "-e", f"hf_vision:{dino}", "--json")
    assert events(again)[-2]["status"] == "skipped"


def test_plan_counts_the_towers_tokens(run: Any, events: Any, clip: Path, dino: Path) -> None:
    result = run("plan", clip, "-b", 40, "-e", f"hf_vision:{dino}", "--json")
    assert result.exit_code == 0, result.stderr
    found = events(result)[0]
    assert found["tokens"]["total"] == 40
    assert "hf-vision" in [step["use"] for step in found["steps"]]


def test_encode_a_cache(run: Any, events: Any, clip: Path, dino: Path) -> None:
    run("compress", clip, "-b", 60, "--layout", "frames")
    cache = clip.with_name("clip.tokpipe.safetensors")
    result = run("encode", cache, "-e", f"hf_vision:{dino}", "--context", "kept")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith(
        str(clip.with_name("clip.hf-vision.tokpipe.safetensors"))
    )
    seen = run("inspect", clip.with_name("clip.hf-vision.tokpipe.safetensors"), "--json")
    assert events(seen)[0]["streams"]["video"]["dim"] == 32
    again = run("encode", cache, "-e", f"hf_vision:{dino}", "--context", "kept", "--json")
    assert [e["status"] for e in events(again) if e["event"] == "item"] == ["skipped"]


def test_the_budget_is_for_what_is_encoded(run: Any, clip: Path, dino: Path) -> None:
    run("compress", clip, "-b", "video=50,audio=10")
    cache = clip.with_name("clip.tokpipe.safetensors")
    result = run("encode", cache, "-e", f"hf_vision:{dino}", "-b", 4)
    assert result.exit_code == 0, result.stderr
    assert "-> 14 tokens (4 video, 10 audio" in result.stdout
    said = "the budget of 4 is for what is encoded (video); 10 audio tokens stay as they were"
    assert said in " ".join(result.stderr.split())


def test_outputs_mirror_the_tree(run: Any, events: Any, clip: Path, dino: Path) -> None:
    folder = clip.parent
    for name in ("a", "b"):
        (folder / name).mkdir()
        out = folder / name / "x.tokpipe.safetensors"
        run("compress", clip, "-b", 60, "--layout", "frames", "-o", out)
    result = run("encode", folder / "a", folder / "b", "-e", f"hf_vision:{dino}", "-o",
                 folder / "out", "--json")  # fmt: skip
    made = [e["output"] for e in events(result) if e["event"] == "item"]
    assert len(set(made)) == 2
    assert all(Path(name).is_file() for name in made)
    missing = run("encode", folder / "no.tokpipe.safetensors", "-e", f"hf_vision:{dino}")
    assert missing.exit_code == 2
    wrong = run("encode", clip, "-e", f"hf_vision:{dino}", "--json")
    assert [e["status"] for e in events(wrong) if e["event"] == "item"] == ["failed"]
    assert "compress --encoder" in wrong.stderr


@pytest.mark.parametrize(
    ("words", "code", "error", "hint"),
    [
        ((), 2, "no --encoder given", "open_clip"),
        (("-e", "open_clip:"), 2, "names no model", "FAMILY:NAME"),
        (("-e", "clop:ViT"), 2, "unknown encoder `clop:ViT`", "families"),
        (("-e", "open-clap:ViT"), 2, "unknown encoder", "did you mean `open-clip`"),
        (("-e", "hf_vision:./nowhere"), 3, "nowhere", ""),
        (("-e", "hf_vision:x", "--weights", "a", "--weights", "b"), 2, "--weights", "order"),
        (("-e", "hf_audio:x", "--fit", "pad"), 2, "no encoder given has a fit", "leave out"),
    ],
)
def test_errors_are_two_lines(
    run: Any, two_lines: Any, clip: Path, words: tuple[str, ...], code: int, error: str, hint: str
) -> None:
    run("compress", clip, "-b", 60)
    result = run("encode", clip.with_name("clip.tokpipe.safetensors"), *words)
    assert result.exit_code == code, result.stderr
    said = two_lines(result)
    assert error in said[0]
    assert hint in said[1]


def test_help_shows_the_encoder_options(run: Any) -> None:
    text = re.sub(r"\s+", " ", run("compress", "--help").stdout)
    for option in ("--encoder", "--weights", "--fit", "--query", "--precision", "--context"):
        assert option in text


def test_encoders_are_listed(run: Any, events: Any) -> None:
    text = run("ops", "encoders").stdout
    assert "open_clip:NAME" in text
    assert "siglip2-so400m-384" in text
    kinds = [e["event"] for e in events(run("ops", "encoders", "--json"))]
    assert kinds.count("family") >= 4
    assert kinds.count("card") >= 10


def test_cards_are_complete(run: Any) -> None:
    from tokpipe.encoder_choice import card_names, encoder_step, read_card
    from tokpipe.recipe import build

    assert len(card_names()) >= 10
    for name in card_names():
        found = read_card(name)
        assert {"use", "about", "licence", "params"} <= found.keys()
        assert build(encoder_step(name)).domain == "feature"
