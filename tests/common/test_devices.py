import os
import threading

import pytest
import torch

from speaker.common.devices import (
    MAX_SHARDS,
    Compute,
    ThreadPool,
    configure_process,
    find_compute,
    find_precision,
    usable_cores,
)
from speaker.common.errors import UserError

CPU = torch.device("cpu")


def test_precision_is_what_the_processor_has_or_what_is_asked() -> None:
    with open("/proc/cpuinfo") as stream:
        flags = stream.read()
    has_bf16 = "avx512_bf16" in flags or "amx_tile" in flags
    assert find_precision("auto", CPU) == (torch.bfloat16 if has_bf16 else torch.float32)
    assert find_precision("fp32", CPU) == torch.float32
    assert find_precision("bf16", CPU) == torch.bfloat16


def test_cores_are_those_this_process_may_use_and_jobs_share_them() -> None:
    assert usable_cores() == len(os.sched_getaffinity(0))
    assert find_compute("cpu", "fp32").threads == usable_cores()
    assert find_compute("cpu", "fp32", jobs=usable_cores()).threads == 1
    with pytest.raises(UserError, match="--jobs must be at most the number of cores"):
        find_compute("cpu", "fp32", jobs=usable_cores() + 1)


@pytest.mark.parametrize(
    ("threads", "shards", "each"), [(1, 1, 1), (2, 2, 1), (4, 4, 1), (16, MAX_SHARDS, 4)]
)
def test_shards_share_the_threads(threads: int, shards: int, each: int) -> None:
    before = torch.get_num_threads()
    compute = Compute(threads=threads)
    try:
        configure_process(compute)
        assert compute.shards == shards
        assert torch.get_num_threads() == each
        with ThreadPool(shards) as pool:
            assert set(pool.map(lambda _: torch.get_num_threads(), range(2 * shards))) == {each}
    finally:
        torch.set_num_threads(before)


def test_a_device_is_described_with_what_decides_its_numbers() -> None:
    assert Compute(precision=torch.bfloat16, threads=3).describe() == "cpu, bf16, 3 threads"


def test_a_crew_works_side_by_side_and_keeps_the_order() -> None:
    barrier = threading.Barrier(3, timeout=30)

    def meet(item: int) -> int:
        barrier.wait()  # holds until three are here at once
        return item * item

    with ThreadPool(3) as pool:
        assert pool.map(meet, [3, 1, 2]) == [9, 1, 4]
    with ThreadPool(1) as pool:
        assert pool.map(lambda item: item + 1, [1, 2]) == [2, 3]


def test_an_error_in_a_crew_reaches_who_asked() -> None:
    with ThreadPool(2) as pool, pytest.raises(ZeroDivisionError):
        pool.map(lambda item: 1 // item, [1, 0])


def test_one_thread_is_one() -> None:
    assert Compute().describe() == "cpu, fp32, 1 thread"
