"""Temporal drop: against a slow twin, on grain and camera noise, on changes hard to see."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tokpipe.chain import build_chain
from tokpipe.compress.similarity.temporal_drop import TemporalDrop
from tokpipe.decode import probe
from tokpipe.encode.pixels import cell_tokens, describe
from tokpipe.errors import RecipeError
from tokpipe.ingest import ingest
from tokpipe.recipe import load_recipe
from tokpipe.tensors import TokenBatch
from tokpipe.testing.media import VideoTrack, write_media

Array = NDArray[np.float32]
Reference = Literal["kept", "previous"]
UNCHANGED = 0.97


def tokens_of(data: Array, rows: int, cols: int, first: int = 0) -> TokenBatch:
    """Tokens of frames ``first``.. from descriptors [T, C, 24]."""
    t = len(data)
    start = torch.arange(first, first + t).double()
    return cell_tokens(
        torch.from_numpy(data.reshape(-1, 24)).half(), start, start + 1,
        torch.arange(first, first + t), torch.arange(first, first + t, dtype=torch.int32),
        rows, cols,
    )  # fmt: skip


def random_walk(frames: int, cells: int, seed: int = 0) -> Array:
    """Descriptors that sometimes jump, mostly drift or stay."""
    draw = np.random.default_rng(seed)
    jump = draw.random((frames, cells, 1)) < 0.2
    step = draw.normal(0, 1, (frames, cells, 24)) * np.where(jump, 60, 8)
    walk = np.cumsum(step, 0) + 1000
    return walk.astype(np.float16).astype(np.float32)


def naive(data: Array, reference: Reference) -> tuple[Array, NDArray[np.bool_]]:
    """Score and novelty of every cell, one at a time; a first cell is compared with mid-grey."""
    score = np.zeros(data.shape[:2], np.float32)
    for x in range(data.shape[1]):
        last = np.zeros(24, np.float32)
        last[0] = 128 * 28
        for t, now in enumerate(data[:, x]):
            luma = np.linalg.norm(now[:16] - last[:16]) / 28 / 3.0
            chroma = np.linalg.norm(now[16:] - last[16:]) / 14 / TemporalDrop().chroma
            score[t, x] = max(luma, chroma, 1 if t == 0 else 0)
            if score[t, x] >= 1 or reference == "previous":
                last = now
    return score, score >= 1


@pytest.mark.parametrize("reference", ["kept", "previous"])
def test_score_equals_naive_twin(reference: Reference) -> None:
    data = random_walk(40, 6)
    expected, novel = naive(data, reference)
    operator = TemporalDrop(reference=reference)
    found = operator.score(operator.start(), tokens_of(data, 2, 3)).reshape(40, 6)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert ((found >= 1) == novel).all()
    assert 0.05 < novel[1:].mean() < 0.95


def drift(step: float) -> Array:
    data = np.zeros((8, 1, 24), np.float32)
    data[:, 0, 0] = 3000 + 28 * step * np.arange(8)
    return data


def kept_times(operator: TemporalDrop, data: Array) -> list[float]:
    return run(operator, data, 1, data.shape[1], [len(data)]).at.tolist()


def run(operator: TemporalDrop, data: Array, rows: int, cols: int, blocks: list[int]) -> TokenBatch:
    """Rows that come out of a stream pushed in blocks of frames."""
    state, out, a = operator.start(), [], 0
    carried: TokenBatch | None = None
    for size in blocks:
        new = tokens_of(data[a : a + size], rows, cols, a)
        state, tmap = operator.push(state, carried, new)
        made = (new if carried is None else TokenBatch.cat([carried, new])).reduce(tmap)
        assert state.settled is not None
        out.append(made.take(state.settled))
        carried, a = made.take(~state.settled), a + size
    if carried is not None:
        out.append(carried.reduce(operator.finish(state, carried)))
    return TokenBatch.cat(out).sorted()


def test_reference_kept_sees_slow_drift_that_previous_does_not() -> None:
    slow = drift(2.0)  # grey levels a frame, under the border of 3
    assert kept_times(TemporalDrop(threshold=1.0), slow) == [0, 2, 4, 6]
    assert kept_times(TemporalDrop(threshold=1.0, reference="previous"), slow) == [0]


def test_border_is_novel_at_exactly_the_level() -> None:
    assert kept_times(TemporalDrop(threshold=1.0, luma=3.0), drift(3.0)) == list(range(8))
    assert kept_times(TemporalDrop(threshold=1.0, luma=3.01), drift(3.0)) == [0, 2, 4, 6]


def test_cell_at_the_border_becomes_the_new_reference() -> None:
    steps = drift(3.0)
    steps[2:] = steps[1]
    assert kept_times(TemporalDrop(threshold=1.0, luma=3.0), steps) == [0, 1]


def test_repeats_are_kept_first_with_weight_0_and_share_1() -> None:
    data = np.repeat(random_walk(1, 2), 5, 0)
    operator = TemporalDrop(threshold=1.0)
    _, tmap = operator.push(operator.start(), None, tokens_of(data, 1, 2))
    assert tmap.anchor.tolist() == [0, 1]
    assert tmap.weight.sum() == 2
    assert (tmap.weight[2:] == 0).all()
    assert (tmap.share == 1).all()
    assert len(tmap.src) == 10
    rows = run(operator, data, 1, 2, [5])
    assert rows.data.tolist() == tokens_of(data, 1, 2).data[:2].tolist()
    assert rows.pts.tolist() == [[0, 5], [0, 5]]
    assert rows.frame.tolist() == [[0, 4], [0, 4]]
    assert rows.mass.tolist() == [5, 5]


def test_mass_is_conserved_and_spans_tile_the_time() -> None:
    data = random_walk(40, 6, seed=2)
    rows = run(TemporalDrop(threshold=1.0), data, 2, 3, [40])
    assert float(rows.mass.sum()) == 240
    assert len(rows) == int(naive(data, "kept")[1].sum())
    for y, x in np.ndindex(2, 3):
        mine = rows.take((rows.cell[:, 1] == y) & (rows.cell[:, 2] == x))
        assert mine.pts[:, 0].tolist() == mine.at.tolist()
        assert mine.pts[:-1, 1].tolist() == mine.pts[1:, 0].tolist()
        assert mine.pts[-1, 1] == 40


@pytest.mark.parametrize("blocks", [[1] * 40, [7, 33], [39, 1], [16, 16, 8]])
@pytest.mark.parametrize("threshold", [None, 1.0, 2.5])
def test_block_size_changes_nothing(blocks: list[int], threshold: float | None) -> None:
    data, operator = random_walk(40, 6, seed=4), TemporalDrop(threshold=threshold)
    whole, parts = (run(operator, data, 2, 3, sizes) for sizes in ([40], blocks))
    for name in ("data", "at", "pts", "frame", "cell", "mass", "score"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name


def test_without_threshold_cells_are_only_scored() -> None:
    data = random_walk(5, 6)
    rows = run(TemporalDrop(), data, 2, 3, [5])
    assert len(rows) == 30
    assert rows.score.isfinite().all()


def test_other_descriptors_are_refused() -> None:
    bad = TokenBatch.build(torch.zeros(4, 8), torch.zeros(4, dtype=torch.float64))
    with pytest.raises(RecipeError, match="pixels"):
        TemporalDrop().score(TemporalDrop().start(), bad)


# What follows looks at whole clips: noise must not count as change, small changes must.

SIZE = (640, 360)


def _photo(height: int, width: int) -> NDArray[np.float64]:
    """A texture with the spectrum of photographs, colours of its own."""
    draw = np.random.default_rng(1)
    freq = np.hypot(*np.meshgrid(np.fft.fftfreq(width), np.fft.fftfreq(height)))
    freq[0, 0] = 1
    waves = [np.fft.ifft2(np.fft.fft2(draw.normal(size=freq.shape)) / freq**1.1) for _ in range(3)]
    grey, *tints = [(w.real - w.real.mean()) / w.real.std() for w in waves]
    planes = [grey, *(0.75 * grey + 0.66 * tint for tint in tints)]
    return np.stack([110 + 45 * p + s for p, s in zip(planes, (20, 0, -15), strict=True)], 2)


@cache
def scene() -> NDArray[np.float64]:
    """Slide text beside a photograph, [H, W, 3]."""
    picture = Image.new("RGB", SIZE, (250, 249, 244))
    draw = ImageDraw.Draw(picture)
    draw.text((24, 18), "Sharing a budget", font=ImageFont.load_default(34), fill=(20, 30, 80))
    for n, line in enumerate(("video   1536", "audio    512", "total   2048", "one cell a token")):
        draw.text((30, 90 + 44 * n), line, font=ImageFont.load_default(22), fill=(30, 30, 30))
    draw.rectangle((24, 300, 300, 330), fill=(200, 60, 50))
    made = np.array(picture, dtype=np.float64)
    made[60:340, 330:620] = _photo(280, 290)
    return made.clip(0, 255)


def _still(_number: int, _time: float) -> NDArray[np.uint8]:
    return scene().round().astype(np.uint8)


def _grain(number: int, _time: float) -> NDArray[np.uint8]:
    noise = np.random.default_rng(number).normal(0, 8, (*SIZE[::-1], 1))
    return (scene() + noise).clip(0, 255).round().astype(np.uint8)


def _camera(number: int, time: float) -> NDArray[np.uint8]:
    """Shot noise that grows with the light, blurred by demosaicking, under flickering lamps."""
    raw = np.random.default_rng(number).normal(size=scene().shape)
    raw = np.sum([np.roll(raw, s, (0, 1)) for s in ((0, 0), (1, 0), (0, 1), (1, 1))], 0) / 2
    light = scene() * (1 + 0.006 * np.sin(2 * np.pi * 7.3 * time))
    made = light + raw * np.sqrt(9 + 0.35 * scene())
    return np.asarray(made.clip(0, 255).round(), dtype=np.uint8)


def descriptors(path: Path) -> tuple[Array, NDArray[np.float64], tuple[int, int]]:
    """Descriptors [T, C, 24] and times [T] of the 2 fps samples, and the grid."""
    recipe = load_recipe("fps:fps=2.0 | pixels")
    chains = {"video": build_chain("video", recipe.video)}
    # Every picture on a tick, whatever the packets say.
    bank = ingest(path, probe(path), chains, keep=False, effort="thorough").bank
    rows, cols = bank.meta["grid"][:2]
    data = bank.rows("descriptors", 0, bank.num_frames * rows * cols, np.dtype("<f2"), 24)
    times = bank.frames()["pts"].copy()
    bank.close()
    return data.reshape(len(times), rows * cols, 24).astype(np.float32), times, (rows, cols)


def novel_cells(path: Path) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which cells [T, C] of the 2 fps samples are novel, and the times [T]."""
    data, times, grid = descriptors(path)
    operator = TemporalDrop()
    score = operator.score(operator.start(), tokens_of(data, *grid))
    return (score >= 1).reshape(data.shape[:2]), times


@pytest.mark.parametrize(
    ("draw", "size"),
    [
        (_still, SIZE),
        (_grain, SIZE),
        (_camera, SIZE),
        pytest.param(_camera, (448, 252), id="camera, no averaging by the resize"),
    ],
)
def test_noise_counts_as_unchanged(
    draw: Callable[[int, float], NDArray[np.uint8]], size: tuple[int, int], tmp_path: Path
) -> None:
    def picture(number: int, time: float) -> NDArray[np.uint8]:
        made = draw(number, time)
        if size == SIZE:
            return made
        # Crop: the noise of each pixel stays what it is.
        return np.ascontiguousarray(made[30 : 30 + size[1], 150 : 150 + size[0]])

    path = tmp_path / "noise.mp4"
    options = {"crf": "28", "sc_threshold": "40"}
    track = VideoTrack(
        size=size, fps=Fraction(10), frames=60, gop=50, options=options, draw=picture
    )
    write_media(path, track)
    novel, _ = novel_cells(path)
    share = 1 - novel[1:].mean()
    assert share >= UNCHANGED, f"{share:.4f} of the cells count as unchanged"


def test_same_luma_in_another_colour_is_seen() -> None:
    """A line that turns from green to grey of nearly the same luma."""

    def picture(colour: tuple[int, int, int]) -> torch.Tensor:
        made = Image.new("RGB", (448, 252), (250, 249, 244))
        font = ImageFont.load_default(15)
        ImageDraw.Draw(made).text((20, 120), "revenue  512 total", font=font, fill=colour)
        return torch.from_numpy(np.array(made)[None])

    pair = torch.cat([describe(picture(c)) for c in ((60, 90, 220), (96, 96, 96))])
    data = pair.float().numpy().reshape(2, -1, 24)
    operator = TemporalDrop()
    score = operator.score(operator.start(), tokens_of(data, 9, 16)).reshape(2, -1)[1]
    luma = np.linalg.norm((data[1] - data[0])[:, :16], axis=1) / 28
    assert luma.max() < operator.luma
    assert (score >= 1).sum() >= 3


def changes_seen(path: Path, changes: list[float], tolerance: float) -> list[int]:
    """Novel cells in the first sample after each change; samples just before have next to none."""
    novel, times = novel_cells(path)
    found = []
    for change in changes:
        after = int(np.searchsorted(times, change - tolerance))
        found.append(int(novel[after : after + 2].sum()))
        assert novel[after - 2 : after].sum() <= 2, f"noise before {change}"
    return found


def test_annotated_slide_changes_are_seen(media: Path) -> None:
    path = media / "opencast__slidechanges.mov"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    facts = json.loads((media / "annotations.json").read_text(encoding="utf-8"))[path.name]
    seen = changes_seen(path, facts["slide_changes_s"], facts["tolerance_s"])
    assert len(seen) == 3
    assert min(seen) >= 10, seen


def test_changed_line_of_the_sample_lecture_is_seen(samples: Path) -> None:
    """Two characters of one line change; the presenter's inset moves all the time."""
    novel, times = novel_cells(samples / "lecture.mp4")
    truth = json.loads((samples / "ground_truth.json").read_text(encoding="utf-8"))
    facts = truth["files"]["lecture.mp4"]
    (change,) = [c["pts"] for c in facts["changes"] if c["kind"] == "line"]
    left, top, width, height = (v / 40 for v in facts["inset"])
    y, x = np.divmod(np.arange(novel.shape[1]), 16)
    slide = (x + 1 <= left) | (x >= left + width) | (y + 1 <= top) | (y >= top + height)
    on_slide = novel[:, slide].sum(1)
    at = int(np.searchsorted(times, change - 0.01))
    assert on_slide[at] >= 1
    assert on_slide[at - 10 : at].sum() == 0
    assert on_slide[at + 1 : at + 11].sum() == 0
