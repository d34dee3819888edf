"""One meaning of budget: five forms, and how a total is split.

N counts media tokens. Shares, segments and frames are split by the largest remainder; ties go
to the lower index.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from tokpipe.errors import BudgetError

BudgetForm = Literal["total", "split", "per_frame", "per_second", "percent"]
#: Share of one total that goes to audio when both streams are there.
AUDIO_SHARE = Fraction(1, 4)
#: ``%`` and ``/s`` budgets are settled per window of this many seconds.
WINDOW = 60.0
#: Tokens a second under which merged speech is no longer intelligible (the lowest published
#: useful rates are 3 to 6).
THIN_AUDIO = 3.0
_FORMS = "2048 | video=1536,audio=512 | 64/frame | 20/s | 10%"
_NUMBER = r"([0-9]{1,12}(?:\.[0-9]{1,6})?)"


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget as the user wrote it.

    Attributes:
        form: Which of the five forms.
        amount: Tokens in all, per frame, per second, or percent.
        video, audio: Caps of the split form; None leaves that stream out.
    """

    form: BudgetForm
    amount: Fraction = Fraction(0)
    video: int | None = None
    audio: int | None = None

    @staticmethod
    def parse(text: str | int | Budget) -> Budget:
        """Read ``2048``, ``video=1536,audio=512``, ``64/frame``, ``20/s`` or ``10%``.

        Raises:
            BudgetError: The text is none of the forms, or the amount is not positive.
        """
        if isinstance(text, Budget):
            return text
        text = str(text).strip().replace("_", "")
        if "=" in text:
            return _parse_split(text)
        match = re.fullmatch(_NUMBER + r"\s*(/frame|/s|%)?", text)
        if not match:
            raise BudgetError(f"cannot read budget `{text}`", hint=f"write one of: {_FORMS}")
        amount, unit = Fraction(match[1]), match[2]
        if amount <= 0 or (unit == "%" and amount > 100):
            raise BudgetError(
                f"budget `{text}` is out of range", hint="use at least 1 token, and at most 100%"
            )
        if unit in (None, "/frame") and amount.denominator != 1:
            raise BudgetError(
                f"budget `{text}` is not a whole number of tokens", hint=f"write one of: {_FORMS}"
            )
        forms: dict[str | None, BudgetForm] = {
            None: "total",
            "/frame": "per_frame",
            "/s": "per_second",
            "%": "percent",
        }
        return Budget(forms[unit], amount)

    def refuses(self, stream: Literal["video", "audio"], share: float | Fraction) -> bool:
        """The stream was given nothing on purpose, by its cap or the ``share`` of audio."""
        if self.form == "split":
            return not (self.video if stream == "video" else self.audio)
        return share == (1 if stream == "video" else 0)

    def __str__(self) -> str:
        """The text it is read from."""
        if self.form == "split":
            caps = {"video": self.video, "audio": self.audio}
            return ",".join(f"{k}={v}" for k, v in caps.items() if v is not None)
        unit = {"total": "", "per_frame": "/frame", "per_second": "/s", "percent": "%"}[self.form]
        if self.amount.denominator == 1:
            return f"{self.amount.numerator}{unit}"
        return f"{float(self.amount):.6f}".rstrip("0") + unit


def _parse_split(text: str) -> Budget:
    caps: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(video|audio)\s*=\s*([0-9]{1,12})\s*", part)
        if not match or match[1] in caps:
            raise BudgetError(f"cannot read budget `{text}`", hint="write video=1536,audio=512")
        caps[match[1]] = int(match[2])
    if sum(caps.values()) < 1:
        raise BudgetError(f"budget `{text}` allows no token", hint="give at least 1 token")
    return Budget("split", video=caps.get("video", 0), audio=caps.get("audio", 0))


def largest_remainder(
    total: int,
    weights: Sequence[float | Fraction],
    *,
    caps: Sequence[int] | None = None,
    floors: Sequence[int] | None = None,
) -> list[int]:
    """Split ``total`` in proportion to ``weights``, whole numbers, exactly.

    Args:
        total: Tokens to hand out, 0 or more.
        weights: Non-negative; all zero counts as equal.
        caps: Most each part may take; the excess goes to the others.
        floors: Least each part takes, as far as ``total`` reaches (lower index first).

    Returns:
        Parts that sum to min(total, sum of caps). Ties go to the lower index.
    """
    n = len(weights)
    most = [total] * n if caps is None else [max(0, c) for c in caps]
    least = [0] * n if floors is None else [min(f, c) for f, c in zip(floors, most, strict=True)]
    total = min(total, sum(most))
    if total <= sum(least):
        return _in_order(total, least)
    share = [Fraction(w) if w > 0 else Fraction(0) for w in weights]
    parts: dict[int, int] = {}
    while len(parts) < n:
        left = total - sum(parts.values())
        free = [i for i in range(n) if i not in parts]
        scale = sum((share[i] for i in free), Fraction(0))
        if not scale:
            share, scale = [Fraction(1)] * n, Fraction(len(free))
        want = {i: share[i] * left / scale for i in free}
        # Parts beyond a bound are settled at it, the others share what is left again.
        high = {i: most[i] for i in free if want[i] >= most[i]}
        low = {i: least[i] for i in free if want[i] <= least[i]}
        over = sum((want[i] - c for i, c in high.items()), Fraction(0))
        under = sum((f - want[i] for i, f in low.items()), Fraction(0))
        if high or low:
            parts |= high if high and over >= under else low
            continue
        rest = left - sum(int(w) for w in want.values())
        first = sorted(free, key=lambda i: (int(want[i]) - want[i], i))[:rest]
        parts |= {i: int(want[i]) + (i in first) for i in free}
    return [parts[i] for i in range(n)]


def _in_order(total: int, wanted: Sequence[int]) -> list[int]:
    parts = []
    for want in wanted:
        parts.append(min(want, total))
        total -= parts[-1]
    return parts


def audio_share_of(total: int, share: Fraction = AUDIO_SHARE) -> int:
    """Tokens of one total that go to audio first: floor(N x share + 1/2), at least 1 from N = 8."""
    count = int(total * share + Fraction(1, 2))
    if share > 0 and total >= 8:
        count = max(1, count)
    return min(count, total)


@dataclass(frozen=True, slots=True)
class Supply:
    """What a stream can offer: tokens worth having first, and all candidates."""

    novel: int = 0
    total: int = 0


def split_modalities(
    total: int, video: Supply, audio: Supply, *, share: Fraction = AUDIO_SHARE
) -> tuple[int, int]:
    """Split one total between video and audio.

    Each stream first gets its share of what is worth having; what is left is filled with novel
    video, then audio after gate and merge, then remaining audio, then redundant video.

    Returns:
        (video, audio) tokens; their sum is min(total, all candidates).
    """
    if not audio.total:
        return min(total, video.total), 0
    if not video.total:
        return 0, min(total, audio.total)
    audio_first = audio_share_of(total, share) if audio.novel else 0
    a = min(audio_first, audio.novel)
    v = min(total - audio_first, video.novel)
    left = total - a - v
    for stream, room in (
        ("video", video.novel - v),
        ("audio", audio.novel - a),
        ("audio", audio.total - max(a, audio.novel)),
        ("video", video.total - max(v, video.novel)),
    ):
        take = max(0, min(left, room))
        left -= take
        v, a = (v + take, a) if stream == "video" else (v, a + take)
    return v, a
