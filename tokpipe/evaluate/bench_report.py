"""The JSON that a comparison writes, as pydantic models; `Report.model_json_schema()` prints it.

Times are seconds, sizes MiB. *Beyond* means after the imports of that same process; what imports
cost alone is measured in processes that do nothing else.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

VERSION = 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Usage(_Strict):
    """A process that only imported."""

    wall: float
    cpu: float
    peak_mb: float


class Run(Usage):
    """A process that did the work; ``frames`` are pictures it decoded or asked for."""

    cpu_beyond: float
    wall_beyond: float
    frames: int | None = None


class Competitor(_Strict):
    """One way to read the file and what it cost, run by run.

    ``detail`` is what the last run of ours said of itself: tokens, frames, seconds of its stages.
    """

    name: str
    ours: bool
    what: str
    status: Literal["done", "skipped", "failed"] = "done"
    reason: str | None = None
    imports: list[Usage] = []
    runs: list[Run] = []
    median: Run | None = None
    detail: dict[str, Any] = {}


class Ratio(_Strict):
    """Ours over theirs, beyond imports, a pair for each round; below 1 ours is cheaper."""

    ours: str
    theirs: str
    cpu: list[float]
    cpu_median: float
    wall: list[float]
    wall_median: float


class Recall(_Strict):
    """Of the annotated events, the part with at least one kept time before the next event.

    Attributes:
        events: Annotated times.
        moments: Different times of our rows; ``tokens`` how many rows.
        ours: Recall of ours; rows inside the annotation's ``ignore_box`` do not count.
        decord_same_moments: Recall of as many pictures of the decord loop, evenly chosen.
        decord_same_tokens: Recall of as many whole pictures of it as our rows are worth.
        decord_all: Recall of all pictures of the loop.
        scenedetect: Recall of the middle pictures of PySceneDetect's scenes.
    """

    events: int
    moments: int
    tokens: int
    ours: float
    decord_same_moments: float | None = None
    decord_same_tokens: float | None = None
    decord_all: float | None = None
    scenedetect: float | None = None


class FileResult(_Strict):
    """All competitors on one file, with a label of the caller's; recall by the name of ours."""

    file: str
    label: str = ""
    duration: float | None
    video: str
    budget: int
    rounds: int
    competitors: list[Competitor]
    ratios: list[Ratio]
    recall: dict[str, Recall] = {}


class Report(_Strict):
    """A whole comparison with the conditions it was taken under."""

    version: int = VERSION
    conditions: dict[str, Any]
    asked: dict[str, Any]
    files: list[FileResult]
