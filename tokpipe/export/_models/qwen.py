"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: positions in time, height and width.

A picture of a cache is one temporal patch: it entered its tower as (t, t), as an image does. In
Qwen2-VL a picture's position in time is its number, in Qwen2.5-VL its seconds from the first one;
Qwen3-VL writes the seconds as text before each picture instead.

Source: transformers 4.57.6 and 5.24, ``get_rope_index`` and the processors of qwen2_vl, qwen2_5_vl
and qwen3_vl.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokpipe.export._models.family import Family, Given, Part, Prompt, Run, Script
from tokpipe.export._models.pictures import pictures
from tokpipe.export._models.rope import (
    Pictures,
    Sound,
    Span,
    Text,
    Version,
    index_ticks,
    mrope_positions,
    time_ticks,
    transformers_version,
)


class MRope(Family):
    """What models with positions (t, h, w) have in common."""

    axes = 3

    @property
    def version(self) -> Version:
        """How the installed transformers counts."""
        import transformers

        return transformers_version(transformers.__version__)

    def places(self, prompt: Prompt) -> Tensor:
        """See ``Family``."""
        spans: list[Span] = []
        at = 0
        for first, run in prompt.runs:
            spans += [Text(first - at), self.span(run)]
            at = first + len(run)
        return mrope_positions([*spans, Text(len(prompt) - at)], self.version)

    def span(self, run: Run) -> Span:
        """A run of whole pictures, or of sound."""
        if run.grid is None or run.times is None:
            return Sound(torch.arange(len(run)))
        return Pictures(self.ticks(run.times), *run.grid[1:])

    def ticks(self, times: Tensor) -> Tensor:
        """Positions [T] of pictures in time."""
        return index_ticks(len(times))


class Qwen2Vl(MRope):
    """Qwen2-VL."""

    towers: ClassVar[Mapping[str, tuple[str, ...]]] = {"video": ("visual",)}

    def parts(self, stream: str) -> tuple[nn.Module, ...]:
        """See ``Family``."""
        return (self.base.visual,)

    def script(self, given: Given) -> Script:
        """See ``Family``."""
        media = given.media["video"]
        rows, placed = pictures(media)
        size = media.grid if placed else None
        if not given.image:
            token = self.words.token(self.config.video_token_id)
            return Script(
                parts=self.video(token, rows, media.times, size),
                content={"video": ({"type": "video"},)}, placed=placed,
            )  # fmt: skip
        token = self.words.token(self.config.image_token_id)
        return images_of(token, rows, media.times, size)

    def video(
        self, token: str, rows: Sequence[Tensor], times: Tensor, size: tuple[int, int] | None
    ) -> tuple[Part, ...]:
        """A video in place of its one placeholder.

        Args:
            token: The placeholder.
            rows: Of each picture.
            times: Seconds of each.
            size: Rows and columns of all; None where they are not whole.
        """
        grid = None if size is None else (len(times), *size)
        run = Run(stream="video", token=token, rows=torch.cat(list(rows)), grid=grid, times=times)
        return (Part(token, (run,)),)

    def plain(self, markers: Sequence[str], text: str) -> str:
        """See ``Family``."""
        start, end = self._marks()
        whole = [m if m.startswith(start) else f"{start}{m}{end}" for m in markers]
        return "".join(whole) + text

    def _marks(self) -> tuple[str, str]:
        """The tokens around a picture or video."""
        return (
            self.words.token(self.config.vision_start_token_id),
            self.words.token(self.config.vision_end_token_id),
        )


class Qwen25Vl(Qwen2Vl):
    """Qwen2.5-VL."""

    def ticks(self, times: Tensor) -> Tensor:
        """See ``MRope``."""
        return time_ticks(times, self.config.vision_config.tokens_per_second, self.version)


class Qwen3Vl(Qwen2Vl):
    """Qwen3-VL: a timestamp before each picture, and rows for deeper layers beside each token."""

    embeds = False

    @property
    def deepstack(self) -> int:
        """See ``Family``."""
        return len(self.config.vision_config.deepstack_visual_indexes)

    def video(
        self, token: str, rows: Sequence[Tensor], times: Tensor, size: tuple[int, int] | None
    ) -> tuple[Part, ...]:
        """See ``Qwen2Vl``; older processors replace the marks around the placeholder too."""
        start, end = self._marks()
        pieces: list[str | Run] = []
        for one, time in zip(_ones(token, rows, times, size), times.tolist(), strict=True):
            pieces += [f"<{time:.1f} seconds>{start}", one, end]
        known = import_module("transformers.models.qwen3_vl.processing_qwen3_vl")
        alone = hasattr(known.Qwen3VLProcessor, "replace_video_token")
        return (Part(token if alone else f"{start}{token}{end}", tuple(pieces)),)

    def outputs(
        self, rows: Mapping[str, Sequence[Tensor]], deep: Mapping[str, Sequence[Sequence[Tensor]]]
    ) -> dict[str, Any]:
        """See ``Family``."""
        return deepstack_outputs(self.model, rows, deep)


def deepstack_outputs(
    model: Any,
    rows: Mapping[str, Sequence[Tensor]],
    deep: Mapping[str, Sequence[Sequence[Tensor]]],
) -> dict[str, Any]:
    """Rows of pictures and the rows beside them, in the class of the model's own module."""
    kind = import_module(type(model).__module__).BaseModelOutputWithDeepstackFeatures
    return {
        modality: kind(
            pooler_output=list(parts), deepstack_features=[list(lv) for lv in deep[modality]]
        )
        for modality, parts in rows.items()
    }


def images_of(
    token: str, rows: Sequence[Tensor], times: Tensor, size: tuple[int, int] | None
) -> Script:
    """Each picture an image of its own, in place of a placeholder of its own."""
    parts = tuple(Part(token, (one,)) for one in _ones(token, rows, times, size))
    return Script(
        parts=parts, content={"video": ({"type": "image"},) * len(parts)},
        modality={"video": "image"}, placed=size is not None,
    )  # fmt: skip


def _ones(
    token: str, rows: Sequence[Tensor], times: Tensor, size: tuple[int, int] | None
) -> list[Run]:
    """A run for each picture."""
    return [
        Run(
            stream="video", token=token, rows=own, times=torch.tensor([time]),
            grid=None if size is None else (1, *size),
        )
        for own, time in zip(rows, times.tolist(), strict=True)
    ]  # fmt: skip
