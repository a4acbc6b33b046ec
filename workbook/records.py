"""Records of runs: step rows to run rows, intervals and verdicts, claims, and the CSV files that keep the rows.

data/runs is the record that comes with the workbook; only `python -m workbook record` writes there. What a reader
runs goes to out/, or to the folder that WORKBOOK_OUT names.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from filelock import FileLock
from scipy.special import stdtrit

from workbook import ROOT
from workbook.config import BatchConfig, ModelConfig, TextConfig, TrainingConfig, text_columns
from workbook.files import write_whole

RECORD = ROOT / "data" / "runs"
ENDINGS = ("", "_summary", "_positions", "_samples")  # of the files of a run that the command line records
LABELS = ("run", "model", "way", "setting", "text", "token", "data_hash")  # text, even where all of it are digits
OPTIONS = text_columns(TextConfig, ModelConfig, BatchConfig, TrainingConfig)  # in the rows of the command line
NO_INTERVAL = "one seed: no interval"


def output_folder(kind: str = "") -> Path:
    """Where a reader's "runs" or "figures" go: a folder in out/, or in the one that WORKBOOK_OUT names."""
    folder = Path(os.environ.get("WORKBOOK_OUT") or ROOT / "out") / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def short(path: Path) -> str:
    """A path as seen from the workbook's folder, where it lies in it."""
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


# ---------------------------------------------------------------- files


def run_file(folder: Path, name: str) -> Path:
    """The file of a run. ValueError for a name that leads out of the folder, or is no file's."""
    if not name or Path(name).name != name or name.startswith(".") or "\0" in name or len(name.encode()) > 200:
        few = "200 bytes or fewer, no /, no dot in front"
        raise ValueError(f"run name {name[:80]!r} is none; expected {few}, as it goes to {short(folder)}")
    return folder / f"{name}.csv"


def check_name(name: str, keys: Sequence[str] = ("model", "seed")) -> None:
    """ValueError for a run name whose files (`ENDINGS`) cannot be added to, or hold other things."""
    folder = output_folder("runs")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{short(folder)} cannot be written to; name another folder in WORKBOOK_OUT")
    if name.endswith(ENDINGS[1:]):
        raise ValueError(f"run name {name!r} ends as one of a run's own tables does; choose another")
    for path in (run_file(folder, f"{name}{ending}" if name else name) for ending in ENDINGS):
        if (RECORD / path.name).exists() and folder == ROOT / "out" / "runs":
            raise ValueError(f"run name {name!r} is one of the record in {short(RECORD)}; choose another")
        if path.exists() and (lacks := set(keys) - {*read_rows(path)}):
            raise ValueError(
                f"{short(path)} has no column {', '.join(sorted(lacks))}: no run to add to; choose another"
            )


def read_rows(path: Path) -> pd.DataFrame:
    """The rows of a run's file. Labels such as 007, 1e3, NA, None and none at all come back as they were written."""
    columns = pd.read_csv(path, nrows=0).columns
    texts = LABELS + (OPTIONS if "models" in columns else ())
    rows = pd.read_csv(path, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=[""])
    return rows.fillna({"run": "", "model": ""})


def save_run(frame: pd.DataFrame, name: str) -> Path:
    """Write step rows or run rows as out/runs/<name>.csv, numbers to 6 digits; the path."""
    options = {"index": False, "float_format": "%.6g", "lineterminator": "\n"}
    return write_whole(run_file(output_folder("runs"), name), lambda path: frame.to_csv(path, **options))


def add_to_run(frame: pd.DataFrame, name: str, keys: tuple[str, ...] = ("model", "seed")) -> Path:
    """Like `save_run`, but the file's rows whose keys are not in the frame stay; one process after the other."""
    path = run_file(output_folder("runs"), name)
    with FileLock(path.with_name(".lock")):
        if path.exists():
            before = read_rows(path)
            new = set(frame[list(keys)].itertuples(index=False, name=None))
            stays = [key not in new for key in before[list(keys)].itertuples(index=False, name=None)]
            frame = pd.concat([before[stays], frame]) if any(stays) else frame
        return save_run(frame, name)


def load_runs(name: str, *, own: bool = False) -> pd.DataFrame:
    """The rows of the recorded run of that name (data/runs/<name>.csv), or of the reader's `own` (out/runs).

    FileNotFoundError where there is none; it names those that are there.
    """
    folder = output_folder("runs") if own else RECORD
    path = run_file(folder, name)
    if not path.exists():
        there = ", ".join(sorted(other.stem for other in folder.glob("*.csv"))) or "none"
        advice = "run the notebook that makes it" if own else "`python -m workbook record` lists what makes which"
        raise FileNotFoundError(f"no run {name!r} in {short(folder)}; there are {there}; {advice}")
    return read_rows(path)


def load_own_runs(name: str) -> pd.DataFrame:
    """The reader's own run of that name where there is one, else the recorded one."""
    return load_runs(name, own=run_file(output_folder("runs"), name).exists())


# ---------------------------------------------------------------- rows and verdicts


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Step rows -> one run row for each run, model and seed.

    steps and tokens (real targets); mean_loss (weighted by tokens) and final_loss, in nats; wall_s of all steps;
    tokens_per_s is the median over the timed rows (the first steps left out), with its quartiles in tokens_per_s_q1
    and _q3; timed_steps says how many steps these rows sum.
    """

    def run_row(rows: pd.DataFrame) -> pd.Series:
        timed = rows[rows["timed"]]
        q1, median, q3 = (timed["tokens"] / timed["step_s"]).quantile([0.25, 0.5, 0.75])
        return pd.Series(
            {
                "steps": rows["steps"].sum(),
                "tokens": rows["tokens"].sum(),
                "mean_loss": (rows["loss"] * rows["tokens"]).sum() / rows["tokens"].sum(),
                "final_loss": rows["loss"].iloc[-1],
                "wall_s": rows["step_s"].sum(),
                "timed_steps": timed["steps"].sum(),
                "tokens_per_s": median,
                "tokens_per_s_q1": q1,
                "tokens_per_s_q3": q3,
            },
            dtype=object,
        )

    groups = frame.groupby(["run", "model", "seed"], sort=False)[["steps", "tokens", "loss", "step_s", "timed"]]
    return groups.apply(run_row).infer_objects().reset_index()


def intervals(frame: pd.DataFrame, column: str, by: str = "model", level: float = 0.95) -> pd.DataFrame:
    """n, mean and Student-t interval (low, high) of `column` for each value of `by`, over its rows.

    One row alone has no spread, so its low and high are NaN.
    """
    table = frame.groupby(by, sort=False)[column].agg(n="count", mean="mean", std="std")
    half = stdtrit((table["n"] - 1).clip(lower=1), (1 + level) / 2) * table.pop("std") / table["n"] ** 0.5
    return table.assign(low=table["mean"] - half, high=table["mean"] + half)


def verdict(table: pd.DataFrame, *, higher_is_better: bool) -> str:
    """The name whose interval lies apart from all others on the better side, else "no difference: …".

    `table` is what `intervals` returns. Where a row has no interval, so has the verdict: "one seed: no interval".
    """
    if table[["low", "high"]].isna().any(axis=None):
        return NO_INTERVAL
    sign = 1 if higher_is_better else -1
    best = (sign * table["mean"]).idxmax()
    low, high = table.loc[best, ["low", "high"]]
    level = table.index[(table["low"] <= high) & (table["high"] >= low)]
    return best if len(level) == 1 else "no difference: " + ", ".join(level)


def claim(sentence: str, holds: bool) -> None:
    """Print a finding with what this run says of it. A law is asserted, a finding is claimed: the run goes on."""
    print(f"{'holds' if holds else 'does not hold here'}: {sentence}")
