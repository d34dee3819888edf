"""From rows before a projector to tokens after it, without the tower that made the rows.

Letters: k rows, n tokens of one unit, P rows of a whole unit, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokpipe.errors import CacheError
from tokpipe.spec import KIND_KEPT
from tokpipe.tensors import TokenBatch

Project = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A loaded projector.

    Where ``needs`` is None each row becomes a token of its own. Else tokens are made of several
    rows of one unit: of a picture, whose ``side`` x ``side`` patches become ``made`` x ``made``
    tokens, or, where ``side`` is 0, of P neighbours in a sound, which become one.

    Attributes:
        project: [k, Dp] to [k, D] row by row, or [P, Dp] to [n, D] of a whole unit.
        levels: The same for deepstack rows, one a level.
        weights: Digest of tower and projector as encoders record it; None where it is not known.
        part: Digest of what makes the rows, see ``_weights.part_digest``; None likewise.
        needs: bool [n, P], the rows each token is made of.
        side: Patches on a side of a picture.
        made: Tokens on a side of a picture.
    """

    project: Project
    levels: tuple[Project, ...] = ()
    weights: str | None = None
    part: Mapping[str, str] | None = None
    needs: Tensor | None = None
    side: int = 0
    made: int = 0

    @property
    def joins(self) -> float:
        """Rows of a whole unit for each token of it."""
        return 1.0 if self.needs is None else self.needs.shape[1] / self.needs.shape[0]

    def units(self, at: Tensor, cell: Tensor) -> Tensor:
        """int64 [N], the unit of each row, rising: a picture, or a run of neighbours.

        Args:
            at: float64 [N] seconds, in order.
            cell: int32 [N, 3].
        """
        if self.needs is not None and not self.side:
            return cell[:, 0].long() // self.needs.shape[1]
        fresh = torch.ones(len(at), dtype=torch.int64)
        fresh[1:] = at[1:] != at[:-1]
        return fresh.cumsum(0)

    @torch.inference_mode()
    def unit(self, rows: TokenBatch, device: torch.device) -> tuple[TokenBatch, int]:
        """Tokens of the rows of one unit, sorted as in a cache.

        Returns:
            Tokens, and how many more some of whose rows are there, but not all.

        Raises:
            CacheError: Rows that a token is made of were merged or pooled already.
        """
        if self.needs is not None:
            return self._joined(rows, self.needs, device)
        deep = {
            f"deepstack_{i}": level(rows.extras[f"deepstack_{i}"].to(device)).cpu()
            for i, level in enumerate(self.levels, 1)
        }
        data = self.project(rows.data.to(device)).cpu()
        return replace(rows, data=data, extras={**rows.extras, **deep}), 0

    def _joined(
        self, rows: TokenBatch, needs: Tensor, device: torch.device
    ) -> tuple[TokenBatch, int]:
        place = self._places(rows, needs.shape[1])
        there = torch.zeros(needs.shape[1], dtype=torch.bool)
        there[place] = True
        whole = rows.data.new_zeros(len(there), rows.data.shape[1])
        whole[place] = rows.data
        complete = (needs & ~there).sum(1) == 0
        token = complete.nonzero()[:, 0]
        data = self.project(whole.to(device)).cpu()[token]
        made = _columns(rows, needs[token][:, place], data)
        if self.side:
            y, x = token // self.made, token % self.made
            cell = torch.stack([rows.cell[:1, 0].expand(len(token)).long(), y, x], 1)
        else:
            cell = torch.zeros(len(token), 3, dtype=torch.int64)
            cell[:, 0] = int(rows.cell[0, 0]) // needs.shape[1]
        partly = ((needs & there).any(1) & ~complete).sum()
        return made.with_columns(cell=cell.int()), int(partly)

    def _places(self, rows: TokenBatch, size: int) -> Tensor:
        """int64 [N], the place of each row in its unit."""
        cell = rows.cell.long()
        place = cell[:, 1] * self.side + cell[:, 2] if self.side else cell[:, 0] % size
        single = (rows.kind == KIND_KEPT) & (rows.mass == 1) & (rows.tile == 0)
        inside = (cell[:, 1:] < max(1, self.side)).all(1) & (cell >= 0).all(1)
        if not bool((single & inside).all()) or len(set(place.tolist())) < len(place):
            raise CacheError(
                "the projector joins neighbours of the tower's grid, these rows were merged, "
                "pooled or come from another grid",
                hint="encode with --stage post_projector, or without merging",
                code="project.merged",
            )
        return place


def _columns(rows: TokenBatch, members: Tensor, data: Tensor) -> TokenBatch:
    """Columns of tokens made of rows: hulls of times and frames, means of scores and ranks.

    Args:
        members: bool [t, k], the rows each token is made of.
        data: [t, D].
    """
    t = len(members)
    weight = members.double() / members.sum(1, keepdim=True).clamp(min=1)

    def low(values: Tensor) -> Tensor:
        return torch.where(members, values, values.max()).amin(1) if t else values[:0]

    def high(values: Tensor) -> Tensor:
        return torch.where(members, values, values.min()).amax(1) if t else values[:0]

    spans = [torch.stack([low(v[:, 0]), high(v[:, 1])], 1) for v in (rows.pts, rows.frame)]
    score = torch.where(members, rows.score, 0.0).double()
    extras = {}
    if "rank" in rows.extras:
        extras["rank"] = weight @ rows.extras["rank"].double()
    return TokenBatch.build(
        data, low(rows.at), pts=spans[0], frame=spans[1], modality=int(rows.modality[0]),
        score=(score.sum(1) / members.sum(1).clamp(min=1)).float(),
    ).with_extras({"rank": "drop"}, **extras)  # fmt: skip
