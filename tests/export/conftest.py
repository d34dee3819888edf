"""Modules that lie beside the tests of exporters: tests are no package."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def beside() -> Callable[[str], ModuleType]:
    """``beside("name")``: the module of that name in this folder."""
    return import_module


@pytest.fixture(scope="session")
def storage() -> Any:
    """Small caches of every kind: ``write_feature``, ``write_signal``, ``held``, ``same``."""
    return import_module("storage_caches")


@pytest.fixture(scope="session")
def some(storage: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """``some("F16")``: three feature caches of a dtype, the last one without sound."""
    made: dict[str, list[Path]] = {}

    def of(dtype: str) -> list[Path]:
        if dtype not in made:
            folder = tmp_path_factory.mktemp(dtype)
            made[dtype] = [
                storage.write_feature(
                    folder / f"clip.{i}{storage.SUFFIX}", dtype, seed=i, video=7 + i,
                    audio=0 if i == 2 else 5,
                )
                for i in range(3)
            ]  # fmt: skip
        return made[dtype]

    return of


@pytest.fixture(scope="session")
def case_of() -> Callable[[str], Any]:
    """Makes a tiny model by name, each once: a test must not change it."""
    import_module("tiny_case").tf.utils.logging.set_verbosity_error()
    return cache(lambda name: import_module("tiny_models").MAKERS[name]())
