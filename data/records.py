"""Records of runs: the machine, processes, memory, step rows to run rows, intervals, CSV files, cells of notebooks.

helpers.py hands all of this on; import it from there.
"""

from __future__ import annotations

import ctypes
import datetime
import importlib.metadata
import json
import math
import os
import platform
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit
from torch import distributed, nn

# fmt: off
__all__ = [
    "set_up", "join_processes", "synchronize", "describe_machine", "peak_memory", "keep_memory", "count_parameters",
    "summarise", "intervals", "verdict", "growth_slopes", "save_run", "add_to_run", "load_runs", "notebook_source",
]
# fmt: on

ROOT = Path(__file__).resolve().parent.parent


def set_up(seed: int = 0, threads: int | None = None, device: str = "auto") -> torch.device:
    """Seed PyTorch, set its CPU threads (None: leave them) and return the device to use.

    `device` is "auto", "cpu", "cuda", "cuda:1", "mps", … Where it is missing, a warning says so in one
    line and the CPU is returned. Under torchrun "auto" and "cuda" give each process a GPU of its own. ValueError
    for a name that is no device, fewer than one thread, or more processes than GPUs.
    """
    torch.manual_seed(seed)
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads is {threads}; expected 1 or more, or None to leave it as it is")
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        if int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
            came = f"{os.environ['LOCAL_WORLD_SIZE']} processes for {torch.cuda.device_count()} GPUs"
            raise ValueError(f"{came}; give torchrun --nproc-per-node as many as there are GPUs, or use the device cpu")
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device!r} is not known; use auto, cpu, cuda, cuda:0 or mps") from None
    here = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (chosen.index or 0) >= here.get(chosen.type, 0):
        warnings.warn(f"device {device} is not available here; using the CPU instead", stacklevel=2)
        return torch.device("cpu")
    return chosen


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


def describe_machine(device: torch.device | str = "cpu") -> dict:
    """Device, processor, threads and versions, for a run row."""
    cpu_info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpu_info.read_text()) if cpu_info.exists() else []
    on_gpu = torch.device(device).type == "cuda"
    return {
        "device": str(device),
        "processor": torch.cuda.get_device_name(device) if on_gpu else [*names, platform.machine()][0],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    } | ({"processes": distributed.get_world_size()} if distributed.is_initialized() else {})


def count_parameters(model: nn.Module) -> dict[str, int]:
    """`parameters`: all; `body`: without the tables that token ids index and without the head."""
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    outside = {id(weight) for weight in [*tables, *model.head.parameters()]}
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "body": sum(weight.numel() for weight in model.parameters() if id(weight) not in outside),
    }


def peak_memory(function: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Peak memory in bytes that `function()` takes above what was held before it.

    CUDA: PyTorch's allocator. CPU on Linux: the process's resident set (VmHWM after a reset). NaN where
    neither can be read.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return float(torch.cuda.max_memory_allocated(device) - before)

    def resident(field: str) -> int:
        return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    try:
        ctypes.CDLL(None).malloc_trim(0)  # or freed memory that the process still holds would hide a peak
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM; see Linux's proc(5)
        before = resident("VmRSS")
    except (OSError, AttributeError, TypeError):  # not Linux with glibc
        before = math.nan
    function()
    return before if math.isnan(before) else float(max(resident("VmHWM") - before, 0))


def keep_memory(keep: bool = True) -> bool:
    """Let this process keep the memory of large tensors that it frees, for the next ones (mallopt(3) of glibc).

    By default a block above 32 MiB goes back to the kernel, and each new one costs as many page faults as it has
    pages. False goes back to that. Returns whether the setting took hold; it is not there outside Linux with glibc.
    """
    largest, trim = (2**31 - 1, 2**31 - 1) if keep else (32 * 2**20, 64 * 2**20)
    try:
        c_library = ctypes.CDLL(None)
        return bool(c_library.mallopt(-3, largest) and c_library.mallopt(-1, trim))  # M_MMAP_, M_TRIM_THRESHOLD
    except (OSError, AttributeError, TypeError):
        return False


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Step rows -> one run row for each run, model and seed.

    mean_loss, final_loss (nats); tokens and wall_s of all steps; tokens_per_s is the median over the timed
    steps (warm-up left out), with its quartiles in tokens_per_s_q1 and _q3; timed_steps says how many.
    """

    def run_row(steps: pd.DataFrame) -> pd.Series:
        timed = steps[~steps["warm_up"]]
        q1, median, q3 = (timed["tokens"] / timed["step_s"]).quantile([0.25, 0.5, 0.75])
        return pd.Series(
            {
                "steps": steps["step"].iloc[-1],
                "tokens": steps["tokens"].sum(),
                "mean_loss": steps["loss"].mean(),
                "final_loss": steps["loss"].iloc[-1],
                "wall_s": steps["step_s"].sum(),
                "timed_steps": len(timed),
                "tokens_per_s": median,
                "tokens_per_s_q1": q1,
                "tokens_per_s_q3": q3,
            },
            dtype=object,
        )

    groups = frame.groupby(["run", "model", "seed"], sort=False)[["step", "tokens", "loss", "step_s", "warm_up"]]
    return groups.apply(run_row).infer_objects().reset_index()


def intervals(frame: pd.DataFrame, column: str, by: str = "model", level: float = 0.95) -> pd.DataFrame:
    """n, mean and Student-t interval (low, high) of `column` for each value of `by`, over its rows.

    One row alone has no spread: its interval is the whole line.
    """
    groups = frame.groupby(by, sort=False)[column]
    table = groups.agg(n="count", mean="mean", std="std")
    freedom = (table["n"] - 1).clip(lower=1)
    half = stdtrit(freedom, (1 + level) / 2) * table.pop("std") / table["n"] ** 0.5
    half = half.where(table["n"] > 1, math.inf)
    return table.assign(low=table["mean"] - half, high=table["mean"] + half)


def verdict(table: pd.DataFrame, *, higher_is_better: bool) -> str:
    """The name whose interval lies apart from all others on the better side, else "no difference: …".

    `table` is what `intervals` returns.
    """
    sign = 1 if higher_is_better else -1
    best = (sign * table["mean"]).idxmax()
    low, high = table.loc[best, ["low", "high"]]
    level = table.index[(table["low"] <= high) & (table["high"] >= low)]
    return best if len(level) == 1 else "no difference: " + ", ".join(level)


def growth_slopes(growth: pd.DataFrame) -> pd.Series:
    """Slope of log(step_s) against log(value) for each axis, model and round: 1 is a time in proportion."""

    def fit(rows: pd.DataFrame) -> float:
        return np.polyfit(np.log(rows["value"]), np.log(rows["step_s"]), 1)[0]

    groups = growth.groupby(["axis", "model", "round"], sort=False)[["value", "step_s"]]
    return groups.apply(fit).rename("slope")


def output_folder(kind: str) -> Path:
    """data/runs or figures, or the folder of that name under WORKBOOK_OUT where that is set."""
    elsewhere = os.environ.get("WORKBOOK_OUT")
    folder = Path(elsewhere) / kind if elsewhere else ROOT / {"runs": "data/runs", "figures": "figures"}[kind]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_run(frame: pd.DataFrame, name: str) -> Path:
    """Write step rows or run rows as data/runs/<name>.csv (or under WORKBOOK_OUT), numbers to 6 digits."""
    path = output_folder("runs") / f"{name}.csv"
    partial = path.with_suffix(".partial")
    frame.to_csv(partial, index=False, float_format="%.6g", lineterminator="\n")
    partial.replace(path)  # a reader never sees half a file
    return path


def add_to_run(frame: pd.DataFrame, name: str) -> Path:
    """Like `save_run`, but rows of the file whose model and seed are not in the frame stay."""
    path = output_folder("runs") / f"{name}.csv"
    if path.exists():
        kept = pd.read_csv(path)
        new = set(zip(frame["model"], frame["seed"], strict=True))
        kept = kept[[key not in new for key in zip(kept["model"], kept["seed"], strict=True)]]
        frame = pd.concat([kept, frame]) if len(kept) else frame
    return save_run(frame, name)


def load_runs(name: str = "*", *, recorded_only: bool = False) -> pd.DataFrame:
    """The rows of all recorded runs whose file name matches `name` (a pattern, without .csv).

    `file` names each row's file; `source` says "recorded" (data/runs) or "new" (WORKBOOK_OUT, which comes
    before a recorded file of the same name, unless `recorded_only`). FileNotFoundError where nothing matches.
    """
    files = {path.stem: (path, "recorded") for path in (ROOT / "data" / "runs").glob(f"{name}.csv")}
    if os.environ.get("WORKBOOK_OUT") and not recorded_only:
        files |= {path.stem: (path, "new") for path in output_folder("runs").glob(f"{name}.csv")}
    if not files:
        raise FileNotFoundError(f"no recorded run matches {name!r}; run the notebook that records it first")
    frames = [pd.read_csv(path).assign(file=stem, source=source) for stem, (path, source) in sorted(files.items())]
    return pd.concat(frames, ignore_index=True)


def notebook_source(name: str, *tags: str) -> str:
    """The code cells of notebooks/<name>.ipynb that carry one of the tags, as one text of Python."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    chosen = [cell for cell in cells if set(tags) & set(cell["metadata"].get("tags", []))]
    return "\n\n".join("".join(cell["source"]) for cell in chosen)
