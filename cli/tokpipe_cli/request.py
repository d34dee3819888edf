"""From options to a job: one budget, one recipe with its adjustments, all checked first."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tokpipe_cli.boundary import UsageProblem

if TYPE_CHECKING:
    from tokpipe.batch import Manifest
    from tokpipe.budget import Budget
    from tokpipe.recipe import Recipe
    from tokpipe.run import Job, Options
    from tokpipe.spec import StepSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a command line asks for; picklable, so that workers prepare the same job.

    Attributes:
        recipe: Ready recipe, adjustments applied.
        name: What the user called it.
    """

    recipe: Recipe
    name: str
    options: Options

    def prepare(self) -> Job:
        """Check it all and build the operators.

        Raises:
            TokpipeError: Recipe, budget or device are wrong.
        """
        # What is imported now stays: the collector need not walk it, now or later.
        gc.disable()
        try:
            import torch

            from tokpipe.run import prepare

            if self.options.device == "cpu":
                # Measured: one thread costs less CPU; results do not change.
                torch.set_num_threads(1)
            job = prepare(self.recipe, self.options)
            gc.freeze()
        finally:
            gc.enable()
        job.name = self.name
        return job


@dataclass(frozen=True, slots=True)
class Towers:
    """What ``--encoder`` and its companions say.

    Attributes:
        encoders: One text each.
        weights: Paths in the same order, fewer or none.
        fit, stage: Parameters of every encoder that has them; None is the encoder's own.
    """

    encoders: list[str]
    weights: list[str]
    fit: str | None = None
    stage: str | None = None

    def steps(self) -> list[StepSpec]:
        """A step each.

        Raises:
            UsageProblem: Weights without an encoder.
        """
        from tokpipe.encoder_choice import encoder_step

        if len(self.weights) > len(self.encoders):
            raise UsageProblem(
                "--weights without an --encoder of its own", hint="give them in the same order"
            )
        if not self.encoders and (self.fit or self.stage):
            raise UsageProblem("--fit and --stage belong to an --encoder", hint="add --encoder")
        paths = [*self.weights, *[None] * (len(self.encoders) - len(self.weights))]
        made = [
            encoder_step(text, weights=path, fit=self.fit, stage=self.stage)
            for text, path in zip(self.encoders, paths, strict=True)
        ]
        for option, value in (("fit", self.fit), ("stage", self.stage)):
            if value is not None and not any(option in step.params for step in made):
                raise UsageProblem(f"no encoder given has a {option}", hint=f"leave out --{option}")
        return made


#: Options of a command that are fields of ``Options`` under the same name.
_PLAIN = frozenset(
    (
        *("video_stream", "audio_stream", "strict", "full_hash", "decoder", "layout"),
        *("audio_share", "audio_codec", "force", "device", "pool", "batch_size", "prefetch"),
        *("query", "precision", "context", "encode_batch", "effort", "threads"),
    )
)

#: Values of ``--detail``.
_DETAILS = ("low", "auto", "high")


def request_from(given: Mapping[str, Any]) -> Request:
    """Read the options of ``compress`` or ``plan``, by the names of its parameters.

    Raises:
        UsageProblem, TokpipeError: As :func:`make_request`.
    """
    names = ("budget", "ratio", "threshold", "cells", "fps", "detail")
    named = {name: given[name] for name in names}
    return make_request(given["recipe"], towers=towers_from(given), **named, **options_from(given))


def options_from(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``Options`` a command was given."""
    plain = {name: value for name, value in given.items() if name in _PLAIN}
    if given.get("workers", 1) > 1 and plain.get("threads") is None:
        # The workers share the cores already.
        plain["threads"] = 1
    return {
        **plain, "keep_bank": not given["no_bank"], "compiled": bool(given.get("compile_", False))
    }  # fmt: skip


def towers_from(given: Mapping[str, Any]) -> Towers:
    """What ``--encoder`` and its companions say."""
    return Towers(
        given["encoder"] or [], given["weights"] or [], fit=given["fit"], stage=given["stage"]
    )


def make_request(
    recipe: str, *, towers: Towers | None = None, budget: str | None = None,
    ratio: float | None = None, threshold: float | None = None, cells: int | None = None,
    fps: float | None = None, detail: str | None = None, **options: Any,
) -> Request:  # fmt: skip
    """Read recipe and budget and apply ``--cells``, ``--fps``, ``--detail`` and ``--threshold``.

    Raises:
        UsageProblem: Options that exclude each other, or that the recipe has no place for.
        TokpipeError: The recipe or the budget cannot be read.
    """
    from tokpipe.encoder_choice import with_encoders
    from tokpipe.recipe import load_recipe
    from tokpipe.run import Options

    wanted = _one_budget(budget, ratio, threshold)
    made = load_recipe(recipe)
    if cells is not None:
        made = _with_param(made, "pixels", "cells", cells, "--cells")
    if fps is not None:
        made = _with_param(made, "fps", "fps", float(fps), "--fps")
    if detail is not None:
        made = _with_detail(made, detail)
    if threshold is not None:
        # What the user says holds, also in a preset that otherwise fills the budget.
        made = _with_threshold(replace(made.with_budget(None), fill=False), float(threshold))
    if towers is not None and (steps := towers.steps()):
        made = with_encoders(made, steps)
    if options.get("audio_codec", "opus") not in ("opus", "flac"):
        raise UsageProblem(
            f"unknown audio codec `{options['audio_codec']}`", hint="use opus or flac"
        )
    return Request(recipe=made, name=recipe, options=Options(budget=wanted, **options))


def late_rules(text: str | None) -> Recipe | None:
    """Rules of features from a recipe: its reducers that do not work on cells of the signal."""
    from tokpipe.encoder_choice import feature_rules
    from tokpipe.recipe import load_recipe

    return None if text is None else feature_rules(load_recipe(text))


def check_early(
    recipe: str, *, budget: str | None, ratio: float | None, threshold: float | None
) -> None:
    """Read recipe and budget as far as that needs no heavy import, so that slips show at once."""
    from tokpipe.recipe import load_recipe

    _one_budget(budget, ratio, threshold)
    if threshold is not None and not (math.isfinite(threshold) and threshold > 0):
        raise UsageProblem(f"threshold {threshold} is out of range", hint="use a number above 0")
    load_recipe(recipe)


def check_inputs(manifest: Manifest) -> None:
    """Raise when there is nothing to work on: no input resolves."""
    if manifest.entries:
        return
    if len(manifest.problems) == 1:
        error = manifest.problems[0][1]
        raise UsageProblem(error.message, hint=error.hint, code=error.code)
    if not manifest.problems:
        what = "only token caches were named" if manifest.ignored else "no media files were found"
        raise UsageProblem(what, hint="name video or audio files, or folders that hold some")


def _one_budget(budget: str | None, ratio: float | None, threshold: float | None) -> Budget | None:
    from tokpipe.budget import Budget

    given = [
        name
        for name, value in (("--budget", budget), ("--ratio", ratio), ("--threshold", threshold))
        if value is not None
    ]
    if len(given) > 1:
        raise UsageProblem(f"{' and '.join(given)} exclude each other", hint="give one of them")
    if ratio is not None:
        percent = Fraction(str(ratio)) * 100 if math.isfinite(ratio) else Fraction(0)
        if not Fraction(1, 10**6) <= percent <= 100:
            raise UsageProblem(
                f"ratio {ratio} is out of range", hint="use a number above 0, at most 1"
            )
        return Budget("percent", Fraction(round(percent, 6)))
    return None if budget is None else Budget.parse(budget)


def _with_param(recipe: Recipe, use: str, name: str, value: Any, option: str) -> Recipe:
    """The recipe with one parameter set in every step of one operator."""
    changed: dict[str, Any] = {}
    for stream, chain in recipe.chains.items():
        if any(step.use == use for step in chain):
            changed[stream] = tuple(
                _set(step, name, value) if step.use == use else step for step in chain
            )
    if not changed:
        raise UsageProblem(
            f"{option} needs a recipe with the step `{use}`", hint="see `tokpipe ops show auto`"
        )
    return replace(recipe, **changed)


def _with_detail(recipe: Recipe, detail: str) -> Recipe:
    """The recipe with the trade of moments against detail."""
    if detail not in _DETAILS:
        raise UsageProblem(f"unknown detail `{detail}`", hint=f"use {', '.join(_DETAILS)}")
    return _with_param(recipe, "coverage-updates", "detail", detail, "--detail")


def _with_threshold(recipe: Recipe, value: float) -> Recipe:
    """The recipe with the threshold of its last video step that has one, else audio step."""
    from tokpipe import registry

    for stream, chain in recipe.chains.items():
        for i in reversed(range(len(chain))):
            kind = registry.lookup(chain[i].use).kind
            if kind == "reducer" and "threshold" in {
                f.name for f in fields(registry.load(chain[i].use))
            }:
                steps = (*chain[:i], _set(chain[i], "threshold", value), *chain[i + 1 :])
                changed: dict[str, Any] = {stream: steps}
                return replace(recipe, **changed)
    raise UsageProblem("no step of this recipe has a threshold", hint="use --budget or --ratio")


def _set(step: StepSpec, name: str, value: Any) -> StepSpec:
    return replace(step, params=dict(sorted({**step.params, name: value}.items())))
