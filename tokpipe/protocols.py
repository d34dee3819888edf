"""What each kind of operator must offer. Structural: no base class is needed.

An operator is a frozen dataclass in a file of its own. Its fields are its parameters, with
ranges in ``Annotated``. Class attributes say what it is:

``source``   paper and section, or "tokpipe" for our own
``scope``    how much context ``decide`` must see: frame, window, stream or video
``needs``    extras, ``query`` or modalities that must be there (an unmet need is a RecipeError)
``causal``   it never looks ahead
``version``  raised when its output changes
``where``    where its paper runs it: pixels, encoder, outputs (default) or llm
``golden``   prefixes of the stored cases that check it; ``aliases`` other names
``scale_free``, ``keeps_outliers``  what the conformance suite may expect of it
``default_needs``  the needs of the default operator, where ``needs`` follows from parameters
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from tokpipe.budget import Supply
    from tokpipe.spec import Layout, MediaInfo, Scope, TokenSpec
    from tokpipe.tensors import AudioChunk, FrameBatch, GridMap, Query, TokenBatch, TokenMap


class Timed(Protocol):
    """Anything with a place on the clock, enough for a sampler to choose it.

    A sampler also looks at ``corrupt`` (bool): the decoder flagged this very frame.
    """

    @property
    def pts(self) -> float:
        """Seconds from the media's zero."""
        ...

    @property
    def duration(self) -> float:
        """Seconds on screen, 0 when unknown."""
        ...

    @property
    def usable(self) -> bool:
        """False for frames that damage may have touched."""
        ...


class Picture(Timed, Protocol):
    """A decoded frame that is converted only when asked."""

    @property
    def index(self) -> int:
        """Rank of its pts in the stream, -1 unknown."""
        ...

    @property
    def corrupt(self) -> bool:
        """The decoder flagged this very frame."""
        ...

    def rgb(self, width: int, height: int) -> NDArray[np.uint8]:
        """uint8 [height, width, 3], upright, resized by a wide cubic, BT.709 tone-mapped if HDR."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """Chooses which frames to encode; never depends on the budget."""

    def sample(self, frames: Iterable[Any]) -> Iterator[Any]:
        """Yield the chosen frames, in order."""
        ...

    def count(self, info: MediaInfo) -> int | None:
        """Most frames it will choose from this media, None when the header does not tell."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """Turns frames or audio into tokens."""

    def out_spec(self, info: MediaInfo, steps: int | None) -> TokenSpec:
        """Shape of what it will produce from ``steps`` sampled frames (or the audio track)."""
        ...

    def encode(self, batch: FrameBatch | AudioChunk) -> TokenBatch:
        """Tokens of one batch."""
        ...


@runtime_checkable
class Reducer(Protocol):
    """Decides a map; ``TokenBatch.reduce`` applies it."""

    @property
    def scope(self) -> Scope:
        """How much context ``decide`` must see."""
        ...

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap | GridMap:
        """Choose at most ``budget`` rows; None leaves the count to the rule's own parameters."""
        ...


@runtime_checkable
class StreamReducer(Protocol):
    """Decides block by block with bounded state.

    The engine keeps the carried tokens: after each push they are ``cat(carried, new)`` reduced by
    the map. ``state.settled`` (bool [K] or None) marks rows that will not change again; those are
    handed on and leave the carried tokens.
    """

    def start(self, budget: int | None, steps: int | None) -> Any:
        """Fresh state for a stream of ``steps`` frames (None: unknown)."""
        ...

    def push(self, state: Any, carried: TokenBatch | None, new: TokenBatch) -> tuple[Any, TokenMap]:
        """State and a map over [carried; new]."""
        ...

    def finish(self, state: Any, carried: TokenBatch) -> TokenMap:
        """Last map over the carried tokens."""
        ...


@runtime_checkable
class Selector(Protocol):
    """A stream reducer that meets its budget exactly, in two passes over the same blocks.

    The engine calls ``begin``, ``observe`` for every block, ``supply`` to split the budget between
    streams, ``settle``; then, as for any stream reducer, ``push`` for every block and ``finish``;
    last ``conclude`` and ``order`` on the kept rows. Memory is O(budget + block).
    """

    def begin(self, limit: int, rows: int, cols: int) -> Any:
        """Fresh state for frames of ``rows`` x ``cols`` cells and a budget of at most ``limit``."""
        ...

    def observe(self, state: Any, tokens: TokenBatch) -> None:
        """First pass over a block of scored tokens."""
        ...

    def supply(self, state: Any) -> Supply:
        """What the stream offers."""
        ...

    def settle(self, state: Any, budget: int, layout: Layout, per_frame: int | None) -> None:
        """Fix the choice: at most ``budget`` rows, at most ``per_frame`` of each frame."""
        ...

    def push(self, state: Any, carried: TokenBatch | None, new: TokenBatch) -> tuple[Any, TokenMap]:
        """Second pass: state and a map over [carried; new]."""
        ...

    def finish(self, state: Any, carried: TokenBatch) -> TokenMap:
        """Last map over the carried tokens."""
        ...

    def conclude(self, state: Any, kept: TokenBatch) -> TokenMap | None:
        """Map of the kept rows to a smaller grid, None where they stay as they are."""
        ...

    def order(self, state: Any, kept: TokenBatch) -> Tensor:
        """Rank int64 [K] of the kept rows: high ones are given up first."""
        ...


@runtime_checkable
class Projector(Protocol):
    """Makes new vectors non-linearly or changes D; states its receptive field."""

    def project(self, tokens: TokenBatch) -> TokenBatch:
        """New tokens."""
        ...


@runtime_checkable
class Exporter(Protocol):
    """Writes a cache in a consumer's form."""

    def write(self, cache: Any, target: Any) -> None:
        """Write ``target``."""
        ...
