"""PaliGemma and Gemma 3: SigLIP's last hidden state after its norm, one tile a picture.

PaliGemma projects every patch. Gemma 3 averages windows of patches (64 x 64 to 16 x 16), then norms
and projects. Its crops ("pan and scan") are not made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, matmul, nn

from tokpipe.encode._hf.front import FrontFamily
from tokpipe.encode._hf.head import Pool, windows
from tokpipe.errors import ModelError


class PaliGemmaFamily(FrontFamily):
    """PaliGemma and PaliGemma 2."""

    model = "PaliGemmaModel"

    def _layer(self) -> int | list[int]:
        return -1

    def _norms(self) -> bool:
        return True

    def _dim(self) -> int:
        return int(self.vision.projection_dim)


class Gemma3Family(FrontFamily):
    """Gemma 3."""

    model = "Gemma3Model"
    pools = True

    def _layer(self) -> int | list[int]:
        return -1

    def _norms(self) -> bool:
        return True

    def _kernel(self) -> int:
        return self.grid // int(self.config.mm_tokens_per_image**0.5)

    def _pool(self, model: Any) -> Pool:
        side, average = self.grid, model.multi_modal_projector.avg_pool

        def rows(values: Tensor) -> Tensor:
            # As the projector itself lays them out: how a product rounds depends on it.
            tiles, _, width = values.shape
            grid = values.transpose(1, 2).reshape(tiles, width, side, side).contiguous()
            made: Tensor = average(grid)
            return made.flatten(2).transpose(1, 2)

        return windows(side, self._kernel(), rows)

    def _project(self, model: Any) -> nn.Module:
        return _Gemma3Rows(model.multi_modal_projector)

    def _facts(self) -> Mapping[str, Any]:
        kernel = self._kernel()
        pooled = f"{kernel} x {kernel}, average, before the projector"
        return {"pool": pooled if self.pooling else "none"}

    def __post_init__(self) -> None:
        """See the base class; windows of at least one patch."""
        super().__post_init__()
        if self._kernel() < 1:
            raise ModelError(
                f"`{self.settings.model}` makes {self.config.mm_tokens_per_image} tokens of "
                f"{self.grid} x {self.grid} patches",
                hint="use the configuration that belongs to the model",
            )


class _Gemma3Rows(nn.Module):
    """The projector after its pooling, row by row."""

    def __init__(self, projector: Any) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, rows: Tensor) -> Tensor:
        normed = self.projector.mm_soft_emb_norm(rows)
        return matmul(normed, self.projector.mm_input_projection_weight).type_as(rows)
