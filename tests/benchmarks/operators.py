"""Time every operator against the similarity product its problem needs anyway.

    python tests/benchmarks/operators.py [NAME ...] [--repeat N] [--device cuda] [--json FILE]

Two problems, float32, one CPU thread: pictures (32 frames x 729 tokens x 1152), each frame by
itself, where 1.00 is normalising and multiplying every frame with itself; and video (128 frames x
196 x 1152), where 1.00 is the 127 products of consecutive normalised frames. The unit is measured
beside each operator, and the figures recorded for the authors' code (golden references, same
problems and units) are printed beside ours. Sound operators take 6000 tokens x 1152 against the
product of their neighbours' blocks of 196. The bank of hermes-eco goes from 64 to 16 frames of 49
tokens, as where its figure was recorded; chat-univi's figure is its first level, frame by frame.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tokpipe import registry
from tokpipe.card import card
from tokpipe.compress._fit import expanded
from tokpipe.recipe import build, load_recipe
from tokpipe.spec import StepSpec
from tokpipe.tensors import Query, TokenBatch
from tokpipe.testing.golden import frame_tokens

#: Ratio recorded for the released code, the problem, and parameters of the recorded run.
RECORDED: dict[str, tuple[float, str, dict[str, Any]]] = {
    "tome": (0.65, "image", {"r": 364}),
    "tosa": (0.9, "image", {"r": 364}),
    "dymu": (0.4, "image", {}),
    "fastervlm": (0.0, "image", {}),
    "hired": (0.0, "image", {}),
    "dart": (0.5, "image", {}),
    "trim": (1.1, "image", {}),
    "cdpruner": (1.6, "image", {}),
    "divprune": (1.9, "image", {}),
    "visionzip": (2.0, "image", {}),
    "folder": (1.6, "image", {"r": 547}),
    "pact-dbdpc": (1.9, "image", {}),
    "dpc-knn": (2.0, "image", {}),
    "gprune": (3.0, "image", {}),
    "mustdrop": (2.5, "image", {}),
    "prumerge": (7.2, "image", {}),
    "vispruner": (8.2, "image", {}),
    "vscan": (48.0, "image", {}),
    "pool-2d": (0.34, "image", {}),
    "fourier": (2.2, "image", {}),
    "bilinear": (0.04, "video", {}),
    "dtd-feature": (0.15, "video", {}),
    "longvu-stc": (0.25, "video", {}),
    "dycoke": (0.39, "video", {}),
    "longvu-frames": (0.47, "video", {}),
    "pllava": (1.05, "video", {}),
    "holitom": (1.18, "video", {}),
    "hermes-eco": (1.68, "shrunk", {}),
    "videochat-flash": (1.83, "video", {}),
    "stc-pruner": (1.90, "video", {}),
    "aim": (2.17, "video", {}),
    "framefusion": (2.36, "video", {}),
    "prunevid": (2.68, "video", {}),
    "vidcom2": (2.72, "video", {}),
    "sttm": (3.13, "video", {}),
    "streamingtom": (3.31, "video", {}),
    "chat-univi": (3.21, "video", {"levels": (64,), "scope": "frame"}),
    "scissor": (5.6, "video", {}),
    "moviechat": (5.9, "video", {}),
    "fastvid": (9.1, "video", {}),
}
#: Recorded at a quarter of the tokens; the other recorded ones at their own ratio.
_QUARTER = frozenset(
    ("fastervlm", "hired", "dart", "cdpruner", "divprune", "visionzip", "dpc-knn", "gprune",
     "prumerge", "vispruner", "vscan")
)  # fmt: skip
#: Frames and tokens a frame of each problem; "shrunk" is timed in units of "video".
_SIZES = {"image": (32, 729), "video": (128, 196), "shrunk": (64, 49), "audio": (6000, 1)}
_WIDTHS = {"attention": (16,), "keys": (64,), "queries": (64,), "frame_embedding": (1152,),
           "text_space": (768,), "spatial": (1152,), "patch_pixels": (147,)}  # fmt: skip


def scenes(frames: int, size: int, width: int) -> Tensor:
    """Features [T, C, D]: scenes with cuts, regions that share a prototype, drift and noise."""
    draw = torch.Generator().manual_seed(0)
    length = max(1, frames // 5)
    regions = torch.randn(-(-frames // length), 9, width, generator=draw)
    place = torch.arange(size) * 9 // size
    out = torch.stack([regions[t // length][place] for t in range(frames)])
    out = out + 0.3 * torch.randn(1, size, width, generator=draw)
    return out + 0.1 * torch.randn(frames, size, width, generator=draw)


def problem(kind: str, needs: tuple[str, ...], device: str) -> TokenBatch:
    """Tokens of a problem with the columns an operator needs."""
    frames, size = _SIZES[kind]
    draw = torch.Generator().manual_seed(1)
    tokens = frame_tokens(scenes(frames, size, 1152), modality=int(kind == "audio"))
    columns = {}
    for need in needs:
        if need == "frame_embedding":
            columns[need] = scenes(frames, 1, 1152)[:, 0].repeat_interleave(size, 0)
        elif need == "attention_rows":
            columns[need] = torch.rand(len(tokens), 2, size, generator=draw)
        elif need not in ("query", "features", "joint", "score"):
            columns[need] = torch.rand(len(tokens), *_WIDTHS.get(need, ()), generator=draw)
    score = torch.rand(len(tokens), generator=draw)
    return tokens.with_extras(None, **columns).with_columns(score=score).to(device)


def unit(kind: str, tokens: TokenBatch) -> Callable[[], object]:
    """What 1.00 is."""
    size = 729 if kind == "image" else 196
    if kind == "shrunk":
        tokens = problem("video", (), str(tokens.data.device))
    rows = len(tokens) // size * size
    cube = tokens.data[:rows].reshape(-1, size, tokens.data.shape[1])
    unit_rows = torch.nn.functional.normalize(cube, dim=2)
    if kind == "image":
        return lambda: [(n := torch.nn.functional.normalize(x, dim=1)) @ n.T for x in cube]
    return lambda: [a @ b.T for a, b in pairwise(unit_rows)]


def seconds(work: Callable[[], object], repeat: int, device: str) -> float:
    """Shortest of some runs after one to warm up."""
    best = float("inf")
    for i in range(repeat + 1):
        began = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        if i:
            best = min(best, time.perf_counter() - began)
    return best


def measure(name: str, repeat: int, device: str) -> dict[str, Any] | None:
    """Ratios of one operator or preset, None for what is no reducer here."""
    facts = card(name)
    recorded, kind, params = RECORDED.get(name, (None, "", {}))
    if facts.kind == "preset":
        chain = load_recipe(name).chains[facts.modalities[0]]
        kinds = ("reducer", "projector")
        made = [build(s) for s in chain if registry.lookup(s.use).kind in kinds]
    else:
        made = [build(StepSpec(use=name, params=params))]
    if not all(hasattr(r, "decide") for r in made) or {"pixels", "rms_db"} & set(facts.needs):
        return None
    scope = made[0].scope
    kind = kind or ("audio" if facts.modalities == ("audio",) else "")
    kind = kind or ("image" if scope == "frame" else "video")
    needs = tuple(dict.fromkeys(n for r in made for n in r.needs))
    tokens = problem(kind, needs, device)
    space = "text_space" if "text_space" in needs else "data"
    pooled = torch.randn(1, 768 if space == "text_space" else 1152, device=device)
    query = Query(text="", pooled=pooled, tokens=pooled, space=space)
    own = name in RECORDED and name not in _QUARTER
    budget = None if own and kind != "shrunk" else len(tokens) // 4

    def decide() -> Any:
        rows, last = tokens, None
        for reducer in made:
            last = reducer.decide(rows, budget, query)
            rows = rows if reducer is made[-1] else rows.reduce(last)
        return rows, last

    rows, decision = decide()
    base = unit(kind, tokens)
    figures = {"unit": 1e9, "decide": 1e9, "apply": 1e9}
    for _ in range(repeat):
        # Side by side, so that a slow moment of the machine meets both.
        figures["unit"] = min(figures["unit"], seconds(base, 1, device))
        figures["decide"] = min(figures["decide"], seconds(decide, 1, device))
        apply = seconds(lambda: rows.reduce(decision), 1, device)
        figures["apply"] = min(figures["apply"], apply)
    total = (figures["decide"] + figures["apply"]) / figures["unit"]
    return {
        "name": name, "problem": kind, "tokens": len(tokens), "kept": len(expanded(decision)),
        "unit_ms": round(1000 * figures["unit"], 1),
        "decide": round(figures["decide"] / figures["unit"], 3),
        "apply": round(figures["apply"] / figures["unit"], 3),
        "ratio": round(total, 3), "recorded": recorded,
    }  # fmt: skip


def verdict(found: dict[str, Any]) -> str:
    """Whether a ratio is within what is asked beside the recorded one."""
    recorded = found["recorded"]
    if recorded is None:
        return ""
    if found["ratio"] <= 0.5 * recorded:
        return "half or less"
    limit = 1.2 * recorded if recorded >= 0.5 else recorded + 0.10
    return "within" if found["ratio"] <= limit else "OVER"


def main() -> None:
    """Print one line per operator."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    head = f"{'operator':22}{'problem':>8}{'kept':>7}{'unit ms':>9}{'decide':>8}{'apply':>7}"
    print(f"{head}{'ratio':>8}{'recorded':>10}")
    for name in options.names or registry.entries():
        found = measure(registry.lookup(name).name, options.repeat, options.device) \
            if card(name).where else None  # fmt: skip
        if found is None:
            continue
        results.append(found)
        shown = "" if found["recorded"] is None else f"{found['recorded']:.2f}"
        print(
            f"{found['name']:22}{found['problem']:>8}{found['kept']:>7}{found['unit_ms']:>9.0f}"
            f"{found['decide']:>8.2f}{found['apply']:>7.2f}{found['ratio']:>8.2f}{shown:>10}"
            f"  {verdict(found)}",
            flush=True,
        )
    if options.json:
        conditions = {"torch": torch.__version__, "device": options.device, "threads": 1}
        with open(options.json, "w", encoding="utf-8") as out:  # noqa: PTH123
            json.dump({"conditions": conditions, "results": results}, out, indent=1)


if __name__ == "__main__":
    main()
