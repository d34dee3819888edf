"""Pictures that say which frame they are: a number painted as a bar code over a moving pattern."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_NUMBER", "paint_frame", "paint_number", "read_frame_number"]

MAX_NUMBER = 0xFFFF
"""Largest number that a bar code holds (16 bits)."""

_BITS = 16
_BLOCKS = 2 + _BITS + 2  # white and black reference, number, two parity blocks
_UNITS = _BLOCKS + 2  # one block of margin on each side
_TOP, _BOTTOM = 1 / 16, 5 / 16  # strip, as fractions of the height
_MIN_CONTRAST = 24.0  # grey levels between the two references; less means there is no code


def _blocks(number: int) -> list[bool]:
    bits = [bool(number >> shift & 1) for shift in reversed(range(_BITS))]
    return [True, False, *bits, sum(bits[0::2]) % 2 == 0, sum(bits[1::2]) % 2 == 1]


def paint_number(picture: NDArray[np.uint8], number: int) -> None:
    """Paint a frame number into a picture, in place.

    A strip across the top holds 20 blocks: white, black, the 16 bits of the number (high bit
    first), and the parities of its odd and even bits, so that a torn or damaged strip is noticed.

    Args:
        picture: Upright picture [H, W, 3], at least 88 pixels wide to survive compression.
        number: What to paint, 0 to 65535.

    Raises:
        ValueError: ``number`` does not fit in 16 bits.
    """
    if not 0 <= number <= MAX_NUMBER:
        raise ValueError(f"frame number {number} is not in 0..{MAX_NUMBER}")
    height, width = picture.shape[:2]
    top, bottom = round(height * _TOP), round(height * _BOTTOM)
    picture[top:bottom] = 0
    for place, bright in enumerate(_blocks(number), start=1):
        left, right = round(width * place / _UNITS), round(width * (place + 1) / _UNITS)
        picture[top:bottom, left:right] = 255 if bright else 0


def read_frame_number(rgb: NDArray[np.uint8]) -> int:
    """Read the number painted by `paint_number` back from a decoded picture of any size.

    Only the inner half of every block is looked at, and black and white are taken from the strip
    itself, so scaling, compression, limited range and tone mapping do no harm.

    Args:
        rgb: Upright picture [H, W, 3] or its luma [H, W]; H ≥ 16, W ≥ 44.

    Returns:
        The frame number, 0 to 65535.

    Raises:
        ValueError: No bar code is there, or its parity is wrong.
    """
    grey = np.asarray(rgb, dtype=np.float64)
    if grey.ndim == 3:
        grey = grey.mean(axis=2)
    height, width = grey.shape
    quarter = (_BOTTOM - _TOP) / 4
    top = round(height * (_TOP + quarter))
    strip = grey[top : max(top + 1, round(height * (_BOTTOM - quarter)))].mean(axis=0)
    levels = []
    for place in range(1, _BLOCKS + 1):
        left = round(width * (place + 0.25) / _UNITS)
        levels.append(
            float(strip[left : max(left + 1, round(width * (place + 0.75) / _UNITS))].mean())
        )
    white, black = levels[0], levels[1]
    if white - black < _MIN_CONTRAST:
        raise ValueError(f"no bar code: its references are {white:.0f} and {black:.0f}")
    bright = [level > (white + black) / 2 for level in levels]
    number = sum(
        bit << shift for bit, shift in zip(bright[2:18], reversed(range(_BITS)), strict=True)
    )
    if bright != _blocks(number):
        raise ValueError(f"the bar code reads {number} but its parity is wrong")
    return number


def paint_frame(number: int, time: float, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw the standard test picture: a still gradient, two moving shapes and the frame number.

    Args:
        number: Number in the bar code, 0 to 65535.
        time: Seconds; places the moving shapes.
        size: Width and height in pixels.

    Returns:
        Upright RGB picture [H, W, 3].
    """
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.empty((height, width, 3), dtype=np.uint8)
    picture[..., 0] = 40 + 120 * columns // width
    picture[..., 1] = 60 + 100 * rows // height
    picture[..., 2] = 130
    across = round(width * (0.5 + 0.35 * np.sin(1.7 * time)))
    down = round(height * (0.65 + 0.15 * np.cos(2.3 * time)))
    radius = max(2, height // 8)
    picture[(columns - across) ** 2 + (rows - down) ** 2 < radius**2] = (230, 70, 50)
    left = round(width * (time * 0.2 % 1.0))
    picture[height * 7 // 8 :, left : left + max(2, width // 10)] = (250, 230, 60)
    paint_number(picture, number)
    return picture
