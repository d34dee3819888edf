"""Chats whose template knows one form of contents alone; media that are not the cache's."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("torchvision")

from tokpipe.errors import CacheError
from tokpipe.export.transformers import to_model_inputs

MAKERS: dict[str, Callable[[], Any]] = import_module("tiny_models").MAKERS
tiny: Any = import_module("tiny_case")
CHAT = [
    {"role": "system", "content": "RULES"},
    {"role": "user", "content": "FIRST QUESTION"},
    {"role": "assistant", "content": "ANSWER"},
    {"role": "user", "content": "SECOND QUESTION"},
]
#: As LLaVA-1.5's: contents are lists, of a string it writes nothing.
LISTS = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_USERS = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% if m['role'] == 'user' %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}"
    "{% endfor %}{% else %}OTHERS{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
#: Contents of all but users are strings: of a list they fail, or write it as Python would.
FAILS = _USERS.replace("OTHERS", "{{ m['content'] + ' ' }}")
SHOWS = _USERS.replace("OTHERS", "{{ m['content'] }} ")
#: A list with media, or a string.
MEDIA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% if m['content'] is string %}{{ m['content'] + ' ' }}{% else %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% if m['content'][-1]['type'] == 'text' and m['content'] | length > 1 %}"
    "{{ m['content'][-1]['text'] + ' ' }}{% else %}{{ raise_exception('no media') }}{% endif %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
WANTED = (
    "SYSTEM: RULES USER: <image>\n<image>\n<image>\nFIRST QUESTION ASSISTANT: ANSWER "
    "USER: SECOND QUESTION ASSISTANT:"
)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    case = MAKERS["llava"]()
    return case, case.cache(tmp_path_factory.mktemp("llava"), tiny.pictures())


def written(case: Any, cache: Path, chat: Any) -> str:
    made = to_model_inputs(cache, case.model, case.processor, chat)
    text: str = case.processor.tokenizer.decode(made.ids[0])
    return text.replace("<image>" * 16, "<image>")


@pytest.mark.parametrize("template", [LISTS, FAILS, SHOWS, MEDIA])
def test_no_turn_is_lost_where_the_first_is_given_media(
    llava: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    case, cache = llava
    monkeypatch.setattr(case.processor, "chat_template", template)
    assert written(case, cache, CHAT) == WANTED
    # The same where the user marks the place.
    first = {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "FIRST QUESTION"}],
    }
    assert written(case, cache, [CHAT[0], first, *CHAT[2:]]) == WANTED


def test_a_template_that_takes_no_form_says_so_itself(
    llava: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, cache = llava
    monkeypatch.setattr(case.processor, "chat_template", "{{ raise_exception('roles alternate') }}")
    with pytest.raises(Exception, match="roles alternate"):
        written(case, cache, CHAT)


@pytest.mark.parametrize(
    "entry",
    [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}, {"image": "picture.png"},
     {"video": "film.mp4"}, {"type": "video_url", "video_url": {"url": "http://x"}},
     {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
     {"type": "text", "text": "", "image": "picture.png"}],
)  # fmt: skip
@pytest.mark.parametrize("marked", [True, False])
def test_media_beside_the_cache_are_refused(
    llava: tuple[Any, Path], entry: dict[str, Any], marked: bool
) -> None:
    case, cache = llava
    content = [*([{"type": "image"}] * marked), entry, {"type": "text", "text": "What?"}]
    with pytest.raises(CacheError, match="beside the cache") as caught:
        written(case, cache, [{"role": "user", "content": content}])
    assert caught.value.code == "export.prompt" and caught.value.hint


@pytest.mark.parametrize("form", ["question", "chat", "ids"])
@pytest.mark.parametrize(
    ("name", "stray"),
    [("video_llava", "<image>"), ("llava_onevision_video", "<image>"),
     ("llava_onevision_image", "<video>"), ("llava_next_video", "<image>")],
)  # fmt: skip
def test_placeholders_of_media_that_are_not_there_are_refused(
    tmp_path: Path, name: str, stray: str, form: str
) -> None:
    case = MAKERS[name]()
    cache = case.cache(tmp_path, tiny.pictures())
    question = f"Is {stray}, or {stray}, here?"
    messages: Any = question
    if form == "chat":
        texts = {"type": "text", "text": question}
        messages = [{"role": "user", "content": [{"type": case.kind}, texts]}]
    elif form == "ids":
        ids = case.own(tiny.pictures())["input_ids"]
        messages = torch.cat([ids, torch.tensor([[tiny.ID[stray]] * 2])], 1)
    with pytest.raises(CacheError, match=f"2 of `{stray}`") as caught:
        to_model_inputs(cache, case.model, case.processor, messages)
    assert caught.value.code == "export.prompt" and caught.value.hint
