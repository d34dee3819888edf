"""Datasets of token caches for training with torch: reading, batching, and Hugging Face's Trainer.

```python
from tokpipe.torch import PadCollator, TokenCacheDataset

caches = TokenCacheDataset("talks-dataset", budget=1024)
loader = torch.utils.data.DataLoader(caches, batch_size=8, num_workers=2, collate_fn=PadCollator())
```

Samples are tensors. What takes a cache, such as ``tokpipe.to_model_inputs``, takes an item as
``tokpipe.load("talks-dataset").open(key)``.
"""

from __future__ import annotations

from tokpipe.cache.collate import PackCollator, PadCollator
from tokpipe.cache.dataset import CacheDataset, open_dataset
from tokpipe.cache.map_style import TokenCacheDataset
from tokpipe.cache.samples import Sample, Tokens
from tokpipe.cache.stream import TokenCacheStream
from tokpipe.export._trainer import PromptDataset, TrainerCollator, feed_rows

__all__ = [
    "CacheDataset",
    "PackCollator",
    "PadCollator",
    "PromptDataset",
    "Sample",
    "TokenCacheDataset",
    "TokenCacheStream",
    "Tokens",
    "TrainerCollator",
    "feed_rows",
    "open_dataset",
]
