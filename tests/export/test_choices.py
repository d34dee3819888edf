"""A choice that is none is refused also where a function is called from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import tokpipe
from tokpipe.errors import RecipeError
from tokpipe.export.sglang import to_sglang
from tokpipe.export.vllm import to_vllm


@pytest.mark.parametrize(
    ("function", "wrong"),
    [
        (tokpipe.to_model_inputs, {"positions": "Compact"}),
        (tokpipe.to_model_inputs, {"road": "embeds"}),
        (tokpipe.to_model_inputs, {"use": "x"}),
        (to_sglang, {"positions": "foo"}),
        (to_sglang, {"dtype": "int8"}),
        (to_vllm, {"media": "pictures"}),
    ],
)
def test_wrong_choices_are_refused(function: Any, wrong: Any, some: Any) -> None:
    paths: list[Path] = some("F32")
    more = (None, None, "q") if function is tokpipe.to_model_inputs else ()
    with tokpipe.open_cache(paths[0]) as cache, pytest.raises(RecipeError) as caught:
        function(cache, *more, **wrong)
    assert "one of" in str(caught.value.hint)
