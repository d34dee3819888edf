"""New vectors for groups of tokens: the columns follow a map, the vectors are given."""

from __future__ import annotations

from torch import Tensor

from tokpipe.tensors import TokenBatch, TokenMap


def projected(tokens: TokenBatch, data: Tensor, group: TokenMap) -> TokenBatch:
    """Tokens whose vectors are ``data`` and whose columns are those of ``group``'s rows.

    Mass is summed by share, ``pts``, ``frame`` and ``extent`` are hulls, ``at``, ``cell``, ``tile``
    and ``segment`` are the anchor's; extras follow their own rules. The weights of ``group`` say
    only which rows count as merged.

    Args:
        tokens: N source tokens.
        data: [K, D'] new vectors, of any width; stored in the type of ``tokens.data``.
        group: K rows over the N sources.

    Raises:
        ValueError: ``data`` has not one vector for each row, or ``group`` is of other tokens.
    """
    if data.ndim != 2 or data.shape[0] != len(group):
        raise ValueError(f"projected: {list(data.shape)} vectors for {len(group)} rows")
    # The old vectors are not needed: one column of them keeps the reduction cheap.
    narrow = tokens.with_columns(data=tokens.data[:, :1])
    return narrow.reduce(group).with_columns(data=data.to(tokens.data.dtype))
