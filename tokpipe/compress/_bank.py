"""Memory banks: adjacent frames, or the adjacent cells of a position, become one.

Letters: F frames, C cells of a frame, D width, L frames left, S slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokpipe.compress._merge_rounds import Rounds, Rule
from tokpipe.tensors import TokenMap


def merge_adjacent(
    gram: Tensor, count: int, *, cosine: bool, least: bool = False, first: int | None = None
) -> tuple[Tensor, Tensor]:
    """Average the most alike adjacent pair until ``count`` vectors are left.

    A merged vector is the plain mean of two, whatever they stand for; of equal pairs the first.

    Args:
        gram: float32 [F, F] dot products of the vectors.
        count: Vectors left, 1 .. F.
        cosine: Compare by cosine instead of dot product.
        least: Merge the least alike instead.
        first: The first merge looks at so many pairs from the front only.

    Returns:
        (group int64 [F], coefficient float32 [F]) of each vector in its mean.
    """
    size, device = gram.shape[0], gram.device
    group = torch.arange(size, device=device)
    coefficient = torch.ones(size, device=device)
    limit = size if first is None else first
    while size > count:
        value = gram.diagonal(1)
        if cosine:
            length = gram.diagonal().clamp(min=1e-24).sqrt()
            value = value / (length[:-1] * length[1:])
        value = -value if least else value
        at = value[:limit].argmax()
        limit, size = gram.shape[0], size - 1
        place = torch.arange(size, device=device)
        upper = place + (place >= at)
        lower = torch.where(place > at, upper, place)
        # Row ``at`` becomes the mean of itself and the next; the others stay themselves.
        gram = (gram[lower] + gram[upper]) / 2
        gram = (gram[:, lower] + gram[:, upper]) / 2
        coefficient = torch.where((group == at) | (group == at + 1), coefficient / 2, coefficient)
        group = torch.where(group > at, group - 1, group)
    return group, coefficient


@dataclass(slots=True)
class Positions:
    """For each position of the grid a chain of slots in time order.

    Attributes:
        store: float32 [S x C, D] vectors, slot after slot.
        length: float32 [S x C] of them.
        mass: float32 [S x C].
        chain: int64 [C, L] slot of each link.
        alike: float32 [C, L + 1] cosine of link j - 1 and j in column j, -inf at both ends.
        slot: int64 [F, C] slot each frame's cell ended in so far.
    """

    store: Tensor
    length: Tensor
    mass: Tensor
    chain: Tensor
    alike: Tensor
    slot: Tensor

    @staticmethod
    def of(data: Tensor, mass: Tensor, held: int) -> Positions:
        """Chains of the first ``held`` of all frames [F, C, D]; one slot is free if there are more.

        Args:
            data: float32 [F, C, D].
            mass: float32 [F, C].
            held: 1 .. F.
        """
        steps, cells, width = data.shape
        slots = held + (held < steps)
        store = torch.zeros((slots, cells, width), device=data.device)
        store[:held] = data[:held]
        length = torch.linalg.vector_norm(store, dim=2)
        sizes = torch.ones((slots, cells), device=data.device)
        sizes[:held] = mass[:held]
        dot = torch.linalg.vecdot(store[1:held], store[: held - 1])
        alike = torch.full((cells, held + 1), -torch.inf, device=data.device)
        alike[:, 1:-1] = (dot / (length[1:held] * length[: held - 1]).clamp(min=1e-12)).T
        chain = torch.arange(held, device=data.device).expand(cells, held)
        slot = torch.arange(steps, device=data.device)[:, None].repeat(1, cells)
        return Positions(store.reshape(-1, width), length.flatten(), sizes.flatten(), chain,
                         alike, slot)  # fmt: skip

    def append(self, frame: Tensor, mass: Tensor, index: int, free: Tensor) -> None:
        """Add frame ``index`` [C, D] of ``mass`` [C] at the chains' ends, in slots ``free`` [C]."""
        row = self._row(free)
        self.store[row], self.mass[row] = frame, mass
        self.length[row] = torch.linalg.vector_norm(frame, dim=1)
        self.slot[index] = free
        last = self._row(self.chain[:, -1])
        self.alike[:, -1] = self._cosine(last, row)
        end = torch.full_like(self.alike[:, :1], -torch.inf)
        self.alike = torch.cat([self.alike, end], 1)
        self.chain = torch.cat([self.chain, free[:, None]], 1)

    def merge(self) -> Tensor:
        """Merge the most alike adjacent pair of every position; the slots int64 [C] that are free.

        Means are weighted by mass; of equal pairs the first.
        """
        size = self.chain.shape[1] - 1
        at = self.alike.argmax(1, keepdim=True)
        kept = self.chain.gather(1, at - 1)[:, 0]
        free = self.chain.gather(1, at)[:, 0]
        one, two = self._row(kept), self._row(free)
        heavy = self.mass[one] + self.mass[two]
        left = (self.mass[one] / heavy)[:, None]
        mean = torch.lerp(self.store[two], self.store[one], left)
        self.store[one], self.mass[one] = mean, heavy
        self.length[one] = torch.linalg.vector_norm(mean, dim=1)
        place = torch.arange(size + 1, device=at.device)
        shifted = place + (place >= at)
        self.chain = self.chain.gather(1, shifted[:, :size])
        self.alike = self.alike.gather(1, shifted)
        ends = self.alike.new_full((), -torch.inf)
        before = self._row(self.chain.gather(1, (at - 2).clamp(min=0))[:, 0])
        after = self._row(self.chain.gather(1, at.clamp(max=size - 1))[:, 0])
        value = torch.where(at > 1, self._cosine(before, one)[:, None], ends)
        self.alike.scatter_(1, at - 1, value)
        value = torch.where(at < size, self._cosine(one, after)[:, None], ends)
        self.alike.scatter_(1, at, value)
        self.slot = torch.where(self.slot == free, kept, self.slot)
        return free

    def links(self) -> Tensor:
        """Link int64 [F, C] of each frame's cell."""
        size = self.chain.shape[1]
        link = torch.empty((self.chain.shape[0], self.length.shape[0] // self.chain.shape[0]),
                           dtype=torch.int64, device=self.chain.device)  # fmt: skip
        link.scatter_(1, self.chain, torch.arange(size, device=link.device).expand_as(self.chain))
        return link.gather(1, self.slot.T).T

    def _row(self, slot: Tensor) -> Tensor:
        cells = self.chain.shape[0]
        return slot * cells + torch.arange(cells, device=slot.device)

    def _cosine(self, one: Tensor, two: Tensor) -> Tensor:
        dot: Tensor = torch.linalg.vecdot(self.store[one], self.store[two])
        return dot / (self.length[one] * self.length[two]).clamp(min=1e-12)


def merge_positions(data: Tensor, mass: Tensor, capacity: int, *, online: bool) -> Tensor:
    """Merge adjacent frames position by position until ``capacity`` are left.

    Args:
        data: float32 [F, C, D].
        mass: float32 [F, C].
        capacity: L, 1 or more.
        online: Frames come one by one and the bank is brought back to its capacity each time;
            else all are there at first.

    Returns:
        int64 [F, C] frame of the bank each cell ends in.
    """
    steps = data.shape[0]
    held = min(steps, capacity) if online else steps
    bank = Positions.of(data, mass, held)
    if online and held < steps:
        free = torch.full_like(bank.slot[0], held)
        for t in range(held, steps):
            bank.append(data[t], mass[t], t, free)
            free = bank.merge()
    else:
        for _ in range(capacity, steps):
            bank.merge()
    return bank.links()


def merge_rows(data: Tensor, mass: Tensor, count: int) -> TokenMap:
    """Merge the most alike rows of one frame, round by round, until ``count`` >= 1 are left.

    Args:
        data: float32 [N, D].
        mass: float32 [N].
        count: Rows left, 1 .. N.
    """
    rule = Rule()
    done = Rounds([data[None]], mass[None], rule).run(rule.halvings(data.shape[0], count))
    return TokenMap.mass_mean(done.group[0], count, mass, anchor=done.anchor[0])
