"""Run a rule between attention and MLP of chosen blocks, so that later blocks see fewer tokens.

The rule is any reducer of the recipes; its ``decide`` is given the tokens of a block, their keys
and, where it needs them, attention. Sizes of merged tokens bias the attention of later blocks
(proportional attention), and the maps of all blocks compose into one a picture.

Source: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv:2210.09461, section 3.
Letters: T pictures, p prefix rows (class, distillation, registers), n patches, D width, L blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokpipe.checks import checked_together
from tokpipe.encode._merging.blocks import Block, attended, block_of, rows_of_attention
from tokpipe.encode._merging.ragged import Layout, joined, split_maps
from tokpipe.errors import RecipeError
from tokpipe.maps import GridMap, TokenMap
from tokpipe.spec import MODALITY_CODE
from tokpipe.tensors import TokenBatch

#: Columns that a block can give.
_GIVEN = ("keys", "queries", "attention", "received", "attention_rows")


def schedule(blocks: int, r: int | tuple[float, float] | list[int]) -> tuple[int, ...]:
    """Tokens to merge away in each of so many blocks, as ToMe's released code reads ``r``.

    Args:
        blocks: L, 0 or more.
        r: One number for every block; or a number and an inflection -1 .. 1, for a line from
            ``r (1 - inflection)`` to ``r (1 + inflection)`` (-1: from 2 r down to 0); or a list,
            filled up with zeros.

    Example:
        >>> schedule(4, (8, -1))
        (16, 10, 5, 0)

    Raises:
        RecipeError: A number is negative, the inflection out of range or the list too long.
    """
    if isinstance(r, list):
        if len(r) > blocks or min(r, default=0) < 0:
            raise RecipeError(
                f"a schedule of {len(r)} numbers for {blocks} blocks: {r}",
                hint="give at most one number a block, each 0 or more",
            )
        return (*r, *[0] * (blocks - len(r)))
    mean, inflection = r if isinstance(r, tuple) else (r, 0.0)
    if mean < 0 or not -1 <= inflection <= 1:
        raise RecipeError(
            f"cannot merge {mean} tokens with inflection {inflection}",
            hint="the number is 0 or more, the inflection -1 .. 1",
        )
    first = int(mean * (1.0 - inflection))
    step = (2 * mean - 2 * first) / (blocks - 1) if blocks > 1 else 0.0
    return tuple(int(first + step * i) for i in range(blocks))


def name_of(reducer: object) -> str:
    """How recipes call a reducer: its file's name; one from elsewhere, its class's."""
    place, _, file = type(reducer).__module__.rpartition(".")
    if place.startswith("tokpipe.compress"):
        return file.replace("_", "-")
    return type(reducer).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What a tower made of T pictures of n patches.

    Attributes:
        rows: [M, D] rows of all pictures, picture after picture, the p prefix rows first.
        counts: Rows of each picture, prefix included.
        prefix: p.
        maps: From the n patches of each picture to its rows after the prefix, in their order;
            ``TokenBatch.reduce`` tells mass and hull from them.
    """

    rows: Tensor
    counts: tuple[int, ...]
    prefix: int
    maps: tuple[TokenMap, ...]

    def pictures(self) -> tuple[Tensor, ...]:
        """Rows [p + K, D] of each picture; views."""
        return torch.split(self.rows, list(self.counts))

    def tokens(self) -> list[Tensor]:
        """Rows [K, D] of each picture without the prefix; views."""
        return [picture[self.prefix :] for picture in self.pictures()]


@dataclass(frozen=True, slots=True)
class InEncoder:
    """A rule that runs inside a tower.

    A rule that protects class tokens itself (``class_token``, ``distill_token``, ``special``) is
    given as many prefix rows before the patches, as in its paper; any other sees patches only.
    All further prefix rows are carried along untouched.

    Attributes:
        reducer: A reducer, such as ``ToMe(r=8, class_token=True)``.
        layers: Blocks after whose attention it runs, negative from the end; () every block.
        amounts: Tokens to merge away at each of ``layers`` in turn, in place of the rule's own
            count, see :func:`schedule`; where it ends, or is 0, nothing merges. () leaves the
            count to the rule.
        proportional: Add the log of each token's size to its attention logits.
        inflection: Slope of the rule's own ``r`` over its layers, -1 .. 1: -1 falls from 2 r to
            0 (FastAST's decreasing schedule).
    """

    reducer: Any
    layers: tuple[int, ...] = ()
    amounts: tuple[int, ...] = ()
    proportional: bool = True
    inflection: float = 0.0

    def __post_init__(self) -> None:
        """Check that the rule decides, from what a block can give."""
        name = name_of(self.reducer)
        if not hasattr(self.reducer, "decide"):
            raise RecipeError(f"`{name}` decides nothing", hint="give a reducer, such as `tome`")
        lacking = [need for need in self.reducer.needs if need not in _GIVEN]
        if lacking:
            raise RecipeError(
                f"`{name}` needs `{lacking[0]}`, which no block gives",
                hint=f"inside a tower there are: {', '.join(_GIVEN)}",
                code="recipe.needs",
            )
        names = ("schedule", "keep", "per_frame") if hasattr(self.reducer, "r") else ()
        own = [name for name in names if getattr(self.reducer, name, None)]
        if self.inflection and (self.amounts or not hasattr(self.reducer, "r")):
            raise RecipeError(
                f"inflection {self.inflection} without an `r`, or beside amounts",
                hint="use it with rules that have an `r`, such as `tome`",
            )
        if (self.amounts or self.inflection) and (own or min(self.amounts, default=0) < 0):
            raise RecipeError(
                f"amounts {list(self.amounts)} beside {own or 'negative numbers'}",
                hint="give each block one count, 0 or more",
            )

    @property
    def seen(self) -> int:
        """Prefix rows that the rule takes and protects."""
        flags = ("class_token", "distill_token", "special")
        return sum(int(getattr(self.reducer, flag, 0)) for flag in flags)

    def fits(self, blocks: int, prefix: int) -> dict[int, int | None]:
        """:meth:`plan` of a tower of so many blocks and ``prefix`` rows before its patches.

        Raises:
            RecipeError: The rule protects more prefix rows than there are, needs the attention
                of a class token where there is none, or its layers are not there.
        """
        if self.seen > prefix or (prefix == 0 and "attention" in self.reducer.needs):
            raise RecipeError(
                f"`{name_of(self.reducer)}` needs {max(1, self.seen)} class tokens, the tower "
                f"has {prefix}",
                hint="turn off `class_token`, `distill_token` or `special`, or use another rule",
            )
        return self.plan(blocks)

    def plan(self, blocks: int) -> dict[int, int | None]:
        """Blocks where it runs and the tokens to merge away there; None leaves it to the rule.

        Raises:
            RecipeError: ``layers`` names a block twice or one that is not there.
        """
        layers = self.layers or tuple(range(blocks))
        places = [layer + blocks if layer < 0 else layer for layer in layers]
        if len(set(places)) < len(places) or not all(0 <= place < blocks for place in places):
            raise RecipeError(
                f"layers {list(layers)} of a tower of {blocks} blocks",
                hint=f"name blocks 0 .. {blocks - 1}, each once",
            )
        amounts = self.amounts
        if self.inflection:
            places = sorted(places)
            amounts = schedule(len(places), (self.reducer.r, self.inflection))
        if not amounts:
            return dict.fromkeys(sorted(places))
        if len(amounts) > len(places):
            raise RecipeError(
                f"{len(amounts)} amounts for {len(places)} layers",
                hint="give at most one amount a layer",
            )
        # Amounts go with `layers` as they were given.
        return {place: r for place, r in zip(places, amounts, strict=False) if r}

    def run(
        self, blocks: Sequence[nn.Module], hidden: Tensor, *, prefix: int = 1,
        grid: tuple[int, int] | None = None,
    ) -> Merged:  # fmt: skip
        """Run blocks on embedded pictures, merging on the way.

        Args:
            blocks: The tower's blocks in order, in eval mode.
            hidden: [T, p + n, D].
            prefix: p, rows at the front that are no patches.
            grid: Rows and columns of the patches, for rules that look at places.

        Returns:
            Rows after the last block, before the tower's final norm. Nothing in them depends on
            how pictures are batched, but for rounding in kernels of other shapes.

        Raises:
            RecipeError: The rule protects more prefix rows than there are, or needs the
                attention of a class token where there is none.
            ModelError: A block of an unknown kind, or in training mode.
        """
        plan = self.fits(len(blocks), prefix)
        run = _Run(self, hidden, prefix, grid)
        with checked_together():
            for index, module in enumerate(blocks):
                run.through(module, index in plan, plan.get(index))
        return run.done()


class _Run:
    """Pictures on their way through a tower.

    Rows of a picture are its ``fixed`` prefix rows, which the rule never sees, then those that it
    sees: as many prefix rows as it protects, and patches.
    """

    def __init__(
        self, rule: InEncoder, hidden: Tensor, prefix: int, grid: tuple[int, int] | None
    ) -> None:
        pictures, length, width = hidden.shape
        self.rule, self.prefix, self.seen = rule, prefix, rule.seen
        self.fixed = prefix - self.seen
        if self.fixed and self.seen:
            order = (hidden[:, self.seen : prefix], hidden[:, : self.seen], hidden[:, prefix:])
            hidden = torch.cat(order, 1)
        self.rows = hidden.reshape(-1, width)
        self.layout = Layout((length,) * pictures, hidden.device)
        self.tokens = _source_tokens(self, length - prefix, grid)
        self.total: TokenMap | None = None

    def through(self, module: nn.Module, merge: bool, remove: int | None) -> None:
        """One block, with or without merging."""
        rule = self._rule_here(remove) if merge else None
        biased = self.total is not None and (self.rule.proportional or not self.layout.equal)
        if rule is None and not biased and self.layout.equal:
            whole = block_of(module).plain(self.rows.reshape(*self.layout.shape, -1))
            self.rows = whole.reshape(-1, whole.shape[-1])
            return
        block, bias = block_of(module), self._bias() if biased else None
        normed = block.norm(self.rows)
        query, key, value = (self.layout.padded(part) for part in block.project(normed))
        mixed = self.layout.packed(attended(query, key, value, block.scale, bias))
        self.rows = self.rows + block.close(mixed, normed)
        if rule is not None:
            self._merge(rule, remove, query, key, block, bias)
        self.rows = self.rows + block.feed(self.rows)

    def _rule_here(self, remove: int | None) -> Any:
        """The rule with its count for this block, None where it would keep everything."""
        rule = self.rule.reducer
        if remove is not None and hasattr(rule, "r"):
            rule = replace(rule, r=remove)
        count = getattr(rule, "out_count", None)
        sizes = {n - self.fixed for n in self.layout.counts}
        if count is not None and all(count(n, self._budget(n, remove)) == (n, True) for n in sizes):
            return None
        return rule

    def _budget(self, visible: int, remove: int | None) -> int | None:
        by_itself = remove is None or hasattr(self.rule.reducer, "r")
        return None if by_itself else max(self.seen, visible - remove)  # type: ignore[operator]

    def _bias(self) -> Tensor:
        """Log of the size of every row [T, N], 0 for prefix rows, -inf where a row is padding."""
        sizes = torch.zeros_like(self.rows[:, 0], dtype=torch.float32)
        if self.rule.proportional:
            sizes[self.layout.after(self.fixed)] = self.tokens.mass.log()
        return self.layout.padded(sizes, fill=-torch.inf)

    def _merge(
        self, rule: Any, remove: int | None, query: Tensor, key: Tensor, block: Block,
        bias: Tensor | None,
    ) -> None:  # fmt: skip
        """Let the rule decide on the rows after attention, and apply its map."""
        columns = self._columns(query, key, block, bias)
        visible = self.layout.after(self.fixed)
        tokens = self.tokens.with_columns(data=self.rows[visible])
        sizes = [n - self.fixed for n in self.layout.counts]
        budgets = [self._budget(n, remove) for n in sizes]
        seen = tokens.with_extras({}, **columns)
        decision, counts = _decided(rule, seen, sizes, budgets, self.seen)
        self.tokens = tokens.reduce(decision)
        self.total = decision if self.total is None else self.total.then(decision)
        merged, layout = self.tokens.data, self.layout
        if self.fixed:
            first = self.rows[layout.before(self.fixed)]
            layout = Layout(tuple(k + self.fixed for k in counts), merged.device)
            self.rows = merged.new_empty((sum(layout.counts), merged.shape[1]))
            self.rows[layout.before(self.fixed)] = first
            self.rows[layout.after(self.fixed)] = merged
            self.layout = layout
        else:
            self.rows, self.layout = merged, Layout(tuple(counts), merged.device)

    def _columns(
        self, query: Tensor, key: Tensor, block: Block, bias: Tensor | None
    ) -> dict[str, Tensor]:
        """Extra columns of the rows that the rule sees."""
        layout, needs = self.layout, self.rule.reducer.needs
        visible = layout.after(self.fixed)
        out = {"keys": layout.packed(key)[visible]}
        if "queries" in needs:
            out["queries"] = layout.packed(query)[visible]
        if "attention" in needs:
            # The class token is the first prefix row, wherever it stands now.
            place = self.fixed if self.seen else 0
            row = rows_of_attention(query[:, place : place + 1], key, block.scale, bias)
            out["attention"] = layout.packed(row[:, :, 0].transpose(1, 2))[visible]
        if "received" in needs or "attention_rows" in needs:
            full = rows_of_attention(query, key, block.scale, bias)
            if "attention_rows" in needs:
                rows = layout.packed(full.transpose(1, 2))[visible]
                out["attention_rows"] = rows[..., self.fixed :]
            real = layout.padded(torch.ones_like(self.rows[:, 0], dtype=torch.float32))
            mean = (full.mean(1) * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)
            out["received"] = layout.packed(mean)[visible]
        return out

    def done(self) -> Merged:
        """Prefix rows in their own order, and the map of each picture's patches."""
        rows, prefix, counts = self.rows, self.prefix, self.layout.counts
        if self.fixed and self.seen:
            before = self.layout.before(prefix).reshape(len(counts), prefix)
            order = torch.arange(len(rows), device=rows.device)
            order[before] = torch.cat([before[:, self.fixed :], before[:, : self.fixed]], 1)
            rows = rows[order]
        sources = len(self.tokens) if self.total is None else self.total.num_sources
        total = self.total or TokenMap.identity(sources, rows.device)
        sizes = [n - self.fixed for n in counts]
        maps = split_maps(total, sizes, sources // max(1, len(sizes)), skip=self.seen)
        return Merged(rows=rows, counts=counts, prefix=prefix, maps=tuple(maps))


def _source_tokens(run: _Run, patches: int, grid: tuple[int, int] | None) -> TokenBatch:
    """What the rule sees before the first block: one frame a picture, no data yet."""
    device, pictures = run.rows.device, len(run.layout.counts)
    if grid is not None and grid[0] * grid[1] != patches:
        raise RecipeError(f"a grid of {grid} for {patches} patches", hint="give rows x columns")
    cell = torch.full((run.seen + patches, 3), -1, dtype=torch.int32, device=device)
    if grid is not None:
        place = torch.arange(patches, device=device)
        cell[run.seen :, 0] = 0
        cell[run.seen :, 1], cell[run.seen :, 2] = place // grid[1], place % grid[1]
    at = torch.arange(pictures, device=device).double().repeat_interleave(len(cell))
    sound = "video" not in run.rule.reducer.modalities
    code = MODALITY_CODE["audio" if sound else "video"]
    data = run.rows[run.layout.after(run.fixed)]
    return TokenBatch.build(data, at, cell=cell.repeat(pictures, 1), modality=code)


def _decided(
    rule: Any, tokens: TokenBatch, sizes: list[int], budgets: list[int | None], protected: int
) -> tuple[TokenMap, list[int]]:
    """One map over all pictures, rows picture after picture, and the rows of each picture."""
    whole = rule.scope == "frame" and "video" in rule.modalities and set(budgets) == {None}
    if whole or len(sizes) == 1:
        found = [rule.decide(tokens, budgets[0])]
    else:
        starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
        pictures = [tokens.take(slice(a, a + n)) for a, n in zip(starts, sizes, strict=False)]
        found = [rule.decide(p, b) for p, b in zip(pictures, budgets, strict=True)]
    maps = [one.expand() if isinstance(one, GridMap) else one for one in found]
    count = getattr(rule, "out_count", None)
    known = [count(n, b) if count else (n, False) for n, b in zip(sizes, budgets, strict=True)]
    counts = [rows for rows, _ in known] if all(exact for _, exact in known) else None
    return joined(maps, sizes, protected, name_of(rule), counts)
