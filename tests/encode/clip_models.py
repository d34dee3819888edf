"""Tiny open_clip models of random weights, each in a folder with its checkpoint."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tokpipe.encode.open_clip import OpenClip

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "layers": 4, "width": 64, "head_width": 16, "patch_size": 8}
TIMM = {"image_size": 160, "timm_pool": "token", "timm_proj": None}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"vision_cfg": VIT},
    "clipa": {"vision_cfg": {
        **VIT, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}},
    "coca": {
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 4,
                       "attn_pooler_queries": 8, "output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 12, "width": 24, "heads": 2, "layers": 1},
        "custom_text": True},
    "timm": {"vision_cfg": {**TIMM, "timm_model_name": "test_vit"}, "custom_text": True},
    "siglip": {"vision_cfg": {**TIMM, "timm_model_name": "test_vit3", "timm_pool": "map",
                              "timm_proj": "linear"}, "custom_text": True},
    "eva": {"vision_cfg": {**TIMM, "timm_model_name": "eva02_tiny_patch14_224",
                           "image_size": 224}, "custom_text": True},
    "resnet": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}},
    "convnext": {"vision_cfg": {**TIMM, "timm_model_name": "test_convnext", "timm_pool": "",
                                "timm_proj": "linear"}},
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A model of random weights, its folder, its checkpoint."""

    model: Any
    folder: Path
    path: Path

    def operator(self, **params: Any) -> OpenClip:
        named = {"model": f"local-dir:{self.folder}", "weights": str(self.path), **params}
        return OpenClip(**named)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Makes a tiny model by its kind, each once."""
    held: dict[str, Made] = {}

    def once(kind: str) -> Made:
        if kind not in held:
            held[kind] = make(kind, tmp_path_factory.mktemp(kind))
        return held[kind]

    return once


def make(kind: str, folder: Path) -> Made:
    """Write the model ``kind`` of CONFIGS into ``folder``."""
    config = {"embed_dim": 24, "text_cfg": TEXT, **CONFIGS[kind]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    library = importlib.import_module("open_clip")
    torch.manual_seed(1)
    model = library.create_model(f"local-dir:{folder}", load_weights=False).eval()
    with torch.no_grad():
        # As after training: zeros and ones would hide a forgotten bias or norm.
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    path = folder / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return Made(model, folder, path)


def pictures(count: int = 3, height: int = 90, width: int = 160) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)
