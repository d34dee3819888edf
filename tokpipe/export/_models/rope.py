"""Rotary positions (t, h, w) of the Qwen kinds, as named versions of their consumers count them.

A prompt is a row of spans (`Text`, `Pictures`, `Sound`, `Woven`) with every token the model would
be given; ``mrope_positions`` numbers them. A compressed prompt takes the columns of the tokens it
kept: ``positions[:, kept]``, and ``mrope_position_delta`` of those.

Versions differ (the same video from position 6 on; 4 steps of 1.5 s, 2 positions a second):

====================  ==============  ======================
version               t               next text
====================  ==============  ======================
transformers-4.57     6, 8, 10, 12    13, the largest + 1
transformers-5        6, 9, 12, 15    9, the start + max(h, w)
vllm                  6, 9, 12, 15    16, the largest + 1
====================  ==============  ======================

``transformers-5`` is 5.3 and later; 5.0 to 5.2 count as 4.57 does. SGLang counts as vLLM does
where it is not given positions. Qwen3-VL has one block (one ``Pictures`` of one step) per picture,
each after its timestamp, and all versions agree on it.

Source: transformers 4.57.6, 5.18, 5.24 (``get_rope_index``), vLLM 0.33.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Version = Literal["transformers-4.57", "transformers-5", "vllm"]
VERSIONS: tuple[str, ...] = get_args(Version)
#: Seconds: the coarsest time base of containers. A time short of a tick by no more has reached it.
_COARSE = 1e-3
#: Seconds: steps that differ by no more are one step, and not times cut to a time base.
_EXACT = 1e-6


@dataclass(frozen=True, slots=True)
class Text:
    """Ordinary tokens: one position each, the same in all three rows.

    Attributes:
        count: How many.
        shared: All have one position, as the two opening marks of sound and video in Qwen2.5-Omni.
    """

    count: int
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Pictures:
    """Whole pictures, row by row.

    Attributes:
        ticks: [T] positions of the pictures in time, from that of the span's start.
        rows: Tokens a picture is high.
        columns: Tokens it is wide.
    """

    ticks: Tensor
    rows: int
    columns: int

    def __len__(self) -> int:
        """Tokens."""
        return len(self.ticks) * self.rows * self.columns

    def places(self) -> Tensor:
        """[3, T * rows * columns] (t, h, w) from 0 on."""
        t = self.ticks.view(-1, 1, 1).expand(-1, self.rows, self.columns)
        h = torch.arange(self.rows).view(1, -1, 1).expand_as(t).to(t.dtype)
        w = torch.arange(self.columns).view(1, 1, -1).expand_as(t).to(t.dtype)
        return torch.stack([t, h, w]).flatten(1)


@dataclass(frozen=True, slots=True)
class Sound:
    """Sound tokens: one position each, the same in all three rows.

    Attributes:
        ticks: [N] positions from that of the span's start.
    """

    ticks: Tensor

    def __len__(self) -> int:
        """Tokens."""
        return len(self.ticks)

    def places(self) -> Tensor:
        """[3, N] from 0 on."""
        return self.ticks.expand(3, -1)


@dataclass(frozen=True, slots=True)
class Woven:
    """Pictures and the sound beneath them, in turns; see ``tokpipe.export._models.weave``.

    Attributes:
        laid: [3, N] from 0 on, in the order of the prompt.
        last: Tokens of the last turn.
    """

    laid: Tensor
    last: int

    def __len__(self) -> int:
        """Tokens."""
        return self.laid.shape[1]

    def places(self) -> Tensor:
        """[3, N] from 0 on."""
        return self.laid


Span = Text | Pictures | Sound | Woven


def mrope_positions(spans: Sequence[Span], version: Version = "transformers-5") -> Tensor:
    """Positions of every token of a prompt.

    Args:
        spans: The prompt from its first token on.
        version: The consumer whose counting is meant; matters only for what follows ``Pictures``.

    Returns:
        [3, L] rows t, h, w; int64, or float32 where a tick is no whole number (Qwen3-Omni).
    """
    made: list[Tensor] = []
    start: Tensor = torch.tensor(0)
    for span in spans:
        if isinstance(span, Text):
            if span.count == 0:
                continue
            line = torch.zeros(span.count, dtype=torch.int64)
            places = (line if span.shared else torch.arange(span.count)).expand(3, -1)
        elif len(span) == 0:
            continue
        else:
            places = span.places()
        made.append(places + start)
        start = start + _length(span, places, version)
    if not made:
        return torch.zeros(3, 0, dtype=torch.int64)
    return torch.cat(made, 1)


def mrope_position_delta(positions: Tensor) -> float:
    """What a server adds to the number of tokens so far to go on: largest position + 1 - L.

    Args:
        positions: [3, L], at least one token; of a compressed prompt, those that were kept.
    """
    return float(positions.max()) + 1 - positions.shape[1]


def _length(span: Span, places: Tensor, version: Version) -> Tensor:
    """How far behind a span's start the next one starts."""
    if isinstance(span, Pictures) and version == "transformers-5":
        return torch.tensor(max(span.rows, span.columns))
    if isinstance(span, Woven):
        # The models go on from the last turn, which need not hold the largest position.
        places = places[:, -span.last :]
    return places.max() + 1


def index_ticks(count: int) -> Tensor:
    """int64 [T] of Qwen2-VL: the number of the picture."""
    return torch.arange(count)


def time_ticks(
    times: Tensor,
    per_second: float,
    version: Version = "transformers-5",
    *,
    start: float | None = None,
    whole: bool = True,
) -> Tensor:
    """Positions of pictures by their seconds: Qwen2.5-VL, and the Omni models.

    Even times give exactly what the consumer counts from its one "seconds per grid". Times that
    are not even, which no consumer can say, give the position of each picture's own time; those cut
    to a time base of up to 1 ms, a time short of a tick by no more counts as having reached it.

    Args:
        times: float64 [T] seconds, rising.
        per_second: Positions a second (``tokens_per_second``, ``position_id_per_seconds``).
        version: ``transformers-4.57`` cuts the seconds between even pictures to a whole number.
            The Omni models do not, in any version: leave it out for them.
        start: Seconds of position 0; None for the first picture.
        whole: Cut to whole numbers, as all but Qwen3-Omni do.

    Returns:
        int64 [T], float32 with ``whole`` false.
    """
    times = times.double()
    origin = times[:1] if start is None else torch.tensor([start], dtype=torch.float64)
    count, passed = len(times), times - origin
    step = float(passed[-1] - passed[0]) / max(count - 1, 1) if count else 0.0
    off = float((passed - torch.arange(count) * step).abs().max()) if count else 0.0
    even = off < _COARSE / 2
    slack = 0.0 if off < _EXACT else _COARSE + _EXACT
    if even and version == "transformers-4.57":
        return torch.arange(count) * int(step + slack) * int(per_second)
    # Single precision, in which the models multiply.
    ticks = torch.arange(count) * (step * per_second) if even else (passed * per_second).float()
    if not whole:
        return ticks.float()
    if slack:
        # A picture of the next tick whose time was cut would share that of the one before.
        seconds = torch.arange(count).double() * step if even else passed
        ticks = torch.floor((seconds + slack) * per_second)
    return ticks.long()


def transformers_version(installed: str) -> Version:
    """The counting of an installed transformers, by its version number."""
    major, minor = (int(part) for part in installed.split(".")[:2])
    return "transformers-5" if (major, minor) >= (5, 3) else "transformers-4.57"
