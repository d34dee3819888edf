"""torchcodec gives the reference's pictures, times and sound on plain files, and refuses others."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tokpipe.decode import open_source, probe
from tokpipe.decode._backends import backend_key
from tokpipe.decode._plain import look
from tokpipe.decode.torchcodec import area, area_by_matrices, versions
from tokpipe.errors import DecodeError, MissingExtra, ResourceError, UnsupportedMedia
from tokpipe.sample.fps import Fps
from tokpipe.tensors import AudioChunk
from tokpipe.testing.barcode import read_frame_number
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media
from tokpipe.testing.odd_media import ODD_FILES, odd_file

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


#: Rows of ``ODD_FILES`` that torchcodec reads as the reference does; the other videos are refused.
SAME = {
    "plain ü 頁.mp4", "rotated_90.mp4", "rotated_180.mp4", "rotated_270.mp4", "vfr.mp4",
    "edit_list.mp4", "late_video.mp4", "late_audio_gap.mp4", "pixel_aspect.mp4", "one_frame.mp4",
    "no_audio.mp4", "odd_size_444.mp4", "several_tracks.mkv", "no_duration.mkv", "bad_header.mp4",
    "black.mp4",
}  # fmt: skip
REFUSED = {
    "hdr_pq.mp4": "HDR", "hdr_hlg.mp4": "HDR", "interlaced.mp4": "fields",
    "truncated.mp4": "cut off", "size_change.ts": "mpegts", "start_time.ts": "mpegts",
    "timestamp_reset.ts": "mpegts", "bad_header.avi": "avi", "animation.gif": "gif",
}  # fmt: skip
NO_VIDEO = {"audio_only.mp4", "cover_art.m4a"}
SAMPLES = ["action", "edit_list", "late_audio", "lecture", "rotated", "screen", "vfr"]
#: Most mean difference in grey levels of a picture at the size of a grid: of a few real-looking
#: files, and of tiny pictures of saturated shapes, whose colours share pixels.
FAR, FAR_TINY = 1.6, 3.0


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


def same(
    path: Path, size: tuple[int, int] = (168, 84), every: int = 7, far: float = FAR_TINY
) -> list[float]:
    """Check a file against the reference; returns the mean difference of each picture."""
    reference, fast = read(path, "pyav", size, every), read(path, "torchcodec", size, every)
    assert fast.pictures == reference.pictures
    assert len(fast.sound) == len(reference.sound)
    for (pts, index, samples), (want_pts, want_index, want) in zip(
        fast.sound, reference.sound, strict=True
    ):
        assert (pts, index) == (want_pts, want_index)
        assert np.array_equal(samples, want)
    assert fast.report == reference.report
    gaps = []
    for got, want_pixels in zip(fast.pixels, reference.pixels, strict=True):
        assert got.dtype == np.uint8 and got.shape == want_pixels.shape
        gaps.append(float(np.abs(got.astype(float) - want_pixels).mean()))
    assert max(gaps, default=0) < far
    return gaps


def test_every_odd_video_is_either_the_same_or_refused() -> None:
    videos = {row.name for row in ODD_FILES if row.error is None} - NO_VIDEO
    assert videos == SAME | set(REFUSED) | {"damaged.mp4"}


@pytest.mark.parametrize("name", sorted(SAME))
def test_plain_files_are_the_reference_picture_for_picture(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    odd_file(name).make(path)
    same(path)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_the_reference_picture_for_picture(name: str, samples: Path) -> None:
    same(samples / f"{name}.mp4", (448, 252), 37, FAR)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_come_out_wrong_is_refused_before_any_picture(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    odd_file(name).make(path)
    items = open_source(path, probe(path), decoder="torchcodec").read()
    with pytest.raises(UnsupportedMedia, match=REFUSED[name]) as caught:
        next(items)
    assert "--decoder pyav" in (caught.value.hint or "")


@pytest.mark.parametrize("name", sorted(NO_VIDEO))
def test_files_without_video_are_read_for_their_sound(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    odd_file(name).make(path)
    assert same(path) == []


def size_changes(path: Path) -> None:
    """An mkv whose picture size changes in the middle, from two of one stream's packets."""
    import av

    parts = []
    for i, size in enumerate(((192, 108), (320, 180))):
        part = path.with_name(f"part{i}.ts")
        write_media(part, VideoTrack(size=size, frames=45, start=Fraction(i * 3, 2)))
        parts.append(part)
    with av.open(str(path), "w") as output:
        stream: Any = None
        for i, part in enumerate(parts):
            with av.open(str(part)) as box:
                if stream is None:
                    stream = output.add_stream_from_template(box.streams.video[0])
                for packet in box.demux(video=0):
                    if packet.pts is not None and packet.dts is not None:
                        shift = round(Fraction(i * 3, 2) / packet.time_base)
                        shift -= box.streams.video[0].start_time or 0
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = stream
                        output.mux(packet)


def test_a_size_that_changes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "size.mkv"
    size_changes(path)
    with pytest.raises(UnsupportedMedia, match="picture size changes"):
        list(open_source(path, probe(path), decoder="torchcodec").read())


def test_a_start_that_is_not_zero_is_the_references(tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    start = Fraction(3, 2)
    write_media(path, VideoTrack(start=start), AudioTrack(start=start + Fraction(1, 4)))
    assert probe(path).zero == pytest.approx(1.5, abs=0.01)
    same(path)


def test_pictures_may_be_asked_for_in_any_order_and_after_the_end(tmp_path: Path) -> None:
    path = tmp_path / "numbered.mp4"
    odd_file("edit_list.mp4").make(path)
    pictures = list(
        open_source(path, probe(path, audio_stream="none"), decoder="torchcodec").read()
    )
    first: Any = odd_file("edit_list.mp4").first_number
    order = list(range(len(pictures)))
    random.Random(0).shuffle(order)
    for i in order[:40]:
        picture: Any = pictures[i]
        assert read_frame_number(picture.rgb(192, 108)) == first + i


def test_sampled_pictures_are_the_references(samples: Path) -> None:
    path = samples / "vfr.mp4"
    info = probe(path, audio_stream="none")
    chosen = {
        decoder: [
            (p.pts, p.index)
            for p in Fps(2.0).sample(open_source(path, info, decoder=decoder).read())
        ]
        for decoder in ("pyav", "torchcodec")
    }
    assert chosen["pyav"] == chosen["torchcodec"]


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


def test_strict_is_refused(samples: Path) -> None:
    path = samples / "vfr.mp4"
    with pytest.raises(ResourceError, match="--strict"):
        open_source(path, probe(path), decoder="torchcodec", strict=True)


def test_unknown_decoders_are_named(samples: Path) -> None:
    path = samples / "vfr.mp4"
    with pytest.raises(ResourceError, match="vlc") as caught:
        open_source(path, probe(path), decoder="vlc")
    assert "pyav or torchcodec" in (caught.value.hint or "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_gpu_that_is_not_there_is_a_named_error(samples: Path) -> None:
    path = samples / "vfr.mp4"
    with pytest.raises(ResourceError, match="cuda"):
        list(open_source(path, probe(path), decoder="torchcodec", device="cuda").read())


@pytest.mark.parametrize("name", ["rotated", "edit_list"])
def test_what_is_not_checked_on_a_gpu_is_refused_there(name: str, samples: Path) -> None:
    path = samples / f"{name}.mp4"
    look(path, probe(path), "cpu")
    with pytest.raises(UnsupportedMedia, match="not checked on a GPU"):
        look(path, probe(path), "cuda")


def test_the_key_of_pictures_names_reader_and_versions() -> None:
    assert backend_key()["backend"] == "pyav"
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
