"""A cache as vLLM takes it: items of a request, in the shapes of Python, of HTTP, and of a disk.

Source: vllm 0.33.0: ``renderers/chat_utils`` (parts of a message), ``multimodal/parse.py`` and the
parsers of ``model_executor/models`` (names and shapes), ``ECExampleConnector`` (the tree).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tokpipe.errors import CacheError
from tokpipe.export._media import Media, read_media
from tokpipe.export._servers.items import (
    Item,
    check_gridded,
    image_items,
    modality_for,
    pace,
    sound_item,
    video_item,
)
from tokpipe.export._servers.kinds import Modality
from tokpipe.export._servers.serial import encoded
from tokpipe.export._servers.target import Target, check_rows, check_weights, read_target

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache


@dataclass(frozen=True, slots=True)
class Sent:
    """What goes to vLLM of one stream.

    Attributes:
        modality: As what.
        items: One a video or sound, or one a picture.
        uuids: Name of each item, by which vLLM caches what it made of it.
        stamps: Text before each item; empty where there is none.
        target: The model.
        media: The stream.
        notes: What could not be checked.
    """

    modality: Modality
    items: tuple[Item, ...]
    uuids: tuple[str, ...]
    stamps: tuple[str, ...]
    target: Target
    media: Media
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for.

    Attributes:
        model: Empty for the one the cache was made for.
        media: ``auto``, ``video`` or ``image``.
        stamps: Times are written before single pictures.
        uuid: Name of the only item, or of the first part of all names; empty for a digest.
        dtype: Rows are cast to it; None leaves them.
        allow_mismatch: Rows of other weights than the model's are sent too.
    """

    model: str = ""
    media: str = "auto"
    stamps: bool = True
    uuid: str = ""
    dtype: torch.dtype | None = None
    allow_mismatch: bool = False


def sent_of(cache: TokenCache, wish: Wish) -> tuple[Sent, ...]:
    """What is sent of each stream the model takes.

    Raises:
        CacheError: vLLM takes no tokens of this model, or not this layout; or these are not
            tokens of this model.
    """
    made, why = [], ""
    for stream in cache.streams:
        if "stage" not in (cache.metadata.get(f"tokpipe.encoder.{stream}") or {}):
            continue
        target = read_target(cache, stream, wish.model)
        kind = target.kind
        takes = [m for m in kind.takes if (m == "audio") == (stream == "audio")]
        if takes:
            made.append(_sent(cache, read_media(cache, stream), target, wish))
            continue
        why = kind.why or f"vLLM takes no {stream} tokens of this model"
        why = f"`{target.name}` ({target.model_type}) takes no tokens through vLLM: {why}"
    if not made and why:
        raise CacheError(
            why, hint="send pictures and sound instead, from the cache made without --encoder: "
            "--to vllm:form=frames or --to storyboard; transformers takes the tokens",
            code="export.kind",
        )  # fmt: skip
    if not made:
        read_media(cache, cache.streams[0])
    return tuple(made)


def _sent(cache: TokenCache, media: Media, target: Target, wish: Wish) -> Sent:
    check_rows(media, target)
    notes = check_weights(media, target, allow_mismatch=wish.allow_mismatch)
    kind, still = target.kind, cache.duration is None and len(media.times) == 1
    modality = modality_for(media, kind.takes, wish.media, still=still)
    if kind.rope == "mrope":
        check_gridded(media, f"vllm with {target.model_type}")
    if modality == "audio":
        items = [sound_item(media, wish.dtype)]
    elif modality == "video":
        items = [video_item(media, target.merge, wish.dtype)]
    else:
        gridded = kind.rope == "mrope"
        items = image_items(media, target.merge, gridded=gridded, dtype=wish.dtype)
    told = wish.stamps and modality == "image" and not still
    stamps = [f"<{item.times[0]:.1f} seconds>" if told else "" for item in items]
    names = [item.digest(modality) for item in items]
    if wish.uuid:
        names = [f"{wish.uuid}-{k}" if len(items) > 1 else wish.uuid for k in range(len(items))]
    return Sent(modality, tuple(items), tuple(names), tuple(stamps), target, media, notes)


def python_data(sent: Sent) -> Any:
    """``multi_modal_data`` of one modality."""
    items, name = sent.items, sent.modality
    if sent.target.kind.rope != "mrope":
        return [item.data.clone() for item in items]
    made = {
        f"{name}_embeds": torch.cat([item.data for item in items]),
        f"{name}_grid_thw": torch.tensor([item.grid for item in items], dtype=torch.int64),
    }
    if name == "video" and sent.target.kind.stamped:
        made["timestamps"] = torch.tensor([item.times for item in items], dtype=torch.float64)
    if name == "video" and sent.target.kind.paced:
        made["second_per_grid_ts"] = torch.tensor(
            [pace(item.times)[0] for item in items], dtype=torch.float32
        )
    return made


def part(sent: Sent, number: int, *, embeds: bool = True) -> dict[str, Any]:
    """Part of a chat message for one item.

    Args:
        embeds: False leaves the rows out, for a server that finds them under the item's name.
    """
    item, kind, name = sent.items[number], sent.target.kind, f"{sent.modality}_embeds"
    value: Any = encoded(item.data)
    if kind.rope == "mrope":
        value = {name: value} if embeds else {}
        # What sizes the prompt may be numbers of JSON; anything else must be a tensor.
        value[f"{sent.modality}_grid_thw"] = list(item.grid or ())
        if sent.modality == "video" and kind.stamped:
            value["timestamps"] = list(item.times)
        if sent.modality == "video" and kind.paced:
            seconds = torch.tensor(pace(item.times)[0], dtype=torch.float32)
            value["second_per_grid_ts"] = encoded(seconds)
    elif not embeds:
        value = {"audio_num_tokens": [len(item.data)]}
    return {"type": name, name: value, "uuid": sent.uuids[number]}


def chat(sent: Sequence[Sent], prompt: str, *, embeds: bool = True) -> dict[str, Any]:
    """Body of ``/v1/chat/completions``."""
    content: list[dict[str, Any]] = []
    for one in sent:
        for number, stamp in enumerate(one.stamps):
            if stamp:
                content.append({"type": "text", "text": stamp})
            content.append(part(one, number, embeds=embeds))
    if prompt:
        content.append({"type": "text", "text": prompt})
    return {"model": sent[0].target.name, "messages": [{"role": "user", "content": content}]}


def text_of(sent: Sequence[Sent], prompt: str) -> str:
    """The user's turn where the prompt is text: marks of the items, then the question."""
    made = ""
    for one in sent:
        mark = dict(one.target.kind.mark)[one.modality]
        made += "".join(stamp + mark for stamp in one.stamps)
    return made + (f"\n{prompt}" if prompt else "")


def python_inputs(sent: Sequence[Sent], prompt: str) -> dict[str, Any]:
    """Input of ``LLM.generate``."""
    return {
        "prompt": text_of(sent, prompt),
        "multi_modal_data": {one.modality: python_data(one) for one in sent},
        "multi_modal_uuids": {one.modality: list(one.uuids) for one in sent},
    }
