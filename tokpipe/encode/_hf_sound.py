"""What the sound towers of transformers share: Whisper's picture of one window, spans, the loop.

A family says how many tokens a length gives, what the network is fed and which of its outputs are
tokens; one tower runs them all, chunk by chunk, so that no token depends on its neighbours in a
batch.

Letters: L samples, T columns of 10 ms, B mel bins, n tokens of a chunk, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tokpipe.encode._hf_load import library, placed, read_feature_extractor
from tokpipe.encode._lengths import COLUMN, HOP
from tokpipe.encode._log_mel import clean, mirror
from tokpipe.encode._tower import Encoded, Outline
from tokpipe.encode._weights import digest_of
from tokpipe.errors import ModelError, WeightsMissing

if TYPE_CHECKING:
    from tokpipe.encode.hf_audio import HfAudio

SAMPLE_RATE = 16_000


class Sound(Protocol):
    """A kind of sound tower, made from its configuration.

    Attributes:
        settings: The operator's parameters.
        chunk: Samples of a chunk.
        precise: Parameters of the tower that stay float32, as the library keeps them.
    """

    settings: HfAudio
    chunk: int
    precise: tuple[str, ...]

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


@dataclass(slots=True)
class SoundTower:
    """A loaded tower for sound; see ``_tower.AudioTower``.

    Attributes:
        family: What it is.
        tower, projector: The networks on their device.
        weights: Its digest.
        device, dtype: Where and in what it runs.
    """

    outline: Outline
    chunk: int
    family: Sound
    tower: Any
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
        return [self._one(wave) for wave in waves]

    def _one(self, wave: Tensor) -> Encoded:
        samples = wave.shape[0]
        if samples > self.chunk:
            raise ValueError(f"SoundTower.encode: {samples} samples, a chunk has {self.chunk}")
        if not len(self.times(samples)):
            empty = torch.zeros((1, 0, self.outline.dim), dtype=self.dtype, device=self.device)
            return Encoded(data=empty)
        features = self.family.features(clean(wave.to(self.device))).to(self.dtype)
        tokens = self.family.tokens(self.tower, self.projector, features, samples)
        return Encoded(data=tokens[None])


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
        tower.layers = tower.layers[: max(1, family.settings.layer)]
    precise = {name: tower.get_parameter(name).detach().clone() for name in family.precise}
    parts = [part for part in (tower, projector) if part is not None]
    for part in parts:
        placed(part, device, dtype)
    for name, value in precise.items():
        tower.get_parameter(name).data = value.to(device, torch.float32)
    if compile:
        for part in parts:
            part.compile()
    return SoundTower(
        family.outline(), family.chunk, family, tower, projector, weights, device, dtype
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


def check_stage(settings: HfAudio, blocks: int, *, projector: bool) -> None:
    """Refuse a stage or layer the family has not.

    Args:
        blocks: Blocks of the tower.
        projector: It has a projector.

    Raises:
        ModelError: It does not fit.
    """
    if settings.stage == "post_projector" and not projector:
        raise ModelError(f"`{settings.model}` has no projector", hint="use stage=pre_projector")
    if settings.layer > blocks:
        raise ModelError(
            f"`{settings.model}` has {blocks} blocks, layer {settings.layer} is none of them",
            hint=f"choose a layer of 0 to {blocks}, or -1 for the tower's own output",
        )
    if settings.layer >= 0 and settings.stage == "post_projector":
        raise ModelError(
            f"the projector of `{settings.model}` takes the tower's own output, not layer "
            f"{settings.layer}",
            hint="use layer=-1, or stage=pre_projector",
        )


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


def extractor_of(settings: HfAudio, source: tuple[str, str], kind: str, **default: Any) -> Any:
    """The checkpoint's feature extractor, or the library's default where it has none.

    Args:
        source: Model and revision.
        kind: Class name of the default.
        **default: Its arguments, and what the checkpoint's own must agree with.

    Raises:
        ModelError: It prepares sound in another way than this kind of tower takes it.
    """
    try:
        found = read_feature_extractor(*source)
    except WeightsMissing:
        found = getattr(library(), kind)(**default)
    wanted = {"sampling_rate": SAMPLE_RATE, **default}
    for name, value in wanted.items():
        if getattr(found, name, value) != value:
            raise ModelError(
                f"the feature extractor of `{settings.model}` has {name} = "
                f"{getattr(found, name)}, its configuration asks for {value}",
                hint="use the preprocessor_config.json that belongs to the checkpoint",
            )
    return found


@cache
def _picture(bins: int, device: str) -> tuple[Tensor, Tensor]:
    """Window [400] and mel filters [B, 201] of Whisper's extractor, its own numbers."""
    made = library().WhisperFeatureExtractor(feature_size=bins)
    filters = torch.from_numpy(made.mel_filters).to(torch.float32).T.contiguous()
    return torch.hann_window(COLUMN, device=device), filters.to(device)


def whisper_picture(wave: Tensor, bins: int, total: int) -> Tensor:
    """Log-mel of a window, as Whisper's extractor makes it of one clip.

    The floor is 8 decades under the window's own maximum; the ends are mirrored.

    Args:
        wave: float32 [L], zeros are added up to ``total``.
        bins: 80 or 128.
        total: Samples of the window, L or more.

    Returns:
        float32 [B, total // 160].
    """
    window, filters = _picture(bins, str(wave.device))
    wave = pad(wave, (0, total - wave.shape[0]))
    if total <= COLUMN // 2:
        # Too short to be mirrored once: mirrored back and forth.
        wave = mirror(wave, COLUMN // 2, COLUMN // 2)
    else:
        wave = pad(wave[None], (COLUMN // 2, COLUMN // 2), "reflect")[0]
    spectrum = torch.stft(wave, COLUMN, HOP, window=window, center=False, return_complex=True)
    power = (spectrum[:, : total // HOP].abs() ** 2).contiguous()
    raw = (filters @ power).clamp(min=1e-10).log10()
    return (torch.maximum(raw, raw.max() - 8.0) + 4.0) / 4.0


def about(settings: HfAudio, **more: Any) -> Mapping[str, Any]:
    """Facts for the cache that all families state."""
    return {
        "stage": settings.stage,
        "layer": settings.layer,
        "library": f"transformers {library().__version__}",
        **more,
    }
