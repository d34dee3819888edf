"""Modules that lie beside the tests of exporters: tests are no package."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _beside(name: str) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def beside() -> Callable[[str], ModuleType]:
    """``beside("name")``: the module of that name in this folder."""
    return _beside


@pytest.fixture(scope="session")
def storage() -> Any:
    """Small caches of every kind: ``write_feature``, ``write_signal``, ``held``, ``same``."""
    return _beside("storage_caches")


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
