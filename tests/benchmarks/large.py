"""Memory and time of quadratic operators on one huge item, each in a process of its own.

    python tests/benchmarks/large.py [NAME ...] [--rows 100000] [--width 1152] [--threads 2]
        [--budget 2048] [--half] [--repeat 0] [--sample 24] [--json]

Without names all of them, whose docstrings say how many blocked passes they need ("Passes:").
Printed are the peak beyond the input while deciding (VmHWM, cleared when the input is there), the
CPU seconds of ``decide``, those of the passes alone (blocked products of the same sizes, written to
one buffer; ``--sample`` blocks of each are measured), and the ratio. With ``--repeat`` both are
measured so many times, turn and turn about, and the shortest of each counts.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import subprocess
import sys
import time
from fractions import Fraction
from inspect import getmodule
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokpipe import registry
from tokpipe.compress._neighbors import blocks
from tokpipe.recipe import build
from tokpipe.spec import StepSpec
from tokpipe.tensors import Query, TokenBatch
from tokpipe.testing.golden import frame_tokens

#: Parameters; a key of ``frames`` tells how many frames the rows lie in, default one.
CASES: dict[str, dict[str, Any]] = {
    "tome": {}, "tosa": {}, "pumer": {}, "dymu": {}, "folder": {}, "max-min": {}, "evtp-ivs": {},
    "dpc-knn": {}, "dpc-fixed-ratio": {}, "gprune": {}, "pact-dbdpc": {}, "floc": {},
    "scissor": {"threshold": 0.85}, "vqtoken-kmeans": {"rounds": 3}, "pact": {}, "prunesid": {},
    "cdpruner": {"relevance": "uniform"}, "mob": {}, "visionzip": {}, "vscan": {}, "prumerge": {},
    "ficoco-v": {}, "dart": {}, "omnizip": {}, "prunevid": {}, "chat-univi": {"scope": "frame"},
    "holitom": {}, "fastvid": {}, "streamingtom": {},
}  # fmt: skip
_WIDTHS = {"attention": (), "attention_shallow": (), "keys": (64,), "queries": (64,),
           "spatial": (64,), "frame_embedding": (64,)}  # fmt: skip


def rows_of(count: int, width: int, half: bool) -> Tensor:
    """Features [N, D]: many things seen often, with noise, made without a second copy."""
    draw = torch.Generator().manual_seed(0)
    kinds = torch.randn(max(16, count // 64), width, generator=draw)
    which = torch.randint(len(kinds), (count,), generator=draw)
    out = torch.empty(count, width, dtype=torch.float16 if half else torch.float32)
    for a in range(0, count, 2048):
        part = kinds[which[a : a + 2048]]
        out[a : a + 2048] = part.add_(torch.randn(part.shape, generator=draw), alpha=0.3)
    return out


def problem(operator: Any, count: int, width: int, half: bool) -> tuple[TokenBatch, Query]:
    """One item of ``count`` tokens: a single frame, so that every rule sees all pairs."""
    draw = torch.Generator().manual_seed(1)
    tokens = frame_tokens(rows_of(count, width, half)[None])
    extras = {need: torch.rand(count, *_WIDTHS[need], generator=draw)
              for need in operator.needs if need in _WIDTHS}  # fmt: skip
    if operator.modalities == ("video", "audio") and "omni" in type(operator).__name__.lower():
        sound = torch.arange(count) % 4 == 0
        tokens = tokens.with_columns(modality=sound.to(tokens.modality.dtype))
    asked = torch.randn(16, width, generator=draw)
    query = Query(text="", pooled=asked[:1], tokens=asked)
    return tokens.with_extras(None, **extras), query


def passes(operator: Any) -> list[tuple[float, str]]:
    """Products that the docstring's line "Passes:" names, as (how many, "N" or "K")."""
    text = getmodule(type(operator)).__doc__ or ""
    found = re.search(r"Passes: ([^.;]*)", " ".join(text.split()))
    if found is None:
        raise SystemExit(f"{type(operator).__name__}: no line Passes: in the docstring")
    terms = re.findall(r"([\d/]+) N x ([NK])", found[1])
    return [(float(Fraction(many)), other) for many, other in terms]


def bare(data: Tensor, other: int, sample: int) -> float:
    """Seconds of one blocked product of all rows with the first ``other``, of a sample of blocks.

    The blocks are those of one row of products by another, as the operators make them.
    """
    parts = list(blocks(data.shape[0], other))
    chosen = parts[:: max(1, len(parts) // sample)] if sample else parts
    buffer = torch.empty(chosen[0][1] - chosen[0][0], other)
    began = time.process_time()
    for a, b in chosen:
        torch.mm(data[a:b], data[:other].T, out=buffer[: b - a])
    spent = time.process_time() - began
    return spent * data.shape[0] / sum(b - a for a, b in chosen)


def status(key: str) -> int:
    """A figure of this process in bytes, such as VmHWM."""
    line = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return 1024 * int(line[1]) if line else 0


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Peak, seconds and ratio of one operator, in this process."""
    torch.set_num_threads(options.threads)
    operator: Any = build(StepSpec(use=name, params=CASES[name]))
    small, query = problem(operator, 300, options.width, options.half)
    # What libraries allocate once is no share of an item.
    operator.decide(small, 20, query)
    bare(rows_of(6000, 256, False), 6000, 0)
    tokens, query = problem(operator, options.rows, options.width, options.half)
    # Freed memory that the C library still holds would hide as much of the peak.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = status("VmHWM")
    began = time.process_time()
    made = operator.decide(tokens, options.budget, query)
    seconds = time.process_time() - began
    peak = status("VmHWM") - before
    found = {"name": name, "rows": options.rows, "width": options.width, "kept": len(made),
             "input_mb": tokens.data.nbytes >> 20, "peak_mb": peak >> 20,
             "seconds": round(seconds, 2)}  # fmt: skip
    if options.half:
        return found
    wanted, times = passes(operator), dict[Any, Any]()
    for i in range(max(1, options.repeat)):
        if i:
            began = time.process_time()
            operator.decide(tokens, options.budget, query)
            seconds = min(seconds, time.process_time() - began)
        for other in {other for _, other in wanted}:
            size = options.rows if other == "N" else min(len(made), options.rows)
            times[other] = min(times.get(other, 1e9), bare(tokens.data, size, options.sample))
    alone = sum(many * times[other] for many, other in wanted)
    return found | {"seconds": round(seconds, 2), "passes": round(alone, 2),
                    "ratio": round(seconds / alone, 2)}  # fmt: skip


def main() -> None:
    """Print one line per operator."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=1152)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=0)
    parser.add_argument("--sample", type=int, default=24)
    parser.add_argument("--half", action="store_true", help="float16 input; memory only")
    parser.add_argument("--json", action="store_true", help="one name, this process, JSON")
    options = parser.parse_args()
    if options.json:
        print(json.dumps(measure(registry.lookup(options.names[0]).name, options)))
        return
    same = [f"--{k}={getattr(options, k)}"
            for k in ("rows", "width", "threads", "budget", "repeat", "sample")]  # fmt: skip
    same += ["--half"] * options.half
    print(
        f"{'operator':18}{'rows':>8}{'kept':>7}{'peak MB':>9}{'s':>9}{'passes s':>10}{'ratio':>7}"
    )
    for name in options.names or CASES:
        command = [sys.executable, __file__, name, *same, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name:18} failed ({done.returncode}): {done.stderr.strip()[-200:]}", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"{name:18}{found['rows']:>8}{found['kept']:>7}{found['peak_mb']:>9}"
              f"{found['seconds']:>9.2f}{found.get('passes', 0):>10.2f}"
              f"{found.get('ratio', 0):>7.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
