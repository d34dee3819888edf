"""What an evaluation found: one row for each way of choosing pictures at each budget.

Letters: T dense frames, K pictures, C cells of a frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["recipe", "storyboard", "baseline", "oracle"]


@dataclass(frozen=True, slots=True)
class Coverage:
    """Best cosine of each dense frame to any picture, -1 to 1.

    Attributes:
        mean, p5, min: Over the dense frames; ``p5`` is the 5 % quantile.
    """

    mean: float
    p5: float
    min: float


@dataclass(frozen=True, slots=True)
class Events:
    """Annotated states that hold at least one picture.

    Attributes:
        states: States there are.
        hit: States with a picture in them.
    """

    states: int
    hit: int

    @property
    def recall(self) -> float:
        """Share of the states that were hit, 0 to 1."""
        return self.hit / self.states


@dataclass(frozen=True, slots=True)
class Legibility:
    """SSIM (luma) of pictures whose source frame is rich in text, against that frame.

    Attributes:
        mean, min: Over those pictures, at most 1; None where there are none.
        pictures: How many there are.
    """

    mean: float | None
    min: float | None
    pictures: int

    @staticmethod
    def of(values: list[float]) -> Legibility:
        """Sum up one SSIM for each picture."""
        if not values:
            return Legibility(None, None, 0)
        return Legibility(sum(values) / len(values), min(values), len(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way of choosing pictures at one budget.

    Attributes:
        way: Name of the recipe, the storyboard, or ``uniform``, ``random``, ``downsampled``,
            ``oracle``.
        budget: As it was asked for: ``8f`` or ``2048``.
        tokens: The budget in tokens of the default grid.
        used: Tokens it took; None where it does not count in tokens.
        pictures: Pictures it has.
        coverage: By name of the features.
        gap_closed: (coverage - uniform) / (oracle - uniform) of the means, by name of the
            features: 0 is no better than uniform, 1 as good as choosing with the features at
            hand; None where oracle - uniform is below 0.002.
        events: None without annotations, and for ways without one set of pictures.
        legibility: None where it was not measured.
    """

    way: str
    kind: Kind
    budget: str
    tokens: int
    used: int | None = None
    pictures: int
    coverage: Mapping[str, Coverage]
    gap_closed: Mapping[str, float | None]
    events: Events | None = None
    legibility: Legibility | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = asdict(self)
        if self.events is not None:
            found["events"]["recall"] = self.events.recall
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """Rows of one file.

    Attributes:
        input: The file as it was named.
        duration: Seconds, None when unknown.
        fps: Dense frames a second.
        dense_frames: T.
        cells: C of the default grid; a budget worth k frames is k x C.
        picture: Width and height all pictures are compared at.
        text_frames: Dense frames that are rich in text.
        features: Names of the features coverage was measured in.
        rows: By budget; recipes and storyboards first, then baselines and oracle.
        warnings: What the reader noted.
        seconds: Wall time: compress, measure, total.
    """

    input: str
    duration: float | None
    fps: float
    dense_frames: int
    cells: int
    picture: tuple[int, int]
    text_frames: int
    features: tuple[str, ...]
    rows: tuple[Row, ...]
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float]

    @property
    def budgets(self) -> list[str]:
        """Budgets in the order they were asked for."""
        return list(dict.fromkeys(row.budget for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [row.to_dict() for row in self.rows]
        named = {name: getattr(self, name) for name in type(self).__slots__}
        return {**named, "rows": rows, "seconds": dict(self.seconds)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """Means of one way at one budget over several files.

    Attributes:
        files: Files it was measured on.
        coverage, gap_closed, ssim: Means over those files that have the number.
    """

    way: str
    kind: Kind
    budget: str
    features: str
    files: int
    coverage: float
    gap_closed: float | None
    ssim: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def averages(reports: Sequence[EvalReport]) -> list[Average]:
    """Means over files, by budget, way and features, in the order they first appear."""
    groups: dict[tuple[str, Kind, str, str], list[Row]] = {}
    for report in reports:
        for row in report.rows:
            for features in report.features:
                groups.setdefault((row.budget, row.kind, row.way, features), []).append(row)
    return [
        Average(
            way=way, kind=kind, budget=budget, features=features, files=len(rows),
            coverage=sum(row.coverage[features].mean for row in rows) / len(rows),
            gap_closed=_mean(row.gap_closed[features] for row in rows),
            ssim=_mean(row.legibility.mean for row in rows if row.legibility is not None),
        )
        for (budget, kind, way, features), rows in groups.items()
    ]  # fmt: skip


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
