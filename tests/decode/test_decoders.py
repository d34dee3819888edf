"""Every reader gives the same pictures, times and sound of plain files, and refuses the others."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tokpipe.decode import open_source, probe
from tokpipe.decode._backends import DECODERS, backend_key
from tokpipe.errors import DecodeError, MissingExtra, ResourceError, UnsupportedMedia
from tokpipe.sample.fps import Fps
from tokpipe.tensors import AudioChunk
from tokpipe.testing.barcode import read_frame_number
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media
from tokpipe.testing.odd_media import ODD_FILES, OddFile, odd_file

FAST = tuple(name for name in DECODERS if name != "pyav")
READABLE = [row for row in ODD_FILES if row.error is None]
#: Why each reader refuses rows of ``ODD_FILES``; it reads the other videos as the reference does.
_BY_ALL = {
    "hdr_pq.mp4": "HDR", "hdr_hlg.mp4": "HDR", "interlaced.mp4": "fields",
    "truncated.mp4": "cut off", "size_change.ts": "mpegts", "start_time.ts": "mpegts",
    "timestamp_reset.ts": "mpegts", "bad_header.avi": "avi", "animation.gif": "gif",
    "damaged.mp4": "decode|damaged",
}  # fmt: skip
REFUSED: dict[str, dict[str, str]] = {
    "pyav": {},
    "torchcodec": _BY_ALL,
    "decord": {
        **_BY_ALL, "edit_list.mp4": "edit list", "late_video.mp4": "0.700 s to 0.000 s",
        "several_tracks.mkv": "more than one video", "no_duration.mkv": "cannot open",
        "bad_header.mp4": "SIGABRT opening",
    },
}  # fmt: skip
#: Committed media that each reads as the reference does.
SAMPLES = {
    "torchcodec": ["action", "edit_list", "late_audio", "lecture", "rotated", "screen", "vfr"],
    "decord": ["action", "late_audio", "lecture", "rotated", "screen", "vfr"],
}
#: Most mean difference in grey levels of a picture at the size of a grid: of a few real-looking
#: files, and of tiny pictures of saturated shapes, whose colours share pixels.
FAR, FAR_TINY = 1.6, 3.0


@cache
def missing(decoder: str) -> str:
    """Why a reader cannot be tested here, empty if it can."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.mp4"
        write_media(path, VideoTrack(frames=1))
        try:
            list(open_source(path, probe(path), decoder=decoder).read())
        except MissingExtra as error:
            return f"{error.message}; {error.hint}"
    return ""


@pytest.fixture(autouse=True)
def installed(request: pytest.FixtureRequest) -> None:
    """Skip where the reader under test is not there."""
    decoder = getattr(request.node, "callspec", None) and request.node.callspec.params.get(
        "decoder"
    )
    if decoder and (why := missing(decoder)):
        pytest.skip(why)


@dataclass
class Read:
    """Everything a source delivers; pixels only of some pictures."""

    pictures: list[tuple[float, float, int, bool, bool]] = field(default_factory=list)
    pixels: list[NDArray[np.uint8]] = field(default_factory=list)
    sound: list[tuple[float, int, bytes]] = field(default_factory=list)
    report: Any = None


def read(
    path: Path, decoder: str, size: tuple[int, int] = (192, 108), every: int = 1, **choice: Any
) -> Read:
    source = open_source(path, probe(path), decoder=decoder, **choice)
    out = Read()
    for item in source.read():
        if isinstance(item, AudioChunk):
            out.sound.append((item.pts, item.index, item.samples.numpy().tobytes()))
            continue
        picture: Any = item
        if len(out.pictures) % every == 0:
            out.pixels.append(picture.rgb(*size))
        facts = (picture.pts, picture.duration, picture.index, picture.usable, picture.corrupt)
        out.pictures.append(facts)
    out.report = source.report
    return out


def same(got: Read, want: Read, far: float) -> None:
    """Equal in everything, and close in the pixels."""
    assert got.pictures == want.pictures
    assert got.sound == want.sound
    assert got.report == want.report
    for one, other in zip(got.pixels, want.pixels, strict=True):
        assert one.dtype == np.uint8 and one.shape == other.shape
        assert float(np.abs(one.astype(float) - other).mean()) < far


def rows(refused: bool) -> list[Any]:
    return [
        pytest.param(decoder, row, id=f"{decoder}-{row.name}")
        for decoder in DECODERS
        for row in READABLE
        if (row.name in REFUSED[decoder]) == refused
    ]


@pytest.mark.parametrize(("decoder", "row"), rows(refused=False))
def test_plain_files_show_what_is_in_them(decoder: str, row: OddFile, tmp_path: Path) -> None:
    path = tmp_path / row.name
    row.make(path)
    seen = read(path, decoder)
    if row.frames is not None:
        assert len(seen.pictures) == row.frames
        assert [index for _, _, index, *_ in seen.pictures] == list(range(row.frames))
    if row.frames != 0:
        assert seen.pictures[0][0] == pytest.approx(row.first, abs=1e-6)
        assert seen.pictures[-1][0] == pytest.approx(row.last, abs=1e-6)
    if row.frames is not None and row.first_number is not None:
        numbers = [read_frame_number(pixels) for pixels in seen.pixels]
        assert numbers == list(range(row.first_number, row.first_number + row.frames))
    if row.audio is not None:
        assert sum(len(data) for *_, data in seen.sound) / 4 / 16000 == pytest.approx(
            row.audio[1], abs=0.2
        )
    if decoder != "pyav":
        same(seen, read(path, "pyav"), FAR_TINY)


@pytest.mark.parametrize(("decoder", "row"), rows(refused=True))
def test_what_would_come_out_wrong_is_refused(decoder: str, row: OddFile, tmp_path: Path) -> None:
    path = tmp_path / row.name
    row.make(path)
    items = open_source(path, probe(path), decoder=decoder).read()
    # Damage inside pictures may show late; all else before anything comes out.
    take = list if row.name == "damaged.mp4" else next
    with pytest.raises((UnsupportedMedia, DecodeError), match=REFUSED[decoder][row.name]) as caught:
        take(item.rgb(9, 9) if hasattr(item, "rgb") else item for item in items)
    assert "--decoder pyav" in (caught.value.hint or "")
    assert row.name in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("decoder", "name"), [(d, name) for d, names in SAMPLES.items() for name in names]
)
def test_samples_are_the_references(decoder: str, name: str, samples: Path) -> None:
    path = samples / f"{name}.mp4"
    same(read(path, decoder, (448, 252), 37), read(path, "pyav", (448, 252), 37), FAR)


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


@pytest.mark.parametrize("decoder", FAST)
def test_a_size_that_changes_is_refused(decoder: str, tmp_path: Path) -> None:
    path = tmp_path / "size.mkv"
    size_changes(path)
    with pytest.raises(UnsupportedMedia, match="picture size changes"):
        list(open_source(path, probe(path), decoder=decoder).read())


@pytest.mark.parametrize("decoder", FAST)
def test_a_container_that_starts_late_is_read_as_by_the_reference(
    decoder: str, tmp_path: Path
) -> None:
    path = tmp_path / "late.mkv"
    start = Fraction(3, 2)
    write_media(path, VideoTrack(start=start), AudioTrack(start=start + Fraction(1, 4)))
    assert probe(path).zero == pytest.approx(1.5, abs=0.01)
    same(read(path, decoder), read(path, "pyav"), FAR_TINY)


@pytest.mark.parametrize(("decoder", "asked"), [("torchcodec", 40), ("decord", 8)])
def test_pictures_may_be_asked_for_in_any_order_and_after_the_end(
    decoder: str, asked: int, tmp_path: Path
) -> None:
    path = tmp_path / "numbered.mp4"
    odd_file("no_audio.mp4").make(path)
    pictures: list[Any] = list(open_source(path, probe(path), decoder=decoder).read())
    order = list(range(len(pictures)))
    random.Random(0).shuffle(order)
    for i in [*order[:asked], len(order) - 1, 0]:
        assert read_frame_number(pictures[i].rgb(192, 108)) == i


@pytest.mark.parametrize("decoder", FAST)
def test_sampled_pictures_are_the_references(decoder: str, samples: Path) -> None:
    info = probe(samples / "vfr.mp4", audio_stream="none")
    chosen = [
        [
            (p.pts, p.index)
            for p in Fps(2.0).sample(open_source(samples / "vfr.mp4", info, decoder=name).read())
        ]
        for name in ("pyav", decoder)
    ]
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(
    ("decoder", "seed"), [*((d, n) for d in FAST for n in range(10 if d == "decord" else 12))]
)
def test_damage_that_the_reference_tells_of_is_never_passed_over(
    decoder: str, seed: int, tmp_path: Path
) -> None:
    path = tmp_path / "hit.mp4"
    write_media(path, VideoTrack(frames=45))
    clean = read(path, decoder)
    data = bytearray(path.read_bytes())
    draw = random.Random(seed)
    begin = data.index(b"mdat") + 8
    for _ in range(1 + seed % 3):
        at = draw.randrange(begin, begin + len(data) * 8 // 10)
        data[at : at + 16] = draw.randbytes(16)
    path.write_bytes(data)
    told = [not usable for _, _, _, usable, _ in read(path, "pyav").pictures]
    try:
        hit = read(path, decoder)
    except (UnsupportedMedia, DecodeError) as error:
        refused = error.hint or ""
        assert "pyav" in refused
        return
    assert hit.pictures == clean.pictures
    assert not any(told)


@pytest.mark.parametrize("decoder", FAST)
def test_strict_is_refused(decoder: str, samples: Path) -> None:
    path = samples / "vfr.mp4"
    with pytest.raises(ResourceError, match="--strict"):
        open_source(path, probe(path), decoder=decoder, strict=True)


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_key_of_pictures_names_reader_and_versions(decoder: str) -> None:
    key = backend_key(decoder)
    assert key["backend"] == decoder
    assert decoder == "pyav" or key[decoder]
    assert all(key != backend_key(other) for other in DECODERS if other != decoder)


def test_unknown_decoders_are_named(samples: Path) -> None:
    path = samples / "vfr.mp4"
    with pytest.raises(ResourceError, match="vlc") as caught:
        open_source(path, probe(path), decoder="vlc")
    assert "pyav, torchcodec, decord" in (caught.value.hint or "")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["action", "lecture", "screen", "late_audio", "vfr"])
def test_gpu_pictures_are_the_references(name: str, samples: Path) -> None:
    path = samples / f"{name}.mp4"
    reference = read(path, "pyav", (448, 252), 37)
    fast = read(path, "torchcodec", (448, 252), 37, device="cuda")
    assert fast.pictures == reference.pictures
    for got, want in zip(fast.pixels, reference.pixels, strict=True):
        assert float(np.abs(got.astype(float) - want).mean()) < FAR
