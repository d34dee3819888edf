"""What a run says beside its counts: what was normalised, left out, or cannot be carried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokpipe.assemble import notes_of
from tokpipe.budget import THIN_AUDIO
from tokpipe.cache.bank import Bank
from tokpipe.decide import each_picture
from tokpipe.job import Job
from tokpipe.late_bank import kept_context
from tokpipe.spec import MediaInfo

Note = tuple[str, str]


def remarks(
    info: MediaInfo, bank: Bank, job: Job, tokens: Mapping[str, int],
    speech: list[list[float]], pooled: list[tuple[int, int]], late: Mapping[str, Any],
) -> list[Note]:  # fmt: skip
    """Notes ``(code, text)`` on one finished input.

    Args:
        tokens: Kept, by stream.
        speech: Audible stretches [start, stop] in seconds.
        pooled: Candidates a pool held and all, a pair for each window where they differ.
        late: Features of the towers, by stream.
    """
    notes = [*notes_of(info, bank), *_thin(bank, job, tokens, speech, late), *_unused(info, job)]
    if pooled:
        seen, source = (sum(counts) for counts in zip(*pooled, strict=True))
        text = f"the recipe decides on all video tokens at once: {seen} of {source} fit"
        notes.append(("pool", f"{text}; raise --pool to let it see more"))
    return [*notes, *kept_context(late)]


def _unused(info: MediaInfo, job: Job) -> Iterator[Note]:
    """Streams, encoders and words that have no part in the result."""
    for name, stream in (("video", info.video), ("audio", info.audio)):
        made = job.chains.get(name)
        if stream is not None and made is None:
            yield f"{name}-left-out", f"the recipe has no chain for {name}"
        elif stream is None and made is not None and made.late is not None:
            text = f"the file has no {name}: the encoder `{made.late.encoder_name}` had no part"
            yield "encoder-unused", text
    video = job.chains.get("video")
    rules = [] if video is None or video.late is None else video.late.reducers
    if job.options.query is not None and not any("query" in rule.needs for rule in rules):
        text = "no rule of this recipe goes by the query"
        yield "query-unused", f"{text}; add one, such as -r cdpruner or -r 'text-score | top-k'"


def _thin(
    bank: Bank, job: Job, tokens: Mapping[str, int], speech: list[list[float]],
    late: Mapping[str, Any],
) -> Iterator[Note]:  # fmt: skip
    """What the budget cannot carry, of the streams that it was meant for."""
    grid, budget, share = bank.meta["grid"], job.budget, job.options.audio_share
    if bank.meta["steps"] and grid and not (budget and budget.refuses("video", share)):
        shape = (grid[0], grid[1])
        one, what = grid[0] * grid[1], "cells"
        if "video" in late:
            one, what = each_picture(late["video"].places, shape), "tokens"
        if tokens["video"] < one:
            text = f"{tokens['video']} video tokens are less than one frame of {one} {what}"
            yield "thin-video", text
    heard = sum(stop - start for start, stop in speech)
    if budget and budget.refuses("audio", share):
        return
    if heard and tokens["audio"] < THIN_AUDIO * heard:
        text = f"{tokens['audio']} audio tokens for {heard:.0f} s of sound"
        hint = "words would be lost; raise the budget or --audio-share"
        yield "thin-audio", f"{text}: {hint}"
