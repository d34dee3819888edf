"""Break media files on purpose: cut them, patch their headers, damage or join their packets."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from pathlib import Path

import av

__all__ = [
    "cut_inside_packet",
    "damage_frames",
    "find_box",
    "find_chunk",
    "join_files",
    "patch_words",
    "video_packets",
]


def find_box(data: bytes, path: str) -> int:
    """Find the payload of the first ISO base media box at a path such as ``moov/trak/mdia/mdhd``.

    Args:
        data: The whole file; boxes must have 32-bit sizes.
        path: Four-letter box types from the top, separated by ``/``.

    Returns:
        Offset of the payload in ``data``.

    Raises:
        ValueError: There is no such box.
    """
    begin, end = 0, len(data)
    for kind in path.encode().split(b"/"):
        while begin + 8 <= end:
            size = int.from_bytes(data[begin : begin + 4], "big")
            if data[begin + 4 : begin + 8] == kind:
                begin, end = begin + 8, begin + size
                break
            begin += max(size, 8)
        else:
            raise ValueError(f"no box {path}")
    return begin


def find_chunk(data: bytes, name: bytes) -> int:
    """Find the payload of the first RIFF chunk with a name.

    Args:
        data: The whole file.
        name: Four bytes, for example ``b"avih"``.

    Returns:
        Offset of the payload in ``data``.

    Raises:
        ValueError: There is no such chunk.
    """
    return data.index(name) + 8


def patch_words(path: Path, words: Sequence[tuple[int, int]], *, byte_order: str = ">") -> None:
    """Overwrite 32-bit words of a file.

    Args:
        path: File to change.
        words: Pairs of offset and new unsigned value.
        byte_order: ``>`` big endian (ISO base media), ``<`` little endian (RIFF).
    """
    data = bytearray(path.read_bytes())
    for offset, value in words:
        struct.pack_into(f"{byte_order}I", data, offset, value)
    path.write_bytes(data)


def video_packets(path: Path) -> list[tuple[int, int]]:
    """List the first video stream's packets in file order.

    Args:
        path: A whole, undamaged file.

    Returns:
        Byte offset and size of each packet.
    """
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [(p.pos, p.size) for p in container.demux(stream) if p.size and p.pos is not None]


def cut_inside_packet(path: Path, number: int) -> None:
    """Cut a file in the middle of one video packet.

    Args:
        path: File to cut, its index before its samples.
        number: Packet of the first video stream, from 0; all packets before stay whole.
    """
    offset, size = video_packets(path)[number]
    with path.open("r+b") as file:
        file.truncate(offset + size // 2)


def damage_frames(path: Path, numbers: Sequence[int], *, count: int, seed: int = 0) -> None:
    """Overwrite random bytes inside some video packets.

    Args:
        path: File to damage.
        numbers: Packets of the first video stream, from 0, that may be hit.
        count: Bytes to overwrite, spread evenly over ``numbers``.
        seed: Seed of the places and values.
    """
    packets = video_packets(path)
    data = bytearray(path.read_bytes())
    source = random.Random(seed)  # noqa: S311
    for hit in range(count):
        offset, size = packets[numbers[hit % len(numbers)]]
        data[offset + source.randrange(size)] = source.randrange(256)
    path.write_bytes(data)


def join_files(path: Path, parts: Sequence[Path]) -> None:
    """Write files end to end into one and remove them.

    Args:
        path: File to write.
        parts: Files to join, in order.
    """
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
