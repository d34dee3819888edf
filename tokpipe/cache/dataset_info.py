"""``tokpipe-dataset.json``: what all items of a dataset have in common, or how they differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from tokpipe.cache.format import DATASET_INFO
from tokpipe.cache.index_table import ItemFacts, write_atomic
from tokpipe.digest import canonical_json
from tokpipe.errors import CacheError, CacheVersion, RecipeError

#: Version of the folder's layout, ``major.minor``.
LAYOUT_VERSION = "1.0"

KeyRule = Literal["digest", "name", "column"]
KEY_RULES: tuple[KeyRule, ...] = get_args(KeyRule)


@dataclass(slots=True, kw_only=True)
class DatasetInfo:
    """What a dataset says of itself.

    Attributes:
        key: How items are named: ``digest`` of source and recipe, ``name`` of the file, or a
            ``column`` of the user's table.
        shard_size: Bytes after which a shard is sealed.
        mixed: Items of different encoders or recipes were allowed.
        streams: Stream -> the encoders of its tokens with width and dtype; one unless mixed.
        recipes: Digests of the recipes, sorted; one unless mixed.
        recipe: Options of the only recipe, None of several.
        domains, layouts: Those of the items, sorted.
        writer: Version that made the folder.
    """

    key: str = "digest"
    shard_size: int = 0
    mixed: bool = False
    streams: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    recipes: list[str] = field(default_factory=list)
    recipe: Any = None
    domains: list[str] = field(default_factory=list)
    layouts: list[str] = field(default_factory=list)
    writer: str = ""

    def write(self, root: Path) -> None:
        """Replace the folder's file in one step."""
        values = {"format": LAYOUT_VERSION, **asdict(self)}
        text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        write_atomic(root / DATASET_INFO, text.encode())


def is_dataset(root: str | Path) -> bool:
    """The folder is a packed dataset."""
    return (Path(root) / DATASET_INFO).is_file()


def read_info(root: str | Path) -> DatasetInfo:
    """What a dataset says of itself.

    Raises:
        CacheError: There is no such file, or it cannot be read.
        CacheVersion: Another major version of the layout is needed.
    """
    path = Path(root) / DATASET_INFO
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = str(values.pop("format"))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CacheError(f"`{DATASET_INFO}` cannot be read: {error}", where=str(path),
                         code="dataset.info", hint="pack the caches again") from error  # fmt: skip
    if version.partition(".")[0] != LAYOUT_VERSION.partition(".")[0]:
        raise CacheVersion(f"the dataset has layout {version}, this tokpipe reads {LAYOUT_VERSION}",
                           where=str(path), hint="install a tokpipe that reads it")  # fmt: skip
    known = DatasetInfo.__dataclass_fields__
    return DatasetInfo(**{name: value for name, value in values.items() if name in known})


def encoder_name(about: Mapping[str, Any]) -> str:
    """An encoder as a person would name it: name, model, stage, width and dtype."""
    model = f":{about['model']}" if about.get("model") else ""
    more = [str(about[k]) for k in ("stage", "weights") if about.get(k)]
    kind = f"{about.get('dim')} {about.get('dtype')}"
    return f"{about.get('name', '?')}{model} ({', '.join([*more, kind])})"


class Alike:
    """Takes the items of a dataset one by one and refuses what is unlike the others.

    Args:
        info: What is known of the dataset; grows with each item.
    """

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        self._first: dict[str, str] = {}

    def add(self, facts: ItemFacts, where: str) -> None:
        """Take one more item.

        Raises:
            RecipeError: Its encoder or recipe is another than that of the items before, and the
                dataset is not mixed.
        """
        info = self.info
        for stream, about in facts.encoders.items():
            made, there = json.loads(canonical_json(about)), info.streams.setdefault(stream, [])
            if made in there:
                continue
            if there and not info.mixed:
                names = encoder_name(there[0]), encoder_name(made)
                self._refuse(f"{stream} of two encoders: `{names[0]}`", f"`{names[1]}`",
                             self._first.get(stream), where)  # fmt: skip
            there.append(made)
            there.sort(key=canonical_json)
            self._first.setdefault(stream, where)
        recipe = facts.row.recipe_sha256
        if recipe not in info.recipes:
            if info.recipes and not info.mixed:
                self._refuse(f"two recipes: `{info.recipes[0][:12]}` {_told(info.recipe)}",
                             f"`{recipe[:12]}` {_told(facts.recipe)}",
                             self._first.get("recipe"), where)  # fmt: skip
            info.recipe = facts.recipe if not info.recipes else None
            info.recipes = sorted([*info.recipes, recipe])
            self._first.setdefault("recipe", where)
        info.domains = sorted({*info.domains, facts.domain})
        info.layouts = sorted({*info.layouts, facts.layout})

    @staticmethod
    def _refuse(first: str, second: str, there: str | None, where: str) -> None:
        place = there or "the dataset"
        raise RecipeError(f"{first} ({place}) and {second} ({where})", code="dataset.mixed",
                          hint="pack each into a dataset of its own, or say --mixed")  # fmt: skip


def _told(recipe: Any) -> str:
    """The part of a recipe that most often differs."""
    if not isinstance(recipe, Mapping):
        return ""
    return ", ".join(f"{k}={recipe[k]}" for k in ("budget", "layout") if recipe.get(k) is not None)
