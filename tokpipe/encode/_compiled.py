"""What ``torch.compile`` says that is no news to anyone who asked for a CPU."""

from __future__ import annotations

import logging

#: Whose import, during the first compiled forward pass, looks for a CUDA toolkit.
_LOGGER = "torch.utils.cpp_extension"


def quiet_compiler() -> None:
    """Keep the compiler from warning that a CUDA toolkit is there and no GPU; once is enough.

    The device was settled before; every other message of torch still shows.
    """
    logging.getLogger(_LOGGER).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return "No CUDA runtime is found" not in record.getMessage()
