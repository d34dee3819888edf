"""Which tokens are live, and what they stand for, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokpipe.decide import survivors_of
from tokpipe.encode._fit import Fit, frame_of, places_of
from tokpipe.encode._tower import Places
from tokpipe.encode.pixels import cell_tokens
from tokpipe.late import Coverage, Survivors
from tokpipe.tensors import TokenBatch


def naive(places: Places, kept: torch.Tensor) -> list[float]:
    """Part of each box in kept cells, by a fine raster of sample points."""
    rows, cols = kept.shape
    out = []
    for y0, x0, y1, x1 in places.box.tolist():
        steps = (np.arange(240) + 0.5) / 240
        y, x = y0 + steps * (y1 - y0), x0 + steps * (x1 - x0)
        r, c = np.floor(y * rows).astype(int), np.floor(x * cols).astype(int)
        fine = ((r >= 0) & (r < rows))[:, None] & ((c >= 0) & (c < cols))[None]
        value = kept.numpy()[np.clip(r, 0, rows - 1)][:, np.clip(c, 0, cols - 1)] & fine
        out.append(float(value.mean()))
    return out


@given(st.data())
def test_live_is_half_a_box_in_kept_cells(data: st.DataObject) -> None:
    rows, cols = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 8))
    fits: list[Fit] = ["pad", "squash", "crop"]
    fit = data.draw(st.sampled_from(fits))
    frame = frame_of(rows * 28, cols * 28, (64, 64), (16, 16), fit)
    places = places_of(frame, (64, 64), (4, 4))
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows * cols,
                                           max_size=rows * cols))).reshape(rows, cols)  # fmt: skip
    live = Coverage.of(places, rows, cols).live(kept[None])[0].tolist()
    for mine, part in zip(live, naive(places, kept), strict=True):
        # Sample points are no areas: what is close to half may go either way.
        if abs(part - 0.5) > 0.01:
            assert mine == (part > 0.5)


@pytest.mark.parametrize("size", [(252, 448), (448, 252), (84, 448), (224, 224)])
def test_padding_is_never_live(size: tuple[int, int]) -> None:
    frame = frame_of(*size, (224, 224), (32, 32), "pad")
    places = places_of(frame, (224, 224), (7, 7))
    whole = torch.ones(1, 9, 16, dtype=torch.bool)
    live = Coverage.of(places, 9, 16).live(whole)[0]
    share = (
        (places.box[:, 2].clamp(0, 1) - places.box[:, 0].clamp(0, 1))
        / (places.box[:, 2] - places.box[:, 0])
        * (places.box[:, 3].clamp(0, 1) - places.box[:, 1].clamp(0, 1))
        / (places.box[:, 3] - places.box[:, 1])
    )
    assert live.tolist() == (share >= 0.5).tolist()
    assert 0 < int(live.sum()) <= 49


def rows_of(frames: int, keep: torch.Tensor) -> TokenBatch:
    at = torch.arange(frames, dtype=torch.float64)
    index = torch.arange(frames) * 10
    every = cell_tokens(
        torch.randn(frames * 6, 24), at, at + 1, index, torch.arange(frames).int() * 2, 2, 3
    )
    return every.take(torch.nonzero(keep.flatten()).flatten())


def test_survivors_hold_the_cells_and_times_of_the_rows() -> None:
    keep = torch.tensor([[1, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    rows = rows_of(3, keep)
    rows.pts[0, 1] = 2.5
    made = survivors_of(rows, (2, 3))
    assert made.step.tolist() == [0, 4]
    assert made.at.tolist() == [0.0, 2.0]
    assert torch.equal(made.kept(0, 2).reshape(2, 6), keep[[0, 2]])
    # One token over the whole picture, one over the upper left cell.
    places = Places.regular(torch.tensor([0.0, 1.0]).double(), torch.tensor([0.0, 1.0]).double())
    times, frames = made.spans(Coverage.of(places, 2, 3), 0, 2)
    assert times[:, 0].tolist() == [[0.0, 2.5], [2.0, 3.0]]
    assert frames[:, 0].tolist() == [[0, 0], [20, 20]]
    some = made.take(torch.tensor([1]))
    assert torch.equal(some.kept(0, 1), made.kept(1, 2))
    assert torch.equal(some.spans(Coverage.of(places, 2, 3), 0, 1)[0], times[1:])


def test_every_cell_kept_needs_no_rows() -> None:
    at = torch.tensor([0.0, 0.5]).double()
    made = Survivors(torch.tensor([3, 7]), at, at + 0.5, torch.tensor([30, 70]), (2, 3))
    assert made.kept(0, 2).all()
    places = Places.regular(torch.tensor([0.0, 0.5, 1.0]).double(), torch.tensor([0.0, 1]).double())
    times, frames = made.spans(Coverage.of(places, 2, 3), 1, 2)
    assert times[0].tolist() == [[0.5, 1.0]] * 2
    assert frames[0].tolist() == [[70, 70]] * 2
    assert made.take(torch.tensor([1])).step.tolist() == [7]
