"""Encoding one file: stages apart, against the bare forward pass and a plain open_clip loop.

    python tests/benchmarks/encode.py FILE [--model ViT-B-32] [--fit pad] [--runs 5] [--out OUT]

Random weights: throughput does not depend on them. One thread; the ways under comparison take turns
on the same frames, and the median of the ratios is what counts: machines differ and are noisy.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from tokpipe.encode._batches import encode_pictures
from tokpipe.encode._fit import Fit
from tokpipe.encode.open_clip import OpenClip
from tokpipe.encoder_choice import encoder_step, with_encoders
from tokpipe.recipe import load_recipe
from tokpipe.reduce import reduce_tokens
from tokpipe.run import Options, compress_file
from tokpipe.tensors import TokenBatch

#: Frames a second that the plain loop looks at, as the default recipe does.
FPS = 2
BATCH = 16


def sampled(path: Path) -> tuple[list[Any], float]:
    """Every frame of a 2 fps loop, decoded sequentially by PyAV, and the seconds it took."""
    began, due, out = time.perf_counter(), 0.0, []
    with av.open(str(path)) as box:
        for frame in box.decode(box.streams.video[0]):
            if frame.time is not None and frame.time >= due:
                out.append(frame.to_image())  # type: ignore[no-untyped-call]
                due = (int(frame.time * FPS) + 1) / FPS
    return out, time.perf_counter() - began


class Ways:
    """The ways to encode the same pictures.

    Attributes:
        images: Pictures as the plain loop has them; ``arrays`` the same as uint8 arrays.
    """

    def __init__(self, model: str, fit: Fit, images: list[Image.Image]) -> None:
        """Load both models with the same random weights."""
        import open_clip

        self.images = images
        self.arrays = [np.asarray(image) for image in images]
        self.operator = OpenClip(model=model, weights="random", fit=fit)
        self.tower = self.operator.load()
        self.clip, _, self.transform = open_clip.create_model_and_transforms(model)
        self.clip.eval()
        with torch.inference_mode():
            self.ready = torch.stack([self.transform(image) for image in images])

    @torch.inference_mode()
    def plain(self) -> None:
        """A plain loop: the library's transform and ``encode_image``, batch by batch."""
        for a in range(0, len(self.images), BATCH):
            batch = torch.stack([self.transform(i) for i in self.images[a : a + BATCH]])
            self.clip.encode_image(batch)

    @torch.inference_mode()
    def bare(self) -> None:
        """The forward pass alone, on pictures that are ready."""
        for a in range(0, len(self.images), BATCH):
            self.clip.encode_image(self.ready[a : a + BATCH])

    def ours(self) -> None:
        """The encode stage: prepare and tower, all patch tokens out."""
        wanted = enumerate(self.arrays)
        for _ in encode_pictures(self.tower, wanted, device=torch.device("cpu"), batch=BATCH):
            pass

    def prepare(self) -> None:
        """Only resizing and normalising."""
        for a in range(0, len(self.arrays), BATCH):
            self.tower.prepare(torch.from_numpy(np.stack(self.arrays[a : a + BATCH])))

    @torch.inference_mode()
    def transformed(self) -> None:
        """Only the library's transform."""
        for image in self.images:
            self.transform(image)


def seconds(way: Callable[[], None]) -> float:
    """CPU seconds of one call: wall time on a shared machine says more of the others."""
    began = time.process_time()
    way()
    return time.process_time() - began


def stages(ways: Ways, runs: int) -> dict[str, Any]:
    """Frames a CPU second of each way, turn and turn about, and medians of their ratios."""
    names = ("plain", "bare", "ours", "prepare", "transformed")
    for name in ("plain", "ours"):
        getattr(ways, name)()
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(runs):
        for name in names:
            taken[name].append(seconds(getattr(ways, name)))
    count = len(ways.images)

    def ratio(above: str, below: str) -> float:
        pairs = zip(taken[above], taken[below], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    return {
        "frames": count,
        "frames_per_cpu_second": {n: round(count / statistics.median(taken[n]), 2) for n in names},
        "encode_to_plain_loop": ratio("plain", "ours"),
        "encode_to_bare_forward": ratio("bare", "ours"),
        "prepare_to_transform": ratio("transformed", "prepare"),
    }


def reduced(ways: Ways) -> dict[str, Any]:
    """Seconds of compressing the features of the frames to a quarter."""
    data = torch.cat(
        [
            e.data[0] for _, e in encode_pictures(
                ways.tower, enumerate(ways.arrays), device=torch.device("cpu"), batch=BATCH
            )
        ]
    )  # fmt: skip
    tokens = TokenBatch.build(data, torch.zeros(len(data), dtype=torch.float64))

    def quarter() -> None:
        reduce_tokens(tokens, "max-min", len(data) // 4)

    took = seconds(quarter)
    return {"tokens": len(data), "kept": len(data) // 4, "cpu_seconds": round(took, 3)}


def end_to_end(path: Path, model: str, decoded: float, looped: int, ways: Ways) -> dict[str, Any]:
    """``compress --budget 2048`` with the tower against the plain loop over all its frames."""
    recipe = with_encoders(load_recipe("auto"), [encoder_step(f"open_clip:{model}@random")])
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        record = compress_file(
            path, Path(folder) / "out.tokpipe.safetensors", recipe=recipe, budget=2048,
            options=Options(keep_bank=False),
        )  # fmt: skip
        took = time.process_time() - began
    plain = seconds(ways.plain) / len(ways.images) * looped + decoded
    return {
        "frames_of_the_loop": looped, "frames_encoded": record.frames["encoded"],
        "encoded_share": round(record.frames["encoded"] / looped, 4),
        "tokens": record.tokens, "seconds": record.seconds, "cpu_seconds": round(took, 2),
        "plain_loop_cpu_seconds": round(plain, 2), "to_plain_loop": round(took / plain, 3),
    }  # fmt: skip


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--fit", choices=("pad", "squash", "crop"), default="pad")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    before = time.process_time()
    images, _ = sampled(given.file)
    decoded = time.process_time() - before
    step = max(1, len(images) // given.frames)
    ways = Ways(given.model, given.fit, images[::step][: given.frames])
    found = {
        "file": given.file.name, "model": given.model, "fit": given.fit,
        "machine": platform.machine(),
        "threads": 1, "decode_frames_per_cpu_second": round(len(images) / decoded, 2),
        "stages": stages(ways, given.runs), "compress": reduced(ways),
        "end_to_end": end_to_end(given.file, given.model, decoded, len(images), ways),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }  # fmt: skip
    text = json.dumps(found, indent=1)
    sys.stdout.write(text + "\n")
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
