"""Golden cases of merging inside encoders: proportional attention, schedules of merges."""

from __future__ import annotations

import torch
from torch import nn

from tokpipe.encode._merging.blocks import attended, block_of
from tokpipe.encode._merging.in_encoder import schedule
from tokpipe.testing.golden import Case, assert_index, assert_values


class _Block(nn.Module):
    """A block of open_clip's form that is attention alone, with a case's weights."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        width = case("in_x").shape[2]
        self.attn = nn.MultiheadAttention(width, case.value("par_heads"), batch_first=True)
        self.attn.load_state_dict({
            "in_proj_weight": case("in_qkv_weight"), "in_proj_bias": case("in_qkv_bias"),
            "out_proj.weight": case("in_proj_weight"), "out_proj.bias": case("in_proj_bias"),
        })  # fmt: skip
        self.ln_1 = self.ls_1 = self.ln_2 = self.mlp = self.ls_2 = nn.Identity()


def prop_attention(case: Case) -> None:
    """Attention with and without the log of the sizes, and the keys that ToMe compares."""
    block, x = block_of(_Block(case).eval()), case("in_x")
    with torch.inference_mode():
        query, key, value = block.project(block.norm(x))
        plain = attended(query, key, value, block.scale)
        sized = attended(query, key, value, block.scale, case("in_size")[:, :, 0].log())
        assert_values(block.close(plain, x), case("out_y_plain"))
        assert_values(block.close(sized, x), case("out_y_prop"))
        assert_values(key.mean(2), case("out_key_mean"))


def parse_r(case: Case) -> None:
    """Rows of layers, r, inflection."""
    for (layers, r, inflection), stored in zip(
        case("par_args").tolist(), case("out_list"), strict=True
    ):
        # Inflections were written in decimals and stored in float32.
        made = schedule(int(layers), (r, round(inflection, 6)))
        assert_index(torch.tensor(made), stored[: int(layers)])
        assert bool((stored[int(layers) :] == -1).all())
        if inflection == 0 and r.is_integer():
            assert made == schedule(int(layers), int(r))


def fastast_schedule(case: Case) -> None:
    """Arrays named by r and whether it is constant or falls from 2 r to 0."""
    layers = case.value("layers")
    for name in case.arrays:
        head, _, kind = name.partition("_")
        if name != "layers":
            r = int(head.removeprefix("r"))
            slope = {"const": 0, "dec": -1, "inc": 1}[kind]
            assert_index(torch.tensor(schedule(layers, (r, slope))), case(name))


ADAPTERS = {
    "tome_prop_attention": prop_attention,
    "tome_parse_r": parse_r,
    "fastast_schedule": fastast_schedule,
}
