"""Rules on tokens of one's own."""

from __future__ import annotations

import pytest
import torch

import tokpipe
from tokpipe.errors import ModelError, RecipeError
from tokpipe.testing.suites import sample_tokens


def test_reduce_takes_any_name_and_meets_the_budget() -> None:
    tokens = sample_tokens(frames=4, extras=("attention", "keys"))
    for name in ("tome", "visionzip", "dycoke", "ma-lmm", "pllava", "tome | top-k"):
        few = tokpipe.reduce_tokens(tokens, name, budget=17)
        assert len(few) == 17, name
        assert float(few.mass.sum()) <= float(tokens.mass.sum()) + 1e-3
        assert torch.equal(few.order(), torch.arange(17))


def test_reduce_without_a_budget_goes_by_the_rule() -> None:
    tokens = sample_tokens(frames=4)
    assert len(tokpipe.reduce_tokens(tokens, "aim")) == len(tokens) // 4
    assert len(tokpipe.reduce_tokens(tokens, "tome")) == len(tokens)


def test_reduce_runs_the_chain_of_the_tokens_own_stream() -> None:
    sound = sample_tokens(frames=2, modality="audio")
    assert len(tokpipe.reduce_tokens(sound, "fastadasp", budget=9)) == 9
    assert len(tokpipe.reduce_tokens(sound, "max-min", budget=9)) == 9


def test_reduce_says_what_is_missing() -> None:
    tokens = sample_tokens()
    with pytest.raises(RecipeError, match="attention"):
        tokpipe.reduce_tokens(tokens, "visionzip", budget=5)
    with pytest.raises(RecipeError, match="query"):
        tokpipe.reduce_tokens(tokens, "cdpruner", budget=5)
    with pytest.raises(RecipeError, match="new vectors"):
        tokpipe.reduce_tokens(tokens, "max-pool", budget=5)
    with pytest.raises(RecipeError, match="no reducers"):
        tokpipe.reduce_tokens(tokens, "video: pixels", budget=5)
    tokens.data[3] = torch.nan
    with pytest.raises(ModelError, match="token 3"):
        tokpipe.reduce_tokens(tokens, "tome", budget=5)
