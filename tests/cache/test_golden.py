"""Golden files of format 1.0: made by hand, pinned, read for ever."""

from __future__ import annotations

import hashlib
import runpy
from pathlib import Path

import numpy as np
import pytest

from tokpipe.cache import open_cache
from tokpipe.cache.verify import verify
from tokpipe.errors import CacheCorrupt, CacheError, CacheVersion, TokpipeError

DIGESTS = {
    "feature": "89f6c521c7a671a2d9a4d9f032415e14fa1bbe836e6d578a349d57c6a12fe325",
    "bf16": "4c4d4871f824ac85b7730e607d879c533d3ef64522c14276e036bd961fa96770",
    "minor": "1f5ac1118f7689ae940dfc882fb3b6ad4c6013d1a2ef47b5359cbd12f188b8f3",
    "bad-version": "b781560490d7ee1e0e9cfc30169bb79098999fc0a2ae5e75a9a38188d2767c56",
    "bad-codec": "b16c84af440867ac59a04bddad8b3fb153cc2d83cf066cf13a71ba2837a9c002",
    "bad-domain": "0424763af176c3bab6a72c838ac8be09ec886f2e1c1fac69503eb6eaadcdbe67",
    "bad-order": "64bb7506c747e6bdb14c0f108dff72a84d078a2fdcbe41b0b408b9538438ac48",
    "bad-mass": "09bc1750c82f0e84ff37b53bd5a416afc9e1285a5181ad9131d1ddd499492bd2",
    "bad-finite": "9eed5523b9ca3fc94d914c3eaab9f969aa6d1ac0bfc21efa230c25745d3ce4fe",
    "bad-column": "6f2e3f0a7cff69d2081510b20723138cefe2425007460d4fa0bd488b3c943236",
    "bad-shape": "eeac379dbf99d4b1cc3b6359261d78b9241569d6fb5ee14cac00972e0be9ef78",
    "bad-hole": "daf86ffa94a63b76d002ce2c449f8f4501f495cf371d4b8a1c68e01d1acbe935",
    "bad-tail": "1eee74e7550c7a97c1a331f2641a22177f603661573b63e0cd96def300237b5c",
    "bad-cut": "5665262b349723f58fe458f2fe1870f813e15907d52df913786f244201c1c93a",
    "bad-extra": "6285cb67814e3de843e23e84b2a9ce89d7fa26a0a7e87eb5476462672b0c3ff9",
    "bad-foreign": "78b0d7bb666580856b7fd1e47c2f857f3ba7f0acf966bafa9935e0cf0ad93ded",
    "signal": "76901334df82ab1bef77f02371db1fb57cea8f23b62d37a79778ca30acb9a1bd",
}

VALID = ("feature", "bf16", "minor", "signal")

#: Invalid file -> error on opening (None: it opens), problem that deep verify reports.
INVALID: dict[str, tuple[type[TokpipeError] | None, str]] = {
    "bad-version": (CacheVersion, "version"),
    "bad-codec": (CacheError, "codec"),
    "bad-domain": (CacheError, "domain"),
    "bad-order": (CacheCorrupt, "order"),
    "bad-mass": (CacheCorrupt, "mass"),
    "bad-finite": (None, "finite"),
    "bad-column": (CacheCorrupt, "missing"),
    "bad-shape": (CacheCorrupt, "shape"),
    "bad-hole": (CacheCorrupt, "header"),
    "bad-tail": (None, "digest"),
    "bad-cut": (CacheCorrupt, "header"),
    "bad-extra": (CacheCorrupt, "header"),
    "bad-foreign": (CacheError, "format"),
}


def path_of(golden: Path, name: str) -> Path:
    return golden / f"{name}.tokpipe.safetensors"


@pytest.mark.parametrize("name", DIGESTS)
def test_golden_file_is_unchanged(golden: Path, name: str) -> None:
    assert hashlib.sha256(path_of(golden, name).read_bytes()).hexdigest() == DIGESTS[name]


def test_every_golden_file_is_pinned_and_tested(golden: Path) -> None:
    there = {p.name.partition(".")[0] for p in golden.glob("*.safetensors")}
    assert there == set(DIGESTS) == {*VALID, *INVALID}


def test_script_makes_the_files_without_pictures(golden: Path) -> None:
    source = (golden / "make_golden.py").read_text(encoding="utf-8")
    assert "import tokpipe" not in source
    assert "from tokpipe" not in source
    made = runpy.run_path(str(golden / "make_golden.py"))["files"]()
    assert {n: hashlib.sha256(d).hexdigest() for n, d in made.items()} == {
        n: d for n, d in DIGESTS.items() if n != "signal"
    }


@pytest.mark.parametrize("name", VALID)
def test_valid_golden_file_reads(golden: Path, name: str) -> None:
    assert verify(path_of(golden, name), deep=True).problems == ()
    with open_cache(path_of(golden, name)) as cache:
        parts = cache.tokens()
    assert {s: len(p) for s, p in parts.items()} == (
        {"video": 2, "audio": 2} if name == "signal" else {"video": 4, "audio": 2}
    )
    count = 3 * len(parts["video"])
    want = (np.arange(count, dtype=np.float32) / 4 - 1).reshape(-1, 3)
    np.testing.assert_array_equal(parts["video"].tokens, want)


def test_golden_signal_rebuilds(golden: Path) -> None:
    with open_cache(path_of(golden, "signal")) as cache:
        first, second = cache.frames()
        samples, rate = cache.audio()
    assert [first.mask.tolist(), second.mask.tolist()] == [[[3, 1]], [[2, 3]]]
    for frame in (first, second):
        assert frame.pixels[5, [5, 33]].tolist() == [[200, 0, 0], [0, 200, 0]]
    assert (len(samples), rate) == (1600, 16000)
    assert np.abs(samples).max() < 1e-3


@pytest.mark.parametrize("name", INVALID)
def test_invalid_golden_file_is_refused(golden: Path, name: str) -> None:
    error, code = INVALID[name]
    path = path_of(golden, name)
    if error is None:
        open_cache(path).close()
    else:
        with pytest.raises(error) as caught:
            open_cache(path)
        assert type(caught.value) is error
        assert caught.value.code == f"cache.{code}"
        assert caught.value.where == str(path)
    assert code in [p.code for p in verify(path, deep=True).problems]


def test_version_error_names_the_version_needed(golden: Path) -> None:
    with pytest.raises(CacheVersion, match=r"2\.0") as caught:
        open_cache(path_of(golden, "bad-version"))
    assert "2.x" in (caught.value.hint or "")


def test_features_that_are_not_finite_are_refused_when_read(golden: Path) -> None:
    with open_cache(path_of(golden, "bad-finite")) as cache:
        with pytest.raises(CacheCorrupt):
            cache.tokens()
        with pytest.raises(CacheCorrupt):
            cache.column("video.tokens")
        assert len(cache.tokens(stream="audio")["audio"]) == 2
