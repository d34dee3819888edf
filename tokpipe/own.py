"""Features made elsewhere: the columns tokens need, and what a loaded model says of itself.

``picture_tokens`` and ``sound_tokens`` make token batches of a model's own output,
``encoder_facts`` says what is known of its front end; ``save.save_cache`` writes a cache of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokpipe.errors import CacheError
from tokpipe.spec import MODALITY_CODE
from tokpipe.tensors import TokenBatch

Stage = Literal["pre_projector", "post_projector"]
#: Rows of features, of torch or numpy.
Features = Tensor | NDArray[Any]


def picture_tokens(
    features: Features | Sequence[Features],
    times: Tensor | Sequence[float],
    grid: tuple[int, int],
    *,
    ends: Tensor | Sequence[float] | None = None,
    deepstack: Sequence[Features | Sequence[Features]] = (),
    class_tokens: int = 0,
) -> TokenBatch:
    """Tokens of whole pictures, as a model's ``get_video_features`` gives them.

    Args:
        features: [T, gh x gw, D], or as many rows in any other form (a list of pictures, one
            picture after the other), each picture in raster order; tensors or numpy arrays.
        times: float64 [T] seconds of each picture. Where a model takes frames in pairs (temporal
            patch 2), T is the number of pairs and the time that of a pair's first frame.
        grid: (gh, gw) rows and columns of a picture's tokens, after any merger.
        ends: float64 [T] seconds each picture is shown until; the next one's time by default.
        deepstack: Further rows beside each token, one element a level, each like ``features``
            (Qwen3-VL).
        class_tokens: Rows of each picture before those of the grid (Video-LLaVA's frames: 1); their
            row and column are -1.

    Raises:
        CacheError: The rows are not T x gh x gw, or times do not rise.
    """
    at = torch.as_tensor(times, dtype=torch.float64).cpu().flatten()
    (high, wide), count = grid, len(at)
    n = class_tokens + high * wide
    what = f"{count} pictures of {high} x {wide}" + f" and {class_tokens}" * bool(class_tokens)
    rows = _flat(features, "features", count * n, what)
    if count > 1 and not bool((at.diff() > 0).all()):
        raise CacheError("the times of pictures do not rise", code="cache.order",
                         hint="give each picture its own time, in order")  # fmt: skip
    stops = torch.cat([at[1:], at[-1:]]) if ends is None else torch.as_tensor(ends).double().cpu()
    place = torch.cartesian_prod(torch.arange(high), torch.arange(wide)).reshape(-1, 2)
    place = torch.cat([torch.full((class_tokens, 2), -1), place])
    step = torch.arange(count).repeat_interleave(n)
    made = TokenBatch.build(
        rows, at.repeat_interleave(n), pts=torch.stack([at, stops], 1).repeat_interleave(n, 0),
        cell=torch.cat([step[:, None], place.repeat(count, 1)], 1).int(),
    )  # fmt: skip
    if not deepstack:
        return made
    levels = {
        f"deepstack_{k}": _flat(level, f"deepstack level {k}", len(rows), "as many as tokens")
        for k, level in enumerate(deepstack, 1)
    }
    return made.with_extras(dict.fromkeys(levels, "linear"), **levels)


def sound_tokens(features: Features, spans: Tensor) -> TokenBatch:
    """Tokens of sound, as a model's audio tower gives them.

    Args:
        features: [n, D], without padding, in order of time.
        spans: float64 [n, 2] seconds each token stands for.

    Raises:
        CacheError: There is not one span a token.
    """
    spans = torch.as_tensor(spans).double().cpu()
    rows = _flat(features, "features", len(spans), f"{len(spans)} spans")
    cell = torch.zeros(len(rows), 3, dtype=torch.int32)
    cell[:, 0] = torch.arange(len(rows))
    return TokenBatch.build(
        rows, spans[:, 0].contiguous(), pts=spans, cell=cell, modality=MODALITY_CODE["audio"]
    )


def encoder_facts(
    model: Any, stage: Stage = "post_projector", stream: Literal["video", "audio"] = "video"
) -> dict[str, Any]:
    """What the cache should say of a transformers model whose own code made the features.

    Args:
        model: The loaded model, whole (``...ForConditionalGeneration``) or without its head.
        stage: ``post_projector`` for what its language model is given (``get_image_features``,
            ``get_video_features``), ``pre_projector`` for the tower's own output.
        stream: Whose front end.

    Returns:
        Facts for ``save_cache(encoder=...)``, among them ``weights``: the digest that tokpipe's own
        encoders record of this checkpoint, as long as the model is loaded in the checkpoint's
        dtype (``dtype="auto"``). Facts on how the pictures were prepared are not among them: add
        what you know, such as ``mean`` or ``processor``.

    Raises:
        ModelError: Models of this kind have no such front end here.
    """
    from tokpipe.encode._hf.live import facts_of

    return facts_of(model, stage, stream)


def _flat(rows: Any, what: str, count: int, why: str) -> Tensor:
    """Rows [count, D] on the CPU."""
    whole = isinstance(rows, Tensor | np.ndarray)
    parts = [_tensor(part, what) for part in ([rows] if whole else rows)]
    if not parts or any(part.ndim == 0 for part in parts):
        raise CacheError(f"{what}: no rows, expected {count} ({why})", code="cache.shape")
    made = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
    if len(made) != count:
        raise CacheError(
            f"{what}: {len(made)} rows, expected {count} ({why})", code="cache.shape",
            hint="leave out padding and newlines; class tokens are told by class_tokens",
        )  # fmt: skip
    return made


def _tensor(part: Any, what: str) -> Tensor:
    """A tensor or array on the CPU, without its history."""
    try:
        made = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
    except TypeError as error:
        raise CacheError(
            f"{what}: {getattr(part, 'dtype', type(part).__name__)} is no type of features",
            hint="give float32, bfloat16 (torch alone has it) or float16",
            code="cache.dtype",
        ) from error
    return made.detach().cpu()
