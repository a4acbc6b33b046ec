"""Records of runs: the machine, memory, step rows to run rows, intervals, and CSV files in data/runs.

helpers.py hands all of this on; import it from there.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import math
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from scipy.special import stdtrit

ROOT = Path(__file__).resolve().parent.parent


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
                "steps": len(steps),
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

    groups = frame.groupby(["run", "model", "seed"], sort=False)[["tokens", "loss", "step_s", "warm_up"]]
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


def load_runs(name: str = "*") -> pd.DataFrame:
    """The rows of all recorded runs whose file name matches `name` (a pattern, without .csv).

    `file` names each row's file; `source` says "recorded" (data/runs) or "new" (WORKBOOK_OUT, which comes
    before a recorded file of the same name). FileNotFoundError where nothing matches.
    """
    files = {path.stem: (path, "recorded") for path in (ROOT / "data" / "runs").glob(f"{name}.csv")}
    if os.environ.get("WORKBOOK_OUT"):
        files |= {path.stem: (path, "new") for path in output_folder("runs").glob(f"{name}.csv")}
    if not files:
        raise FileNotFoundError(f"no recorded run matches {name!r}; run the notebook that records it first")
    frames = [pd.read_csv(path).assign(file=stem, source=source) for stem, (path, source) in sorted(files.items())]
    return pd.concat(frames, ignore_index=True)
