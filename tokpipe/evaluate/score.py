"""Score recipes and storyboards on one file, beside uniform, random, downsampled and an oracle."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokpipe.budget import Budget
from tokpipe.cache.reader import open_cache
from tokpipe.decode import probe
from tokpipe.decode.scout import scan_packets
from tokpipe.encoder_choice import encoder_step
from tokpipe.errors import MediaError, MediaNotFound, RecipeError, UnsupportedMedia, error_context
from tokpipe.evaluate._boards import Board, cache_board, folder_board
from tokpipe.evaluate._embed import Descriptors, Embedder, Neural
from tokpipe.evaluate._rows import At, Bench, baseline_rows, board_row
from tokpipe.evaluate._walk import Walk, dense_times
from tokpipe.evaluate.budgets import DEFAULT, tokens_of
from tokpipe.evaluate.report import EvalReport, Kind
from tokpipe.grid import Grid, cell_grid
from tokpipe.ingest import Progress
from tokpipe.job import Job, Options, prepare
from tokpipe.recipe import Recipe
from tokpipe.run import SUFFIX, compress_file
from tokpipe.spec import MediaInfo, StepSpec


def evaluate_file(
    path: str | Path,
    recipes: Sequence[str | Recipe] = ("auto",),
    budgets: Sequence[str] | None = None,
    *,
    encoders: Sequence[str | StepSpec | Embedder] = (),
    storyboards: Sequence[str | Path] = (),
    note: Mapping[str, Any] | None = None,
    fps: float = 2.0,
    options: Options | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> EvalReport:
    """Measure how much of a video its pictures cover after compression.

    Sound is left out: a budget is for pictures alone. The video is decoded once for each recipe
    the bank does not know, and once more to measure.

    Args:
        path: A file with video.
        recipes: As :func:`tokpipe.compress_file` takes them; each must keep pictures.
        budgets: ``8f`` (worth 8 frames of the default grid) or ``2048``; None: 8f, 16f, 32f, 64f,
            or where only storyboards are scored, as many frames as each has pictures.
        encoders: Neural encoders, as ``--encoder`` takes them, in whose features coverage is also
            measured; those :func:`load_embedders` made serve for several files.
        storyboards: Folders with ``manifest.jsonl``, scored like recipes.
        note: Annotation of the file, see :func:`read_annotations`.
        fps: Dense frames a second, above 0.
        options: Of the compression; budget and audio stream are set here.
        seed: Of the random baseline.

    Raises:
        UnsupportedMedia: The file holds no video.
        RecipeError: A recipe is wrong, or keeps features instead of pictures.
        TokpipeError: As compression raises it.
    """
    if not 0 < fps < math.inf:
        raise RecipeError(f"{fps} dense frames a second are out of range", hint="use 2")
    options = replace(options or Options(), audio_stream="none", force=True)
    jobs = {_name(recipe): picture_job(recipe, options) for recipe in recipes}
    folders = [Path(folder) for folder in storyboards]
    embedders = load_embedders(encoders, options)
    with error_context(str(path)), ExitStack() as stack:
        scoring = _Scoring(Path(path), options, stack, progress)
        scoring.ask(jobs, folders, budgets)
        return scoring.measure(embedders, note, fps, seed)


def picture_job(recipe: str | Recipe, options: Options) -> Job:
    """A job whose caches hold pictures.

    Raises:
        RecipeError: It has no chain for video, or a neural encoder in it.
    """
    job = prepare(recipe, options)
    chain = job.chains.get("video")
    if chain is None or chain.late is not None or chain.encoder.domain != "signal":
        raise RecipeError(
            f"the recipe `{job.name}` keeps no pictures to look at",
            hint="use one of the signal; --encoder of `eval` only measures",
        )
    return job


def load_embedders(
    encoders: Sequence[str | StepSpec | Embedder], options: Options
) -> list[Embedder]:
    """The built-in descriptors, and a loaded tower for each encoder named.

    Raises:
        RecipeError: No such encoder, or one of sound.
        ModelError: Its weights are not there.
    """
    made: list[Embedder] = [Descriptors()]
    for one in encoders:
        if isinstance(one, str | StepSpec):
            step = encoder_step(one) if isinstance(one, str) else one
            label = one if isinstance(one, str) else str(step.params.get("model", step.use))
            names = [embedder.name for embedder in made]
            alike = sum(name.partition(" #")[0] == label for name in names)
            label = f"{label} #{alike + 1}" if alike else label
            made.append(Neural(step, options.running(), label))
        elif one.name != made[0].name:
            made.append(one)
    return made


def video_of(path: Path, options: Options) -> tuple[MediaInfo, Grid]:
    """What a file holds, without its sound, and its default grid.

    Raises:
        UnsupportedMedia: It holds no video.
    """
    if probe(path, video_stream=options.video_stream).video is None:
        raise UnsupportedMedia(
            f"`{path.name}` holds no video, and coverage is measured on pictures",
            hint="name files with video",
        )
    info = probe(path, video_stream=options.video_stream, audio_stream="none")
    v = info.video
    assert v is not None  # noqa: S101 - it was there above
    return info, cell_grid(v.width, v.height, v.pixel_aspect)


def read_annotations(path: str | Path) -> dict[str, Mapping[str, Any]]:
    """Annotations by file name: ``slide_changes_s`` (times), ``person_present_s`` (spans).

    Raises:
        MediaNotFound: The file cannot be read.
        MediaError: It is no such JSON.
    """
    hint = 'write {"talk.mp4": {"slide_changes_s": [7.1, 50.8]}}'
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise MediaNotFound(f"cannot read `{path}`: {error.strerror}", hint=hint) from error
    except ValueError as error:
        raise MediaError(f"`{path}` is no JSON: {error}", hint=hint) from error
    if not isinstance(found, dict):
        raise MediaError(f"`{path}` holds no annotations by file name", hint=hint)
    notes: dict[str, Mapping[str, Any]] = {
        str(k): v for k, v in found.items() if isinstance(v, dict)
    }
    for name, note in notes.items():
        _check_note(f"`{path}`, `{name}`", note, hint)
    return notes


def _check_note(where: str, note: Mapping[str, Any], hint: str) -> None:
    try:
        times = [float(t) for t in note.get("slide_changes_s", ())]
        times += [float(t) for a, b in note.get("person_present_s", ()) for t in (a, b)]
        right = all(math.isfinite(t) for t in times)
    except (TypeError, ValueError):
        right = False
    if not right:
        raise MediaError(f"{where}: times are not numbers of seconds", hint=hint)


@dataclass(frozen=True, slots=True)
class _Try:
    """A board and where it is shown; ``budget`` None is under every budget."""

    board: Board
    kind: Kind
    budget: str | None
    used: int | None = None


class _Scoring:
    """One file: what is asked, then the measuring."""

    def __init__(
        self, path: Path, options: Options, stack: ExitStack, progress: Progress | None
    ) -> None:
        self.path, self.options, self.stack, self.progress = path, options, stack, progress
        self.began = time.perf_counter()
        self.info, self.grid = video_of(path, options)
        self.budgets: dict[str, int] = {}
        self.tries: list[_Try] = []

    def ask(
        self, jobs: Mapping[str, Job], folders: Sequence[Path], budgets: Sequence[str] | None
    ) -> None:
        """Compress with every recipe to every budget; open the storyboards."""
        cells = self.grid.cells
        own = budgets is None and not jobs
        named = () if own else DEFAULT if budgets is None else budgets
        self.budgets = {text: tokens_of(text, cells) for text in named}
        place = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="tokpipe-eval-"))
        for text, tokens in self.budgets.items():
            for number, (name, job) in enumerate(jobs.items()):
                self.tries.append(self._compressed(job, name, text, tokens, f"{place}/{number}"))
        for folder in folders:
            board = folder_board(folder)
            worth = f"{len(board)}f"
            if own:
                self.budgets[worth] = len(board) * cells
            self.tries.append(_Try(board, "storyboard", worth if own else None))

    def _compressed(self, job: Job, name: str, text: str, tokens: int, stem: str) -> _Try:
        budget = Budget.parse(tokens)
        job = replace(job, options=replace(self.options, budget=budget), budget=budget)
        target = Path(f"{stem}-{text}{SUFFIX}")
        record = compress_file(self.path, target, job=job, progress=self.progress)
        cache = self.stack.enter_context(open_cache(target))
        return _Try(cache_board(cache, name), "recipe", text, record.tokens["video"])

    def measure(
        self, embedders: Sequence[Embedder], note: Mapping[str, Any] | None, fps: float, seed: int
    ) -> EvalReport:
        """Walk through the video once and make the rows."""
        compressed, cells = time.perf_counter(), self.grid.cells
        asked = [At(text, tokens, cells) for text, tokens in self.budgets.items()]
        counts = sorted({at.frames for at in asked})
        planned = len(dense_times(scan_packets(self.path, self.info).pts.tolist(), fps))
        size = (self.grid.width, self.grid.height)
        boards = [t.board for t in self.tries]
        halves = Bench.halves(planned, counts)
        walk = Walk(size=size, fps=fps, embedders=embedders, boards=boards, halves=halves)
        seen = walk.run(self.path, self.info, self.progress)
        bench = Bench(seen, tuple(e.name for e in embedders), counts, note, seed)
        rows = []
        for at in asked:
            rows += [
                board_row(bench, at, t.board, t.kind, t.used)
                for t in self.tries
                if t.budget in (None, at.budget)
            ]
            rows += baseline_rows(bench, at)
        done = time.perf_counter()
        spans = {"compress": compressed - self.began, "measure": done - compressed}
        return EvalReport(
            input=str(self.path), duration=self.info.duration, fps=fps,
            dense_frames=len(seen.times), cells=cells, picture=size, text_frames=len(seen.rich),
            features=bench.features, rows=tuple(rows), warnings=seen.warnings,
            seconds={k: round(v, 3) for k, v in {**spans, "total": done - self.began}.items()},
        )  # fmt: skip


def _name(recipe: str | Recipe) -> str:
    return recipe if isinstance(recipe, str) else "recipe"
