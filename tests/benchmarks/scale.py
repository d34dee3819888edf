"""Cost per hour of media from ten minutes to a day: the packets of one file copied end to end.

    python tests/benchmarks/scale.py FILE [--hours 0.1667,1,4,24] [--effort balanced] [--out OUT]

Each length is compressed once, filling a bank, and again to half the budget from it. A length that
would pass ``--seconds``, going by the one before, is left out, saying so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tokpipe.evaluate.conditions import conditions
from tokpipe.evaluate.timing import Cost, run_process

VERSION = 1
_COPY = """
import sys
from tokpipe.testing.long_media import repeat_packets
repeat_packets(sys.argv[1], sys.argv[2], seconds=float(sys.argv[3]))
"""


def compress(media: Path, folder: Path, budget: int, effort: str, name: str) -> Cost:
    """One run in a process of its own, with a bank in the folder."""
    command = [
        sys.executable, "-m", "tokpipe.evaluate.workloads", "tokpipe", "run", "compress",
        str(media), "-b", str(budget), "--json", "--force", "--no-progress",
        *(["--effort", effort] if effort else []), "-o", str(folder / f"{name}.safetensors"),
    ]  # fmt: skip
    return run_process(command, env={"TOKPIPE_CACHE_DIR": str(folder / "bank")}, timeout=3600)


def measured(cost: Cost, hours: float) -> dict[str, Any]:
    """What is kept of a run."""
    seconds = cost.output["seconds"]
    return {
        "wall_beyond": cost.wall_beyond, "cpu_beyond": cost.cpu_beyond,
        "cpu_per_hour": round(cost.cpu_beyond / hours, 3), "peak_mb": cost.peak_mb,
        "selection_share": round(seconds["compress"] / max(seconds["total"], 1e-9), 4),
        "seconds": seconds, "frames": cost.output["frames"], "tokens": cost.output["tokens"],
    }  # fmt: skip


def length(source: Path, hours: float, budget: int, effort: str) -> dict[str, Any]:
    """Both runs on one length."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        media = folder / "long.mp4"
        # In a process of its own: what the copy holds in memory must not count.
        subprocess.run([sys.executable, "-c", _COPY, str(source), str(media), str(hours * 3600)],
                       check=True)  # fmt: skip
        first = compress(media, folder, budget, effort, "first")
        held = sum(p.stat().st_size for p in (folder / "bank").rglob("*") if p.is_file())
        second = compress(media, folder, max(1, budget // 2), effort, "second")
        return {
            "hours": hours, "status": "done", "reason": None,
            "media_mb": round(media.stat().st_size / 1e6, 1), "bank_mb": round(held / 1e6, 1),
            "first": measured(first, hours), "again": measured(second, hours),
            "speedup": round(first.wall_beyond / max(second.wall_beyond, 1e-9), 1),
        }  # fmt: skip


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--hours", default="0.1667,1,4,24")
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=840.0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    began, last = time.monotonic(), (0.0, 0.0)
    rows: list[dict[str, Any]] = []
    for hours in sorted(float(text) for text in given.hours.split(",")):
        # Start-up does not grow, so this is more than it will take.
        guess = last[1] * hours / last[0] if last[0] else 0.0
        left = given.seconds - (time.monotonic() - began)
        if rows and guess > left:
            reason = f"would take about {guess:.0f} s of the {left:.0f} s left"
            rows.append({"hours": hours, "status": "skipped", "reason": reason})
            continue
        start = time.monotonic()
        rows.append(length(given.file, hours, given.budget, given.effort))
        last = (hours, time.monotonic() - start)
        sys.stderr.write(f"{hours:g} h: {last[1]:.0f} s\n")
    done = [row["first"]["cpu_per_hour"] for row in rows if row["status"] == "done"]
    found = {
        "version": VERSION, "conditions": conditions(), "file": given.file.name,
        "effort": given.effort, "budget": given.budget, "lengths": rows,
        "most_over_least": round(max(done) / min(done), 3),
    }  # fmt: skip
    text = json.dumps(found, indent=1)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
