"""Every registered reducer, preset and projector holds to the suite of its kind."""

from __future__ import annotations

import os

import pytest
import torch

from tokpipe.testing.more_suites import PresetSuite, ProjectorSuite
from tokpipe.testing.suites import ReducerSuite

_NO_CUDA = not torch.cuda.is_available() and os.environ.get("TOKPIPE_REQUIRE_CUDA") != "1"
_WHY = "no CUDA device; TOKPIPE_REQUIRE_CUDA=1 makes this a failure"


class TestReducers(ReducerSuite):
    """All of them, with default parameters."""


class TestPresets(PresetSuite):
    """All of them, as their papers set them."""


class TestProjectors(ProjectorSuite):
    """All of them, with default parameters."""


@pytest.mark.skipif(_NO_CUDA, reason=_WHY)
class TestReducersOnCuda(ReducerSuite):
    """The same on a GPU."""

    device = "cuda"


@pytest.mark.skipif(_NO_CUDA, reason=_WHY)
class TestPresetsOnCuda(PresetSuite):
    """The same on a GPU."""

    device = "cuda"
