"""One loaded tower for all kinds of sound, chunk by chunk; spans of tokens; hooks.

A family says how many tokens a length gives, what the network is fed and which of its outputs are
tokens. Every chunk runs on its own, so that no token depends on its neighbours in a batch.

Letters: L samples, n tokens of a chunk, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tokpipe.encode._attend import Seen, watching
from tokpipe.encode._compiled import quiet_compiler
from tokpipe.encode._hf.load import placed
from tokpipe.encode._log_mel import clean
from tokpipe.encode._tower import Encoded, Outline
from tokpipe.encode._weights import digest_of

SAMPLE_RATE = 16_000


class Sound(Protocol):
    """A kind of sound tower, made from its configuration.

    Attributes:
        settings: The operator's parameters; ``layer`` is one of them.
        chunk: Samples of a chunk.
        layers: Dotted name of the tower's list of blocks.
        precise: Parameters of the tower that stay float32, as the library keeps them.
        hooked: Tokens are caught inside the tower, which a compiled one does not show.
    """

    settings: Any
    chunk: int
    layers: str
    precise: tuple[str, ...]

    @property
    def hooked(self) -> bool:
        """See the class."""
        ...

    def outline(self) -> Outline:
        """What a tower gives."""
        ...

    def times(self, samples: int) -> Tensor:
        """float64 [n, 2] seconds, see ``AudioTower.times``."""
        ...

    def build(self) -> tuple[Any, Any]:
        """Tower and projector (None where there is none) with their weights, on the CPU."""
        ...

    def features(self, wave: Tensor) -> Tensor:
        """What the network is fed for a chunk float32 [L], float32 on the wave's device."""
        ...

    def tokens(self, tower: Any, projector: Any, features: Tensor, samples: int) -> Tensor:
        """Tokens [n, D] of a chunk of ``samples``; n is that of ``times``."""
        ...

    def attending(self, tower: Any) -> nn.Module:
        """The attention module that columns are made from."""
        ...

    def columns(
        self, module: nn.Module, seen: Seen, samples: int, wanted: frozenset[str]
    ) -> dict[str, Tensor]:
        """Columns [1, n, ...] among those of the outline, from what that module was given."""
        ...


@dataclass(slots=True)
class SoundTower:
    """A loaded tower for sound; see ``_tower.AudioTower``.

    Attributes:
        family: What it is.
        tower, projector: The networks on their device.
        fast: The tower as it runs when nothing is caught inside it; compiled if asked for.
        weights: Its digest.
        device, dtype: Where and in what it runs.
    """

    outline: Outline
    chunk: int
    family: Sound
    tower: Any
    fast: Any
    projector: Any
    weights: str
    device: torch.device
    dtype: torch.dtype

    def times(self, samples: int) -> Tensor:
        """float64 [n, 2] seconds from the chunk's start each token stands for."""
        return self.family.times(samples)

    @torch.inference_mode()
    def encode(self, waves: list[Tensor], columns: frozenset[str] = frozenset()) -> list[Encoded]:
        """Tokens of chunks float32 [L], L at most ``chunk``, each on its own.

        Raises:
            ValueError: A chunk is longer than ``chunk``.
        """
        wanted = columns & {*self.outline.extras}
        return [self._one(wave, wanted) for wave in waves]

    def _one(self, wave: Tensor, wanted: frozenset[str]) -> Encoded:
        samples = wave.shape[0]
        if samples > self.chunk:
            raise ValueError(f"SoundTower.encode: {samples} samples, a chunk has {self.chunk}")
        if not len(self.times(samples)):
            return self._nothing(wanted)
        features = self.family.features(clean(wave.to(self.device))).to(self.dtype)
        if not wanted:
            tokens = self.family.tokens(self.fast, self.projector, features, samples)
            return Encoded(data=tokens[None])
        module = self.family.attending(self.tower)
        with watching({0: module}) as seen:
            tokens = self.family.tokens(self.tower, self.projector, features, samples)
        made = self.family.columns(module, seen[0], samples, wanted)
        return Encoded(data=tokens[None], columns=made)

    def _nothing(self, wanted: frozenset[str]) -> Encoded:
        """A chunk without tokens; its columns have the shape of one that has some."""
        empty = torch.zeros((1, 0, self.outline.dim), dtype=self.dtype, device=self.device)
        if not wanted:
            return Encoded(data=empty)
        some = self._one(torch.zeros(self.chunk), wanted).columns
        return Encoded(data=empty, columns={name: value[:, :0] for name, value in some.items()})


def load_tower(
    family: Sound,
    device: torch.device,
    dtype: torch.dtype,
    *,
    compile: bool,  # noqa: A002
) -> SoundTower:
    """Read the weights, take their digest, move the networks."""
    tower, projector = family.build()
    weights = digest_of(tower, projector)
    if family.settings.layer >= 0:
        # Blocks after the one that is wanted neither run nor take memory.
        owner, _, leaf = family.layers.rpartition(".")
        blocks = tower.get_submodule(family.layers)[: max(1, family.settings.layer)]
        setattr(tower.get_submodule(owner), leaf, blocks)
    precise = {name: tower.get_parameter(name).detach().clone() for name in family.precise}
    parts = [part for part in (tower, projector) if part is not None]
    for part in parts:
        placed(part, device, dtype)
    for name, value in precise.items():
        tower.get_parameter(name).data = value.to(device, torch.float32)
    quiet_compiler()
    fast = torch.compile(tower) if compile and not family.hooked else tower
    return SoundTower(
        family.outline(), family.chunk, family, tower, fast, projector, weights, device, dtype
    )


def even_times(samples: int, tokens: int, step: int) -> Tensor:
    """float64 [tokens, 2] spans of ``step`` samples; the last ends where the sound ends."""
    edges = torch.arange(tokens + 1, dtype=torch.float64) * step
    return spans_of_edges(edges, samples)


def spans_of_edges(edges: Tensor, samples: int) -> Tensor:
    """Spans in seconds between edges float64 [n + 1] in samples; the last ends with the sound."""
    if len(edges) > 1:
        edges[-1] = samples
    return torch.stack([edges[:-1], edges[1:]], 1) / SAMPLE_RATE


@contextmanager
def catching(layers: nn.ModuleList, layer: int) -> Iterator[list[Tensor]]:
    """Catch hidden state ``layer`` (0 what the first block is given) while the tower runs."""
    caught: list[Tensor] = []

    def before(_module: nn.Module, args: tuple[Any, ...]) -> None:
        caught.append(args[0])

    def after(_module: nn.Module, _args: tuple[Any, ...], out: Any) -> None:
        caught.append(out[0] if isinstance(out, tuple) else out)

    if layer == 0:
        handle = layers[0].register_forward_pre_hook(before)
    else:
        handle = layers[layer - 1].register_forward_hook(after)
    try:
        yield caught
    finally:
        handle.remove()


@contextmanager
def output_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Catch what a module gives while the tower runs."""
    caught: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _args, out: caught.append(out))
    try:
        yield caught
    finally:
        handle.remove()
