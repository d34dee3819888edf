"""Shared fixtures: where the optional media and goldens are, and a bank of our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from tokpipe.testing._slides import Slide
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media

ROOT = Path(__file__).parents[1]
settings.register_profile("tokpipe", deadline=None, print_blob=True)
settings.load_profile("tokpipe")


def pytest_configure() -> None:
    """Give workers that share the cores one thread each: more would wait for one another."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked ``gpu`` where there is none; TOKPIPE_REQUIRE_CUDA=1 lets them fail."""
    if item.get_closest_marker("gpu") and os.environ.get("TOKPIPE_REQUIRE_CUDA") != "1":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device; TOKPIPE_REQUIRE_CUDA=1 makes this a failure")


@pytest.fixture(scope="session")
def media() -> Path:
    """Folder of real test media; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("TOKPIPE_TEST_MEDIA", ROOT.parent / "shared" / "media"))
    if not folder.is_dir():
        pytest.skip(f"no test media in {folder}; set TOKPIPE_TEST_MEDIA")
    return folder


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of the committed sample media."""
    return ROOT / "samples" / "media"


@pytest.fixture(autouse=True, scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bank for this test run only."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("TOKPIPE_CACHE_DIR")
    os.environ["TOKPIPE_CACHE_DIR"] = str(folder)
    yield folder
    if before is None:
        del os.environ["TOKPIPE_CACHE_DIR"]
    else:
        os.environ["TOKPIPE_CACHE_DIR"] = before


@dataclass(frozen=True)
class SlideShow:
    """A short lecture of still slides, large enough for fine pictures.

    Attributes:
        slides: uint8 [720, 1280, 3], what is on screen one after the other; the last is the first.
        seconds: How long each stays.
        moving: Rows and columns of the block that moves over all of them.
    """

    path: Path
    slides: tuple[NDArray[np.uint8], ...]
    seconds: float
    moving: tuple[slice, slice]


@pytest.fixture(scope="session")
def slide_show(tmp_path_factory: pytest.TempPathFactory) -> SlideShow:
    """Four slides full of text, 8 s each, with sound."""
    text = "tokens of long video are chosen under one budget and told with their times "
    drawn = []
    for number in (0, 1, 3):
        lines = tuple((text[6 * i :] + text)[:48] for i in range(number, number + 7))
        slide = Slide(number=number, title=f"Part {number}: what is kept", lines=lines)
        drawn.append(np.asarray(slide.draw((1280, 720))))
    slides = (*drawn, drawn[0])
    moving = slice(620, 690), slice(1000, 1220)

    def draw(_number: int, time: float) -> NDArray[np.uint8]:
        picture = slides[min(3, int(time / 8 + 1e-6))].copy()
        left = 1000 + int(time * 20) % 150
        picture[moving[0], left : left + 70] = (200, 60, 50)
        return picture

    path = tmp_path_factory.mktemp("slides") / "slides.mp4"
    track = VideoTrack(size=(1280, 720), fps=Fraction(5), frames=160, gop=25, draw=draw)
    write_media(path, track, AudioTrack())
    return SlideShow(path, slides, 8.0, moving)
