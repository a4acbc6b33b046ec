"""Records of runs: CSV files in data/runs, or under WORKBOOK_OUT.

helpers.py hands all of this on; import it from there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent


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
