"""Which pictures depend on damage: what was decoded after it in the same group of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

#: Packets remembered at once, and pictures held back; decoders delay by less.
_REMEMBERED, _HELD = 1024, 8


@dataclass(slots=True)
class GroupDamage:
    """Follows packets in decoding order and tells of each frame whether damage reaches it.

    A group starts at a key packet. Pictures shown before their group's key picture may also use
    the group before. A B-picture is shown before one that it depends on, and only that one's
    frame says whether it is damaged; so each is held back until what was decoded before it is out.

    Attributes:
        group, order: Of the newest packet.
        keys: Time of each recent group's key picture.
        bad: Order of the first damaged packet of each damaged group.
        packets: Group and order of the packets whose frames are still to come, by time.
        held: Items held back, each with its time, group and order.
    """

    group: int = 0
    order: int = 0
    keys: dict[int, int] = field(default_factory=dict)
    bad: dict[int, int] = field(default_factory=dict)
    packets: dict[int, tuple[int, int]] = field(default_factory=dict)
    held: list[tuple[Any, int, int, int]] = field(default_factory=list)

    def packet(self, t: int, *, key: bool) -> None:
        """Note the next packet in decoding order, with its presentation time."""
        self.order += 1
        if key:
            self.group += 1
            self.keys[self.group] = t
            self.keys.pop(self.group - _HELD, None)
            self.bad.pop(self.group - _HELD, None)
        if len(self.packets) >= _REMEMBERED:
            del self.packets[next(iter(self.packets))]
        self.packets[t] = (self.group, self.order)

    def hit(self) -> None:
        """Damage at the newest packet."""
        self.bad.setdefault(self.group, self.order)

    def frame(self, item: Any, t: int, *, corrupt: bool) -> Iterator[tuple[Any, bool]]:
        """Items that are settled once the next frame, shown at ``t``, has come out.

        Yields:
            Each item given, in order, and whether damage reaches it.
        """
        packets = self.packets
        group, order = packets.pop(t, (self.group, 0))
        if corrupt:
            self.bad[group] = min(order, self.bad.get(group, order))
        horizon = self.order + 1
        while packets:
            first = next(iter(packets))
            if first > t:
                horizon = packets[first][1]
                break
            del packets[first]  # frames come in order of time: this one was lost
        self.held.append((item, t, group, order))
        while self.held and (self.held[0][3] < horizon or len(self.held) > _HELD):
            yield self._release()

    def finish(self) -> Iterator[tuple[Any, bool]]:
        """The items still held back."""
        while self.held:
            yield self._release()

    def _release(self) -> tuple[Any, bool]:
        item, t, group, order = self.held.pop(0)
        if not self.bad:
            return item, False
        within = group in self.bad and (order == 0 or order >= self.bad[group])
        leading = group - 1 in self.bad and t < self.keys.get(group, t)
        return item, within or leading
