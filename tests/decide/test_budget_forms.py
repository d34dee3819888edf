"""The budget is a contract: every form, every layout, on every kind of media."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import pytest
import torch

from tokpipe.budget import Budget, Supply
from tokpipe.cache.bank import Bank
from tokpipe.chain import Chain
from tokpipe.decide import AudioSide, Demand, Kept, decide
from tokpipe.decide._feed import CellFeed
from tokpipe.decide._video import VideoSide
from tokpipe.errors import BudgetError
from tokpipe.spec import KIND_POOLED, Layout


class Entry(Protocol):
    """A bank entry of small media; see conftest."""

    bank: Bank

    @property
    def grid(self) -> tuple[int, int]: ...
    def chains(self, recipe: str) -> dict[str, Chain]: ...
    def candidates(self, recipe: str) -> tuple[int, int]: ...


Entries = Mapping[str, Entry]

FILES = (
    "lecture.mp4", "action.mp4", "screen.mp4", "late_audio.mp4", "long.mp4", "short.mp4",
    "video_only.mp4", "silent_track.mp4", "black.mp4", "one_frame.mp4", "audio_only.mp4",
    "animation.gif",
)  # fmt: skip
TOTALS = (1, 7, 64, 150, 2048, 100_000)
#: The two minutes of the lecture cost most; they stand where its length matters.
SHORT = FILES[1:]


def run(entry: Entry, budget: str | int | None, layout: Layout = "ragged", recipe: str = "auto",
        **options: Any) -> list[Kept]:  # fmt: skip
    demand = Demand(
        budget=None if budget is None else Budget.parse(budget), layout=layout, **options
    )
    return list(decide(entry.bank, entry.chains(recipe), demand))


def count(kept: Sequence[Kept], stream: str | None = None) -> int:
    return sum(len(k.tokens) for k in kept if stream in (None, k.stream))


def check_rows(entry: Entry, kept: Sequence[Kept]) -> None:
    """Every row is a real cell, no cell is there twice, no mass is made up."""
    rows, cols = entry.grid
    pts = entry.bank.frames()["pts"]
    for part in kept:
        tokens, n = part.tokens, len(part.tokens)
        assert float(tokens.mass.double().sum()) <= part.source * (1 + 1e-6)
        assert len(part.priority) == n
        if not n:
            continue
        assert (tokens.pts[:, 0] <= tokens.at).all()
        assert (tokens.at <= tokens.pts[:, 1]).all()
        assert (tokens.at.diff() >= 0).all()
        assert float(tokens.mass.min()) > 0
        t, y, x = tokens.cell.T.long()
        place = t if part.stream == "audio" else (t * rows + y) * cols + x
        assert len(torch.unique(place)) == n
        if part.stream == "audio":
            assert torch.allclose(tokens.at, t.double() / 25)
            assert int(t.max()) < entry.bank.meta["cells"]
            source = entry.bank.rows("mel", 0, entry.bank.meta["cells"], np.dtype("<f2"), 320)
        else:
            assert tokens.at.tolist() == pts[t.numpy()].tolist()
            total = entry.bank.num_frames * rows * cols
            source = entry.bank.rows("descriptors", 0, total, np.dtype("<f2"), 24)
        own = (tokens.kind == 0).numpy()
        np.testing.assert_array_equal(tokens.data.numpy()[own], source[place.numpy()[own]])


@pytest.mark.parametrize("budget", TOTALS)
@pytest.mark.parametrize("name", FILES)
def test_total_is_exact(entries: Entries, name: str, budget: int) -> None:
    entry = entries[name]
    kept = run(entry, budget)
    assert count(kept) == min(budget, sum(entry.candidates("auto")))
    check_rows(entry, kept)


@pytest.mark.parametrize("layout", ["frames", "grid"])
@pytest.mark.parametrize("budget", TOTALS)
@pytest.mark.parametrize("name", SHORT)
def test_whole_shapes_stay_within_the_total(
    entries: Entries, name: str, budget: int, layout: Layout
) -> None:
    entry = entries[name]
    kept = run(entry, budget, layout)
    assert count(kept) <= budget
    assert count(kept) >= 1
    _, sound = entry.candidates("auto")
    if sound > count(kept, "audio"):
        assert count(kept) == budget, "sound takes what whole shapes leave over"
    check_rows(entry, kept)
    for part in kept:
        if part.stream == "video":
            check_shape(entry, part, layout)


def check_shape(entry: Entry, part: Kept, layout: Layout) -> None:
    """Every kept picture has the same a x b rows; ``frames`` are whole unless there is only one."""
    rows, cols = entry.grid
    tokens = part.tokens
    if not len(tokens):
        return
    times = torch.unique(tokens.cell[:, 0])
    per = len(tokens) // len(times)
    assert per * len(times) == len(tokens)
    high = len(torch.unique(tokens.cell[tokens.cell[:, 0] == times[0], 1]))
    wide = per // high
    assert high * wide == per
    for t in times:
        mine = tokens.take(tokens.cell[:, 0] == t)
        assert len(mine) == per
        assert len(torch.unique(mine.cell[:, 1])) == high
        assert len(torch.unique(mine.cell[:, 2])) == wide
        area = (mine.extent[:, 1] * mine.extent[:, 2])[mine.kind == KIND_POOLED].sum()
        assert per == rows * cols or int(area) == rows * cols
    if layout == "frames" and len(times) > 1:
        assert per == rows * cols


@pytest.mark.parametrize("name", SHORT)
def test_percent_is_the_floor_and_at_least_one(entries: Entries, name: str) -> None:
    entry = entries[name]
    total = sum(entry.candidates("auto"))
    for percent in ("10%", "0.001%", "33.3%", "100%"):
        due = max(1, int(Fraction(percent[:-1]) * total / 100))
        kept = run(entry, percent)
        assert count(kept) == due, percent
        check_rows(entry, kept)


@pytest.mark.parametrize("name", SHORT)
def test_per_second_follows_the_duration(entries: Entries, name: str) -> None:
    entry = entries[name]
    meta = entry.bank.meta
    end = Fraction(str(max(meta["video_end"], meta["audio_end"])))
    kept = run(entry, "5/s")
    assert count(kept) == min(max(1, int(5 * end)), sum(entry.candidates("auto")))
    check_rows(entry, kept)


@pytest.mark.parametrize("each", [1, 8, 1000])
@pytest.mark.parametrize("name", [n for n in SHORT if n != "audio_only.mp4"])
def test_per_frame_bounds_every_frame(entries: Entries, name: str, each: int) -> None:
    entry = entries[name]
    rows, cols = entry.grid
    _, sound = entry.candidates("auto")
    frames = entry.bank.num_frames
    kept = run(entry, f"{each}/frame")
    for part in kept:
        if part.stream == "video":
            _, counts = torch.unique(part.tokens.cell[:, 0], return_counts=True)
            assert int(counts.max()) <= each
    assert count(kept) == min(each * frames, frames * min(each, rows * cols) + sound)
    check_rows(entry, kept)


def test_per_frame_needs_frames(entries: Entries) -> None:
    with pytest.raises(BudgetError, match="video"):
        run(entries["audio_only.mp4"], "8/frame")


@pytest.mark.parametrize("name", SHORT)
def test_split_caps_never_move(entries: Entries, name: str) -> None:
    entry = entries[name]
    video, audio = entry.candidates("auto")
    for v, a in ((100, 28), (1_000_000, 5), (0, 9), (6, 0)):
        kept = run(entry, f"video={v},audio={a}")
        assert count(kept, "video") == min(v, video)
        assert count(kept, "audio") == min(a, audio)
        check_rows(entry, kept)


@pytest.mark.parametrize("layout", ["ragged", "frames", "grid"])
@pytest.mark.parametrize("budget", [1, 7, 64, 500, 10**6])
@pytest.mark.parametrize("name", SHORT)
def test_scores_of_the_bank_give_the_rows_of_the_stream(
    entries: Entries, name: str, budget: int, layout: Layout
) -> None:
    entry = entries[name]
    if "video" not in (chains := entry.chains("auto")) or not entry.bank.num_frames:
        return
    made = []
    for known in (True, False):
        feed = CellFeed(entry.bank)
        assert feed.known
        feed.__dict__["known"] = known
        side = VideoSide(feed, chains["video"], limit=budget, pool=None, device="cpu", fine=True)
        side.window(0.0, None)
        side.settle(min(budget, side.supply.total), layout, None)
        made.append((side.supply, *side.rows()))
    (supply, rows, order), (supply2, rows2, order2) = made
    assert supply == supply2 and torch.equal(order, order2)
    for column in ("data", "at", "pts", "frame", "cell", "mass", "kind", "score"):
        assert torch.equal(getattr(rows, column), getattr(rows2, column)), column


def supplies(entry: Entry) -> tuple[Supply, Supply]:
    chains = entry.chains("auto")
    video, audio = Supply(), Supply()
    if "video" in chains:
        feed = CellFeed(entry.bank)
        side = VideoSide(feed, chains["video"], limit=10**6, pool=None, device="cpu")
        side.window(0.0, None)
        video = side.supply
    if "audio" in chains:
        sound = AudioSide(entry.bank, chains["audio"], budgeted=True, device="cpu")
        sound.window(0.0, None)
        audio = sound.supply
    return video, audio


def filled(total: int, video: Supply, audio: Supply, share: Fraction) -> tuple[int, int]:
    """The filling order of the design, token by token."""
    first = max(int(total * share + Fraction(1, 2)), 1 if total >= 8 else 0)
    if not audio.novel:
        first = 0
    a = min(first, audio.novel) if video.total else 0
    v = min(total - first, video.novel) if audio.total else 0
    pools = [
        ("video", video.novel - v), ("audio", audio.novel - a),
        ("audio", audio.total - audio.novel), ("video", video.total - video.novel),
    ]  # fmt: skip
    for stream, left in pools:
        for _ in range(left):
            if v + a < total:
                v, a = v + (stream == "video"), a + (stream == "audio")
    return v, a


@pytest.mark.parametrize("budget", [1, 7, 8, 64, 2048])
@pytest.mark.parametrize("name", SHORT)
def test_filling_order_is_that_of_the_design(entries: Entries, name: str, budget: int) -> None:
    entry = entries[name]
    kept = run(entry, budget)
    found = count(kept, "video"), count(kept, "audio")
    assert found == filled(budget, *supplies(entry), Fraction(1, 4))


def test_audio_share_moves_the_split(entries: Entries) -> None:
    entry = entries["lecture.mp4"]
    shares = [count(run(entry, 1000, share=Fraction(s, 4)), "audio") for s in range(5)]
    assert shares[1:] == [250, 500, 750, 1000]
    assert shares[0] == 0


def test_silent_track_gets_nothing_while_the_picture_changes(entries: Entries) -> None:
    entry = entries["silent_track.mp4"]
    video, audio = supplies(entry)
    assert audio.novel == 0
    assert audio.total == 200
    assert count(run(entry, min(60, video.novel)), "audio") == 0


def test_everything_kept_drops_nothing(entries: Entries) -> None:
    for entry in (entries["short.mp4"], entries["action.mp4"]):
        for part in run(entry, 100_000):
            assert float(part.tokens.mass.double().sum()) == part.source == len(part.tokens)
            if part.stream == "video":
                assert float(part.tokens.pts.max()) == entry.bank.meta["video_end"]
                times = torch.unique(part.tokens.at)
                assert torch.unique(part.tokens.pts[:, 1])[:-1].tolist() == times[1:].tolist()


def test_all_novel_cells_stand_for_the_whole_video(entries: Entries) -> None:
    """Repeats are represented, not lost, once every novel cell has a token."""
    entry = entries["screen.mp4"]
    video, _ = supplies(entry)
    assert 0 < video.novel < video.total
    (part,) = run(entry, video.novel)
    assert float(part.tokens.mass.double().sum()) == video.total
    assert float((part.tokens.score < 1).sum()) == 0
    (less,) = run(entry, video.novel - 1)
    assert float(less.tokens.mass.double().sum()) < video.total


def test_redundant_cells_come_by_descending_change(entries: Entries) -> None:
    entry = entries["screen.mp4"]
    video, _ = supplies(entry)
    everything = run(entry, video.total)[0].tokens.score
    (part,) = run(entry, video.novel + 50)
    expected = everything.sort(descending=True).values[: video.novel + 50]
    assert torch.equal(part.tokens.score.sort(descending=True).values, expected)


def test_decision_repeats_bit_for_bit(entries: Entries) -> None:
    for name in ("lecture.mp4", "long.mp4"):
        for one, two in zip(run(entries[name], 500), run(entries[name], 500), strict=True):
            assert torch.equal(one.tokens.data, two.tokens.data)
            assert torch.equal(one.tokens.cell, two.tokens.cell)
            assert torch.equal(one.priority, two.priority)
