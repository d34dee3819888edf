"""vLLM: embeddings for LLM.generate, for the chat API and for its encoder cache, or keyframes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tokpipe.errors import CacheError
from tokpipe.export._contract import ModelUse, Written, check_choices

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache
    from tokpipe.spec import Layout

Form = Literal["auto", "offline", "http", "ec", "frames"]


@dataclass(frozen=True, slots=True)
class Vllm:
    """A folder with the request for vLLM.

    Source: vLLM 0.33.0, ``multimodal/parse.py``, ``multimodal/media``, ``renderers/chat_utils``,
    ``distributed/ec_transfer/ec_connector/example_connector.py``.

    Attributes:
        form: ``http``: ``request.json`` for ``/v1/chat/completions`` with the tokens inside.
            ``offline``: ``inputs.pt`` for ``LLM.generate`` and ``run.py``. ``ec``: the tree of the
            encoder cache on disk, and a request that names it. ``frames``: a request with the
            pictures of a signal cache as a video of JPEG. ``auto``: ``http`` for tokens,
            ``frames`` for signal.
        model: Hub name or local folder; empty for the one the cache was encoded for.
        prompt: The question.
        media: Tokens go as one ``video`` or as one ``image`` a picture; ``auto`` is the video
            where vLLM takes one.
        stamps: Before each single picture of a video stands its time, as ``<1.0 seconds>``.
        uuid: Name by which vLLM caches the item; empty for a digest of what is sent.
        dtype: Tokens are cast to it (``bfloat16``, ``float16``, ``float32``); empty leaves them.
        allow_mismatch: Tokens of other weights than the model's are sent too.
        doubled: Each keyframe is sent twice, for models that join two frames: ``auto`` asks the
            model's kind.
        from_source: The media itself, for pictures in its own size (``frames``).
        max_frames: At most so many keyframes (``frames``); 0 is all.
    """

    source: ClassVar[str] = "vllm 0.33.0"
    takes: ClassVar[tuple[Layout, ...]] = ("ragged", "frames", "grid")
    domains: ClassVar[tuple[str, ...]] = ("signal", "feature")
    extra: ClassVar[str] = "encoders"
    whole: ClassVar[bool] = False
    suffix: ClassVar[str] = ""
    model_use: ClassVar[ModelUse] = "optional"
    accepts: ClassVar[str] = (
        "tokens of Qwen-VL in layout frames or grid, of LLaVA, InternVL, PaliGemma and Qwen2-Audio "
        "in any; keyframes of any signal cache"
    )
    loses: ClassVar[str] = (
        "original positions (vLLM counts its own), mass; uneven times with Qwen2-VL and Qwen2.5-VL"
    )
    python: ClassVar[str] = "tokpipe.export.vllm.to_vllm(cache, model, prompt=...)"

    form: Form = "auto"
    model: str = ""
    prompt: str = ""
    media: Literal["auto", "video", "image"] = "auto"
    stamps: bool = True
    uuid: str = ""
    dtype: Literal["", "bfloat16", "float16", "float32"] = ""
    allow_mismatch: bool = False
    doubled: Literal["auto", "yes", "no"] = "auto"
    from_source: str = ""
    max_frames: Annotated[int, Field(ge=0)] = 0

    def write(self, cache: TokenCache, target: Path) -> Written:
        """Write the folder.

        Raises:
            CacheError: The model or the form does not take this cache.
            WeightsMissing: The model's configuration is not there.
        """
        from tokpipe.export._servers import vllm_write

        form = self.form
        if form == "auto":
            form = "frames" if cache.domain == "signal" or self.from_source else "http"
        target.mkdir(parents=True)
        if form == "frames":
            return vllm_write.frames(self, cache, target)
        if cache.domain == "signal":
            raise CacheError(
                f"form={form} takes tokens of an encoder, this cache is signal",
                hint="use form=frames, or encode it: tokpipe encode FILE --encoder "
                "hf_vision:MODEL --stage post_projector", code="export.domain",
            )  # fmt: skip
        made: Written = getattr(vllm_write, form)(self, cache, target)
        return made


def to_vllm(
    cache: TokenCache,
    model: str = "",
    *,
    prompt: str = "",
    media: Literal["auto", "video", "image"] = "auto",
    stamps: bool = True,
    dtype: Literal["", "bfloat16", "float16", "float32"] = "",
    allow_mismatch: bool = False,
    doubled: Literal["auto", "yes", "no"] = "auto",
) -> dict[str, Any]:
    """What ``LLM.generate`` takes of a cache.

    Args:
        cache: Of the signal domain (its pictures are sent) or the feature domain.
        model: Hub name or local folder; empty for the one the cache was encoded for.
        prompt: The question.
        media, stamps, dtype, allow_mismatch, doubled: As of the exporter.

    Returns:
        ``prompt``: the marks of the media and the question, to be put into the model's chat
        template; ``multi_modal_data``; and of tokens ``multi_modal_uuids``.

    Raises:
        CacheError: vLLM takes no such tokens of this model.
        WeightsMissing: The model's configuration is not there.
        WeightsMismatch: Other weights made the tokens.
    """
    from tokpipe.export._servers import vllm_frames, vllm_items
    from tokpipe.export._servers.serial import dtype_of

    check_choices(Vllm, media=media, dtype=dtype, doubled=doubled)
    if cache.domain == "signal":
        times, pictures = vllm_frames.pictures_of(cache, "", 0)
        if vllm_frames.joins_two(model, doubled):
            times, pictures = vllm_frames.doubled(times, pictures)
        data = vllm_frames.frames_data(times, pictures, cache.duration)
        return {"prompt": prompt, "multi_modal_data": data}
    wish = vllm_items.Wish(model, media, stamps, "", dtype_of(dtype), allow_mismatch)
    return vllm_items.python_inputs(vllm_items.sent_of(cache, wish), prompt)
