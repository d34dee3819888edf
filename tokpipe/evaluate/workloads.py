"""What the processes of a comparison do, one function each.

    python -m tokpipe.evaluate.workloads NAME imports
    python -m tokpipe.evaluate.workloads NAME run FILE JSON
    python -m tokpipe.evaluate.workloads tokpipe run ARGUMENT...

The first only imports what the others need. They print JSON lines: ``loaded`` says what the
process had used, and when, by the end of its imports. The loops are those that their projects'
pages show, over times of the file's own clock or indices as each reader has them, in batches that
bound the memory. This module imports nothing heavy before it is told to.
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
import time
from collections.abc import Callable
from typing import Any

#: Pictures that a sampling loop asks for at a time.
BATCH = 32

_OURS = (
    "typer", "rich.console", "rich.progress", "tokpipe_cli.app", "tokpipe_cli.workers",
    "tokpipe_cli.progress", "tokpipe_cli.request", "tokpipe_cli.render_item", "tokpipe.batch",
    "torch", "av", "PIL.Image", "PIL.WebPImagePlugin", "PIL.JpegImagePlugin", "platformdirs",
    "tokpipe.run", "tokpipe.sample.fps", "tokpipe.encode.pixels", "tokpipe.encode.mel",
    "tokpipe.compress.similarity.temporal_drop", "tokpipe.compress.similarity.coverage_updates",
    "tokpipe.compress.transformation.silence_gate", "tokpipe.compress.similarity.adjacent_merge",
    "tokpipe.decode._sparse", "pydantic.main", "pydantic.type_adapter", "numpy.ma",
    "PIL.PngImagePlugin", "PIL.BmpImagePlugin", "PIL.GifImagePlugin", "PIL.PpmImagePlugin",
)  # fmt: skip
#: Modules of each workload; ours are those that ``compress`` imports as it goes.
IMPORTS: dict[str, tuple[str, ...]] = {
    "tokpipe": _OURS,
    "tokpipe-open-clip": (*_OURS, "open_clip", "tokpipe.encode.open_clip"),
    "pyav-1": ("av",),
    "pyav-auto": ("av",),
    "decord": ("decord",),
    "torchcodec": ("torchcodec.decoders",),
    "scenedetect": ("scenedetect", "scenedetect.backends.pyav", "av"),
    "open-clip-loop": ("av", "torch", "open_clip"),
}


def _decode_all(path: str, thread_type: str) -> dict[str, Any]:
    import av

    with av.open(path) as box:
        streams: list[Any] = [*box.streams.video[:1], *box.streams.audio[:1]]
        for stream in streams:
            stream.thread_type = thread_type
            if thread_type == "NONE":
                stream.codec_context.thread_count = 1
        counts = {"video": 0, "audio": 0}
        for packet in box.demux(*streams):
            counts[packet.stream.type] += len(packet.decode())
    return {"frames": counts["video"], "sound_frames": counts["audio"]}


def pyav_one(path: str, _: dict[str, Any]) -> dict[str, Any]:
    """Decode every picture and the sound with one thread."""
    return _decode_all(path, "NONE")


def pyav_auto(path: str, _: dict[str, Any]) -> dict[str, Any]:
    """Decode every picture and the sound with as many threads as FFmpeg likes."""
    return _decode_all(path, "AUTO")


def decord_loop(path: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Read pictures at an even rate by index, as decord's users do."""
    decord = importlib.import_module("decord")
    reader = decord.VideoReader(path, ctx=decord.cpu(0))
    step = max(1.0, reader.get_avg_fps() / asked["fps"])
    wanted = [int(n * step) for n in range(int((len(reader) - 1) / step) + 1)]
    times, done = [], 0
    for a in range(0, len(wanted), BATCH):
        done += len(reader.get_batch(wanted[a : a + BATCH]).asnumpy())
    for start, _ in reader.get_frame_timestamp(wanted).tolist():
        times.append(round(start, 4))
    return {"frames": done, "times": times}


def torchcodec_loop(path: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Read pictures at an even rate by time, exact seeking, one thread."""
    decoders = importlib.import_module("torchcodec.decoders")
    reader = decoders.VideoDecoder(path, num_ffmpeg_threads=1)
    start, stop = reader.metadata.begin_stream_seconds, reader.metadata.end_stream_seconds
    if start is None or stop is None:
        raise ValueError("torchcodec knows no first or last time of this file")
    wanted = [
        start + n / asked["fps"] for n in range(int((stop - start - 1e-6) * asked["fps"]) + 1)
    ]
    times = []
    for a in range(0, len(wanted), BATCH):
        found = reader.get_frames_played_at(wanted[a : a + BATCH])
        times += [round(float(t), 4) for t in found.pts_seconds]
    return {"frames": len(times), "times": times}


def scenedetect_middles(path: str, _: dict[str, Any]) -> dict[str, Any]:
    """Cut the film by detect-content and read the middle picture of every scene."""
    import av

    detect = importlib.import_module("scenedetect")
    scenes = detect.detect(path, detect.ContentDetector(), backend="pyav", start_in_scene=True)
    middles = [(a.seconds + b.seconds) / 2 for a, b in scenes]
    times = []
    with av.open(path) as box:
        stream = box.streams.video[0]
        for middle in middles:
            box.seek(int(middle * 1_000_000))
            for frame in box.decode(stream):
                if frame.time is not None and frame.time >= middle:
                    frame.to_ndarray(format="rgb24")
                    times.append(round(frame.time, 4))
                    break
    return {"frames": len(times), "times": times}


def open_clip_loop(path: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Decode in sequence, take at most so many pictures evenly, encode them with open_clip."""
    import av
    import open_clip
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(asked["model"])
    model.eval()
    with av.open(path) as box:
        rate = min(asked["fps"], asked["most"] / max((box.duration or 0) / 1e6, 1e-6))
        times: list[float] = []
        pictures, due = [], 0.0
        for frame in box.decode(box.streams.video[0]):
            if frame.time is not None and frame.time >= due and len(times) < asked["most"]:
                pictures.append(transform(frame.to_image()))  # type: ignore[no-untyped-call]
                times.append(round(frame.time, 4))
                due = (int(frame.time * rate) + 1) / rate
    width = 0
    with torch.inference_mode():
        for a in range(0, len(pictures), 16):
            width = model.encode_image(torch.stack(pictures[a : a + 16])).shape[-1]
    return {"frames": len(times), "times": times, "width": width}


RUNS: dict[str, Callable[[str, dict[str, Any]], dict[str, Any]]] = {
    "pyav-1": pyav_one,
    "pyav-auto": pyav_auto,
    "decord": decord_loop,
    "torchcodec": torchcodec_loop,
    "scenedetect": scenedetect_middles,
    "open-clip-loop": open_clip_loop,
}


def peak_mb() -> float:
    """Largest resident size of this process in MiB, not that of the process it came from."""
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
            for line in status:
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1048576


def _say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def main(words: list[str]) -> None:
    """Import, and run if asked to."""
    name, what, *rest = words
    for module in IMPORTS[name]:
        importlib.import_module(module)
    _say(loaded={"cpu": time.process_time(), "at": time.monotonic()})
    if what == "run" and name not in RUNS:
        # The command line itself; it leaves with its exit code.
        sys.argv = ["tokpipe", *rest]
        runpy.run_module("tokpipe_cli", run_name="__main__")
    found = RUNS[name](rest[0], json.loads(rest[1])) if what == "run" else {}
    _say(**found, peak_mb=round(peak_mb(), 1))


if __name__ == "__main__":
    main(sys.argv[1:])
