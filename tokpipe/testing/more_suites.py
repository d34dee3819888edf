"""Conformance suites of presets and of projectors; see ``suites`` for single reducers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from tokpipe import registry
from tokpipe.card import Card, card
from tokpipe.recipe import build
from tokpipe.reduce import map_tokens, reduce_tokens
from tokpipe.spec import Modality, StepSpec
from tokpipe.tensors import Query, TokenBatch
from tokpipe.testing.suites import TOLERANCE, sample_tokens

_NOT_COLUMNS = frozenset(("query", "score", "pixels", "mel", "features"))


class PresetSuite:
    """Properties of every preset: its rules, one after the other, under one budget.

    Attributes:
        names: Presets to test; empty means every preset whose rules run on any tokens.
        device: Where the tokens live.
    """

    names: ClassVar[tuple[str, ...]] = ()
    device: ClassVar[str] = "cpu"
    budgets: ClassVar[tuple[int, ...]] = (1, 2, 7, 19, 1000)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Run every test once per preset."""
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", self.names or preset_names())

    def tokens(self, name: str, **options: Any) -> TokenBatch:
        """Three whole frames, or sound, with the columns its rules need."""
        facts = card(name)
        options.setdefault("modality", facts.modalities[0])
        options.setdefault("extras", [n for n in facts.needs if n not in _NOT_COLUMNS])
        return sample_tokens(**options).to(self.device)

    def query(self, name: str) -> Query | None:
        """A question for the presets that need one."""
        if "query" not in card(name).needs:
            return None
        return Query(text="what is shown", pooled=torch.ones(1, 8, device=self.device))

    def test_budget_is_met_exactly(self, name: str) -> None:
        """Exactly min(budget, N) rows."""
        tokens = self.tokens(name)
        for budget in self.budgets:
            assert len(map_tokens(tokens, name, budget, self.query(name))) == min(
                budget, len(tokens)
            )

    def test_a_budget_for_all_keeps_every_place(self, name: str) -> None:
        """With budget >= N every token is a row of its own place."""
        tokens = self.tokens(name)
        kept = map_tokens(tokens, name, len(tokens) + 3, self.query(name))
        assert kept.anchor.sort().values.tolist() == list(range(len(tokens)))

    def test_mass_is_conserved_and_spans_are_hulls(self, name: str) -> None:
        """Kept and dropped mass make the source mass; rows span what they stand for."""
        tokens = self.tokens(name)
        for budget in (None, 7):
            made = map_tokens(tokens, name, budget, self.query(name))
            _check_shares(tokens, made.src, made.share)
            rows = tokens.reduce(made)
            for row in range(len(made)):
                member = made.src[(made.dst == row) & (made.share > 0)]
                span = tokens.pts[member]
                assert rows.pts[row, 0] == span[:, 0].min()
                assert rows.pts[row, 1] == span[:, 1].max()

    def test_one_token_and_no_token(self, name: str) -> None:
        """One gives one, none gives none."""
        tokens = self.tokens(name, frames=1, rows=1, cols=1)
        assert len(map_tokens(tokens, name, 4, self.query(name))) == 1
        assert len(map_tokens(tokens.take(slice(0, 0)), name, 4, self.query(name))) == 0

    def test_half_precision_and_repetition(self, name: str) -> None:
        """float16 and bfloat16 stay what they are; the same tokens give the same bits."""
        for dtype in (torch.float16, torch.bfloat16):
            tokens = self.tokens(name, dtype=dtype)
            first = reduce_tokens(tokens, name, 7, self.query(name))
            second = reduce_tokens(tokens, name, 7, self.query(name))
            assert first.data.dtype == dtype and torch.equal(first.data, second.data)
            assert torch.equal(first.order(), torch.arange(7, device=first.at.device))


class ProjectorSuite:
    """Properties of every projector.

    Attributes:
        names: Projectors to test; empty means every registered one.
    """

    names: ClassVar[tuple[str, ...]] = ()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Run every test once per projector."""
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", self.names or registry.names("projector"))

    def tokens(self, name: str, **options: Any) -> TokenBatch:
        """Three frames of 4 x 6 tokens, or sound."""
        options.setdefault("cols", 6)
        stream: Modality = "audio" if card(name).modalities == ("audio",) else "video"
        return sample_tokens(modality=stream, **options)

    def test_new_tokens_keep_time_and_mass(self, name: str) -> None:
        """Mass is never made, spans lie within the source's, order is the cache's."""
        tokens = self.tokens(name)
        made = build(StepSpec(use=name)).project(tokens)
        assert len(made) and made.data.isfinite().all()
        assert float(made.mass.sum()) <= float(tokens.mass.sum()) * (1 + TOLERANCE)
        assert made.pts.min() >= tokens.pts.min() and made.pts.max() <= tokens.pts.max()
        assert torch.equal(made.order(), torch.arange(len(made)))

    def test_precision_is_kept(self, name: str) -> None:
        """float16 and bfloat16 stay what they are."""
        for dtype in (torch.float16, torch.bfloat16):
            made = build(StepSpec(use=name)).project(self.tokens(name, dtype=dtype))
            assert made.data.dtype == dtype and made.data.isfinite().all()

    def test_receptive_field_is_stated_and_true(self, name: str) -> None:
        """A change of one token reaches no more new tokens than the field allows."""
        projector: Any = build(StepSpec(use=name))
        tokens = self.tokens(name)
        field = projector.receptive_field
        assert len(field) == 3 and min(field) >= 1
        data = tokens.data.clone()
        data[len(data) // 2] += 100
        before, after = projector.project(tokens), projector.project(tokens.with_columns(data=data))
        changed = int((before.data != after.data).any(1).sum())
        assert changed <= field[0] * field[1] * field[2]


def preset_names() -> list[str]:
    """Presets whose rules decide on tokens alone, without the signal's own cells."""
    return [name for name in registry.names("preset") if _decides(card(name))]


def _decides(facts: Card) -> bool:
    rules = [use for use in facts.steps if registry.lookup(use).kind == "reducer"]
    return all(hasattr(registry.load(use), "decide") for use in rules)


def _check_shares(tokens: TokenBatch, src: Tensor, share: Tensor) -> None:
    total = torch.zeros(len(tokens), device=share.device).index_add_(0, src, share)
    whole, none = (total - 1).abs() < TOLERANCE, total.abs() < TOLERANCE
    assert (whole | none).all()
