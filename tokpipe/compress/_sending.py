"""Which cells of chosen moments are sent: those that differ from what is shown by then.

Letters: k chosen moments, C cells of a picture, P pieces of a reduced one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokpipe.compress._cell_distance import cell_change
from tokpipe.compress._coverage import Level, Mask, touched
from tokpipe.compress._moments import Moments
from tokpipe.compress._two_pass import Ids

Change = NDArray[np.float32]


@dataclass(slots=True)
class Sent:
    """What is sent of one moment.

    Attributes:
        moment: Its index.
        coarse: It is sent in pieces.
        pieces: bool [C or P], what is sent.
        change: float32 [C or P], how much each differs from what is shown, in borders of novel.
    """

    moment: int
    coarse: bool
    pieces: Mask
    change: Change

    def __len__(self) -> int:
        """Tokens."""
        return int(self.pieces.sum())


def send(
    moments: Moments, chosen: Iterable[int], coarse: Mask, level: Level,
    whole: Collection[int] = (),
) -> list[Sent]:  # fmt: skip
    """Walk through the chosen moments in order of time.

    Args:
        coarse: bool [n], moments that are sent in the pieces of ``level``.
        whole: Moments that are sent as a whole.
    """
    out: list[Sent] = []
    shown: NDArray[np.float32] | None = None
    blurred = np.zeros(moments.rows * moments.cols, dtype=np.bool_)
    for moment in sorted(chosen):
        data, rough = moments.data[moment], bool(coarse[moment])
        first = shown is None
        change = cell_change(data, data * 0 if shown is None else shown)
        need = (change >= 1) | first | (moment in whole)
        if not rough:
            need |= blurred
        if rough and level.owner is not None:
            pieces = touched(need[None], level)[0]
            high = np.zeros(level.count, dtype=np.float32)
            np.maximum.at(high, level.owner, change)
            out.append(Sent(moment, True, pieces, high))
            cells = pieces[level.owner]
        else:
            out.append(Sent(moment, False, need, change))
            cells = need
        shown = data.copy() if shown is None else np.where(cells[:, None], data, shown)
        blurred = np.where(cells, rough, blurred)
    return out


def fill(parts: list[Sent], room: int) -> int:
    """Send more of the same moments, what changed most first; returns what room is left."""
    if room <= 0 or not parts:
        return room
    owner = np.concatenate([np.full(int((~p.pieces).sum()), i) for i, p in enumerate(parts)])
    piece = np.concatenate([np.flatnonzero(~p.pieces) for p in parts])
    change = np.concatenate([p.change[~p.pieces] for p in parts])
    for i in np.argsort(-change, kind="stable")[:room].tolist():
        parts[owner[i]].pieces[piece[i]] = True
    return room - min(room, len(change))


def ids_of(part: Sent, level: Level, number: int, cells: int) -> Ids:
    """Ids of the cells of the frame ``number`` that make a part, those that changed most first."""
    pieces = np.flatnonzero(part.pieces)
    pieces = pieces[np.argsort(-part.change[pieces], kind="stable")]
    if part.coarse and level.owner is not None:
        members = [np.flatnonzero(level.owner == p) for p in pieces]
        pieces = np.concatenate(members) if members else pieces
    out: Ids = number * cells + pieces
    return out
