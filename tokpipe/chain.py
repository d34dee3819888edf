"""The operators of one stream, built from a recipe's steps and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from tokpipe import registry
from tokpipe.errors import RecipeError
from tokpipe.recipe import build
from tokpipe.spec import EXTRAS, StepSpec

#: Ends of the names of parameters that say what to remove.
_TELLING = ("threshold", "ratio", "relative")


@dataclass(slots=True)
class Chain:
    """The operators of one stream, ready to run.

    Attributes:
        rules: The step of each reducer.
        fill: Thresholds, ratios and counts of the steps order candidates; the budget is filled.
    """

    sampler: Any = None
    encoder: Any = None
    reducers: list[Any] = field(default_factory=list)
    steps: tuple[StepSpec, ...] = ()
    fill: bool = False
    rules: list[StepSpec] = field(default_factory=list)

    @property
    def head(self) -> list[Any]:
        """Canonical steps up to the encoder: what the bank's key depends on."""
        return [d for kind, d in self._described() if kind in ("sampler", "encoder")]

    @property
    def encoder_name(self) -> str:
        """Registry key of the encoder."""
        return next(s.use for s in self.steps if registry.lookup(s.use).kind == "encoder")

    @property
    def canonical(self) -> list[Any]:
        """Every step with every parameter, so that 2 and 2.0 or a default spelled out are one."""
        return [described for _, described in self._described()]

    def removes(self, reducer: Any) -> bool:
        """The reducer was told to remove tokens: by a threshold, a ratio or a count of its own.

        A projector always removes, since it makes new candidates; where the recipe fills, what
        steps are told only orders candidates. A telling parameter counts also at its default.
        """
        if hasattr(reducer, "project"):
            return True
        if self.fill:
            return False
        told = (step.params for r, step in zip(self.reducers, self.rules, strict=True)
                if r is reducer)  # fmt: skip
        return counts_itself(reducer) or any(k.endswith(_TELLING) for p in told for k in p)

    def orders(self, reducer: Any) -> bool:
        """The reducer keeps a count of its own that nobody asked for."""
        return reducer.out_count(1000, None) != (1000, True) and not self.removes(reducer)

    def _described(self) -> list[tuple[str, Any]]:
        out: list[tuple[str, Any]] = []
        for step in self.steps:
            made = build(step)
            params = {f.name: getattr(made, f.name) for f in fields(made)}
            described = {"use": step.use, "version": getattr(made, "version", 1), **params}
            out.append((registry.lookup(step.use).kind, described))
        return out


def decides(reducer: Any) -> bool:
    """The reducer decides on tokens at once: it is no scorer or selector of a stream."""
    return hasattr(reducer, "decide") and not hasattr(reducer, "settle")


def counts_itself(reducer: Any) -> bool:
    """The reducer differs from its defaults in what it removes by itself."""
    if getattr(reducer, "drop", False):
        return True
    plain = type(reducer)()
    told = [f.name for f in fields(reducer) if f.name.endswith(_TELLING)]
    if any(getattr(reducer, name) != getattr(plain, name) for name in told):
        return True
    # Counts of its own show against the same rule with nothing set.
    counts = hasattr(reducer, "out_count") and not hasattr(reducer, "push")
    return counts and reducer.out_count(1000, None) != plain.out_count(1000, None)


def build_chain(stream: str, steps: tuple[StepSpec, ...], fill: bool = False) -> Chain:
    """Build the operators of one chain, and check that each gets what it needs.

    Raises:
        RecipeError: A wrong parameter, an operator of the other stream, or a need that nothing
            before it meets.
    """
    made = Chain(steps=steps, fill=fill)
    have: set[str] = set()
    for step in steps:
        operator, kind = build(step), registry.lookup(step.use).kind
        _check_needs(stream, step.use, operator, have)
        have |= set(getattr(operator, "gives", ()))
        if kind == "sampler" and made.sampler is not None:
            raise RecipeError(
                f"`{step.use}` is a second sampler in the {stream} chain", hint="keep one of them"
            )
        if kind in ("reducer", "projector"):
            made.reducers.append(operator)
            made.rules.append(step)
        else:
            setattr(made, kind, operator)
            have |= {step.use, *getattr(operator, "extras", ())}
    _check_places(made)
    return made


def _check_places(made: Chain) -> None:
    """Raise where a step that works on the stream of whole frames comes after one that thins it."""
    earlier = ""
    for i, (reducer, step) in enumerate(zip(made.reducers, made.rules, strict=True)):
        selects = hasattr(reducer, "settle")
        beyond = [r for r in made.reducers[:i] if decides(r) and r.scope != "frame"]
        if hasattr(reducer, "project"):
            late = bool(beyond)
        else:
            late = not decides(reducer) and bool(earlier)
        if late:
            raise RecipeError(
                f"`{step.use}` works on whole frames as they come, it cannot follow `{earlier}`",
                hint=f"end the chain with `{earlier}`, or with `top-k`" if selects else
                f"put `{step.use}` before `{earlier}`",
            )  # fmt: skip
        if selects and i + 1 < len(made.reducers):
            raise RecipeError(
                f"`{made.rules[i + 1].use}` cannot follow `{step.use}`, which meets the budget",
                hint=f"put `{step.use}` last, or leave it out",
            )
        if decides(reducer) or hasattr(reducer, "project"):
            earlier = earlier or step.use


def _check_needs(stream: str, name: str, operator: Any, have: set[str]) -> None:
    modalities = getattr(operator, "modalities", (stream,))
    if stream not in modalities:
        raise RecipeError(
            f"`{name}` works on {' and '.join(modalities)}, it cannot be in the {stream} chain",
            hint=f"see `tokpipe ops show {name}`",
        )
    for need in getattr(operator, "needs", ()):
        if need not in have:
            hint = _remedy(need)
            raise RecipeError(
                f"`{name}` needs `{need}`, which nothing before it in the {stream} chain gives",
                hint=hint, code="recipe.needs",
            )  # fmt: skip


def _remedy(need: str) -> str:
    """What a need is, and what to do about it."""
    if need == "query":
        return "a query takes an encoder with a text tower, or `tokpipe.reduce_tokens` from Python"
    if need == "features":
        return "features of a neural encoder; cells of the signal have a width of their own"
    if need == "joint":
        return "sound and picture in one space, as an omni model projects them, in one TokenBatch"
    if need in EXTRAS:
        return f"{EXTRAS[need]}; it takes a neural encoder, or `tokpipe.reduce_tokens` from Python"
    giver = {"score": "a scorer such as `temporal-drop`", "pixels": "`pixels`", "mel": "`mel`"}
    return f"put {giver.get(need, 'an encoder that gives it')} before it"
