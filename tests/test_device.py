"""Devices: found, missing, unknown."""

from __future__ import annotations

import pytest
import torch

from tokpipe.device import pick_device
from tokpipe.errors import ResourceError


def test_device_cpu_is_there() -> None:
    assert pick_device() == torch.device("cpu")


def test_device_auto_takes_cuda_where_it_is() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_device_cuda_that_is_not_there_is_named() -> None:
    with pytest.raises(ResourceError) as caught:
        pick_device("cuda:99")
    assert "cuda:99" in caught.value.message
    assert caught.value.exit_code == 3
    assert caught.value.hint


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has mps")
def test_device_mps_that_is_not_there_is_named() -> None:
    with pytest.raises(ResourceError, match="mps"):
        pick_device("mps")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", "xpu", "cpu:-2"])
def test_device_that_is_unknown_is_named(name: str) -> None:
    with pytest.raises(ResourceError):
        pick_device(name)
