"""Keep the middle frame of each scene.

Source: tokpipe; the common baseline of shot detection and one key frame a shot.
Differs: scenes end where the mean token changes by more than ``change``; where more frames are
wanted than there are scenes, the next largest changes cut too, where fewer, the longest scenes
stay.

Shapes: N tokens of T frames; keeps whole frames, at most ``frames``. Frame a + floor(length / 2)
of a scene that starts at a. Change is |u - v| / (|u| + |v|) of the frames' mean tokens, 0 to 1.
Cost: O(N D + T log T).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.frames import Frames, frames_of
from tokpipe.maps import TokenMap
from tokpipe.sample._select import changes, frame_embeddings, select
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneMiddle:
    """One frame a scene.

    Attributes:
        frames: Most frames to keep, 1 or more; None is one a scene, or as many as the budget pays.
        change: Difference of two neighbouring frames that ends a scene, 0 to 1.

    Example:
        >>> data = torch.tensor([[0.0, 1.0]] * 3 + [[1.0, 0.0]] * 5)
        >>> tokens = TokenBatch.build(data, torch.arange(8.0).double())
        >>> SceneMiddle().decide(tokens, None).anchor.tolist()
        [1, 5]
    """

    source: ClassVar[str] = "tokpipe"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("frames", "ragged")
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "pixels"
    golden: ClassVar[tuple[str, ...]] = ()
    gives: ClassVar[tuple[str, ...]] = ("score",)

    frames: Annotated[int, Field(ge=1)] | None = None
    change: Annotated[float, Field(ge=0, le=1)] = 0.1

    @property
    def drop(self) -> bool:
        """A number of frames that was asked for holds whatever the budget."""
        return self.frames is not None

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep the middles; a row's score is the length of its scene in frames."""
        if len(tokens) == 0:
            return TokenMap.identity(0, tokens.data.device)
        found = frames_of(tokens)
        change = changes(frame_embeddings(tokens, found))
        natural = int((change > self.change).sum()) + 1
        wanted = self.frames or (natural if budget is None else None)

        def score(frames: Frames) -> Tensor:
            start, length = self.scenes(change, natural)
            scene = torch.searchsorted(start, torch.arange(len(frames), device=start.device),
                                       right=True) - 1  # fmt: skip
            return length[scene].double()

        def choose(_: Tensor, count: int) -> Tensor:
            start, length = self.scenes(change, count)
            longest = torch.argsort(length, descending=True, stable=True)[:count]
            return (start + length // 2)[longest].sort().values

        return select(tokens, budget, wanted, score, choose)

    def scenes(self, change: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """First frames and lengths int64 [S] of the scenes, at least ``count`` where T allows.

        Args:
            change: float [T - 1] between neighbouring frames.
            count: Scenes wanted.
        """
        cuts = int((change > self.change).sum())
        cuts = min(max(cuts, count - 1), change.shape[0])
        order = torch.argsort(change, descending=True, stable=True)[:cuts]
        start = torch.cat([order.new_zeros(1), order.sort().values + 1])
        stop = torch.cat([start[1:], start.new_full((1,), change.shape[0] + 1)])
        return start, stop - start

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; scenes are not known before."""
        return (n, False) if budget is None else (min(n, budget), False)
