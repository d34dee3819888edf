"""Merging inside blocks: the papers' algorithms written out naively, and maps over pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokpipe.compress.attention.ast_topk import AstTopK
from tokpipe.compress.attention.ficoco_v import FiCoCoV
from tokpipe.compress.attention.illava import ILlava
from tokpipe.compress.query.trim import Trim
from tokpipe.compress.similarity.a_tome_greedy import ATomeGreedy
from tokpipe.compress.similarity.a_tome_pairs import ATomePairs
from tokpipe.compress.similarity.a_tome_scan import ATomeScan
from tokpipe.compress.similarity.dymu import DyMU
from tokpipe.compress.similarity.mustdrop import Mustdrop
from tokpipe.compress.similarity.tome import ToMe
from tokpipe.encode._merging.in_encoder import InEncoder, Merged, schedule
from tokpipe.encode._merging.ragged import joined
from tokpipe.errors import ModelError, RecipeError
from tokpipe.maps import TokenMap
from tokpipe.tensors import TokenBatch

WIDTH, HEADS, SIDE = 32, 4, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_weights(model: nn.Module) -> nn.Module:
    """Weights large enough that attention is not flat; the same at every call."""
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        spread = 0.2 if value.ndim > 1 else 0.1
        value.data = torch.randn_like(value) * spread + (1.0 if "norm" in name else 0.0)
    return model.eval().requires_grad_(False)


def timm_model(**how: Any) -> Any:
    vit = pytest.importorskip("timm").models.vision_transformer.VisionTransformer
    base = {"img_size": 8 * SIDE, "patch_size": 8, "embed_dim": WIDTH, "depth": 4,
            "num_heads": HEADS, "num_classes": 0}  # fmt: skip
    return random_weights(vit(**{**base, **how}))


# The paper's algorithm, picture by picture and token by token.


def attention_by_hand(block: Any, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What attention adds [N, D], keys [N, H, d] and weights [H, N, N] of one picture."""
    at, n = block.attn, len(x)
    query, key, value = at.qkv(block.norm1(x)).reshape(n, 3, HEADS, -1).unbind(1)
    out, weights = [], []
    for h in range(HEADS):
        logits = query[:, h] @ key[:, h].T / math.sqrt(query.shape[2]) + size.log()[None]
        weights.append(torch.softmax(logits, 1))
        out.append(weights[-1] @ value[:, h])
    return at.proj(torch.cat(out, 1)), key, torch.stack(weights)


def bipartite(key: Tensor, r: int, threshold: float | None = None) -> list[list[int]]:
    """Members of each row after one round, the class token first and alone."""
    metric = key.mean(1)
    metric = metric / metric.norm(dim=1, keepdim=True)
    best = []
    for a in range(2, len(key), 2):
        alike = {b: float(metric[a] @ metric[b]) for b in range(1, len(key), 2)}
        b = max(alike, key=alike.__getitem__)
        best.append((alike[b], a, b))
    best.sort(reverse=True)
    room = (len(key) - 1) // 2
    count = r if threshold is None else sum(value > threshold for value, _, _ in best)
    taken = {a: b for _, a, b in best[: min(count, room)]}
    if not taken:
        return [[i] for i in range(len(key))]
    rows = [[a] for a in range(0, len(key), 2) if a not in taken]
    return rows + [[b, *(a for a, to in taken.items() if to == b)] for b in range(1, len(key), 2)]


def by_hand(
    model: Any, x: Tensor, rows_of: Callable[[int, Tensor, Tensor], list[list[int]] | None],
    *, proportional: bool = True,
) -> tuple[Tensor, list[set[int]]]:  # fmt: skip
    """Hidden rows after the last block and the sources of each."""
    size, members = torch.ones(len(x)), [{i} for i in range(len(x))]
    for index, block in enumerate(model.blocks):
        added, key, weights = attention_by_hand(
            block, x, size if proportional else torch.ones_like(size)
        )
        x = x + added
        rows = rows_of(index, key, weights)
        if rows is not None:
            parts = [(x[row], size[row]) for row in rows]
            x = torch.stack([(value * mass[:, None]).sum(0) / mass.sum() for value, mass in parts])
            size = torch.stack([mass.sum() for _, mass in parts])
            members = [set().union(*(members[i] for i in row)) for row in rows]
        x = x + block.mlp(block.norm2(x))
    return x, members


def embedded(model: Any, count: int = 3) -> Tensor:
    given = draw(count, 3, 8 * SIDE, 8 * SIDE, seed=1)
    out: Tensor = model._pos_embed(model.patch_embed(given))
    return out


def sources(made: Merged, picture: int) -> list[set[int]]:
    """Sources of each row as a sequence with one class token counts them."""
    one = made.maps[picture]
    rows: list[set[int]] = [set() for _ in range(len(one))]
    for src, dst in zip(one.src.tolist(), one.dst.tolist(), strict=True):
        rows[dst].add(src + 1)
    return [{0}, *rows]


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("amounts", [(3, 3, 3, 3), (5, 0, 2, 1), (8, 4)])
def test_tome_is_the_papers_algorithm_over_all_blocks(
    amounts: tuple[int, ...], proportional: bool
) -> None:
    model = timm_model()
    rule = InEncoder(ToMe(class_token=True), amounts=amounts, proportional=proportional)
    r = (*amounts, 0, 0)
    with torch.inference_mode():
        hidden = embedded(model)
        made = rule.run(model.blocks, hidden)
        for i, found in enumerate(made.pictures()):
            rows, members = by_hand(
                model, hidden[i], lambda at, key, _: bipartite(key, r[at]) if r[at] else None,
                proportional=proportional,
            )  # fmt: skip
            assert sources(made, i) == members
            torch.testing.assert_close(found, rows, atol=1e-5, rtol=1e-5)


def test_maps_tell_mass_hull_and_mean_of_the_patches() -> None:
    model = timm_model()
    with torch.inference_mode():
        made = InEncoder(ToMe(r=3, class_token=True)).run(
            model.blocks, embedded(model), grid=(SIDE, SIDE)
        )
    place = torch.arange(SIDE * SIDE)
    cell = torch.stack([place * 0, place // SIDE, place % SIDE], 1).int()
    data = draw(SIDE * SIDE, 5)
    patches = TokenBatch.build(data, torch.zeros(SIDE * SIDE).double(), cell=cell)
    for i, one in enumerate(made.maps):
        reduced = patches.reduce(one)
        for row, whole in enumerate(sources(made, i)[1:]):
            inside = torch.tensor(sorted(whole)) - 1
            assert reduced.mass[row] == len(inside)
            torch.testing.assert_close(reduced.data[row], data[inside].mean(0))
            spans = cell[inside].amax(0) - cell[inside].amin(0) + 1
            assert torch.equal(reduced.extent[row], spans.int())


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_dymu_merges_above_its_threshold(threshold: float) -> None:
    model = timm_model()
    rule = InEncoder(DyMU(threshold=threshold, class_token=True), (0, 2))
    with torch.inference_mode():
        hidden = embedded(model, 5)
        made = rule.run(model.blocks, hidden)
        assert len(set(made.counts)) > 1, "the case shows nothing where all pictures are alike"
        for i, found in enumerate(made.pictures()):
            rows, members = by_hand(
                model, hidden[i],
                lambda at, key, _: bipartite(key, 0, threshold) if at in (0, 2) else None,
            )  # fmt: skip
            assert sources(made, i) == members
            torch.testing.assert_close(found, rows, atol=1e-5, rtol=1e-5)


def neighbours(key: Tensor, kind: str) -> list[list[int]]:
    """Pairs of neighbours that merge among patches, the class token apart (part 0.3 or 0.6)."""
    key = key[1:]
    metric = key.mean(1) if kind == "greedy" else key.flatten(1)
    links = torch.cosine_similarity(metric[:-1], metric[1:], dim=1).tolist()
    order, n = sorted(range(len(links)), key=lambda i: -links[i]), len(key)
    starts: set[int] = set()
    if kind == "greedy":
        for i in order:
            if len(starts) < int((n - 1) * 0.3) and not starts & {i - 1, i, i + 1}:
                starts.add(i)
    elif kind == "pairs":
        starts = set([i for i in order if i % 2 == 0][: n - round(n * 0.6)])
    else:
        marked, i = set(order[: int(n * 0.3)]), 0
        while i < n:
            if i in marked:
                starts.add(i)
            i += 2 if i in marked else 1
    rows = [[i, i + 1] if i in starts else [i] for i in range(n) if i - 1 not in starts]
    return [[0], *[[i + 1 for i in row] for row in rows]]


@pytest.mark.parametrize("kind", ["greedy", "pairs", "scan"])
def test_a_tome_merges_neighbours_between_attention_and_mlp(kind: str) -> None:
    model = timm_model()
    rule: Any = {"greedy": ATomeGreedy, "pairs": ATomePairs, "scan": ATomeScan}[kind]()
    with torch.inference_mode():
        hidden = embedded(model)
        made = InEncoder(rule, (1,)).run(model.blocks, hidden)
        for i, found in enumerate(made.pictures()):
            rows, members = by_hand(
                model, hidden[i], lambda at, key, _: neighbours(key, kind) if at == 1 else None
            )
            assert sources(made, i) == members
            torch.testing.assert_close(found, rows, atol=1e-5, rtol=1e-5)


def most_attended(weights: Tensor, ratio: float) -> list[list[int]]:
    row = weights.mean(0)[0, 1:].tolist()
    order = sorted(range(len(row)), key=lambda i: -row[i])[: math.ceil(ratio * len(row))]
    return [[0], *[[i + 1] for i in order]]


@pytest.mark.parametrize("special", [0, 1])
def test_ast_topk_keeps_what_the_class_token_attends_to(special: int) -> None:
    model = timm_model()
    rule = InEncoder(AstTopK(ratio=0.7, special=special), (1, -1))
    with torch.inference_mode():
        hidden = embedded(model)
        made = rule.run(model.blocks, hidden)
        for i, found in enumerate(made.pictures()):
            rows, members = by_hand(
                model, hidden[i],
                lambda at, _, weights: most_attended(weights, 0.7) if at in (1, 3) else None,
            )  # fmt: skip
            assert sources(made, i) == members
            torch.testing.assert_close(found, rows, atol=1e-5, rtol=1e-5)


RULES: dict[str, Any] = {
    "tome": ToMe(r=2), "tome-video": ToMe(r=2, scope="video"), "dymu": DyMU(threshold=0.3),
    "dymu-learnt": DyMU(r=2), "released": DyMU(threshold=0.3, class_token=True, compat="released"),
    "a-tome": ATomeGreedy(threshold=0.1), "ast-topk": AstTopK(special=1), "illava": ILlava(r=2),
    "mustdrop": Mustdrop(window=2, threshold=0.2), "ficoco": FiCoCoV(r=2),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_picture_does_not_depend_on_its_batch(name: str) -> None:
    model, rule = timm_model(reg_tokens=2), InEncoder(RULES[name])
    with torch.inference_mode():
        hidden = embedded(model, 4)
        made = rule.run(model.blocks, hidden, prefix=3, grid=(SIDE, SIDE))
        assert made.rows.shape[0] < hidden.shape[0] * hidden.shape[1]
        for i, found in enumerate(made.pictures()):
            alone = rule.run(model.blocks, hidden[i : i + 1], prefix=3, grid=(SIDE, SIDE))
            torch.testing.assert_close(found, alone.rows, atol=2e-5, rtol=1e-4)
            assert torch.equal(made.maps[i].anchor, alone.maps[0].anchor)
            torch.testing.assert_close(made.maps[i].share, alone.maps[0].share)


def test_amounts_work_for_rules_with_and_without_a_count_of_their_own() -> None:
    model = timm_model()
    with torch.inference_mode():
        hidden = embedded(model, 2)
        for rule in (ToMe(), DyMU(class_token=True), ATomePairs(), AstTopK(special=1)):
            made = InEncoder(rule, (2, 0), (3, 4)).run(model.blocks, hidden)
            assert [len(one) for one in made.maps] == [9, 9]
        cut = InEncoder(ToMe(), amounts=(50,)).run(model.blocks, hidden)
        assert cut.counts == (9, 9)  # one round merges half at most


def test_schedule_reads_what_the_released_code_reads() -> None:
    assert schedule(3, 5) == (5, 5, 5)
    assert schedule(5, (4, 1)) == (0, 2, 4, 6, 8)
    assert schedule(5, [3, 1]) == (3, 1, 0, 0, 0)
    assert schedule(1, (4, -1)) == (8,)
    assert schedule(0, 4) == ()
    for wrong in ([1] * 6, [-1], (4, 1.5), -1):
        with pytest.raises(RecipeError):
            schedule(5, wrong)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: InEncoder(object()), "decides nothing"),
        (lambda: InEncoder(Trim()), "needs `query`"),
        (lambda: InEncoder(ToMe(schedule=(1, 2)), amounts=(3,)), "schedule"),
        (lambda: InEncoder(ToMe(), amounts=(-1,)), "negative"),
        (lambda: InEncoder(ToMe(), (0, -4)).plan(4), "layers"),
        (lambda: InEncoder(ToMe(), (4,)).plan(4), "layers"),
        (lambda: InEncoder(ToMe(), (1,), (2, 2)).plan(4), "2 amounts for 1"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: Callable[[], Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        wrong()
    assert caught.value.hint


def test_what_does_not_fit_a_tower_is_refused() -> None:
    model, hidden = timm_model(), draw(1, 17, WIDTH)
    twice = InEncoder(ToMe(r=2, class_token=True, distill_token=True))
    with pytest.raises(RecipeError, match="needs 2 class tokens, the tower has 1"):
        twice.run(model.blocks, hidden)
    with pytest.raises(RecipeError, match="class tokens"):
        InEncoder(AstTopK()).run(model.blocks, hidden, prefix=0)
    with pytest.raises(RecipeError, match="grid"):
        InEncoder(ToMe(r=2)).run(model.blocks, hidden, grid=(3, 4))
    with pytest.raises(ModelError, match="`Linear`"):
        InEncoder(ToMe(r=2)).run([nn.Linear(WIDTH, WIDTH).eval()], hidden)
    with pytest.raises(ModelError, match="eval mode"):
        InEncoder(ToMe(r=2)).run(model.train().blocks, hidden)


def test_half_precision_towers_merge_in_their_own_type() -> None:
    model = timm_model().bfloat16()
    with torch.inference_mode():
        made = InEncoder(DyMU(threshold=0.5)).run(model.blocks, draw(3, 17, WIDTH).bfloat16())
    assert made.rows.dtype == torch.bfloat16 and made.rows.isfinite().all()
    assert sum(made.counts) < 51


def test_a_class_token_that_a_rule_puts_last_stays_first() -> None:
    last = TokenMap.keep(torch.tensor([2, 1, 0]), 3)
    made, counts = joined([last, last], [3, 3], 1, "rule")
    assert made.anchor.tolist() == made.src[made.dst.argsort()].tolist() == [0, 2, 1, 3, 5, 4]
    assert counts == [3, 3]
    with pytest.raises(RecipeError, match="gave up class tokens"):
        joined([last, TokenMap.keep(torch.tensor([1, 2]), 3)], [3, 3], 1, "rule")
    # FiCoCo-V as released ends with the class token, inside the tower too.
    model = timm_model()
    rule = InEncoder(FiCoCoV(r=3, class_token=True, compat="released"), (-1,))
    with torch.inference_mode():
        hidden = embedded(model, 2)
        rows = torch.stack(rule.run(model.blocks, hidden).pictures())
        plain = model.blocks(hidden)
    torch.testing.assert_close(rows[:, 0], plain[:, 0], atol=1e-5, rtol=1e-5)
