"""A tokenizer of sixty words, for tiny models that tests save as any model is saved."""

from __future__ import annotations

from typing import Any


def word_tokenizer(length: int = 12) -> Any:
    """A transformers tokenizer of the words w0 .. w59; begin is 0, end and padding 1, others 2.

    Args:
        length: Most tokens of a text, begin and end included.
    """
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    first, last, other = "<s>", "</s>", "<unk>"
    vocab = {first: 0, last: 1, other: 2} | {f"w{i}": i + 3 for i in range(60)}
    made = Tokenizer(models.WordLevel(vocab, unk_token=other))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(first, 0), (last, 1)]
    )
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(
        tokenizer_object=made, bos_token=first, eos_token=last, unk_token=other,
        pad_token=last, model_max_length=length,
    )  # fmt: skip
