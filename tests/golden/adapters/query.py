"""Adapters of selection by a query."""

from __future__ import annotations

import pytest
import torch

from tokpipe.compress.query.cdpruner import CDPruner
from tokpipe.compress.query.mob import MoB
from tokpipe.compress.query.trim import Trim
from tokpipe.tensors import Query
from tokpipe.testing.golden import Adapter, Case, assert_index, assert_values, frame_tokens


def cdpruner(case: Case) -> None:
    x = case("in_x")
    batch, size = x.shape[:2]
    tokens = frame_tokens(x, text_space=case("in_img_emb"))
    query = Query(text="", pooled=case("in_txt_emb"), space="text_space")
    operator = CDPruner(compat="released")
    cosines = operator.cosines(tokens, query).reshape(batch, size, -1)
    assert_values(cosines, case("out_cosine_to_text"))
    found = operator.decide(tokens, batch * case.value("par_T"), query)
    assert_index(found.anchor.reshape(batch, -1) % size, case("out_kept"))
    mask = torch.zeros(batch * size, dtype=torch.bool)
    mask[found.src] = True
    assert_index(mask.reshape(batch, size), case("out_mask"))


def trim(case: Case) -> None:
    x, ratio = case("in_x"), case.value("par_k")
    batch, size, width = x.shape
    projected = torch.nn.functional.layer_norm(x, (width,), eps=1e-5) @ case("in_Wp")
    # Each picture has a text of its own: its factors go into the tokens, the query is all ones.
    space = projected * case("in_text")[:, None]
    tokens = frame_tokens(x, text_space=space)
    query = Query(text="", pooled=torch.ones(1, space.shape[2]), space="text_space")
    operator = Trim(ratio=None if ratio == -1 else ratio, compat="released")
    assert_values(operator.scores(tokens, query).reshape(batch, size), case("out_score"))
    found = operator.decide(tokens, None, query)
    rows = found.anchor.reshape(batch, -1) % size
    assert rows.shape[1] == case.value("out_n_out")
    assert_index(rows[:, :-1], case("out_kept"))
    reduced = tokens.reduce(found).data.reshape(batch, -1, width)
    assert_values(reduced, case("out_tokens_fp16"), atol=2e-3, rtol=2e-3)


def mob_paper(case: Case) -> None:
    tokens, prompt = frame_tokens(case("in_V")), case("in_P")
    query = Query(text="", pooled=prompt.mean(0, keepdim=True), tokens=prompt)
    centres, picture = case.value("par_Kp"), case.value("par_Kv")
    operator = MoB(prompt=centres, picture=picture, nearest=case.value("par_k"))
    found = operator.decide(tokens, None, query)
    assert_index(found.anchor, case("out_order"))
    assert len(found) - picture == case.value("out_n_prompt")
    assert float(operator.coupling(tokens, query)) == pytest.approx(case.value("out_eta"), rel=2e-4)


ADAPTERS: dict[str, Adapter] = {
    "cdpruner": cdpruner,
    "mob_paper": mob_paper,
    "trim": trim,
}
