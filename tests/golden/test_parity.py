"""Parity with the methods' authors: every stored case in the golden folder.

``TOKPIPE_GOLDENS`` names another folder. A file is given to the adapter of the longest prefix; a
file without one fails.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from pathlib import Path

import pytest

from tokpipe.testing.golden import Adapter, Case

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("TOKPIPE_GOLDENS", HERE / "data"))
CASES = sorted(FOLDER.rglob("*.npz"))


@cache
def adapters() -> dict[str, Adapter]:
    """Adapters by prefix, from every module in ``adapters``; no prefix twice."""
    found: dict[str, Adapter] = {}
    for path in sorted((HERE / "adapters").glob("[a-z]*.py")):
        spec = importlib.util.spec_from_file_location(f"golden_adapters_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert not set(found) & set(module.ADAPTERS)
        found.update(module.ADAPTERS)
    return found


def prefix_of(case: Case) -> str:
    """The longest prefix known; `tome` with a `meta` array is the video one, `tome:video`."""
    known = [p.partition(":")[0] for p in adapters()]
    fits = [p for p in known if case.path.stem.startswith(p)]
    assert fits, f"no adapter for {case.path.name}: write one in tests/golden/adapters"
    best = max(fits, key=len)
    video = f"{best}:video"
    return video if "meta" in case and video in adapters() else best


@pytest.mark.parametrize("path", CASES, ids=[p.stem for p in CASES])
def test_released_results_are_reproduced(path: Path) -> None:
    case = Case.load(path)
    adapters()[prefix_of(case)](case)


def test_the_folder_holds_cases() -> None:
    assert CASES, f"no .npz in {FOLDER}"
