"""Every registered reducer holds to the suite of its protocol."""

from __future__ import annotations

import os

import pytest
import torch

from tokpipe.testing.suites import ReducerSuite

_NO_CUDA = not torch.cuda.is_available() and os.environ.get("TOKPIPE_REQUIRE_CUDA") != "1"


class TestReducers(ReducerSuite):
    """All of them, with default parameters."""


@pytest.mark.skipif(_NO_CUDA, reason="no CUDA device; TOKPIPE_REQUIRE_CUDA=1 makes this a failure")
class TestReducersOnCuda(ReducerSuite):
    """The same on a GPU."""

    device = "cuda"
