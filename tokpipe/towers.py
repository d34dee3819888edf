"""Loaded towers and what they made: each picture or stretch of sound is encoded once, on demand."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokpipe.cache.features import FeatureStore
from tokpipe.device import inference, pick_device
from tokpipe.encode._batches import encode_pictures, encode_sounds
from tokpipe.encode._tower import Encoded, Outline, Places
from tokpipe.errors import ModelError, RecipeError, WeightsMismatch
from tokpipe.tensors import Query, Reduction, TokenMap

Pictures = Callable[[list[int]], Iterable[tuple[int, NDArray[np.uint8]]]]
#: Pictures on which the cosine between the contexts ``kept`` and ``frame`` is measured.
_COMPARED = 4
_COSINE = "cosine"
#: Pictures encoded together where patches merge inside the tower.
_MERGED = 16
_MAP = ("src", "dst", "weight", "share", "anchor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """How towers run.

    Attributes:
        precision: float32, bfloat16 or float16; auto: float32 on the CPU, else bfloat16.
        batch: Pictures of one forward pass, None: found by trying.
        context: ``frame`` encodes whole pictures, ``kept`` only their live tokens.
    """

    device: str = "cpu"
    precision: str = "auto"
    batch: int | None = None
    compiled: bool = False
    context: str = "frame"

    @property
    def dtype(self) -> str:
        """The precision, settled for the device."""
        if self.precision != "auto":
            return self.precision
        return "float32" if pick_device(self.device).type == "cpu" else "bfloat16"


@lru_cache(maxsize=2)
def load_tower(operator: Any, device: str, dtype: str, compiled: bool) -> Any:
    """The tower of an operator, loaded once a process."""
    return operator.load(pick_device(device), dtype, compile=compiled)


@dataclass(slots=True)
class Found:
    """Rows of live tokens, with their columns and how each column is reduced.

    Attributes:
        maps: Where a rule inside the tower merged the patches of each picture: the map of each
            picture from its n patches to its rows, all of which are in ``data``.
    """

    data: Tensor
    columns: dict[str, Tensor] = field(default_factory=dict)
    rules: dict[str, Reduction] = field(default_factory=dict)
    maps: list[TokenMap] = field(default_factory=list)


class _Features:
    """What both kinds share: the tower when it is needed, the store, the columns asked for."""

    def __init__(
        self, operator: Any, store: FeatureStore, running: Running, columns: Iterable[str]
    ) -> None:
        self.operator, self.store, self.running = operator, store, running
        self.outline: Outline = operator.outline()
        self.columns = frozenset(columns)
        self.encoded = 0
        self.seconds = 0.0
        if missing := self.columns - {*self.outline.extras}:
            raise RecipeError(f"the encoder does not give {', '.join(sorted(missing))}")

    @property
    def weights(self) -> str:
        """Digest of the weights that made the rows."""
        return str(self.store.about.get("weights") or self.tower().weights)

    @property
    def part(self) -> Mapping[str, str] | None:
        """Digest of what made rows before a projector, None where it is not known."""
        if not self.store.about.get("weights"):
            self.tower()
        found: Mapping[str, str] | None = self.store.about.get("part")
        return found

    def tower(self) -> Any:
        """Load the tower; check that the store's rows are of the same weights."""
        r, began = self.running, time.perf_counter()
        tower = load_tower(self.operator, r.device, r.dtype, r.compiled)
        self.seconds += time.perf_counter() - began
        known = self.store.about.get("weights")
        if known is None:
            part = getattr(tower, "part", None)
            self.store.describe({"weights": tower.weights, "part": part and dict(part)})
        elif known != tower.weights:
            raise WeightsMismatch(
                "the bank holds features of other weights under this name",
                hint="name a revision with @REV, give --weights, or run with --no-bank",
            )
        return tower

    def _asked(self, name: str) -> bool:
        """The tensor of an item is one this run wants: another may have wanted more columns."""
        if name.startswith("column."):
            return name.removeprefix("column.") in self.columns
        return name != _COSINE

    def _stored(self, item: str) -> dict[str, Tensor] | None:
        found = self.store.get(item) if self.store.has(item) else None
        wanted = {f"column.{name}" for name in self.columns}
        return found if found is not None and wanted <= found.keys() else None


class PictureFeatures(_Features):
    """Rows of pictures by number.

    Args:
        size: Height and width of every picture.
        pictures: Gives pictures uint8 [H, W, 3] by rising numbers.

    Attributes:
        size: As given.
        places: Where the tokens of a picture lie.
        encoded: Pictures that went through the tower in this run.
        cosine: Mean cosine of ``kept`` to ``frame`` rows, None where nothing was compared.
    """

    def __init__(
        self, operator: Any, size: tuple[int, int], pictures: Pictures, store: FeatureStore,
        running: Running, columns: Iterable[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(operator, store, running, columns)
        self.size, self.pictures = size, pictures
        #: Told the number of each picture that was encoded.
        self.report: Callable[[int], None] | None = None
        self.places: Places = operator.places(*size)
        self._cosines: list[float] = []
        if running.context == "kept" and not self.outline.sparse:
            raise ModelError(
                "this encoder cannot encode a part of a picture", hint="use --context frame"
            )

    @property
    def merges(self) -> bool:
        """A rule inside the tower merges the patches of a picture."""
        return bool(getattr(self.operator, "inside", ""))

    @property
    def cosine(self) -> float | None:
        """Mean over the pictures compared."""
        return sum(self._cosines) / len(self._cosines) if self._cosines else None

    def fill(self, steps: list[int]) -> None:
        """Encode what the store lacks of whole pictures, in one stream of batches.

        Parts of pictures (context ``kept``) are encoded when they are asked for.
        """
        absent = [s for s in steps if not self.store.has(_name(s))]
        if absent and self.running.context == "frame":
            tower, began = self.tower(), time.perf_counter()
            for step, rows in self._whole(tower, absent):
                self.store.put(_name(step), rows)
            self.seconds += time.perf_counter() - began

    def of(self, steps: list[int], live: Tensor) -> Found:
        """Rows of the live tokens bool [F, n] of some pictures, picture by picture."""
        whole = self.running.context == "frame"
        names = [
            _name(step) if whole else _name(step, mask)
            for step, mask in zip(steps, live, strict=True)
        ]
        made = {name: found for name in names if (found := self._stored(name)) is not None}
        absent = [i for i, name in enumerate(names) if name not in made]
        if absent:
            tower, began = self.tower(), time.perf_counter()
            place = {steps[i]: i for i in absent}
            encoded = self._whole(tower, list(place)) if whole else self._parts(tower, place, live)
            for step, rows in encoded:
                name = names[place[step]]
                made[name] = rows
                self.store.put(name, rows)
            self.seconds += time.perf_counter() - began
        if self.merges:
            return _merged([made[name] for name in names], live.shape[1])
        if not whole:
            self._compare(steps, names, live, made)
        parts = []
        for name, mask in zip(names, live, strict=True):
            rows = {k: v for k, v in made[name].items() if self._asked(k)}
            full = len(rows["data"]) == len(mask)
            parts.append({k: v[mask] for k, v in rows.items()} if full else rows)
        return _joined(parts)

    def _whole(self, tower: Any, steps: list[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Rows of whole pictures."""
        device, batch = pick_device(self.running.device), self.running.batch
        wanted = self.pictures(steps)
        self.encoded += len(steps)
        if self.merges:
            # One by one on the CPU, where rows must not depend on how many are encoded together.
            together = 1 if device.type == "cpu" else batch or _MERGED
            yield from _merging(tower, wanted, device, together)
            return
        for step, rows in encode_pictures(
            tower, wanted, device=device, columns=self.columns, batch=batch
        ):
            yield step, _rows(rows)
            if self.report is not None:
                self.report(step)

    def _parts(
        self, tower: Any, place: dict[int, int], live: Tensor
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Rows of live tokens, encoded from them alone."""
        device = pick_device(self.running.device)
        self.encoded += len(place)
        for step, picture in self.pictures(list(place)):
            with inference():
                prepared = tower.prepare(torch.from_numpy(picture.copy())[None].to(device))
                rows = _rows(tower.encode_kept(prepared, live[place[step]], self.columns))
            yield step, rows

    def _compare(
        self, steps: list[int], names: list[str], live: Tensor, made: dict[str, dict[str, Tensor]]
    ) -> None:
        """Note how near rows of a part of a picture are to those of the whole: the first few."""
        for step, name, mask in zip(steps, names, live, strict=True):
            if len(self._cosines) == _COMPARED:
                return
            if bool(mask.all()) or not bool(mask.any()):
                continue
            if _COSINE not in made[name]:
                tower, device = self.tower(), pick_device(self.running.device)
                ((_, picture),) = self.pictures([step])
                with inference():
                    prepared = tower.prepare(torch.from_numpy(picture.copy())[None].to(device))
                    whole = tower.encode(prepared).data[0].cpu()[mask].float()
                part = made[name]["data"].float()
                near = torch.nn.functional.cosine_similarity(whole, part, dim=-1)
                # Kept with the rows, so that a run that encodes nothing says the same.
                made[name][_COSINE] = near.mean().reshape(1)
                self.store.put(name, made[name])
            self._cosines.append(float(made[name][_COSINE]))

    def query(self, text: str) -> Query:
        """The text tower's vectors."""
        if not self.outline.text:
            raise ModelError(
                "this encoder has no text tower", hint="use one that has, such as open_clip"
            )
        made: Query = self.tower().embed_text(text)
        return made


class SoundFeatures(_Features):
    """Rows of chunks of sound by number.

    Args:
        samples: Samples at the tower's rate in all.
        read: Gives samples float32 [b - a] of a range.

    Attributes:
        chunk: Samples of one chunk.
        encoded: Chunks that went through the tower in this run.
    """

    def __init__(
        self, operator: Any, samples: int, read: Callable[[int, int], Tensor],
        store: FeatureStore, running: Running, columns: Iterable[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(operator, store, running, columns)
        self.samples, self.read = samples, read
        self.chunk = int(operator.chunk())

    @property
    def chunks(self) -> int:
        """Chunks of the whole sound."""
        return -(-self.samples // self.chunk)

    def times(self, number: int) -> Tensor:
        """Seconds float64 [n, 2] of the tokens of a chunk, on the sound's own clock."""
        length = min(self.chunk, self.samples - number * self.chunk)
        times: Tensor = self.operator.times(length)
        return times + number * self.chunk / self.outline.rate

    def of(self, numbers: list[int]) -> Found:
        """Rows of whole chunks, one after the other."""
        names = [f"s{number:08d}" for number in numbers]
        made = {name: found for name in names if (found := self._stored(name)) is not None}
        absent = [n for n, name in zip(numbers, names, strict=True) if name not in made]
        if absent:
            waves = (
                (n, self.read(n * self.chunk, min(self.samples, (n + 1) * self.chunk)))
                for n in absent
            )
            self.encoded += len(absent)
            tower, began = self.tower(), time.perf_counter()
            for number, rows in encode_sounds(
                tower, waves, device=pick_device(self.running.device),
                columns=self.columns, batch=self.running.batch,
            ):  # fmt: skip
                made[f"s{number:08d}"] = _rows(rows)
                self.store.put(f"s{number:08d}", made[f"s{number:08d}"])
            self.seconds += time.perf_counter() - began
        items = [{k: v for k, v in made[n].items() if self._asked(k)} for n in names]
        return _joined(items)


def _merging(
    tower: Any, wanted: Iterable[tuple[int, NDArray[np.uint8]]], device: torch.device, batch: int
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Rows of pictures whose patches merge inside the tower, each with its map."""
    pictures = iter(wanted)
    while group := list(islice(pictures, batch)):
        pixels = torch.from_numpy(np.stack([picture for _, picture in group])).to(device)
        with inference():
            rows, maps = tower.encode_merged(tower.prepare(pixels))
        for (step, _), encoded, tmap in zip(group, rows, maps, strict=True):
            parts = {f"map.{name}": getattr(tmap, name).cpu() for name in _MAP}
            yield step, {**_rows(encoded), **parts}


def _merged(items: list[dict[str, Tensor]], n: int) -> Found:
    """Rows of whole pictures with their maps from ``n`` patches."""
    maps = [
        TokenMap(num_sources=n, **{name: item[f"map.{name}"] for name in _MAP}) for item in items
    ]
    return Found(torch.cat([item["data"] for item in items]), maps=maps)


def _name(step: int, mask: Tensor | None = None) -> str:
    """Name of a picture's item: of the whole, or of a part of its tokens."""
    if mask is None or bool(mask.all()):
        return f"{step:08d}"
    return f"{step:08d}-{hashlib.sha256(mask.numpy().tobytes()).hexdigest()[:16]}"


def _rows(encoded: Encoded) -> dict[str, Tensor]:
    """Tensors of one item on the CPU: data, deepstack rows and columns."""
    named = {"data": encoded.data[0]}
    named |= {f"deepstack_{i}": level[0] for i, level in enumerate(encoded.deepstack, 1)}
    named |= {f"column.{name}": value[0] for name, value in encoded.columns.items()}
    return {name: value.detach().cpu().contiguous() for name, value in named.items()}


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> Found:
    cat = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    found = Found(cat.pop("data"))
    for name, value in cat.items():
        found.columns[name.removeprefix("column.")] = value
        if name.startswith("deepstack_"):
            found.rules[name] = "linear"
    return found


def needed_columns(late: Any, outline: Outline) -> set[str]:
    """Columns that the rules of a chain of features ask a tower for."""
    wanted = {need for rule in late.reducers for need in getattr(rule, "needs", ())}
    return wanted & {*outline.extras}
