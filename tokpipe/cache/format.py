"""The cache format as data: columns, metadata keys, limits and dtypes; prose in docs/format.md.

Letters in shapes: N rows of the stream, D width, M members, P atlas pages, G segments,
Q transcript lines, K thumbnails, B bytes (free). ``"X+1"`` is a vector of offsets of X things.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

#: Version written by this code, ``major.minor``. Readers refuse another major.
FORMAT_VERSION = "1.0"
SUFFIX = ".tokpipe.safetensors"
#: The file in a folder that makes it a packed dataset.
DATASET_INFO = "tokpipe-dataset.json"
#: Longest header in bytes, the limit of safetensors itself.
MAX_HEADER_BYTES = 100_000_000
#: The data section and every feature tensor start at a multiple of this many bytes in the file.
ALIGNMENT = 64
#: Name prefix of zero-filled U8 tensors that carry alignment only; readers skip them.
PAD_PREFIX = "pad."
#: Largest finite value of F16; a token beyond it must be stored as BF16 or F32.
F16_MAX = 65504.0

STREAMS: tuple[str, str] = ("video", "audio")
DOMAINS: tuple[str, str] = ("signal", "feature")
LAYOUTS: tuple[str, str, str] = ("ragged", "frames", "grid")
#: Codecs of ``tokpipe.quant`` this version reads; any other is refused, never guessed.
QUANT_CODECS: frozenset[str] = frozenset({"none"})
ATLAS_CODECS: dict[str, str] = {"webp": "WEBP", "png": "PNG", "jpeg": "JPEG"}
#: Highest code of the ``kind`` column (kept, merged, pooled, newline, separator).
KIND_MAX = 4
#: Kinds below this stand for source tokens and have mass > 0; from here on mass may be 0.
KIND_LAYOUT = 3

#: numpy dtype of each safetensors dtype the format uses; BF16 is read as its bit pattern.
NUMPY_DTYPES: dict[str, np.dtype[np.generic]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
}
#: Bytes an element takes, also for dtypes that only foreign tensors have.
ITEM_BYTES: dict[str, int] = {
    **{name: dtype.itemsize for name, dtype in NUMPY_DTYPES.items()},
    "BOOL": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "U32": 4, "U64": 8, "C64": 8,
}  # fmt: skip

Need = Literal["always", "signal", "optional"]
Dim = int | str


@dataclass(frozen=True, slots=True)
class Column:
    """One tensor of the table.

    Attributes:
        name: Name without the stream prefix, or the whole name of a shared tensor.
        dtypes: Safetensors dtypes allowed.
        shape: Letters and fixed sizes.
        need: ``always``, ``signal`` (required in the signal domain) or ``optional``.
        meaning: One line for people.
    """

    name: str
    dtypes: tuple[str, ...]
    shape: tuple[Dim, ...]
    need: Need
    meaning: str

    @property
    def per_row(self) -> bool:
        """One entry a token."""
        return self.shape[0] == "N"


FEATURE_DTYPES = ("F32", "BF16", "F16")

_BOTH: tuple[Column, ...] = (
    Column("tokens", FEATURE_DTYPES, ("N", "D"), "always", "feature; signal domain: descriptor"),
    Column("at", ("F64",), ("N",), "always", "the token's own time: its anchor's pts, seconds"),
    Column("pts", ("F64",), ("N", 2), "always", "start and stop of all it stands for, seconds"),
    Column("frame", ("I64",), ("N", 2), "always", "first and last decoded frame, -1 none"),
    Column("cell", ("I32",), ("N", 3), "always", "(t, y, x) in the encoder's grid, -1 none"),
    Column("extent", ("I32",), ("N", 3), "always", "size (t, y, x) in cells of the source grid"),
    Column("tile", ("I32",), ("N",), "always", "0 whole picture, else crop number"),
    Column("mass", ("F32",), ("N",), "always", "source tokens represented"),
    Column("kind", ("U8",), ("N",), "always", "0 kept 1 merged 2 pooled 3 newline 4 separator"),
    Column("segment", ("I32",), ("N",), "always", "row of the segment table, -1 none"),
    Column("score", ("F32",), ("N",), "always", "NaN when the method has none"),
    Column("rank", ("I32",), ("N",), "always", "rank < n is the subset for n; joint over streams"),
    Column("members", ("I64",), ("M",), "optional", "source token ids, row after row"),
    Column("members_offsets", ("I64",), ("N+1",), "optional", "where each row's members start"),
)

#: Tensors of each stream, name without prefix -> column. ``deepstack_1...k`` are added by name.
STREAM_COLUMNS: dict[str, dict[str, Column]] = {
    "video": {
        c.name: c
        for c in (
            *_BOTH,
            Column("atlas", ("U8",), ("B",), "signal", "encoded pages end to end"),
            Column("atlas_offsets", ("I64",), ("P+1",), "signal", "where each page starts"),
            Column("atlas_box", ("I32",), ("N", 4), "signal", "(page, x, y, size); page -1 none"),
        )
    },
    "audio": {
        c.name: c
        for c in (
            *_BOTH,
            Column("clip", ("U8",), ("B",), "signal", "kept spans as one encoded stream"),
            Column("clip_offset", ("I64",), ("N",), "signal", "sample of the token in the clip"),
        )
    },
}

#: Tensors that belong to no stream. A group (name up to the dot) is there whole or not at all.
SHARED_COLUMNS: dict[str, Column] = {
    c.name: c
    for c in (
        Column("segment.pts", ("F64",), ("G", 2), "optional", "start and stop, seconds"),
        Column("segment.rows", ("I64",), ("G", 4), "optional", "video [a, b), audio [a, b) rows"),
        Column("text.utf8", ("U8",), ("B",), "optional", "transcript lines end to end"),
        Column("text.offsets", ("I64",), ("Q+1",), "optional", "where each line starts"),
        Column("text.pts", ("F64",), ("Q", 2), "optional", "start and stop of each line, seconds"),
        Column("thumb.data", ("U8",), ("B",), "optional", "small pictures end to end"),
        Column("thumb.offsets", ("I64",), ("K+1",), "optional", "where each picture starts"),
        Column("thumb.pts", ("F64",), ("K",), "optional", "time of each picture, seconds"),
    )
}


@dataclass(frozen=True, slots=True)
class MetaKey:
    """One key of ``__metadata__``.

    Attributes:
        form: ``text`` is stored as it is, ``json`` as canonical JSON of an object or list.
        need: ``always``; ``video`` or ``audio`` where that stream is there; ``signal-video``,
            ``signal-audio`` the same in the signal domain; ``optional``.
        meaning: One line for people.
    """

    form: Literal["text", "json"]
    need: Literal["always", "video", "audio", "signal-video", "signal-audio", "optional"]
    meaning: str


METADATA: dict[str, MetaKey] = {
    "tokpipe.format": MetaKey("text", "always", "major.minor"),
    "tokpipe.writer": MetaKey("text", "always", "version of the program that wrote the file"),
    "tokpipe.domain": MetaKey("text", "always", "signal or feature"),
    "tokpipe.layout": MetaKey("text", "always", "ragged, frames or grid"),
    "tokpipe.source": MetaKey("json", "always", "basename, size, fingerprint, duration, streams"),
    "tokpipe.recipe": MetaKey("json", "always", "every option that changes the tokens"),
    "tokpipe.recipe_sha256": MetaKey("text", "always", "digest of the recipe"),
    "tokpipe.counts": MetaKey("json", "always", "per stream: source, dropped, kept"),
    "tokpipe.digest": MetaKey("json", "always", "sha256 of every tensor and of the metadata"),
    "tokpipe.encoder.video": MetaKey("json", "video", "which encoder made the video tokens"),
    "tokpipe.encoder.audio": MetaKey("json", "audio", "which encoder made the audio tokens"),
    "tokpipe.grid": MetaKey("json", "signal-video", "rows, cols, cell in pixels, aspect_error"),
    "tokpipe.atlas": MetaKey("json", "signal-video", "codec, slots, slot, margin, cell"),
    "tokpipe.clip": MetaKey("json", "signal-audio", "codec, container, rate, context, samples"),
    "tokpipe.quant": MetaKey("json", "optional", "per stream: codec; absent is none"),
    "tokpipe.clock": MetaKey("json", "optional", "zero and the start of each stream, seconds"),
    "tokpipe.decode": MetaKey("json", "optional", "backend, versions, damage, normalisations"),
    "tokpipe.warnings": MetaKey("json", "optional", "what the run warned about"),
    "tokpipe.speech": MetaKey("json", "optional", "[start, stop] seconds where sound is heard"),
    "tokpipe.thumb": MetaKey("json", "optional", "mime and width of the small pictures"),
}
#: Name under which ``tokpipe.digest`` holds the digest of all other metadata.
METADATA_DIGEST = "__metadata__"


def lookup(name: str) -> tuple[str | None, Column] | None:
    """Find a tensor's stream (None: shared) and column; None when the format has no such name."""
    if name in SHARED_COLUMNS:
        return None, SHARED_COLUMNS[name]
    stream, _, column = name.partition(".")
    if stream not in STREAM_COLUMNS:
        return None
    if column in STREAM_COLUMNS[stream]:
        return stream, STREAM_COLUMNS[stream][column]
    if deepstack_level(column) is not None:
        return stream, Column(column, FEATURE_DTYPES, ("N", "D"), "optional", "deepstack rows")
    return None


def deepstack_level(column: str) -> int | None:
    """``deepstack_3`` -> 3; None for any other name."""
    head, _, digits = column.partition("deepstack_")
    if head or not digits.isascii() or not digits.isdecimal() or digits.startswith("0"):
        return None
    return int(digits) if len(digits) < 4 else None


def is_feature(name: str) -> bool:
    """The tensor holds token features (tokens or deepstack rows)."""
    found = lookup(name)
    return found is not None and found[1].dtypes == FEATURE_DTYPES


def bind(shape: Sequence[int], spec: Sequence[Dim], sizes: dict[str, int]) -> str | None:
    """Match a shape with its letters.

    Args:
        shape: Shape found.
        spec: Letters, ``"X+1"`` and fixed sizes.
        sizes: Letters known so far; new ones are added. ``B`` is free.

    Returns:
        None when it fits, else what was expected, for an error message.
    """
    expected = "[" + ", ".join(str(d) for d in spec) + "]"
    if len(shape) != len(spec):
        return expected
    for size, dim in zip(shape, spec, strict=True):
        if isinstance(dim, int):
            if size != dim:
                return expected
            continue
        letter, _, plus = dim.partition("+")
        value = size - int(plus or 0)
        if value < 0 or (letter != "B" and sizes.setdefault(letter, value) != value):
            return f"{expected} with {letter} = {sizes.get(letter, 'at least 0')}"
    return None


def bf16_to_f32(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Widen bfloat16 bit patterns to float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def is_finite(array: npt.NDArray[np.generic], dtype: str) -> bool:
    """No NaN or infinity in a block of features of safetensors dtype ``dtype``."""
    if dtype == "BF16":
        return bool(((array.astype(np.uint16, copy=False) & 0x7F80) != 0x7F80).all())
    return bool(np.isfinite(array.astype(NUMPY_DTYPES[dtype], copy=False)).all())
