"""Questions and answers for the caches of a training set, from a user's file."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tokpipe.errors import MediaError, MediaNotFound, RecipeError

#: What trainers replace by media wherever it stands.
_TAG = re.compile(r"<(image|video|audio)>")


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and its answer, of the cache called ``key``."""

    key: str
    question: str
    answer: str


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file: one ``{"key": .., "question": .., "answer": ..}`` a line.

    Raises:
        MediaNotFound: The file cannot be read.
        MediaError: A line is not as it should be, or holds a tag that trainers replace.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MediaNotFound(
            f"the pairs `{path}` cannot be read: {error}",
            hint='write one {"key": .., "question": .., "answer": ..} a line',
        ) from error
    return [_pair(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def one_pair(question: str, answer: str) -> Pair:
    """The pair of every cache.

    Raises:
        RecipeError: There is no question or no answer to train on, or one holds a tag.
    """
    if not question or not answer:
        raise RecipeError(
            "`jsonl`: there is nothing to train on without questions and answers",
            hint="give pairs=FILE.jsonl (key, question, answer), or --prompt and answer=TEXT",
            code="export.pairs",
        )
    for text in (question, answer):
        if tag := tag_in(text):
            raise RecipeError(
                f"`jsonl`: {tag} in a text would be replaced by media",
                hint="write it otherwise", code="export.pairs",
            )  # fmt: skip
    return Pair("", question, answer)


def tag_in(text: str) -> str:
    """The first tag that trainers replace, empty if there is none."""
    found = _TAG.search(text)
    return found[0] if found else ""


def without_tags(text: str) -> str:
    """A text in which no tag is left: its brackets become round."""
    return _TAG.sub(r"(\1)", text)


def matched(
    pairs: Iterable[Pair], names: Sequence[Collection[str]], shown: Sequence[str]
) -> tuple[list[list[Pair]], list[str]]:
    """Pairs of each cache in the order they came, and the keys that name no cache.

    Args:
        names: What each cache is called.
        shown: What each is called in messages.

    Raises:
        MediaError: A key names two caches: whose answer it is cannot be known.
    """
    out: list[list[Pair]] = [[] for _ in names]
    unused: dict[str, None] = {}
    owners: dict[str, list[int]] = {}
    for number, own in enumerate(names):
        for name in own:
            owners.setdefault(name, []).append(number)
    for pair in pairs:
        found = owners.get(pair.key, [])
        if len(found) > 1:
            raise MediaError(
                f"the key `{pair.key}` of the pairs names {len(found)} caches: "
                f"`{shown[found[0]]}` and `{shown[found[1]]}`",
                hint="use names that only one cache has, or export these caches apart",
                code="export.pairs",
            )  # fmt: skip
        if found:
            out[found[0]].append(pair)
        else:
            unused[pair.key] = None
    return out, list(unused)


def _pair(path: Path, number: int, line: str) -> Pair:
    with suppress(ValueError, KeyError, TypeError):
        found = json.loads(line)
        made = Pair(*(str(found[name]).strip() for name in ("key", "question", "answer")))
        if tag := tag_in(made.question) or tag_in(made.answer):
            raise MediaError(
                f"line {number} of `{path}` holds {tag}, which would be replaced by media",
                hint="the export puts the tags where the media go", code="export.pairs",
            )  # fmt: skip
        if made.question and made.answer:
            return made
    raise MediaError(
        f"line {number} of `{path}` has no `key`, `question` and `answer`",
        hint='write {"key": "lecture", "question": "..", "answer": ".."}', code="export.pairs",
    )  # fmt: skip
