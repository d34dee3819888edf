"""Features of a bank entry: towers on its pictures and its sound, with a store beside it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch

from tokpipe.cache.bank import Bank, bank_root
from tokpipe.cache.features import FeatureStore
from tokpipe.chain import Chain
from tokpipe.device import decode_threads, pick_device
from tokpipe.digest import chain as digest_chain
from tokpipe.encode._clip import RATE
from tokpipe.errors import MediaError, RecipeError
from tokpipe.grid import CELL
from tokpipe.tensors import Query
from tokpipe.towers import PictureFeatures, Running, SoundFeatures, needed_columns


class BankFeatures:
    """Towers of the chains that have one, on one entry; use as a context manager.

    Attributes:
        found: ``PictureFeatures`` and ``SoundFeatures`` by stream.
        query: The question as the tower of the pictures reads it.
    """

    def __init__(
        self, bank: Bank, key: str | None, chains: Mapping[str, Chain], running: Running,
        text: str | None = None,
    ) -> None:  # fmt: skip
        """Open the stores; towers are loaded when something must be encoded."""
        self.bank = bank
        self.found: dict[str, Any] = {}
        self.query: Query | None = None
        self._stack = ExitStack()
        try:
            for stream, made in chains.items():
                if made.late is not None and self._offers(stream):
                    self.found[stream] = self._open(stream, key, made.late, running)
            if text is not None:
                self._ask(text)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> BankFeatures:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the stores."""
        self._stack.close()

    @property
    def encoded(self) -> int:
        """Pictures that went through a tower in this run."""
        return self.found["video"].encoded if "video" in self.found else 0

    @property
    def seconds(self) -> float:
        """Seconds that loading towers and encoding took."""
        return float(sum(found.seconds for found in self.found.values()))

    def _offers(self, stream: str) -> bool:
        return bool(self.bank.num_frames if stream == "video" else self.bank.meta["cells"])

    def _open(self, stream: str, key: str | None, late: Chain, running: Running) -> Any:
        root, operator = bank_root(), late.encoder
        own = None if key is None else store_key(key, stream, late, running)
        store = self._stack.enter_context(FeatureStore(own, root))
        columns = needed_columns(late, operator.outline())
        if stream == "video":
            rows, cols = self.bank.meta["grid"][:2]
            threads = decode_threads(pick_device(running.device))
            pictures = partial(self.bank.pictures, threads=threads)
            return PictureFeatures(
                operator, (rows * CELL, cols * CELL), pictures, store, running, columns
            )
        if operator.outline().rate != RATE:
            raise MediaError(f"`{late.encoder_name}` wants sound at another rate than {RATE} Hz")
        return SoundFeatures(
            operator, int(self.bank.meta["samples"]), self._sound, store, running, columns
        )

    def _sound(self, start: int, stop: int) -> torch.Tensor:
        wave = self.bank.rows("audio", start, stop, np.dtype("<i2"))
        return torch.from_numpy(wave.astype(np.float32) / 32768)

    def _ask(self, text: str) -> None:
        features = self.found.get("video")
        if not isinstance(features, PictureFeatures):
            raise RecipeError(
                "--query needs an encoder with a text tower",
                hint="add --encoder, such as open_clip:ViT-B-32",
            )
        self.query = features.query(text)
        if self.query.space in features.outline.extras:
            features.columns |= {self.query.space}


def store_key(source: str, stream: str, late: Chain, running: Running) -> str:
    """Digest of all that the rows of a store depend on.

    Args:
        source: Key of the bank entry, or digest of the cache, that pictures and sound come from.
    """
    return digest_chain("features", source, stream, late.head, running.dtype, running.context)


def describe_tower(stream: str, late: Chain, features: Any) -> dict[str, Any]:
    """``tokpipe.encoder.S`` of a feature cache."""
    from tokpipe.chain import parameters_of

    outline = features.outline
    entry: dict[str, Any] = {
        "name": late.encoder_name, "params": parameters_of(late.encoder),
        "version": late.encoder.version, "weights": features.weights,
        "deepstack": outline.deepstack, "dtype": features.running.dtype, **outline.about,
    }  # fmt: skip
    if features.part is not None:
        entry["tower"] = dict(features.part)
    if stream == "video":
        places = features.places
        entry |= {
            "grid": [*places.grid], "tokens_per_picture": len(places),
            "picture": [*features.size],
            "context": features.running.context, "kept_cosine": features.cosine,
        }  # fmt: skip
    else:
        entry |= {"rate": outline.rate, "chunk": features.chunk}
    return entry


def kept_context(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The note on how near rows of the context ``kept`` are to those of whole pictures."""
    pictures = found.get("video")
    if pictures is None or pictures.cosine is None:
        return []
    text = f"mean cosine {pictures.cosine:.3f} between rows encoded from the kept part of a"
    return [("kept-context", f"{text} picture and from the whole")]


#: Name of a precision in a cache file.
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def cache_dtype(made: Chain, options: Any) -> str:
    """Safetensors dtype of a stream's rows: what its tower computes in, F16 for the signal."""
    return _DTYPES[options.running().dtype] if made.late is not None else "F16"
