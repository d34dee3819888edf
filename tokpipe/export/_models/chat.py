"""A user's chat with the media in it, written by the model's chat template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from tokpipe.errors import CacheError
from tokpipe.export._models.family import Family, Script

Message = Mapping[str, Any]
Messages = str | Sequence[Message] | Sequence[int] | Tensor
#: Stream that an entry of a chat message stands for.
_STREAM = {"image": "video", "video": "video", "audio": "audio"}
#: Kinds and keys of entries that bring media of their own, as other libraries write them.
_BRINGS = frozenset(
    f"{head}{kind}{tail}" for kind in _STREAM for head in ("", "input_") for tail in ("", "_url")
)


def wanted(messages: Messages) -> bool | None:
    """The messages ask for images (True) or for a video (False); None where they say nothing."""
    for entry in _entries(messages):
        if entry.get("type") in ("image", "video"):
            return bool(entry["type"] == "image")
    return None


def rendered(
    family: Family, script: Script, chat: Sequence[Message], *, generation: bool
) -> str | None:
    """The prompt with markers, None where there is no chat template.

    Contents that are strings stay so, or become lists as those with media are, whichever the
    template writes without losing a turn: some know lists alone, some strings alone.

    Raises:
        CacheError: The chat marks media that the cache does not have.
    """
    filled, first = _with_media(chat, script, family.streams)
    listed, users = _listed(filled), _listed(filled, "user")
    # What the user wrote is what the model's own processor would be given.
    forms = [listed, users, filled] if first else [filled, listed, users]
    best: tuple[int, str] | None = None
    failed: Exception | None = None
    for form in (form for number, form in enumerate(forms) if form not in forms[:number]):
        try:
            made = family.words.chat(form, generation=generation)
        except Exception as error:  # noqa: BLE001 - templates raise what they like
            failed = failed if form is not filled and failed else error
            continue
        if made is None:
            return None
        lost = _lost(made, listed)
        if best is None or lost < best[0]:
            best = lost, made
        if not lost:
            break
    if best is None and failed is not None:
        raise failed
    return best[1] if best is not None else None


def _entries(messages: Messages) -> Iterator[Mapping[str, Any]]:
    """Entries of the contents of a chat."""
    if isinstance(messages, str | Tensor):
        return
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, Sequence) and not isinstance(content, str):
            yield from (entry for entry in content if isinstance(entry, Mapping))


def _with_media(
    chat: Sequence[Message], script: Script, streams: Sequence[str]
) -> tuple[list[Message], bool]:
    """The chat with the script's entries where the user put a marker, else at its beginning.

    With it, whether a content that was a string was made a list for that.
    """
    seen: set[str] = set()
    made = [dict(message) for message in chat]
    for message in made:
        content = message.get("content")
        if not isinstance(content, Sequence) or isinstance(content, str):
            continue
        entries: list[Any] = []
        for entry in content:
            stream = _stream(entry)
            if stream is None:
                entries.append(entry)
                continue
            if stream in seen or stream not in script.content:
                raise CacheError(
                    f"the messages mark {stream} that the cache has not (again)",
                    hint="mark each stream of the cache once, other media cannot be given beside",
                    code="export.placeholders",
                )
            seen.add(stream)
            entries += script.content[stream]
        message["content"] = entries
    rest = [
        entry for stream in streams if stream in script.content and stream not in seen
        for entry in script.content[stream]
    ]  # fmt: skip
    if not rest:
        return list(made), False
    first = next((m for m in made if m.get("role") == "user"), made[0])
    content = first.get("content") or []
    if isinstance(content, str):
        first["content"] = [*rest, _text(content)]
        return list(made), True
    first["content"] = [*rest, *content]
    return list(made), False


def _stream(entry: Any) -> str | None:
    """The stream an entry of a message stands for; None for text.

    Raises:
        CacheError: It brings media in a way that is not known here.
    """
    if not isinstance(entry, Mapping):
        return None
    kind = str(entry.get("type"))
    if kind in _STREAM:
        return _STREAM[kind]
    brings = next((key for key in (kind, *map(str, entry)) if key in _BRINGS), None)
    if brings is not None:
        raise CacheError(
            f"the messages have an entry of `{brings}`, media beside the cache cannot be given",
            hint='mark where the cache belongs by {"type": "video"}, "image" or "audio" alone',
            code="export.prompt",
        )
    return None


def _text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def _listed(chat: Sequence[Message], role: str = "") -> list[Message]:
    """The chat with contents that are strings as lists, all or those of one role."""
    return [
        {**message, "content": [_text(message["content"])]}
        if isinstance(message.get("content"), str) and role in ("", message.get("role"))
        else message
        for message in chat
    ]


def _lost(made: str, chat: Sequence[Message]) -> int:
    """Texts of the chat that are not in the prompt, or are there as a list of Python."""
    texts = [str(entry.get("text") or "").strip() for entry in _entries(chat)]
    for sign in ("'type': 'text'", '"type": "text"'):
        if sign in made and not any(sign in text for text in texts):
            return len(texts) + 1
    return sum(max(0, many - made.count(text)) for text, many in Counter(texts).items() if text)
