"""Draw the README's picture: moments of the sample lecture and the cells a cache of it keeps."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import tokpipe

HERE = Path(__file__).parent
WIDTH, GAP, COLUMNS = 224, 8, 7


def main() -> None:
    """Compress, rebuild, and put source frames above kept cells."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs/images/lecture.png")
    asked = parser.parse_args()
    lecture = HERE / "media/lecture.mp4"
    with tempfile.TemporaryDirectory() as folder:
        cache_file = Path(folder) / "lecture.tokpipe.safetensors"
        record = tokpipe.compress_file(lecture, cache_file, budget=2048)
        with tokpipe.open_cache(cache_file) as cache:
            frames = list(cache.frames())
    fullest = sorted(frames, key=lambda frame: -int((frame.mask == 3).sum()))[:COLUMNS]
    pick = sorted(fullest, key=lambda frame: frame.pts)
    height = WIDTH * pick[0].pixels.shape[0] // pick[0].pixels.shape[1]
    sheet = Image.new("RGB", (COLUMNS * (WIDTH + GAP) + GAP, 2 * height + 96), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=18)
    sources = source_frames(lecture, [frame.pts for frame in pick])
    for i, (frame, source) in enumerate(zip(pick, sources, strict=True)):
        x = GAP + i * (WIDTH + GAP)
        sheet.paste(Image.fromarray(source).resize((WIDTH, height)), (x, 34))
        own = np.kron(frame.mask == 3, np.ones((28, 28), dtype=bool))[..., None]
        shown = np.where(own, frame.pixels, 245).astype(np.uint8)
        sheet.paste(Image.fromarray(shown).resize((WIDTH, height)), (x, 34 + height + GAP))
        minutes, seconds = divmod(frame.pts, 60)
        draw.text((x, 8), f"{int(minutes)}:{seconds:04.1f}", fill="black", font=font)
    tokens = record.tokens
    text = (
        f"{record.candidates:,} candidates, {tokens['total']:,} tokens kept: "
        f"{tokens['video']:,} cells of {len(frames)} moments (some shown below their pictures) "
        f"and {tokens['audio']:,} of sound"
    )
    draw.text((GAP, 2 * height + 60), text, fill="black", font=font)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(128).save(asked.out, optimize=True)


def source_frames(path: Path, times: list[float]) -> list[NDArray[np.uint8]]:
    """Decode the frames at these times."""
    found = {}
    for item in tokpipe.open_media(path).read():
        if not isinstance(item, tokpipe.AudioChunk) and item.pts in times:
            found[item.pts] = item.rgb(448, 252)
    return [found[t] for t in times]


if __name__ == "__main__":
    main()
