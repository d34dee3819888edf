"""SGLang: ids, rows and positions for Engine.generate, original positions included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tokpipe.export._contract import ModelUse, Written, check_choices

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache
    from tokpipe.spec import Layout

_RUN = """# Ask {model!r} about {name!r}, from its tokens; needs sglang 0.5.23 and a GPU.

from pathlib import Path

import torch

inputs = torch.load(Path(__file__).with_name("inputs.pt"), weights_only=True)

if __name__ == "__main__":
    import sglang

    engine = sglang.Engine(model_path={model!r}, chunked_prefill_size=-1)
    made = engine.generate(**inputs, sampling_params={{"max_new_tokens": 256}})
    print(made["text"])
"""


@dataclass(frozen=True, slots=True)
class SGLang:
    """A folder with ``inputs.pt``, ``request.json`` (the same without tensors) and ``run.py``.

    Source: SGLang 0.5.23, ``srt/multimodal/processors``, ``srt/managers/mm_schedule.py``.

    Attributes:
        model: Hub name or local folder; empty for the one the cache was encoded for.
        prompt: The question.
        positions: ``original``: those the tokens would have had, had every picture of which one is
            kept been given whole, as SGLang counts. ``compact``: counted without gaps.
        media: One ``video``, or one ``image`` a picture.
        format: Spelling of the dictionary; ``precomputed_embedding`` carries images of Qwen2.5-VL
            only.
        dtype: Tokens are cast to it (``bfloat16``, ``float16``, ``float32``); empty leaves them.
        allow_mismatch: Tokens of other weights than the model's are sent too.
    """

    source: ClassVar[str] = "sglang 0.5.23"
    takes: ClassVar[tuple[Layout, ...]] = ("ragged", "frames", "grid")
    domains: ClassVar[tuple[str, ...]] = ("feature",)
    extra: ClassVar[str] = "encoders"
    whole: ClassVar[bool] = False
    suffix: ClassVar[str] = ""
    model_use: ClassVar[ModelUse] = "optional"
    accepts: ClassVar[str] = (
        "tokens of Qwen2-VL, Qwen2.5-VL and Qwen3-VL in any layout, at their original positions"
    )
    loses: ClassVar[str] = "sound, mass"
    python: ClassVar[str] = "tokpipe.export.sglang.to_sglang(cache, model, messages)"

    model: str = ""
    prompt: str = ""
    positions: Literal["original", "compact"] = "original"
    media: Literal["video", "image"] = "video"
    format: Literal["processor_output", "precomputed_embedding"] = "processor_output"
    dtype: Literal["", "bfloat16", "float16", "float32"] = ""
    allow_mismatch: bool = False

    def write(self, cache: TokenCache, target: Path) -> Written:
        """Write the folder.

        Raises:
            CacheError: SGLang takes no rows of this model, or these are not its rows.
            WeightsMissing: The model's configuration or tokenizer is not there.
        """
        from tokpipe.export._servers.serial import dtype_of, save_json
        from tokpipe.export._servers.sglang_request import check_spelling, request_of
        from tokpipe.export._storage.torch_file import save_tensors

        request = request_of(
            cache, self.model, self.prompt, positions=self.positions,
            image=self.media == "image", dtype=dtype_of(self.dtype),
            allow_mismatch=self.allow_mismatch,
        )  # fmt: skip
        check_spelling(request, self.format)
        inputs = _inputs(request, self.format)
        target.mkdir(parents=True)
        save_tensors(inputs, target / "inputs.pt")
        item = request.item(self.format)
        facts = {name: _fact(name, value) for name, value in item.items()}
        save_json(
            {"input_ids": request.ids, f"{request.modality}_data": [facts]}, target / "request.json"
        )
        name = str(cache.info.get("name", "a cache"))
        script = _RUN.format(model=request.target.name, name=name)
        (target / "run.py").write_text(script, encoding="utf-8")
        sample = request.sample
        left = tuple(
            f"{cache.num_tokens(s)} {s} tokens are left out" for s in cache.streams if s != "video"
        )
        return Written(
            tokens=len(request.rows), added=sample.written, notes=(*sample.notes, *left),
            items={f"{request.modality}s": len(request.grid), "ids": len(request.ids)},
            example=f"python {target.name}/run.py",
        )  # fmt: skip


def to_sglang(
    cache: TokenCache,
    model: str = "",
    messages: str | Sequence[Mapping[str, Any]] | Sequence[int] = "",
    *,
    processor: Any = None,
    positions: Literal["original", "compact"] = "original",
    media: Literal["video", "image"] = "video",
    format: Literal["processor_output", "precomputed_embedding"] = "processor_output",  # noqa: A002
    dtype: Literal["", "bfloat16", "float16", "float32"] = "",
    allow_mismatch: bool = False,
) -> dict[str, Any]:
    """What ``Engine.generate`` takes of a cache.

    Args:
        cache: A feature cache of a Qwen-VL kind, after the projector.
        model: Hub name or local folder; empty for the one the cache was encoded for.
        messages: A question, a chat, or ids with one placeholder, as ``to_model_inputs`` takes.
        processor: The model's processor or tokenizer; None reads the tokenizer of ``model``.
        positions, media, format, dtype, allow_mismatch: As of the exporter.

    Returns:
        ``input_ids`` and ``video_data`` or ``image_data``:
        ``engine.generate(**inputs, sampling_params=...)``.

    Raises:
        CacheError: SGLang takes no rows of this model, or these are not its rows.
        WeightsMissing: The model's configuration or tokenizer is not there.
        WeightsMismatch: Other weights made the tokens.
    """
    from tokpipe.export._servers.serial import dtype_of
    from tokpipe.export._servers.sglang_request import check_spelling, request_of

    check_choices(SGLang, positions=positions, media=media, format=format, dtype=dtype)
    request = request_of(
        cache, model, messages, processor=processor, positions=positions,
        image=media == "image", dtype=dtype_of(dtype), allow_mismatch=allow_mismatch,
    )  # fmt: skip
    check_spelling(request, format)
    return _inputs(request, format)


def _inputs(request: Any, spelling: Any) -> dict[str, Any]:
    return {"input_ids": request.ids, f"{request.modality}_data": [request.item(spelling)]}


def _fact(name: str, value: Any) -> Any:
    """A value as JSON: grids and numbers in full, of other tensors the shape."""
    if not hasattr(value, "shape"):
        return value
    if name.endswith(("_thw", "_delta")):
        return value.tolist()
    return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
