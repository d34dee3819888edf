"""What is torchcodec's own: GPUs and resizing; the rest is in ``test_decoders``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokpipe.decode import open_source, probe
from tokpipe.decode._backends import backend_key
from tokpipe.decode._plain import look
from tokpipe.decode.torchcodec import CPU, GPU, resized, resized_by_matrices, versions
from tokpipe.errors import MissingExtra, ResourceError, UnsupportedMedia
from tokpipe.testing.media import VideoTrack, write_media

pytest.importorskip("torchcodec")


@pytest.fixture(scope="module", autouse=True)
def ffmpeg(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where torchcodec finds no FFmpeg."""
    path = tmp_path_factory.mktemp("probe") / "one.mp4"
    write_media(path, VideoTrack(frames=1))
    try:
        list(open_source(path, probe(path), decoder="torchcodec").read())
    except MissingExtra as error:
        pytest.skip(f"{error.message}; {error.hint}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_gpu_that_is_not_there_is_a_named_error(samples: Path) -> None:
    path = samples / "vfr.mp4"
    with pytest.raises(ResourceError, match="cuda"):
        list(open_source(path, probe(path), decoder="torchcodec", device="cuda").read())


@pytest.mark.parametrize("name", ["rotated", "edit_list"])
def test_what_is_not_checked_on_a_gpu_is_refused_there(name: str, samples: Path) -> None:
    path = samples / f"{name}.mp4"
    look(path, probe(path), CPU)
    with pytest.raises(UnsupportedMedia, match="not checked on a GPU"):
        look(path, probe(path), GPU)


def test_the_key_of_pictures_names_the_kind_of_device() -> None:
    key = backend_key("torchcodec", "auto")
    assert key["backend"] == "torchcodec"
    assert key["decode_device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert versions().items() <= key.items()
    assert versions()["torchcodec"]


@pytest.mark.parametrize("size", [(448, 252), (140, 84), (640, 360), (700, 400), (28, 28)])
def test_matrices_resize_as_swscale_does(size: tuple[int, int], samples: Path) -> None:
    from torchcodec.decoders import VideoDecoder  # type: ignore[attr-defined]

    decoder: Any = VideoDecoder(samples / "screen.mp4", dimension_order="NHWC")
    picture = decoder.get_frame_at(50).data
    gap = np.abs(resized(picture, *size).astype(int) - resized_by_matrices(picture, *size))
    assert gap.mean() < 0.3
    assert gap.max() <= 3
