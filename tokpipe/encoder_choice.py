"""``--encoder FAMILY:NAME[@REV]``: a tower put into a recipe, with its scout before it."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tokpipe import registry
from tokpipe.card import BUILT_IN
from tokpipe.errors import RecipeError
from tokpipe.recipe import Recipe, build, load_recipe
from tokpipe.spec import MODALITIES, StepSpec

_CARDS = Path(__file__).parent / "encode" / "cards"
_HINT = "write FAMILY:NAME, such as open_clip:ViT-B-32 or hf_audio:openai/whisper-small"


def card_names() -> list[str]:
    """Names of the cards: models with settings of their own, one TOML each."""
    return sorted(path.stem for path in _CARDS.glob("*.toml"))


def read_card(name: str) -> dict[str, Any]:
    """What a card says: ``use``, ``about``, ``licence`` and ``[params]``."""
    return tomllib.loads((_CARDS / f"{name}.toml").read_text(encoding="utf-8"))


def encoder_step(text: str, **told: Any) -> StepSpec:
    """Read one encoder.

    Args:
        text: ``FAMILY:NAME``, ``FAMILY:NAME@REV`` or the name of a card. REV is a revision on a
            hub, or for families without revisions the tag of the weights.
        told: Parameters that override, such as ``weights`` or ``fit``; None leaves them, and so
            does a family that has no such parameter.

    Raises:
        RecipeError: No such family or card.
    """
    family, colon, rest = text.strip().partition(":")
    card, _, tag = family.partition("@")
    if not colon and card in card_names():
        found = read_card(card)
        use, params = str(found["use"]), dict(found.get("params", {}))
        return _told(use, params | _revision(use, tag), told)
    name = registry.known(family)
    if name is None or not registry.lookup(name).feature:
        offered = [n for n in registry.names("encoder") if registry.lookup(n).feature]
        near = difflib.get_close_matches(family, [*offered, *card_names()], n=1)
        raise RecipeError(
            f"unknown encoder `{text}`",
            hint=f"did you mean `{near[0]}`?" if near
            else f"{_HINT}; families: {', '.join(offered)}; cards: {', '.join(card_names())}",
        )  # fmt: skip
    if colon and not rest:
        raise RecipeError(f"the encoder `{text}` names no model", hint=_HINT)
    # A folder may have any name.
    model, _, revision = (rest, "", "") if Path(rest).exists() else _split(rest)
    params = {"model": model} if model else {}
    return _told(name, params | _revision(name, revision), told)


def _split(text: str) -> tuple[str, str, str]:
    """``NAME@REV`` in three parts."""
    return text.rpartition("@") if "@" in text else (text, "", "")


def _revision(use: str, text: str) -> dict[str, str]:
    """What ``@REV`` means: a revision on a hub, ``random`` or else a tag of weights."""
    if not text:
        return {}
    known = {f.name for f in fields(registry.load(use))}
    return {"revision" if "revision" in known and text != "random" else "weights": text}


def _told(use: str, params: dict[str, Any], told: dict[str, Any]) -> StepSpec:
    known = {f.name for f in fields(registry.load(use))}
    params |= {k: v for k, v in told.items() if v is not None and k in known}
    return StepSpec(use=use, params=dict(sorted(params.items())))


def with_encoders(recipe: Recipe, steps: Sequence[StepSpec]) -> Recipe:
    """The recipe with towers: rules of the signal stay before them, all others come after.

    A chain without rules of the signal gets those of the default recipe, which say what is worth
    encoding. A stream without an encoder stays as it is.

    Raises:
        RecipeError: Two encoders for one stream, or one in the recipe already.
    """
    made = recipe
    seen: dict[str, str] = {}
    for step in steps:
        stream = getattr(registry.load(step.use), "modalities", MODALITIES)[0]
        if stream in seen:
            raise RecipeError(
                f"two encoders for the {stream}: {seen[stream]} and {step.use}",
                hint="give one --encoder for the pictures and one for the sound",
            )
        seen[stream] = step.use
        changed: dict[str, Any] = {stream: _with_tower(made, stream, step)}
        made = replace(made, **changed)
    return made


def feature_rules(recipe: Recipe) -> Recipe:
    """The recipe's rules of features alone, without samplers, encoders and rules of the signal."""
    kinds = ("reducer", "projector")
    rules = {
        stream: tuple(_parted([s for s in chain if registry.lookup(s.use).kind in kinds])[1])
        for stream, chain in recipe.chains.items()
    }
    return replace(recipe, video=rules.get("video", ()), audio=rules.get("audio", ()))


def _with_tower(recipe: Recipe, stream: str, tower: StepSpec) -> tuple[StepSpec, ...]:
    default = load_recipe("auto").chains[stream]
    chain = recipe.chains.get(stream) or default
    if any(registry.lookup(step.use).feature for step in chain):
        raise RecipeError(
            f"the recipe has an encoder for the {stream} already", hint="leave out --encoder"
        )
    head = [step for step in chain if registry.lookup(step.use).kind in ("sampler", "encoder")]
    rules = [step for step in chain if step not in head]
    signal, features = _parted(rules)
    if not signal:
        signal = [step for step in default if _of_signal(step)]
    return (*head, *signal, tower, *features)


def _parted(rules: Sequence[StepSpec]) -> tuple[list[StepSpec], list[StepSpec]]:
    """Rules of the signal, and those from the first rule of features on."""
    first = next((i for i, step in enumerate(rules) if not _of_signal(step)), len(rules))
    return [*rules[:first]], [*rules[first:]]


def _of_signal(step: StepSpec) -> bool:
    """The rule works on cells of the signal: it needs what only the built-in encoders give."""
    if registry.lookup(step.use).kind not in ("reducer", "projector"):
        return False
    return bool(BUILT_IN & {*getattr(build(step), "needs", ())})
