"""Tensors as the servers read them: bytes of ``torch.save`` that hold tensors and no code."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokpipe.errors import RecipeError

#: Precisions rows can be cast to, by name.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_of(name: str) -> torch.dtype | None:
    """The precision of a name; None for the one that rows are stored in.

    Raises:
        RecipeError: No such precision.
    """
    if not name:
        return None
    if name not in DTYPES:
        raise RecipeError(
            f"no precision `{name}`", hint="one of " + ", ".join(DTYPES), code="export.dtype"
        )
    return DTYPES[name]


def encoded(tensor: Tensor) -> str:
    """Base64 of ``torch.save``; ``.npy`` would do for servers too, but holds no bfloat16."""
    buffer = io.BytesIO()
    # A view would be saved with all of what it looks at.
    torch.save(tensor.clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def decoded(text: str) -> Any:
    """What :func:`encoded` made, read as the servers do."""
    return torch.load(io.BytesIO(base64.b64decode(text, validate=True)), weights_only=True)


def save_json(value: object, path: Path) -> None:
    """One JSON file, numbers in full."""
    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
