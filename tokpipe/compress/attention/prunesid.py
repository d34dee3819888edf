"""Group tokens by principal component, thin each group by attention, and share out the count.

Source: Fan et al., "Prune Redundancy, Preserve Essence: Vision Token Compression in VLMs via
Synergistic Importance-Diversity" (PruneSID), ICLR 2026, arXiv:2603.09480, section 3.
Differs: the components come from an exact decomposition, the released ones from a random one (an
extra ``groups`` [N] takes any other grouping); tokens without any attention come last, there they
never enter; ties go to the lower index; groups that cannot fill their part pass it on.

Shapes: data [N, D]; keeps min(budget, N) tokens, group by group. Passes: 1 N x N over
pairs, kept up to 4096 tokens; beyond, in rows of those that survive thinning alone. Besides
O(M^2 max(N, D)) for the decomposition, M = min(N, D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._columns import column
from tokpipe.compress._cosine import DENSE, Cosines
from tokpipe.compress._cover import Walk, densest_first
from tokpipe.compress._neighbors import blocks
from tokpipe.compress._stacks import Rows, Stack, stacks
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap

#: Tokens kept per component, per 32 of which pairs of mean similarity are near, per 64 of which
#: a group's part may grow by ``_PART``.
_PER_GROUP, _PER_MEAN, _PER_PART, _PART = 4, 32, 64, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Prunesid:
    """Non-maximum suppression by attention within principal-component groups.

    Attributes:
        keep: Tokens of a frame kept without a budget, the class token among them, 1 or more.
        class_token: Row 0 of each frame is the class token; it is kept, first, and counted.
        scope: Decide within a frame, or over the whole video.
    """

    source: ClassVar[str] = "arXiv:2603.09480, section 3"
    needs: ClassVar[tuple[str, ...]] = ("attention",)
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("prunesid",)
    gives: ClassVar[tuple[str, ...]] = ("score",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True

    keep: Annotated[int, Field(ge=1)] = 64
    class_token: bool = False
    scope: Literal["frame", "video"] = "frame"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep ``budget`` tokens; ``score`` is their attention, summed over heads.

        Raises:
            RecipeError: ``attention`` is missing.
        """
        n, device = len(tokens), tokens.data.device
        value = column(tokens, "attention", "prunesid")
        value = value.sum(1) if value.ndim == 2 else value
        if budget is not None and budget >= n:
            return TokenMap.identity(n, device)
        rows = Rows(n, device)
        for stack in stacks(tokens, budget, self.scope, DENSE):
            size = stack.index.shape[1]
            quota = stack.quota
            if quota is None:
                quota = torch.full_like(stack.frame, min(size, self.keep))
            picks, valid = self._pick(stack, tokens, stack.of(value), quota)
            rows.add(stack, picks, valid, score=stack.of(value).gather(1, picks))
        return rows.keep()

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        return min(n, self.keep if budget is None else budget), True

    def _pick(
        self, stack: Stack, tokens: TokenBatch, value: Tensor, quota: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens int64 [T, C] in order of the rows, and which of them are rows."""
        first = int(self.class_token)
        wanted = quota - first
        data = stack.of(tokens.data)[:, first:]
        score = value[:, first:]
        size = score.shape[1]
        if size == 0:
            return stack.own(), torch.ones_like(value, dtype=torch.bool)
        groups = (quota // _PER_GROUP).clamp(1, min(size, data.shape[2]))
        given = tokens.extras.get("groups")
        if given is None:
            group = principal_groups(data, groups)
        else:
            group = stack.of(given)[:, first:].long()
        cosines = Cosines(data)
        cutoff = 1 - quota / _PER_MEAN * _mean_pair(cosines)
        none = torch.zeros_like(score, dtype=torch.bool)
        left = Walk(cosines, densest_first(score), group)(cutoff, none)
        left &= score != 0
        order, valid = _share(group, left, score, wanted, quota)
        if not first:
            return order, valid
        leading = torch.zeros_like(order[:, :1])
        return torch.cat([leading, order + 1], 1), torch.cat([leading == 0, valid], 1)


def principal_groups(data: Tensor, count: Tensor) -> Tensor:
    """The component, of the first ``count`` int64 [T], that weighs most in each token, [T, C].

    Channels of the sigmoid of ``data`` float [T, C, D] are the samples, centred per token.
    """
    out = []
    for frame, q in zip(data, count.tolist(), strict=True):
        if frame.shape[0] <= frame.shape[1]:
            sample = _sample(frame)
            basis = torch.linalg.eigh((sample @ sample.T).double()).eigenvectors
            out.append(basis[:, -q:].flip(1).abs().argmax(1))
            continue
        square = torch.zeros((frame.shape[1],) * 2, dtype=torch.float64, device=frame.device)
        parts = list(blocks(frame.shape[0], 4 * frame.shape[1]))
        for a, b in parts:
            sample = _sample(frame[a:b])
            square += (sample.T @ sample).double()
        values, other = torch.linalg.eigh(square)
        other, values = other[:, -q:].flip(1), values[-q:].flip(0)
        scale = values.clamp(min=1e-12).sqrt()
        best = [(_sample(frame[a:b]).double() @ other / scale).abs().argmax(1) for a, b in parts]
        out.append(torch.cat(best))
    return torch.stack(out)


def _sample(rows: Tensor) -> Tensor:
    """Sigmoid of rows [R, D], float32, less each row's mean."""
    sample = torch.sigmoid(rows.float())
    return sample.sub_(sample.mean(1, keepdim=True))


def _mean_pair(cosines: Cosines) -> Tensor:
    """Mean cosine [T] over pairs of different tokens, 0 where there are none."""
    size = cosines.shape[1]
    if cosines.dense is None:
        # The sum over all pairs is the squared length of the sum of unit rows.
        total = cosines.unit_sum().square().sum(1) - (cosines.length() > 0).sum(1)
        return (total / max(1, size * (size - 1))).float()
    total = torch.zeros(cosines.shape[0], dtype=torch.float64, device=cosines.data.device)
    for a, _, block in cosines.blocks():
        own = block.diagonal(offset=a, dim1=1, dim2=2)
        total += block.sum(2).double().sum(1) - own.double().sum(1)
    return (total / max(1, size * (size - 1))).float()


def _share(
    group: Tensor, left: Tensor, score: Tensor, wanted: Tensor, quota: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens [T, C] group by group, survivors first, then by score; and the ``wanted`` of them."""
    steps, size = group.shape
    count = int(group.max()) + 1
    zeros = torch.zeros(steps, count, dtype=torch.int64, device=group.device)
    room = zeros.scatter_add(1, group, torch.ones_like(group))
    alive = zeros.scatter_add(1, group, left.long())
    part = wanted[:, None] * alive // alive.sum(1, keepdim=True).clamp(min=1)
    most = _PART * ((quota + _PER_PART - 1) // _PER_PART)[:, None]
    part = torch.minimum(torch.minimum(part.clamp(min=1), most), room)
    part = _adjusted(part, room, alive, wanted)
    # By group, then survivors before the rest, then by score: stable sorts from last to first.
    order = densest_first(score)
    for key in ((score == 0).byte(), (~left).byte(), group):
        order = order.gather(1, torch.argsort(key.gather(1, order), dim=1, stable=True))
    home = group.gather(1, order)
    start = (room.cumsum(1) - room).gather(1, home)
    rank = torch.arange(size, device=group.device)[None] - start
    return order, rank < part.gather(1, home)


def _adjusted(part: Tensor, room: Tensor, alive: Tensor, wanted: Tensor) -> Tensor:
    """Parts [T, G] that sum to ``wanted``: one more, or less, each round, most survivors first."""
    order = densest_first(alive)
    for _ in range(int(wanted.max()) + 1):
        missing = (wanted - part.sum(1))[:, None]
        if bool((missing == 0).all()):
            break
        more = (part < room).gather(1, order)
        less = (part > 0).gather(1, order)
        up = more & (more.cumsum(1) <= missing)
        down = less & (less.flip(1).cumsum(1).flip(1) <= -missing)
        part = part + torch.zeros_like(part).scatter_(1, order, up.long() - down.long())
    return part
