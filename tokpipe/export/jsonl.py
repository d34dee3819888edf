"""Training sets of pictures with times in text: jsonl for LLaMA-Factory, ms-swift and TRL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Le

from tokpipe.cache.format import SUFFIX
from tokpipe.cache.reader import open_cache
from tokpipe.errors import CacheError, MediaError, RecipeError, error_context
from tokpipe.export._contract import ModelUse, Written
from tokpipe.export._storage.gather import item_ids
from tokpipe.export._storyboard.board import make_board
from tokpipe.export._storyboard.frames import check_pictures
from tokpipe.export._storyboard.limits import Wish
from tokpipe.export._storyboard.pictures import Format, Look
from tokpipe.export._storyboard.transcript import transcript_of
from tokpipe.export._training.pairs import Pair, matched, one_pair, read_pairs
from tokpipe.export._training.rows import Media, Style, dataset_info, row_of
from tokpipe.spec import LAYOUTS, Layout

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache

_EXAMPLE = {
    "llama-factory": "llamafactory-cli train --dataset_dir FOLDER --dataset {name} ...",
    "ms-swift": "cd FOLDER && swift sft --dataset data.jsonl ...",
    "trl": "# in the folder\nfrom datasets import Image, List, load_dataset\n"
    'rows = load_dataset("json", data_files="data.jsonl", split="train")\n'
    'rows = rows.cast_column("images", List(Image()))',
}


@dataclass(slots=True)
class _Tally:
    """What was written so far."""

    rows: int = 0
    pictures: int = 0
    tokens: int = 0
    without: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Jsonl:
    """``data.jsonl``, the pictures, and LLaMA-Factory's ``dataset_info.json``, in one folder.

    Attributes:
        style: llama-factory, ms-swift or trl.
        pairs: A .jsonl file of `key` (a cache's name without its suffix, or its media's name),
            `question` and `answer`.
        prompt: A question for every cache, in place of pairs.
        answer: Its answer.
        media: images: each picture with its time; videos: one list of frames (not for trl).
        doubled: In lists of frames, each picture twice, for encoders that join two frames (Qwen
            kinds).
        name: Of the entry in dataset_info.json.
        from_source: Folder of the media (or the media itself, of one cache): pictures are then read
            again at full resolution.
        max_frames: Pictures of a cache at most, spread evenly and chosen by rank; 0: all.
        max_side: Pixels of the longer side at most; 0: as they are.
        format: jpeg, webp or png.
        quality: Of jpeg and webp.
    """

    style: Style = "llama-factory"
    pairs: str = ""
    prompt: str = ""
    answer: str = ""
    media: Media = "images"
    doubled: bool = True
    name: str = "tokpipe"
    from_source: str = ""
    max_frames: Annotated[int, Ge(0)] = 32
    max_side: Annotated[int, Ge(0)] = 0
    format: Format = "jpeg"
    quality: Annotated[int, Ge(1), Le(100)] = 90

    source: ClassVar[str] = "LLaMA-Factory 0.9.5, ms-swift 4.6.0, TRL 1.16.0"
    takes: ClassVar[tuple[Layout, ...]] = LAYOUTS
    domains: ClassVar[tuple[str, ...]] = ("signal", "feature")
    extra: ClassVar[str] = ""
    whole: ClassVar[bool] = True
    suffix: ClassVar[str] = ""
    model_use: ClassVar[ModelUse] = "no"
    accepts: ClassVar[str] = "any trainer of models that take pictures or lists of frames"
    loses: ClassVar[str] = "times but in text; sound that no transcript holds"
    python: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Refuse what no trainer reads."""
        if self.style == "trl" and self.media == "videos":
            raise ValueError("TRL trains on images only, leave out media=videos")

    def check(self, cache: TokenCache) -> None:
        """Refuse a cache without pictures, or without the media to read them from."""
        if "video" not in cache.streams:
            raise CacheError("the cache has no video", hint="leave it out", code="cache.stream")
        if not self.from_source:
            check_pictures(cache)

    def write_all(self, caches: Sequence[Path], target: Path) -> Written:
        """Write a folder.

        Raises:
            RecipeError: No questions and answers were given, or both ways of giving them.
            CacheError, MediaError: As for a storyboard, naming the cache.
        """
        paths: Sequence[Path] = getattr(caches, "names", caches)
        given, unused = self._given(caches, paths)
        tally = _Tally()
        target.mkdir(parents=True)
        with (target / "data.jsonl").open("w", encoding="utf-8") as file:
            for key, path, pairs in zip(item_ids(paths), caches, given, strict=True):
                with error_context(str(path)), open_cache(path) as cache:
                    for row in self._rows(key, cache, target, pairs, tally):
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if self.style == "llama-factory":
            info = json.dumps(dataset_info(self.name, self.media), indent=2) + "\n"
            (target / "dataset_info.json").write_text(info, encoding="utf-8")
        return Written(
            tokens=tally.tokens, added=-1,
            items={"rows": tally.rows, "caches": len(caches) - len(tally.without),
                   "pictures": tally.pictures},
            notes=tuple(self._notes(unused, tally)),
            example=_EXAMPLE[self.style].format(name=self.name),
        )  # fmt: skip

    def _given(
        self, caches: Sequence[Path], paths: Sequence[Path]
    ) -> tuple[list[list[Pair]], list[str]]:
        """Pairs of each cache, and keys that name none.

        Args:
            paths: The caches by the names users know.
        """
        if self.pairs and (self.prompt or self.answer):
            raise RecipeError(
                "`jsonl`: pairs, and prompt with answer, are two ways of asking",
                hint="give one of them", code="export.pairs",
            )  # fmt: skip
        if not self.pairs:
            return [[one_pair(self.prompt, self.answer)] for _ in paths], []
        pairs = read_pairs(Path(self.pairs))
        names = []
        for path, held in zip(paths, caches, strict=True):
            with error_context(str(path)), open_cache(held) as cache:
                names.append({_name_of(path), str(cache.info.get("name") or "")} - {""})
        found, unused = matched(pairs, names, [str(path) for path in paths])
        if not any(found):
            raise MediaError(
                f"no key of `{self.pairs}` names one of the caches",
                hint=f"keys are names such as `{_name_of(paths[0])}`", code="export.pairs",
            )  # fmt: skip
        return found, unused

    def _rows(
        self, key: str, cache: TokenCache, target: Path, pairs: Sequence[Pair], tally: _Tally
    ) -> Iterator[dict[str, Any]]:
        """The rows of a cache; its pictures are written on the way."""
        if not pairs:
            tally.without.append(key)
            return
        board = make_board(
            cache, target / "images" / key, ("hf",), Wish(self.max_frames, self.max_side, False),
            Look(self.format, self.quality, self.max_side), transcript_of(cache), lambda *_: 0,
            from_source=self.from_source,
        )  # fmt: skip
        tally.pictures += len(board.shown)
        tally.tokens += sum(one.moment.tokens for one in board.shown)
        for pair in pairs:
            tally.rows += 1
            yield row_of(
                key, board.shown, pair, board.end, self.style, self.media, doubled=self.doubled
            )  # fmt: skip

    def _notes(self, unused: Sequence[str], tally: _Tally) -> list[str]:
        notes = []
        if tally.without:
            listed = ", ".join(tally.without[:3]) + (", ..." if len(tally.without) > 3 else "")
            notes.append(f"{len(tally.without)} caches have no pair and are left out: {listed}")
        if unused:
            listed = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
            notes.append(f"{len(unused)} keys of the pairs name no cache: {listed}")
        if self.media == "videos":
            notes.append("trainers take lists of frames for evenly spaced; true times are in text")
        return notes


def _name_of(path: Path) -> str:
    """A cache's name without its suffix, as it is."""
    return path.name.removesuffix(SUFFIX).removesuffix(".safetensors")
