"""What a file has to offer to a budget, known without decoding: from packets, or from the bank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.budget import WINDOW, Budget
from tokpipe.cache.bank import Bank, bank_root
from tokpipe.chain import Chain, counts_itself
from tokpipe.decide import candidates, each_picture, is_stream
from tokpipe.decode._wanted import Effort
from tokpipe.decode.scout import PacketScan, frames_of, scan_packets
from tokpipe.ingest import bank_key, sampler_rate
from tokpipe.spec import MediaInfo

#: Seconds of one sound cell.
SOUND_CELL = 0.04
#: Cells a decoder may give after the end of the last packet: codec frames are whole.
_TAIL = 4


@dataclass(slots=True, kw_only=True)
class Offer:
    """Candidates of both streams.

    Attributes:
        pts: float64 [T], seconds of the frames the sampler chooses; with effort ``thorough`` those
            on ticks, to which changes are added that only decoded pictures show.
        cells: Tokens of one frame: cells, or those of a tower.
        sound_cell: Seconds of one sound token.
        sound: Sound tokens, an upper bound unless ``exact_audio``.
        end, least_end: Latest and earliest second the media may end.
        banked: The bank holds it all, so that every number is exact.
        loose: Frames may come on top that only decoding shows.
    """

    pts: NDArray[np.float64]
    cells: int
    sound: int
    end: float
    least_end: float
    exact_video: bool
    exact_audio: bool
    banked: bool = False
    loose: bool = False
    sound_cell: float = SOUND_CELL

    @property
    def video(self) -> int:
        """Video candidates."""
        return len(self.pts) * self.cells

    @property
    def slack(self) -> int:
        """Sound cells that packets may promise and the decoder not give."""
        return 0 if self.exact_audio else 50 + self.sound // 50

    def spent(self, budget: Budget, sound: int, end: float) -> int:
        """Tokens over all windows of media with so many sound cells: the run's arithmetic."""
        spent = seen = 0
        for start, stop in _windows(end, None if budget.form == "total" else WINDOW):
            inside = (self.pts >= start) & (self.pts < (math.inf if stop is None else stop))
            frames = int(inside.sum())
            last = sound if stop is None else min(sound, round(stop / self.sound_cell))
            heard = last - min(sound, round(start / self.sound_cell))
            supply = frames * self.cells + heard
            seen += supply
            if budget.form == "total":
                due = int(budget.amount)
            elif budget.form == "per_frame":
                due = int(budget.amount) * frames
                supply = frames * min(self.cells, int(budget.amount)) + heard
            elif budget.form == "percent":
                due = int(budget.amount * seen / 100) - spent
            else:
                due = int(float(budget.amount) * min(end, stop or end)) - spent
            least = int(stop is None and spent == 0 and budget.form in ("percent", "per_second"))
            spent += min(max(due, least, 0), supply)
        return spent


def find_offer(
    path: Path, info: MediaInfo, chains: dict[str, Chain], *, keep_bank: bool, strict: bool,
    decoder: str = "pyav", device: str = "cpu", effort: Effort = "balanced",
) -> Offer:  # fmt: skip
    """Look into the bank, else at the packets with the recipe's own sampler."""
    key = bank_key(info, chains, strict, decoder, device, effort) if keep_bank else None
    # What torchcodec or a strict reader shows is all there is.
    chosen = None if strict or decoder != "pyav" else effort
    return _of_towers(_of_signal(path, info, chains, key, chosen), info, chains)


def _of_towers(offer: Offer, info: MediaInfo, chains: dict[str, Chain]) -> Offer:
    """The offer in tokens of the chains' towers."""
    video, audio = (chains[s].late if s in chains else None for s in ("video", "audio"))
    if video is not None and len(offer.pts):
        offer.cells = tower_tokens(chains["video"], info)
    if audio is not None and offer.sound:
        operator = audio.encoder
        size = operator.chunk() / operator.outline().rate
        whole = len(operator.times(operator.chunk()))
        offer.sound = math.ceil(offer.sound * SOUND_CELL / size * whole)
        offer.sound_cell, offer.exact_audio = size / whole, False
    return offer


def tower_tokens(chain: Chain, info: MediaInfo) -> int:
    """Tokens of one picture that are not padding."""
    grid, late = chain.encoder.grid(info), chain.late
    assert late is not None  # noqa: S101 - asked only for chains with a tower
    places = late.encoder.places(grid.height, grid.width)
    return each_picture(places, (grid.rows, grid.cols))


def _of_signal(
    path: Path, info: MediaInfo, chains: dict[str, Chain], key: str | None, effort: Effort | None
) -> Offer:
    bank = None if key is None else Bank.find(key, bank_root())
    if bank is not None:
        with closing(bank):
            rows, cols = bank.meta["grid"][:2] if bank.meta["grid"] else (0, 0)
            end = max(bank.meta["video_end"], bank.meta["audio_end"])
            return Offer(
                pts=bank.frames()["pts"].copy(), cells=rows * cols, sound=candidates(bank)[1],
                end=end, least_end=end, exact_video=True, exact_audio=True, banked=True,
            )  # fmt: skip
    rate = sampler_rate(chains)
    scan = scan_packets(path, info, None if rate is None else effort, rate or 0.0)
    # Changes that only decoded pictures show come besides.
    looks = effort == "thorough" and rate is not None and "video" in chains
    hears = "audio" in chains and scan.audio_end > 0
    sound = math.ceil(scan.audio_end / SOUND_CELL) + _TAIL if hears else 0
    pts, cells = _sampled(scan, info, chains)
    offer = Offer(
        pts=pts, cells=cells, sound=sound, end=scan.video_end, least_end=scan.video_end,
        exact_video=scan.failures == 0 and not looks, exact_audio=sound == 0, loose=looks,
    )  # fmt: skip
    if sound:
        offer.end = max(scan.video_end, sound * SOUND_CELL)
        offer.least_end = max(scan.video_end, (sound - offer.slack) * SOUND_CELL)
    return offer


def _sampled(
    scan: PacketScan, info: MediaInfo, chains: dict[str, Chain]
) -> tuple[NDArray[np.float64], int]:
    """Times of the chosen frames, and the cells of each."""
    if "video" not in chains:
        return np.zeros(0), 0
    video = chains["video"]
    frames: Any = frames_of(scan)
    if video.sampler is not None:
        frames = video.sampler.sample(frames)
    pts = np.array([frame.pts for frame in frames], dtype=np.float64)
    return pts, int(video.encoder.grid(info).cells)


def keeps_all(reducers: list[Any]) -> bool:
    """None of these reducers takes tokens away without a budget."""
    for reducer in reducers:
        if hasattr(reducer, "project") or counts_itself(reducer):
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
