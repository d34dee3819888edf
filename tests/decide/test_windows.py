"""Budgets that follow time are settled per minute and carry what is left; memory stays flat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from tokpipe.budget import Budget
from tokpipe.cache.bank import FRAME, Bank, BankWriter
from tokpipe.chain import Chain, build_chain
from tokpipe.compress._cell_distance import follow
from tokpipe.compress._picture_space import place_pictures
from tokpipe.decide import Demand, Kept, decide
from tokpipe.recipe import load_recipe


class Entry(Protocol):
    """A bank entry of small media; see conftest."""

    bank: Bank

    @property
    def grid(self) -> tuple[int, int]: ...
    def chains(self, recipe: str) -> dict[str, Chain]: ...
    def candidates(self, recipe: str) -> tuple[int, int]: ...


Entries = Mapping[str, Entry]

STARTS = (0, 60, 120, 180)


def run(entry: Entry, budget: str, recipe: str = "auto") -> list[Kept]:
    return list(decide(entry.bank, entry.chains(recipe), Demand(budget=Budget.parse(budget))))


def by_window(kept: list[Kept]) -> list[list[Kept]]:
    """Both streams of each window."""
    assert [k.stream for k in kept] == ["video", "audio"] * (len(kept) // 2)
    return [kept[i : i + 2] for i in range(0, len(kept), 2)]


@pytest.mark.parametrize("rate", ["1/s", "7.3/s", "20/s"])
def test_per_second_is_settled_per_minute(entries: Entries, rate: str) -> None:
    entry = entries["long.mp4"]
    windows = by_window(run(entry, rate))
    assert len(windows) == 4
    spent = 0
    for start, parts in zip(STARTS, windows, strict=True):
        stop = min(start + 60, 200)
        for part in parts:
            if len(part.tokens):
                assert float(part.tokens.at.min()) >= start
                assert float(part.tokens.at.max()) < stop
        spent += sum(len(p.tokens) for p in parts)
        assert spent == int(Fraction(rate[:-2]) * stop)


def test_percent_is_settled_per_minute_and_carries_the_rest(entries: Entries) -> None:
    entry = entries["long.mp4"]
    windows = by_window(run(entry, "1.7%"))
    seen = spent = 0
    for parts in windows:
        seen += sum(p.source for p in parts)
        spent += sum(len(p.tokens) for p in parts)
        assert spent == int(Fraction("1.7") * seen / 100)
    assert seen == sum(entry.candidates("auto"))


def test_what_a_window_cannot_spend_is_carried_on(entries: Entries) -> None:
    """Sound ends early: what its minutes do not spend goes to those that can."""
    entry = entries["long.mp4"]
    rows, cols = entry.grid
    rate = 2 * rows * cols + 40  # 120 s need every candidate there is
    windows = by_window(run(entry, f"{rate}/s"))
    counts = [sum(len(p.tokens) for p in parts) for parts in windows]
    assert sum(counts) == min(rate * 200, sum(entry.candidates("auto")))


def test_windows_share_no_state(entries: Entries) -> None:
    """A state does not reach over the border of a window: its spans begin inside."""
    for start, parts in zip(STARTS, by_window(run(entries["long.mp4"], "3/s")), strict=True):
        assert float(parts[0].tokens.pts[:, 0].min()) >= start
        assert float(parts[0].tokens.mass.double().sum()) <= parts[0].source


@pytest.fixture(scope="module")
def hours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Bank]]:
    """Entries of 1 and 4 hours of the same random hour, without pictures."""
    folder = tmp_path_factory.mktemp("hours")
    made = {}
    for length in (1, 4):
        steps, cells = 7200 * length, 90_000 * length
        with BankWriter(None, folder) as writer:
            draw = np.random.default_rng(0)
            hour = (draw.normal(0, 40, (7200, 4, 24)) + 1500).astype("<f2")
            hour[1::2] = hour[::2]  # every second frame repeats
            where = place_pictures(hour.reshape(7200, 2, 2, 24)).astype("<f2")
            sound = draw.uniform(-60, -20, (90_000, 4)).astype("<f4")
            last = None
            for _ in range(length):
                changes, last = follow(hour.astype(np.float32), last)
                writer.append("changes", changes)
                writer.append("descriptors", hour)
                writer.append("places", where)
                writer.append("mel_columns", sound)
                writer.append("mel", np.zeros((90_000, 320), "<f2"))
            frames = np.zeros(steps, dtype=FRAME)
            frames["pts"], frames["duration"] = np.arange(steps) / 2, 0.5
            writer.append("frames", frames)
            bank = writer.commit(
                {"grid": [2, 2, 0.0], "steps": steps, "cells": cells, "samples": cells * 640,
                 "columns": ["change", "near_db", "noise_db", "rms_db"], "maxima": [],
                 "decoded": steps, "damaged": 0, "video_end": steps / 2, "audio_end": steps / 2,
                 "notes": []}
            )  # fmt: skip
            made[length] = bank
    yield made
    for bank in made.values():
        bank.close()


@pytest.mark.parametrize("budget", ["4096", "2/s", "1%"])
def test_memory_of_a_decision_does_not_grow_with_the_media(
    hours: dict[int, Bank], budget: str
) -> None:
    recipe = load_recipe("auto")
    chains = {name: build_chain(name, steps) for name, steps in recipe.chains.items()}
    peaks = {}
    for length, bank in hours.items():
        before = _high_water(reset=True)
        total = 0
        for part in decide(bank, chains, Demand(budget=Budget.parse(budget))):
            total += len(part.tokens)
        peaks[length] = _high_water() - before
        assert total > 1000
    assert peaks[4] <= 1.25 * peaks[1] + 16 * 2**20, peaks


def _high_water(*, reset: bool = False) -> int:
    """Peak resident bytes since the last reset, by the kernel; numpy and torch both count."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not status.exists() or not clear.exists():
        pytest.skip("needs Linux's /proc")
    if reset:
        try:
            clear.write_text("5")
        except OSError:
            pytest.skip("the kernel does not let us reset the peak")
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
