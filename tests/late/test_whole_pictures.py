"""Layout ``frames`` of late encoding: whole rebuilt pictures, and no cache that only says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tokpipe.cache.reader import open_cache
from tokpipe.cache.verify import verify
from tokpipe.cache.writer import CacheWriter
from tokpipe.encode.hf_vision import HfVision
from tokpipe.encoder_choice import encoder_step
from tokpipe.errors import CacheError, RecipeError
from tokpipe.late import Survivors
from tokpipe.late_cache import kept_stream
from tokpipe.late_run import copy_blobs, encode_cache
from tokpipe.recipe import load_recipe
from tokpipe.run import Options, RunRecord, compress_file

#: Tokens of a picture of the film, 180 x 120: 8 x 8 patches less two rows of padding.
EACH = 48


@pytest.fixture(scope="module")
def ragged(film: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ragged") / "film.tokpipe.safetensors"
    compress_file(film, out, budget="video=150,audio=4")
    return out


def whole(cache: Path, out: Path, folder: Path, budget: int | None) -> RunRecord:
    step = encoder_step(f"hf_vision:{folder}")
    options = Options(layout="frames")
    return encode_cache(cache, out, encoders=[step], budget=budget, options=options)


def test_frames_are_whole_rebuilt_pictures(ragged: Path, clip_folder: Path, tmp_path: Path) -> None:
    """Every token of a picture, equal to the tower's of the rebuilt picture at that time."""
    out = tmp_path / "f.tokpipe.safetensors"
    record = whole(ragged, out, clip_folder, 3 * EACH + 10)
    assert record.tokens["video"] == 3 * EACH
    assert verify(out, deep=True).ok
    operator = HfVision(model=str(clip_folder))
    tower = operator.load()
    with open_cache(ragged) as cache:
        pictures = {frame.pts: frame for frame in cache.frames()}
    assert any(0 < (f.mask == 3).sum() < f.mask.size for f in pictures.values())
    with open_cache(out) as cache:
        assert cache.layout == "frames"
        rows = cache.tokens()["video"]
        times, counts = np.unique(rows.at, return_counts=True)
        assert counts.tolist() == [EACH] * 3
        for time in times.tolist():
            frame = pictures[time]
            assert frame.mask.min() >= 2
            made = tower.encode(tower.prepare(torch.from_numpy(frame.pixels)[None])).data[0]
            own = torch.from_numpy(rows.tokens[rows.at == time])
            assert all((made == row).all(1).any() for row in own)
        assert (rows.pts[:, 0] == rows.at).all()
    # Each picture lasts until the next one that could have been taken.
    later = sorted(pictures)
    for start, stop in np.unique(rows.pts, axis=0).tolist():
        after = later[later.index(start) + 1 :]
        assert not after or stop == after[0]


def test_pictures_that_are_never_complete_are_refused(
    film: Path, clip_folder: Path, tmp_path: Path
) -> None:
    bits, out = tmp_path / "bits.tokpipe.safetensors", tmp_path / "f.tokpipe.safetensors"
    compress_file(film, bits, recipe=load_recipe("top-k"), budget="video=5,audio=4")
    with pytest.raises(RecipeError, match="no picture of the cache is complete") as refused:
        whole(bits, out, clip_folder, None)
    assert "compress MEDIA --layout frames" in (refused.value.hint or "")
    assert not out.exists()


def test_rules_before_a_tower_choose_whole_pictures(
    film: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """A rule that removes cells before the tower leaves no holes in layout ``frames``."""
    out = tmp_path / "f.tokpipe.safetensors"
    compress_file(
        film, out, encoder=f"hf_vision:{clip_folder}", budget="video=150,audio=4",
        recipe=load_recipe("temporal-drop:threshold=0.3 | top-k"), options=Options(layout="frames"),
    )  # fmt: skip
    with open_cache(out) as cache:
        counts = np.unique(cache.column("video.at"), return_counts=True)[1]
        assert set(counts.tolist()) == {EACH}


def test_a_rule_that_leaves_parts_of_pictures_gives_no_frames(film: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.tokpipe.safetensors"
    with pytest.raises(CacheError, match="layout `frames`, but the picture at") as refused:
        compress_file(
            film, out, recipe=load_recipe("dycoke | uniform"), budget="video=200,audio=4",
            options=Options(layout="frames"),
        )  # fmt: skip
    assert "leave out --layout frames" in (refused.value.hint or "")
    assert not out.exists()


def test_a_false_claim_is_neither_written_nor_verified(
    ragged: Path, clip_folder: Path, tmp_path: Path
) -> None:
    made, out = tmp_path / "r.tokpipe.safetensors", tmp_path / "f.tokpipe.safetensors"
    encode_cache(ragged, made, encoders=[encoder_step(f"hf_vision:{clip_folder}")], budget=100)
    with open_cache(made) as cache, CacheWriter(out, dtype="F32") as writer:
        for stream in cache.streams:
            columns, _ = kept_stream(cache, stream)
            own = {"rank": cache.column(f"{stream}.rank"), "segment": columns["segment"] * 0 - 1}
            writer.append(stream, {**columns, **own})
            copy_blobs(cache, writer, stream)
        found = {k: v for k, v in cache.metadata.items() if "digest" not in k and "format" not in k}
        with pytest.raises(CacheError, match="layout `frames`, but the picture at"):
            writer.finish({**found, "tokpipe.layout": "frames"})
    assert not out.exists()
    out.write_bytes(made.read_bytes().replace(b'layout":"ragged"', b'layout":"frames"'))
    problems = dict(verify(out).problems)
    assert "is not whole" in problems["layout"]


def test_complete_leaves_out_what_is_not_known_yet() -> None:
    """Two cells; the second is first kept in picture 1, which lasts until picture 2."""
    at = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)
    found = Survivors(
        torch.tensor([0, 2, 5]), at, torch.tensor([9.0, 9.0, 4.0]).double(),
        torch.tensor([0, 1, 2]), (1, 2), torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 0]),
        torch.zeros(3, 2), torch.zeros(3, 2),
    ).complete()  # fmt: skip
    assert found.step.tolist() == [2, 5]
    assert found.stop.tolist() == [2.5, 4.0]
    assert found.kept(0, 2).all()
