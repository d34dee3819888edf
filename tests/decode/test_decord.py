"""Decord's process may crash, hang, swell or be left behind, and nothing breaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokpipe.decode import open_source, probe
from tokpipe.decode.decord import Child, Decoder, DecordSource
from tokpipe.errors import DecodeError, MissingExtra, ResourceError, UnsupportedMedia
from tokpipe.job import Options
from tokpipe.run import compress_file
from tokpipe.testing.barcode import read_frame_number
from tokpipe.testing.media import VideoTrack, write_media
from tokpipe.testing.odd_media import odd_file

try:
    from tokpipe.decode.decord import versions

    versions()
except MissingExtra as missing:
    pytest.skip(f"{missing.message}; {missing.hint}", allow_module_level=True)


@pytest.fixture
def source(tmp_path: Path) -> DecordSource:
    path = tmp_path / "plain.mp4"
    write_media(path, VideoTrack(frames=90))
    return DecordSource(path, probe(path))


def gone(pid: int, within: float = 10.0) -> bool:
    """The process is no more, not even as a zombie."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][0]


def test_it_is_never_loaded_here(source: DecordSource) -> None:
    code = (
        "import sys; from pathlib import Path; from tokpipe.decode import open_source, probe\n"
        "path = sys.argv[1]\n"
        "for x in open_source(path, probe(path), decoder='decord').read(): x.rgb(9, 9)\n"
        "assert 'decord' not in sys.modules\n"
        "assert 'libdecord' not in Path('/proc/self/maps').read_text()\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, str(source.path)],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_it_stands_still_between_two_pictures_and_ends_with_the_last(source: DecordSource) -> None:
    child = Child(source)
    pixels, complaints = child.picture(40, 40 / 30)
    assert read_frame_number(pixels) == 40 and complaints == 0
    deadline = time.monotonic() + 10
    while state(child.process.pid) != "T" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state(child.process.pid) == "T"
    pixels, _ = child.picture(41, 41 / 30)
    assert read_frame_number(pixels) == 41
    pid = child.process.pid
    del child
    assert gone(pid)


def test_a_crash_is_an_error_with_the_remedy_and_leaves_no_zombie(source: DecordSource) -> None:
    child = Child(source)
    child.process.kill()
    with pytest.raises(DecodeError, match=r"ended by signal SIGKILL before 0\.333 s") as caught:
        child.picture(10, 1 / 3)
    assert "--decoder pyav" in (caught.value.hint or "")
    assert child.closed and gone(child.process.pid)


def test_a_hang_is_ended_after_the_stall_timeout(source: DecordSource) -> None:
    source.stall = 1.5
    child = Child(source)
    # Somebody keeps it stopped: it never answers.
    halt = threading.Event()

    def hold() -> None:
        while not halt.wait(0.0005):
            with suppress(ProcessLookupError):
                os.kill(child.process.pid, signal.SIGSTOP)

    holder = threading.Thread(target=hold)
    holder.start()
    began = time.monotonic()
    try:
        with pytest.raises(DecodeError, match="stalled before") as caught:
            child.picture(89, 89 / 30)
    finally:
        halt.set()
        holder.join()
    assert 1.0 < time.monotonic() - began < 20
    assert "--decoder pyav" in (caught.value.hint or "")
    assert child.closed and gone(child.process.pid)


@pytest.mark.parametrize("still", [True, False])
def test_it_ends_with_this_process_whatever_either_does(still: bool, source: DecordSource) -> None:
    code = (
        "import os, signal, sys, time; from pathlib import Path\n"
        "from tokpipe.decode import probe; from tokpipe.decode.decord import Child, DecordSource\n"
        "path = Path(sys.argv[1])\n"
        "child = Child(DecordSource(path, probe(path)))\n"
        "if sys.argv[2] == 'False': time.sleep(0.3); os.kill(child.process.pid, signal.SIGCONT)\n"
        "print(child.process.pid, flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(source.path), str(still)],
                          stdout=subprocess.PIPE, text=True) as parent:  # fmt: skip
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if state(pid) == "Z":  # the init of a container may not bury it
                break
        except OSError:
            break
        time.sleep(0.02)
    else:
        pytest.fail("it is left behind")


def test_memory_stays_small_while_nothing_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    flat = np.full((720, 1280, 3), 90, dtype=np.uint8)
    write_media(path, VideoTrack(size=(1280, 720), frames=400, gop=250, draw=lambda n, t: flat))
    child = Child(DecordSource(path, probe(path)))
    most = 0
    for index in range(0, 300, 15):
        child.picture(index, index / 30)
        time.sleep(0.1)
        text = Path(f"/proc/{child.process.pid}/status").read_text(encoding="utf-8")
        most = max(most, int(text.partition("VmHWM:")[2].split()[0]) << 10)
    child.close()
    # All pictures would be 1.1 GB, as decord alone would hold after a second.
    assert most < 400 << 20


def test_memory_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "bad_header.mp4"
    odd_file("bad_header.mp4").make(path)  # it claims 2^28 pictures
    with pytest.raises(DecodeError, match="ended by signal SIGABRT opening"):
        list(open_source(path, probe(path), decoder="decord").read())


def test_files_it_would_read_into_memory_are_refused(source: DecordSource) -> None:
    info = replace(source.info, size=2 << 30)
    with pytest.raises(UnsupportedMedia, match="hold all of it in memory"):
        next(open_source(source.path, info, decoder="decord").read())


def test_pictures_that_are_missing_are_found_by_the_end(tmp_path: Path) -> None:
    """Where decord fills up with copies: an edit list that is not refused shows it."""
    path = tmp_path / "edit_list.mp4"
    odd_file("edit_list.mp4").make(path)
    source = DecordSource(path, probe(path))
    times: Any = Child(source).times
    decoder = Decoder(source, times.astype(np.float64))
    assert decoder.rgb(5, 0.0, 192, 108).shape == (108, 192, 3)
    with pytest.raises(DecodeError, match="cannot decode all pictures"):
        decoder.finish()


#: Groups whose first pictures in showing order lean on the group before.
OPEN = {"x264-params": "open-gop=1:keyint=15:min-keyint=15:bframes=2:b-adapt=0:scenecut=0"}


def test_groups_that_lean_on_each_other_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "open.mp4"
    write_media(path, VideoTrack(frames=90, options=OPEN))
    seen: list[Any] = list(open_source(path, probe(path), decoder="decord").read())
    for i in (0, 1, 13, 14, 15, 16, 29, 30, 31, 59, 75, 88, 89):
        assert read_frame_number(seen[i].rgb(192, 108)) == i


def test_pictures_before_the_first_key_picture_are_refused(tmp_path: Path) -> None:
    import av

    whole, cut = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
    write_media(whole, VideoTrack(frames=60, options=OPEN))
    with av.open(str(whole)) as box, av.open(str(cut), "w") as output:
        stream = output.add_stream_from_template(box.streams.video[0])
        keys = 0
        for packet in box.demux(video=0):
            keys += packet.is_keyframe
            if keys > 1 and packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    with pytest.raises(UnsupportedMedia, match="before"):
        list(open_source(cut, probe(cut), decoder="decord").read())


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_other_devices_are_refused(device: str, source: DecordSource) -> None:
    with pytest.raises(ResourceError, match=device) as caught:
        open_source(source.path, source.info, decoder="decord", device=device)
    assert "--device cpu" in (caught.value.hint or "")


def test_a_cache_says_who_decoded_it(tmp_path: Path) -> None:
    from tokpipe.cache import open_cache

    path = tmp_path / "plain.mp4"
    write_media(path, VideoTrack(fps=Fraction(10), frames=20))
    record = compress_file(path, tmp_path / "out", budget=64, options=Options(decoder="decord"))
    with open_cache(record.output) as cache:
        decode: Any = cache.provenance["decode"]
    assert decode["backend"] == "decord"
    assert decode["decord"] == versions()["decord"]
