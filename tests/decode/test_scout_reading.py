"""Reading in part gives the very pictures of a full decode, with any number of threads."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokpipe.decode import _groups, _wanted, open_media, open_source, probe
from tokpipe.decode._groups import Unsafe
from tokpipe.decode._picture import DecodedPicture
from tokpipe.decode.scout import frames_of, scan_packets
from tokpipe.testing.damage import damage_frames, join_files
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media
from tokpipe.testing.odd_media import ODD_FILES, OddFile

RATE = Fraction(12)
EFFORTS = ("fast", "balanced", "thorough")
#: Codec and suffix, what the encoder is told, and whether a group can be entered on its own.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "h264": ("libx264", "mp4", {"b_frames": 3}),
    "h264-ts": ("libx264", "ts", {"b_frames": 2}),
    "h264-mkv": ("libx264", "mkv", {"b_frames": 0}),
    "hevc": ("libx265", "mp4", {"b_frames": 3}),
    "vp8": ("libvpx", "mkv", {"options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}),
    "vp9": ("libvpx-vp9", "mkv", {"options": {"cpu-used": "8", "lag-in-frames": "16"}}),
    "av1": ("libsvtav1", "mkv", {"options": {"preset": "12"}}),
    "mpeg1": ("mpeg1video", "mkv", {"fps": Fraction(24), "time_base": Fraction(1, 24)}),
    "mpeg2": ("mpeg2video", "mkv", {"fps": Fraction(24), "time_base": Fraction(1, 24)}),
    "mpeg4": ("mpeg4", "mp4", {"time_base": Fraction(1, 12)}),
    "mjpeg": ("mjpeg", "mov", {"pix_fmt": "yuvj420p"}),
}
#: Codecs of which every picture stands on its own; of which groups lean on the one before.
ALONE, OPEN = {"mjpeg"}, {"hevc", "mpeg2"}


@pytest.fixture(autouse=True)
def _small_files_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clips here are small, and read in part all the same."""
    monkeypatch.setattr(_wanted, "SMALL", 0.0)


def write_clip(path: Path, kind: str) -> Path:
    codec, _, more = KINDS[kind]
    rate = more.get("fps", RATE)
    track: dict[str, Any] = {
        "fps": rate, "frames": int(18 * rate), "gop": 40, "codec": codec, **more
    }  # fmt: skip
    write_media(path, VideoTrack(**track), AudioTrack(duration=Fraction(18)))
    return path


@pytest.fixture(scope="module", params=sorted(KINDS))
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    codec, suffix, _ = KINDS[request.param]
    try:
        path = tmp_path_factory.mktemp("clips") / f"{request.param}.{suffix}"
        return write_clip(path, request.param)
    except ValueError as error:
        pytest.skip(f"this FFmpeg has no {codec}: {error}")


def efforts(clip: Path) -> tuple[str, ...]:
    """Those that read this clip in part."""
    return EFFORTS[:2] if clip.stem in OPEN else EFFORTS


Seen = list[tuple[int, float, float, bytes]]


def look(picture: DecodedPicture) -> tuple[int, float, float, bytes]:
    pixels = picture.rgb(picture.frame.width, picture.frame.height)
    return picture.index, picture.pts, picture.duration, pixels.tobytes()


def whole(path: Path) -> Seen:
    return [look(x) for x in open_media(path).read() if isinstance(x, DecodedPicture)]


def part(path: Path, effort: str, threads: int = 1) -> tuple[Seen, list[bool], int]:
    """Pictures, their marks, and how many were decoded."""
    source = open_source(path, probe(path), effort=effort, fps=2.0, threads=threads)
    found = [x for x in source.read() if isinstance(x, DecodedPicture)]
    return [look(x) for x in found], [x.marked for x in found], source.report.frames


def test_pictures_are_those_of_a_full_decode(clip: Path) -> None:
    every = whole(clip)
    for effort in efforts(clip):
        seen, _, decoded = part(clip, effort)
        assert len(seen) >= 3
        assert set(seen) <= set(every)
        assert seen == sorted(seen)
        if effort == "fast":
            assert decoded < len(every) / 4
        if effort == "thorough" and clip.stem not in ALONE:
            assert decoded == len(every)


def test_threads_change_nothing(clip: Path) -> None:
    for effort in efforts(clip):
        assert part(clip, effort, 1) == part(clip, effort, 3)


def test_packets_tell_which_pictures(clip: Path) -> None:
    """The plan counts on it."""
    for effort in ("fast", "balanced"):
        seen, marks, _ = part(clip, effort)
        light = list(frames_of(scan_packets(clip, probe(clip), effort, 2.0)))
        assert [(f.index, f.pts, f.duration) for f in light] == [s[:3] for s in seen]
        assert [f.marked for f in light] == marks


def test_sound_is_that_of_a_full_read(clip: Path) -> None:
    info = probe(clip)
    one, two = (
        np.concatenate([c.samples[0].numpy() for c in source.read() if hasattr(c, "samples")])
        for source in (open_media(clip), open_source(clip, info, effort="fast", fps=2.0, threads=3))
    )
    assert np.array_equal(one, two)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_long_group_is_cut_and_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    path = tmp_path / "long.mp4"
    write_media(path, VideoTrack(fps=RATE, frames=240, gop=1000, b_frames=3))
    every = whole(path)
    monkeypatch.setattr(_groups, "LONGEST", 30)
    for effort in EFFORTS:
        seen, _, decoded = part(path, effort, threads)
        assert set(seen) <= set(every)
        assert seen == sorted(seen)
        assert decoded <= len(every)
    assert len(seen) >= 40
    light = list(frames_of(scan_packets(path, probe(path), "balanced", 2.0)))
    assert [f.index for f in light] == [s[0] for s in part(path, "balanced", threads)[0]]


def test_pictures_on_their_own_are_chosen_by_ticks(tmp_path: Path) -> None:
    """As many as a full read gives the sampler, and no other is decoded."""
    path = write_clip(tmp_path / "clip.mov", "mjpeg")
    seen, _, decoded = part(path, "balanced")
    assert [s[0] for s in seen] == list(range(0, 216, 6))
    assert decoded == 36


READABLE = [row for row in ODD_FILES if row.error is None and row.frames != 0]


@pytest.mark.parametrize("row", READABLE, ids=lambda row: row.name)
def test_odd_files_are_read_rightly_or_left(
    row: OddFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_wanted, "SHORT", 0.0)
    path = tmp_path / row.name
    row.make(path)
    every = set(whole(path))
    for effort in EFFORTS:
        found: list[Any] = []
        for threads in (1, 3):
            try:
                found.append(part(path, effort, threads))
            except Unsafe as why:
                found.append(str(why))
        assert found[0] == found[1]
        if not isinstance(found[0], str):
            assert set(found[0][0]) <= every


def joined(path: Path) -> None:
    parts = [path.with_name("first.ts"), path.with_name("second.ts")]
    for place in parts:
        write_media(place, VideoTrack(fps=RATE, frames=120, gop=24))
    join_files(path, parts)


def damaged(path: Path) -> None:
    write_media(path, VideoTrack(fps=RATE, frames=240, gop=24))
    damage_frames(path, [96, 97, 98, 120], count=60)


def hidden(path: Path) -> None:
    write_media(path, VideoTrack(fps=RATE, frames=240, gop=24, start=Fraction(-1)))


def woven(path: Path) -> None:
    write_media(path, VideoTrack(fps=RATE, frames=240, gop=24, interlaced=True))


def ungrouped(path: Path) -> None:
    write_media(path, VideoTrack(fps=RATE, frames=240, codec="ffv1"))


UNSAFE = {
    "joined.ts": joined, "damaged.mp4": damaged, "hidden.mp4": hidden, "woven.mp4": woven,
    "ungrouped.mkv": ungrouped,
}  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE)
def test_what_cannot_be_read_in_part_is_left(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_wanted, "SHORT", 0.0)
    path = tmp_path / name
    UNSAFE[name](path)
    with pytest.raises(Unsafe):
        part(path, "balanced")


def test_strict_and_short_files_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "short.mp4"
    write_media(path, VideoTrack(frames=60))
    source = open_source(path, probe(path), effort="balanced", fps=2.0)
    assert source.whole == "too short to save anything"
    assert len([x for x in source.read() if isinstance(x, DecodedPicture)]) == 60
    strict = open_source(path, probe(path), effort="fast", fps=2.0, strict=True)
    assert strict.whole is not None and strict.strict
