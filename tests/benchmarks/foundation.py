"""CPU time and memory of ``compress`` on one file, against plain PyAV decoding in the same run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_USAGE = """
import json, resource, sys, time
def usage():
    u = resource.getrusage(resource.RUSAGE_SELF)
    return u.ru_utime + u.ru_stime
def rss():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
began = usage()
"""
_DECODE = (
    _USAGE
    + """
import av
imports, wall = usage() - began, time.perf_counter()
before = usage()
with av.open(sys.argv[1]) as box:
    streams = [box.streams.video[0], *box.streams.audio[:1]]
    for stream in streams:
        stream.thread_type = "AUTO"
    count = sum(len(packet.decode()) for packet in box.demux(*streams))
print(json.dumps({"cpu": usage() - before, "wall": time.perf_counter() - wall, "imports": imports,
                  "frames": count, "peak_mb": rss()}))
"""
)
_COMPRESS = (
    _USAGE
    + """
import gc
import torch
after_torch = rss()
from pathlib import Path
from tokpipe.run import Options, compress_file
import av, PIL.Image, tokpipe.encode.pixels, tokpipe.encode.mel
torch.set_num_threads(1)  # as the command line does
gc.freeze()
imports, wall = usage() - began, time.perf_counter()
before = usage()
record = compress_file(sys.argv[1], sys.argv[2], budget="2048",
                  options=Options(force=True, keep_bank=sys.argv[3] == "bank"))
print(json.dumps({"cpu": usage() - before, "wall": time.perf_counter() - wall, "imports": imports,
                  "peak_mb": rss(), "after_torch_mb": after_torch, "seconds": record.seconds,
                  "tokens": record.tokens}))
"""
)


def _child(code: str, *arguments: str, cache: str) -> dict[str, Any]:
    environment = {**os.environ, "TOKPIPE_CACHE_DIR": cache}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure_cpu(path: str, runs: int) -> dict[str, Any]:
    """Alternate plain decoding, ``compress --no-bank`` and ``compress`` with a fresh bank."""
    kinds: dict[str, Callable[[str], dict[str, Any]]] = {
        "decode": lambda folder: _child(_DECODE, path, cache=folder),
        "compress": lambda folder: _child(
            _COMPRESS, path, f"{folder}/o.safetensors", "none", cache=folder
        ),
        "compress_bank": lambda folder: _child(
            _COMPRESS, path, f"{folder}/o.safetensors", "bank", cache=folder
        ),
    }
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
    for _ in range(runs):
        for name, run in kinds.items():
            with tempfile.TemporaryDirectory() as folder:
                rows[name].append(run(folder))
    ratios = {
        f"{name}_over_decode": [
            a["cpu"] / b["cpu"] for a, b in zip(rows[name], rows["decode"], strict=True)
        ]
        for name in ("compress", "compress_bank")
    }
    medians = {name: round(statistics.median(values), 3) for name, values in ratios.items()}
    return {"rows": rows, "ratios": ratios, "median": medians}


def copy_packets(source: str, target: Path, seconds: float) -> None:
    """Copy the packets of ``source`` end to end until ``seconds`` are reached."""
    import av

    with av.open(source) as first, av.open(str(target), "w") as out:
        wanted = [first.streams.video[0], *first.streams.audio[:1]]
        made = {s.index: out.add_stream_from_template(s) for s in wanted}
        length = (first.duration or 0) / 1_000_000
        offset = 0.0
        while offset < seconds:
            with av.open(source) as box:
                for packet in box.demux(*[box.streams[i] for i in made]):
                    if packet.dts is None or packet.pts is None:
                        continue
                    shift = round(offset / packet.time_base)
                    if float(packet.pts * packet.time_base) + offset >= seconds:
                        continue
                    packet.pts += shift
                    packet.dts += shift
                    packet.stream = made[packet.stream.index]
                    out.mux(packet)
            offset += length


def measure_memory(path: str) -> dict[str, Any]:
    """Peak resident size for ten minutes and for two hours of the same packets."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in (("ten_minutes", 600.0), ("two_hours", 7200.0)):
            media = Path(folder) / f"{name}.mkv"
            copy_packets(path, media, seconds)
            rows[name] = _child(
                _COMPRESS, str(media), f"{folder}/{name}.safetensors", "none", cache=folder
            )
            media.unlink()
    ten, two = rows["ten_minutes"], rows["two_hours"]
    return {
        "rows": rows,
        "two_hours_over_ten_minutes": round(two["peak_mb"] / ten["peak_mb"], 3),
        "above_torch_mb": round(two["peak_mb"] - two["after_torch_mb"], 1),
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    result: dict[str, Any] = {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}",
        "file": Path(asked.file).name,
    }
    result["cpu"] = measure_cpu(asked.file, asked.runs)
    if asked.memory:
        result["memory"] = measure_memory(asked.file)
    text = json.dumps(result, indent=1)
    if asked.json:
        asked.json.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
