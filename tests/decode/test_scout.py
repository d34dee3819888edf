"""The packets alone tell which frames a sampler will get from the decoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tokpipe.decode import open_media, probe
from tokpipe.decode._picture import DecodedPicture
from tokpipe.decode.scout import frames_of, scan_packets
from tokpipe.errors import MediaNotFound
from tokpipe.protocols import Picture
from tokpipe.sample.fps import Fps
from tokpipe.tensors import AudioChunk
from tokpipe.testing.odd_media import ODD_FILES, OddFile, odd_file

WHOLE = [
    row
    for row in ODD_FILES
    if row.error is None and row.name not in {"truncated.mp4", "damaged.mp4"}
]
#: Short real files, each with something of its own: VFR, reordering, edit lists, no duration.
REAL = [
    "androidx__sample.avi",
    "androidx__sample_sef_super_slow_motion.mp4",
    "androidx__sample_with_srt.mkv",
    "decord__video_90.mov",
    "energon__sync_test.mkv",
    "gpac__count_english.mp3",
    "gpac__count_video.mp4",
    "imageio__newtonscradle.gif",
    "moviepy__big_buck_bunny_0_30.webm",
    "moviepy__no_duration.webm",
    "opencast__camera.mpg",
    "opencast__slidechanges.mov",
    "torchcodec__av1_video.mkv",
    "torchcodec__h265_video.mp4",
    "torchcodec__nasa_13013.mp4",
    "torchcodec__var_fps_video.mp4",
]


def check(path: Path, fps: float) -> None:
    source = open_media(path)
    shown: list[DecodedPicture] = []

    def events() -> Iterator[Picture | AudioChunk]:
        for item in source.read():
            if isinstance(item, DecodedPicture):
                shown.append(item)
            yield item

    sampled = [x for x in Fps(fps).sample(events()) if isinstance(x, DecodedPicture)]
    scan = scan_packets(path, source.info)
    assert scan.failures == 0
    assert scan.pts.tolist() == [picture.pts for picture in shown]
    assert scan.duration.tolist() == [picture.duration for picture in shown]
    chosen = list(Fps(fps).sample(frames_of(scan)))
    assert [frame.pts for frame in chosen] == [picture.pts for picture in sampled]
    assert [frame.index for frame in chosen] == [picture.index for picture in sampled]
    if shown:
        assert scan.video_end == pytest.approx(source.report.video_end)
    if source.info.audio is not None:
        # The last packet of a codec with a fixed frame is padded.
        assert scan.audio_end == pytest.approx(source.report.audio_end, abs=0.07)


@pytest.mark.parametrize("row", WHOLE, ids=lambda row: row.name)
def test_scan_of_an_odd_file_samples_like_the_decoder(tmp_path: Path, row: OddFile) -> None:
    path = tmp_path / row.name
    row.make(path)
    check(path, 2.0)
    assert len(scan_packets(path, probe(path))) == row.frames


@pytest.mark.parametrize("name", REAL)
def test_scan_of_a_real_file_samples_like_the_decoder(media: Path, name: str) -> None:
    if not (media / name).exists():
        pytest.skip(f"no {name}")
    check(media / name, 3.0)


def test_scan_holds_what_the_packets_say(tmp_path: Path) -> None:
    path = tmp_path / "edit_list.mp4"
    odd_file("edit_list.mp4").make(path)
    scan = scan_packets(path, probe(path))
    assert len(scan) == 122
    assert scan.pts.dtype == scan.duration.dtype == np.float64
    assert scan.key.dtype == np.bool_
    assert scan.size.min() > 0
    assert scan.size.sum() < path.stat().st_size
    # Key pictures every 15 frames, the edit begins at the 12th.
    assert np.flatnonzero(scan.key).tolist()[:3] == [4, 19, 34]


def test_scan_of_a_damaged_file_goes_to_its_end(tmp_path: Path) -> None:
    for name, frames in (("damaged.mp4", 90), ("truncated.mp4", 36)):
        path = tmp_path / name
        odd_file(name).make(path)
        assert len(scan_packets(path, probe(path))) == frames


def test_scan_without_video_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "audio_only.mp4"
    odd_file("audio_only.mp4").make(path)
    scan = scan_packets(path, probe(path))
    assert len(scan) == len(scan.key) == len(scan.size) == 0
    assert list(frames_of(scan)) == []
    assert scan.video_end == 0.0
    assert scan.audio_end == pytest.approx(2.0, abs=0.07)


def test_scan_of_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no_audio.mp4"
    odd_file("no_audio.mp4").make(path)
    info = probe(path)
    path.unlink()
    with pytest.raises(MediaNotFound):
        scan_packets(path, info)
