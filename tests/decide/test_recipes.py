"""The contract holds for any chain of operators, not only for the default one."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Protocol

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokpipe.budget import Budget
from tokpipe.cache.bank import Bank
from tokpipe.chain import Chain
from tokpipe.decide import Demand, Kept, check_layout, decide
from tokpipe.errors import RecipeError
from tokpipe.spec import LAYOUTS, Layout


class Entry(Protocol):
    """A bank entry of small media; see conftest."""

    bank: Bank

    @property
    def grid(self) -> tuple[int, int]: ...
    def chains(self, recipe: str) -> dict[str, Chain]: ...
    def candidates(self, recipe: str) -> tuple[int, int]: ...


Entries = Mapping[str, Entry]

VIDEO = (
    "fps | pixels",
    "fps | pixels | tome",
    "fps | pixels | dpc-knn",
    "fps | pixels | max-min",
    "fps | pixels | uniform",
    "fps | pixels | grid-pool",
    "fps | pixels | temporal-drop",
    "fps | pixels | temporal-drop | top-k",
    "fps | pixels | temporal-drop:reference=previous | anchor-updates:anchors=0.5",
    "fps | pixels | temporal-drop | anchor-updates:anchors=0.0",
    "fps | pixels | temporal-drop | tome",
)
AUDIO = (
    "mel",
    "mel | silence-gate",
    "mel | adjacent-merge",
    "mel | silence-gate | adjacent-merge",
    "mel | tome",
)
#: Chains that were told to remove tokens: they may give less than the budget.
REMOVING_VIDEO = (
    "fps | pixels | temporal-drop:threshold=1.0",
    "fps | pixels | temporal-drop:threshold=1.0 | top-k",
    "fps | pixels | temporal-drop:threshold=2.0 | tome",
)
REMOVING_AUDIO = ("mel | silence-gate:drop=true", "mel | silence-gate:drop=true | adjacent-merge")
SMALL = ("short.mp4", "video_only.mp4", "silent_track.mp4", "black.mp4", "one_frame.mp4",
         "audio_only.mp4", "animation.gif")  # fmt: skip


def line(video: str | None, audio: str | None) -> str:
    parts = (f"video: {video}" if video else "", f"audio: {audio}" if audio else "")
    return "; ".join(filter(None, parts))


def run(entry: Entry, recipe: str, budget: str | None, layout: Layout = "ragged",
        pool: int | None = None) -> list[Kept]:  # fmt: skip
    chains = entry.chains(recipe)
    check_layout(chains, layout)
    parsed = None if budget is None else Budget.parse(budget)
    return list(decide(entry.bank, chains, Demand(budget=parsed, layout=layout, pool=pool)))


def count(kept: list[Kept], stream: str | None = None) -> int:
    return sum(len(k.tokens) for k in kept if stream in (None, k.stream))


def check(entry: Entry, kept: list[Kept]) -> None:
    """What every decision owes, whatever the rule."""
    rows, cols = entry.grid
    for part in kept:
        tokens = part.tokens
        assert float(tokens.mass.double().sum()) <= part.source * (1 + 1e-5)
        assert tokens.data.isfinite().all()
        assert (tokens.at.diff() >= 0).all()
        assert len(part.priority) == len(tokens)
        if not len(tokens):
            continue
        assert float(part.priority.min()) > 0
        assert float(part.priority.max()) < 1
        t, y, x = tokens.cell.T
        if part.stream == "audio":
            limits = (entry.bank.meta["cells"], 1, 1)
            assert torch.allclose(tokens.at, t.double() / 25)
        else:
            limits = (entry.bank.num_frames, rows, cols)
            assert tokens.at.tolist() == entry.bank.frames()["pts"][t.numpy()].tolist()
        for axis, limit in zip((t, y, x), limits, strict=True):
            assert int(axis.min()) >= 0
            assert int(axis.max()) < limit
        places = torch.stack([t, y, x], 1)
        assert len(torch.unique(places, dim=0)) == len(tokens)


def due(entry: Entry, recipe: str, budget: str) -> int:
    """Tokens that a recipe which removes nothing must give."""
    video, audio = entry.candidates(recipe)
    parsed = Budget.parse(budget)
    amount, total = int(parsed.amount), video + audio
    if parsed.form == "split":
        return min(parsed.video or 0, video) + min(parsed.audio or 0, audio)
    if parsed.form == "total":
        return min(amount, total)
    if parsed.form == "percent":
        return max(1, int(parsed.amount * total / 100))
    if parsed.form == "per_second":
        meta = entry.bank.meta
        end = Fraction(str(max(meta["video_end"], meta["audio_end"])))
        return min(max(1, int(parsed.amount * end)), total)
    frames, (rows, cols) = entry.bank.num_frames, entry.grid
    return min(amount * frames, frames * min(amount, rows * cols) + audio)


budgets = st.one_of(
    st.integers(1, 400).map(str),
    st.sampled_from(["1", "2047", "100000"]),
    st.integers(1, 1000).map(lambda n: f"{n / 10}%"),
    st.integers(1, 300).map(lambda n: f"{n / 10}/s"),
    st.integers(1, 12).map(lambda n: f"{n}/frame"),
    st.tuples(st.integers(0, 200), st.integers(1, 200)).map("video={0[0]},audio={0[1]}".format),
)


def fits(entry: Entry, recipe: str, budget: str) -> bool:
    """The media has what recipe and form speak of."""
    chains = entry.chains(recipe)
    return bool(chains) and ("/frame" not in budget or "video" in chains)


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_chain_meets_any_budget_exactly(entries: Entries, data: st.DataObject) -> None:
    video = data.draw(st.sampled_from([*VIDEO, None]), "video")
    audio = data.draw(st.sampled_from(AUDIO if video is None else (*AUDIO, None)), "audio")
    budget = data.draw(budgets, "budget")
    entry = entries[data.draw(st.sampled_from(SMALL), "media")]
    recipe = line(video, audio)
    if not fits(entry, recipe, budget):
        return
    kept = run(entry, recipe, budget, pool=data.draw(st.sampled_from([None, 1, 50]), "pool"))
    assert count(kept) == due(entry, recipe, budget)
    check(entry, kept)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_chain_stays_within_whole_shapes(entries: Entries, data: st.DataObject) -> None:
    recipe = line(data.draw(st.sampled_from(VIDEO), "video"), data.draw(st.sampled_from(AUDIO)))
    layout = data.draw(st.sampled_from([name for name in LAYOUTS if name != "ragged"]), "layout")
    budget = data.draw(st.integers(1, 400).map(str), "budget")
    entry = entries[data.draw(st.sampled_from(SMALL), "media")]
    try:
        check_layout(entry.chains(recipe), layout)
    except RecipeError:
        return
    kept = run(entry, recipe, budget, layout)
    assert 1 <= count(kept) <= int(budget)
    check(entry, kept)
    for part in kept:
        if part.stream == "video" and len(part.tokens):
            _, counts = torch.unique(part.tokens.cell[:, 0], return_counts=True)
            assert len(torch.unique(counts)) == 1


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_chains_that_remove_stay_within_the_budget(entries: Entries, data: st.DataObject) -> None:
    video = data.draw(st.sampled_from(REMOVING_VIDEO), "video")
    audio = data.draw(st.sampled_from(REMOVING_AUDIO), "audio")
    budget = data.draw(budgets, "budget")
    entry = entries[data.draw(st.sampled_from(SMALL), "media")]
    if not fits(entry, line(video, audio), budget):
        return
    kept = run(entry, line(video, audio), budget)
    assert count(kept) <= due(entry, line(video, audio), budget)
    check(entry, kept)
    check(entry, run(entry, line(video, audio), None))
    # What the removing steps leave is there to be chosen from, and nothing else.
    left = run(entry, line(" | ".join(video.split(" | ")[:3]), REMOVING_AUDIO[0]), None)
    if budget.isdigit():
        assert count(kept) == min(int(budget), count(left))


def test_threshold_removes_exactly_the_repeats(entries: Entries) -> None:
    """Without a budget the rule alone says how many: the novel cells of the scorer."""
    entry = entries["screen.mp4"]
    (scored,) = run(entry, "fps | pixels | temporal-drop", "100000")
    (kept,) = run(entry, "fps | pixels | temporal-drop:threshold=1.0", None)
    novel = scored.tokens.take(scored.tokens.score >= 1)
    assert torch.equal(kept.tokens.cell, novel.cell)
    assert float(kept.tokens.mass.double().sum()) == kept.source


def test_drop_of_the_gate_removes_silence_for_good(entries: Entries) -> None:
    entry = entries["lecture.mp4"]
    kept = run(entry, "audio: mel | silence-gate:drop=true", "100000")
    assert 0 < count(kept) < entry.candidates("audio: mel")[1]
    everything = run(entry, "audio: mel | silence-gate", "100000")
    assert count(everything) == entry.candidates("audio: mel")[1]


@pytest.mark.parametrize("recipe", ["fps | pixels | top-k", "audio: mel | top-k"])
def test_top_k_without_a_score_is_a_named_error(entries: Entries, recipe: str) -> None:
    with pytest.raises(RecipeError, match="score"):
        run(entries["short.mp4"], recipe, "20")


@pytest.mark.parametrize("budget", ["3", "16", "17", "40", "95"])
def test_grid_of_a_frame_rule_is_one_shape_for_all_frames(entries: Entries, budget: str) -> None:
    (kept,) = run(entries["video_only.mp4"], "fps | pixels | grid-pool", budget, "grid")
    times, counts = torch.unique(kept.tokens.cell[:, 0], return_counts=True)
    assert len(torch.unique(counts)) == 1
    assert len(times) == min(24, int(budget))
    assert len(kept.tokens) <= int(budget)


def test_layout_that_a_recipe_cannot_give_is_named(entries: Entries) -> None:
    with pytest.raises(RecipeError, match="frames") as caught:
        run(entries["short.mp4"], "fps | pixels | dpc-knn", "100", "frames")
    assert caught.value.code == "recipe.layout"
