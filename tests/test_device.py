"""Devices: found, missing, unknown; precision, compiling, and how many items at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tokpipe.device import (
    BatchTuner,
    decode_threads,
    image_layout,
    inference,
    out_of_memory,
    pick_device,
    settle,
    torch_dtype,
)
from tokpipe.errors import ResourceError

CPU = torch.device("cpu")


def test_device_cpu_is_there() -> None:
    assert pick_device() == torch.device("cpu")


def test_device_auto_takes_cuda_where_it_is() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_device_cuda_that_is_not_there_is_named() -> None:
    with pytest.raises(ResourceError) as caught:
        pick_device("cuda:99")
    assert "cuda:99" in caught.value.message
    assert caught.value.exit_code == 3
    assert caught.value.hint


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has mps")
def test_device_mps_that_is_not_there_is_named() -> None:
    with pytest.raises(ResourceError, match="mps"):
        pick_device("mps")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", "xpu", "cpu:-2"])
def test_device_that_is_unknown_is_named(name: str) -> None:
    with pytest.raises(ResourceError):
        pick_device(name)


def test_decoders_feed_a_gpu_and_spare_a_core() -> None:
    assert decode_threads(CPU) == 1
    assert 1 <= decode_threads(torch.device("cuda")) <= 16


def test_dtypes_are_known_by_name() -> None:
    assert torch_dtype("bfloat16", CPU) is torch.bfloat16
    with pytest.raises(ResourceError, match="int8"):
        torch_dtype("int8", CPU)


@pytest.mark.parametrize(("tf32", "wanted"), [(False, "ieee"), (True, "tf32")])
def test_precision_is_set_for_the_block_alone(tf32: bool, wanted: str) -> None:
    backends: Any = torch.backends

    def now() -> tuple[str, str]:
        return backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision

    before = now()
    with inference(tf32=tf32):
        assert now() == (wanted, wanted)
        assert torch.is_inference_mode_enabled()
    assert now() == before
    with pytest.raises(KeyError), inference():
        raise KeyError
    assert now() == before
    assert not torch.is_inference_mode_enabled()


def test_a_tower_is_settled_where_and_as_it_was_asked_for() -> None:
    assert settle("cpu", "float16") == (CPU, torch.float16)
    assert settle(CPU, "float32") == (CPU, torch.float32)
    with pytest.raises(ResourceError, match="cuda:99"):
        settle("cuda:99", "float32")
    with pytest.raises(ResourceError, match="int8"):
        settle("cpu", "int8")


def test_a_cpu_module_keeps_its_layout() -> None:
    module = torch.nn.Conv2d(3, 8, 4)
    strides = module.weight.stride()
    assert module.to(memory_format=image_layout(CPU)).weight.stride() == strides


def test_compiling_without_a_compiler_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ResourceError, match="compiler") as caught:
        settle("cpu", "float32", compiled=True)
    assert "--compile" in (caught.value.hint or "")


def real_error(work: Callable[[], Any]) -> Exception:
    with pytest.raises(RuntimeError) as caught:
        work()
    return caught.value


def test_running_out_of_memory_is_told_from_other_errors() -> None:
    assert out_of_memory(real_error(lambda: torch.empty(1 << 50)))
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not out_of_memory(real_error(lambda: torch.ones(2, 3) @ torch.ones(2, 3)))
    assert not out_of_memory(KeyError("memory"))


def sizes(tuner: BatchTuner, seconds: Callable[[int], float], batches: int) -> list[int]:
    """Sizes that a tuner uses when a batch of n takes ``seconds(n)``."""
    used = []
    for _ in range(batches):
        used.append(tuner.size)
        tuner.record(tuner.size, seconds(tuner.size))
    return used


def test_batches_double_while_they_pay() -> None:
    tuner = BatchTuner(start=4)
    # A launch costs 10 ms, and beyond 32 the device is full: 256 gives 4 % more than 128.
    used = sizes(tuner, lambda n: 0.010 + 0.001 * max(n, 32), 16)
    assert used == [4, 4, 8, 8, 16, 16, 32, 32, 64, 64, 128, 128, 256, 256, 128, 128]
    assert tuner.settled


def test_a_batch_that_does_not_pay_is_taken_back() -> None:
    tuner = BatchTuner(start=4)
    assert sizes(tuner, lambda n: 0.001 * n, 6) == [4, 4, 8, 8, 4, 4]
    assert tuner.settled


def test_the_first_batch_of_a_size_is_warm_up() -> None:
    tuner = BatchTuner(start=4)
    slow = iter([9.0, 0.004, 9.0, 0.006, 9.0, 0.012])
    used = sizes(tuner, lambda _n: next(slow), 6)
    assert used == [4, 4, 8, 8, 16, 16]


def test_batches_of_another_size_are_not_timed() -> None:
    tuner = BatchTuner(start=4)
    for _ in range(5):
        tuner.record(3, 1e-9)
    assert tuner.size == 4 and not tuner.settled


def test_a_batch_that_would_not_fit_is_not_tried() -> None:
    tuner = BatchTuner(start=4, fits=lambda size: size <= 8)
    assert max(sizes(tuner, lambda _n: 0.01, 12)) == 8
    assert max(sizes(BatchTuner(start=4, limit=12), lambda _n: 0.01, 12)) == 8


def test_a_fixed_batch_stays_until_memory_runs_out() -> None:
    freed: list[int] = []
    tuner = BatchTuner(12, free=lambda: freed.append(1))
    assert set(sizes(tuner, lambda n: 1 / n, 9)) == {12}
    asked: list[tuple[int, int]] = []

    def call(a: int, b: int) -> tuple[int, int]:
        asked.append((a, b))
        if b - a > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return a, b

    assert list(tuner.run(12, call)) == [(0, 3), (3, 6), (6, 9), (9, 12)]
    assert asked[:2] == [(0, 12), (0, 6)]
    assert freed == [1, 1]
    assert list(tuner.run(4, call)) == [(0, 3), (3, 4)]


def test_running_out_while_tuning_ends_the_tuning() -> None:
    tuner = BatchTuner(start=8)

    def call(a: int, b: int) -> int:
        if b - a > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return b - a

    used: list[int] = []
    for _ in range(12):
        for done in tuner.run(tuner.size, call):
            used.append(done)
            tuner.record(done, 0.01)
    assert used == [8, 8, *[16] * (len(used) - 2)]
    assert tuner.settled


def test_one_item_that_does_not_fit_says_what_was_tried() -> None:
    def call(_a: int, _b: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore")

    tuner = BatchTuner(10, what="pictures")
    with pytest.raises(ResourceError) as caught:
        list(tuner.run(10, call))
    assert "tried 10, 5, 2, 1 pictures" in caught.value.message
    assert caught.value.message.endswith("20.00 GiB")
    assert caught.value.exit_code == 3


def test_other_errors_are_not_tried_again() -> None:
    asked: list[int] = []

    def call(a: int, b: int) -> None:
        asked.append(b - a)
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        list(BatchTuner(8).run(8, call))
    assert asked == [8]


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="batch of 0"):
        BatchTuner(0)


@pytest.mark.gpu
def test_gpu_convolutions_are_laid_out_as_pictures_come() -> None:
    device = torch.device("cuda")
    module = torch.nn.Conv2d(3, 8, 4).to(device).to(memory_format=image_layout(device))
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
