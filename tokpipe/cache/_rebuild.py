"""Pictures back from an atlas: the canvas, what each cell shows at each time, and the mask."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tokpipe.cache._file import Array, CacheFile
from tokpipe.cache.format import ATLAS_CODECS
from tokpipe.errors import CacheCorrupt
from tokpipe.spec import KIND_POOLED, VISIBLE

#: Values of the mask.
MASK_UNKNOWN, MASK_LATER, MASK_EARLIER, MASK_OWN = range(4)
GREY = 128
_ROWS = 4096

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, repr=False)
class RebuiltFrame:
    """One picture as the cache knows it.

    Attributes:
        pts: Seconds from the media's zero: an ``at`` of the cache.
        pixels: uint8 [H, W, 3] RGB; H and W are the grid times the cell size.
        mask: uint8 [rows, cols] of the grid: 3 the cell's own content of this time, 2 earlier,
            1 later, 0 unknown (mean of its neighbours, or grey).
    """

    pts: float
    pixels: Pixels
    mask: npt.NDArray[np.uint8]

    def __repr__(self) -> str:
        """Show time, size and how much is the frame's own."""
        own = int((self.mask == MASK_OWN).sum())
        return f"RebuiltFrame({self.pts:.3f} s, {list(self.pixels.shape)}, {own} own cells)"


class _Content(NamedTuple):
    """A stored picture: its time, the cells it covers and where it lies in the atlas.

    One that ``repeats`` looks like what is shown there already.
    """

    at: float
    y: int
    x: int
    rows: int
    cols: int
    box: tuple[int, int, int, int]
    repeats: bool = False


class Atlas:
    """Decoded pages, one held at a time.

    Args:
        file: The cache.
        spec: ``tokpipe.atlas``: codec, slots, slot.
    """

    def __init__(self, file: CacheFile, spec: Mapping[str, Any]) -> None:
        self._file = file
        self._codec = ATLAS_CODECS[spec["codec"]]
        self._limit = (spec["slots"][0] * spec["slot"], spec["slots"][1] * spec["slot"])
        self._page = -1
        self._pixels: Pixels = np.empty((0, 0, 3), dtype=np.uint8)

    @property
    def num_pages(self) -> int:
        """Pages in the file."""
        return self._file.num_rows("video.atlas_offsets") - 1

    def page(self, index: int) -> Pixels:
        """A decoded page, uint8 [H, W, 3] RGB.

        Raises:
            CacheCorrupt: No such page, or it cannot be decoded.
        """
        if index != self._page:
            if not 0 <= index < self.num_pages:
                raise CacheCorrupt(f"there is no atlas page {index}", code="cache.atlas")
            self._pixels = self._decode(index)
            self._page = index
        return self._pixels

    def _decode(self, index: int) -> Pixels:
        from PIL import Image

        start, stop = (int(v) for v in self._file.read("video.atlas_offsets", index, index + 2))
        if not 0 <= start <= stop <= self._file.num_rows("video.atlas"):
            raise CacheCorrupt(f"atlas page {index} lies outside the atlas", code="cache.atlas")
        data = self._file.read("video.atlas", start, stop).tobytes()
        try:
            with Image.open(io.BytesIO(data), formats=[self._codec]) as image:
                # The size is known before a pixel is decoded, so a bomb costs nothing.
                if image.width > self._limit[0] or image.height > self._limit[1]:
                    raise CacheCorrupt(
                        f"atlas page {index} is {image.width}x{image.height} pixels, at most "
                        f"{self._limit[0]}x{self._limit[1]} expected", code="cache.atlas",
                    )  # fmt: skip
                return np.asarray(image.convert("RGB"), dtype=np.uint8)
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
            raise CacheCorrupt(
                f"atlas page {index} cannot be decoded: {error}", code="cache.atlas"
            ) from error

    def cut(self, content: _Content, cell: int) -> Pixels:
        """The stored picture scaled to the cells it covers, uint8 [rows*cell, cols*cell, 3]."""
        page, x, y, size = content.box
        pixels = self.page(page)
        if x < 0 or y < 0 or size < 1 or max(y + size - pixels.shape[0],
                                             x + size - pixels.shape[1]) > 0:  # fmt: skip
            raise CacheCorrupt(f"a box lies outside atlas page {page}", code="cache.atlas")
        picture = pixels[y : y + size, x : x + size]
        height, width = content.rows * cell, content.cols * cell
        if (height, width) == (size, size):
            return picture
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(picture))
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.uint8)


def _contents(file: CacheFile, rows: int, cols: int) -> Iterator[_Content | float]:
    """Stored pictures in row order; a row without one yields only its time."""
    names = ["at", "cell", "extent", "tile", "kind", "atlas_box", "score"]
    for start in range(0, file.num_rows("video.at"), _ROWS):
        block = {n: file.read(f"video.{n}", start, start + _ROWS) for n in names}
        size = _covered(block)
        shown = (block["tile"] == 0) & (block["atlas_box"][:, 0] >= 0)
        again = block["score"] < VISIBLE
        for at, cell, (high, wide), box, show, same in zip(
            block["at"].tolist(), block["cell"].tolist(), size.tolist(),
            block["atlas_box"].tolist(), shown.tolist(), again.tolist(), strict=True,
        ):  # fmt: skip
            if not show:
                yield at
                continue
            _, y, x = cell
            if not (0 <= y < rows and 0 <= x < cols):
                raise CacheCorrupt(f"the cell ({y}, {x}) is outside the grid", code="cache.cell")
            if not (1 <= high <= rows and 1 <= wide <= cols):
                raise CacheCorrupt(f"a picture covers {high} x {wide} cells", code="cache.atlas")
            yield _Content(at, y, x, high, wide, tuple(box), same)


def _covered(block: Mapping[str, Array]) -> Array:
    """Grid rows and columns each picture covers, int [n, 2]."""
    # Only pooling makes a larger cell; other extents are hulls of what a token stands for.
    pooled = block["kind"][:, None] == KIND_POOLED
    return np.where(pooled, np.maximum(block["extent"][:, 1:], 1), 1)


def rebuild_frames(
    file: CacheFile, grid: Mapping[str, Any], atlas: Mapping[str, Any]
) -> Iterator[RebuiltFrame]:
    """Rebuild one frame for each distinct ``at``; memory is one canvas and one atlas page.

    Args:
        file: A signal cache with video.
        grid: ``tokpipe.grid``: rows, cols, cell.
        atlas: ``tokpipe.atlas``: codec, slots, slot.

    Raises:
        CacheCorrupt: A picture, a box or a cell is not as the format page says.
    """
    rows, cols, cell = int(grid["rows"]), int(grid["cols"]), int(grid["cell"])
    pages = Atlas(file, atlas)
    canvas, known = _first_contents(file, pages, rows, cols, cell)
    state = np.where(known, MASK_LATER, MASK_UNKNOWN).astype(np.uint8)
    now: float | None = None
    size = np.full((rows, cols), rows * cols)
    for item in _contents(file, rows, cols):
        at = item.at if isinstance(item, _Content) else item
        if now is not None and at != now:
            yield _frame(now, canvas, state, cell)
            state[state == MASK_OWN] = MASK_EARLIER
        now = at
        if isinstance(item, _Content):
            where = slice(item.y, item.y + item.rows), slice(item.x, item.x + item.cols)
            state[where] = MASK_OWN
            # A coarse repeat never blurs what is shown in more detail.
            if not (item.repeats and size[where].min() < item.rows * item.cols):
                picture = pages.cut(item, cell)
                part = canvas[item.y * cell : (item.y + item.rows) * cell,
                              item.x * cell : (item.x + item.cols) * cell]  # fmt: skip
                part[:] = picture[: part.shape[0], : part.shape[1]]
                size[where] = item.rows * item.cols
    if now is not None:
        yield _frame(now, canvas, state, cell)


def _first_contents(
    file: CacheFile, pages: Atlas, rows: int, cols: int, cell: int
) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """A canvas with each cell's earliest content, and which cells ever have one."""
    canvas = np.full((rows * cell, cols * cell, 3), GREY, dtype=np.uint8)
    first = np.full((rows, cols), np.inf)
    for item in _contents(file, rows, cols):
        if not isinstance(item, _Content):
            continue
        if first.max() < item.at:
            break
        box = first[item.y : item.y + item.rows, item.x : item.x + item.cols]
        # Of several pictures at one time the last row wins, as it does later.
        todo = box >= item.at
        if not todo.any():
            continue
        box[todo] = item.at
        picture = pages.cut(item, cell)
        for dy, dx in np.argwhere(todo):
            y, x = (item.y + dy) * cell, (item.x + dx) * cell
            canvas[y : y + cell, x : x + cell] = picture[
                dy * cell : (dy + 1) * cell, dx * cell : (dx + 1) * cell
            ]
    return canvas, np.isfinite(first)


def _frame(pts: float, canvas: Pixels, state: npt.NDArray[np.uint8], cell: int) -> RebuiltFrame:
    pixels = canvas.copy()
    unknown = state == MASK_UNKNOWN
    if unknown.any():
        _fill_unknown(pixels, unknown, cell)
    return RebuiltFrame(pts, pixels, state.copy())


def _fill_unknown(pixels: Pixels, unknown: npt.NDArray[np.bool_], cell: int) -> None:
    """Give cells that never have content the mean colour of their known 8-neighbours, or grey."""
    rows, cols = unknown.shape
    tiles = pixels.reshape(rows, cell, cols, cell, 3)
    means = tiles.mean(axis=(1, 3), dtype=np.float64) * ~unknown[..., None]
    total = np.zeros((rows + 2, cols + 2, 3))
    count = np.zeros((rows + 2, cols + 2, 1))
    for dy in range(3):
        for dx in range(3):
            total[dy : dy + rows, dx : dx + cols] += means
            count[dy : dy + rows, dx : dx + cols] += ~unknown[..., None]
    total, count = total[1:-1, 1:-1], count[1:-1, 1:-1]
    colour = np.where(count > 0, np.rint(total / np.maximum(count, 1)), GREY).astype(np.uint8)
    for y, x in np.argwhere(unknown):
        tiles[y, :, x] = colour[y, x]
