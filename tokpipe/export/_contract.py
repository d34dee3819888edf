"""What every exporter offers, and what it gives back.

Class attributes of an exporter (a frozen dataclass whose fields are its parameters):

``source``    the consumer's contract: package and version, or its documentation
``takes``     layouts it takes: of ragged, frames and grid
``domains``   of signal and feature
``extra``     the pip extra its writing needs, empty for none
``whole``     False: one output a cache (``write``). True: one output for all (``write_all``)
``suffix``    how the output's name ends, such as ``.npz``; empty for a folder
``model_use`` the output depends on a model: ``no``, ``optional`` or ``needed``
``accepts``   one sentence: what the consumer accepts
``loses``     one sentence: what a cache holds and this form does not
``python``    how it is called in the user's process, empty where only the command writes
``check``     a method that refuses one cache (CacheError) before many are written; may be left out
``writes``    False where it runs in the user's process alone (True where it is left out)

Outputs are written under a temporary name and renamed by ``tokpipe.export._run``, so that an
exporter simply writes to the path it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args

from tokpipe.errors import CacheError, RecipeError
from tokpipe.parameters import field_hints

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache
    from tokpipe.spec import Layout

ModelUse = Literal["no", "optional", "needed"]


@dataclass(frozen=True, slots=True)
class Written:
    """What one export made.

    Attributes:
        tokens: Media tokens (or, of pictures, the cells they show).
        added: Tokens that only the consumer needs: newlines, separators, timestamps; -1 unknown.
        items: Caches, frames or rows written, by what they are.
        notes: What was left out or changed, one sentence each.
        example: How the consumer takes it, a few lines to copy.
    """

    tokens: int
    added: int = 0
    items: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    example: str = ""


class Exporter(Protocol):
    """One consumer; see the module's docstring."""

    source: ClassVar[str]
    takes: ClassVar[tuple[Layout, ...]]
    domains: ClassVar[tuple[str, ...]]
    extra: ClassVar[str]
    whole: ClassVar[bool]
    suffix: ClassVar[str]
    model_use: ClassVar[ModelUse]
    accepts: ClassVar[str]
    loses: ClassVar[str]
    python: ClassVar[str]

    def write(self, cache: TokenCache, target: Path) -> Written:
        """Write one cache to ``target``, a file or a folder that is not there yet."""
        ...

    def write_all(self, caches: Sequence[Path], target: Path) -> Written:
        """Write many caches to one ``target``, a file or a folder that is not there yet."""
        ...


def check_takes(exporter: Exporter, cache: TokenCache, name: str) -> None:
    """Refuse a cache whose domain or layout the consumer does not take.

    Raises:
        CacheError: Naming what would do instead.
    """
    if cache.domain not in exporter.domains:
        wanted = " or ".join(exporter.domains)
        hint = (
            "encode it first: tokpipe encode FILE --encoder hf_vision:MODEL --stage post_projector"
            if cache.domain == "signal"
            else "export the cache made without --encoder, which holds pictures and sound"
        )
        raise CacheError(
            f"`{name}` takes a {wanted} cache, this one is {cache.domain}",
            hint=hint, code="export.domain",
        )  # fmt: skip
    check_layout(exporter.takes, cache.layout, name)
    if (check := getattr(exporter, "check", None)) is not None:
        check(cache)


def check_layout(takes: Sequence[str], layout: str, name: str, others: str = "") -> None:
    """Refuse a layout the consumer does not take.

    Args:
        others: Consumers that take it, as a sentence would name them.

    Raises:
        CacheError: Naming the layouts it takes, and what takes this one.
    """
    if layout in takes:
        return
    ways = " or ".join(f"--layout {found}" for found in takes)
    instead = f", or export to {others}" if others else ""
    raise CacheError(
        f"`{name}` takes layout {' or '.join(takes)}, this cache is {layout}",
        hint=f"compress or encode again with {ways}{instead}",
        code="export.layout",
    )


def check_choices(kind: Any, **given: Any) -> None:
    """Refuse values that a Literal does not name, for functions that are called from Python.

    Args:
        kind: A class whose fields of these names are Literals, or the Literals by name.

    Raises:
        RecipeError: Naming what there is.
    """
    hints = field_hints(kind) if isinstance(kind, type) else kind
    for name, value in given.items():
        known = get_args(hints[name])
        if value not in known:
            listed = ", ".join(repr(choice) for choice in known)
            raise RecipeError(f"{name} is {value!r}", hint=f"{name} is one of {listed}",
                              code="export.choice")  # fmt: skip
