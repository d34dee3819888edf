"""verify: each invariant of the page, broken one at a time in an otherwise sound file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokpipe.cache import open_cache
from tokpipe.cache._header import parse_header
from tokpipe.cache.verify import verify
from tokpipe.errors import CacheError, TokpipeError

Make = Callable[..., Any]


def patch(path: Path, name: str, index: int, value: float) -> None:
    """Overwrite one element of a tensor in place."""
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    header = parse_header(bytes(data[8 : 8 + length]), len(data))
    info = header.tensors[name]
    dtype = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "u1"}[info.dtype]
    item = np.array([value]).astype(dtype).tobytes()
    start = header.data_start + info.start + index * len(item)
    data[start : start + len(item)] = item
    path.write_bytes(data)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the metadata of a file."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    change(header["__metadata__"])
    body = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(body)) + body + data[8 + length :])


def _update(changed: dict[str, str], metadata: dict[str, Any]) -> None:
    metadata.update(changed)


VALUES = [
    ("video.at", 3, 0.1, "order"),
    ("video.tile", 0, 5, "order"),
    ("video.cell", 2, 9, "order"),
    ("video.at", 9, np.nan, "order"),
    ("video.pts", 1, -1, "span"),
    ("video.pts", 1, np.inf, "span"),
    ("video.frame", 0, 9, "frame"),
    ("audio.frame", 0, -5, "frame"),
    ("video.cell", 0, -2, "cell"),
    ("video.extent", 1, 0, "cell"),
    ("video.extent", 1, -1, "cell"),
    ("audio.tile", 0, -1, "cell"),
    ("video.mass", 0, -2, "mass"),
    ("video.mass", 0, np.nan, "mass"),
    ("video.kind", 2, 9, "kind"),
    ("video.rank", 0, 0, "rank"),
    ("video.rank", 0, -1, "rank"),
    ("video.rank", 0, 16, "rank"),
    ("video.segment", 0, 2, "segment"),
    ("video.segment", 0, 1, "segment"),
    ("segment.rows", 1, 11, "segment"),
    ("segment.rows", 4, 3, "segment"),
    ("segment.pts", 0, 4, "segment"),
    ("video.members", 0, -1, "members"),
    ("video.members_offsets", 10, 19, "members"),
    ("text.offsets", 0, 1, "text"),
    ("text.pts", 0, 5, "text"),
]


@pytest.mark.parametrize(("name", "index", "value", "code"), VALUES)
def test_verify_names_the_broken_invariant(
    tmp_path: Path, write_feature: Make, name: str, index: int, value: float, code: str
) -> None:
    path = write_feature(tmp_path / "a")
    patch(path, name, index, value)
    assert code in {p.code for p in verify(path).problems}
    deep = {p.code for p in verify(path, deep=True).problems}
    assert {code, "digest"} <= deep


SIGNAL_VALUES = [
    ("video.atlas_box", 0, 1, "atlas"),
    ("video.atlas_box", 1, 101, "atlas"),
    ("video.atlas_box", 2, -1, "atlas"),
    ("video.atlas_offsets", 0, 1, "atlas"),
    ("video.cell", 8, 3, "cell"),
    ("audio.clip_offset", 2, 3200, "clip"),
    ("audio.clip_offset", 0, 700, "clip"),
]


@pytest.mark.parametrize(("name", "index", "value", "code"), SIGNAL_VALUES)
def test_verify_checks_pictures_and_sound(
    tmp_path: Path, write_signal: Make, name: str, index: int, value: float, code: str
) -> None:
    path = write_signal(tmp_path / "a")
    patch(path, name, index, value)
    assert code in {p.code for p in verify(path).problems}
    raised = []
    with open_cache(path) as cache:
        try:
            list(cache.frames())
        except TokpipeError as error:
            raised.append(error.code)
    assert raised in ([], [f"cache.{code}"])


@pytest.mark.parametrize(("name", "code"), [("video.atlas", "atlas"), ("audio.clip", "clip")])
def test_deep_verify_decodes(tmp_path: Path, write_signal: Make, name: str, code: str) -> None:
    path = write_signal(tmp_path / "a")
    for index in range(40):
        patch(path, name, index, 0)
    assert verify(path).ok
    assert {p.code for p in verify(path, deep=True).problems} == {code, "digest"}


METADATA: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("missing key", lambda m: m.pop("tokpipe.source"), "metadata"),
    ("missing encoder", lambda m: m.pop("tokpipe.encoder.audio"), "metadata"),
    ("bad JSON", lambda m: m.update({"tokpipe.counts": "{"}), "metadata"),
    ("deep JSON", lambda m: m.update({"tokpipe.recipe": "[" * 100_000}), "metadata"),
    ("counts", lambda m: m.update({"tokpipe.counts": '{"video":{}}'}), "metadata"),
    ("no counts", lambda m: m.update({"tokpipe.counts": "[]"}), "metadata"),
    ("duration", lambda m: m.update({"tokpipe.source": '{"duration":"9"}'}), "metadata"),
    ("quant", lambda m: m.update({"tokpipe.quant": '{"video":{"codec":["none"]}}'}), "codec"),
    ("version", lambda m: m.update({"tokpipe.format": "1"}), "format"),
    ("domain", lambda m: m.pop("tokpipe.domain"), "domain"),
]


@pytest.mark.parametrize(("label", "change", "code"), METADATA, ids=[m[0] for m in METADATA])
def test_metadata_that_does_not_hold_is_named(
    tmp_path: Path, write_feature: Make, label: str,
    change: Callable[[dict[str, Any]], object], code: str,
) -> None:  # fmt: skip
    path = write_feature(tmp_path / "a")
    edit(path, change)
    with pytest.raises(CacheError) as caught:
        open_cache(path)
    assert caught.value.code == f"cache.{code}", label
    assert code in {p.code for p in verify(path).problems}


def test_signal_metadata_must_be_sensible(tmp_path: Path, write_signal: Make) -> None:
    for number, (key, value) in enumerate(
        (("grid", {"rows": 10**6, "cols": 10**6, "cell": 28}), ("grid", {"rows": True}),
         ("atlas", {"codec": "webp", "slots": 4, "slot": 32}),
         ("atlas", {"codec": "avif", "slots": [4, 4], "slot": 32}),
         ("clip", {"codec": "flac", "rate": 0, "samples": 1}),
         ("clip", {"codec": "flac", "rate": 1, "samples": -1}), ("clip", [])),
    ):  # fmt: skip
        path = write_signal(tmp_path / str(number))
        changed = {f"tokpipe.{key}": json.dumps(value)}
        edit(path, partial(_update, changed))
        with pytest.raises(CacheError):
            open_cache(path)
        assert not verify(path, deep=True).ok


def test_report_counts_what_it_saw(tmp_path: Path, write_signal: Make) -> None:
    path = write_signal(tmp_path / "a")
    report = verify(path, deep=True)
    assert report.ok
    counts = {k: report.counts[k] for k in ("video", "audio", "pages", "samples", "segments")}
    assert counts == {"video": 3, "audio": 3, "pages": 1, "samples": 3200, "segments": 0}
    assert report.counts["bytes"] == path.stat().st_size
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


def test_verify_of_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CacheError):
        verify(tmp_path / "missing")
