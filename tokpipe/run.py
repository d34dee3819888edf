"""Run one item: probe, fill the bank or find it, decide, write the cache, say what happened."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from tokpipe.assemble import Assembler, describe_media, describe_run
from tokpipe.budget import Budget
from tokpipe.cache import format as cache_format
from tokpipe.cache.reader import open_cache
from tokpipe.cache.writer import CacheWriter, sweep_stale
from tokpipe.chain import Chain
from tokpipe.decide import AudioSide, Demand, candidates, decide
from tokpipe.decode import probe
from tokpipe.device import peak_memory_mb, pick_device
from tokpipe.digest import fingerprint
from tokpipe.encoder_choice import encoder_step, with_encoders
from tokpipe.errors import (
    BudgetError,
    CacheError,
    OutputExists,
    ResourceError,
    UnsupportedMedia,
    error_context,
)
from tokpipe.ingest import Ingested, Progress, ingest
from tokpipe.job import DEFAULT_RECIPE, Job, Options, prepare, with_budget
from tokpipe.late_bank import BankFeatures, cache_dtype, describe_tower
from tokpipe.recipe import Recipe, load_recipe
from tokpipe.remarks import remarks
from tokpipe.spec import SERIOUS, MediaInfo

__all__ = ["Job", "Options", "RunRecord", "compress_file", "output_path", "prepare"]

SUFFIX = cache_format.SUFFIX
_STAGES = ("scout", "decode", "encode", "compress", "write")


@dataclass(slots=True)
class RunRecord:
    """What happened to one input; :meth:`to_dict` is the ``item`` event."""

    input: str
    output: str
    status: str = "done"
    reused: list[str] = field(default_factory=list)
    candidates: int = 0
    tokens: dict[str, int] = field(
        default_factory=lambda: {"video": 0, "audio": 0, "text": 0, "total": 0}
    )
    frames: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    peak_rss_mb: float = 0.0
    bytes: int = 0
    layout: str = "ragged"
    recipe: str = ""
    budget: str | None = None
    unused: int = 0
    duration: float | None = None
    encoder: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def closed(self, total: float) -> RunRecord:
        """The record with all stages timed and the memory of the process."""
        self.seconds = {name: round(self.seconds.get(name, 0.0), 4) for name in _STAGES}
        self.seconds["total"] = round(total, 4)
        self.peak_rss_mb = round(peak_memory_mb(), 1)
        return self


def output_path(source: Path, output: str | Path | None = None) -> Path:
    """Where a cache goes: beside the input, into a folder, or to a named file."""
    name = source.with_suffix("").name + SUFFIX
    if output is None:
        return source.with_name(name)
    target = Path(output)
    return target / name if target.is_dir() else target


def compress_file(
    source: str | Path,
    output: str | Path | None = None,
    *,
    recipe: str | Recipe = DEFAULT_RECIPE,
    budget: str | int | Budget | None = None,
    encoder: str | Sequence[str] = (),
    options: Options | None = None,
    job: Job | None = None,
    progress: Progress | None = None,
) -> RunRecord:
    """Compress one media file to a token cache.

    Args:
        source: Video or audio file.
        output: File, or folder to put ``NAME.tokpipe.safetensors`` in; default beside the input.
        recipe: Preset name, TOML path, one-line recipe or Recipe.
        budget: As :meth:`Budget.parse` reads it; overrides ``options.budget``.
        encoder: Neural encoders as ``--encoder`` takes them, at most one for each stream.
        job: A prepared recipe and options, instead of the three before.
        progress: Called with stage, media seconds done and in all.

    Returns:
        What happened; ``status`` is done, warned or skipped.

    Raises:
        TokpipeError: Any of its leaves; nothing is left under the final name.
    """
    names = [encoder] if isinstance(encoder, str) else encoder
    if names:
        made = load_recipe(recipe) if isinstance(recipe, str) else recipe
        recipe = with_encoders(made, [encoder_step(name) for name in names])
    job = job or prepare(recipe, with_budget(options, budget))
    path, target = Path(source), output_path(Path(source), output)
    with error_context(str(path)):
        return _Item(path, target, job, progress).run()


class _Item:
    def __init__(self, path: Path, target: Path, job: Job, progress: Progress | None) -> None:
        self.path, self.target, self.job, self.progress = path, target, job, progress
        o = job.options
        self.record = RunRecord(
            input=str(path), output=str(target), layout=o.layout, recipe=job.name
        )
        self.record.budget = str(job.budget) if job.budget else None
        self.speech: list[list[float]] = []
        self.kept_frames = 0
        self.cpu, self.began = _cpu_seconds(), time.perf_counter()

    def run(self) -> RunRecord:
        o = self.job.options
        info = probe(self.path, video_stream=o.video_stream, audio_stream=o.audio_stream)
        if o.full_hash:
            info = replace(info, fingerprint=fingerprint(self.path, full=True)[0])
        self.record.duration = info.duration
        if self._is_there(info):
            self.record.status = "skipped"
            return self._close()
        chains = {
            name: made for name, made in self.job.chains.items()
            if (info.video if name == "video" else info.audio) is not None
        }  # fmt: skip
        if not chains:
            raise UnsupportedMedia(
                f"the recipe has no chain for what `{self.path.name}` holds",
                hint="use a recipe with a video and an audio chain, such as auto",
            )
        found = ingest(
            self.path, info, chains, keep=o.keep_bank, strict=o.strict,
            decoder=o.decoder, device=str(pick_device(o.device)),
            batch_size=o.batch_size, depth=o.prefetch, progress=self.progress,
            effort=o.effort, threads=o.threads,
        )  # fmt: skip
        try:
            self._compress(info, chains, found)
        except OutputExists:
            # Another run of the same line was faster; anything else that is there raises again.
            if not self._is_there(info):
                raise
            self.record.status = "skipped"
        finally:
            found.bank.close()
        return self._close()

    def _is_there(self, info: MediaInfo) -> bool:
        """The output exists and was made from the same source by the same settings."""
        if not self.target.exists():
            return False
        if self.job.options.force:
            refuse_foreign(self.target)
            return False
        with suppress(CacheError), open_cache(self.target) as cache:
            same = (
                cache.info.get("fingerprint") == info.fingerprint
                and cache.metadata.get("tokpipe.recipe_sha256") == self.job.digest()
            )
            if same:
                self._count_existing(cache)
                return True
        raise OutputExists(
            f"`{self.target}` is there already and was made differently",
            hint="add --force to replace it, or name another output with -o",
        )

    def _count_existing(self, cache: Any) -> None:
        counts = {name: cache.num_tokens(name) for name in cache.streams}
        self.record.tokens |= {**counts, "total": sum(counts.values())}
        self.record.bytes = self.target.stat().st_size

    def _compress(self, info: MediaInfo, chains: dict[str, Chain], found: Ingested) -> None:
        o, record, bank = self.job.options, self.record, found.bank
        if sum(candidates(bank)) == 0:
            raise UnsupportedMedia(
                f"`{self.path.name}` holds nothing to compress",
                hint="check that it plays elsewhere",
            )
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(
                f"cannot write to `{self.target.parent}`: {error.strerror or error}",
                hint="name another output with -o",
            ) from error
        sweep_stale(self.target.parent)
        with BankFeatures(bank, found.key, chains, o.running(), o.query) as late:
            demand = Demand(
                budget=self.job.budget, layout=o.layout, share=Fraction(str(o.audio_share)),
                pool=o.pool, device=o.device, features=late.found, query=late.query,
            )  # fmt: skip
            record.candidates = sum(candidates(bank, late.found))
            self._watch(late, info)
            self._write(info, chains, found, demand, late)
            encoded = late.encoded
            if "video" not in late.found and not found.reused:
                encoded = bank.meta["steps"]
        record.frames = {
            "decoded": 0 if found.reused else bank.meta["decoded"], "sampled": bank.meta["steps"],
            "encoded": encoded, "kept": self.kept_frames,
        }  # fmt: skip
        record.reused = ["decode"] if found.reused else []
        record.reused += ["encode"] if found.reused and not encoded else []
        record.seconds |= {**found.seconds, "encode": found.seconds["encode"] + late.seconds}
        record.encoder = {name: (made.late or made).encoder_name for name, made in chains.items()}
        record.bytes = self.target.stat().st_size

    def _watch(self, late: BankFeatures, info: MediaInfo) -> None:
        """Report pictures as they are encoded, by their time in the media."""
        progress, pictures = self.progress, late.found.get("video")
        if progress is not None and pictures is not None:
            pts = late.bank.frames()["pts"].copy()
            pictures.report = lambda step: progress("encode", float(pts[step]), info.duration)

    def _write(
        self, info: MediaInfo, chains: dict[str, Chain], found: Ingested, demand: Demand,
        late: BankFeatures,
    ) -> None:  # fmt: skip
        o, record, bank = self.job.options, self.record, found.bank
        began, before = time.perf_counter(), late.seconds
        dtypes = {name: cache_dtype(made, o) for name, made in chains.items()}
        with CacheWriter(self.target, force=o.force, dtype=dtypes) as writer:
            features = set(demand.features)
            assembler = Assembler(bank, writer, o.audio_codec, features=features)
            pooled: list[tuple[int, int]] = []
            for kept in decide(bank, chains, demand):
                assembler.add(kept)
                if kept.pooled is not None:
                    pooled.append((kept.pooled, kept.source))
                if self.progress is not None:
                    at = float(kept.tokens.at[-1]) if len(kept.tokens) else 0.0
                    self.progress("compress", at, info.duration)
            record.seconds["compress"] = time.perf_counter() - began - (late.seconds - before)
            done = assembler.done
            self.kept_frames = done.frames
            record.tokens = {**done.tokens, "text": 0, "total": sum(done.tokens.values())}
            if not record.tokens["total"]:
                limit = f" within a budget of {self.job.budget}" if self.job.budget else ""
                raise BudgetError(
                    f"the recipe leaves nothing of what the file holds{limit}",
                    hint="give the stream that is there a share, or remove less",
                )
            self.speech = _speech(found, chains, o.device)
            self._warn(info, found, done.tokens, pooled, demand.features)
            began = time.perf_counter()
            assembler.finish(self._metadata(info, chains, found, demand))
            record.seconds["write"] = time.perf_counter() - began

    def _metadata(
        self, info: MediaInfo, chains: dict[str, Chain], found: Ingested, demand: Demand
    ) -> dict[str, Any]:
        used = {s for s in ("video", "audio") if self.record.tokens[s]}
        kept = {name: made for name, made in chains.items() if name in used}
        method = "full" if self.job.options.full_hash else "head-middle-tail"
        towers = {
            f"tokpipe.encoder.{name}": describe_tower(name, made.late, demand.features[name])
            for name, made in kept.items()
            if made.late is not None
        }
        return {
            "tokpipe.domain": "feature" if towers else "signal",
            "tokpipe.layout": self.job.options.layout,
            "tokpipe.source": describe_media(info, method),
            "tokpipe.speech": self.speech,
            "tokpipe.recipe": self.job.settings(), "tokpipe.recipe_sha256": self.job.digest(),
            **describe_run(info, found.bank, kept, self.record.warnings), **towers,
        }  # fmt: skip

    def _warn(
        self, info: MediaInfo, found: Ingested, tokens: dict[str, int],
        pooled: list[tuple[int, int]], late: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """Collect notes; say aloud what the budget cannot carry and what it left unused."""
        notes = remarks(info, found.bank, self.job, tokens, self.speech, pooled, late)
        total, budget = sum(tokens.values()), self.job.budget
        if budget is not None and budget.form == "total":
            self.record.unused = max(0, int(budget.amount) - total)
        self.record.warnings = [f"{code}: {text}" for code, text in notes]
        if any(code in SERIOUS for code, _ in notes):
            self.record.status = "warned"

    def _close(self) -> RunRecord:
        self.record.cpu_seconds = round(_cpu_seconds() - self.cpu, 4)
        return self.record.closed(time.perf_counter() - self.began)


def refuse_foreign(target: Path) -> None:
    """``--force`` replaces caches, also broken ones, and nothing else."""
    head = b""
    if target.is_file():
        with suppress(OSError), target.open("rb") as stream:
            head = stream.read(1 << 16)
        if not head or b"tokpipe." in head or target.name.endswith(SUFFIX):
            return
    raise OutputExists(
        f"`{target}` is there already and is no token cache",
        hint="name another output with -o; --force replaces token caches only",
    )


def _speech(found: Ingested, chains: dict[str, Chain], device: str) -> list[list[float]]:
    """Stretches [start, stop] of sound that the audio chain's own gate hears."""
    if "audio" not in chains or not found.bank.meta["cells"]:
        return []
    side = AudioSide(found.bank, chains["audio"], budgeted=True, device=device)
    return [[round(start, 3), round(stop, 3)] for start, stop in side.spans()]


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
