"""Decide many times: from a bank entry to the rows a budget buys.

A window is the stretch of media one budget is settled over: everything for totals, 60 s for the
other forms (the remainder carries over). In a window each stream counts what it can offer, the
budget is split, and the last reducer of each chain meets its part exactly.
"""

from __future__ import annotations

from tokpipe.decide._audio import CHUNK, AudioSide
from tokpipe.decide._engine import Demand, Kept, candidates, check_layout, decide
from tokpipe.decide._feed import BLOCK, TowerFeed
from tokpipe.decide._fine import fine_picture
from tokpipe.decide._late_audio import LateAudio
from tokpipe.decide._late_video import each_picture, survivors_of
from tokpipe.decide._stream import is_stream, together
from tokpipe.decide._video import POOL, VideoSide, complete

__all__ = [
    "BLOCK",
    "CHUNK",
    "POOL",
    "AudioSide",
    "Demand",
    "Kept",
    "LateAudio",
    "TowerFeed",
    "VideoSide",
    "candidates",
    "check_layout",
    "complete",
    "decide",
    "each_picture",
    "fine_picture",
    "is_stream",
    "survivors_of",
    "together",
]
