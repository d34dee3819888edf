"""Compare ``compress`` with other readers on one file, turn and turn about.

Every run is a process of its own. In each round every competitor runs once, and beside it a
process that only imports; the order turns from round to round.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokpipe.errors import ResourceError
from tokpipe.evaluate.bench_report import Competitor, FileResult, Ratio, Run, Usage
from tokpipe.evaluate.recall import file_recall
from tokpipe.evaluate.timing import Cost, ProcessFailed, median, ratios, run_process

#: Words of ``--peers``, the competitors each stands for, and the module they need.
PEERS: dict[str, tuple[tuple[str, ...], str]] = {
    "pyav": (("pyav-1", "pyav-auto"), "av"),
    "decord": (("decord",), "decord"),
    "torchcodec": (("torchcodec",), "torchcodec"),
    "scenedetect": (("scenedetect",), "scenedetect"),
    "open-clip-loop": (("open-clip-loop",), "open_clip"),
}
WHAT = {
    "tokpipe": "compress, no bank",
    "tokpipe-bank": "compress, filling the bank",
    "tokpipe-reuse": "compress to another budget from the bank",
    "tokpipe-open-clip": "compress with an open_clip tower, no bank",
    "pyav-1": "PyAV, every picture and the sound, 1 thread",
    "pyav-auto": "PyAV, every picture and the sound, threads AUTO",
    "decord": "decord, get_batch at an even rate, pictures only",
    "torchcodec": "torchcodec, exact times at an even rate, pictures only",
    "scenedetect": "PySceneDetect detect-content and middle pictures",
    "open-clip-loop": "PyAV and open_clip, {most} pictures at most",
}
Seen = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to compare.

    Attributes:
        peers: Words of `PEERS`.
        runs: Rounds.
        budget: Tokens; the run from the bank has half as many.
        fps: Pictures a second of the sampling loops and of ours; None leaves ours its own.
        efforts: Values of ``--effort`` for ours; ``""`` does not pass the option.
        most: Pictures the open_clip loop encodes at most.
        model: Its model, with random weights.
        once: Words of `PEERS` that run in the first round only.
        timeout: Seconds of one process.
        time_budget: Seconds of one file: no round starts that would pass it. 0 sets no limit.
    """

    peers: tuple[str, ...] = tuple(PEERS)
    runs: int = 3
    budget: int = 2048
    fps: float | None = None
    efforts: tuple[str, ...] = ("",)
    most: int = 64
    model: str = "ViT-B-32"
    once: tuple[str, ...] = ()
    timeout: float = 900.0
    time_budget: float = 0.0

    @property
    def rate(self) -> float:
        """Pictures a second of the sampling loops."""
        return 2.0 if self.fps is None else self.fps


@dataclass(slots=True)
class _Entry:
    """A competitor while it is measured; the command of ours ends with where its cache goes."""

    shown: Competitor
    command: list[str]
    load: list[str]
    once: bool = False
    works: list[Cost] = field(default_factory=list)
    cache: Path | None = None

    @property
    def open(self) -> bool:
        return self.shown.status == "done"


def _workload(name: str, *rest: str) -> list[str]:
    return [sys.executable, "-m", "tokpipe.evaluate.workloads", name, *rest]


def _entries(path: Path, plan: Plan) -> list[list[_Entry]]:
    """Competitors in groups that must run one after the other."""
    groups = []
    full, half = str(plan.budget), str(max(1, plan.budget // 2))
    tower = f"open_clip:{plan.model}@random"
    for effort in plan.efforts:
        groups.append([_ours(path, plan, "tokpipe", effort, "-b", full, "--no-bank")])
        groups.append(
            [
                _ours(path, plan, "tokpipe-bank", effort, "-b", full),
                _ours(path, plan, "tokpipe-reuse", effort, "-b", half),
            ]
        )
    if "open-clip-loop" in plan.peers:
        effort = "balanced" if "balanced" in plan.efforts else plan.efforts[0]
        words = ("-b", full, "--no-bank", "-e", tower)
        groups.append([_ours(path, plan, "tokpipe-open-clip", effort, *words)])
        groups[-1][0].once = "open-clip-loop" in plan.once
    asked = json.dumps({"fps": plan.rate, "most": plan.most, "model": plan.model})
    for word in plan.peers:
        names, module = PEERS[word]
        for name in names:
            shown = _shown(name, False, WHAT[name].format(most=plan.most), module)
            command = _workload(name, "run", str(path), asked)
            load = _workload(name, "imports")
            groups.append([_Entry(shown, command, load, once=word in plan.once)])
    return groups


def _ours(path: Path, plan: Plan, kind: str, effort: str, *words: str) -> _Entry:
    rest = [*words, *([] if plan.fps is None else ["--fps", f"{plan.fps:g}"])]
    rest += ["--effort", effort] if effort else []
    own = kind if kind == "tokpipe-open-clip" else "tokpipe"
    command = _workload(own, "run", "compress", str(path), *rest, "--json", "--force",
                        "--no-progress", "-o")  # fmt: skip
    name = f"{kind}:{effort}" if effort else kind
    shown = _shown(name, True, WHAT[kind], "av" if own == "tokpipe" else "open_clip")
    return _Entry(shown, command, _workload(own, "imports"))


def _shown(name: str, ours: bool, what: str, module: str) -> Competitor:
    found = Competitor(name=name, ours=ours, what=what)
    if importlib.util.find_spec(module) is None:
        found.status, found.reason = "skipped", f"{module} is not installed"
    return found


def compare(
    path: Path, plan: Plan, *, annotations: Path | None = None, seen: Seen | None = None
) -> FileResult:
    """Measure every competitor on one file.

    Args:
        path: Video file.
        plan: What to compare.
        annotations: JSON with the times of events, see `tokpipe.evaluate.recall`.
        seen: Called with the name of every process before it starts.

    Returns:
        Costs, ratios, and recall where there are annotations. A missing peer is ``skipped``, one
        that cannot read the file ``failed``, each with its reason.

    Raises:
        MediaError: The file cannot be read by tokpipe itself.
        ResourceError: Another process is asked for fewer than one run.
    """
    from tokpipe.decode import probe

    if plan.runs < 1:
        raise ResourceError(f"{plan.runs} runs measure nothing", hint="ask for one or more")
    info = probe(path)
    groups = _entries(path, plan)
    every = [entry for group in groups for entry in group]
    began, longest, rounds = time.perf_counter(), 0.0, 0
    with tempfile.TemporaryDirectory(prefix="tokpipe-bench-") as name:
        for number in range(plan.runs):
            start = time.perf_counter()
            if number and plan.time_budget and start - began + longest > plan.time_budget:
                break
            shutil.rmtree(Path(name) / f"{number - 1}", ignore_errors=True)
            turn = number % len(groups)
            loaded: dict[tuple[str, ...], Usage] = {}
            for group in [*groups[turn:], *groups[:turn]]:
                for entry in group:
                    if not (number and entry.once):
                        _measure(entry, Path(name) / f"{number}", plan, loaded, seen)
            rounds, longest = number + 1, max(longest, time.perf_counter() - start)
        for entry in every:
            _close(entry)
        recall = {}
        if annotations is not None:
            caches = {
                e.shown.name: e.cache for e in every
                if e.open and e.cache is not None and not e.shown.name.startswith("tokpipe-bank")
            }  # fmt: skip
            times = {e.shown.name: e.works[-1].output.get("times") for e in every if e.works}
            recall = file_recall(annotations, path, info.duration, caches, times)
    video = info.video
    return FileResult(
        file=path.name, duration=info.duration, budget=plan.budget, rounds=rounds,
        video="none" if video is None else f"{video.codec} {video.width}x{video.height}",
        competitors=[e.shown for e in every], ratios=_ratios(every), recall=recall,
    )  # fmt: skip


def _measure(
    entry: _Entry, folder: Path, plan: Plan, loaded: dict[tuple[str, ...], Usage], seen: Seen | None
) -> None:
    """Run a competitor once, and before it a process that only imports, one for equal imports."""
    if not entry.open:
        return
    # The run that reuses the bank finds the one of this round.
    home = folder / entry.shown.name.replace("tokpipe-reuse", "tokpipe-bank").replace(":", "-")
    home.mkdir(parents=True, exist_ok=True)
    command = entry.command
    if entry.shown.ours:
        entry.cache = home / f"{entry.shown.name.replace(':', '-')}.safetensors"
        command = [*command, str(entry.cache)]
    own = {"TOKPIPE_CACHE_DIR": str(home / "bank")}
    say = seen or (lambda _: None)
    ready = False
    try:
        if (key := tuple(entry.load)) not in loaded:
            say(f"{entry.shown.name}, imports")
            cost = run_process(entry.load, env=own, timeout=plan.timeout)
            loaded[key] = Usage(wall=cost.wall, cpu=cost.cpu, peak_mb=cost.peak_mb)
        entry.shown.imports.append(loaded[key])
        ready = True
        say(entry.shown.name)
        entry.works.append(run_process(command, env=own, timeout=plan.timeout))
    except ProcessFailed as error:
        # What cannot even be imported is not there.
        entry.shown.status = "failed" if ready else "skipped"
        entry.shown.reason = str(error)


_DETAIL = ("tokens", "frames", "seconds", "reused", "candidates", "bytes", "warnings")


def _close(entry: _Entry) -> None:
    """Fill in the runs beyond imports and their medians."""
    shown = entry.shown
    if not entry.works:
        return
    shown.runs = [
        Run(
            wall=w.wall, cpu=w.cpu, peak_mb=w.peak_mb, frames=_frames(w),
            cpu_beyond=w.cpu_beyond, wall_beyond=w.wall_beyond,
        )
        for w in entry.works
    ]  # fmt: skip
    middle = {
        name: median([getattr(run, name) for run in shown.runs])
        for name in ("wall", "cpu", "peak_mb", "cpu_beyond", "wall_beyond")
    }
    shown.median = Run(**middle, frames=shown.runs[-1].frames)
    if shown.ours:
        said = entry.works[-1].output
        shown.detail = {name: said[name] for name in _DETAIL if name in said}


def _frames(cost: Cost) -> int | None:
    frames = cost.output.get("frames")
    return frames.get("decoded") if isinstance(frames, dict) else frames


def _ratios(every: Sequence[_Entry]) -> list[Ratio]:
    """Ours over every peer it does the work of; what the bank costs, and what it saves."""
    ran = [e.shown for e in every if e.open and e.shown.runs]
    found = [
        _ratio(ours, theirs) for ours in ran if ours.ours for theirs in ran if _pair(ours, theirs)
    ]
    return [r for r in found if r is not None]


def _pair(ours: Competitor, theirs: Competitor) -> bool:
    kind = ours.name.partition(":")[0]
    if kind == "tokpipe-reuse":
        return theirs.name == ours.name.replace("reuse", "bank")
    if kind == "tokpipe-bank":
        return theirs.name.startswith("pyav")
    neural = kind == "tokpipe-open-clip"
    return not theirs.ours and neural == (theirs.name == "open-clip-loop")


def _ratio(ours: Competitor, theirs: Competitor) -> Ratio | None:
    cpu, wall = (
        ratios([getattr(r, n) for r in ours.runs], [getattr(r, n) for r in theirs.runs])
        for n in ("cpu_beyond", "wall_beyond")
    )
    if not cpu or not wall:
        return None
    return Ratio(
        ours=ours.name, theirs=theirs.name, cpu=cpu, cpu_median=median(cpu, 4),
        wall=wall, wall_median=median(wall, 4),
    )  # fmt: skip
