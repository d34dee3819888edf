"""Shared fixtures: where the optional media and goldens are, and a bank of our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]
settings.register_profile("tokpipe", deadline=None, print_blob=True)
settings.load_profile("tokpipe")


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
