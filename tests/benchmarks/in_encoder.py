"""Time a ViT with and without a rule inside its blocks.

    python tests/benchmarks/in_encoder.py [--model NAME] [--batch N] [--r N ...] [--device cuda]
                                          [--dtype bfloat16] [--repeat N] [--json FILE]

Random weights, one CPU thread, the whole tower from prepared pictures to its final norm. Each rule
runs side by side with the plain tower, so that a slow moment of the machine meets both; figures
are pictures per second of the fastest run. ``share`` is the part of the merged time that the rule
itself takes (deciding and applying), from one profiled run on the CPU.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor

from tokpipe.encode._merging.in_encoder import InEncoder, schedule
from tokpipe.encode._merging.towers import timm_parts
from tokpipe.recipe import build
from tokpipe.spec import StepSpec


def rules(counts: list[int], blocks: int) -> dict[str, InEncoder]:
    """ToMe at several rates, constant and falling; DyMU near the same count."""
    tome = build(StepSpec(use="tome", params={"class_token": True}))
    out = {}
    for r in counts:
        out[f"tome r={r}"] = InEncoder(tome, amounts=schedule(blocks, r))
        out[f"tome r={r} falling"] = InEncoder(tome, amounts=schedule(blocks, (r, -1)))
    dymu = build(StepSpec(use="dymu", params={"class_token": True, "r": counts[-1]}))
    out[f"dymu r={counts[-1]}"] = InEncoder(dymu)
    return out


def seconds(work: Callable[[], object], device: str) -> float:
    """One run; on the CPU only what this process took of it."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began


def share_of_rule(work: Callable[[], object]) -> float:
    """Part of the time spent in the rule and in applying its map."""
    with cProfile.Profile() as profile:
        work()
    found = pstats.Stats(profile)
    named = {place[2]: row[3] for place, row in found.stats.items()}  # type: ignore[attr-defined]
    return float(named.get("_merge", 0.0) / named["merge"])


def measure(
    rule: InEncoder, model: Any, given: Tensor, repeat: int, device: str
) -> dict[str, float | int]:
    """Pictures per second plain and with a rule inside."""
    parts = timm_parts(model)
    best = {"plain": float("inf"), "merged": float("inf")}
    runs = {"plain": lambda: model.forward_features(given),
            "merged": lambda: parts.merge(rule, given)}  # fmt: skip
    for i in range(repeat + 1):
        for name, work in runs.items():
            took = seconds(work, device)
            best[name] = min(best[name], took) if i else best[name]
    made = parts.merge(rule, given)
    return {
        "plain": round(len(given) / best["plain"], 3),
        "merged": round(len(given) / best["merged"], 3),
        "ratio": round(best["plain"] / best["merged"], 3),
        "tokens": sum(made.counts) // len(given),
        "share": round(share_of_rule(runs["merged"]), 3),
    }


def main() -> None:
    """Print one line per rule."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--r", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    model: Any = timm.create_model(options.model, num_classes=0).eval()
    model = model.to(options.device, dtype)
    side = model.patch_embed.img_size
    given = torch.randn(options.batch, 3, *side, device=options.device, dtype=dtype)
    results = []
    print(f"{'rule':22}{'tokens':>8}{'plain/s':>10}{'merged/s':>10}{'ratio':>8}{'rule':>8}")
    with torch.inference_mode():
        for name, rule in rules(options.r, len(model.blocks)).items():
            found = measure(rule, model, given, options.repeat, options.device)
            results.append({"rule": name, **found})
            print(
                f"{name:22}{found['tokens']:>8}{found['plain']:>10.2f}{found['merged']:>10.2f}"
                f"{found['ratio']:>8.2f}{found['share']:>8.1%}",
                flush=True,
            )
    if options.json:
        conditions = {"torch": torch.__version__, "timm": timm.__version__, "threads": 1,
                      "model": options.model, "batch": options.batch, "device": options.device,
                      "dtype": options.dtype}  # fmt: skip
        with open(options.json, "w", encoding="utf-8") as out:  # noqa: PTH123
            json.dump({"conditions": conditions, "results": results}, out, indent=1)


if __name__ == "__main__":
    main()
