"""Pictures with their times, a transcript, and messages for chat models that take pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from tokpipe.export._contract import ModelUse, Written
from tokpipe.export._storyboard import messages, videos
from tokpipe.export._storyboard.board import Board, Shown, make_board, write_manifest
from tokpipe.export._storyboard.limits import APIS, Wish
from tokpipe.export._storyboard.pictures import Format, Look
from tokpipe.export._storyboard.transcript import NONE, transcript_of, write_vtt
from tokpipe.spec import LAYOUTS, Layout

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache

Api = Literal["openai", "anthropic", "gemini", "qwen", "hf", "all"]

_EXAMPLE = {
    "openai": 'request = json.load(open("messages.openai.json"))\n'
    "OpenAI().chat.completions.create(model=MODEL, **request)",
    "anthropic": 'request = json.load(open("messages.anthropic.json"))\n'
    "Anthropic().messages.create(model=MODEL, max_tokens=1024, **request)",
    "gemini": 'request = json.load(open("messages.gemini.json"))\n'
    "client = genai.Client()\nclient.models.generate_content(model=MODEL, **request)",
    "qwen": '# in the folder\nrequest = json.load(open("messages.qwen_processor.json"))\n'
    "processor.apply_chat_template(request['messages'], tokenize=True, return_dict=True,\n"
    "                              processor_kwargs=request['processor_kwargs'])",
    "hf": '# in the folder\nrequest = json.load(open("messages.hf.json"))\n'
    "processor.apply_chat_template(request['messages'], tokenize=True, return_dict=True)",
}


@dataclass(frozen=True, slots=True)
class Storyboard:
    """Frames, ``manifest.jsonl``, ``transcript.vtt`` and messages, in one folder.

    Attributes:
        api: Whose messages to write: openai (also vLLM, SGLang, LMDeploy), anthropic, gemini, qwen,
            hf or all.
        prompt: The question at the end of the messages; without one it is yours to add.
        from_source: The media or its folder: pictures are then read again at full resolution.
        transcript: A .vtt, .srt or .jsonl file (start, stop, text); empty: the cache's own, `none`:
            none.
        max_frames: Pictures at most, spread evenly and chosen by rank; 0: as many as the API takes.
        max_side: Pixels of the longer side at most; 0: as large as the API can use.
        format: jpeg, webp or png.
        quality: Of jpeg and webp.
        detail: What OpenAI's models look at: low (512 pixels), high or auto.
        frames_layout: interleaved: each picture after its time; listed: all times first.
        repeats: Also pictures that look like the one before (no cell differs by 5 grey levels).
    """

    api: Api = "all"
    prompt: str = ""
    from_source: str = ""
    transcript: str = ""
    max_frames: Annotated[int, Ge(0)] = 0
    max_side: Annotated[int, Ge(0)] = 0
    format: Format = "jpeg"
    quality: Annotated[int, Ge(1), Le(100)] = 90
    detail: messages.Detail = "auto"
    frames_layout: messages.FramesLayout = "interleaved"
    repeats: bool = False

    source: ClassVar[str] = (
        "OpenAI chat completions, Anthropic messages, Gemini generateContent, "
        "qwen-vl-utils 0.0.14, transformers 5.24"
    )
    takes: ClassVar[tuple[Layout, ...]] = LAYOUTS
    domains: ClassVar[tuple[str, ...]] = ("signal", "feature")
    extra: ClassVar[str] = ""
    whole: ClassVar[bool] = False
    suffix: ClassVar[str] = ""
    model_use: ClassVar[ModelUse] = "no"
    accepts: ClassVar[str] = "any chat model that takes pictures; features only with --from-source"
    loses: ClassVar[str] = "sound that no transcript holds; which cells of a picture were kept"
    python: ClassVar[str] = ""

    def write(self, cache: TokenCache, target: Path) -> Written:
        """Write a folder.

        Raises:
            CacheError: The cache holds no pictures, and no source was named.
            MediaError: The source is another file; the transcript cannot be read.
            RecipeError: A parameter asks for what the named API does not take.
        """
        apis = APIS if self.api == "all" else (self.api,)
        lines = transcript_of(cache, self.transcript)
        wish = Wish(self.max_frames, self.max_side, only=self.api != "all")
        look = Look(self.format, self.quality, self.max_side)
        board = make_board(
            cache, target, apis, wish, look, lines, self._text_size,
            from_source=self.from_source, repeats=self.repeats,
        )  # fmt: skip
        write_manifest(board)
        notes = list(board.notes)
        if lines:
            write_vtt(lines, target / "transcript.vtt")
        elif self.transcript != NONE:
            notes.append("no transcript: the cache holds none; give one as transcript=FILE.vtt")
        count = 0
        for api in apis:
            for name, request in self._requests(api, board).items():
                _dump(request, target / f"messages.{name}.json")
                count += 1
        notes += self._remarks(board)
        items = {"frames": len(board.shown), "messages": count}
        if board.repeats:
            items["left-out repeats"] = board.repeats
        return Written(
            tokens=sum(one.moment.tokens for one in board.shown), added=-1,
            items=items | ({"transcript lines": len(lines)} if lines else {}),
            notes=tuple(notes), example=_EXAMPLE[apis[0]],
        )  # fmt: skip

    def _requests(self, api: str, board: Board) -> dict[str, dict[str, Any]]:
        """The messages of an API by the name of their file."""
        shown = board.by_api[api]
        if api == "qwen":
            return {
                "qwen": videos.frame_list(shown, self.prompt, board.end),
                "qwen_processor": videos.with_metadata(shown, self.prompt, board.end, doubled=True),
            }
        made = {api: self._request(api, shown, messages.file_data(board), board.end)}
        if api == "hf":
            made["hf_video"] = videos.with_metadata(shown, self.prompt, board.end, doubled=False)
        return made

    def _request(
        self, api: str, shown: Sequence[Shown], data: Callable[[Shown], str], end: float
    ) -> dict[str, Any]:
        parts = messages.parts_of(shown, self.prompt, self.frames_layout, end)
        if api == "openai":
            return messages.openai(parts, data, self.format, self.detail)
        if api == "anthropic":
            return messages.anthropic(parts, data, self.format)
        return messages.gemini(parts, data, self.format) if api == "gemini" else messages.hf(parts)

    def _text_size(self, api: str, shown: Sequence[Shown]) -> int:
        """Bytes of a request without its pictures; those of files hold none."""
        if api in ("qwen", "hf"):
            return 0
        return messages.text_bytes(self._request(api, shown, lambda _: "", 1e5))

    def _remarks(self, board: Board) -> list[str]:
        notes = []
        if "qwen" in board.by_api:
            wrong = videos.unevenness(board.by_api["qwen"], board.end)
            notes.append(
                "qwen: messages.qwen.json spaces its frames evenly, as qwen_vl_utils does (up to "
                f"{wrong:.1f} s beside the true times, which its text tells); "
                "messages.qwen_processor.json has true times"
            )
        if not self.prompt:
            notes.append("no prompt: the messages end with the pictures, add your question")
        return notes


def _dump(request: dict[str, Any], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(request, file, ensure_ascii=False)
