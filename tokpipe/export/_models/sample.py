"""One cache and one prompt made into ids, positions and rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tokpipe.cache.format import KIND_LAYOUT
from tokpipe.errors import CacheError
from tokpipe.export._media import Media
from tokpipe.export._models.family import Family, Prompt, Script
from tokpipe.export._models.inputs import Positions, Sample


def sample_of(
    family: Family,
    prompt: Prompt,
    script: Script,
    media: Mapping[str, Media],
    positions: Positions,
    notes: tuple[str, ...],
) -> Sample:
    """Leave dropped tokens out of the prompt, and put rows in its order.

    Raises:
        CacheError: A row of the cache has no placeholder, or two.
    """
    kept = prompt.kept
    if positions == "original" and not script.placed:
        positions = "compact"
        notes = (*notes, "rows are not all cells of a grid: positions are compact")
    if positions == "original":
        places = family.places(prompt)[:, kept]
        notes = (*notes, *_window(family, prompt))
    else:
        places = family.compact(prompt)
    rows, deep = {}, {}
    mass = torch.ones(len(prompt))
    layout = 0
    for stream, found in media.items():
        mine = prompt.of(stream)
        order = prompt.rows[mine]
        _check_once(order, found)
        added = script.added.get(stream)
        rows[stream] = _taken(found.data, added, order)
        deep[stream] = tuple(_taken(level, None, order) for level in found.deepstack)
        own = order < len(found)
        layout += int((~own).sum()) + int((found.kind >= KIND_LAYOUT).sum())
        spots = mine.nonzero()[own, 0]
        mass[spots] = torch.where(found.mass > 0, found.mass, 1.0)[order[own]]
    ids = prompt.ids[kept]
    slots = int((prompt.stream[kept] >= 0).sum())
    return Sample(
        ids=ids, streams=prompt.streams, stream=prompt.stream[kept], places=places,
        modality={**family.modality, **script.modality}, rows=rows, deep=deep, mass=mass[kept],
        extras=family.extras(ids, prompt.stream[kept] >= 0), positions=positions,
        media=slots - layout, layout=layout, text=len(ids) - slots,
        written=_written(family, script), notes=(*notes, *script.notes),
    )  # fmt: skip


def _taken(data: Tensor, added: Tensor | None, order: Tensor) -> Tensor:
    if added is None:
        return data[order]
    return torch.cat([data, added.detach().to("cpu", data.dtype)])[order]


def _check_once(order: Tensor, media: Media) -> None:
    uses = torch.bincount(order, minlength=len(media))[: len(media)]
    if not bool((uses == 1).all()):
        raise CacheError(
            f"{int((uses == 0).sum())} of {len(media)} {media.stream} rows have no placeholder in "
            f"the prompt, {int((uses > 1).sum())} have several",
            hint="export with positions compact, or encode the media for this model",
            code="export.placeholders",
        )


def _written(family: Family, script: Script) -> int:
    """Ids of the text that the parts bring with them."""
    known: dict[str, int] = {}
    total = 0
    for piece in (piece for part in script.parts for piece in part.pieces):
        if isinstance(piece, str) and piece:
            if piece not in known:
                known[piece] = len(family.words.ids(piece, special=False))
            total += known[piece]
    return total


def _window(family: Family, prompt: Prompt) -> tuple[str, ...]:
    """What layers that see the last tokens alone do with tokens left out."""
    window = family.window
    if window is None or len(prompt) <= window or bool(prompt.kept.all()):
        return ()
    note = (
        f"layers that see the last {window} tokens count those that are there: they look further "
        "back than with the whole media"
    )
    return (note,)
