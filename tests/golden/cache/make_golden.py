"""Make the golden caches of format 1.0 by hand: numpy and the standard library, not tokpipe.

    python tests/golden/cache/make_golden.py [FOLDER]

The files are released test vectors: run this only to add one, never to change one. The digests
are in tests/cache/test_golden.py. Picture and sound bytes depend on the versions of Pillow and
PyAV, so only the files without them repeat byte for byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

CODES = {"<f8": "F64", "<f4": "F32", "<f2": "F16", "<i8": "I64", "<i4": "I32", "|u1": "U8",
         "<u2": "BF16"}  # fmt: skip
SUFFIX = ".tokpipe.safetensors"
Tensors = dict[str, np.ndarray[Any, Any]]


def text(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def pack(tensors: Tensors, meta: dict[str, Any], raw: dict[str, Any] | None = None) -> bytes:
    """Lay the tensors out in the order given; features go last, on multiples of 64."""
    header: dict[str, Any] = {}
    digests, data = {}, b""
    for name, array in tensors.items():
        if name.endswith(".tokens") and len(data) % 64:
            gap = bytes(-len(data) % 64)
            pad = f"pad.{sum(n.startswith('pad.') for n in header)}"
            header[pad] = {"dtype": "U8", "shape": [len(gap)],
                           "data_offsets": [len(data), len(data) + len(gap)]}  # fmt: skip
            digests[pad] = digest(gap)
            data += gap
        body = array.tobytes()
        header[name] = {"dtype": CODES[array.dtype.str], "shape": list(array.shape),
                        "data_offsets": [len(data), len(data) + len(body)]}  # fmt: skip
        digests[name] = digest(body)
        data += body
    strings = {k: v if isinstance(v, str) else text(v) for k, v in meta.items()}
    digests["__metadata__"] = digest(text(strings).encode())
    header["__metadata__"] = {**strings, "tokpipe.digest": text(digests)}
    for name, entry in (raw or {}).items():
        header[name] = {**header.get(name, {}), **entry}
    head = text(header).encode()
    head += b" " * (-(len(head) + 8) % 64)
    return struct.pack("<Q", len(head)) + head + data


def stream(name: str, at: list[float], cells: list[list[int]], rank: list[int]) -> Tensors:
    n, video = len(at), name == "video"
    times = np.array(at, "<f8")
    frame = np.stack([np.arange(n)] * 2, 1) if video else np.full((n, 2), -1)
    columns: Tensors = {
        "at": times,
        "pts": np.stack([times, times + 0.25], 1),
        "frame": frame.astype("<i8"),
        "cell": np.array(cells, "<i4"),
        "extent": np.ones((n, 3), "<i4"),
        "tile": np.zeros(n, "<i4"),
        "mass": np.full(n, 1.5, "<f4"),
        "segment": np.full(n, -1, "<i4"),
        "score": np.linspace(0, 1, n).astype("<f4"),
        "rank": np.array(rank, "<i4"),
        "kind": np.zeros(n, "u1"),
        "tokens": (np.arange(n * 3).reshape(n, 3) / 4 - 1).astype("<f2"),
    }  # fmt: skip
    return {f"{name}.{key}": value for key, value in columns.items()}


def metadata(domain: str, rows: dict[str, int]) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "tokpipe.format": "1.0",
        "tokpipe.writer": "by hand",
        "tokpipe.domain": domain,
        "tokpipe.layout": "ragged",
        "tokpipe.source": {"name": "höhe.mp4", "size": 7, "duration": 2.0},
        "tokpipe.recipe": {"steps": []},
        "tokpipe.recipe_sha256": hashlib.sha256(b"by hand").hexdigest(),
    }
    meta["tokpipe.counts"] = {
        s: {"source": 1.5 * n + 2, "dropped": 2, "kept": n} for s, n in rows.items()
    }
    return meta | {f"tokpipe.encoder.{s}": {"name": "hand"} for s in rows}


def feature() -> tuple[Tensors, dict[str, Any]]:
    video = stream("video", [0.0, 0.0, 1.0, 1.0], [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]],
                   [5, 0, 4, 1])  # fmt: skip
    audio = stream("audio", [0.5, 1.5], [[-1, -1, -1]] * 2, [2, 3])
    return order({**video, **audio}), metadata("feature", {"video": 4, "audio": 2})


def order(tensors: Tensors) -> Tensors:
    """Columns by falling element size, then blobs, then features."""

    def key(name: str) -> tuple[int, int]:
        blob = name in ("video.atlas", "audio.clip")
        return 2 if name.endswith(".tokens") else int(blob), -tensors[name].dtype.itemsize

    return {name: tensors[name] for name in sorted(tensors, key=key)}


def signal() -> tuple[Tensors, dict[str, Any]]:
    """A 1 x 2 grid: red at 0 s, then green at 1 s beside it; 0.1 s of silence."""
    import av
    from PIL import Image

    page = np.zeros((64, 64, 3), np.uint8)
    page[:32, :32], page[:32, 32:] = (200, 0, 0), (0, 200, 0)
    picture, sound = io.BytesIO(), io.BytesIO()
    Image.fromarray(page).save(picture, format="WEBP", lossless=True)
    with av.open(sound, "w", format="ogg") as container:
        out = container.add_stream("libopus", rate=16000, layout="mono")
        out.codec_context.flags |= 1 << 23
        for index in range(5):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 320), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 16000, 320 * index
            container.mux(out.encode(frame))
        container.mux(out.encode(None))
    tensors = stream("video", [0.0, 1.0], [[0, 0, 0], [1, 0, 1]], [0, 1])
    tensors |= stream("audio", [0.0, 0.04], [[-1, -1, -1]] * 2, [2, 3])
    atlas = picture.getvalue()
    tensors["video.atlas"] = np.frombuffer(atlas, "u1")
    tensors["video.atlas_offsets"] = np.array([0, len(atlas)], "<i8")
    tensors["video.atlas_box"] = np.array([[0, 2, 2, 28], [0, 34, 2, 28]], "<i4")
    tensors["audio.clip"] = np.frombuffer(sound.getvalue(), "u1")
    tensors["audio.clip_offset"] = np.array([0, 640], "<i8")
    meta = metadata("signal", {"video": 2, "audio": 2})
    meta["tokpipe.grid"] = {"rows": 1, "cols": 2, "cell": 28}
    meta["tokpipe.atlas"] = {"codec": "webp", "slots": [2, 2], "slot": 32, "margin": 2, "cell": 28}
    meta["tokpipe.clip"] = {"codec": "opus", "container": "ogg", "rate": 16000, "samples": 1600}
    return order(tensors), meta


def bf16() -> tuple[Tensors, dict[str, Any]]:
    tensors, meta = feature()
    for name in ("video.tokens", "audio.tokens"):
        tensors[name] = (tensors[name].astype("<f4").view("<u4") >> 16).astype("<u2")
    return tensors, meta


def minor() -> tuple[Tensors, dict[str, Any]]:
    """A later minor version: a tensor and keys that 1.0 does not know."""
    tensors, meta = feature()
    tensors = {
        "video.colour": np.arange(4, dtype="<i4"),
        "depth.map": np.zeros(2, "<f8"),
        **tensors,
    }
    return tensors, {**meta, "tokpipe.format": "1.7", "tokpipe.future": "whatever"}


def files() -> dict[str, bytes]:
    tensors, meta = feature()
    good = pack(tensors, meta)
    late = {**tensors, "video.at": tensors["video.at"][::-1].copy()}
    heavy = {**tensors, "video.mass": tensors["video.mass"] * 2}
    wild = {**tensors, "video.tokens": np.full((4, 3), np.inf, "<f2")}
    short = {k: v for k, v in tensors.items() if k != "video.mass"}
    wide = {**tensors, "video.pts": np.zeros((4, 3), "<f8")}
    return {
        "feature": good,
        "bf16": pack(*bf16()),
        "minor": pack(*minor()),
        "bad-version": pack(tensors, {**meta, "tokpipe.format": "2.0"}),
        "bad-codec": pack(tensors, {**meta, "tokpipe.quant": {"video": {"codec": "int3"}}}),
        "bad-domain": pack(tensors, {**meta, "tokpipe.domain": "other"}),
        "bad-order": pack(late, meta),
        "bad-mass": pack(heavy, meta),
        "bad-finite": pack(wild, meta),
        "bad-column": pack(short, meta),
        "bad-shape": pack(wide, meta),
        "bad-hole": pack(tensors, meta, {"video.at": {"data_offsets": [8, 40]}}),
        "bad-tail": good[:-40] + bytes(40),
        "bad-cut": good[:-1],
        "bad-extra": good + b"\0",
        "bad-foreign": pack(tensors, {"format": "pt"}),
    }


def main(folder: Path) -> None:
    for name, data in {**files(), "signal": pack(*signal())}.items():
        (folder / (name + SUFFIX)).write_bytes(data)
        print(f'    "{name}": "{hashlib.sha256(data).hexdigest()}",')


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
