"""What is asked of CUDA, checked by PyTorch's own Python side:
only the calls of the driver itself are replaced.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from speaker.common import cuda
from speaker.common.devices import (
    Compute,
    configure_process,
    find_compute,
    find_device,
    find_precision,
)
from speaker.common.errors import DeviceLostError, UserError
from speaker.data.pack import Pack
from speaker.data.protocol import Protocol
from speaker.training.train import train
from tests.helpers import LAYERS, ROOT, TINY

GIB = 1 << 30
# Torch 2.13 with CUDA 13.0.
WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
OLD_WHEEL = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]  # with CUDA 12.6


class Driver:
    """A driver with some cards; what it is told is kept."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.told: list[tuple[object, ...]] = []
        self.free, self.total = 10 * GIB, 15 * GIB
        self.has("Tesla T4", (7, 5))
        self.answers("init", lambda: None)
        self.answers("mem_get_info", lambda _device: (self.free, self.total))
        self.wheel(WHEEL)
        patch.setattr(torch.version, "cuda", "13.0")
        patch.setattr(
            torch._C,
            "_cuda_setDevice",
            lambda index: self.told.append(("device", index)),
            raising=False,
        )
        patch.setattr(torch._C, "_cuda_setMemoryFraction", lambda *given: self.told.append(("memory", *given)),
                      raising=False)  # fmt: skip
        patch.setattr("torch.cuda.memory._lazy_init", lambda: None)

    def answers(self, name: str, call: Callable[..., object]) -> None:
        self.patch.setattr(torch.cuda, name, call)

    def has(self, name: str, *capabilities: tuple[int, int]) -> None:
        """Put a card of each compute capability into the machine."""

        def index(device: int | torch.device) -> int:
            number = torch.cuda._utils._get_device_index(device)
            assert number < len(capabilities)
            return number

        self.answers("is_available", lambda: bool(capabilities))
        self.answers("device_count", lambda: len(capabilities))
        self.answers("get_device_capability", lambda device: capabilities[index(device)])
        self.answers("get_device_name", lambda device: name if index(device) >= 0 else "")

    def wheel(self, kernels: list[str]) -> None:
        """Install a PyTorch with kernels for these architectures."""
        self.answers("get_arch_list", lambda: kernels)

    def is_too_old(self) -> None:
        def init() -> None:
            raise RuntimeError(
                "The NVIDIA driver on your system is too old (found version 11040). Please update "
                "your GPU driver by downloading and installing a new version from the URL: "
                "http://www.nvidia.com/Download/index.aspx"
            )

        self.answers("init", init)
        self.answers("is_available", lambda: False)
        self.patch.setattr("speaker.common.cuda.has_card", lambda: True)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(monkeypatch)


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_a_card_always_has_its_number(driver: Driver, name: str) -> None:
    compute = find_compute(name, "auto")
    assert compute.device == torch.device("cuda", 0)
    assert compute.device.index == 0
    assert (compute.graph, compute.is_automatic, compute.fallbacks) == (True, name == "auto", ())
    configure_process(compute)
    assert driver.told == [("device", 0)]
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_share_of_memory_is_of_the_right_card(driver: Driver) -> None:
    driver.has("A100", (8, 0), (8, 0))
    configure_process(Compute(torch.device("cuda", 1), memory_fraction=0.25))
    assert driver.told == [("device", 1), ("memory", 0.25, 1)]


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((6, 0), "fp16"), ((6, 1), "fp32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((8, 6), "bf16"),
     ((9, 0), "bf16"), ((12, 0), "bf16")],
)  # fmt: skip
def test_each_card_computes_in_the_fastest_precision_it_has(
    driver: Driver, capability: tuple[int, int], precision: str
) -> None:
    """P100, GTX 10xx, V100, T4, A100, RTX 30xx, H100, RTX 50xx."""
    driver.has("card", capability)
    driver.wheel([*OLD_WHEEL, *WHEEL])
    assert find_compute("auto", "auto").precision_name == precision


def test_the_card_that_is_asked_about_is_the_one_that_is_used(driver: Driver) -> None:
    driver.has("card", (8, 0), (7, 5))
    assert find_compute("cuda:1", "auto").precision == torch.float16
    with pytest.raises(
        UserError, match=r"--precision bf16 needs a card .* but cuda:1 has 7.5; use fp16 or fp32"
    ):
        find_compute("cuda:1", "bf16")
    with pytest.raises(UserError, match=r"there is no card 2; this machine has 2, counted from 0"):
        find_device("cuda:2")


@pytest.mark.usefixtures("driver")
def test_float16_is_for_cards() -> None:
    assert find_precision("fp16", torch.device("cuda", 0)) == torch.float16
    with pytest.raises(
        UserError, match="--precision fp16 is for CUDA devices, but the device is cpu; use bf16 or"
    ):
        find_precision("fp16", torch.device("cpu"))


@pytest.mark.parametrize(
    ("capability", "old"), [((6, 0), True), ((7, 0), True), ((7, 5), False), ((12, 1), False)]
)
def test_a_card_that_the_wheel_has_no_kernels_for_is_named_with_the_wheel_to_install(
    driver: Driver, capability: tuple[int, int], old: bool
) -> None:
    driver.has("Tesla P100", capability)
    fault = cuda.find_fault(0)
    assert bool(fault) == old
    if old:
        version = torch.__version__.partition("+")[0]
        assert fault == (
            f"Tesla P100 is of compute capability {capability[0]}.{capability[1]}, for which torch "
            f"{torch.__version__} has no kernels (sm_75, sm_80, sm_86, sm_90, sm_100, sm_120, "
            f"compute_120); pip install --force-reinstall torch=={version} --index-url "
            "https://download.pytorch.org/whl/cu126"
        )
        with pytest.raises(UserError, match="Tesla P100"):
            find_device("cuda")
        device, reason = find_device("auto")
        assert device.type == "cpu"
        assert reason == f"the NVIDIA card is not used: {fault}"
    driver.wheel(OLD_WHEEL)
    assert bool(cuda.find_fault(0)) == (capability > (9, 0))


@pytest.mark.parametrize(
    ("kernel", "capability", "suits"),
    [("sm_80", (8, 6), True), ("sm_86", (8, 0), False), ("sm_90a", (9, 0), True), ("sm_100a", (10, 3), False),
     ("sm_100", (10, 3), True), ("compute_90", (12, 0), True), ("compute_120", (9, 0), False),
     ("gfx90a", (9, 0), False)],
)  # fmt: skip
def test_kernels_suit_a_card_of_their_generation(
    kernel: str, capability: tuple[int, int], suits: bool
) -> None:
    assert cuda._suits(kernel, capability) is suits


def test_a_driver_that_is_too_old_is_said_and_auto_takes_the_cpu(driver: Driver) -> None:
    driver.is_too_old()
    fault = cuda.find_fault(0)
    assert fault.startswith(
        "The NVIDIA driver on your system is too old (found version 11040); update the driver, or "
    )
    with pytest.raises(UserError, match="is too old"):
        find_device("cuda")
    compute = find_compute("auto", "fp32")
    assert compute.device == torch.device("cpu")
    assert compute.fallbacks == (f"the NVIDIA card is not used: {fault}",)


def test_a_pytorch_without_cuda_is_said_where_there_is_a_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr("shutil.which", lambda _name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device, reason = find_device("auto")
    assert device.type == "cpu"
    assert "is built without CUDA; pip install --force-reinstall torch==" in reason


@pytest.mark.parametrize(
    ("name", "why"),
    [("tpu", "devices are cpu, cuda, cuda:N and mps"), ("cpu:1", "there is only one cpu"), ("cuda:1000", "devices are"),
     ("", "devices are"), ("cuda:-1", "devices are")],
)  # fmt: skip
def test_other_devices_are_refused(name: str, why: str) -> None:
    with pytest.raises(UserError, match=f"but got {name!r}: {why}"):
        find_device(name)


@pytest.mark.parametrize(
    ("free", "total", "jobs", "gib_each"),
    [(4.0, 8, 2, 1.41), (4.0, 8, 3, 0.75), (11.0, 15, 6, 1.25), (75.0, 80, 8, 8.79)],
)
def test_jobs_share_what_the_pack_and_their_contexts_leave(
    driver: Driver, free: float, total: int, jobs: int, gib_each: float
) -> None:
    """An 8 GB card and a T4 with the homework's pack of 3.4 GB on it, and an H100."""
    driver.free, driver.total = int(free * GIB), total * GIB
    fraction = cuda.share_memory(torch.device("cuda", 0), jobs)
    assert fraction * total == pytest.approx(gib_each, abs=0.01)
    assert jobs * (fraction * total * GIB + cuda.CONTEXT_BYTES) <= driver.free


def test_more_jobs_than_memory_are_refused(driver: Driver) -> None:
    driver.free = 4 * GIB
    with pytest.raises(
        UserError,
        match=r"--jobs must leave each job 0.5 GiB .* 4 jobs share 4.0 GiB; use at most 3",
    ):
        cuda.share_memory(torch.device("cuda", 0), 4)
    assert cuda.share_memory(torch.device("cuda", 0), 3) > 0
    driver.free = GIB
    with pytest.raises(UserError, match="free some, or use --device cpu"):
        cuda.share_memory(torch.device("cuda", 0), 2)


def test_a_description_says_what_decides_the_numbers(driver: Driver) -> None:
    assert find_compute("cuda", "auto").describe() == "cuda:0 Tesla T4, fp16"
    assert find_compute("cuda", "fp32").describe() == "cuda:0 Tesla T4, fp32"
    driver.has("NVIDIA A100", (8, 0))
    assert find_compute("cuda", "fp32").describe() == "cuda:0 NVIDIA A100, fp32 in full"
    driver.patch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert find_compute("cuda", "fp32").describe() == "cuda:0 NVIDIA A100, fp32 by TF32"


@pytest.mark.usefixtures("driver")
def test_what_is_tried_next_asks_for_less_each_time() -> None:
    names = [
        (c.device.type, c.precision_name, c.graph) for c in find_compute("auto", "auto").lesser()
    ]
    assert names[:2] == [("cuda", "fp16", False), ("cuda", "fp32", False)]
    assert [name for name, _, _ in names[2:]] == ["cpu"]
    assert [c.precision_name for c in find_compute("auto", "fp32").lesser()][-1] == "fp32", (
        "what was asked for"
    )
    assert [c.device.type for c in find_compute("cuda", "fp32").lesser()] == ["cuda"]
    assert list(Compute().lesser()) == []


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (
            torch.AcceleratorError(
                "CUDA error: device-side assert triggered\nCUDA kernel errors might be ..."
            ),
            True,
        ),
        (RuntimeError("CUDA error: unspecified launch failure"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), False),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            False,
        ),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_a_lost_card_is_told_from_other_errors(error: RuntimeError, is_lost: bool) -> None:
    expected = DeviceLostError if is_lost else type(error)
    with pytest.raises(expected) as caught, cuda.noticing_loss(torch.device("cuda", 0)):
        raise error
    assert str(caught.value).startswith("cuda:0 was lost (" if is_lost else str(error))
    assert "\n" not in str(caught.value)
    with pytest.raises(type(error)), cuda.noticing_loss(torch.device("cpu")):
        raise error


def test_a_card_that_still_answers_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    error = torch.AcceleratorError("CUDA error: invalid configuration argument")
    with pytest.raises(torch.AcceleratorError), cuda.noticing_loss(torch.device("cuda", 0)):
        raise error
    assert asked == [torch.device("cuda", 0)]
    assert cuda.is_device_error(error)


def test_a_point_that_is_beyond_a_card_fails_alone(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise torch.AcceleratorError("CUDA error: invalid configuration argument\nCompile with ...")

    monkeypatch.setattr("speaker.training.train._train", fail)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    result = train(TINY, pack, Protocol(), lambda *_: False, Compute(torch.device("cuda", 0)))
    assert (result.outcome, result.reason) == (
        "failed",
        "cuda:0 cannot do it: CUDA error: invalid configuration argument",
    )


def test_what_auto_could_not_use_is_said_with_what_the_cpu_lacks(driver: Driver) -> None:
    driver.is_too_old()
    for words in (("auto", "fp16"), ("auto", "fp32", 1000)):
        with pytest.raises(
            UserError, match=r"^--(precision|jobs) .*; the NVIDIA card is not used: .* is too old"
        ):
            find_compute(*words)


def test_cards_that_the_user_hides_are_not_there(driver: Driver) -> None:
    driver.patch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_device("auto") == (torch.device("cpu"), "")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES hides all cards; unset it"):
        find_device("cuda")


@pytest.mark.slow
def test_all_shapes_are_traced_as_a_card_runs_them_and_fit_into_12_gb() -> None:
    """In a process of its own: traced tensors of a device
    that is not there can take a process down.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.trace_cuda"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith(f"traced {20 * len(LAYERS)} shapes"), done.stdout


def test_has_card_looks_at_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda _name: None)
    assert cuda.has_card() == Path("/proc/driver/nvidia/version").exists()
