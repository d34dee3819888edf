"""A cache as SGLang takes it: ids, one dictionary of rows, and positions of their own.

Two spellings of the dictionary are read by SGLang 0.5.23, and they are not alike:

``precomputed_embedding``  rows under ``feature``. The base class hands them on as if they were
                           pixels; only the image path of Qwen2.5-VL looks at their width (1176
                           means patches) and leaves them alone. Qwen2-VL, Qwen3-VL and every video
                           run the tower over them.
``processor_output``       rows under ``precomputed_embeddings``, which the scheduler takes before
                           any model is asked: every Qwen kind, images and videos.

Source: sglang 0.5.23, ``srt/multimodal/processors/base_processor.py`` and ``qwen_vl.py``,
``srt/managers/mm_schedule.py`` (``_get_precomputed_embedding``), ``srt/models/qwen*_vl.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tokpipe.digest import canonical_json
from tokpipe.encode._hf.load import read_tokenizer
from tokpipe.errors import CacheError
from tokpipe.export._media import Media, read_media
from tokpipe.export._models.family import Given, Prompt
from tokpipe.export._models.inputs import Positions, Sample
from tokpipe.export._models.kinds import family_of
from tokpipe.export._models.prompt import prompt_of
from tokpipe.export._models.qwen import MRope
from tokpipe.export._models.rope import Span, Text, mrope_position_delta, mrope_positions
from tokpipe.export._models.sample import sample_of
from tokpipe.export._models.words import Words
from tokpipe.export._servers.items import grids_of
from tokpipe.export._servers.target import Target, check_rows, check_weights, read_target

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache

Spelling = Literal["processor_output", "precomputed_embedding"]
#: Kinds whose rows reach the language model as they are.
KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
#: Width by which the image path of Qwen2.5-VL tells patches (2 x 3 x 14 x 14) from rows.
PATCH_WIDTH = 1176
_WHY = {
    "llava": "its processor hands every dictionary to the vision tower",
    "llava_next": "its processor hands every dictionary to the vision tower",
    "llava_onevision": "its processor hands every dictionary to the vision tower",
    "internvl": "it serves InternVL in its first form only, which transformers does not load",
    "gemma3": "its tower is run over whatever is given",
    "qwen2_audio": "its processor writes the prompt again from the length of the sound",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What goes to ``Engine.generate``.

    Attributes:
        modality: ``image`` or ``video``.
        ids: The prompt with one placeholder a row.
        rows: [N, D * (1 + L)] in the order of the prompt.
        grid: int64 [k, 3] in patches of the pictures as they entered the tower.
        offsets: First and last index of each run of placeholders.
        positions: int64 [3, S].
        delta: Largest position + 1 - S.
        target: The model.
        sample: Counts and notes.
    """

    modality: Literal["image", "video"]
    ids: list[int]
    rows: Tensor
    grid: Tensor
    offsets: tuple[tuple[int, int], ...]
    positions: Tensor
    delta: int
    target: Target
    sample: Sample

    @property
    def hash(self) -> int:
        """63 bits of rows and positions, by which SGLang finds them in its prefix cache."""
        facts = [str(self.rows.dtype), list(self.rows.shape), self.grid.tolist()]
        total = hashlib.sha256(canonical_json(facts).encode())
        for tensor in (self.rows, self.positions):
            total.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return int.from_bytes(total.digest()[:8], "big") >> 1

    def item(self, spelling: Spelling) -> dict[str, Any]:
        """The one dictionary of the modality."""
        name = "feature" if spelling == "precomputed_embedding" else "precomputed_embeddings"
        return {
            "format": spelling, "modality": self.modality.upper(), name: self.rows,
            f"{self.modality}_grid_thw": self.grid, "offsets": [list(o) for o in self.offsets],
            "hash": self.hash, "mrope_positions": self.positions,
            "mrope_position_delta": torch.tensor([[self.delta]]),
        }  # fmt: skip


def request_of(
    cache: TokenCache,
    model: str,
    messages: str | Sequence[Mapping[str, Any]] | Sequence[int],
    *,
    processor: Any = None,
    positions: Positions = "original",
    image: bool = False,
    dtype: torch.dtype | None = None,
    allow_mismatch: bool = False,
) -> Request:
    """Make a request from the pictures of a cache.

    Args:
        model: Hub name or local folder; empty for the one the cache was encoded for.
        messages: A question, a chat, or ids, as ``to_model_inputs`` takes them.
        processor: The model's processor or tokenizer; None reads the tokenizer of ``model``.
        positions: ``original`` or ``compact``.
        image: Each picture is an image of its own, not a step of a video.
        dtype: Rows are cast to it; None leaves them.
        allow_mismatch: Take rows of other weights than the model's.

    Raises:
        CacheError: SGLang takes no rows of this model, or they are not this model's.
        WeightsMismatch: Other weights made them.
        ModelError: The model has no tokenizer or chat template that can write the prompt.
    """
    media = read_media(cache, "video" if "video" in cache.streams else cache.streams[0])
    target = read_target(cache, media.stream, model)
    _check_kind(target)
    check_rows(media, target)
    notes = check_weights(media, target, allow_mismatch=allow_mismatch)
    words = Words(read_tokenizer(target.name) if processor is None else processor)
    # Families read the configuration; nothing of the model itself is needed for a prompt.
    family = family_of(SimpleNamespace(config=target.config), words)
    still = cache.duration is None and len(media.times) == 1
    image = image or still
    given = Given(media={"video": media}, image=image, duration=cache.duration)
    script = family.script(given)
    prompt = prompt_of(family, script, messages, compact=positions == "compact")
    sample = sample_of(family, prompt, script, {"video": media}, positions, notes)
    places = sample.places
    if sample.positions == "original" and isinstance(family, MRope):
        places = server_positions(family, prompt)[:, prompt.kept]
    rows = torch.cat([sample.rows["video"], *sample.deep["video"]], 1)
    return Request(
        modality="image" if image else "video", ids=sample.ids.tolist(),
        rows=(rows if dtype is None else rows.to(dtype)).contiguous(),
        grid=_grid(media, target, image=image),
        offsets=runs_of(sample.stream >= 0),
        positions=places.to(torch.int64).contiguous(), delta=int(mrope_position_delta(places)),
        target=target, sample=sample,
    )  # fmt: skip


def server_positions(family: MRope, prompt: Prompt) -> Tensor:
    """Positions [3, S] of the whole prompt as SGLang itself counts, which vLLM does too."""
    spans: list[Span] = []
    at = 0
    for first, run in prompt.runs:
        spans += [Text(first - at), family.span(run)]
        at = first + len(run)
    return mrope_positions([*spans, Text(len(prompt) - at)], "vllm")


def runs_of(media: Tensor) -> tuple[tuple[int, int], ...]:
    """First and last index of each stretch of placeholders.

    Args:
        media: bool [S].
    """
    edge = torch.zeros(1, dtype=torch.bool)
    starts = media & ~torch.cat([edge, media[:-1]])
    ends = media & ~torch.cat([media[1:], edge])
    return tuple(zip(starts.nonzero()[:, 0].tolist(), ends.nonzero()[:, 0].tolist(), strict=True))


def _grid(media: Media, target: Target, *, image: bool) -> Tensor:
    """Grids [k, 3] in patches of the whole pictures."""
    count = len(media.times)
    sides = [media.grid] * count if media.grid is not None else grids_of(media)
    patches = [(high * target.merge, wide * target.merge) for high, wide in sides]
    if image:
        return torch.tensor([(1, *side) for side in patches], dtype=torch.int64)
    return torch.tensor([(count, *patches[0])], dtype=torch.int64)


def _check_kind(target: Target) -> None:
    if target.model_type in KINDS:
        return
    why = _WHY.get(target.model_type, "no way through it was found")
    raise CacheError(
        f"`{target.name}` ({target.model_type}) takes no tokens through SGLang: {why}",
        hint="kinds that do: " + ", ".join(KINDS) + "; transformers takes the others, storyboard "
        "any model",
        code="export.kind",
    )


def check_spelling(request: Request, spelling: Spelling) -> None:
    """Refuse the spelling under which SGLang would run its tower over the rows.

    Raises:
        CacheError: Naming the other one.
    """
    if spelling == "processor_output":
        return
    kind, width = request.target.model_type, request.rows.shape[1]
    if kind == "qwen2_5_vl" and request.modality == "image":
        if width != PATCH_WIDTH:
            return
        why = f"rows {PATCH_WIDTH} wide are taken for patches of pixels"
    else:
        why = f"SGLang runs the vision tower over the {request.modality} rows of {kind}"
    raise CacheError(
        f"format=precomputed_embedding does not carry these rows: {why}",
        hint="use format=processor_output", code="export.form",
    )  # fmt: skip
