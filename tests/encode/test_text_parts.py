"""Long queries are cut between words where that can be, and nothing of them is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokpipe.encode._text_parts import text_parts


def test_parts_are_cut_between_words_where_they_can() -> None:
    assert text_parts("ab cd ef", lambda s: len(s) <= 5) == ["ab cd", "ef"]
    assert text_parts("abcdefg hi", lambda s: len(s) <= 4) == ["abcd", "efg", "hi"]
    assert text_parts("  as it is ", lambda s: True) == ["  as it is "]
    assert "".join(text_parts("x" * 9, lambda s: len(s) <= 2)) == "x" * 9


@given(
    st.lists(st.text(alphabet="abcdefgh", min_size=1, max_size=30), min_size=1, max_size=12),
    st.integers(3, 12),
)
def test_segments_hold_every_word_in_order(words: list[str], limit: int) -> None:
    def length(text: str) -> int:
        return len(text.split()) + len(text) // 4 + 1

    segments = text_parts(" ".join(words), lambda part: length(part) <= limit)
    assert "".join("".join(segments).split()) == "".join(words)
    assert all(length(segment) <= limit for segment in segments)
    assert all(segment.strip() for segment in segments)
