"""What a family of models offers ``hf_vision``: one class per family, made from configuration.

A family module is imported only when a model of its kind is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from tokpipe.encode._projection import Projection
from tokpipe.encode._tower import Outline, Places, VisionTower
from tokpipe.errors import ModelError

if TYPE_CHECKING:
    from tokpipe.encode.hf_vision import HfVision


class Family(Protocol):
    """A kind of model: what it gives, where its tokens lie, and how it is loaded."""

    def __init__(self, config: Any, settings: HfVision) -> None:
        """Keep the transformers configuration and the operator's parameters.

        Raises:
            ModelError: A parameter does not fit this family (stage, layer).
        """
        ...

    def outline(self) -> Outline:
        """What a tower gives, from the configuration files alone."""
        ...

    def places(self, height: int, width: int) -> Places:
        """Where the tokens of a picture of this size lie, from the configuration files alone."""
        ...

    def load(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        compile: bool,  # noqa: A002
    ) -> VisionTower:
        """Read the weights of the front end only; no language model.

        The tower's ``weights`` is its digest; ``hf_vision`` compares it with the one on record.
        """
        ...

    def load_projector(
        self, device: torch.device, dtype: torch.dtype, *, check: bool
    ) -> Projection:
        """Read the projector alone; with ``check`` the tower too, for its digest, on the CPU.

        Raises:
            ModelError: There is none, or it does not work on rows of a cache.
        """
        ...


def no_text_tower() -> ModelError:
    """The error of towers whose words live in a language model that is not there."""
    return ModelError(
        "a multimodal model's vision front end has no text tower",
        hint="use an encoder with one, such as open-clip or a SigLIP model",
    )
