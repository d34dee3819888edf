"""docs/format.md is true: its reader runs, its tables name what the code names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tokpipe.cache import open_cache
from tokpipe.cache.format import METADATA, SHARED_COLUMNS, STREAM_COLUMNS, STREAMS

Make = Callable[..., Any]
PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page_reader() -> dict[str, Any]:
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[-1]
    assert len(code.strip().splitlines()) <= 30
    namespace: dict[str, Any] = {}
    exec(compile(code, "docs/format.md", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("kind", ["feature", "signal"])
def test_three_readers_agree(
    tmp_path: Path, request: pytest.FixtureRequest, page_reader: dict[str, Any], kind: str
) -> None:
    path = request.getfixturevalue(f"write_{kind}")(tmp_path / "a.safetensors")
    plain, metadata = page_reader["load"](path)
    official = load_file(path)
    with open_cache(path) as cache:
        assert set(plain) == set(cache.names)
        assert set(official) >= set(plain)
        assert metadata == cache.metadata
        for name in cache.names:
            np.testing.assert_array_equal(cache.column(name), plain[name])
            np.testing.assert_array_equal(official[name], plain[name])
        part = page_reader["between"](plain, "video.tokens", 0.5, 1.5)
        np.testing.assert_array_equal(part, cache.tokens(0.5, 1.5)["video"].tokens)
    assert all(n.startswith("pad.") and not official[n].any() for n in set(official) - set(plain))


def test_safetensors_torch_reads_the_file(tmp_path: Path, write_feature: Make) -> None:
    load = pytest.importorskip("safetensors.torch").load_file
    path = write_feature(tmp_path / "a.safetensors")
    tensors = load(path)
    with open_cache(path) as cache:
        for name in cache.names:
            np.testing.assert_array_equal(tensors[name].numpy(), cache.column(name))


def test_file_saved_again_by_another_tool_still_reads(tmp_path: Path, write_feature: Make) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = write_feature(tmp_path / "a.safetensors")
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    save_file(load_file(path), tmp_path / "b.safetensors", metadata=metadata)
    with open_cache(path) as one, open_cache(tmp_path / "b.safetensors") as two:
        np.testing.assert_array_equal(one.tokens()["video"].tokens, two.tokens()["video"].tokens)
        np.testing.assert_array_equal(one.column("audio.at"), two.column("audio.at"))


def test_page_names_every_tensor_and_key() -> None:
    names = {f"{s}.{c}" for s in STREAMS for c in STREAM_COLUMNS[s]} | set(SHARED_COLUMNS)
    named = set(re.findall(r"`([\w.]+)`", PAGE))
    for name in names:
        assert name in named or "S." + name.split(".", 1)[1] in named, name
    for key in METADATA:
        assert key in named or re.sub(r"\.(video|audio)$", ".S", key) in named, key


@pytest.mark.parametrize("case", ["version", "mass", "order"])
def test_page_reader_refuses(page_reader: dict[str, Any], golden: Path, case: str) -> None:
    names = {"version": "bad-version", "mass": "bad-mass", "order": "bad-order"}
    with pytest.raises(ValueError, match=r"format|conserved|order"):
        page_reader["load"](golden / f"{names[case]}.tokpipe.safetensors")
