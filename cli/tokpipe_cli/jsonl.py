"""Events for programs: one JSON object a line on stdout, every one with ``v`` and ``event``.

Commands over many inputs (compress, plan, probe, verify, ops list) end with exactly one
``summary``. Commands about one thing (inspect, doctor, ops show) print one object.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokpipe.errors import TokpipeError

VERSION = 1
_FRAMES = ("decoded", "sampled", "encoded", "kept")
_SECONDS = ("scout", "decode", "encode", "compress", "write", "total")


def emit(event: str, **fields: Any) -> None:
    """Write one event."""
    # ASCII only: names that are no text, and terminals of any encoding, stay valid JSON.
    sys.stdout.write(json.dumps({"v": VERSION, "event": event, **_plain(fields)}) + "\n")
    sys.stdout.flush()


def emit_error(error: TokpipeError) -> None:
    """Write an ``error`` event."""
    emit("error", error=error.to_dict())


def emit_item(record: dict[str, Any], error: TokpipeError | None = None) -> None:
    """Write the ``item`` event of one input; every field is there whatever became of it."""
    record["frames"] = dict.fromkeys(_FRAMES, 0) | record["frames"]
    record["seconds"] = dict.fromkeys(_SECONDS, 0.0) | record["seconds"]
    emit("item", **record, **({"error": error.to_dict()} if error else {}))


def summarise(statuses: Sequence[str], **more: Any) -> dict[str, Any]:
    """Counts of the ``summary`` event: done (without warnings), warned, failed, skipped."""
    counts = {
        name: sum(s == name for s in statuses) for name in ("done", "warned", "failed", "skipped")
    }
    return {**counts, **more}


def _plain(value: Any) -> Any:
    """Numbers that JSON cannot write become null, tuples lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
