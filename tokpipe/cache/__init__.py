"""The token cache: one open safetensors file a media; written, read and checked without torch."""

from tokpipe.cache.reader import RebuiltFrame, TokenCache, TokenSlice, open_cache
from tokpipe.cache.writer import CacheWriter, sweep_stale

__all__ = [
    "CacheWriter",
    "RebuiltFrame",
    "TokenCache",
    "TokenSlice",
    "open_cache",
    "sweep_stale",
]
