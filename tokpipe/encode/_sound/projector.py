"""The projectors of multimodal models for sound, on rows of a cache."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokpipe.encode._hf.load import front_end, library, placed
from tokpipe.encode._projection import Projection
from tokpipe.encode._sound.omni_audio import Qwen25OmniSound
from tokpipe.encode._sound.tower import Sound
from tokpipe.encode._sound.whisper import Qwen2AudioSound, VoxtralSound
from tokpipe.encode._weights import digest_of
from tokpipe.errors import ModelError


def load_projector(
    family: Sound, device: torch.device, dtype: torch.dtype, *, check: bool
) -> Projection:
    """Read a family's projector; see ``HfAudio.load_projector``.

    That of the Omni models is the end of their tower, which is read as a whole.
    """
    if isinstance(family, Qwen25OmniSound):
        tower, _ = family.build()
        whole = digest_of(tower)
        ends = [name for name in ("proj", "proj1", "act", "proj2") if hasattr(tower, name)]
        last = nn.Sequential(*(getattr(tower, name) for name in ends))
        return Projection(project=placed(last, device, dtype), weights=whole)
    if not isinstance(family, Qwen2AudioSound | VoxtralSound):
        raise ModelError(
            f"`{family.settings.model}` has no projector to a language model",
            hint="name a multimodal model that shares the tower",
        )
    weights: str | None = None
    if check:
        tower, projector = family.build()
        weights = digest_of(tower, projector)
    else:
        name = "VoxtralModel" if isinstance(family, VoxtralSound) else "Qwen2AudioModel"
        drop = ("language_model", "audio_tower")
        made = front_end(getattr(library(), name), family.config, family.settings, drop=drop)
        projector = made.multi_modal_projector
    project = placed(projector, device, dtype)
    if isinstance(family, Qwen2AudioSound):
        return Projection(project=project, weights=weights)
    size = int(family.audio.intermediate_size // family.audio.d_model)
    needs = torch.ones(1, size, dtype=torch.bool)
    return Projection(project=partial(_side_by_side, project), weights=weights, needs=needs)


def _side_by_side(project: Any, rows: Tensor) -> Tensor:
    """The token [1, D] of all rows [P, Dp] of a unit."""
    made: Tensor = project(rows.reshape(1, -1))
    return made
