"""Plain descriptions of media and tokens; nothing here imports torch.

Units: seconds (float) from the media's own zero, hertz, pixels after rotation. The zero is the
container's start time if positive, else 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

Modality = Literal["video", "audio"]
MODALITIES: tuple[Modality, Modality] = ("video", "audio")
#: Value of ``TokenBatch.modality`` per stream name.
MODALITY_CODE = {"video": 0, "audio": 1}
Layout = Literal["ragged", "frames", "grid"]
LAYOUTS: tuple[Layout, ...] = ("ragged", "frames", "grid")
#: How much context ``decide`` must see; the engine gathers it.
Scope = Literal["frame", "window", "stream", "video"]

#: Codes of notes that mean something of the media is lost or doubtful.
SERIOUS = frozenset(
    (
        "damaged",
        "truncated",
        "timestamp-reset",
        "audio-gap",
        "audio-overlap",
        "thin-audio",
        "thin-video",
        "size-change",
    )
)

#: Part of a picture's tiles that look like text from which it counts as rich in text.
TEXT_RICH = 0.12
#: Score of a cell, in borders of novel, under which it looks the same as what is shown.
VISIBLE = 0.25
#: Codes of the ``kind`` column.
KIND_KEPT, KIND_MERGED, KIND_POOLED, KIND_NEWLINE, KIND_SEPARATOR = range(5)


#: Where a method runs in its paper: on pixels, inside the encoder, on its output, in the LLM.
Where = Literal["pixels", "encoder", "outputs", "llm"]

#: Extra columns operators may need, by name: what they hold. Letters: N tokens, H heads.
EXTRAS = {
    "attention": "attention of the class token (or pooling head) to each token, deep layer, "
    "[N] or [N, H]",
    "attention_shallow": "the same from a shallow layer, [N] or [N, H]",
    "received": "attention each token receives, mean over heads and queries, deep layer, [N]",
    "received_middle": "the same from a middle layer, [N]",
    "prompt_attention": "attention of the LLM's last prompt token to each token, [N] or [N, H]",
    "attention_rows": "attention of each token to all tokens of its item, [N, H, N], or of the R "
    "positions it was pooled from, [N, R, H, R x N]",
    "keys": "attention keys, [N, D'] or [N, H, D']",
    "queries": "attention queries, [N, D'] or [N, H, D']",
    "frame_embedding": "pooled vector of the token's frame, [N, E]",
    "text_space": "token projected into the space of the text embedding, [N, E]",
    "spatial": "code of position and depth, [N, D']",
    "layer_shift": "length of a token's change across an MLP block, [N]",
    "patch_pixels": "pixel values of the cell, [N, P]",
    "groups": "a group of tokens found elsewhere, such as principal components, [N]",
    "pruned": "tokens given up by an earlier step that a cluster may take back, bool [N]",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """One video stream as the header describes it (never trusted for allocation).

    Attributes:
        index: Stream index in the container.
        width, height: Pixels after rotation, before pixel aspect.
        rotation: Degrees clockwise the decoded picture is turned for display: 0, 90, 180, 270.
        pixel_aspect: Width over height of a pixel, after rotation.
        frame_rate: Average rate in hertz, None when the header has none.
        vfr: The header's average and base rates disagree.
        start: Raw start time in seconds of the container's own clock, None when unknown.
    """

    index: int
    codec: str
    width: int
    height: int
    time_base: Fraction
    frame_rate: Fraction | None = None
    vfr: bool = False
    rotation: int = 0
    pixel_aspect: Fraction = Fraction(1)
    pixel_format: str | None = None
    transfer: str = "unspecified"
    interlaced: bool = False
    start: float | None = None
    duration: float | None = None
    language: str | None = None

    @property
    def hdr(self) -> bool:
        """The transfer function is PQ or HLG."""
        return self.transfer in ("pq", "hlg")

    @property
    def display_size(self) -> tuple[float, float]:
        """Width and height in square pixels."""
        return self.width * float(self.pixel_aspect), float(self.height)


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioInfo:
    """One audio stream as the header describes it."""

    index: int
    codec: str
    sample_rate: int
    channels: int
    time_base: Fraction
    start: float | None = None
    duration: float | None = None
    language: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaInfo:
    """What a file holds, without decoding it.

    Attributes:
        name: Basename of the file; a cache never stores its folder.
        fingerprint: Size and SHA-256 of the first, middle and last MiB, see ``digest``.
        duration: Seconds from zero to the end of the last stream, None when the header has none
            or an absurd one.
        zero: Container clock in seconds that counts as 0.0 (its start time if positive).
        start: The container's raw start time in seconds.
        video, audio: The chosen streams, None where the file has none.
        other_streams: One short line for each stream that was not chosen.
        warnings: ``(code, message)`` of everything that will be normalised or looks wrong.
    """

    name: str
    container: str
    fingerprint: str
    size: int
    duration: float | None = None
    zero: float = 0.0
    start: float | None = None
    video: VideoInfo | None = None
    audio: AudioInfo | None = None
    other_streams: tuple[str, ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpec:
    """What a stream of tokens looks like before any exists: lets ``plan`` count.

    Attributes:
        tokens: Tokens in the whole stream, None when the length is unknown.
        exact: ``tokens`` is the count, not an upper bound.
        steps: Frames (video) or 1 (audio) the tokens fall into, None when unknown.
        grid: Rows and columns of one frame; (1, 1) for audio.
        extras: Names of the extra columns offered.
    """

    modality: Modality
    dim: int
    dtype: str = "F16"
    tokens: int | None = None
    exact: bool = True
    steps: int | None = None
    grid: tuple[int, int] = (1, 1)
    extras: tuple[str, ...] = ()

    @property
    def cells(self) -> int:
        """Cells of one step."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpec:
    """One step of a recipe: an operator's name and its parameters, canonical."""

    use: str
    params: dict[str, Any] = field(default_factory=dict)
