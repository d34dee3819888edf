"""Conformance suites: what every operator of a kind must hold to.

In a test module::

    from tokpipe.testing.suites import ReducerSuite

    class TestReducers(ReducerSuite):
        names = ("my-operator",)  # default: every registered reducer

pytest finds the tests; a plug-in gets the same ones as the operators that ship.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, get_type_hints

import pytest
import torch
from torch import Tensor

from tokpipe import registry
from tokpipe.compress._fit import expanded, fit_budget
from tokpipe.errors import ModelError
from tokpipe.protocols import Reducer, StreamReducer
from tokpipe.recipe import build
from tokpipe.spec import LAYOUTS, MODALITY_CODE, Modality, StepSpec
from tokpipe.tensors import Query, TokenBatch, TokenMap

#: Largest difference of a sum of shares or masses from its exact value, relative.
TOLERANCE = 1e-4
#: Widths of extra columns beyond [N] in sample tokens; -1 is the tokens of the frame.
_WIDTHS: dict[str, tuple[int, ...]] = {
    "attention": (2,), "keys": (2, 4), "queries": (2, 4), "frame_embedding": (6,),
    "text_space": (8,), "spatial": (4,), "patch_pixels": (12,), "attention_rows": (2, -1),
}  # fmt: skip


def sample_tokens(
    frames: int = 3,
    rows: int = 4,
    cols: int = 5,
    *,
    dim: int = 8,
    modality: Modality = "video",
    dtype: torch.dtype = torch.float32,
    extras: Sequence[str] = (),
    seed: int = 0,
) -> TokenBatch:
    """Random tokens of whole frames in the cache's order, with times, cells, masses and scores.

    Args:
        frames: T; audio tokens are T x R x C cells of 40 ms in one row.
        rows: R.
        cols: C.
        dim: Width D.
        modality: Stream they claim to come from.
        dtype: Of the data.
        extras: Names of extra columns, positive; [N], or as wide as ``spec.EXTRAS`` says.
        seed: Of the random numbers.
    """
    draw = torch.Generator().manual_seed(seed)
    n = frames * rows * cols
    data = torch.randn(n, dim, generator=draw).to(dtype)
    place = torch.arange(n)
    if modality == "audio":
        start = place.double() * 0.04
        cell = torch.stack([place, torch.zeros(n).long(), torch.zeros(n).long()], 1)
        pts, frame = torch.stack([start, start + 0.04], 1), torch.full((n, 2), -1)
    else:
        t = place // (rows * cols)
        start = 1.0 + t.double() * 0.5
        cell = torch.stack([t, place // cols % rows, place % cols], 1)
        pts, frame = torch.stack([start, start + 0.5], 1), torch.stack([t * 15, t * 15 + 14], 1)
    tokens = TokenBatch.build(
        data, start, pts=pts, cell=cell.int(), frame=frame, modality=MODALITY_CODE[modality],
        mass=1 + torch.randint(0, 3, (n,), generator=draw).float(),
        score=torch.rand(n, generator=draw),
    )  # fmt: skip
    columns = {}
    for name in extras:
        width = [rows * cols if w < 0 else w for w in _WIDTHS.get(name, ())]
        columns[name] = 0.1 + torch.rand(n, *width, generator=draw)
        if name == "frame_embedding":
            columns[name] = columns[name][:: rows * cols].repeat_interleave(rows * cols, 0)
    return replace(tokens, extras=columns)


class ReducerSuite:
    """Properties of every stateless reducer; subclass it in a test module.

    Attributes:
        names: Operators to test; empty means every registered reducer that is not a stream one.
        device: Where the tokens live.
    """

    names: ClassVar[tuple[str, ...]] = ()
    device: ClassVar[str] = "cpu"
    budgets: ClassVar[tuple[int, ...]] = (1, 2, 7, 19)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Run every test once per operator."""
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", self.names or reducer_names())

    def make(self, name: str) -> Reducer:
        """The operator with its default parameters; override to give others."""
        operator = build(StepSpec(use=name))
        assert isinstance(operator, Reducer)
        return operator

    def tokens(self, operator: Any, **options: Any) -> TokenBatch:
        """One item of the operator's scope: a frame, or three."""
        options.setdefault("frames", 1 if operator.scope == "frame" else 3)
        options.setdefault("modality", operator.modalities[0])
        known = (*MODALITY_CODE, "query")
        options.setdefault("extras", [name for name in operator.needs if name not in known])
        return sample_tokens(**options).to(self.device)

    def query(self, operator: Any) -> Query | None:
        """A question for the operators that need one."""
        if "query" not in operator.needs:
            return None
        draw = torch.Generator().manual_seed(1)
        pooled = torch.randn(1, 8, generator=draw).to(self.device)
        return Query(text="what is shown", pooled=pooled, tokens=None, space="data")

    def decide(self, name: str, budget: int | None, **options: Any) -> tuple[TokenBatch, TokenMap]:
        """Tokens and the expanded decision on them."""
        operator = self.make(name)
        tokens = self.tokens(operator, **options)
        return tokens, expanded(operator.decide(tokens, budget, self.query(operator)))

    def fit(self, name: str, budget: int, **options: Any) -> tuple[TokenBatch, TokenMap]:
        """Tokens and the fitted decision on them."""
        operator = self.make(name)
        tokens = self.tokens(operator, **options)
        return tokens, fit_budget(operator, tokens, budget, self.query(operator))

    def test_decide_stays_within_budget(self, name: str) -> None:
        """No decision has more rows than the budget, and no fewer where the count is exact."""
        operator: Any = self.make(name)
        if _ignores_budget(operator):
            return
        for budget in self.budgets:
            tokens, decision = self.decide(name, budget)
            assert len(decision) <= budget
            if operator.exact:
                assert len(decision) == min(budget, len(tokens))

    def test_fit_budget_is_exact(self, name: str) -> None:
        """Exactly min(budget, N) rows, whatever the rule."""
        for budget in (0, *self.budgets, 1000):
            tokens, decision = self.fit(name, budget)
            assert len(decision) == min(budget, len(tokens))

    def test_large_budget_keeps_everything(self, name: str) -> None:
        """With budget >= N every token is a row of its own place."""
        for extra in (0, 5):
            count = len(self.tokens(self.make(name)))
            _, decision = self.fit(name, count + extra)
            assert decision.anchor.sort().values.tolist() == list(range(count))

    def test_no_rows_of_no_tokens(self, name: str) -> None:
        """One token gives one row; none gives none."""
        _, one = self.fit(name, 4, frames=1, rows=1, cols=1)
        assert len(one) == 1
        operator = self.make(name)
        empty = self.tokens(operator).take(torch.arange(0))
        assert len(fit_budget(operator, empty, 4, self.query(operator))) == 0

    def test_every_row_has_a_source(self, name: str) -> None:
        """Each row is made from something and stands for something."""
        for budget in self.budgets:
            _, decision = self.fit(name, budget)
            for column in (decision.weight.abs(), decision.share):
                total = torch.zeros(len(decision), device=column.device)
                assert (total.index_add_(0, decision.dst, column) > 0).all()

    def test_mass_is_conserved(self, name: str) -> None:
        """A source is shared out wholly or dropped; kept and dropped mass make the source mass."""
        for budget in self.budgets:
            tokens, decision = self.fit(name, budget)
            total = _column_sums(decision)
            whole, none = (total - 1).abs() < TOLERANCE, total.abs() < TOLERANCE
            assert (whole | none).all()
            kept = float(tokens.reduce(decision).mass.sum())
            source, dropped = float(tokens.mass.sum()), float(tokens.mass[none].sum())
            assert abs(kept + dropped - source) <= TOLERANCE * source

    def test_spans_are_hulls(self, name: str) -> None:
        """Each row spans exactly the times and frames of what it stands for."""
        tokens, decision = self.fit(name, 7)
        reduced = tokens.reduce(decision)
        for row in range(len(decision)):
            member = decision.src[(decision.dst == row) & (decision.share > 0)]
            for column in ("pts", "frame"):
                source, made = getattr(tokens, column)[member], getattr(reduced, column)[row]
                assert made[0] == source[:, 0].min() and made[1] == source[:, 1].max()

    def test_frames_are_decided_one_by_one(self, name: str) -> None:
        """A rule of frame scope makes the same of several frames as of each alone."""
        operator: Any = self.make(name)
        if operator.scope != "frame":
            return
        tokens, query = self.tokens(operator, frames=3), self.query(operator)
        size = len(tokens) // 3
        budgets = (None,) if _ignores_budget(operator) else (None, 3 * 7)
        for budget in budgets:
            both = tokens.reduce(expanded(operator.decide(tokens, budget, query)))
            alone = []
            for t in range(3):
                frame = tokens.take(slice(t * size, (t + 1) * size))
                each = None if budget is None else budget // 3
                alone.append(frame.reduce(expanded(operator.decide(frame, each, query))))
            one = TokenBatch.cat(alone)
            assert len(both) == len(one)
            order, other = both.order(), one.order()
            for column in ("data", "mass", "at", "cell"):
                torch.testing.assert_close(
                    getattr(both, column)[order], getattr(one, column)[other], rtol=1e-5, atol=1e-5
                )

    def test_stream_form_equals_the_whole(self, name: str) -> None:
        """A stream rule pushed frame by frame makes what it decides of all frames at once."""
        operator: Any = self.make(name)
        if not isinstance(operator, StreamReducer):
            return
        tokens = self.tokens(operator, frames=5)
        size, budget = len(tokens) // 5, 2 * (len(tokens) // 5)
        state: Any = operator.start(budget, 5)
        carried: TokenBatch | None = None
        done = []
        for t in range(5):
            new = tokens.take(slice(t * size, (t + 1) * size))
            state, step = operator.push(state, carried, new)
            both = new if carried is None else TokenBatch.cat([carried, new])
            rows, settled = both.reduce(step), state.settled
            if settled is not None:
                done.append(rows.take(settled))
                rows = rows.take(~settled)
            carried = rows
        assert carried is not None
        done.append(carried.reduce(operator.finish(state, carried)))
        streamed = TokenBatch.cat([part for part in done if len(part)]).sorted()
        whole = tokens.reduce(expanded(self.make(name).decide(tokens, budget))).sorted()
        for column in ("data", "mass", "at", "pts"):
            torch.testing.assert_close(
                getattr(streamed, column), getattr(whole, column), rtol=1e-4, atol=1e-4
            )

    def test_identical_tokens_are_no_trouble(self, name: str) -> None:
        """Tokens that are all the same, or all zero, are reduced like any others."""
        operator = self.make(name)
        for value in (0.0, 1.0):
            tokens = self.tokens(operator)
            tokens = tokens.with_columns(data=torch.full_like(tokens.data, value))
            decision = fit_budget(operator, tokens, 7, self.query(operator))
            assert len(decision) == min(7, len(tokens))
            assert tokens.reduce(decision).data.isfinite().all()

    def test_non_finite_tokens_are_refused(self, name: str) -> None:
        """NaN or infinity in the data is an error with a name, whatever the rule."""
        operator = self.make(name)
        for value in (torch.nan, torch.inf):
            tokens = self.tokens(operator)
            data = tokens.data.clone()
            data[len(data) // 2, 0] = value
            with pytest.raises(ModelError, match="not finite"):
                fit_budget(operator, tokens.with_columns(data=data), 7, self.query(operator))

    def test_scale_does_not_matter_where_claimed(self, name: str) -> None:
        """A rule that says so decides the same of tokens twice as long."""
        operator: Any = self.make(name)
        if not getattr(operator, "scale_free", False):
            return
        tokens, query = self.tokens(operator), self.query(operator)
        first = expanded(operator.decide(tokens, 7, query))
        second = expanded(operator.decide(tokens.with_columns(data=tokens.data * 2), 7, query))
        for column in ("src", "dst", "share", "anchor"):
            assert torch.equal(getattr(first, column), getattr(second, column))

    def test_order_is_the_caches(self, name: str) -> None:
        """Sorted rows are in order of time, tile and place."""
        tokens, decision = self.fit(name, 7)
        rows = tokens.reduce(decision).sorted()
        assert torch.equal(rows.order(), torch.arange(len(rows), device=rows.at.device))

    def test_decision_is_repeatable(self, name: str) -> None:
        """The same tokens give the same bits."""
        _, first = self.decide(name, 7)
        _, second = self.decide(name, 7)
        for column in ("src", "dst", "weight", "share", "anchor"):
            assert torch.equal(getattr(first, column), getattr(second, column))

    def test_half_precision_is_accepted(self, name: str) -> None:
        """float16 and bfloat16 data stay what they are, and finite."""
        for dtype in (torch.float16, torch.bfloat16):
            tokens, decision = self.fit(name, 7, dtype=dtype)
            reduced = tokens.reduce(decision)
            assert reduced.data.dtype == dtype and reduced.data.isfinite().all()

    def test_device_is_kept(self, name: str) -> None:
        """The map lives where the tokens live."""
        tokens, decision = self.decide(name, 7)
        assert decision.src.device == decision.weight.device == tokens.data.device

    def test_duplicates_go_first(self, name: str) -> None:
        """A similarity rule with room for every distinct token loses none of them.

        Not those by a threshold, which look at neighbours in time or space only.
        """
        operator: Any = self.make(name)
        if registry.lookup(name).mechanism != "similarity" or _keeps_outliers(operator):
            return
        tokens = self.tokens(operator, frames=1, rows=2, cols=10, dim=16)
        distinct = 4 * torch.eye(10, 16, device=tokens.data.device)
        tokens = tokens.with_columns(data=distinct.repeat_interleave(2, 0))
        decision = expanded(operator.decide(tokens, 10, self.query(operator)))
        if not any(f.name == "threshold" for f in fields(operator)):
            rows = tokens.reduce(decision).data
            assert ((distinct[:, None] - rows[None]).abs().amax(2).amin(1) < 1e-3).all()

    def test_metadata_is_complete(self, name: str) -> None:
        """The operator says where it comes from and what it can do; numbers have ranges."""
        operator: Any = self.make(name)
        kind = type(operator)
        doc = importlib.import_module(kind.__module__).__doc__ or ""
        assert "Source:" in doc and doc.splitlines()[0].endswith(".")
        assert operator.source and operator.scope in ("frame", "window", "stream", "video")
        assert operator.modalities and set(operator.modalities) <= set(MODALITY_CODE)
        assert operator.layouts and set(operator.layouts) <= set(LAYOUTS)
        assert isinstance(operator.causal, bool) and isinstance(operator.exact, bool)
        assert operator.version >= 1 and isinstance(operator.needs, tuple)
        hints = get_type_hints(kind, include_extras=True)
        for parameter in fields(kind):
            text = str(hints[parameter.name])
            number = ("int" in text or "float" in text) and "Literal" not in text
            assert not number or "Annotated" in text, f"{name}.{parameter.name} has no range"

    def test_out_count_matches_the_decision(self, name: str) -> None:
        """``out_count`` is the count where it claims so, else a bound."""
        operator: Any = self.make(name)
        for budget in (None, *self.budgets):
            tokens, decision = self.decide(name, budget)
            rows, exact = operator.out_count(len(tokens), budget)
            assert len(decision) == rows if exact else len(decision) <= rows


def reducer_names() -> list[str]:
    """Every registered reducer that decides without state."""
    return [name for name in registry.names("reducer") if not _streams(build(StepSpec(use=name)))]


def _streams(operator: Any) -> bool:
    return not hasattr(operator, "decide")


def _ignores_budget(operator: object) -> bool:
    """A rule that is only a threshold reaches a budget through ``fit_budget``."""
    searched = any(f.name == "threshold" for f in fields(operator))  # type: ignore[arg-type]
    return searched and not getattr(operator, "exact", False)


def _keeps_outliers(operator: object) -> bool:
    """The rule keeps what is unlike the mean, so it may give up what lies close to it."""
    return bool(getattr(operator, "keeps_outliers", False))


def _column_sums(decision: TokenMap) -> Tensor:
    total = torch.zeros(decision.num_sources, device=decision.src.device)
    return total.index_add_(0, decision.src, decision.share)
