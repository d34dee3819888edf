"""Late encoding of a signal cache: towers on its rebuilt pictures and on its sound.

Pictures are rebuilt from the kept cells; a token of the tower is live where at least half of its
box lies in cells kept at that very time, and exactly the live tokens are candidates. Layouts of
whole pictures take every token of the pictures that are complete: cells of that time, the others
held over from earlier. Sound is laid back on the media's clock, silent where none was kept, and
tokens are live in the same way. A stream without an encoder stays what it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokpipe.assemble import deepstack_columns, feature_array
from tokpipe.budget import Budget, Supply, split_modalities
from tokpipe.cache.bank import bank_root
from tokpipe.cache.features import FeatureStore
from tokpipe.cache.reader import RebuiltFrame, TokenCache
from tokpipe.chain import Chain
from tokpipe.decide import LateAudio, TowerFeed, VideoSide, check_layout, survivors_of
from tokpipe.digest import chain as digest_chain
from tokpipe.encode._clip import CELL as CELL_SAMPLES
from tokpipe.encode._clip import CONTEXT, RATE
from tokpipe.errors import BudgetError, CacheCorrupt, CacheError, RecipeError
from tokpipe.job import Options
from tokpipe.late import Coverage
from tokpipe.late_bank import store_key
from tokpipe.tensors import TokenBatch
from tokpipe.towers import PictureFeatures, SoundFeatures, needed_columns

#: The column that only cells of the signal have.
_OF_SIGNAL = {"video": "atlas_box", "audio": "clip_offset"}
#: Seconds that kept sound may lie beyond the end the media is said to have, and a day where
#: nothing is said: a cell further out is damage.
_SLACK, _LONGEST = 60.0, 86_400.0


class CachePictures:
    """Rebuilt pictures of a cache by their step, the ``t`` of their cells; read in order."""

    def __init__(self, cache: TokenCache, step_at: Mapping[float, int]) -> None:
        """``step_at`` is the step of each distinct ``at``."""
        self._cache, self._step_at = cache, step_at
        self._frames: Iterator[RebuiltFrame] = iter(())
        self._next: int | None = None

    def __call__(self, wanted: list[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Pictures uint8 [H, W, 3] of rising steps."""
        if wanted and (self._next is None or wanted[0] < self._next):
            self._frames = self._cache.frames()
        missing = set(wanted)
        while missing:
            frame = next(self._frames)
            step = self._step_at[frame.pts]
            self._next = step + 1
            if step in missing:
                missing.discard(step)
                yield step, frame.pixels


class CacheSound:
    """The sound of a cache on the media's clock, silent where none was kept."""

    def __init__(self, cache: TokenCache) -> None:
        """Decode the clip."""
        self.wave, _ = cache.audio()
        self.cell = np.asarray(cache.column("audio.cell"))[:, 0].astype(np.int64)
        self.offset = np.asarray(cache.column("audio.clip_offset"))
        self.samples = int((self.cell.max() + 1) * CELL_SAMPLES)
        clock = cache.metadata.get("tokpipe.clock", {}).get("end") or 0.0
        longest = (
            max(clock, cache.duration or 0.0) + _SLACK if clock or cache.duration else _LONGEST
        )
        if self.samples > longest * RATE:
            raise CacheCorrupt(
                f"sound is kept at {self.samples / RATE:.0f} s, the media ends before",
                code="cache.clip",
            )

    @property
    def kept(self) -> torch.Tensor:
        """Cells bool [cells] that were kept."""
        mask = torch.zeros(self.samples // CELL_SAMPLES, dtype=torch.bool)
        mask[torch.from_numpy(self.cell)] = True
        return mask

    def __call__(self, start: int, stop: int) -> torch.Tensor:
        """Samples float32 [stop - start]; kept cells bring their stored context along."""
        out = np.zeros(stop - start, dtype=np.float32)
        reach = CONTEXT // CELL_SAMPLES
        first, last = np.searchsorted(
            self.cell, [start // CELL_SAMPLES - reach - 1, -(-stop // CELL_SAMPLES) + reach]
        )
        for cell, offset in zip(self.cell[first:last], self.offset[first:last], strict=True):
            # Runs overlap only where both hold the true sound, so the order does not matter.
            low = max(int(cell) * CELL_SAMPLES - CONTEXT, start, 0)
            high = min((int(cell) + 1) * CELL_SAMPLES + CONTEXT, stop)
            shift = int(offset) - int(cell) * CELL_SAMPLES
            low = max(low, -shift)
            high = min(high, len(self.wave) - shift)
            if low < high:
                out[low - start : high - start] = self.wave[low + shift : high + shift]
        return torch.from_numpy(out)


@dataclass(slots=True)
class LateStream:
    """One stream of a cache, encoded.

    Attributes:
        tokens: Rows in the cache's order.
        priority: float64 [K] in (0, 1): low ones stay longest.
        source: Live tokens.
        features: What made them.
    """

    tokens: TokenBatch
    priority: torch.Tensor
    source: int
    features: Any


class LateCache:
    """Towers on an open signal cache; use as a context manager.

    Args:
        chains: Chain of each stream to encode, with its ``late`` part.
        query: The question, for rules that need one.

    Raises:
        CacheError: The stream is features already, or the cache has none of this kind.
    """

    def __init__(self, cache: TokenCache, chains: Mapping[str, Chain], options: Options) -> None:
        self.cache, self.options = cache, options
        self.chains = {s: made for s, made in chains.items() if s in cache.streams}
        if not self.chains:
            raise CacheError(
                f"the cache has no {' or '.join(chains)} for this encoder",
                hint=f"it holds: {', '.join(cache.streams)}", code="cache.stream",
            )  # fmt: skip
        for stream in self.chains:
            if f"{stream}.{_OF_SIGNAL[stream]}" not in cache.names:
                raise CacheError(
                    f"the {stream} of the cache is features already: there is nothing to encode",
                    hint="encode a cache made without --encoder", code="cache.domain",
                )  # fmt: skip
        check_layout(self.chains, options.layout)
        self._stack = ExitStack()
        self._key = digest_chain(cache.metadata["tokpipe.digest"])

    def __enter__(self) -> LateCache:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the stores."""
        self._stack.close()

    def encode(self, budget: Budget | None) -> dict[str, LateStream]:
        """Encode and fit each stream.

        Args:
            budget: A total over the encoded streams, or a part each; None: as many tokens as
                each stream holds in the cache.

        Raises:
            BudgetError: A form that does not fit a cache.
            RecipeError: The layout needs whole pictures, and the cache has none.
        """
        sides: dict[str, Any] = {}
        if "video" in self.chains:
            sides["video"] = self._video(self.chains["video"])
        if "audio" in self.chains:
            sides["audio"] = self._audio(self.chains["audio"])
        for side in sides.values():
            side.window(0.0, None)
        shares = self._shares(sides, budget)
        made = {}
        for stream, side in sides.items():
            if stream == "video":
                side.settle(min(shares[stream], side.supply.total), self.options.layout, None)
                tokens, priority = side.rows()
            else:
                tokens, priority = side.rows(shares[stream])
            features = side.feed.features if stream == "video" else side.features
            made[stream] = LateStream(tokens, priority, side.source, features)
        return made

    def _shares(self, sides: Mapping[str, Any], budget: Budget | None) -> dict[str, int]:
        if budget is None:
            return {stream: self.cache.num_tokens(stream) for stream in sides}
        if budget.form == "split":
            return {"video": budget.video or 0, "audio": budget.audio or 0}
        supply = {stream: side.supply for stream, side in sides.items()}
        none = Supply()
        if budget.form == "percent":
            total = max(1, int(budget.amount * sum(s.total for s in supply.values()) / 100))
        elif budget.form == "total":
            total = int(budget.amount)
        else:
            raise BudgetError(
                f"a cache is encoded to a total, `{budget}` is none",
                hint="give a number, a percentage, or video=1536,audio=512", code="budget.form",
            )  # fmt: skip
        video, audio = split_modalities(total, supply.get("video", none), supply.get("audio", none))
        return {"video": video, "audio": audio}

    def _store(self, stream: str, late: Chain) -> FeatureStore:
        o = self.options
        key = store_key(self._key, stream, late, o.running()) if o.keep_bank else None
        return self._stack.enter_context(FeatureStore(key, bank_root()))

    def _video(self, chain: Chain) -> VideoSide:
        grid, late = self.cache.metadata["tokpipe.grid"], chain.late
        assert late is not None  # noqa: S101 - only chains with a tower come here
        rows = self.cache.tokens(stream="video")["video"].to_tokens()
        shape = (int(grid["rows"]), int(grid["cols"]))
        survivors = survivors_of(rows, shape)
        if self.options.layout != "ragged":
            survivors = survivors.complete()
            if not len(survivors):
                raise RecipeError(
                    f"no picture of the cache is complete, as layout `{self.options.layout}` "
                    "needs: some cells were never kept", code="recipe.layout",
                    hint="tokpipe compress MEDIA --layout frames, then encode that",
                )  # fmt: skip
        step_at = dict(zip(rows.at.tolist(), rows.cell[:, 0].tolist(), strict=True))
        o, size = self.options, (shape[0] * int(grid["cell"]), shape[1] * int(grid["cell"]))
        columns = needed_columns(late, late.encoder.outline())
        features = PictureFeatures(
            late.encoder, size, CachePictures(self.cache, step_at),
            self._store("video", late), o.running(), columns,
        )  # fmt: skip
        query = None
        if o.query is not None:
            query = features.query(o.query)
            features.columns |= {query.space} & {*features.outline.extras}
        feed = TowerFeed(survivors, Coverage.of(features.places, *shape), features)
        limit = len(survivors) * len(features.places)
        return VideoSide(feed, late, limit=limit, pool=o.pool, device=o.device, query=query)

    def _audio(self, chain: Chain) -> LateAudio:
        late = chain.late
        assert late is not None  # noqa: S101 - only chains with a tower come here
        sound = CacheSound(self.cache)
        if late.encoder.outline().rate != RATE:
            raise CacheError(f"the encoder wants sound at another rate than {RATE} Hz")
        features = SoundFeatures(
            late.encoder, sound.samples, sound, self._store("audio", late),
            self.options.running(), needed_columns(late, late.encoder.outline()),
        )  # fmt: skip
        return LateAudio(
            chain=chain, features=features, device=self.options.device,
            heard=sound.kept, only_heard=True,
        )  # fmt: skip


def kept_stream(cache: TokenCache, stream: str) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Columns of a stream that is not encoded, and the priority its ranks mean."""
    rows = cache.tokens(stream=stream)[stream]
    names: Sequence[str] = ("at", "pts", "frame", "cell", "extent", "tile", "mass", "kind",
                            "segment", "score")  # fmt: skip
    columns = {name: getattr(rows, name) for name in names}
    # Through torch, which has bfloat16, so that rows come out as they went in.
    tokens = rows.to_tokens()
    columns |= {"tokens": feature_array(tokens.data), **rows.extras, **deepstack_columns(tokens)}
    order = np.argsort(np.argsort(rows.rank))
    return columns, (order + 0.5) / max(1, len(rows))
