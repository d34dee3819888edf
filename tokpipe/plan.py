"""What a run would do, without decoding: counts, bytes, memory, from packets and the bank.

probe ─▶ packet scan ─▶ the recipe's own sampler ─▶ candidates ─▶ the budget's arithmetic
"""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe import registry
from tokpipe.budget import WINDOW, Budget, Supply, split_modalities
from tokpipe.cache.bank import Bank, bank_root
from tokpipe.decide import candidates as bank_candidates
from tokpipe.decide import removes
from tokpipe.decide._audio import CHUNK
from tokpipe.decide._stream import is_stream
from tokpipe.decide._video import BLOCK, POOL, complete
from tokpipe.decode import probe
from tokpipe.decode.scout import PacketScan, frames_of, scan_packets
from tokpipe.digest import fingerprint
from tokpipe.errors import BudgetError, UnsupportedMedia, error_context
from tokpipe.ingest import Chain, bank_key
from tokpipe.run import Job
from tokpipe.spec import StepSpec

#: Seconds of one sound cell.
_CELL = 0.04
#: Cells a decoder may give after the end of the last packet: codec frames are whole.
_TAIL = 4
#: Tokens a second of sound under which merged speech is no longer intelligible.
_THIN_AUDIO = 3.0
#: Mean bytes of a token in the file, measured over the sample media: pixels and descriptor with
#: columns (video), mel with columns and Opus (audio), and header, digests and segments.
_VIDEO_BYTES, _AUDIO_BYTES, _FILE_BYTES = 220, 900, 10_000
#: MB a run takes at least above the imports, and pictures a decoder holds at once.
_RUN_MB, _DECODER_PICTURES = 55.0, 20
#: Bytes a candidate of the pool costs while a reducer looks at it.
_POOL_BYTES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One step and what leaves it.

    Attributes:
        tokens: Tokens after the step (frames after a sampler), None where only a run can tell.
        exact: ``tokens`` is the count, not an upper bound.
    """

    stream: str
    use: str
    kind: str
    params: dict[str, Any]
    gives: str
    tokens: int | None
    exact: bool


@dataclass(slots=True, kw_only=True)
class Plan:
    """What a run would give.

    Attributes:
        candidates, tokens: Per stream and in all.
        exact: Whether each of ``tokens`` is the very count; upper bounds otherwise.
        bytes: Estimated size of the output.
        peak_memory_mb: Predicted peak of the process, imports included.
        pool: Most candidates a step of video scope sees at once, None without such a step.
        reused: Stages that are in the bank already.
        warnings: What will be normalised, and what the budget cannot carry.
    """

    input: str
    duration: float | None
    steps: list[PlannedStep] = field(default_factory=list)
    candidates: dict[str, int] = field(default_factory=dict)
    candidates_exact: dict[str, bool] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    exact: dict[str, bool] = field(default_factory=dict)
    frames: int = 0
    bytes: int = 0
    peak_memory_mb: float = 0.0
    pool: int | None = None
    reused: list[str] = field(default_factory=list)
    budget: str | None = None
    layout: str = "ragged"
    recipe: str = ""
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def plan(path: str | Path, job: Job) -> Plan:
    """Plan one input; reads packet headers and one picture, decodes nothing else.

    Args:
        path: Video or audio file.
        job: Recipe and options, from :func:`tokpipe.run.prepare`.

    Raises:
        TokpipeError: The errors a run would meet before decoding.
    """
    with error_context(str(path)):
        return _Planner(Path(path), job).plan()


@dataclass(slots=True)
class _Offer:
    """What the media has to offer, from the bank if it is there, else from packets."""

    pts: NDArray[np.float64]
    cells: int
    sound: int
    end: float
    least_end: float
    exact_video: bool
    exact_audio: bool

    @property
    def video(self) -> int:
        return len(self.pts) * self.cells

    @property
    def slack(self) -> int:
        """Sound cells that packets may promise and the decoder not give."""
        return 0 if self.exact_audio else 50 + self.sound // 50


class _Planner:
    def __init__(self, path: Path, job: Job) -> None:
        self.path, self.job = path, job
        o = job.options
        self.info = probe(path, video_stream=o.video_stream, audio_stream=o.audio_stream)
        if o.full_hash:
            self.info = replace(self.info, fingerprint=fingerprint(path, full=True)[0])
        self.chains = {
            name: made for name, made in job.chains.items()
            if (self.info.video if name == "video" else self.info.audio) is not None
        }  # fmt: skip
        if not self.chains:
            raise UnsupportedMedia(
                f"the recipe has no chain for what `{path.name}` holds",
                hint="use a recipe with a video and an audio chain, such as auto",
            )
        self.banked = False
        self.offer = self._offer()

    def plan(self) -> Plan:
        offer, job = self.offer, self.job
        made = Plan(
            input=str(self.path), duration=self.info.duration, frames=len(offer.pts),
            budget=str(job.budget) if job.budget else None, layout=job.options.layout, recipe=job.name,
            reused=["decode", "encode"] if self.banked else [],
        )  # fmt: skip
        total = offer.video + offer.sound
        made.candidates = {"video": offer.video, "audio": offer.sound, "total": total}
        made.candidates_exact = {
            "video": offer.exact_video, "audio": offer.exact_audio, "total": offer.exact_video and offer.exact_audio,
        }  # fmt: skip
        made.tokens, made.exact = self._tokens()
        made.steps = list(self._steps(made))
        made.pool = self._pool(made)
        likely = self._likely_split(made.tokens["total"])
        made.bytes = _FILE_BYTES + likely[0] * _VIDEO_BYTES + likely[1] * _AUDIO_BYTES
        made.peak_memory_mb = round(self._memory(made), 1)
        made.warnings = [
            f"{code}: {text}" for code, text in (*self.info.warnings, *self._thin(likely))
        ]
        return made

    def _offer(self) -> _Offer:
        info, o = self.info, self.job.options
        bank = (
            Bank.find(bank_key(info, self.chains, o.strict), bank_root()) if o.keep_bank else None
        )
        if bank is not None:
            self.banked = True
            with closing(bank):
                rows, cols = bank.meta["grid"][:2] if bank.meta["grid"] else (0, 0)
                pts = bank.frames()["pts"].copy()
                end = max(bank.meta["video_end"], bank.meta["audio_end"])
                return _Offer(pts, rows * cols, bank_candidates(bank)[1], end, end, True, True)
        scan = scan_packets(self.path, info)
        sound = math.ceil(scan.audio_end / _CELL) + _TAIL if "audio" in self.chains and scan.audio_end else 0
        pts, cells = self._sampled(scan)
        offer = _Offer(pts, cells, sound, scan.video_end, scan.video_end, scan.failures == 0, sound == 0)
        if sound:
            offer.end = max(scan.video_end, sound * _CELL)
            offer.least_end = max(scan.video_end, (sound - offer.slack) * _CELL)
        return offer

    def _sampled(self, scan: PacketScan) -> tuple[NDArray[np.float64], int]:
        if "video" not in self.chains:
            return np.zeros(0), 0
        video = self.chains["video"]
        frames: Any = frames_of(scan)
        if video.sampler is not None:
            frames = video.sampler.sample(frames)
        pts = np.array([frame.pts for frame in frames], dtype=np.float64)
        return pts, int(video.encoder.grid(self.info).cells)

    def _tokens(self) -> tuple[dict[str, int], dict[str, bool]]:
        """Counts and whether they are exact."""
        offer, budget = self.offer, self.job.budget
        if budget is None:
            bound = {"video": offer.video, "audio": offer.sound, "total": offer.video + offer.sound}
            keeps = {name: _keeps_all(chain.reducers) for name, chain in self.chains.items()}
            sure = {
                "video": keeps.get("video", True) and offer.exact_video,
                "audio": keeps.get("audio", True) and offer.exact_audio,
            }
            return bound, sure | {"total": all(sure.values())}
        if budget.form == "per_frame" and not len(offer.pts):
            raise BudgetError(
                "a budget per frame needs video", hint="use a total or 20/s", code="budget.form"
            )
        if budget.form == "split":
            video, sure_video = self._shaped(min(budget.video or 0, offer.video))
            audio = min(budget.audio or 0, offer.sound)
            sure_audio = audio <= offer.sound - offer.slack or offer.exact_audio
            tokens = {"video": video, "audio": audio, "total": video + audio}
            sure = {"video": sure_video, "audio": sure_audio, "total": sure_video and sure_audio}
        else:
            tokens, sure = self._one_total(budget)
        if not self._meets():
            sure = dict.fromkeys(sure, False)
        return tokens, sure

    def _one_total(self, budget: Budget) -> tuple[dict[str, int], dict[str, bool]]:
        offer = self.offer
        total = self._spent(budget, offer.sound, offer.end)
        low = self._spent(budget, max(0, offer.sound - offer.slack), offer.least_end)
        sure = offer.exact_video and (total == low or offer.exact_audio)
        if self.job.options.layout != "ragged":
            # What whole shapes leave over goes to the sound, as far as there is any.
            if not offer.sound:
                total, sure = self._shaped(total)
            elif budget.form != "total" or offer.sound - offer.slack < total:
                sure = False
        video, audio = min(total, offer.video), min(total, offer.sound)
        alone = {"video": sure and not audio, "audio": sure and not video}
        return {"video": video, "audio": audio, "total": total}, alone | {"total": sure}

    def _spent(self, budget: Budget, sound: int, end: float) -> int:
        """Tokens over all windows of media with so many sound cells: the run's arithmetic."""
        offer, spent, seen = self.offer, 0, 0
        for start, stop in _windows(end, None if budget.form == "total" else WINDOW):
            inside = offer.pts >= start
            inside &= offer.pts < (np.inf if stop is None else stop)
            frames = int(inside.sum())
            cells = min(sound, sound if stop is None else round(stop / _CELL)) - min(
                sound, round(start / _CELL)
            )
            supply = frames * offer.cells + cells
            seen += supply
            if budget.form == "total":
                due = int(budget.amount)
            elif budget.form == "per_frame":
                due = int(budget.amount) * frames
                supply = frames * min(offer.cells, int(budget.amount)) + cells
            elif budget.form == "percent":
                due = int(budget.amount * seen / 100) - spent
            else:
                due = int(float(budget.amount) * min(end, stop or end)) - spent
            least = int(stop is None and spent == 0 and budget.form in ("percent", "per_second"))
            spent += min(max(due, least, 0), supply)
        return spent

    def _shaped(self, budget: int) -> tuple[int, bool]:
        """Video tokens of the layout within a budget, and whether that is certain."""
        offer, layout = self.offer, self.job.options.layout
        if layout == "ragged" or not budget or "video" not in self.chains:
            return budget, offer.exact_video
        _, final = complete(self.chains["video"].reducers, budgeted=True)
        if not hasattr(final, "settle"):
            return (
                budget // offer.cells * offer.cells
                if layout == "frames" and budget >= offer.cells
                else budget,
                False,
            )
        grid = self.chains["video"].encoder.grid(self.info)
        state = final.begin(0, grid.rows, grid.cols)
        state.frames = len(offer.pts)
        final.settle(state, budget, layout, None)
        whole = len(state.chosen)
        return whole // offer.cells * len(
            state.pieces
        ) if state.pieces else whole, offer.exact_video

    def _meets(self) -> bool:
        """No step before the last takes tokens away by itself, so the budget is met exactly."""
        for name, chain in self.chains.items():
            before, _ = (
                complete(chain.reducers, budgeted=True)
                if name == "video"
                else (chain.reducers[:-1], None)
            )
            if not _keeps_all(before) or any(removes(r) for r in chain.reducers):
                return False
        return True

    def _steps(self, made: Plan) -> Iterator[PlannedStep]:
        for stream, chain in self.chains.items():
            specs = [(step, registry.lookup(step.use).kind) for step in chain.steps]
            last = len(specs) - 1
            for i, (step, kind) in enumerate(specs):
                yield self._step(made, stream, step, kind, final=i == last)

    def _step(
        self, made: Plan, stream: str, step: StepSpec, kind: str, *, final: bool
    ) -> PlannedStep:
        sure = made.candidates_exact[stream]
        if kind == "sampler":
            gives, tokens = "frames", made.frames
        elif kind == "encoder":
            spec = self.chains[stream].encoder.out_spec(self.info, made.frames)
            gives = (
                f"{spec.grid[0]}x{spec.grid[1]} cells, D {spec.dim} {spec.dtype}"
                if stream == "video"
                else f"40 ms cells, D {spec.dim} {spec.dtype}"
            )
            tokens = made.candidates[stream]
        elif final and (made.budget is not None or not removes(self._built(stream, step))):
            gives, tokens, sure = "kept", made.tokens[stream], made.exact[stream]
        else:
            operator = self._built(stream, step)
            keeps = _keeps_all([operator])
            gives = "scored" if keeps else "reduced"
            tokens, sure = made.candidates[stream], keeps and sure
        return PlannedStep(
            stream=stream,
            use=step.use,
            kind=kind,
            params=step.params,
            gives=gives,
            tokens=tokens,
            exact=sure,
        )

    def _built(self, stream: str, step: StepSpec) -> Any:
        chain: Chain = self.chains[stream]
        reducers = [s for s in chain.steps if registry.lookup(s.use).kind == "reducer"]
        return chain.reducers[reducers.index(step)]

    def _pool(self, made: Plan) -> int | None:
        if "video" not in self.chains or self.job.budget is None:
            return None
        _, final = complete(self.chains["video"].reducers, budgeted=True)
        if hasattr(final, "settle") or final.scope == "frame":
            return None
        wanted = made.tokens["video"]
        return min(self.offer.video, max(wanted, self.job.options.pool or max(16 * wanted, POOL)))

    def _likely_split(self, total: int) -> tuple[int, int]:
        """Tokens of each stream when everything is worth having."""
        budget, offer = self.job.budget, self.offer
        if budget is not None and budget.form == "split":
            return min(budget.video or 0, offer.video), min(budget.audio or 0, offer.sound)
        share = Fraction(str(self.job.options.audio_share))
        video, audio = Supply(offer.video, offer.video), Supply(offer.sound, offer.sound)
        return split_modalities(total, video, audio, share=share)

    def _memory(self, made: Plan) -> float:
        """Megabytes: what is there anyway, pictures under way, and what is decided upon at once."""
        total = _resident() + _RUN_MB
        video, o = self.info.video, self.job.options
        if video is not None and "video" in self.chains and not self.banked:
            grid = self.chains["video"].encoder.grid(self.info)
            total += _DECODER_PICTURES * video.width * video.height * 1.5 / 1e6
            total += (o.prefetch + 3) * o.batch_size * grid.width * grid.height * 3 / 1e6
        block = BLOCK * self.offer.cells * _POOL_BYTES * 3
        sound = min(CHUNK, self.offer.sound) * _POOL_BYTES
        kept = made.tokens["total"] * 2000 + min(made.tokens["video"], self.offer.video) * 60
        return total + (block + sound + kept + (made.pool or 0) * _POOL_BYTES) / 1e6

    def _thin(self, likely: tuple[int, int]) -> Iterator[tuple[str, str]]:
        """What the budget cannot carry."""
        offer = self.offer
        if self.job.budget is None:
            return
        if len(offer.pts) and likely[0] < offer.cells:
            yield (
                "thin-video",
                f"{likely[0]} video tokens are less than one frame of {offer.cells} cells",
            )
        seconds = offer.sound * _CELL
        if offer.sound and likely[1] < _THIN_AUDIO * seconds and likely[1] < offer.sound:
            text = f"{likely[1]} audio tokens for up to {seconds:.0f} s of sound: speech will not be intelligible"
            yield "thin-audio", f"{text}; raise the budget or --audio-share"


@cache
def _resident() -> float:
    """Megabytes this process takes with everything imported, before any work."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _keeps_all(reducers: list[Any]) -> bool:
    """None of these reducers takes tokens away without a budget."""
    for reducer in reducers:
        if removes(reducer):
            return False
        if hasattr(reducer, "out_count"):
            if reducer.out_count(1000, None) != (1000, True):
                return False
        elif not is_stream(reducer) and not getattr(reducer, "light", False):
            return False
    return True


def _windows(end: float, width: float | None) -> Iterator[tuple[float, float | None]]:
    """The windows a budget is settled over, as the engine cuts them."""
    count = 1 if width is None else max(1, int(-(-end // width)))
    for i in range(count):
        yield i * (width or 0.0), None if i == count - 1 else (i + 1) * (width or 0.0)
