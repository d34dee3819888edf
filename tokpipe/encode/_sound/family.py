"""What the sound towers of transformers share: what they may be asked, and Whisper's picture.

Letters: L samples, T columns of 10 ms, B mel bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokpipe.encode._hf.load import library, read_feature_extractor
from tokpipe.encode._log_mel import mirror
from tokpipe.encode._sound.lengths import COLUMN, HOP
from tokpipe.encode._sound.tower import SAMPLE_RATE
from tokpipe.errors import ModelError, WeightsMissing

if TYPE_CHECKING:
    from tokpipe.encode.hf_audio import HfAudio


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
