"""What compress tells people: three lines for one input, one line each for many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokpipe.spec import SERIOUS
from tokpipe_cli.console import Screen
from tokpipe_cli.words import clock, joined, plural, rate, size, stamp, took

#: Codes of notes that are said also without ``-v``.
_SAID = frozenset(("kept-context",))


def show_item(record: dict[str, Any], screen: Screen, *, alone: bool) -> None:
    """Lines of one finished or skipped input, its warnings after them."""
    if not screen.json and not screen.quiet:
        media, span = _from_cache(Path(record["output"]))
        if alone:
            _three_lines(record, screen, media, span)
        else:
            _one_line(record, screen, media)
    name = "" if alone else f"{Path(record['input']).name}: "
    for text in record["warnings"]:
        if text.partition(":")[0] in SERIOUS:
            screen.warn(name + text)
        elif text.partition(":")[0] in _SAID:
            screen.note(name + text)
        else:
            screen.detail(name + text)
    if record["unused"]:
        screen.note(name + _unused(record))
    _details(record, screen)


def show_total(
    counts: dict[str, int], tokens: int, written: int, seconds: float, screen: Screen
) -> None:
    """The last line of many inputs."""
    names = (
        ("done", "done"),
        ("warned", "done with warnings"),
        ("skipped", "skipped"),
        ("failed", "failed"),
    )
    said = ", ".join(f"{counts[key]} {text}" for key, text in names if counts[key])
    screen.say(
        f"{said}: {plural(tokens, 'token')}, {size(written)} in {took(seconds)}", style="bold"
    )


def _three_lines(record: dict[str, Any], screen: Screen, media: str, span: str) -> None:
    tokens, output = record["tokens"], record["output"]
    screen.say(joined([Path(record["input"]).name, media]))
    if record["status"] == "skipped":
        screen.say(
            f"skipped: made before from the same source, recipe and budget; {_parts(record, span)}"
        )
    else:
        counts = f"{record['candidates']:,} -> {plural(tokens['total'], 'token')}"
        screen.say(f"{counts} ({_parts(record, span)}) in {took(record['seconds']['total'])}")
    screen.say(joined([output, size(record["bytes"])]), style="bold")


def _one_line(record: dict[str, Any], screen: Screen, media: str) -> None:
    total = plural(record["tokens"]["total"], "token")
    if record["status"] == "skipped":
        middle = f"skipped, {total}"
    else:
        middle = f"{record['candidates']:,} -> {total} in {took(record['seconds']['total'])}"
    length = media.partition("  ")[0]
    name, output = Path(record["input"]).name, Path(record["output"])
    screen.say(joined([name, length, middle, f"{output}  {size(record['bytes'])}"]))


def _parts(record: dict[str, Any], span: str) -> str:
    tokens = record["tokens"]
    streams = ", ".join(f"{tokens[s]:,} {s}" for s in ("video", "audio", "text") if tokens.get(s))
    frames = record["frames"].get("kept", 0)
    shown = plural(frames, "frame") if frames else ""
    return "; ".join(part for part in (streams, shown, _towers(record), span) if part)


def _towers(record: dict[str, Any]) -> str:
    """``61 of 246 pictures encoded`` where a tower made the video tokens."""
    from tokpipe import registry

    used = record["encoder"].get("video", "")
    entry = registry.known(used)
    sampled = record["frames"].get("sampled", 0)
    if entry is None or not registry.lookup(entry).feature or not sampled:
        return ""
    return f"{record['frames'].get('encoded', 0):,} of {plural(sampled, 'picture')} encoded"


def _unused(record: dict[str, Any]) -> str:
    total, budget = record["tokens"]["total"], record["budget"]
    if total >= record["candidates"]:
        why = "the media offers no more"
        if record["frames"].get("sampled"):
            why = "what was sampled offers no more; --effort thorough or --fps samples more"
        return f"{record['unused']:,} of the budget of {budget} not used: {why}"
    why = "the recipe's own counts leave no more"
    if record["layout"] != "ragged":
        why = f"layout {record['layout']} takes whole shapes"
    return f"{record['unused']:,} of the budget of {budget} not used: {why}"


def _details(record: dict[str, Any], screen: Screen) -> None:
    if not screen.verbose:
        return
    stages = ", ".join(f"{k} {took(v)}" for k, v in record["seconds"].items() if v and k != "total")
    screen.detail(
        f"time: {stages or 'none'}; CPU {took(record['cpu_seconds'])}; "
        f"peak {record['peak_rss_mb']:.0f} MB"
    )
    if record["frames"]:
        screen.detail("frames: " + ", ".join(f"{v:,} {k}" for k, v in record["frames"].items()))
    reused = ", ".join(record["reused"])
    screen.detail(
        f"recipe {record['recipe']}, budget {record['budget'] or 'none'}"
        + (f"; from the bank: {reused}" if reused else "")
    )


def _from_cache(path: Path) -> tuple[str, str]:
    """Source (``2:02  1920x1080 30 fps h264 + aac``) and time span, as the cache has them."""
    from tokpipe.cache.reader import open_cache
    from tokpipe.errors import CacheError

    try:
        with open_cache(path) as cache:
            source = cache.info
            codecs = [stream["codec"] for stream in source["streams"]]
            picture = f"{source['width']}x{source['height']}" if "width" in source else ""
            form = joined([picture, rate(source.get("fps")), " + ".join(codecs)], " ")
            spans = [cache.column(f"{stream}.pts") for stream in cache.streams]
            first = min(float(s[:, 0].min()) for s in spans)
            last = max(float(s[:, 1].max()) for s in spans)
            return joined([clock(cache.duration), form]), f"{stamp(first)}-{stamp(last)}"
    except (CacheError, KeyError, ValueError):
        return "", ""
