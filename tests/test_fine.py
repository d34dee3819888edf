"""Slides at finer grids, end to end: put by, sent, rebuilt, read, cut and shown."""

from __future__ import annotations

import json
import re
import shutil
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from tokpipe.cache.reader import open_cache
from tokpipe.cache.verify import verify
from tokpipe.chain import build_chain
from tokpipe.decode import probe
from tokpipe.evaluate._ssim import luma, ssim
from tokpipe.fine import MOST_CELLS, FineLooker, finer_times
from tokpipe.grid import Grid
from tokpipe.ingest import ingest
from tokpipe.recipe import load_recipe
from tokpipe.run import Options, RunRecord, compress_file
from tokpipe.spec import KIND_KEPT, KIND_POOLED, TEXT_RICH, VideoInfo
from tokpipe_cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "format.md"
END = ".tokpipe.safetensors"
#: Enough for every slide at twice the grid.
FINE = 4000
Pixels = NDArray[np.uint8]


def compressed(show: Any, out: Path, budget: str | int, recipe: str = "auto") -> RunRecord:
    """A cache of the slides, every tick looked at, checked."""
    options = Options(effort="thorough")
    record = compress_file(show.path, out, recipe=recipe, budget=budget, options=options)
    report = verify(out, deep=True)
    assert report.ok, report.problems
    return record


@pytest.fixture(scope="module")
def fine(slide_show: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fine") / f"fine{END}"
    compressed(slide_show, out, f"video={FINE},audio=40")
    return out


@pytest.fixture(scope="module")
def coarse(slide_show: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many tokens, all of the video's own grid."""
    out = tmp_path_factory.mktemp("coarse") / f"coarse{END}"
    recipe = "fps | pixels | temporal-drop | coverage-updates:detail=low"
    compressed(slide_show, out, f"video={FINE}", recipe)
    return out


def likeness(cache: Path, show: Any, size: tuple[int, int]) -> list[list[float]]:
    """Of each slide, SSIM of every third rebuilt frame to it, without what moves there."""
    out: list[list[float]] = [[] for _ in show.slides]
    with open_cache(cache) as opened:
        for frame in list(opened.frames())[::3]:
            number = min(3, int(frame.pts / show.seconds + 1e-3))
            slide = show.slides[number]
            seen, source = (
                luma(np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)))
                for p in (frame.pixels, slide)
            )
            factor = size[1] / 720
            rows = slice(0, int((show.moving[0].start - 10) * factor))
            out[number].append(ssim(seen[rows], source[rows]))
    return out


def test_the_bank_keeps_fine_pictures_of_each_slide(slide_show: Any) -> None:
    recipe = load_recipe("auto")
    chains = {name: build_chain(name, steps) for name, steps in recipe.chains.items()}
    made = ingest(slide_show.path, probe(slide_show.path), chains, keep=False, effort="thorough")
    bank = made.bank
    records = bank.fine()
    assert 4 <= len(records) <= bank.num_frames // 3
    assert (records["times"] == 2).all()
    assert (np.diff(records["step"]) > 0).all()
    times = bank.frames()["pts"][records["step"]]
    assert {int(t / slide_show.seconds) for t in times} == {0, 1, 2, 3}
    assert (bank.frames()["text"] >= TEXT_RICH).all()
    picture = bank.fine_picture(records[0])
    assert picture.shape == (504, 896, 3)
    source = np.asarray(Image.fromarray(slide_show.slides[0]).resize((896, 504)))
    assert ssim(luma(picture[:400]), luma(source[:400])) > 0.95
    bank.close()


def test_the_grid_is_doubled_and_rows_are_valid(fine: Path, coarse: Path) -> None:
    with open_cache(fine) as cache, open_cache(coarse) as other:
        grid, plain = cache.metadata["tokpipe.grid"], other.metadata["tokpipe.grid"]
        assert (plain["rows"], plain["cols"]) == (9, 16)
        assert (grid["rows"], grid["cols"]) == (18, 32)
        assert (grid["height"], grid["width"]) == (504, 896)
        rows = cache.tokens()["video"]
        assert len(rows) == FINE
        kept = rows.kind == KIND_KEPT
        assert kept.sum() >= 3 * 18 * 32
        assert (rows.extent[kept, 1:] == 1).all()
        assert (rows.kind[~kept] == KIND_POOLED).all()
        assert (rows.extent[~kept, 1:] == 2).all()
        assert (rows.cell[~kept, 1:] % 2 == 0).all()
        counts = cache.metadata["tokpipe.counts"]["video"]
        assert float(rows.mass.sum(dtype=float)) + counts["dropped"] == pytest.approx(
            counts["source"]
        )
        assert len(other.tokens()["video"]) == FINE


def test_text_can_be_read(fine: Path, coarse: Path, slide_show: Any) -> None:
    seen = likeness(fine, slide_show, (448, 252))
    assert min(map(min, seen)) >= 0.9
    for mine, other in zip(
        likeness(fine, slide_show, (896, 504))[:3], likeness(coarse, slide_show, (896, 504))[:3],
        strict=True,
    ):  # fmt: skip
        assert min(mine) > max(other) + 0.02, (mine, other)


def test_what_comes_later_never_blurs_a_slide(fine: Path, slide_show: Any) -> None:
    """It is shown fine from its first picture on, and stays so until it goes."""
    for mine in likeness(fine, slide_show, (896, 504))[:3]:
        assert len(mine) >= 3
        assert min(mine) >= 0.98, mine


def test_ranks_are_a_permutation_and_smaller_budgets_are_nested(fine: Path) -> None:
    with open_cache(fine) as cache:
        both = cache.tokens()
        ranks = np.concatenate([part.rank for part in both.values()])
        assert sorted(ranks.tolist()) == list(range(len(ranks)))
        before: set[tuple[float, ...]] = set()
        for budget in (1, 100, 1000, 2500, len(ranks)):
            parts = cache.tokens(budget=budget)
            assert sum(len(part) for part in parts.values()) == budget
            video = parts["video"]
            now = {(a, *c) for a, c in zip(video.at.tolist(), video.cell.tolist(), strict=True)}
            assert before <= now
            before = now


def test_time_slices_put_together_are_the_whole(fine: Path) -> None:
    with open_cache(fine) as cache:
        whole = cache.tokens()["video"]
        edges = [None, 3.0, 8.0, 20.5, None]
        parts = [cache.tokens(a, b)["video"] for a, b in pairwise(edges)]
        for name in ("tokens", "at", "cell", "extent", "rank", "mass"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            assert np.array_equal(joined, getattr(whole, name)), name


def test_the_reader_of_the_format_page_reads_it(fine: Path) -> None:
    space: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[-1], space)
    tensors, meta = space["load"](fine)
    assert meta["tokpipe.grid"]["cols"] == 32
    with open_cache(fine) as cache:
        part = cache.tokens(8.0, 16.0)["video"].tokens
    assert np.array_equal(space["between"](tensors, "video.tokens", 8.0, 16.0), part)


def test_inspect_shows_frames_at_the_finer_grid(fine: Path, tmp_path: Path) -> None:
    line = ["inspect", str(fine), "--frames", str(tmp_path / "seen"), "--json"]
    result = CliRunner().invoke(app, line, prog_name="tokpipe")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[0])["event"]
    pictures = sorted((tmp_path / "seen").glob("*.png"))
    assert pictures
    with Image.open(pictures[0]) as picture:
        assert picture.size == (896, 504)


def test_dedup_knows_a_copy(fine: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copy(fine, tmp_path / f"{name}{END}")
    result = CliRunner().invoke(app, ["dedup", str(tmp_path), "--json"], prog_name="tokpipe")
    group, summary = map(json.loads, result.stdout.splitlines())
    assert 1.0 in [c["similarity"] for c in group["copies"]]
    assert summary["groups"] >= 1


@pytest.mark.parametrize(("cells", "wide"), [(8, {8, 16, 32}), (32, {32}), (64, {46})])
def test_every_number_of_cells(cells: int, wide: set[int], slide_show: Any, tmp_path: Path) -> None:
    """8 cells can be four times finer on 1280 pixels; 46 are all there are."""
    out = tmp_path / f"a{END}"
    recipe = f"fps | pixels:cells={cells} | temporal-drop | coverage-updates"
    record = compressed(slide_show, out, "video=2000", recipe)
    with open_cache(out) as cache:
        assert cache.metadata["tokpipe.grid"]["cols"] in wide
        assert len(cache.tokens()["video"]) == record.tokens["video"]
        source = cache.metadata["tokpipe.counts"]["video"]["source"]
        assert record.tokens["video"] == min(2000, source)
        first = next(iter(cache.frames()))
        assert first.pixels.shape[1] in {28 * n for n in wide}


@pytest.mark.parametrize("budget", ["20/s", "10%", "50/frame"])
def test_budgets_by_time_keep_the_grid_of_the_video(
    budget: str, slide_show: Any, tmp_path: Path
) -> None:
    """Windows are settled one by one, and a cache has one grid."""
    out = tmp_path / f"a{END}"
    compressed(slide_show, out, budget)
    with open_cache(out) as cache:
        assert cache.metadata["tokpipe.grid"]["cols"] == 16
        assert (cache.tokens()["video"].kind == KIND_KEPT).all()


def test_whole_frames_can_be_fine(slide_show: Any, tmp_path: Path) -> None:
    out = tmp_path / f"a{END}"
    options = Options(effort="thorough", layout="frames")
    compress_file(slide_show.path, out, budget=f"video={FINE}", options=options)
    assert verify(out, deep=True).ok
    with open_cache(out) as cache:
        rows = cache.tokens()["video"]
        assert len(rows) == FINE // 144 * 144
        _, counts = np.unique(rows.at, return_counts=True)
        assert set(counts.tolist()) <= {144, 576}


@pytest.mark.parametrize("detail", ["low", "auto", "high"])
@pytest.mark.parametrize("clip", ["action.mp4", "rotated.mp4", "screen.mp4"])
def test_coarse_pieces_are_valid_too(clip: str, detail: str, samples: Path, tmp_path: Path) -> None:
    """Upright, sideways and still: the count is exact, mass is conserved, frames come back."""
    out = tmp_path / f"a{END}"
    recipe = f"fps | pixels | temporal-drop | coverage-updates:detail={detail}"
    record = compress_file(samples / clip, out, recipe=recipe, budget=333)
    report = verify(out, deep=True)
    assert report.ok, report.problems
    with open_cache(out) as cache:
        rows, grid = cache.tokens()["video"], cache.metadata["tokpipe.grid"]
        counts = cache.metadata["tokpipe.counts"]["video"]
        assert len(rows) == record.tokens["video"] == min(333, counts["source"])
        pooled = rows.kind == KIND_POOLED
        assert (rows.extent[~pooled, 1:] >= 1).all()
        assert (rows.cell[:, 1] + np.where(pooled, rows.extent[:, 1], 1) <= grid["rows"]).all()
        assert (rows.cell[:, 2] + np.where(pooled, rows.extent[:, 2], 1) <= grid["cols"]).all()
        shown = [(frame.mask == 3).sum() for frame in cache.frames()]
        assert len(shown) == len(np.unique(rows.at))
        assert min(shown) >= 1


def test_the_same_input_gives_the_same_bytes(fine: Path, slide_show: Any, tmp_path: Path) -> None:
    again = tmp_path / f"again{END}"
    compressed(slide_show, again, f"video={FINE},audio=40")
    assert again.read_bytes() == fine.read_bytes()


@pytest.mark.parametrize(
    ("cells", "pixels", "times"),
    [(16, 1920, 4), (16, 1280, 2), (16, 640, 1), (8, 640, 2), (8, 1920, 4), (64, 3840, 1),
     (32, 3840, 2)],
)  # fmt: skip
def test_pictures_are_never_enlarged(cells: int, pixels: int, times: int) -> None:
    grid = Grid(rows=-(-cells * 9 // 16), cols=cells, aspect_error=0.0)
    video = VideoInfo(
        index=0, codec="h264", time_base=Fraction(1, 90000), width=pixels, height=pixels * 9 // 16
    )
    assert finer_times(grid, video) == times
    assert cells * times <= max(MOST_CELLS, cells)
    assert FineLooker(grid, times).times == times
