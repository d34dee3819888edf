"""From kept rows to a file: atlas, pooled cells, segments, counts, metadata without a folder."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import tokpipe
from tokpipe.assemble import segment_starts
from tokpipe.cache.bank import FRAME
from tokpipe.encode.pixels import describe
from tokpipe.run import Options, compress_file

FRESH = Options(keep_bank=False, force=True)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Caches of samples by name, budget and layout, made when first asked for."""
    folder = tmp_path_factory.mktemp("made")
    samples = Path(__file__).parents[1] / "samples" / "media"

    def make(name: str, budget: str, layout: Any = "ragged") -> Path:
        path = folder / f"{name}-{budget.replace('/', '_')}-{layout}"
        if not path.exists():
            options = Options(keep_bank=False, layout=layout)
            compress_file(samples / name, path, budget=budget, options=options)
        return path

    return make


def atlas_cells(cache: Any) -> NDArray[np.uint8]:
    """Every row's picture uint8 [N, 28, 28, 3], read by the format page."""
    offsets, data = cache.column("video.atlas_offsets"), cache.column("video.atlas")
    pages = []
    for a, b in pairwise(offsets):
        with Image.open(io.BytesIO(data[a:b].tobytes())) as image:
            pages.append(np.asarray(image.convert("RGB")))
    boxes = cache.column("video.atlas_box")
    return np.stack([pages[p][y : y + s, x : x + s] for p, x, y, s in boxes])


@pytest.mark.parametrize(
    ("name", "budget"), [("action.mp4", "3000"), ("lecture.mp4", "500"), ("screen.mp4", "2000")]
)
def test_atlas_shows_what_the_descriptors_say(caches: Any, name: str, budget: str) -> None:
    import torch

    with tokpipe.open_cache(caches(name, budget)) as cache:
        cells = atlas_cells(cache)
        stored = cache.column("video.tokens").astype(np.float32)
    again = describe(torch.from_numpy(cells.reshape(-1, 28, 28, 3))).reshape(-1, 24).numpy()
    step = (stored - again.astype(np.float32))[:, :16]
    assert np.linalg.norm(step, axis=1).max() / 28 < 3, "under the border of novel"


def test_pooled_cells_show_and_describe_their_whole_rectangle(caches: Any) -> None:
    import torch

    with tokpipe.open_cache(caches("action.mp4", "video=7,audio=0")) as cache:
        cells = atlas_cells(cache)
        assert (cache.column("video.kind") == 2).all()
        extent, cell = cache.column("video.extent"), cache.column("video.cell")
        stored = cache.column("video.tokens").astype(np.float32)
        (frame,) = cache.frames()
    assert int((extent[:, 1] * extent[:, 2]).sum()) == 144
    assert (frame.mask == 3).all()
    again = describe(torch.from_numpy(cells)).reshape(-1, 24).numpy().astype(np.float32)
    assert np.linalg.norm((stored - again)[:, :16], axis=1).max() / 28 < 3
    for (_, y, x), (_, high, wide), picture in zip(cell, extent, cells, strict=True):
        shown = frame.pixels[y * 28 : (y + high) * 28, x * 28 : (x + wide) * 28]
        assert np.abs(shown.mean((0, 1)) - picture.mean((0, 1))).max() < 4


def test_counts_add_up_to_the_source(caches: Any) -> None:
    for name, budget in (("lecture.mp4", "500"), ("action.mp4", "3000"), ("screen.mp4", "10%")):
        with tokpipe.open_cache(caches(name, budget)) as cache:
            for stream, counts in cache.metadata["tokpipe.counts"].items():
                mass = float(cache.column(f"{stream}.mass").astype(np.float64).sum())
                assert mass + counts["dropped"] == pytest.approx(counts["source"], abs=1e-3)
                assert counts["dropped"] >= 0


def test_segments_are_the_scenes(caches: Any) -> None:
    truth = json.loads(
        (Path(__file__).parents[1] / "samples" / "media" / "ground_truth.json").read_text()
    )["files"]["action.mp4"]
    with tokpipe.open_cache(caches("action.mp4", "3000")) as cache:
        found = cache.segments
        rows = cache.column("segment.rows")
        at, segment = cache.column("video.at"), cache.column("video.segment")
        sizes = cache.num_tokens("video"), cache.num_tokens("audio")
    assert found[0, 0] == 0
    assert (found[1:, 0] == found[:-1, 1]).all()
    cuts = found[1:, 0]
    for cut in truth["cuts"][1:]:
        assert np.abs(cuts - cut).min() < 0.51
    for (start, stop), (a, b, _, _) in zip(found, rows, strict=True):
        assert (at[a:b] >= start).all()
        assert (at[a:b] < stop + 1e-9).all()
    assert segment.tolist() == np.repeat(np.arange(len(rows)), rows[:, 1] - rows[:, 0]).tolist()
    assert (rows[-1, 1], rows[-1, 3]) == sizes


class _Frames:
    def __init__(self, cuts: list[float]) -> None:
        self.records = np.zeros(len(cuts), dtype=FRAME)
        self.records["pts"] = np.arange(len(cuts)) / 2
        self.records["cut"] = cuts

    def frames(self) -> NDArray[Any]:
        return self.records


@pytest.mark.parametrize(
    ("cuts", "starts"),
    [
        ([255], [0.0]),
        ([255, 1, 1, 1, 1], [0.0]),
        ([255, 0, 0, 30, 0, 0], [0.0, 1.5]),
        ([255, 7.9, 0, 7.9], [0.0]),  # below the level that is a cut at all
        ([255, *[12.0] * 12], [0.0, 0.5]),  # steady motion is no row of cuts
        ([255, *[12.0] * 12, 60.0, 12.0], [0.0, 0.5, 6.5]),
    ],
)
def test_segment_starts_table(cuts: list[float], starts: list[float]) -> None:
    assert segment_starts(_Frames(cuts)).tolist() == starts  # type: ignore[arg-type]


def test_metadata_names_no_folder_and_no_date(caches: Any, tmp_path: Path) -> None:
    path = caches("action.mp4", "3000")
    samples = Path(__file__).parents[1] / "samples" / "media"
    with tokpipe.open_cache(path) as cache:
        text = json.dumps(dict(cache.metadata))
        assert cache.metadata["tokpipe.source"]["name"] == "action.mp4"
        assert cache.metadata["tokpipe.domain"] == "signal"
        assert cache.metadata["tokpipe.decode"]["frames"] == 350
        assert cache.metadata["tokpipe.encoder.audio"]["cell_seconds"] == 0.04
        assert cache.metadata["tokpipe.clock"]["end"] == pytest.approx(14.0, abs=0.1)
    assert str(samples) not in text
    assert str(Path.home()) not in text or str(Path.home()) == "/"
    moved = tmp_path / "elsewhere" / "action.mp4"
    moved.parent.mkdir()
    moved.write_bytes((samples / "action.mp4").read_bytes())
    compress_file(moved, tmp_path / "out", budget=3000, options=FRESH)
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


def test_streams_without_tokens_have_no_columns(caches: Any) -> None:
    with tokpipe.open_cache(caches("action.mp4", "video=20,audio=0")) as cache:
        assert cache.streams == ("video",)
        assert not [name for name in cache.names if name.startswith("audio.")]
        assert "tokpipe.clip" not in cache.metadata
        assert "tokpipe.encoder.audio" not in cache.metadata
