"""The order of steps in a chain: samplers, one encoder, reducers; and after them, at will, a tower.

A chain may hold two encoders: one of the signal (``pixels``, ``mel``), whose reducers say what
survives, then one with weights, which encodes only that, with reducers of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokpipe import registry
from tokpipe.errors import RecipeError
from tokpipe.spec import StepSpec

_STAGES = {"sampler": 0, "encoder": 1, "reducer": 2, "projector": 2}


def tower_index(chain: Sequence[StepSpec]) -> int | None:
    """Where the encoder with weights stands, None without one."""
    return next((i for i, step in enumerate(chain) if registry.lookup(step.use).feature), None)


def with_head(chain: tuple[StepSpec, ...], default: tuple[StepSpec, ...]) -> tuple[StepSpec, ...]:
    """The chain with the default encoder of the signal, and its sampler, where it names none.

    Args:
        default: The stream's steps in the default preset.
    """
    late = tower_index(chain)
    head, tail = (chain, ()) if late is None else (chain[:late], chain[late:])
    kinds = [registry.lookup(step.use).kind for step in head]
    if not chain or "encoder" in kinds:
        return chain
    usual = [s for s in default if registry.lookup(s.use).kind in ("sampler", "encoder")]
    own = kinds.count("sampler")
    usual = usual[1:] if own and len(usual) > 1 else usual
    return (*head[:own], *usual, *head[own:], *tail)


def check_order(stream: str, chain: tuple[StepSpec, ...], where: str) -> None:
    """Raise RecipeError where a step cannot follow the one before it."""
    late = tower_index(chain)
    parts = [chain] if late is None else [chain[:late], chain[late:]]
    for part in parts:
        kinds = [registry.lookup(step.use).kind for step in part]
        for (left, a), (right, b) in zip(
            zip(part, kinds, strict=True), zip(part[1:], kinds[1:], strict=True), strict=False
        ):
            if _STAGES[a] > _STAGES[b] or a == b == "encoder":
                raise RecipeError(
                    f"`{right.use}` ({b}) cannot follow `{left.use}` ({a}) in the {stream} chain",
                    where=where, hint="the order is samplers, one encoder, reducers",
                )  # fmt: skip
