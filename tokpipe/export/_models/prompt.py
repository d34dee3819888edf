"""The prompt as the model's processor writes it, with every placeholder and what fills it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokpipe.errors import CacheError, ModelError
from tokpipe.export._models.chat import Messages, rendered
from tokpipe.export._models.family import Family, Part, Prompt, Run, Script


def prompt_of(family: Family, script: Script, messages: Messages, *, compact: bool) -> Prompt:
    """Write the prompt and find its placeholders.

    Args:
        compact: Ready ids may have just as many placeholders as there are rows.

    Raises:
        CacheError: Markers or placeholders are not as many as the media need, or there are some of
            media that the cache does not have.
        ModelError: A chat without a chat template.
    """
    ready = _ready(messages)
    if ready is not None:
        ids, parts = _spliced(family, script, ready)
    else:
        text = family.phrase(_written(family, script, messages))
        pieces, parts = _replaced(text, script.parts)
        ids = family.words.ids(pieces, special=family.special(text))
    runs = [run for part in parts for run in part.runs if len(run)]
    found = torch.tensor(ids, dtype=torch.int64)
    numbers = {token: family.words.number(token) for token in {run.token for run in runs}}
    if ready is not None and compact:
        runs = _shortened(found, runs, numbers)
    prompt = _located(found, runs, numbers, family.streams)
    _check_stray(family, prompt)
    return prompt


def _ready(messages: Messages) -> list[int] | None:
    """Ids, where the messages are ids already."""
    if isinstance(messages, Tensor):
        if messages.ndim > 2 or (messages.ndim == 2 and len(messages) != 1):
            raise CacheError(
                f"input ids of one prompt are [S] or [1, S], got {list(messages.shape)}",
                hint="make one prompt at a time and join them with batch_inputs",
                code="export.prompt",
            )
        return [int(number) for number in messages.flatten().tolist()]
    if isinstance(messages, str):
        return None
    numbers = [number for number in messages if isinstance(number, int)]
    return numbers if numbers and len(numbers) == len(messages) else None


def _written(family: Family, script: Script, messages: Messages) -> str:
    """The prompt as text, with markers."""
    chat: list[Mapping[str, Any]]
    if isinstance(messages, str):
        chat = [{"role": "user", "content": [{"type": "text", "text": messages}]}]
    else:
        chat = [message for message in messages if isinstance(message, Mapping)]
    if not chat:
        raise CacheError(
            "there are no messages", hint="give a question or a chat", code="export.prompt"
        )
    ends = chat[-1].get("role") == "assistant"
    made = rendered(family, script, chat, generation=not ends)
    if made is not None:
        return made
    if not isinstance(messages, str):
        raise ModelError(
            "messages need a chat template, and neither processor nor tokenizer has one",
            hint="give the question as a string, or set tokenizer.chat_template",
        )
    return family.plain([part.marker for part in script.parts], messages)


def _replaced(text: str, parts: Sequence[Part]) -> tuple[str, list[Part]]:
    """The text with its markers replaced, and the parts in the order of the text."""
    waiting = {marker: [p for p in parts if p.marker == marker] for marker in _markers(parts)}
    pattern = "|".join(re.escape(marker) for marker in waiting)
    order = [found.group() for found in re.finditer(pattern, text)] if pattern else []
    for marker, those in waiting.items():
        if order.count(marker) != len(those):
            raise CacheError(
                f"the prompt has `{marker}` {order.count(marker)} times, the cache needs "
                f"{len(those)}",
                hint="leave markers out of your text; the media are put first",
                code="export.placeholders",
            )
    queues = {marker: iter(those) for marker, those in waiting.items()}
    found = [next(queues[marker]) for marker in order]
    texts = iter(part.text for part in found)
    return (re.sub(pattern, lambda _: next(texts), text) if found else text), found


def _markers(parts: Sequence[Part]) -> list[str]:
    """Distinct markers, longest first, so that none hides another that begins like it."""
    return sorted({part.marker for part in parts}, key=lambda marker: (-len(marker), marker))


def _spliced(family: Family, script: Script, ids: list[int]) -> tuple[list[int], list[Part]]:
    """Ready ids with their markers replaced; as they are where those are no markers, or too few."""
    parts = list(script.parts)
    marks = {m: family.words.ids(m, special=False) for m in _markers(parts)}
    spots: list[tuple[int, str]] = []
    at = 0
    while at < len(ids):
        marker = next((m for m, mark in marks.items() if ids[at : at + len(mark)] == mark), None)
        if marker is not None:
            spots.append((at, marker))
        at += len(marks[marker]) if marker is not None else 1
    if _complete(family, script, ids, [(spot, marks[marker]) for spot, marker in spots]):
        return ids, parts
    names = [marker for _, marker in spots]
    if len(spots) == 1 and len(marks) == 1:
        groups = [parts]
    elif all(names.count(m) == sum(p.marker == m for p in parts) for m in marks):
        queues = {m: iter([p for p in parts if p.marker == m]) for m in marks}
        groups = [[next(queues[marker])] for marker in names]
    else:
        return ids, parts
    made: list[int] = []
    last = 0
    for (spot, marker), group in zip(spots, groups, strict=True):
        text = "".join(part.text for part in group)
        made += [*ids[last:spot], *family.words.ids(text, special=False)]
        last = spot + len(marks[marker])
    return [*made, *ids[last:]], [part for group in groups for part in group]


def _complete(
    family: Family, script: Script, ids: list[int], spots: Sequence[tuple[int, list[int]]]
) -> bool:
    """What looks like markers in ready ids belongs to media that are there already.

    A placeholder stands beside them, or before the first of them what a part begins with.
    """
    numbers = {family.words.number(run.token) for part in script.parts for run in part.runs}
    marked = {at for spot, mark in spots for at in range(spot, spot + len(mark))}
    if any(number in numbers and at not in marked for at, number in enumerate(ids)):
        return True
    first = script.parts[0].pieces[0] if script.parts else ""
    if not spots or not isinstance(first, str):
        return False
    spot, mark = spots[0]
    head = family.words.ids(first, special=False)
    # A marker that is no placeholder may be part of what it is replaced by.
    return bool(head) and set(mark) <= numbers and ids[max(spot - len(head), 0) : spot] == head


def _shortened(ids: Tensor, runs: list[Run], numbers: Mapping[str, int]) -> list[Run]:
    """The runs, without dropped tokens where the ids have no placeholders for those."""
    slots = int(sum((ids == number).sum() for number in numbers.values()))
    kept = [replace(run, rows=run.rows[run.rows >= 0]) for run in runs]
    if slots == sum(map(len, kept)) != sum(map(len, runs)):
        return [run for run in kept if len(run)]
    return runs


def _located(
    ids: Tensor, runs: list[Run], numbers: Mapping[str, int], streams: tuple[str, ...]
) -> Prompt:
    expected = torch.cat([
        torch.zeros(0, dtype=torch.int64),
        *(torch.full((len(run),), numbers[run.token]) for run in runs),
    ])  # fmt: skip
    known = torch.tensor(sorted(numbers.values()), dtype=torch.int64)
    slots = torch.isin(ids, known).nonzero()[:, 0]
    if len(slots) != len(expected) or not torch.equal(ids[slots], expected):
        raise CacheError(
            f"the prompt has {len(slots)} placeholders, the media need {len(expected)}",
            hint="give messages, or input ids with one placeholder where the media belong",
            code="export.placeholders",
        )
    stream = torch.full_like(ids, -1)
    rows = torch.full_like(ids, -1)
    located: list[tuple[int, Run]] = []
    at = 0
    for run in runs:
        mine = slots[at : at + len(run)]
        if int(mine[-1] - mine[0]) != len(run) - 1:
            raise CacheError(
                "placeholders of one picture do not stand side by side in the prompt",
                hint="give messages, or input ids with one placeholder where the media belong",
                code="export.placeholders",
            )
        stream[mine], rows[mine] = streams.index(run.stream), run.rows
        located.append((int(mine[0]), run))
        at += len(run)
    return Prompt(ids=ids, runs=tuple(located), streams=streams, stream=stream, rows=rows)


def _check_stray(family: Family, prompt: Prompt) -> None:
    """Refuse placeholders that nothing fills, of whatever medium the model takes."""
    known = torch.tensor(sorted(family.placeholders), dtype=torch.int64)
    stray = prompt.ids[torch.isin(prompt.ids, known) & (prompt.stream < 0)]
    if len(stray):
        raise CacheError(
            f"the prompt has {len(stray)} of `{family.words.token(int(stray[0]))}` for which the "
            "cache has nothing",
            hint="leave placeholders out of your text; media beside the cache cannot be given",
            code="export.prompt",
        )
