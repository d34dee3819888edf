"""The files of each form, what they add, and what to tell the user."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from tokpipe.encode._hf.load import read_tokenizer
from tokpipe.errors import CacheError, TokpipeError
from tokpipe.export._contract import Written
from tokpipe.export._servers import vllm_frames
from tokpipe.export._servers.items import pace
from tokpipe.export._servers.serial import dtype_of, save_json
from tokpipe.export._servers.target import recorded_model
from tokpipe.export._servers.vllm_items import Sent, Wish, chat, python_inputs, sent_of
from tokpipe.export._storage.torch_file import save_tensors

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache
    from tokpipe.export.vllm import Vllm

_POST = "curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d @{}"

_RUN = """# Ask {model!r} about {name!r}, from its tokens; needs vllm 0.33 and a GPU.

from pathlib import Path

import torch

inputs = torch.load(Path(__file__).with_name("inputs.pt"), weights_only=True)

if __name__ == "__main__":
    from vllm import LLM

    llm = LLM(model={model!r}, enable_mm_embeds=True, limit_mm_per_prompt={limits})
    chat = [{{"role": "user", "content": inputs["prompt"]}}]
    inputs["prompt"] = llm.get_tokenizer().apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )
    print(llm.generate(inputs)[0].outputs[0].text)
"""


def http(exporter: Vllm, cache: TokenCache, target: Path) -> Written:
    """``request.json`` with the tokens inside."""
    sent = sent_of(cache, _wish(exporter))
    save_json(chat(sent, exporter.prompt), target / "request.json")
    return _written(cache, sent, f"{_serve(sent)}\n{_POST.format(target.name + '/request.json')}")


def offline(exporter: Vllm, cache: TokenCache, target: Path) -> Written:
    """``inputs.pt`` and ``run.py``."""
    sent = sent_of(cache, _wish(exporter))
    save_tensors(python_inputs(sent, exporter.prompt), target / "inputs.pt")
    limits = _limits(sent)
    name = str(cache.info.get("name", "a cache"))
    script = _RUN.format(model=sent[0].target.name, name=name, limits=limits)
    (target / "run.py").write_text(script, encoding="utf-8")
    return _written(cache, sent, f"python {target.name}/run.py")


def ec(exporter: Vllm, cache: TokenCache, target: Path) -> Written:
    """``HASH/encoder_cache.safetensors`` of every item, and ``request.json`` that names them."""
    sent = sent_of(cache, _wish(exporter))
    for one in sent:
        if one.target.kind.rope != "mrope" and one.modality != "audio":
            raise CacheError(
                f"vLLM finds the size of a picture of {one.target.model_type} in its tokens "
                "alone, so a request cannot leave them to the encoder cache",
                hint="use form=http or form=offline", code="export.form",
            )  # fmt: skip
        for item, name in zip(one.items, one.uuids, strict=True):
            if "/" in name or name.startswith("."):
                raise CacheError(f"`{name}` cannot name a folder",
                                 hint="give another uuid, or none", code="export.uuid")  # fmt: skip
            (target / name).mkdir()
            rows = {"ec_cache": item.data.clone()}
            save_file(rows, target / name / "encoder_cache.safetensors")
    save_json(chat(sent, exporter.prompt, embeds=False), target / "request.json")
    config = json.dumps({
        "ec_connector": "ECExampleConnector", "ec_role": "ec_consumer",
        "ec_connector_extra_config": {"shared_storage_path": target.name},
    })  # fmt: skip
    example = (
        f"{_serve(sent)} --ec-transfer-config '{config}'\n"
        "# no mm_processor_kwargs or media_io_kwargs: vLLM would look under another name\n"
        f"{_POST.format(target.name + '/request.json')}"
    )
    return _written(cache, sent, example)


def frames(exporter: Vllm, cache: TokenCache, target: Path) -> Written:
    """``request.json`` with keyframes as JPEG."""
    times, pictures = vllm_frames.pictures_of(cache, exporter.from_source, exporter.max_frames)
    if not times:
        raise CacheError("the cache has no pictures", hint="export a cache with video",
                         code="export.domain")  # fmt: skip
    count, notes = len(times), []
    model = exporter.model or recorded_model(cache, "video")
    twice = vllm_frames.joins_two(model, exporter.doubled)
    if exporter.doubled == "auto" and not model:
        notes.append(
            "no model is named: each keyframe is sent once, which blends two of them in models "
            "that join two frames (Qwen-VL); name it, or set doubled=yes"
        )
    if twice:
        times, pictures = vllm_frames.doubled(times, pictures)
    if "audio" in cache.streams:
        notes.append("sound is left out")
    body = vllm_frames.frames_chat(
        model or "MODEL", times, pictures, exporter.prompt, cache.duration
    )
    save_json(body, target / "request.json")
    example = f"vllm serve {model or 'MODEL'}\n{_POST.format(target.name + '/request.json')}"
    return Written(
        tokens=cache.num_tokens("video"), added=-1, notes=tuple(notes), example=example,
        items={"keyframes": count, "frames": len(times)},
    )  # fmt: skip


def _wish(exporter: Vllm) -> Wish:
    return Wish(
        exporter.model, exporter.media, exporter.stamps, exporter.uuid, dtype_of(exporter.dtype),
        exporter.allow_mismatch,
    )  # fmt: skip


def _limits(sent: Sequence[Sent]) -> dict[str, int]:
    """Limits under which vLLM loads no tower: one that sees needs both of its modalities at 0."""
    named = {"audio"} if all(one.modality == "audio" for one in sent) else {"image", "video"}
    return dict.fromkeys(sorted(named | {one.modality for one in sent}), 0)


def _serve(sent: Sequence[Sent]) -> str:
    limits = json.dumps(_limits(sent))
    kinds = [one.target.kind for one in sent if one.modality == "video"]
    # EVS works on embeddings too.
    prunes = any(kind.paced or kind.stamped for kind in kinds)
    note = "# without --video-pruning-rate: the server would prune these tokens again\n"
    return (
        f"{note if prunes else ''}vllm serve {sent[0].target.name} --enable-mm-embeds "
        f"--limit-mm-per-prompt '{limits}'"
    )


def _written(cache: TokenCache, sent: Sequence[Sent], example: str) -> Written:
    items = {f"{one.modality}s": len(one.items) for one in sent}
    left = [stream for stream in cache.streams if stream not in {one.media.stream for one in sent}]
    lost = [f"{cache.num_tokens(s)} {s} tokens are left out: vLLM takes none of them" for s in left]
    return Written(
        tokens=sum(len(item.data) for one in sent for item in one.items), added=_added(sent),
        items=items, notes=(*_notes(sent), *lost), example=example,
    )  # fmt: skip


def _notes(sent: Sequence[Sent]) -> list[str]:
    """What is lost or otherwise than in the cache."""
    made: list[str] = []
    for one in sent:
        made += one.notes
        kind, times = one.target.kind, one.media.times.tolist()
        if one.modality == "video" and not kind.stamped and len(times) > 1:
            mean, even = pace(times)
            if not kind.paced:
                made.append("the model is told the order of pictures, not their times")
            elif not even:
                made.append(
                    f"pictures are unevenly apart; the model is told {mean:.3f} s for all "
                    "(media=image writes each time as text)"
                )
        if one.modality == "image" and len(times) > 1:
            each = "with its time as text before it" if any(one.stamps) else "without its time"
            made.append(f"each picture is an image of its own, {each}")
        if kind.rope != "mrope" and not one.media.whole:
            made.append("positions are counted without the dropped tokens (compact)")
    return made


def _added(sent: Sequence[Sent]) -> int:
    """Tokens that vLLM writes around the items; -1 where it cannot be known."""
    total = 0
    for one in sent:
        kind = one.target.kind
        texts = [stamp for stamp in one.stamps if stamp]
        pictures = sum(len(item.times) for item in one.items)
        if one.modality == "video" and kind.stamped:
            texts = [f"<{time:.1f} seconds>" for item in one.items for time in item.times]
            # Those around the whole video stay too, from transformers 5.10 on.
            total += 2 * pictures + 2 * len(one.items)
        elif kind.rope == "mrope" or one.target.model_type in ("internvl", "qwen2_audio"):
            total += 2 * len(one.items)
        counted = _count(one.target.name, texts)
        if counted < 0:
            return -1
        total += counted
    return total


def _count(model: str, texts: Sequence[str]) -> int:
    """Tokens of texts, -1 where the model has no tokenizer here."""
    if not texts:
        return 0
    try:
        words = read_tokenizer(model)
    except TokpipeError:
        return -1
    return sum(len(words.encode(text, add_special_tokens=False)) for text in texts)
