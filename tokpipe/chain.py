"""The operators of one stream, built from a recipe's steps and checked against each other.

sampler ─▶ encoder of the signal ─▶ reducers ─▶ late: tower ─▶ reducers
           (pixels, mel)            what survives      features
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tokpipe import registry
from tokpipe._recipe_order import tower_index
from tokpipe.digest import portable
from tokpipe.errors import RecipeError
from tokpipe.recipe import build
from tokpipe.spec import EXTRAS, StepSpec

#: Ends of the names of parameters that say what to remove.
_TELLING = ("threshold", "ratio", "relative")
#: Parameters of a tower that may be a path.
_PLACES = ("model", "weights")


@dataclass(slots=True)
class Chain:
    """The operators of one stream, ready to run.

    Attributes:
        rules: The step of each reducer.
        fill: Thresholds, ratios and counts of the steps order candidates; the budget is filled.
        late: An encoder with weights and the reducers of its tokens: it encodes what the chain
            before it lets survive.
    """

    sampler: Any = None
    encoder: Any = None
    reducers: list[Any] = field(default_factory=list)
    steps: tuple[StepSpec, ...] = ()
    fill: bool = False
    rules: list[StepSpec] = field(default_factory=list)
    late: Chain | None = None

    @property
    def domain(self) -> str:
        """``feature`` where a tower makes the tokens, else ``signal``."""
        return "signal" if self.late is None else "feature"

    @property
    def head(self) -> list[Any]:
        """Canonical steps up to the encoder: what the bank's key depends on."""
        return [d for kind, d in self._described(self.steps) if kind in ("sampler", "encoder")]

    @property
    def encoder_name(self) -> str:
        """Registry key of the encoder."""
        return next(s.use for s in self.steps if registry.lookup(s.use).kind == "encoder")

    @property
    def canonical(self) -> list[Any]:
        """Every step with every parameter, so that 2 and 2.0 or a default spelled out are one."""
        late = [] if self.late is None else self.late.steps
        return [described for _, described in self._described((*self.steps, *late))]

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

    def _described(self, steps: Sequence[StepSpec]) -> list[tuple[str, Any]]:
        out: list[tuple[str, Any]] = []
        for step in steps:
            params = parameters_of(build(step))
            version = getattr(registry.load(step.use), "version", 1)
            described = {"use": step.use, "version": version, **params}
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


def parameters_of(operator: Any) -> dict[str, Any]:
    """Parameters by name; weights by their name and content, never by their place on a disk."""
    values = {f.name: getattr(operator, f.name) for f in fields(operator)}
    if getattr(operator, "domain", "") == "feature":
        values |= {name: portable(values[name]) for name in _PLACES if name in values}
    return values


def with_whole_frames(steps: tuple[StepSpec, ...], layout: str) -> tuple[StepSpec, ...]:
    """The steps with a rule that gives whole frames, where a tower ends them and these are asked.

    The default rule of features chooses single tokens.
    """
    bare = bool(steps) and tower_index(steps) == len(steps) - 1
    return (*steps, StepSpec(use="uniform")) if bare and layout == "frames" else steps


def build_chain(
    stream: str, steps: tuple[StepSpec, ...], fill: bool = False, *, query: bool = False
) -> Chain:
    """Build the operators of one chain, and check that each gets what it needs.

    Args:
        query: The run has a question in words.

    Raises:
        RecipeError: A wrong parameter, an operator of the other stream, or a need that nothing
            before it meets.
        ModelError: A tower's configuration cannot be read.
    """
    late = tower_index(steps)
    made = _built(stream, steps if late is None else steps[:late], fill, set())
    if late is not None:
        have = {"features"}
        tower = build(steps[late])
        _check_needs(stream, steps[late].use, tower, have)
        outline = tower.outline()
        have |= {*outline.extras, *(("query",) if query and outline.text else ())}
        made.late = _built(stream, steps[late:], fill, have)
    return made


def _built(stream: str, steps: tuple[StepSpec, ...], fill: bool, have: set[str]) -> Chain:
    made = Chain(steps=steps, fill=fill)
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
        return "give --query TEXT and an --encoder with a text tower, such as open_clip:ViT-B-32"
    if need == "features":
        return "add --encoder: features of a neural encoder; cells of the signal keep their width"
    if need == "joint":
        return "sound and picture in one space, as an omni model projects them, in one TokenBatch"
    if need in EXTRAS:
        return f"{EXTRAS[need]}; it takes an --encoder that gives it, or `tokpipe.reduce_tokens`"
    giver = {"score": "a scorer such as `temporal-drop`", "pixels": "`pixels`", "mel": "`mel`"}
    return f"put {giver.get(need, 'an encoder that gives it')} before it"
