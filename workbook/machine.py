"""The machine: device, threads, processes, clock, memory, and what a run row says of them."""

import ctypes
import datetime
import math
import os
import platform
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from workbook import fast

CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTIONS = ["avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16"]  # of x86 and of ARM; bf16: bfloat16


def set_up(seed: int = 0, threads: int | None = None, device: str = "auto", large_pages: bool = True) -> torch.device:
    """Seed PyTorch, set its CPU threads and pages; return the device, or the CPU with a warning where it is missing."""
    fast.use_large_pages(large_pages)
    torch.manual_seed(seed)
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads is {threads}; expected 1 or more, or None to leave it as it is")
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():  # torchrun: a GPU a process
        if int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
            came = f"{os.environ['LOCAL_WORLD_SIZE']} processes for {torch.cuda.device_count()} GPUs"
            raise ValueError(f"{came}; give torchrun --nproc-per-node as many as there are GPUs, or use the device cpu")
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device!r} is not known; use auto, cpu, cuda, cuda:0 or mps") from None
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (chosen.index or 0) < present.get(chosen.type, 0):
        return chosen
    warnings.warn(f"device {device} is not available here; using the CPU instead", stacklevel=2)
    return torch.device("cpu")


def join_processes(device: torch.device) -> int:
    """Under torchrun, join the other processes (nccl on GPUs, else gloo); this one's rank, 0 for a process alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=datetime.timedelta(days=1))  # the first may measure for long
    return distributed.get_rank() if distributed.is_initialized() else 0


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(function: Callable, *inputs, device: torch.device | str = "cpu") -> tuple[float, Any]:
    """The seconds that `function(*inputs)` takes on the device, and what it returns. The one clock of the workbook."""
    synchronize(device := torch.device(device))
    begin = time.perf_counter()
    result = function(*inputs)
    synchronize(device)
    return time.perf_counter() - begin, result


def describe_machine(device: torch.device | str = "cpu") -> dict:
    """Device, processor, instruction sets, threads, versions and speed settings, for a run row."""
    lines = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    names, flags = (re.findall(rf"{key}\s*: (.+)", lines) for key in ("model name", "(?:flags|Features)"))
    known = [name for name in INSTRUCTIONS if name in " ".join(flags[:1]).split()]
    on_gpu = torch.device(device).type == "cuda"
    processor = torch.cuda.get_device_name(device) if on_gpu else [*names, platform.machine()][0]
    row = {"device": str(device), "processor": processor, "instructions": "" if on_gpu else " ".join(known)}
    row |= {"threads": torch.get_num_threads()}
    row |= {"python": platform.python_version(), "torch": str(torch.__version__)}
    row |= {"processes": distributed.get_world_size()} if distributed.is_initialized() else {}
    return row | fast.settings()


def peak_memory(function: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Peak bytes that `function()` takes above what was held before, or NaN: PyTorch's on CUDA, else the process's."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return float(torch.cuda.max_memory_allocated(device) - before)
    status, highest = Path("/proc/self/status"), r"VmHWM:\s+(\d+)"  # kB
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or freed memory that the process still holds would hide a peak
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM falls to what is held now; see Linux's proc(5)
        before = int(re.findall(highest, status.read_text())[0])
    except (OSError, AttributeError, TypeError, IndexError):  # not Linux with glibc
        function()
        return math.nan
    function()
    return 1024.0 * (int(re.findall(highest, status.read_text())[0]) - before)
