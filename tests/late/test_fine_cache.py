"""Late encoding of a cache whose slides are told in a finer grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokpipe.cache.reader import open_cache
from tokpipe.cache.verify import verify
from tokpipe.decide import survivors_of
from tokpipe.encoder_choice import encoder_step
from tokpipe.late_run import encode_cache
from tokpipe.run import Options, compress_file


@pytest.fixture(scope="module")
def fine(slide_show: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fine") / "fine.tokpipe.safetensors"
    options = Options(effort="thorough")
    compress_file(slide_show.path, out, budget="video=3000,audio=20", options=options)
    return out


def test_survivors_are_what_the_mask_says(fine: Path) -> None:
    """Cells of the finer grid that a picture has of its own, whichever grid it was sent at."""
    with open_cache(fine) as cache:
        grid = cache.metadata["tokpipe.grid"]
        assert (grid["rows"], grid["cols"]) == (18, 32)
        rows = cache.tokens(stream="video")["video"].to_tokens()
        found = survivors_of(rows, (18, 32))
        masks = np.stack([frame.mask == 3 for frame in cache.frames()])
    kept = found.kept(0, len(found)).reshape(-1, 18, 32)
    assert torch.equal(kept, torch.from_numpy(masks))


@pytest.mark.parametrize("budget", [None, 40])
def test_a_tower_reads_it(
    budget: int | None, fine: Path, clip_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.tokpipe.safetensors"
    step = encoder_step(f"hf_vision:{clip_folder}")
    record = encode_cache(fine, out, encoders=[step], budget=budget, options=Options())
    report = verify(out, deep=True)
    assert report.ok, report.problems
    with open_cache(out) as cache:
        assert cache.domain == "feature"
        assert record.tokens["total"] == sum(len(part) for part in cache.tokens().values())
        assert budget is None or record.tokens["video"] == budget
        times = cache.tokens()["video"].at
    assert (np.diff(times) >= 0).all()
    with open_cache(fine) as cache:
        assert set(times.tolist()) <= set(cache.tokens()["video"].at.tolist())
