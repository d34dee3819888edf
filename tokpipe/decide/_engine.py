"""Windows, the split between streams, and what each keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from torch import Tensor

from tokpipe.budget import AUDIO_SHARE, WINDOW, Budget, Supply, split_modalities
from tokpipe.cache.bank import Bank
from tokpipe.chain import Chain
from tokpipe.decide._audio import AudioSide
from tokpipe.decide._feed import CellFeed
from tokpipe.decide._late_audio import LateAudio
from tokpipe.decide._late_video import LateVideo, each_picture
from tokpipe.decide._video import VideoSide, complete
from tokpipe.errors import BudgetError, RecipeError
from tokpipe.spec import Layout
from tokpipe.tensors import Query, TokenBatch
from tokpipe.towers import PictureFeatures, SoundFeatures

_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(slots=True)
class Kept:
    """Rows of one stream in one window, in the cache's order.

    Attributes:
        priority: float64 [K] in (0, 1): low ones are given up last; comparable across windows.
        source: Candidates they were chosen from.
        pooled: Candidates that the pool held for a rule that sees them all at once, None where
            every candidate was looked at.
        scale: Times the grid of ``tokens`` is finer than the video's.
    """

    stream: str
    tokens: TokenBatch
    priority: Tensor
    source: int
    pooled: int | None = None
    scale: int = 1


@dataclass(slots=True, kw_only=True)
class Demand:
    """What is asked for.

    Attributes:
        budget: None leaves the count to the rules' own thresholds.
        share: Part of one total that goes to audio first.
        pool: Most tokens a reducer of video scope sees at once; None: max(16 N, 16384).
        features: What towers make of pictures (``video``) and of sound (``audio``), where the
            chains have towers.
        query: What the user asks, for rules that need it.
    """

    budget: Budget | None
    layout: Layout = "ragged"
    share: Fraction = AUDIO_SHARE
    pool: int | None = None
    device: str = "cpu"
    features: Mapping[str, Any] = field(default_factory=dict)
    query: Query | None = None


def candidates(bank: Bank, features: Mapping[str, Any] = _NONE) -> tuple[int, int]:
    """Candidate tokens (video, audio) of an entry: of its towers, else cells of the signal."""
    rows, cols = bank.meta["grid"][:2] if bank.meta["grid"] else (0, 0)
    video, audio = bank.num_frames * rows * cols, int(bank.meta["cells"])
    pictures, sounds = features.get("video"), features.get("audio")
    if pictures is not None and video:
        video = bank.num_frames * each_picture(pictures.places, (rows, cols))
    if sounds is not None and audio:
        audio = sum(len(sounds.times(chunk)) for chunk in range(sounds.chunks))
    return video, audio


def check_layout(chains: dict[str, Chain], layout: Layout, *, budgeted: bool = True) -> None:
    """Raise RecipeError when the video chain cannot give this layout."""
    if "video" not in chains or layout == "ragged":
        return
    _, tail = complete(chains["video"].late or chains["video"], budgeted=budgeted)
    offered = tuple(tail[-1].layouts) if tail else ("ragged",)
    if layout not in offered:
        raise RecipeError(
            f"this recipe cannot give the layout `{layout}`",
            hint=f"it gives: {', '.join(offered)}; or use the recipe auto", code="recipe.layout",
        )  # fmt: skip


def decide(bank: Bank, chains: dict[str, Chain], demand: Demand) -> Iterator[Kept]:
    """Yield the kept rows, window by window, video before audio.

    Raises:
        BudgetError: The form does not fit this media (``/frame`` without frames).
    """
    form = demand.budget.form if demand.budget else "total"
    video, audio = _sides(bank, chains, demand)
    if form == "per_frame" and video is None:
        raise BudgetError(
            "a budget per frame needs video", hint="use a total or 20/s", code="budget.form"
        )
    purse = _Purse(demand, bank)
    for start, stop in _windows(bank, None if form in ("total", "split") else WINDOW):
        for side in (video, audio):
            if side is not None:
                side.window(start, stop)
        video_n, audio_n, each = purse.split(stop, video, audio)
        if video is not None:
            video.settle(video_n, demand.layout, each)
            if (
                audio is not None
                and form != "split"
                and video_n is not None
                and audio_n is not None
            ):
                # What whole frames or a regular grid leave over goes to the sound.
                audio_n = min(audio_n + video_n - video.settled, audio.supply.total)
            tokens, priority = video.rows()
            purse.spent += len(tokens)
            yield Kept("video", tokens, priority, video.source, video.pooled, video.scale)
        if audio is not None:
            tokens, priority = audio.rows(audio_n)
            purse.spent += len(tokens)
            yield Kept("audio", tokens, priority, audio.source)


def _sides(
    bank: Bank, chains: dict[str, Chain], demand: Demand
) -> tuple[VideoSide | LateVideo | None, AudioSide | LateAudio | None]:
    video = audio = None
    if "video" in chains and bank.num_frames:
        video = _video_side(bank, chains, demand)
    if "audio" in chains and bank.meta["cells"]:
        audio = _audio_side(bank, chains["audio"], demand)
    return video, audio


def _video_side(bank: Bank, chains: dict[str, Chain], demand: Demand) -> VideoSide | LateVideo:
    chain, budget, late = chains["video"], demand.budget, demand.features
    if chain.late is not None and isinstance(found := late["video"], PictureFeatures):
        return LateVideo(
            bank=bank, chain=chain, features=found, budgeted=budget is not None,
            pool=demand.pool, device=demand.device, query=demand.query,
        )  # fmt: skip
    limit = None
    if budget is not None:
        limit = sum(candidates(bank, late))
        if budget.form == "total":
            limit = min(limit, int(budget.amount))
        elif budget.form == "split":
            limit = min(limit, budget.video or 0)
    # One grid for the whole cache: only where its budget is settled at once.
    whole = budget is not None and budget.form in ("total", "split")
    return VideoSide(
        CellFeed(bank), chain, limit=limit, pool=demand.pool, device=demand.device, fine=whole
    )


def _audio_side(bank: Bank, chain: Chain, demand: Demand) -> AudioSide | LateAudio:
    budgeted = demand.budget is not None
    side = AudioSide(bank, chain, budgeted=budgeted, device=demand.device)
    found = demand.features.get("audio")
    if chain.late is None or not isinstance(found, SoundFeatures):
        return side
    heard = side.heard() if chain.reducers else None
    return LateAudio(
        chain=chain, features=found, device=demand.device, heard=heard, query=demand.query,
        only_heard=any(chain.removes(rule) for rule in chain.reducers),
    )  # fmt: skip


def _windows(bank: Bank, width: float | None) -> Iterator[tuple[float, float | None]]:
    """Half-open windows in seconds; the last has no end, so that nothing falls outside."""
    end = max(bank.meta["video_end"], bank.meta["audio_end"])
    count = 1 if width is None else max(1, int(-(-end // width)))
    for i in range(count):
        yield i * (width or 0.0), None if i == count - 1 else (i + 1) * (width or 0.0)


class _Purse:
    """Hands out the budget window by window; what one leaves over is carried to the next."""

    def __init__(self, demand: Demand, bank: Bank) -> None:
        self.demand = demand
        self.end = Fraction(str(max(bank.meta["video_end"], bank.meta["audio_end"])))
        self.seen = 0
        self.spent = 0

    def split(
        self,
        stop: float | None,
        video: VideoSide | LateVideo | None,
        audio: AudioSide | LateAudio | None,
    ) -> tuple[int | None, int | None, int | None]:
        """Tokens for (video, audio) in this window, and the most a frame may keep."""
        budget = self.demand.budget
        if budget is None:
            return None, None, None
        v = video.supply if video is not None else Supply()
        a = audio.supply if audio is not None else Supply()
        if budget.form == "split":
            return min(budget.video or 0, v.total), min(budget.audio or 0, a.total), None
        self.seen += sum(side.source for side in (video, audio) if side is not None)
        frames, each = (video.frames if video is not None else 0), None
        if budget.form == "per_frame":
            each = int(budget.amount)
            v = Supply(min(v.novel, frames * each), min(v.total, frames * each))
        total = self._due(budget, stop, frames)
        return (*split_modalities(total, v, a, share=self.demand.share), each)

    def _due(self, budget: Budget, stop: float | None, frames: int) -> int:
        if budget.form == "total":
            return int(budget.amount)
        if budget.form == "per_frame":
            return int(budget.amount) * frames
        if budget.form == "percent":
            due = int(budget.amount * self.seen / 100)
        else:
            due = int(
                budget.amount * (self.end if stop is None else min(Fraction(str(stop)), self.end))
            )
        least = 1 if stop is None and self.spent == 0 else 0
        return max(0, due - self.spent, least)
