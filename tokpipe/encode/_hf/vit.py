"""Walk the blocks of a transformers ViT one by one: a chosen layer, columns, kept tokens only.

The blocks are the library's own modules with the arguments their model gives them, so tokens are
the model's to the bit; blocks behind the last one needed do not run.

Letters: T pictures, p prefix rows (class, registers), n patches, H heads, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokpipe.encode._attend import (
    Heads,
    Seen,
    Turn,
    attention_rows,
    heads_of,
    keys,
    queries,
    received,
    turned_by,
    watching,
)
from tokpipe.encode._compiled import quiet_compiler
from tokpipe.errors import ModelError

#: Columns of one block, in terms of which block.
_DEEP = frozenset({"attention", "received", "keys", "queries", "layer_shift"})
_BLOCK_COLUMNS = _DEEP | {"attention_shallow", "received_middle"}


@dataclass(frozen=True, slots=True)
class Depth:
    """Which layers of L blocks are taken.

    Attributes:
        blocks: L.
        layer: Hidden state that becomes tokens, 0 .. L.
        attention: Block whose attention, keys and queries become columns.
    """

    blocks: int
    layer: int
    attention: int

    @property
    def shallow(self) -> int:
        """Block of ``attention_shallow``: a quarter of the way."""
        return self.blocks // 4

    @property
    def middle(self) -> int:
        """Block of ``received_middle``: three eighths of the way, HiPrune's layer 9 of 24."""
        return self.blocks * 3 // 8

    def about(self) -> dict[str, Any]:
        """For ``Outline.about``; ``layer`` counts hidden states from the embeddings, 0."""
        return {
            "layer": self.layer, "layers": self.blocks, "attention_layer": self.attention,
            "attention_shallow_layer": self.shallow, "received_middle_layer": self.middle,
        }  # fmt: skip

    def of(self, column: str) -> int:
        """The block a column of attention is read from."""
        found = {"attention_shallow": self.shallow, "received_middle": self.middle}
        return found.get(column, self.attention)


def depth_of(blocks: int, layer: int, attention: int, what: str) -> Depth:
    """Check the layers asked for; -1 is the last hidden state and the last block that runs.

    Raises:
        ModelError: The tower has no such layer.
    """
    if layer > blocks or attention >= blocks:
        raise ModelError(
            f"`{what}` has {blocks} blocks, asked for layer {layer}, attention_layer {attention}",
            hint=f"layer counts hidden states 0..{blocks}, attention_layer blocks 0..{blocks - 1}",
        )
    taken = blocks if layer < 0 else layer
    return Depth(blocks, taken, attention if attention >= 0 else max(0, taken - 1))


@dataclass(frozen=True, slots=True)
class Walked:
    """What a walk met.

    Attributes:
        hidden: [T, p + n, D] of the layer taken, as the block left it.
        last: [T, p + n, D] of the last block, None where it did not run.
        seen: What attention modules were given, by block.
        added: [T, p + n, D], what the MLP of the block of attention added, where asked for.
    """

    hidden: Tensor
    last: Tensor | None
    seen: Mapping[int, Seen]
    added: Tensor | None = None


class Vit:
    """Blocks of a ViT and where its prefix ends.

    Args:
        blocks: The layers, whose attention is ``self_attn`` or ``attention``.
        prefix: p.
        depth: Layers taken.
        compile: Translate blocks that nobody watches.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        prefix: int,
        depth: Depth,
        *,
        compile: bool = False,  # noqa: A002
    ) -> None:
        """Find the attention modules."""
        self.blocks, self.prefix, self.depth = list(blocks), prefix, depth
        self.attentions = [attention_of(block) for block in self.blocks]
        self._fast: list[Callable[..., Any]] = [*self.blocks]
        if compile:
            quiet_compiler()
            self._fast = [torch.compile(block) for block in self.blocks]

    def walk(
        self, hidden: Tensor, columns: frozenset[str], named: Mapping[str, Any], *, whole: bool
    ) -> Walked:
        """Run the blocks needed.

        Args:
            hidden: [T, p + n, D], what enters block 0.
            columns: Columns of attention wanted.
            named: Keyword arguments of every block.
            whole: Run all blocks, for what is made of the last hidden state.
        """
        watched = {self.depth.of(c) for c in columns & _BLOCK_COLUMNS}
        end = max([self.depth.layer, *(i + 1 for i in watched)])
        end = self.depth.blocks if whole else end
        taken, added = hidden, []
        with ExitStack() as stack:
            seen = stack.enter_context(watching({i: self.attentions[i] for i in sorted(watched)}))
            if "layer_shift" in columns:
                adds = _adding(self.blocks[self.depth.attention])
                handle = adds.register_forward_hook(lambda _module, _args, out: added.append(out))
                stack.callback(handle.remove)
            for i in range(end):
                run = self.blocks[i] if i in watched else self._fast[i]
                made = run(hidden, **named)
                hidden = made[0] if isinstance(made, tuple) else made
                if i + 1 == self.depth.layer:
                    taken = hidden
        last = hidden if end == self.depth.blocks else None
        return Walked(taken, last, seen, added[0] if added else None)

    def columns(self, walked: Walked, wanted: frozenset[str]) -> dict[str, Tensor]:
        """Columns of patches: attention [T, n, H], received [T, n], keys, queries [T, n, H, d].

        ``layer_shift`` [T, n] is the length of what the block's MLP adds. Attention rows are those
        of the class token, which sees class and registers too: a row over patches sums to less
        than 1. Keys and queries are those before rotary positions.
        """
        made = {}
        for name in sorted(wanted & _BLOCK_COLUMNS - {"layer_shift"}):
            at = self.depth.of(name)
            made[name] = self._column(name, walked.seen[at], self.attentions[at])
        if walked.added is not None:
            made["layer_shift"] = walked.added[:, self.prefix :].float().norm(dim=-1)
        return made

    def _column(self, name: str, seen: Seen, attention: nn.Module) -> Tensor:
        heads, p = heads_of(attention), self.prefix
        turn = _turn(seen, p)
        if name in ("attention", "attention_shallow"):
            return class_row(attention_rows(seen, heads, turn=turn))[:, p:]
        if name == "keys":
            return keys(seen, heads)[:, :, p:].transpose(1, 2)
        if name == "queries":
            return queries(seen, heads, slice(p, None)).transpose(1, 2)
        return _received(seen, heads, turn)[:, p:]


def class_row(rows: Tensor) -> Tensor:
    """[T, n, H] of one attention row [T, H, 1, n]."""
    return rows[:, :, 0].transpose(1, 2)


def attention_of(block: nn.Module) -> nn.Module:
    """The attention module of a layer.

    Raises:
        ModelError: It goes by another name.
    """
    for name in ("self_attn", "attention"):
        found = getattr(block, name, None)
        if isinstance(found, nn.Module):
            return found
    raise ModelError(
        f"{type(block).__name__} keeps its attention under an unknown name",
        hint="use the transformers version tokpipe was tested with",
    )


def _adding(block: nn.Module) -> nn.Module:
    """The module whose output the MLP half of a layer adds to its rows."""
    return block.get_submodule("layer_scale2" if hasattr(block, "layer_scale2") else "mlp")


def blocks_of(tower: nn.Module, count: int) -> nn.ModuleList:
    """The layers of a tower: its one list of ``count`` modules, wherever this version keeps it.

    Raises:
        ModelError: There is none.
    """
    for module in tower.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(
        f"{type(tower).__name__} has no list of {count} layers",
        hint="use the transformers version tokpipe was tested with",
    )


def _received(seen: Seen, heads: Heads, turn: Turn | None) -> Tensor:
    return received(queries(seen, heads, turn=turn), keys(seen, heads, turn), heads.scale)


def _turn(seen: Seen, prefix: int) -> Turn | None:
    rope = seen.named.get("position_embeddings")
    return None if rope is None else turned_by(rope[0], rope[1], prefix, half=True)
