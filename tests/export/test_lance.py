"""Lance tables, read by lance: the whole cache as a blob, tokens as fixed-size lists."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokpipe.export import Written, exporter_from
from tokpipe.export._storage.token_table import PARTS

lance = pytest.importorskip("lance")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Some = Callable[[str], list[Path]]


def export(target: Path, paths: list[Path], params: str = "") -> Written:
    return exporter_from(f"lance:{params}" if params else "lance")[1].write_all(paths, target)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_lance_items_hold_the_file_itself(some: Some, tmp_path: Path, dtype: str) -> None:
    from safetensors.torch import load

    paths = some(dtype)
    made = export(tmp_path / "out", paths)
    assert made.notes == ()
    items = lance.dataset(str(tmp_path / "out" / "items.lance"))
    rows = items.to_table(columns=["id", "num_video", "num_audio", "duration"]).to_pylist()
    assert [row["id"] for row in rows] == ["clip_0", "clip_1", "clip_2"]
    assert [row["num_audio"] for row in rows] == [5, 5, 0]
    blobs = [file.read() for file in items.take_blobs("cache", indices=[0, 1, 2])]
    assert blobs == [path.read_bytes() for path in paths]
    assert load(blobs[1])["video.tokens"].shape == (8, 8)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("choice", ["auto", "float16"])
def test_lance_has_a_row_for_each_token(
    storage: Any, some: Some, tmp_path: Path, dtype: str, choice: str
) -> None:
    paths = some(dtype)
    export(tmp_path / "out", paths, f"rows=token,dtype={choice}")
    for index, path in enumerate(paths):
        held = storage.held(path)
        for stream in ("video", "audio"):
            table = lance.dataset(str(tmp_path / "out" / f"{stream}.lance")).to_table(
                filter=f"item = 'clip_{index}'"
            )
            if f"{stream}.at" not in held:
                assert len(table) == 0
                continue
            for name in (n for n in held if n.startswith(f"{stream}.") and "members" not in n):
                short = name.partition(".")[2]
                if short in ("tokens", "deepstack_1"):
                    values = table[short].combine_chunks()
                    found = values.flatten().to_numpy().reshape(len(values), -1)
                else:
                    parts = [table[part].to_numpy() for part in PARTS.get(short, (short,))]
                    found = np.stack(parts, 1) if short in PARTS else parts[0]
                storage.same(found, held[name], name, storage.number(name, choice))


def test_lance_searches_tokens_by_vector_and_time(storage: Any, some: Some, tmp_path: Path) -> None:
    paths = some("F16")
    export(tmp_path / "out", paths, "rows=token")
    tokens = lance.dataset(str(tmp_path / "out" / "video.lance"))
    held = storage.held(paths[1])
    near = tokens.to_table(
        nearest={"column": "tokens", "q": held["video.tokens"][3].astype(np.float32), "k": 1}
    ).to_pylist()[0]
    assert (near["item"], near["at"]) == ("clip_1", held["video.at"][3])
    edge = float(held["video.at"][4])
    some_rows = tokens.to_table(filter=f"item = 'clip_1' and at < {edge!r}")
    assert len(some_rows) == 4


def test_lance_keeps_metadata_and_atlas(storage: Any, tmp_path: Path) -> None:
    path = storage.write_signal(tmp_path / f"film{storage.SUFFIX}")
    export(tmp_path / "out", [path], "rows=token")
    held = storage.held(path)
    row = lance.dataset(str(tmp_path / "out" / "items.lance")).to_table().to_pylist()[0]
    assert b"".join(row["video_atlas"]) == held["video.atlas"].tobytes()
    assert json.loads(row["metadata"])["tokpipe.domain"] == "signal"
    video = lance.dataset(str(tmp_path / "out" / "video.lance"))
    assert video.schema.metadata[b"tokpipe.layout"] == b"ragged"
    assert video.to_table()["atlas_page"].to_pylist() == held["video.atlas_box"][:, 0].tolist()
