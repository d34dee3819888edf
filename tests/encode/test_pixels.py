"""Cell descriptors against a slow twin, and the atlas as the format page describes it."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tokpipe.encode import pixels
from tokpipe.encode.pixels import AtlasPages, Pixels, describe, encode_page
from tokpipe.tensors import FrameBatch

Picture = NDArray[np.uint8]
CELL = 28


def noise(frames: int, rows: int, cols: int, seed: int = 0) -> Picture:
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (frames, rows * CELL, cols * CELL, 3), dtype=np.uint8)


def smooth(count: int, seed: int = 0) -> Picture:
    """Cells like photographs: a few waves and a little noise."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:CELL, :CELL] / CELL
    waves = draw.uniform(-2, 2, (count, 2, 1, 1))
    base = 128 + 60 * np.sin(2 * math.pi * (waves[:, 0] * y + waves[:, 1] * x))
    cells = base[..., None] + draw.uniform(-40, 40, (count, 1, 1, 3))
    noisy = cells + draw.normal(0, 2, cells.shape)
    return np.asarray(noisy.clip(0, 255).round(), dtype=np.uint8)


def coefficient(plane: NDArray[np.float64], v: int, u: int) -> float:
    """One orthonormal DCT-II coefficient of a square plane, as the textbook writes it."""
    n = len(plane)
    place = np.arange(n) + 0.5
    wave = np.outer(np.cos(math.pi * place * v / n), np.cos(math.pi * place * u / n))
    scale = math.sqrt((1 if v == 0 else 2) / n) * math.sqrt((1 if u == 0 else 2) / n)
    return float(scale * (plane * wave).sum())


def naive_descriptor(cell: Picture) -> NDArray[np.float64]:
    r, g, b = cell.astype(np.float64).transpose(2, 0, 1)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    halves = [(b - luma) / 1.772, (r - luma) / 1.402]
    halves = [p.reshape(14, 2, 14, 2).mean(axis=(1, 3)) for p in halves]
    out = [coefficient(luma, v, u) for v in range(4) for u in range(4)]
    out += [coefficient(p, v, u) for p in halves for v in range(2) for u in range(2)]
    return np.array(out)


def batch(pictures: Picture) -> FrameBatch:
    t = len(pictures)
    return FrameBatch(
        pixels=torch.from_numpy(pictures),
        pts=torch.arange(t, dtype=torch.float64) / 2 + 1,
        duration=torch.full((t,), 0.25, dtype=torch.float64),
        index=torch.arange(t) * 15,
    )


def test_describe_equals_naive_twin() -> None:
    pictures = noise(2, 3, 2)
    found = describe(torch.from_numpy(pictures)).double().numpy()
    assert found.shape == (2, 3, 2, 24)
    for t, y, x in np.ndindex(2, 3, 2):
        cell = pictures[t, y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL]
        # float16 keeps 11 bits of numbers up to 7140.
        np.testing.assert_allclose(found[t, y, x], naive_descriptor(cell), atol=0.1, rtol=1e-3)


@pytest.mark.parametrize("grey", [0, 1, 128, 255])
def test_describe_flat_cell_is_28_times_luma(grey: int) -> None:
    cell = np.full((1, CELL, CELL, 3), grey, dtype=np.uint8)
    found = describe(torch.from_numpy(cell)).reshape(-1).float()
    assert float(found[0]) == pytest.approx(28 * grey, rel=1e-3)
    assert float(found[1:].abs().max()) < 0.02


def test_describe_flat_colour_is_14_times_chroma_offset() -> None:
    blue = np.zeros((1, CELL, CELL, 3), dtype=np.uint8)
    blue[..., 2] = 200
    found = describe(torch.from_numpy(blue)).reshape(-1).float()
    assert float(found[0]) == pytest.approx(28 * 0.114 * 200, rel=1e-3)
    assert float(found[16]) == pytest.approx(14 * 0.5 * 200, rel=1e-3)
    assert float(found[20]) == pytest.approx(14 * -0.081312 * 200, rel=1e-3)
    assert float(found[[17, 18, 19, 21, 22, 23]].abs().max()) < 0.02


def test_describe_distance_is_rms_of_a_flat_change() -> None:
    pair = np.full((2, CELL, CELL, 3), 100, dtype=np.uint8)
    pair[1] += 5
    low, high = describe(torch.from_numpy(pair)).reshape(2, 24).float()
    assert float((high - low)[:16].norm()) / 28 == pytest.approx(5, abs=0.02)


@pytest.mark.parametrize("size", [1, 5, 16, 33])
def test_encode_batch_size_changes_no_bit(size: int) -> None:
    pictures = noise(40, 2, 3)
    whole = Pixels().encode(batch(pictures)).data
    parts = [Pixels().encode(batch(pictures[a : a + size])).data for a in range(0, 40, size)]
    assert torch.equal(torch.cat(parts), whole)


def test_encode_places_tokens_in_raster_order() -> None:
    tokens = Pixels().encode(batch(noise(2, 2, 3)))
    cells = [(t, y, x) for t in range(2) for y in range(2) for x in range(3)]
    assert tokens.cell.tolist() == [list(c) for c in cells]
    assert tokens.at.tolist() == [1.0] * 6 + [1.5] * 6
    assert tokens.pts[0].tolist() == [1.0, 1.25]
    assert tokens.frame[6].tolist() == [15, 15]
    assert tokens.data.dtype == torch.float16
    assert float(tokens.mass.sum()) == 12


def slots_of(page: bytes) -> Picture:
    """Slots uint8 [n, 32, 32, 3] of one page."""
    with Image.open(io.BytesIO(page)) as image:
        assert image.format == "WEBP"
        data = np.asarray(image.convert("RGB"))
    high, wide = data.shape[0] // 32, data.shape[1] // 32
    return data.reshape(high, 32, wide, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)


def luma_psnr(one: Picture, other: Picture) -> float:
    step = (one.astype(np.float64) - other) @ [0.299, 0.587, 0.114]
    return 10 * math.log10(255**2 / max(1e-9, float((step**2).mean())))


def test_atlas_pages_hold_1024_cells_and_the_last_is_cropped() -> None:
    cells, pages, full = smooth(1024 + 40), AtlasPages(), []
    boxes = []
    for cell in cells:
        box, done = pages.add(cell)
        boxes.append(box)
        full += done
    assert len(full) == 1
    full += pages.finish()
    assert pages.finish() == []
    sizes = []
    for page in full:
        with Image.open(io.BytesIO(page)) as image:
            sizes.append(image.size)
    assert sizes == [(1024, 1024), (1024, 64)]
    assert boxes[0] == (0, 2, 2, 28)
    assert boxes[33] == (0, 34, 34, 28)
    assert boxes[1023] == (0, 994, 994, 28)
    assert boxes[1024 + 32] == (1, 2, 34, 28)


def test_atlas_boxes_give_each_cell_back() -> None:
    cells, pages = smooth(70, seed=3), AtlasPages()
    boxes = [pages.add(cell)[0] for cell in cells]
    (page,) = pages.finish()
    with Image.open(io.BytesIO(page)) as image:
        data = np.asarray(image.convert("RGB"))
    for cell, (number, x, y, size) in zip(cells, boxes, strict=True):
        assert (number, size) == (0, CELL)
        assert luma_psnr(cell, data[y : y + size, x : x + size]) >= 36


def test_atlas_margin_repeats_the_edge() -> None:
    """Lossless coding shows what is put in: two rows and columns of the edge on every side."""
    seen: list[Picture] = []
    original = pixels._webp

    def spy(page: Picture, quality: int) -> bytes:
        seen.append(page)
        return original(page, quality)

    cells = noise(3, 1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "_webp", spy)
        encode_page(cells)
    slots = seen[0].reshape(1, 32, 32, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
    for slot, cell in zip(slots, cells, strict=False):
        assert (slot[2:30, 2:30] == cell).all()
        assert (slot[:2, 2:30] == cell[0]).all()
        assert (slot[30:, 2:30] == cell[-1]).all()
        assert (slot[2:30, :2] == cell[:, :1]).all()
        assert (slot[2:30, 30:] == cell[:, -1:]).all()
    assert not slots[3:].any()


def test_encode_page_repeats_byte_for_byte() -> None:
    cells = smooth(100, seed=5)
    assert encode_page(cells) == encode_page(cells.copy())


def qualities(cells: Picture) -> list[int]:
    """Qualities that a page was encoded with."""
    seen: list[int] = []
    original = pixels._webp

    def spy(page: Picture, quality: int) -> bytes:
        seen.append(quality)
        return original(page, quality)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "_webp", spy)
        encode_page(cells)
    return seen


def test_encode_page_takes_100_where_one_cell_is_under_36_db() -> None:
    easy = smooth(64, seed=1)
    worst = min(map(luma_psnr, easy, slots_of(encode_page(easy))[:, 2:30, 2:30]))
    assert worst >= 36
    assert qualities(easy) == [98]
    hard = easy.copy()
    hard[10] = 0
    hard[10, ::2, ::2, 0] = 255
    assert qualities(hard) == [98, 100]
    assert encode_page(hard) == pixels._webp(_page(hard), 100)


def _page(cells: Picture) -> Picture:
    """The page of up to 64 cells, built slot by slot."""
    page = np.zeros((64, 1024, 3), dtype=np.uint8)
    for i, cell in enumerate(cells):
        y, x = divmod(i, 32)
        slot = np.pad(cell, ((2, 2), (2, 2), (0, 0)), mode="edge")
        page[y * 32 : y * 32 + 32, x * 32 : x * 32 + 32] = slot
    return page


def test_empty_slots_do_not_count_in_the_quality_check() -> None:
    assert qualities(np.zeros((1, CELL, CELL, 3), dtype=np.uint8)) == [98]
