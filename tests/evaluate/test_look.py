"""SSIM, text, vectors of pictures."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tokpipe.encode._text import text_richness
from tokpipe.evaluate._embed import (
    BATCH,
    Collector,
    Descriptors,
    at_half_side,
    to_size,
)
from tokpipe.evaluate._ssim import luma, ssim
from tokpipe.spec import TEXT_RICH

Picture = NDArray[np.uint8]


def noise(height: int = 112, width: int = 196, seed: int = 0) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def page(lines: int = 14, ink: str = "black", paper: str = "white") -> Picture:
    image = Image.new("RGB", (448, 252), paper)
    draw = ImageDraw.Draw(image)
    for n in range(lines):
        draw.text((12, 8 + 17 * n), f"{n} the quick brown fox jumps over the lazy dog, " * 2,
                  fill=ink, font=ImageFont.load_default())  # fmt: skip
    return np.asarray(image)


def clouds() -> Picture:
    small = np.random.default_rng(2).integers(60, 200, (7, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((448, 252), Image.Resampling.BICUBIC))


def plain_ssim(x: NDArray[Any], y: NDArray[Any]) -> float:
    """The paper's formula, window by window."""
    at = np.arange(11) - 5
    line = np.exp(-(at**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            ab = (window * (a - ma) * (b - mb)).sum()
            values.append(
                (2 * ma * mb + 6.5025) * (2 * ab + 58.5225)
                / ((ma**2 + mb**2 + 6.5025) * (va + vb + 58.5225))
            )  # fmt: skip
    return float(np.mean(values))


def test_ssim_is_the_papers() -> None:
    x = luma(noise(20, 26)).astype(np.float64)
    y = np.clip(x + np.random.default_rng(1).normal(0, 30, x.shape), 0, 255)
    assert ssim(x, y) == pytest.approx(plain_ssim(x, y), abs=1e-9)


def test_ssim_of_a_picture_with_itself_is_one() -> None:
    x = luma(noise())
    assert ssim(x, x) == pytest.approx(1.0)
    assert ssim(x, 255 - x) < 0


def test_ssim_of_pictures_smaller_than_the_window() -> None:
    x = luma(noise(4, 6))
    assert ssim(x, x) == pytest.approx(1.0)


def test_ssim_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match="expected two pictures"):
        ssim(np.zeros((20, 20)), np.zeros((20, 21)))


@pytest.mark.parametrize("colours", [("black", "white"), ("white", "navy"), ("#222", "#ccc")])
def test_pages_are_rich_in_text(colours: tuple[str, str]) -> None:
    assert text_richness(page(14, *colours)) > 2 * TEXT_RICH


@pytest.mark.parametrize(
    "picture", [clouds(), noise(252, 448), np.full((252, 448, 3), 255, np.uint8), page(1)]
)
def test_other_pictures_are_not(picture: Picture) -> None:
    assert text_richness(picture) < TEXT_RICH


def test_richness_of_a_picture_smaller_than_a_tile() -> None:
    assert text_richness(noise(20, 20)) == 0


def test_vectors_have_length_one_and_tell_pictures_apart() -> None:
    look = Descriptors()
    pictures = [clouds(), page(), page(ink="white", paper="black"), np.full_like(page(), 128)]
    rows = look(pictures)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    near = rows @ rows.T
    assert (near[~np.eye(4, dtype=bool)] < 0.9).all()


def test_vectors_of_a_picture_that_was_coded_stay_near() -> None:
    look = Descriptors()
    shown = page()
    softer = at_half_side(shown)
    near = look([shown]) @ look([softer, page(7)]).T
    assert near[0, 0] > near[0, 1]
    assert near[0, 0] > 0.97


def test_vectors_of_upright_pictures_have_the_same_width() -> None:
    look = Descriptors()
    wide = look([noise(112, 196)])
    assert look([noise(196, 112)]).shape == wide.shape
    assert look([noise(28, 28)]).shape == wide.shape


def test_vectors_do_not_depend_on_the_batch() -> None:
    look = Descriptors()
    pictures = [noise(seed=n) for n in range(5)]
    alone = np.concatenate([look([picture]) for picture in pictures])
    np.testing.assert_array_equal(look(pictures), alone)


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, 2 * BATCH + 3])
def test_collector_gives_each_vector_to_its_owner(count: int) -> None:
    look = Descriptors()
    found: dict[int, NDArray[np.float32]] = {}

    def own(number: int, features: str, vector: NDArray[np.float32]) -> None:
        assert features == look.name
        found[number] = vector

    collector = Collector([look])
    for n in range(count):
        collector.add(noise(seed=n), partial(own, n))
    collector.flush()
    assert sorted(found) == list(range(count))
    np.testing.assert_array_equal(found[count - 1], look([noise(seed=count - 1)])[0])


def test_sizes() -> None:
    assert to_size(noise(), 196, 112) is not None
    assert to_size(noise(), 90, 50).shape == (50, 90, 3)
    assert at_half_side(noise(28, 28)).shape == (28, 28, 3)
