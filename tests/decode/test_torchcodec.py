"""What is torchcodec's own: damage, GPUs, resizing; the rest is in ``test_decoders``."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tokpipe.decode import open_source, probe
from tokpipe.decode._backends import backend_key
from tokpipe.decode._plain import look
from tokpipe.decode.torchcodec import CPU, GPU, area, area_by_matrices, versions
from tokpipe.errors import DecodeError, MissingExtra, ResourceError, UnsupportedMedia
from tokpipe.tensors import AudioChunk
from tokpipe.testing.media import VideoTrack, write_media
from tokpipe.testing.odd_media import odd_file

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


#: Most mean difference in grey levels of a picture at the size of a grid.
FAR = 1.6


@dataclass
class Read:
    """Everything a source delivers; pixels only of some pictures."""

    pictures: list[tuple[float, float, int, bool, bool]] = field(default_factory=list)
    pixels: list[NDArray[np.uint8]] = field(default_factory=list)
    sound: list[tuple[float, int, NDArray[np.float32]]] = field(default_factory=list)
    report: Any = None


def read(
    path: Path, decoder: str, size: tuple[int, int] = (168, 84), every: int = 7, **choice: Any
) -> Read:
    source = open_source(path, probe(path), decoder=decoder, **choice)
    out = Read()
    for item in source.read():
        if isinstance(item, AudioChunk):
            out.sound.append((item.pts, item.index, item.samples[0].numpy()))
            continue
        if len(out.pictures) % every == 0:
            out.pixels.append(item.rgb(*size))
        corrupt = getattr(item, "corrupt")  # noqa: B009 - samplers look at it, Picture lacks it
        facts = (item.pts, item.duration, item.index, item.usable, corrupt)
        out.pictures.append(facts)
    out.report = source.report
    return out


@pytest.mark.parametrize("seed", range(12))
def test_damage_that_the_reference_tells_of_is_never_passed_over(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "hit.mp4"
    write_media(path, VideoTrack(frames=45))
    clean = read(path, "torchcodec", (192, 108), 1)
    data = bytearray(path.read_bytes())
    draw = random.Random(seed)
    begin = data.index(b"mdat") + 8
    for _ in range(1 + seed % 3):
        at = draw.randrange(begin, begin + len(data) * 8 // 10)
        data[at : at + 16] = draw.randbytes(16)
    path.write_bytes(data)
    told = [not usable for _, _, _, usable, _ in read(path, "pyav").pictures]
    try:
        hit = read(path, "torchcodec", (192, 108), 1)
    except (UnsupportedMedia, DecodeError) as error:
        refused = error.hint or ""
        assert "pyav" in refused
        return
    assert hit.pictures == clean.pictures
    assert not any(told)


def test_damage_found_while_decoding_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "damaged.mp4"
    odd_file("damaged.mp4").make(path)
    with pytest.raises((DecodeError, UnsupportedMedia)) as caught:
        read(path, "torchcodec", every=1)
    assert "--decoder pyav" in (caught.value.hint or "")


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
    gap = np.abs(area(picture, *size).astype(int) - area_by_matrices(picture, *size))
    assert gap.mean() < 0.1
    assert gap.max() <= 3


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["action", "lecture", "screen", "late_audio", "vfr"])
def test_gpu_pictures_are_the_references(name: str, samples: Path) -> None:
    path = samples / f"{name}.mp4"
    reference = read(path, "pyav", (448, 252), 37)
    fast = read(path, "torchcodec", (448, 252), 37, device="cuda")
    assert fast.pictures == reference.pictures
    for got, want in zip(fast.pixels, reference.pixels, strict=True):
        assert float(np.abs(got.astype(float) - want).mean()) < FAR
