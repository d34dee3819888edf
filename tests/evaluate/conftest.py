"""A film of four states, storyboards of it, and a tiny tower."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tokpipe.spec import StepSpec
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media

SIZE = (448, 252)
#: Seconds at which a state of the film begins; it ends at 10 s.
EDGES = (0.0, 2.0, 5.0, 9.0)


def state_picture(number: int) -> NDArray[np.uint8]:
    """States 0 and 2 are pages of text, 1 and 3 are clouds."""
    rng = np.random.default_rng(number)
    if number % 2:
        small = rng.integers(30, 225, (7, 12, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(small).resize(SIZE, Image.Resampling.BICUBIC))
    image = Image.new("RGB", SIZE, ("white", "", "lightyellow")[number])
    draw = ImageDraw.Draw(image)
    for line in range(13):
        words = " ".join("".join(chr(97 + c) for c in rng.integers(0, 26, 5)) for _ in range(11))
        draw.text((10, 8 + 18 * line), words, fill="black", font=ImageFont.load_default())
    return np.asarray(image)


def state_at(time: float) -> int:
    return max(0, sum(time >= edge - 1e-6 for edge in EDGES) - 1)


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds, four states, with sound."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    pictures = [state_picture(n) for n in range(4)]
    track = VideoTrack(
        size=SIZE, fps=Fraction(10), frames=100, gop=50,
        draw=lambda number, time: pictures[state_at(time)],
    )  # fmt: skip
    write_media(path, track, AudioTrack(duration=Fraction(10)))
    return path


Board = Callable[..., Path]


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """Write a storyboard of pictures at times."""

    def write(*times: float, name: str = "board", size: tuple[int, int] = SIZE) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        lines = []
        for number, time in enumerate(times):
            picture = Image.fromarray(state_picture(state_at(time)))
            picture.resize(size, Image.Resampling.BOX).save(folder / f"{number}.png")
            lines.append(json.dumps({"pts": time, "file": f"{number}.png"}))
        (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return write


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> StepSpec:
    """A CLIP of random weights, 4 x 4 patches."""
    library: Any = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("tower")
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16,
                       "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2,
                     "layers": 1},
    }  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    torch.manual_seed(1)
    model = library.create_model(f"local-dir:{folder}", load_weights=False).eval()
    path = folder / "weights.safetensors"
    save = importlib.import_module("safetensors.torch").save_file
    save({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return StepSpec(use="open-clip", params={"model": f"local-dir:{folder}", "weights": str(path)})
