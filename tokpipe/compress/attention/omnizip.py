"""Let the sound decide: attended sound stays, and where much of it stays the picture stays too.

Source: "OmniZip: Audio-Guided Dynamic Token Compression for Fast Omnimodal Large Language
Models", CVPR 2026, arXiv:2511.14582.
Differs: works on one batch that holds both modalities at one width, in any interleaving. With a
budget sound and picture share it in proportion to their tokens, and the retention of the sound
splits the picture's part over the frames, so that it is met exactly; the paper's own form clips
the drop rates and may miss its target. Groups are windows of time or, as released, runs.

Shapes: N tokens, A of sound, V of picture, D wide; rows in the order of the tokens.
Cost: O(A V D) for the guide, O(C^2 D) for each frame of C tokens.
Passes: 2 N x N at most, of one frame, in tiles and blocks of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.compress._audio_guide import Absorbed, absorb, drop_rates, frame_picks
from tokpipe.compress._columns import head_mean
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class OmniZip:
    """Sound by attention with anchors that absorb others; picture by the sound kept beside it.

    Of the sound the best by the extra ``attention`` ([N], or [N, heads] averaged) stay; evenly
    spaced anchors of the rest stay too, and each takes in those of its followers that resemble
    the picture most. Of the picture, frames at even places of a group keep the density peaks,
    frames at odd places what resembles the frame before least.

    Attributes:
        audio_drop: Part of the sound that attention removes when no budget is given, 0 .. 1.
        video_drop: Part of the picture to remove when no budget is given, 0 .. 1.
        contextual: Anchors, as a part of the sound, 0 .. 1.
        absorb: Most tokens an anchor takes in, 0 or more.
        neighbours: Tokens in the density of a frame's tokens, 1 or more.
        groups: ``seconds``: windows of time; ``runs``: runs of one modality as they come, the
            first run of picture beside the first of sound and so on.
        seconds: Length of a window, 0.1 to 3600 s.
    """

    source: ClassVar[str] = "arXiv:2511.14582"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ("joint", "attention")
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("omnizip",)

    audio_drop: Annotated[float, Field(ge=0, le=1)] = 0.5
    video_drop: Annotated[float, Field(ge=0, le=1)] = 0.5
    contextual: Annotated[float, Field(ge=0, le=1)] = 0.05
    absorb: Annotated[int, Field(ge=0)] = 3
    neighbours: Annotated[int, Field(ge=1)] = 5
    groups: Literal["seconds", "runs"] = "seconds"
    seconds: Annotated[float, Field(ge=0.1, le=3600)] = 2.0

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep and absorb.

        Returns:
            Rows in the order of the tokens: exactly min(budget, N), or what the rates leave.

        Raises:
            RecipeError: ``attention`` is missing.
        """
        n = len(tokens)
        if n == 0 or (budget is not None and budget >= n):
            return TokenMap.identity(n, tokens.data.device)
        score = head_mean(tokens, "attention", "omnizip")
        sound = torch.nonzero(tokens.modality == 1).flatten()
        picture = torch.nonzero(tokens.modality != 1).flatten()
        best, anchors, share = self._counts(sound.shape[0], picture.shape[0], budget)
        order = torch.argsort(score[sound], descending=True, stable=True)
        rest = sound[order[best:].sort().values]
        taken = absorb(tokens.data, rest, picture, anchors, self.absorb)
        kept = torch.zeros(n, dtype=torch.bool, device=score.device)
        kept[sound[order[:best]]] = True
        kept[taken.anchor] = True
        for index in self._picture(tokens, kept, picture, share):
            kept[index] = True
        return _assembled(kept, taken)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens; exact with a budget."""
        return (n, False) if budget is None else (min(n, budget), True)

    def retention(self, tokens: TokenBatch, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the sound says about each group of the picture.

        Args:
            tokens: N tokens.
            kept: bool [N], the sound that stays.

        Returns:
            Group int64 [N] of each token; float64 [G] share of the group's sound that stays, NaN
            without sound; int64 [G] picture tokens of the group.
        """
        group = self._groups(tokens)
        size = int(group.max()) + 1
        sound = tokens.modality == 1
        heard = torch.bincount(group[sound], minlength=size)
        stays = torch.bincount(group[sound & kept], minlength=size)
        # Single precision, as the released code has it: counts per frame are rounded down.
        share = (stays.float() / heard.float()).double()
        return group, share, torch.bincount(group[~sound], minlength=size)

    def _counts(self, sound: int, picture: int, budget: int | None) -> tuple[int, int, int | None]:
        """Attended sound, anchors, and picture tokens (None: by the drop rates)."""
        anchors = round(self.contextual * sound)
        if budget is None:
            best = round((1 - self.audio_drop) * sound)
            return best, min(anchors, sound - best), None
        heard, seen = largest_remainder(budget, [sound, picture], caps=[sound, picture])
        anchors = min(anchors, heard // 2)
        return heard - anchors, anchors, seen

    def _picture(
        self, tokens: TokenBatch, kept: Tensor, picture: Tensor, share: int | None
    ) -> list[Tensor]:
        """Kept tokens of each frame."""
        if not len(picture):
            return []
        group, retention, sizes = self.retention(tokens, kept)
        target = self.video_drop if share is None else 1 - share / len(picture)
        drops = drop_rates(retention, sizes, target)
        frames, owner, place = _frames(tokens.at[picture], group[picture])
        index = [picture[frame] for frame in frames]
        size = [len(frame) for frame in index]
        if share is None:
            count = [int(c * (1 - drops[g])) for c, g in zip(size, owner, strict=True)]
        else:
            weight = [c * (1 - drops[g]) for c, g in zip(size, owner, strict=True)]
            count = largest_remainder(share, weight, caps=size)
        before = [None, *index[:-1]]
        return [
            frame_picks(tokens.data, frame, b if p % 2 else None, k, self.neighbours)
            for frame, b, p, k in zip(index, before, place, count, strict=True)
        ]  # fmt: skip

    def _groups(self, tokens: TokenBatch) -> Tensor:
        """Group int64 [N] of each token, numbered from 0."""
        if self.groups == "seconds":
            number = (tokens.at / self.seconds).floor()
            group: Tensor = torch.unique(number, return_inverse=True)[1]
            return group
        sound = tokens.modality == 1
        begins = torch.ones_like(sound)
        begins[1:] = sound[1:] != sound[:-1]
        of_sound, of_picture = (begins & sound).cumsum(0), (begins & ~sound).cumsum(0)
        return torch.where(sound, of_sound, of_picture) - 1


def _frames(at: Tensor, group: Tensor) -> tuple[list[Tensor], list[int], list[int]]:
    """Tokens of each frame of each group, the frame's group, and its place in the group."""
    order = torch.argsort(at, stable=True)
    order = order[torch.argsort(group[order], stable=True)]
    new = torch.ones(order.shape[0], dtype=torch.bool, device=at.device)
    new[1:] = (at[order].diff() != 0) | (group[order].diff() != 0)
    start = torch.nonzero(new).flatten()
    owner = group[order[start]].tolist()
    place: list[int] = []
    for i, number in enumerate(owner):
        place.append(place[-1] + 1 if i and number == owner[i - 1] else 0)
    return list(order.tensor_split(start[1:].cpu())), owner, place


def _assembled(kept: Tensor, taken: Absorbed) -> TokenMap:
    """The map of kept tokens, anchors mixed half and half with what they absorb."""
    n = kept.shape[0]
    index = torch.nonzero(kept).flatten()
    row = torch.cumsum(kept.long(), 0) - 1
    weight = torch.ones(n, device=kept.device)
    weight[taken.into] = 0.5
    src = torch.cat([index, taken.member])
    return TokenMap(
        src=src, dst=torch.cat([row[index], row[taken.into]]),
        weight=torch.cat([weight[index], taken.weight / 2]),
        share=torch.ones(src.shape[0], device=kept.device), anchor=index, num_sources=n,
    )  # fmt: skip
