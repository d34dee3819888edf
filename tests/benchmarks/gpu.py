"""Speed of every stage on a GPU, and of the whole, against what the device can do.

    python tests/benchmarks/gpu.py [FILE] [--only decode,encode,...] [--batch N] [--out FILE]
        [--device cuda] [--model ViT-L-14] [--dtype bfloat16] [--workers 0] [--tiny]

Parts: decode, preprocess, encode, whole, merge, cluster, neighbours. JSON on stdout, one key a
part, each with its target where there is one; progress on stderr. Idle shares are taken under
PyTorch's profiler, whose own time makes them upper bounds. Without CUDA it says so and ends, but
for ``--device cpu --tiny``, which runs every part at toy sizes: a test of this script, no
measurement.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import gpu_tokens  # type: ignore[import-not-found]
import numpy as np
import torch
from gpu_tokens import busy_share, memory_beyond, timed
from torch import Tensor

from tokpipe.decode import open_source, probe
from tokpipe.device import inference, peak_memory_mb, pick_device
from tokpipe.encode._batches import encode_pictures
from tokpipe.encode.open_clip import OpenClip
from tokpipe.errors import TokpipeError
from tokpipe.flow import prefetch
from tokpipe.tensors import AudioChunk
from tokpipe.testing.media import VideoTrack, write_media

#: Width and height pictures are decoded to: a grid of 16 x 9 cells.
GRID = (448, 252)
FULL = {"frames": 4096, "video": (1280, 720), "length": 900, "rows": 100_000, "cloud": 32_768,
        "width": 1152, "cells": 256, "queries": 8192, "repeat": 5}  # fmt: skip
TINY = {"frames": 40, "video": (192, 108), "length": 45, "rows": 1500, "cloud": 700,
        "width": 32, "cells": 30, "queries": 200, "repeat": 2}  # fmt: skip


# Decoding.


def decoded(path: Path, decoder: str, device: str) -> Iterator[np.ndarray[Any, Any]]:
    """Every picture of a file at the grid's size."""
    info = probe(path, audio_stream="none")
    for item in open_source(path, info, decoder=decoder, device=device).read():
        if not isinstance(item, AudioChunk):
            yield item.rgb(*GRID)


def drain(job: tuple[Path, str, str]) -> tuple[int, float, float]:
    """Pictures of a file and when its decoding began and ended."""
    began = time.monotonic()
    return sum(1 for _ in decoded(*job)), began, time.monotonic()


def warm(_: int) -> None:
    """Let a worker import what it needs, and be there before the others are counted."""
    torch.set_num_threads(1)
    time.sleep(0.5)


def rate(done: list[tuple[int, float, float]]) -> float:
    """Pictures a second over all workers."""
    span = max(stop for _, _, stop in done) - min(start for _, start, _ in done)
    return sum(count for count, _, _ in done) / span


def decode(setting: Any) -> dict[str, Any]:
    """Pictures a second of each reader, each worker with the whole file."""
    out: dict[str, Any] = {"workers": setting.workers, "size": list(setting.sizes["video"])}
    for many in dict.fromkeys((1, setting.workers)):
        jobs = [(setting.file, "pyav", "cpu")] * many
        with multiprocessing.get_context("spawn").Pool(many) as pool:
            pool.map(warm, range(many), chunksize=1)
            out[f"pyav_{many}_processes"] = rate(pool.map(drain, jobs, chunksize=1))
        for decoder, device in (("pyav", "cpu"), ("torchcodec", "cpu"),
                                ("torchcodec", str(setting.device))):  # fmt: skip
            name = f"{decoder}_{device.partition(':')[0]}_{many}_threads"
            try:
                with ThreadPoolExecutor(many) as threads:
                    out[name] = rate(
                        list(threads.map(drain, [(setting.file, decoder, device)] * many))
                    )
            except TokpipeError as error:
                out[name] = {"error": str(error), "hint": error.hint}
    best = max(
        (value, key) for key, value in out.items() if "_" in key and isinstance(value, float)
    )
    setting.ceiling["decode"] = best[0]
    return {**out, "best": best[1], "unit": "pictures/s"}


# The tower.


class Counted:
    """A tower that remembers its batches."""

    def __init__(self, tower: Any) -> None:
        self.tower, self.outline, self.weights = tower, tower.outline, tower.weights
        self.batches: list[int] = []

    def prepare(self, pixels: Tensor) -> Tensor:
        return self.tower.prepare(pixels)  # type: ignore[no-any-return]

    def encode(self, prepared: Tensor, columns: frozenset[str] = frozenset()) -> Any:
        self.batches.append(len(prepared))
        return self.tower.encode(prepared, columns)

    def encode_kept(self, prepared: Tensor, live: Tensor, columns: Any = frozenset()) -> Any:
        return self.tower.encode_kept(prepared, live, columns)

    def embed_text(self, text: str) -> Any:
        return self.tower.embed_text(text)


def loaded(setting: Any) -> Counted:
    operator = OpenClip(model=setting.options.model, weights="random")
    return Counted(operator.load(setting.device, setting.options.dtype))


def pictures(count: int) -> list[tuple[int, Any]]:
    """Pictures in memory at the grid's size; a few different ones in turn."""
    draw = np.random.default_rng(0)
    some = draw.integers(0, 256, (16, GRID[1], GRID[0], 3), np.uint8)
    return [(i, some[i % 16]) for i in range(count)]


def bare(setting: Any, batch: int) -> float:
    """Pictures a second of the model's own forward pass on a prepared batch."""
    import open_clip

    model: Any = open_clip.create_model(setting.options.model, pretrained=None)
    dtype = getattr(torch, setting.options.dtype)
    visual = model.visual.to(setting.device, dtype).eval()
    side = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
    ready = torch.randn(batch, 3, side, side, device=setting.device).to(dtype)

    def forward() -> None:
        with inference():
            for _ in range(4):
                visual(ready)

    return float(4 * batch / timed(forward, setting.device, setting.sizes["repeat"]))


def preprocess(setting: Any) -> dict[str, Any]:
    """Pictures a second of resizing, colour and normalising alone, on the device."""
    tower, count = loaded(setting), 64 if not setting.options.tiny else 4
    held = torch.from_numpy(np.stack([p for _, p in pictures(count)])).to(setting.device)
    seconds = timed(lambda: tower.prepare(held), setting.device, setting.sizes["repeat"])
    return {"pictures/s": count / seconds, "batch": count}


def run_through(setting: Any, tower: Counted, source: Any, batch: int | None) -> float:
    """Pictures a second from a source to tokens on the host."""
    began, count = time.perf_counter(), 0
    for _ in encode_pictures(tower, source, device=setting.device, batch=batch):
        count += 1
    return count / (time.perf_counter() - began)


def encode(setting: Any) -> dict[str, Any]:
    """From pictures in memory to tokens on the host, against the bare forward pass."""
    tower, held = loaded(setting), pictures(setting.sizes["frames"])
    run_through(setting, tower, held, setting.options.batch)
    batch = setting.options.batch or max(set(tower.batches), key=tower.batches.count)
    batch = min(batch, len(held))
    rates = [run_through(setting, tower, held, batch) for _ in range(setting.sizes["repeat"])]
    most = memory_beyond(lambda: run_through(setting, tower, held, batch), setting.device)
    busy = busy_share(lambda: run_through(setting, tower, held[: 8 * batch], batch), setting.device)
    alone = bare(setting, batch)
    ours = statistics.median(rates)
    setting.ceiling["bare"], setting.ceiling["batch"] = alone, batch
    return {"pictures/s": ours, "bare": alone, "ratio": ours / alone, "target": ">= 0.85",
            "batch": batch, "tuned": setting.options.batch is None, "idle": 1 - busy,
            "memory_mb": most, "peak_rss_mb": peak_memory_mb()}  # fmt: skip


def together(setting: Any, decoder: str, device: str) -> Generator[tuple[int, Any], None, None]:
    """Pictures of as many copies of the file as there are workers, decoded side by side."""
    runs = [prefetch(decoded(setting.file, decoder, device), 32) for _ in range(setting.workers)]
    key = 0
    try:
        while runs:
            for run in list(runs):
                if (picture := next(run, None)) is None:
                    runs.remove(run)
                else:
                    yield key, picture
                    key += 1
    finally:
        for run in runs:
            run.close()


def whole(setting: Any) -> dict[str, Any]:
    """From files to tokens on the host, with each reader in threads."""
    if not setting.ceiling.get("bare"):
        setting.ceiling["batch"] = setting.options.batch or 64
        setting.ceiling["bare"] = bare(setting, int(setting.ceiling["batch"]))
    out: dict[str, Any] = {"bare": setting.ceiling["bare"], "target": ">= 0.70 of bare, or decode-"
                           "bound at >= 0.90 of decoding alone"}  # fmt: skip
    for decoder, device in dict.fromkeys((("pyav", "cpu"), ("torchcodec", str(setting.device)))):
        tower = loaded(setting)

        def run(decoder: str = decoder, device: str = device, tower: Counted = tower) -> float:
            batch = int(setting.ceiling["batch"])
            with closing(together(setting, decoder, device)) as source:
                return run_through(setting, tower, source, batch)

        name = f"{decoder}_{device.partition(':')[0]}"
        try:
            run()
            ours = run()
            made = {"pictures/s": ours, "ratio": ours / setting.ceiling["bare"]}
            if "decode" in setting.ceiling:
                made["of_decode"] = ours / setting.ceiling["decode"]
            out[name] = {**made, "idle": 1 - busy_share(run, setting.device)}
        except TokpipeError as error:
            out[name] = {"error": str(error), "hint": error.hint}
    return out


def made_file(folder: str, sizes: dict[str, Any]) -> Path:
    """A clip of moving pictures with a key picture every two seconds."""
    path = Path(folder) / "clip.mp4"
    write_media(path, VideoTrack(size=sizes["video"], frames=sizes["length"], gop=60,
                                 fps=Fraction(30)))  # fmt: skip
    return path


PARTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "decode": decode, "preprocess": preprocess, "encode": encode, "whole": whole,
    **gpu_tokens.PARTS,
}  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("file", nargs="?", type=Path, help="a clip; made when left out")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", help="default ViT-L-14, with --tiny ViT-S-32-alt")
    parser.add_argument("--dtype", help="default bfloat16, on the CPU float32")
    parser.add_argument("--batch", type=int, help="pictures of a forward pass; default tuned")
    parser.add_argument("--workers", type=int, default=0, help="decoders; default all cores but 1")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: a test of this script")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    options = parser.parse_args()
    options.model = options.model or ("ViT-S-32-alt" if options.tiny else "ViT-L-14")
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    return options


def main() -> int:
    """Run the parts and print their figures."""
    options = parsed()
    try:
        device = pick_device(options.device)
    except TokpipeError as error:
        print(f"error: {error}\nhint: this measures a GPU; to test the script itself use "
              "--device cpu --tiny", file=sys.stderr)  # fmt: skip
        return 3
    if unknown := set(options.only.split(",")) - set(PARTS):
        print(f"error: no part {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}",
              file=sys.stderr)  # fmt: skip
        return 2
    sizes = TINY if options.tiny else FULL
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    out: dict[str, Any] = {"device": name, "torch": torch.__version__, "model": options.model,
                           "dtype": options.dtype, "tiny": options.tiny}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = options.file or made_file(folder, sizes)
        setting = gpu_tokens.Setting(device, options, sizes, file)
        for part in options.only.split(","):
            print(f"{part} ...", file=sys.stderr, flush=True)
            try:
                out[part] = PARTS[part](setting)
            except (TokpipeError, RuntimeError) as error:
                # One part that fails must not cost the others' figures.
                out[part] = {"error": f"{type(error).__name__}: {error}"}
    text = json.dumps(out, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    return int(any("error" in out[part] for part in options.only.split(",")))


if __name__ == "__main__":
    sys.exit(main())
