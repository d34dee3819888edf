"""Thinkers of Qwen2.5-Omni and Qwen3-Omni: pictures, sound, or both woven together.

Sound goes into ``inputs_embeds``, pictures into ``mm_encoder_outputs``, their slots holding the
placeholder's own embedding. Positions in time are seconds of the media's one clock: position 0 is
where the sound begins, or the first picture where that is earlier.

Source: transformers 5.24, ``get_rope_index`` and the processors of qwen2_5_omni, qwen3_omni_moe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokpipe.errors import ModelError
from tokpipe.export._media import Media
from tokpipe.export._models.family import Given, Part, Prompt, Run, Script
from tokpipe.export._models.pictures import pictures
from tokpipe.export._models.qwen import MRope, deepstack_outputs, images_of
from tokpipe.export._models.rope import (
    Pictures,
    Sound,
    Text,
    Version,
    Woven,
    mrope_positions,
    time_ticks,
)
from tokpipe.export._models.sound import heard
from tokpipe.export._models.weave import Pieces, weave_chunks, weave_merged, woven
from tokpipe.export._models.words import Words


class Qwen25Omni(MRope):
    """Qwen2.5-Omni."""

    streams = ("video", "audio")
    modality: ClassVar[Mapping[str, str]] = {"video": "video"}
    language = ("language_model", "lm_head")
    towers: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "video": ("visual",), "audio": ("audio_tower",)
    }  # fmt: skip
    #: The two marks before sound and video share a position, and so do those after.
    shared = True
    #: Positions in time are cut to whole numbers.
    whole = True
    #: What ends sound where the tokenizer does not say.
    end = "<|audio_eos|>"
    vision_end = "<|vision_eos|>"

    def __init__(self, model: Any, words: Words) -> None:
        """See ``Family``.

        Raises:
            ModelError: The model is the whole of thinker and talker.
        """
        if hasattr(model, "thinker"):
            raise ModelError(
                f"{type(model).__name__} takes tokens through its thinker",
                hint="give model.thinker instead of the model",
            )
        super().__init__(model, words)

    @property
    def base(self) -> Any:
        """See ``Family``; before 5.19 towers lie beside the head."""
        inside = [name for names in self.towers.values() for name in names]
        own = any(name in dict(self.model.named_children()) for name in inside)
        return self.model if own else self.model.model

    @property
    def version(self) -> Version:
        """What follows pictures follows the largest position, in all versions."""
        return "vllm"

    def parts(self, stream: str) -> tuple[nn.Module, ...]:
        """See ``Family``."""
        return tuple(getattr(self.base, name) for name in self.towers[stream])

    def script(self, given: Given) -> Script:
        """See ``Family``."""
        video, audio = given.media.get("video"), given.media.get("audio")
        if video is not None and audio is not None:
            return self._both(video, audio, images=bool(given.image))
        if audio is not None:
            rows, placed = heard(audio)
            run = Run(stream="audio", token=self._token("audio"), rows=rows)
            kind = "audio"
        else:
            assert video is not None  # noqa: S101 - a cache has a stream
            each, placed = pictures(video)
            size = video.grid if placed else None
            if given.image:
                return images_of(self._token("image"), each, video.times, size)
            run = Run(
                stream="video", token=self._token("video"), rows=torch.cat(each),
                grid=None if size is None else (len(each), *size), times=video.times,
            )  # fmt: skip
            kind = "video"
        return Script(
            parts=(Part(run.token, (run,)),), content={kind: ({"type": kind},)}, placed=placed
        )

    def plain(self, markers: Sequence[str], text: str) -> str:
        """See ``Family``."""
        noise = self._token("audio")
        marks = {True: self._audio(), False: self._vision()}
        pairs = [(marks[marker == noise], marker) for marker in markers]
        return "".join(f"{start}{marker}{end}" for (start, end), marker in pairs) + text

    def places(self, prompt: Prompt) -> Tensor:
        """See ``Family``."""
        runs = [run for _, run in prompt.runs if run.place is not None]
        if not runs:
            return super().places(prompt)
        both = Woven(torch.cat([r.place for r in runs if r.place is not None], 1), len(runs[-1]))
        before = prompt.runs[0][0] - 2
        after = len(prompt) - before - len(both) - 4
        mark = Text(2, shared=self.shared)
        return mrope_positions([Text(before), mark, both, mark, Text(after)], self.version)

    def ticks(self, times: Tensor, start: float | None = None) -> Tensor:
        """See ``MRope``."""
        return time_ticks(
            times, self.config.position_id_per_seconds, self.version, start=start, whole=self.whole
        )

    def weave(self, pictures: Tensor, sound: Tensor) -> Pieces:
        """Turns of pictures and sound; see ``weave_chunks``."""
        chunk = int(self.config.position_id_per_seconds * self.config.seconds_per_chunk)
        return weave_chunks(pictures, sound, chunk)

    def begins(self, sound: Media) -> float:
        """Seconds at which the sound's token 0 begins."""
        per_second = float(self.config.position_id_per_seconds)
        return float(sound.at[0]) - float(sound.cell[0, 0]) / per_second

    def _both(self, video: Media, audio: Media, *, images: bool) -> Script:
        """Sound and pictures in place of the video's one placeholder."""
        each, seen = pictures(video)
        sounds, listened = heard(audio)
        begins = self.begins(audio) if listened else float(audio.at[0])
        zero = min(begins, float(video.times[0]))
        ticks = self.ticks(video.times, zero)
        per_second = self.config.position_id_per_seconds
        if listened:
            late = torch.tensor((begins - zero) * per_second)
            noise = torch.arange(len(sounds)) + (late.round().long() if self.whole else late)
        else:
            noise = ((audio.at - zero) * per_second).float()
        counts = torch.tensor([len(rows) for rows in each])
        pieces = self.weave(ticks.repeat_interleave(counts), noise)
        laid: Tensor | None = None
        if seen and listened and video.grid is not None:
            laid = woven(Pictures(ticks, *video.grid), Sound(noise), pieces).laid
        runs = self._runs(pieces, torch.cat(each), sounds, laid)
        start, end = self._audio()
        return Script(
            parts=(Part(self._token("video"), (start, *runs, end)),),
            content={"video": ({"type": "video"},), "audio": ()}, placed=laid is not None,
            notes=("pictures with sound are given as a video, not as images",) if images else (),
        )  # fmt: skip

    def _runs(
        self, pieces: Pieces, pictures: Tensor, sounds: Tensor, laid: Tensor | None
    ) -> list[Run]:
        """The turns as runs, with their places."""
        rows, made, at = (pictures, sounds), [], 0
        for noisy, first, end in pieces:
            stream = self.streams[noisy]
            place = None if laid is None else laid[:, at : at + end - first]
            made.append(
                Run(stream=stream, token=self._token(stream), rows=rows[noisy][first:end],
                    place=place)
            )  # fmt: skip
            at += end - first
        return made

    def _token(self, stream: str) -> str:
        """The placeholder of a stream."""
        return self.words.token(getattr(self.config, f"{stream}_token_id"))

    def _audio(self) -> tuple[str, str]:
        """The tokens around sound."""
        start = self.words.token(self.config.audio_start_token_id)
        return start, str(self.words.find("audio_eos_token", self.end))

    def _vision(self) -> tuple[str, str]:
        """The tokens around pictures."""
        start = self.words.token(self.config.vision_start_token_id)
        return start, str(self.words.find("vision_eos_token", self.vision_end))


class Qwen3Omni(Qwen25Omni):
    """Qwen3-Omni: positions are no whole numbers, rows for deeper layers beside each token."""

    embeds = False
    shared = False
    whole = False
    end = "<|audio_end|>"
    vision_end = "<|vision_end|>"

    @property
    def deepstack(self) -> int:
        """See ``Family``."""
        return len(self.config.vision_config.deepstack_visual_indexes)

    def weave(self, pictures: Tensor, sound: Tensor) -> Pieces:
        """See ``Qwen25Omni``."""
        return weave_merged(pictures, sound)

    def begins(self, sound: Media) -> float:
        """See ``Qwen25Omni``; the thirteenth token of a second is half as long."""
        seconds, rest = divmod(int(sound.cell[0, 0]), 13)
        return float(sound.at[0]) - seconds - rest * 0.08

    def outputs(
        self, rows: Mapping[str, Sequence[Tensor]], deep: Mapping[str, Sequence[Sequence[Tensor]]]
    ) -> dict[str, Any]:
        """See ``Family``."""
        return deepstack_outputs(self.model, rows, deep)
