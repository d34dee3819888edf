"""Broken and hostile files: only tokpipe's own errors come out, soon, and nothing is fetched."""

from __future__ import annotations

import os
import random
import resource
import shutil
import stat
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokpipe.decode import open_media, probe
from tokpipe.decode._picture import DecodedPicture
from tokpipe.decode.scout import scan_packets
from tokpipe.errors import MediaError, MediaNotFound, TokpipeError, UnsupportedMedia
from tokpipe.tensors import AudioChunk
from tokpipe.testing.damage import find_box, find_chunk, patch_words
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media

WORDS = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1", b"\x80\0\0\0")
ROUNDS = 25
SECONDS = 5.0


def _mp4(path: Path) -> None:
    options = {"movflags": "+faststart"}
    write_media(path, _SMALL, AudioTrack(duration=Fraction(4, 5)), options=options)


def _mkv(path: Path) -> None:
    write_media(path, _SMALL, AudioTrack(duration=Fraction(4, 5), codec="flac"))


def _ts(path: Path) -> None:
    write_media(path, _SMALL, AudioTrack(duration=Fraction(4, 5), codec="mp2", sample_rate=48000))


def _avi(path: Path) -> None:
    video = VideoTrack(frames=24, size=(96, 64), gop=8, codec="mpeg4", time_base=Fraction(1, 30))
    write_media(path, video, AudioTrack(duration=Fraction(4, 5), codec="pcm_s16le"))


_SMALL = VideoTrack(frames=24, size=(96, 64), gop=8)
_MAKERS: dict[str, Callable[[Path], None]] = {"mp4": _mp4, "mkv": _mkv, "ts": _ts, "avi": _avi}


def flips(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randrange(1, 20)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def header_bytes(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randrange(1, 8)):
        data[rng.randrange(min(len(data), 4000))] = rng.randrange(256)


def cut_off(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(1, len(data)) :]


def zeroed(data: bytearray, rng: random.Random) -> None:
    begin = rng.randrange(len(data))
    end = min(len(data), begin + rng.randrange(1, 2000))
    data[begin:end] = bytes(end - begin)


def words(data: bytearray, rng: random.Random) -> None:
    """Sizes and counts of boxes, anywhere or in the index at the front."""
    for _ in range(rng.randrange(1, 4)):
        begin = rng.randrange(rng.choice((2500, len(data))) - 4)
        data[begin : begin + 4] = rng.choice(WORDS)


def doubled(data: bytearray, rng: random.Random) -> None:
    begin = rng.randrange(len(data))
    data[begin:begin] = data[begin : begin + rng.randrange(1, 3000)]


MUTATIONS = (flips, header_bytes, cut_off, zeroed, words, doubled)


def read_all(path: Path) -> tuple[int, int]:
    """Pictures and samples of everything, through probe, reader and scan."""
    source = open_media(path)
    pictures = samples = 0
    for item in source.read():
        if isinstance(item, AudioChunk):
            assert np.isfinite(item.samples.numpy()).all()
            samples += item.samples.shape[1]
        else:
            assert item.rgb(48, 32).shape == (32, 48, 3)
            pictures += 1
    scan = scan_packets(path, source.info)
    assert np.isfinite(scan.pts).all()
    return pictures, samples


def attempt(path: Path) -> tuple[int, int] | TokpipeError:
    """What :func:`read_all` gives, or the error that tokpipe raises on purpose."""
    try:
        return read_all(path)
    except TokpipeError as error:
        return error


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
@pytest.mark.parametrize("kind", _MAKERS)
def test_mutated_file_is_read_or_refused(
    tmp_path: Path, kind: str, mutation: Callable[[bytearray, random.Random], None]
) -> None:
    path = tmp_path / f"clip.{kind}"
    _MAKERS[kind](path)
    whole = path.read_bytes()
    outcomes = set()
    for seed in range(ROUNDS):
        rng = random.Random(f"{kind} {mutation.__name__} {seed}")
        data = bytearray(whole)
        mutation(data, rng)
        path.write_bytes(data)
        began = time.process_time()
        got = attempt(path)
        if isinstance(got, TokpipeError):
            assert isinstance(got, MediaError)
            assert got.hint
        else:
            assert sum(got) > 0, "an empty success"
            assert got[1] < 16000 * 36_000
            outcomes.add("read")
        assert time.process_time() - began < SECONDS, seed
    assert "read" in outcomes


def _peak() -> float:
    """Largest resident size so far in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("size", [(0x7FFF, 0x7FFF), (60000, 60000), (0xFFFF, 1)])
def test_absurd_dimensions_allocate_nothing_big(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "clip.avi"
    _avi(path)
    data = path.read_bytes()
    header, form = find_chunk(data, b"avih"), find_chunk(data, b"strf")
    width, height = size
    patch_words(
        path,
        [(header + 32, width), (header + 36, height), (form + 4, width), (form + 8, height)],
        byte_order="<",
    )
    before = _peak()
    assert not isinstance(got := attempt(path), TokpipeError) or isinstance(got, MediaError)
    assert _peak() - before < 300


def test_absurd_jpeg_dimensions_allocate_nothing_big(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    Image.new("RGB", (64, 48), (200, 30, 30)).save(path)
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"
    path.write_bytes(data)
    before = _peak()
    with pytest.raises(MediaError):
        read_all(path)
    assert _peak() - before < 300


@pytest.mark.parametrize("rate", [0, 1, 7, 0x7FFFFFFF, 0xFFFFFFFF])
def test_absurd_sample_rate_is_refused(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "sound.wav"
    write_media(path, AudioTrack(codec="pcm_s16le"))
    patch_words(path, [(path.read_bytes().index(b"fmt ") + 12, rate)], byte_order="<")
    with pytest.raises(UnsupportedMedia):
        read_all(path)


def test_absurd_packet_time_makes_no_hours_of_silence(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    _mp4(path)
    data = path.read_bytes()
    second = data.index(b"trak", find_box(data, "moov/trak")) - 4
    deltas = data.index(b"stts", second) + 4
    patch_words(path, [(deltas + 12, 0x3FFFFFFF)])
    _, samples = read_all(path)
    assert samples < 16000 * 600


@pytest.mark.parametrize(
    "name",
    [
        "with space.mp4",
        "ünï 頁 🎬.mp4",
        "-x.mp4",
        "a:b.mp4",
        "http:x.mp4",
        "f%03d.mp4",
        "q?[*]{.mp4",
    ],
)
def test_odd_names_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _mp4(tmp_path / "clip.mp4")
    shutil.copy(tmp_path / "clip.mp4", tmp_path / name)
    assert read_all(tmp_path / name)[0] == 24
    monkeypatch.chdir(tmp_path)
    assert probe(name).name == name
    assert read_all(Path(name))[0] == 24


def test_picture_with_a_pattern_in_its_name_is_one_picture(tmp_path: Path) -> None:
    """FFmpeg would take f%03d.png for a sequence and read other files."""
    for n in range(3):
        Image.new("RGB", (64, 48), (0, 80 * n, 255)).save(tmp_path / f"f{n:03d}.png")
    Image.new("RGB", (64, 48), (255, 0, 0)).save(tmp_path / "f%03d.png")
    items = list(open_media(tmp_path / "f%03d.png").read())
    assert len(items) == 1
    picture = items[0]
    assert isinstance(picture, DecodedPicture)
    assert picture.rgb(64, 48)[20, 20].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tiff"])
def test_still_picture_is_a_one_frame_video(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"still.{suffix}"
    Image.new("RGB", (64, 48), (200, 30, 30)).save(path)
    source = open_media(path)
    items = list(source.read())
    assert len(items) == 1
    picture = items[0]
    assert isinstance(picture, DecodedPicture)
    assert (picture.pts, picture.usable) == (0.0, True)
    assert np.abs(picture.rgb(64, 48)[20, 20].astype(int) - [200, 30, 30]).max() <= 4


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{url}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {path}\n",
    "dash": (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
        "<Period><AdaptationSet><Representation><BaseURL>{url}</BaseURL></Representation>"
        "</AdaptationSet></Period></MPD>\n"
    ),
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
}


@pytest.mark.parametrize("suffix", ["mp4", "m3u8", "txt", "ts"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlist_is_refused_and_opens_nothing(tmp_path: Path, kind: str, suffix: str) -> None:
    other = tmp_path / "secret.ts"
    _ts(other)
    os.utime(other, (1, 1))
    path = tmp_path / f"list.{suffix}"
    path.write_text(PLAYLISTS[kind].format(url=f"file:{other}", path=other.name), encoding="utf-8")
    with pytest.raises(UnsupportedMedia) as caught:
        open_media(path)
    assert path.name in str(caught.value)
    assert caught.value.hint
    assert "secret" not in str(caught.value)
    other.unlink()
    with pytest.raises(UnsupportedMedia) as again:
        open_media(path)
    assert str(again.value) == str(caught.value)  # the file it names makes no difference


def test_subtitles_are_refused_with_what_is_in_them(tmp_path: Path) -> None:
    path = tmp_path / "talk.srt"
    path.write_text("1\n00:00:01,000 --> 00:00:02,000\nHello\n", encoding="utf-8")
    with pytest.raises(UnsupportedMedia, match="no stream that can be decoded") as caught:
        open_media(path)
    assert caught.value.hint is not None
    assert "subtitle" in caught.value.hint


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    with pytest.raises(UnsupportedMedia, match="regular"):
        open_media(pipe)
    with pytest.raises(UnsupportedMedia, match="regular"):
        open_media("/dev/zero")
    with pytest.raises(MediaNotFound, match="folder"):
        open_media(tmp_path)


@pytest.mark.parametrize("name", ["none.mp4", "a/none.mp4", "x" * 300, "nul\0.mp4"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(MediaNotFound) as caught:
        open_media(tmp_path / name)
    assert caught.value.hint


def test_broken_link_is_missing(tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(tmp_path / "gone.mp4")
    with pytest.raises(MediaNotFound):
        open_media(tmp_path / "link.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "closed.mp4"
    _mp4(path)
    path.chmod(stat.S_IWUSR)
    with pytest.raises(MediaNotFound, match="permission"):
        open_media(path)
