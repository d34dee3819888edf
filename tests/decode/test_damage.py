"""Damage reaches what was decoded after it in its group, however the pictures are ordered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokpipe.decode import open_media
from tokpipe.decode._damage import GroupDamage
from tokpipe.decode._picture import DecodedPicture
from tokpipe.testing.damage import damage_frames
from tokpipe.testing.media import VideoTrack, write_media

#: Two groups in decoding order: key, then P with two B-pictures shown before it, twice over.
ORDER = [0, 3, 1, 2, 6, 4, 5]
GROUPS = [rank + 7 * group for group in range(3) for rank in ORDER]


def run(corrupt: set[int], failed: set[int]) -> dict[int, bool]:
    """Feed three groups; a frame comes once all below it can; say which are reached."""
    groups, out, waiting = GroupDamage(), {}, set[int]()
    lost, due = set(failed), 0
    for rank in GROUPS:
        groups.packet(rank, key=rank % 7 == 0)
        waiting.add(rank)
        if rank in lost:
            groups.hit()
        while due in waiting:
            if due not in lost:
                out.update(dict(groups.frame(due, due, corrupt=due in corrupt)))
            due += 1
    out.update(dict(groups.finish()))
    return out


def expected(corrupt: set[int], failed: set[int]) -> dict[int, bool]:
    bad, out = False, {}
    for rank in GROUPS:
        bad = (bad and rank % 7 != 0) or rank in corrupt or rank in failed
        if rank not in failed:
            out[rank] = bad
    return out


@given(st.sets(st.integers(0, 20), max_size=4), st.sets(st.integers(0, 20), max_size=4))
def test_damage_reaches_what_comes_later_in_decoding_order(
    corrupt: set[int], failed: set[int]
) -> None:
    got = run(corrupt - failed, failed)
    assert got == expected(corrupt - failed, failed)
    assert list(got) == sorted(got)


def test_pictures_before_an_open_groups_key_use_the_group_before() -> None:
    groups = GroupDamage()
    out: dict[int, bool] = {}
    for t, key in [(0, True), (3, False), (1, False), (2, False)]:
        groups.packet(t, key=key)
    groups.hit()
    for t in (0, 1, 2, 3):
        out.update(dict(groups.frame(t, t, corrupt=False)))
    for t, key in [(6, True), (4, False), (5, False), (7, False)]:
        groups.packet(t, key=key)
    for t in (4, 5, 6, 7):
        out.update(dict(groups.frame(t, t, corrupt=False)))
    assert out == {0: False, 1: False, 2: True, 3: False, 4: True, 5: True, 6: False, 7: False}


def test_memory_is_bounded_where_nothing_decodes() -> None:
    groups = GroupDamage()
    for t in range(20_000):
        groups.packet(t, key=t % 10 == 0)
        groups.hit()
    assert max(len(groups.packets), len(groups.keys), len(groups.bad)) <= 1024


@pytest.mark.parametrize("b_frames", [0, 2])
def test_usable_pictures_next_to_noticed_damage_are_right(tmp_path: Path, b_frames: int) -> None:
    """Pictures from the damaged packet to the next key are not usable, all others are exact."""
    path = tmp_path / "clip.mp4"
    track = VideoTrack(frames=60, b_frames=b_frames)
    write_media(path, track, options={"movflags": "+faststart"})

    def read() -> dict[int, DecodedPicture]:
        source = open_media(path)
        return {item.index: item for item in source.read() if isinstance(item, DecodedPicture)}

    clean = {index: picture.rgb(96, 54) for index, picture in read().items()}
    damage_frames(path, [16], count=40)  # the second packet of the second group
    after = read()
    assert any(not picture.usable for picture in after.values())
    for index, picture in after.items():
        assert picture.usable == (index <= 15 or index >= 30)
        if picture.usable:
            np.testing.assert_array_equal(picture.rgb(96, 54), clean[index])
