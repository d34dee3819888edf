"""``tokpipe probe``: what a media file holds, and what will be normalised."""

from __future__ import annotations

from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokpipe_cli import options as o
from tokpipe_cli.boundary import os_problem
from tokpipe_cli.console import Screen, show_error, table
from tokpipe_cli.jsonl import emit, summarise
from tokpipe_cli.words import clock, joined, rate, size

if TYPE_CHECKING:
    from tokpipe.spec import AudioInfo, MediaInfo, VideoInfo


def probe(
    files: Annotated[list[Path], typer.Argument(help="Video or audio files.", metavar="FILE")],
    video_stream: o.VideoStream = "auto",
    audio_stream: o.AudioStream = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Show streams, clock and warnings of media files; decodes one picture at most."""
    from tokpipe.decode import probe as look
    from tokpipe.errors import TokpipeError

    screen = Screen(json=as_json, quiet=quiet, debug=debug)
    statuses = []
    for number, path in enumerate(files):
        problem: TokpipeError
        try:
            info = look(path, video_stream=video_stream, audio_stream=audio_stream)
        except TokpipeError as error:
            problem = error
        except OSError as error:
            problem = os_problem(error)
        else:
            statuses.append("done")
            if number and not as_json:
                screen.say("")
            _show(path, info, screen)
            continue
        statuses.append("failed")
        if as_json:
            emit("error", input=str(path), error=problem.to_dict())
        show_error(problem)
    if as_json:
        emit("summary", **summarise(statuses))
    missing = all(not path.exists() for path in files)
    raise typer.Exit(0 if "failed" not in statuses else 2 if missing else 1)


def _show(path: Path, info: MediaInfo, screen: Screen) -> None:
    if screen.json:
        emit("probe", input=str(path), **_fields(info))
        return
    if screen.quiet:
        return
    screen.say(
        joined([str(path), clock(info.duration), info.container, size(info.size)]), style="bold"
    )
    rows = [("  clock", _clock(info))]
    rows.append(("  video", _video(info.video) if info.video else "none"))
    rows.append(("  audio", _audio(info.audio) if info.audio else "none"))
    rows += [("  other", text) for text in info.other_streams]
    rows.append(("  fingerprint", info.fingerprint))
    rows += [("  note", f"{code}: {text}") for code, text in info.warnings]
    table(rows)


def _clock(info: MediaInfo) -> str:
    duration = "duration unknown" if info.duration is None else f"duration {info.duration:.3f} s"
    start = "start unknown" if info.start is None else f"container starts at {info.start:.3f} s"
    return joined([duration, start, f"time 0 is {info.zero:.3f} s"], ", ")


def _video(video: VideoInfo) -> str:
    aspect = f"pixel aspect {video.pixel_aspect}" if video.pixel_aspect != 1 else ""
    turned = f"turned {video.rotation} degrees" if video.rotation else ""
    speed = joined([rate(video.frame_rate) or "rate unknown", "variable" if video.vfr else ""], " ")
    parts = [
        f"stream {video.index}", video.codec, f"{video.width}x{video.height}", speed,
        video.pixel_format or "",
        f"transfer {video.transfer}", aspect, turned, "interlaced" if video.interlaced else "",
        _span(video),
    ]  # fmt: skip
    return joined(parts, ", ")


def _audio(audio: AudioInfo) -> str:
    channels = {1: "mono", 2: "stereo"}.get(audio.channels, f"{audio.channels} channels")
    return joined(
        [f"stream {audio.index}", audio.codec, f"{audio.sample_rate} Hz", channels, _span(audio)],
        ", ",
    )


def _span(stream: VideoInfo | AudioInfo) -> str:
    start = "" if stream.start is None else f"starts at {stream.start:.3f} s"
    length = "" if stream.duration is None else f"lasts {stream.duration:.3f} s"
    return joined([stream.language or "", start, length], ", ")


def _fields(info: MediaInfo) -> dict[str, Any]:
    """Plain values: fractions as text, warnings as objects."""
    fields: dict[str, Any] = asdict(info)
    for name in ("video", "audio"):
        if fields[name] is not None:
            fields[name] = {
                k: str(v) if isinstance(v, Fraction) else v for k, v in fields[name].items()
            }
    fields["warnings"] = [{"code": code, "message": text} for code, text in info.warnings]
    return fields
