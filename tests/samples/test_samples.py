"""The committed samples, and those made again, are what their ground truth says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tokpipe.testing.barcode import read_frame_number

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "samples" / "media"
TRUTH: dict[str, Any] = json.loads((COMMITTED / "ground_truth.json").read_text(encoding="utf-8"))
FILES: dict[str, dict[str, Any]] = TRUTH["files"]
CODED = [name for name, facts in FILES.items() if "first_number" in facts]
WITH_BURSTS = [name for name, facts in FILES.items() if "bursts" in facts]


@pytest.fixture(
    scope="module",
    params=["committed", pytest.param("made again", marks=pytest.mark.slow)],
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "committed":
        return COMMITTED
    out = tmp_path_factory.mktemp("samples")
    script = [sys.executable, str(ROOT / "samples" / "make_samples.py"), "--out", str(out)]
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    subprocess.run(script, check=True, env={**os.environ, "PYTHONPATH": search})
    return out


def frames_of(path: Path) -> list[av.VideoFrame]:
    frames: list[av.VideoFrame] = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            try:
                frames.extend(packet.decode())
            except av.FFmpegError:
                assert path.name == "damaged.mp4"
    return frames


Box = tuple[slice, slice]


def grey_of(path: Path) -> Iterator[tuple[float, NDArray[np.int16]]]:
    """Time and luma of every frame, one after the other: a whole lecture is too much at once."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.time, frame.to_ndarray(format="gray").astype(np.int16)


def steps_of(
    path: Path, *, hide: Box | None = None, look: Box = (slice(None), slice(None)), every: int = 1
) -> NDArray[np.float64]:
    """Rows of time, mean, largest, and number of luma differences above 60 to the frame before."""
    rows = []
    before: NDArray[np.int16] | None = None
    for number, (time, grey) in enumerate(grey_of(path)):
        if number % every:
            continue
        if hide is not None:
            grey[hide] = 0
        if before is not None:
            step = np.abs(grey[look] - before[look])
            rows.append((time, step.mean(), step.max(), (step > 60).sum()))
        before = grey
    return np.array(rows, dtype=np.float64)


def inset_box(margin: int) -> Box:
    left, top, width, height = FILES["lecture.mp4"]["inset"]
    across = slice(left - margin, left + width + margin)
    return slice(top - margin, top + height + margin), across


def sound_of(path: Path) -> tuple[NDArray[np.float32], int]:
    """All sound on the file's clock, silence where nothing is."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        rate = stream.rate
        clock = np.zeros(rate * 125, dtype=np.float32)
        for frame in container.decode(stream):
            begin = round((frame.time or 0.0) * rate)
            samples = frame.to_ndarray()[0]
            clock[begin : begin + len(samples)] = samples
    return clock, rate


def upright(frame: av.VideoFrame) -> NDArray[np.uint8]:
    picture = frame.to_ndarray(format="rgb24").astype(np.uint8)
    return np.ascontiguousarray(np.rot90(picture, frame.rotation // 90))


def test_samples_have_the_same_ground_truth(folder: Path) -> None:
    made = json.loads((folder / "ground_truth.json").read_text(encoding="utf-8"))
    assert made == TRUTH


def test_samples_are_small(folder: Path) -> None:
    sizes = {name: (folder / name).stat().st_size for name in FILES}
    assert {path.name for path in folder.iterdir()} == {*FILES, "ground_truth.json"}
    assert sizes.pop("lecture.mp4") <= 1_000_000
    assert max(sizes.values()) < 300_000
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000


@pytest.mark.parametrize("name", FILES)
def test_sample_has_the_stated_frames(folder: Path, name: str) -> None:
    facts = FILES[name]
    frames = frames_of(folder / name)
    if facts["frames"] is not None:
        assert len(frames) == facts["frames"]
    assert frames[0].time == pytest.approx(facts["first"], abs=TRUTH["tolerance"])
    assert frames[-1].time == pytest.approx(facts["last"], abs=TRUTH["tolerance"])
    assert list(upright(frames[0]).shape[:2]) == facts["shape"]
    with av.open(str(folder / name)) as container:
        assert (container.duration or 0) / 1e6 == pytest.approx(facts["duration"], abs=0.01)


@pytest.mark.parametrize("name", CODED)
def test_sample_bar_codes_count_up(folder: Path, name: str) -> None:
    facts = FILES[name]
    frames = frames_of(folder / name)
    if facts["frames"] is not None:
        read = [read_frame_number(upright(frame)) for frame in frames]
        assert read == list(range(facts["first_number"], facts["first_number"] + facts["frames"]))
        return
    for start, stop in facts["intact"]:
        inside = [f for f in frames if start - 1e-6 <= f.time < stop - 1e-6]
        read = [read_frame_number(upright(frame)) for frame in inside]
        assert read == list(range(round(start * 30), round(stop * 30)))


@pytest.mark.parametrize("name", WITH_BURSTS)
def test_sample_bursts_begin_where_stated(folder: Path, name: str) -> None:
    sound, rate = sound_of(folder / name)
    loud = np.flatnonzero(np.abs(sound) > 0.25)
    begins = loud[np.flatnonzero(np.diff(loud, prepend=-rate) > 0.1 * rate)] / rate
    assert begins == pytest.approx(FILES[name]["bursts"], abs=TRUTH["burst_tolerance"])


def test_lecture_changes_where_stated(folder: Path) -> None:
    changes = FILES["lecture.mp4"]["changes"]
    time, mean, largest, _ = steps_of(folder / "lecture.mp4", hide=inset_box(4)).T
    slides = [change["pts"] for change in changes if change["kind"] == "slide"]
    (line,) = [change["pts"] for change in changes if change["kind"] == "line"]
    assert time[mean > 2.0] == pytest.approx(slides, abs=TRUTH["tolerance"])
    assert time[largest > 120] == pytest.approx(sorted([*slides, line]), abs=TRUTH["tolerance"])
    # The changed line is less, over the whole picture, than what a new key frame does.
    place = int(np.argmin(np.abs(time - line)))
    assert mean[place] < 0.2


def test_lecture_presenter_moves_all_the_time(folder: Path) -> None:
    seconds = steps_of(folder / "lecture.mp4", look=inset_box(0), every=15)
    assert (seconds[:, 1] > 0.5).mean() > 0.9


def test_lecture_speaks_where_stated(folder: Path) -> None:
    sound, rate = sound_of(folder / "lecture.mp4")
    facts = FILES["lecture.mp4"]
    slack = facts["speech_tolerance"]
    stop_before = 0.0
    for line in facts["speech"]:
        spoken = sound[round(line["start"] * rate) : round(line["stop"] * rate)]
        silent = sound[round((stop_before + slack) * rate) : round((line["start"] - 0.1) * rate)]
        assert np.sqrt(np.mean(spoken**2)) > 0.02
        assert np.sqrt(np.mean(silent**2)) < 0.002
        loud = np.flatnonzero(np.abs(spoken) > 0.02) / rate
        assert loud[0] < slack
        assert loud[-1] > line["stop"] - line["start"] - slack
        stop_before = line["stop"]


def test_action_cuts_where_stated(folder: Path) -> None:
    time, mean, _, _ = steps_of(folder / "action.mp4").T
    cuts = FILES["action.mp4"]["cuts"]
    assert time[mean > 20] == pytest.approx(cuts, abs=TRUTH["tolerance"])
    assert np.sort(mean)[-len(cuts) - 1] < 10


def test_screen_events_happen_where_stated(folder: Path) -> None:
    text = (slice(50, 330), slice(40, 320))
    time, _, _, changed = steps_of(folder / "screen.mp4", look=text).T
    active = time[changed > 8]
    start = {event["what"]: event["pts"] for event in FILES["screen.mp4"]["events"]}
    spans = [
        (start["typing starts"], start["typing ends"]),
        (start["a long page opens and scrolls"], start["scrolling ends"]),
    ]
    for begin, end in spans:
        inside = active[(active >= begin - 0.05) & (active <= end + 0.05)]
        assert inside[0] == pytest.approx(begin, abs=0.25)
        assert inside[-1] == pytest.approx(end, abs=0.25)
    jumps = [start["dialog opens"], start["dialog closes"]]
    rest = active[active > start["scrolling ends"] + 0.05]
    assert rest == pytest.approx(jumps, abs=TRUTH["tolerance"])


def test_late_audio_starts_late_and_has_a_hole(folder: Path) -> None:
    facts = FILES["late_audio.mp4"]
    with av.open(str(folder / "late_audio.mp4")) as container:
        stream = container.streams.audio[0]
        spans = [
            (frame.time, frame.samples / frame.sample_rate)
            for frame in container.decode(stream)
            if frame.time is not None
        ]
    assert spans[0][0] == pytest.approx(facts["audio_start"], abs=TRUTH["tolerance"])
    holes = [(a[0] + a[1], b[0]) for a, b in pairwise(spans) if b[0] - a[0] - a[1] > 0.01]
    assert holes == [pytest.approx(facts["audio_gap"], abs=TRUTH["tolerance"])]


def test_damaged_sample_fails_to_decode_somewhere(folder: Path) -> None:
    with av.open(str(folder / "damaged.mp4")) as container, pytest.raises(av.FFmpegError):
        list(container.decode(video=0))


def test_rotated_sample_is_stored_lying(folder: Path) -> None:
    frame = frames_of(folder / "rotated.mp4")[0]
    assert (frame.width, frame.height, frame.rotation) == (320, 180, 90)


def test_edit_list_sample_stores_hidden_frames(folder: Path) -> None:
    with av.open(str(folder / "edit_list.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert len(packets) == 133
    assert sum(packet.is_discard for packet in packets) == 11
