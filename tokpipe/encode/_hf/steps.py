"""Vision transformers of multimodal models one block at a time: what no projector needs never runs.

Letters: B pictures or tiles, P patches of one, p class tokens before them, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokpipe.encode._hf.vit import Depth, Vit
from tokpipe.errors import ModelError

#: Kinds of tower that work here, and how many class tokens each puts before its patches.
PREFIX = {
    "clip_vision_model": 1,
    "siglip_vision_model": 0,
    "internvl_vision": 1,
    "idefics3_vision": 0,
    "smolvlm_vision": 0,
}
#: Kinds whose embeddings ask which patches are there.
_MASKED = ("idefics3_vision", "smolvlm_vision")


def prefix_of(vision: Any, model: str) -> int:
    """Class tokens of the tower with the configuration ``vision``.

    Raises:
        ModelError: Towers of its kind do not work here.
    """
    kind = str(getattr(vision, "model_type", ""))
    if kind not in PREFIX:
        raise ModelError(
            f"`{model}` has a vision tower of kind `{kind}`, which does not work here",
            hint="towers that work in these models: " + ", ".join(sorted(PREFIX)),
        )
    return PREFIX[kind]


@dataclass(frozen=True, slots=True)
class Steps:
    """A tower taken apart.

    Attributes:
        tower: The transformers module.
        kind: Its ``model_type``.
        vit: Its blocks up to the last that is needed.
        states: Hidden states taken, 0 the embeddings; several lie side by side.
        normed: The one state taken is the last and goes through the tower's final norm.
    """

    tower: Any
    kind: str
    vit: Vit
    states: tuple[int, ...]
    normed: bool

    def embed(self, pictures: Tensor) -> Tensor:
        """What the first block takes, [B, p + P, D], of pictures [B, 3, S, S]."""
        if self.kind in _MASKED:
            patch = self.tower.embeddings.patch_size
            shape = (len(pictures), pictures.shape[2] // patch, pictures.shape[3] // patch)
            there = torch.ones(shape, dtype=torch.bool, device=pictures.device)
            masked: Tensor = self.tower.embeddings(pictures, there)
            return masked
        made: Tensor = self.tower.embeddings(pictures)
        return self.tower.pre_layrnorm(made) if self.kind == "clip_vision_model" else made

    def run(self, hidden: Tensor, columns: frozenset[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Rows of patches [B, P, D x states] and columns [B, P, ...] of embedded rows.

        Args:
            hidden: [B, p + P, D], all patches or some.
            columns: See ``Vit.columns``.
        """
        named = {} if self.kind == "internvl_vision" else {"attention_mask": None}
        taken = {0: hidden}
        with ExitStack() as stack:
            for state in self.states:
                if 0 < state < max(self.states):
                    hook = self.vit.blocks[state - 1].register_forward_hook(_keeper(taken, state))
                    stack.callback(hook.remove)
            walked = self.vit.walk(hidden, columns, named, whole=False)
        taken[max(self.states)] = self._norm(walked.hidden) if self.normed else walked.hidden
        rows = [taken[state][:, self.vit.prefix :] for state in self.states]
        found = self.vit.columns(walked, columns)
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=-1), found

    def _norm(self, hidden: Tensor) -> Tensor:
        name = "layernorm" if self.kind == "internvl_vision" else "post_layernorm"
        made: Tensor = getattr(self.tower, name)(hidden)
        return made


def _keeper(taken: dict[int, Tensor], state: int) -> Callable[..., None]:
    def keep(_module: nn.Module, _args: Any, made: Tensor) -> None:
        taken[state] = made

    return keep


def steps_of(
    tower: Any, states: tuple[int, ...], depth: Depth, *, normed: bool, compiled: bool,
    classes: int = 0,
) -> Steps:  # fmt: skip
    """Take a loaded tower apart and cut off the blocks after the last state.

    Args:
        depth: Of those that run.
        compiled: Let ``torch.compile`` translate each block, where one state is taken.
        classes: Class tokens that are rows like those of patches.
    """
    tower = getattr(tower, "vision_model", tower)
    kind = str(tower.config.model_type)
    name = "layer" if kind == "internvl_vision" else "layers"
    layers = getattr(tower.encoder, name)[: max(states)]
    setattr(tower.encoder, name, layers)
    vit = Vit(layers, PREFIX[kind] - classes, depth, compile=compiled and len(states) == 1)
    return Steps(tower, kind, vit, states, normed)
