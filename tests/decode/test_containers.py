"""Reordered pictures come out in order at their times, from containers with and without pts."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tokpipe.decode import open_media
from tokpipe.decode._picture import DecodedPicture
from tokpipe.decode.scout import scan_packets
from tokpipe.testing.barcode import read_frame_number
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media

TICK = Fraction(1, 30)
CLIPS: list[tuple[str, dict[str, Any]]] = [
    ("h264_b.avi", {"time_base": TICK}),
    ("mpeg4_b.avi", {"codec": "mpeg4", "time_base": TICK, "options": {"bf": "2"}}),
    ("mpeg4.avi", {"codec": "mpeg4", "time_base": TICK}),
    ("one_fps.mkv", {"fps": Fraction(1), "b_frames": 3}),
    ("one_fps.mp4", {"fps": Fraction(1), "b_frames": 3}),
    ("tenth_fps.mkv", {"fps": Fraction(1, 10), "b_frames": 3}),
    ("hevc.ts", {"codec": "libx265", "b_frames": 3}),
    ("mpeg2.mpg", {"codec": "mpeg2video", "time_base": TICK}),
    ("vp8.webm", {"codec": "libvpx"}),
    ("jpeg.mkv", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    ("h264.flv", {}),
    ("raw.h264", {}),
]


@pytest.mark.parametrize(("name", "track"), CLIPS, ids=[name for name, _ in CLIPS])
def test_pictures_come_in_order_at_their_times(
    tmp_path: Path, name: str, track: dict[str, Any]
) -> None:
    path = tmp_path / name
    write_media(path, VideoTrack(**{"frames": 40, **track}))
    source = open_media(path)
    shown = [item for item in source.read() if isinstance(item, DecodedPicture)]
    assert [read_frame_number(picture.rgb(192, 108)) for picture in shown] == list(range(40))
    rate = track.get("fps", Fraction(30))
    if name == "raw.h264":  # nothing but the order is stored, and the header's own rate
        rate = source.info.video.frame_rate if source.info.video else None
    assert [picture.pts for picture in shown] == pytest.approx(
        [float(n / rate) for n in range(40)], abs=1e-3
    )
    assert all(picture.usable for picture in shown)
    assert source.report.notes == []
    if name != "raw.h264":
        assert [picture.index for picture in shown] == list(range(40))
        scan = scan_packets(path, source.info)
        assert scan.pts.tolist() == [picture.pts for picture in shown]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mov"])
def test_last_pictures_come_whichever_track_is_first(tmp_path: Path, suffix: str) -> None:
    """The decoder's rest belongs to its own stream, also where sound is stream 0."""
    path = tmp_path / f"clip.{suffix}"
    write_media(path, AudioTrack(sample_rate=48000), VideoTrack(frames=60))
    source = open_media(path)
    shown = [item for item in source.read() if isinstance(item, DecodedPicture)]
    assert [read_frame_number(picture.rgb(192, 108)) for picture in shown] == list(range(60))


def test_container_is_closed_after_a_partial_read(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_media(path, VideoTrack(frames=30))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        items = open_media(path).read()
        next(iter(items))
        items.close()  # type: ignore[attr-defined]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
