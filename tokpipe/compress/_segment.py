"""Cut a video into segments: lowest similarities, cluster labels, windows that stay still.

Letters: T frames, C tokens of a frame, D width, S segments. Segments are half-open (start, stop).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

Segments = list[tuple[int, int]]


def adjacent_cosine(data: Tensor) -> Tensor:
    """Cosine float32 [T - 1, C] of each token and the same place one frame later.

    Args:
        data: float [T, C, D]; zero rows are at cosine 0 from everything.
    """
    steps, size, _ = data.shape
    out = torch.empty((max(0, steps - 1), size), device=data.device)
    product: Tensor | None = None
    # One frame at a time stays in the processor's cache: five times faster than all at once.
    for t in range(steps - 1):
        product = torch.mul(data[t].float(), data[t + 1].float(), out=product)
        torch.sum(product, 1, out=out[t])
    length = lengths(data)
    return out / (length[1:] * length[:-1])


def lengths(data: Tensor) -> Tensor:
    """Euclidean length float32 [..., C] of the rows of data [..., C, D], at least 1e-12."""
    length: Tensor = torch.linalg.vector_norm(data, dim=-1, dtype=torch.float32)
    return length.clamp_(min=1e-12)


def frame_means(data: Tensor) -> Tensor:
    """Mean token float32 [T, D] of each frame of data [T, C, D]."""
    return data.mean(1, dtype=torch.float32)


def window_means(data: Tensor, segments: Segments) -> Tensor:
    """Mean frame float32 [S, C, D] of each segment of data [T, C, D]; zero for single frames."""
    out = torch.zeros((len(segments), *data.shape[1:]), device=data.device)
    for i, (a, b) in enumerate(segments):
        if b - a > 1:
            for t in range(a, b):
                out[i].add_(data[t].float(), alpha=1 / (b - a))
    return out


def cut_lowest(similarity: Tensor, count: int, below: float | None = None) -> Segments:
    """Cut where neighbours resemble each other least.

    Args:
        similarity: float [T - 1] of each frame and the next.
        count: Cuts at the smallest similarities; of equal ones the earlier.
        below: Cut also wherever the similarity is under this.

    Returns:
        Segments that cover 0 .. T.
    """
    cut = torch.zeros(similarity.shape[0], dtype=torch.bool, device=similarity.device)
    cut[torch.argsort(similarity, stable=True)[: max(0, count)]] = True
    if below is not None:
        cut |= similarity < below
    after = (torch.nonzero(cut).flatten() + 1).tolist()
    return list(pairwise([0, *after, similarity.shape[0] + 1]))


def runs(labels: list[int]) -> Segments:
    """Stretches of equal consecutive labels."""
    starts = [t for t in range(len(labels)) if t == 0 or labels[t] != labels[t - 1]]
    return list(pairwise([*starts, len(labels)]))


def refine_labels(labels: list[int]) -> list[int]:
    """Make cluster labels of frames contiguous enough to be segments (PruneVid).

    Of each label only its longest runs stay (all of that length), none where the longest is 1.
    Stretches between them, first to last, join the longer neighbouring run as it stands by then,
    the left one of equals; 0 where nothing stays.
    """
    longest: dict[int, int] = {}
    for a, b in runs(labels):
        longest[labels[a]] = max(b - a, longest.get(labels[a], 0))
    out: list[int | None] = [None] * len(labels)
    for a, b in runs(labels):
        if 1 < b - a == longest[labels[a]]:
            out[a:b] = labels[a:b]
    a = 0
    while a < len(out):
        b = a
        while b < len(out) and out[b] is None:
            b += 1
        if b > a:
            left, right = _run_length(out, a - 1, -1), _run_length(out, b, 1)
            side = out[a - 1] if left >= right and left else out[b] if right else 0
            out[a:b] = [side] * (b - a)
        a = b + 1
    return [label or 0 for label in out]


def _run_length(labels: list[int | None], start: int, step: int) -> int:
    """Length of the run of equal labels from ``start`` in direction ``step``, 0 outside."""
    place = start
    while 0 <= place < len(labels) and labels[place] == labels[start]:
        place += step
    return abs(place - start)


def static_windows(still: Tensor, longest: int) -> tuple[Segments, int]:
    """Windows that let the most repeats go, by dynamic programming (HoliTom).

    A window of W frames gains W - 1 for each place that is still throughout. Of equal gains the
    single frame, then the shorter window ends a stretch.

    Args:
        still: bool [T - 1, C] places that do not change from a frame to the next.
        longest: Most frames of a window, 1 or more.

    Returns:
        (segments, total gain).
    """
    gain = _window_gains(still, longest)
    steps = still.shape[0] + 1
    best = np.zeros(steps + 1, dtype=np.int64)
    size = np.ones(steps + 1, dtype=np.int64)
    for stop in range(1, steps + 1):
        reach = min(stop, gain.shape[1])
        # Entry w - 1: the last window has w frames; argmax takes the shortest of equals.
        total = best[stop - reach : stop][::-1] + gain[stop - 1, :reach]
        size[stop] = 1 + int(total.argmax())
        best[stop] = total[size[stop] - 1]
    found: Segments = []
    stop = steps
    while stop > 0:
        found.append((stop - int(size[stop]), stop))
        stop -= int(size[stop])
    return found[::-1], int(best[steps])


def _window_gains(still: Tensor, longest: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Gain [T, W] of the window of w + 1 frames that ends with frame t."""
    steps, width = still.shape[0] + 1, min(longest, still.shape[0] + 1)
    # Frames each place has been still for, at every frame: t minus its last change.
    place = torch.arange(1, steps, device=still.device)[:, None]
    changed = torch.where(still, 0, place).cummax(0).values if steps > 1 else place
    streak = (place - changed).clamp(max=width - 1)
    flat = streak + width * torch.arange(steps - 1, device=still.device)[:, None]
    counts = torch.bincount(flat.flatten(), minlength=(steps - 1) * width)
    # Places still for w frames or longer, times w.
    held = counts.reshape(-1, width).flip(1).cumsum(1).flip(1)
    gain = held * torch.arange(width, device=still.device)
    return np.concatenate([np.zeros((1, width), dtype=np.int64), gain.cpu().numpy()])


def segment_of(segments: Segments, device: torch.device | str) -> Tensor:
    """Segment int64 [T] of each frame."""
    size = torch.tensor([b - a for a, b in segments], device=device)
    return torch.repeat_interleave(torch.arange(len(segments), device=device), size)
