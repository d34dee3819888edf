"""Make every sample file and its ground truth: ``python samples/make_samples.py [--out DIR]``."""

from __future__ import annotations

import argparse
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

from lecture import DURATION, FPS, INSET, SIZE, SLIDES, draw_lecture
from scenes import (
    ACTION_CUTS,
    ACTION_DURATION,
    ACTION_FPS,
    ACTION_SIZE,
    SCREEN_DURATION,
    SCREEN_EVENTS,
    SCREEN_FPS,
    SCREEN_SIZE,
    draw_action,
    draw_screen,
)
from speech import SENTENCES, TOLERANCE, lecture_sound
from tokpipe.testing.damage import damage_frames
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media

_SMALL: dict[str, Any] = {"size": (320, 180), "options": {"crf": "28"}, "gop": 30}
_TALL: dict[str, Any] = {**_SMALL, "size": (180, 320)}
_BURSTS = tuple(n + 0.5 for n in range(6))
_DAMAGED_FRAMES = (*range(33, 60), *range(96, 120))
_FAST = {"movflags": "+faststart"}


def _facts(
    frames: int | None, first: float, last: float, shape: tuple[int, int], **more: object
) -> dict[str, object]:
    return {"frames": frames, "first": first, "last": round(last, 6), "shape": list(shape), **more}


def make_lecture(path: Path) -> dict[str, object]:
    """Write the lecture and return its facts."""
    frames = round(DURATION * FPS)
    video = VideoTrack(
        size=SIZE,
        fps=Fraction(FPS),
        frames=frames,
        gop=150,
        options={"preset": "slow", "crf": "25", "sc_threshold": "40"},
        draw=draw_lecture,
    )
    sound = AudioTrack(samples=lecture_sound(DURATION), bit_rate=24000)
    write_media(path, video, sound, options=_FAST)
    stops = [*(start for start, _, _ in SLIDES[1:]), DURATION]
    titles = [title for _, title, _ in SLIDES]
    return _facts(
        frames,
        0.0,
        (frames - 1) / FPS,
        (SIZE[1], SIZE[0]),
        duration=DURATION,
        slides=[
            {"start": start, "stop": stop, "title": title, "lines": list(lines)}
            for (start, title, lines), stop in zip(SLIDES, stops, strict=True)
        ],
        changes=[
            {"pts": start, "kind": "line" if title == before else "slide"}
            for (start, title, _), before in zip(SLIDES[1:], titles, strict=False)
        ],
        speech=[{"start": start, "stop": stop, "text": text} for start, stop, text in SENTENCES],
        speech_tolerance=TOLERANCE,
        inset=list(INSET),
        odd="nothing; a presenter moves in the inset [left, top, width, height] all the time",
    )


def make_action(path: Path) -> dict[str, object]:
    """Write the action clip and return its facts."""
    frames = round(ACTION_DURATION * ACTION_FPS)
    video = VideoTrack(
        size=ACTION_SIZE,
        fps=Fraction(ACTION_FPS),
        frames=frames,
        gop=100,
        options={"crf": "28", "sc_threshold": "40"},
        draw=draw_action,
    )
    bursts = ACTION_CUTS[1:]
    sound = AudioTrack(duration=Fraction(ACTION_DURATION), bursts=bursts, bit_rate=24000)
    write_media(path, video, sound, options=_FAST)
    return _facts(
        frames,
        0.0,
        (frames - 1) / ACTION_FPS,
        (ACTION_SIZE[1], ACTION_SIZE[0]),
        duration=ACTION_DURATION,
        cuts=list(bursts),
        bursts=list(bursts),
        odd="nothing; something moves in every frame",
    )


def make_screen(path: Path) -> dict[str, object]:
    """Write the screen recording and return its facts."""
    frames = round(SCREEN_DURATION * SCREEN_FPS)
    video = VideoTrack(
        size=SCREEN_SIZE,
        fps=Fraction(SCREEN_FPS),
        frames=frames,
        gop=100,
        options={"crf": "26"},
        draw=draw_screen,
    )
    write_media(path, video, options=_FAST)
    return _facts(
        frames,
        0.0,
        (frames - 1) / SCREEN_FPS,
        (SCREEN_SIZE[1], SCREEN_SIZE[0]),
        duration=SCREEN_DURATION,
        events=[{"pts": pts, "what": what} for pts, what in SCREEN_EVENTS],
        odd="no audio track",
    )


def make_vfr(path: Path) -> dict[str, object]:
    """Write 3 s at 30 and 3 s at 6 frames per second and return the facts."""
    pts = [Fraction(n, 30) for n in range(90)] + [3 + Fraction(n, 6) for n in range(18)]
    sound = AudioTrack(duration=Fraction(6), bursts=_BURSTS)
    write_media(path, VideoTrack(**_SMALL, pts=pts), sound, options=_FAST)
    odd = "30 frames per second, then 6 from second 3 on"
    return _facts(
        108, 0.0, 35 / 6, (180, 320), duration=6.0, first_number=0, bursts=_BURSTS, odd=odd
    )


def make_rotated(path: Path) -> dict[str, object]:
    """Write an upright picture that is stored lying on its side and return its facts."""
    sound = AudioTrack(duration=Fraction(6), bursts=_BURSTS)
    write_media(path, VideoTrack(**_TALL, frames=180, rotation=90), sound, options=_FAST)
    odd = "stored 320x180 with a display matrix of 90 degrees counter-clockwise; shown 180x320"
    return _facts(
        180, 0.0, 179 / 30, (320, 180), duration=6.0, first_number=0, bursts=_BURSTS, odd=odd
    )


def make_edit_list(path: Path) -> dict[str, object]:
    """Write a file cut off its key frame, so that 11 stored frames are hidden."""
    sound = AudioTrack(duration=Fraction(122, 30), bursts=_BURSTS[:4])
    video = VideoTrack(**_SMALL, frames=133, start=Fraction(-11, 30))
    write_media(path, video, sound, options=_FAST)
    odd = "133 frames stored, an edit list hides the first 11"
    return _facts(
        122,
        0.0,
        121 / 30,
        (180, 320),
        duration=round(122 / 30, 6),
        first_number=11,
        bursts=_BURSTS[:4],
        odd=odd,
    )


def make_late_audio(path: Path) -> dict[str, object]:
    """Write sound that starts half a second late and has a hole of about a second."""
    bursts = (1.0, 1.25, 3.5, 4.5, 5.5)
    sound = AudioTrack(
        start=Fraction(1, 2),
        duration=Fraction(11, 2),
        bursts=tuple(pts - 0.5 for pts in bursts),
        gaps=((1.5, 2.5),),
    )
    write_media(path, VideoTrack(**_SMALL, frames=180), sound, options=_FAST)
    return _facts(
        180,
        0.0,
        179 / 30,
        (180, 320),
        duration=6.0,
        first_number=0,
        audio_start=0.5,
        audio_gap=[1.524, 2.484],
        bursts=bursts,
        odd="audio starts at 0.5 s and is missing from 1.524 s to 2.484 s",
    )


def make_damaged(path: Path) -> dict[str, object]:
    """Write a file with 400 damaged bytes in two of its six groups of pictures."""
    sound = AudioTrack(duration=Fraction(6), bursts=_BURSTS)
    write_media(path, VideoTrack(**_SMALL, frames=180), sound, options=_FAST)
    damage_frames(path, _DAMAGED_FRAMES, count=400)
    return _facts(
        None,
        0.0,
        179 / 30,
        (180, 320),
        duration=6.0,
        first_number=0,
        intact=[[0.0, 1.0], [2.0, 3.0], [4.0, 6.0]],
        bursts=_BURSTS,
        odd="400 random bytes in the video packets of seconds 1 to 2 and 3 to 4",
    )


MAKERS = {
    "lecture.mp4": make_lecture,
    "action.mp4": make_action,
    "screen.mp4": make_screen,
    "vfr.mp4": make_vfr,
    "rotated.mp4": make_rotated,
    "edit_list.mp4": make_edit_list,
    "late_audio.mp4": make_late_audio,
    "damaged.mp4": make_damaged,
}


def main() -> None:
    """Write all files and ``ground_truth.json`` into the folder that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "media")
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    truth: dict[str, object] = {
        "note": "Seconds of media time. Bar codes count up from first_number, where there is one.",
        "tolerance": 0.002,
        "burst_tolerance": 0.02,
        "files": {name: make(folder / name) for name, make in MAKERS.items()},
    }
    text = json.dumps(truth, indent=1, ensure_ascii=False) + "\n"
    (folder / "ground_truth.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
