"""Batches through a tower: order, ends, memory that runs out, errors, threads, a GPU's lanes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokpipe.device import BatchTuner
from tokpipe.encode._batches import _Pictures, encode_pictures, encode_sounds, piped
from tokpipe.encode._lanes import HostLanes, Returned, Wait
from tokpipe.encode._tower import Encoded, Outline
from tokpipe.errors import ResourceError
from tokpipe.tensors import Query

CPU = torch.device("cpu")
SIDE, PATCH, DIM = 32, 8, 24


class Patches(nn.Module):
    """Patch embedding and one transformer block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.block = nn.TransformerEncoderLayer(DIM, 4, 48, 0.0, batch_first=True)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.block(self.embed(pixels).flatten(2).mT)
        return out


@dataclass
class PictureTower:
    """A vision tower that can take ``room`` pictures at once and remembers how many it got."""

    device: torch.device = CPU
    room: int = 1 << 30
    outline: Outline = field(default_factory=lambda: Outline(dim=DIM, deepstack=1))
    weights: str = "sha256:0"
    sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.module = Patches().eval().to(self.device)

    def prepare(self, pixels: Tensor) -> Tensor:
        assert pixels.dtype == torch.uint8 and pixels.device.type == self.device.type
        return pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1)

    def encode(self, prepared: Tensor, columns: frozenset[str] = frozenset()) -> Encoded:
        if len(prepared) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        self.sizes.append(len(prepared))
        data = self.module(prepared)
        made = {"received": data.square().mean(-1)} if "received" in columns else {}
        return Encoded(data=data, deepstack=(data * 2,), columns=made)

    def encode_kept(
        self, prepared: Tensor, live: Tensor, columns: frozenset[str] = frozenset()
    ) -> Encoded:
        raise NotImplementedError

    def embed_text(self, text: str) -> Query:
        raise NotImplementedError


@dataclass
class SoundTower:
    """A tower for sound: one token for each 100 samples begun."""

    device: torch.device = CPU
    outline: Outline = field(default_factory=lambda: Outline(dim=2, rate=16000))
    weights: str = "sha256:0"
    chunk: int = 1000
    sizes: list[int] = field(default_factory=list)

    def times(self, samples: int) -> Tensor:
        start = torch.arange(-(-samples // 100), dtype=torch.float64) * 100 / 16000
        return torch.stack([start, start + 100 / 16000], 1)

    def encode(self, waves: list[Tensor], columns: frozenset[str] = frozenset()) -> list[Encoded]:
        self.sizes.append(len(waves))
        assert all(wave.device.type == self.device.type for wave in waves)
        parts = [list(wave.split(100)) for wave in waves]  # type: ignore[no-untyped-call]
        return [
            Encoded(data=torch.stack([torch.stack([p.mean(), p.abs().max()]) for p in some])[None])
            for some in parts
        ]


def drawn(count: int, side: int = SIDE) -> list[tuple[int, NDArray[np.uint8]]]:
    """Pictures with keys that are no plain count."""
    draw = np.random.default_rng(0)
    return [(7 * i + 3, draw.integers(0, 256, (side, side, 3), np.uint8)) for i in range(count)]


def waves(count: int) -> list[tuple[int, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [(i, torch.rand(1000 if i < count - 1 else 250, generator=draw)) for i in range(count)]


def alone(tower: PictureTower, pictures: list[tuple[int, NDArray[np.uint8]]]) -> Tensor:
    """Each picture through the tower by itself [T, n, D]."""
    with torch.inference_mode():
        made = [
            tower.encode(tower.prepare(torch.from_numpy(p)[None].to(tower.device))).data.cpu()
            for _, p in pictures
        ]
    return torch.cat(made)


def prefetchers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "tokpipe-prefetch"]


@pytest.mark.parametrize("batch", [1, 3, 4, 8, 16, 32, None])
def test_batches_change_neither_order_nor_tokens(batch: int | None) -> None:
    tower, pictures = PictureTower(), drawn(19)
    made = list(encode_pictures(tower, pictures, device=CPU, batch=batch))
    step = min(batch or 16, 19)
    sizes = [step] * (19 // step) + ([19 % step] if 19 % step else [])
    # The last picture of each new size is encoded alone too, to see that it has the same bits;
    # where it has not, all of that size are encoded alone.
    assert [n for n in tower.sizes if n > 1] in (
        [n for n in sizes if n > 1],
        [*dict.fromkeys(sizes)],
    )
    assert tower.sizes[0] == step
    assert [key for key, _ in made] == [key for key, _ in pictures]
    assert all(tokens.data.shape == (1, 16, DIM) for _, tokens in made)
    got = torch.cat([tokens.data for _, tokens in made])
    assert torch.equal(got, alone(PictureTower(), pictures))


class Swaying(PictureTower):
    """A tower whose rows depend on how many pictures it gets."""

    def encode(self, prepared: Tensor, columns: frozenset[str] = frozenset()) -> Encoded:
        made = super().encode(prepared, columns)
        return Encoded(data=made.data + 1e-7 * len(prepared), deepstack=made.deepstack)


def test_rows_never_depend_on_the_batch_on_a_cpu() -> None:
    tower, pictures = Swaying(), drawn(11)
    whole = [e.data for _, e in encode_pictures(tower, pictures, device=CPU, batch=4)]
    part = [e.data for _, e in encode_pictures(tower, pictures[3:9], device=CPU, batch=5)]
    assert torch.equal(torch.cat(whole[3:9]), torch.cat(part))


def test_no_pictures_make_no_tokens() -> None:
    assert list(encode_pictures(PictureTower(), [], device=CPU)) == []


def test_deepstack_and_only_the_columns_asked_for_come_along() -> None:
    pictures = drawn(5)
    for _, tokens in encode_pictures(
        PictureTower(), pictures, device=CPU, columns=frozenset({"received"}), batch=2
    ):
        assert torch.equal(tokens.deepstack[0], tokens.data * 2)
        assert set(tokens.columns) == {"received"}
        assert tokens.columns["received"].shape == (1, 16)
        assert not tokens.data.is_inference() and not tokens.data.requires_grad
    _, plain = next(encode_pictures(PictureTower(), pictures, device=CPU))
    assert not plain.columns


def test_memory_that_runs_out_halves_the_batch_and_loses_nothing() -> None:
    tower, pictures = PictureTower(room=3), drawn(21)
    made = list(encode_pictures(tower, pictures, device=CPU, batch=16))
    assert max(tower.sizes) == 2  # 16, 8 and 4 did not fit
    assert [key for key, _ in made] == [key for key, _ in pictures]
    got = torch.cat([tokens.data for _, tokens in made])
    torch.testing.assert_close(got, alone(PictureTower(), pictures), atol=1e-5, rtol=0)


def test_memory_that_runs_out_with_one_picture_is_named() -> None:
    with pytest.raises(ResourceError, match=r"batch of 1 \(tried 6, 3, 1 pictures\)") as caught:
        list(encode_pictures(PictureTower(room=0), drawn(6), device=CPU, batch=6))
    assert "--precision" in (caught.value.hint or "")
    assert caught.value.exit_code == 3


class Greedy(PictureTower):
    """Asks the real allocator for more than there is, for batches above two."""

    def encode(self, prepared: Tensor, columns: frozenset[str] = frozenset()) -> Encoded:
        if len(prepared) > 2:
            torch.empty(1 << 50)
        return super().encode(prepared, columns)


def test_the_cpu_allocators_own_error_backs_off_too() -> None:
    tower = Greedy()
    assert len(list(encode_pictures(tower, drawn(9), device=CPU, batch=8))) == 9
    assert max(tower.sizes) == 2


def test_other_errors_of_a_tower_surface_as_themselves() -> None:
    class Broken(PictureTower):
        def encode(self, prepared: Tensor, columns: frozenset[str] = frozenset()) -> Encoded:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        list(encode_pictures(Broken(), drawn(3), device=CPU))


@dataclass
class Late(Wait):
    """A future as an event of a device."""

    future: Future[None]

    def synchronize(self) -> None:
        self.future.result()


class LateLanes(HostLanes):
    """A device of one thread that works late: copies read the buffer some time after the call."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.copies, self.work = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def forward(
        self, host: Tensor, count: int, prepare: Callable[[Tensor], Any],
        encode: Callable[[Any], list[Encoded]],
    ) -> tuple[Returned, Wait]:  # fmt: skip
        with torch.inference_mode(False):
            there = torch.empty_like(host)

        def copy() -> None:
            time.sleep(0.01)
            there.copy_(host)

        tokens: list[Encoded] = []
        copied = self.copies.submit(copy)

        def run() -> None:
            copied.result()
            with torch.inference_mode():
                tokens.extend(encode(prepare(there)))

        return Returned(tokens, Late(self.work.submit(run)), lambda: 1.0), Late(copied)


def late(
    pictures: Any, batch: int = 2, tower: PictureTower | None = None
) -> Iterator[tuple[int, Encoded]]:
    work = _Pictures(tower or PictureTower(), frozenset())
    return piped(work, pictures, LateLanes(), BatchTuner(batch), ahead=1)


@pytest.mark.parametrize(("count", "batch"), [(23, 2), (4, 4), (1, 8), (9, 1)])
def test_a_buffer_is_not_filled_again_before_it_was_copied(count: int, batch: int) -> None:
    pictures = drawn(count)
    made = list(late(pictures, batch))
    assert [key for key, _ in made] == [key for key, _ in pictures]
    got = torch.cat([tokens.data for _, tokens in made])
    torch.testing.assert_close(got, alone(PictureTower(), pictures), atol=1e-5, rtol=0)
    assert not prefetchers()


def test_batches_are_handed_out_once_the_next_is_queued() -> None:
    asked: list[int] = []

    def source() -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for key, picture in drawn(20):
            asked.append(key)
            yield key, picture

    made = late(source(), 2)
    next(made)
    # Two queued, one waiting, one being filled and at most one more begun.
    assert 4 <= len(asked) <= 10
    made.close()  # type: ignore[attr-defined]


def test_an_abandoned_run_ends_its_thread_and_closes_the_source() -> None:
    closed = threading.Event()

    def endless() -> Iterator[tuple[int, NDArray[np.uint8]]]:
        try:
            while True:
                yield drawn(1)[0]
        finally:
            closed.set()

    made = late(endless())
    assert len([next(made) for _ in range(5)]) == 5
    assert prefetchers()
    made.close()  # type: ignore[attr-defined]
    assert closed.is_set()
    assert not prefetchers()


def plain(items: Any) -> Iterator[tuple[int, Encoded]]:
    return encode_pictures(PictureTower(), items, device=CPU)


@pytest.mark.parametrize("run", [late, plain])
def test_an_error_of_the_source_surfaces_as_itself(run: Any) -> None:
    def broken() -> Iterator[tuple[int, NDArray[np.uint8]]]:
        yield from drawn(3)
        raise LookupError("the disk is gone")

    with pytest.raises(LookupError, match="the disk is gone"):
        list(run(broken()))
    assert not prefetchers()


@pytest.mark.parametrize("batch", [1, 2, 5, None])
def test_sounds_of_several_lengths_keep_order_and_tokens(batch: int | None) -> None:
    tower, chunks = SoundTower(), waves(6)
    made = list(encode_sounds(tower, chunks, device=CPU, batch=batch))
    assert max(tower.sizes) == (batch or 4)
    assert [key for key, _ in made] == list(range(6))
    whole = SoundTower().encode([wave for _, wave in chunks])
    for (_, got), want in zip(made, whole, strict=True):
        assert torch.equal(got.data, want.data)
    assert made[-1][1].data.shape == (1, 3, 2)


@pytest.mark.gpu
def test_gpu_tokens_equal_each_picture_alone() -> None:
    device = torch.device("cuda")
    tower, pictures = PictureTower(device), drawn(77)
    for batch in (None, 1, 16):
        made = list(encode_pictures(tower, pictures, device=device, batch=batch))
        assert [key for key, _ in made] == [key for key, _ in pictures]
        got = torch.cat([tokens.data for _, tokens in made])
        assert got.device.type == "cpu"
        torch.testing.assert_close(got, alone(PictureTower(device), pictures), atol=1e-4, rtol=0)


@pytest.mark.gpu
def test_gpu_memory_that_runs_out_backs_off() -> None:
    device = torch.device("cuda")
    tower, pictures = PictureTower(device, room=3), drawn(21)
    made = list(encode_pictures(tower, pictures, device=device, batch=16))
    assert max(tower.sizes) == 2
    got = torch.cat([tokens.data for _, tokens in made])
    torch.testing.assert_close(got, alone(PictureTower(device), pictures), atol=1e-4, rtol=0)
    with pytest.raises(ResourceError, match="batch of 1"):
        list(encode_pictures(PictureTower(device, room=0), pictures, device=device))
    assert not prefetchers()


@pytest.mark.gpu
def test_gpu_batches_grow_while_they_pay() -> None:
    device = torch.device("cuda")
    tower = PictureTower(device)
    assert len(list(encode_pictures(tower, drawn(3000), device=device))) == 3000
    assert max(tower.sizes) > 16


@pytest.mark.gpu
def test_gpu_sounds_keep_order_and_tokens() -> None:
    device = torch.device("cuda")
    chunks = waves(13)
    made = list(encode_sounds(SoundTower(device), chunks, device=device))
    whole = SoundTower().encode([wave for _, wave in chunks])
    for (_, got), want in zip(made, whole, strict=True):
        torch.testing.assert_close(got.data, want.data, atol=1e-6, rtol=0)
