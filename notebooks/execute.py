"""`python -m notebooks.execute [name …]`: run all notebooks, or those named, in place, and record their seconds.

Runs, figures and outputs are then those of this machine. `data/runs/notebooks.csv` keeps the seconds of all cells.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
from nbclient import NotebookClient
from tqdm.auto import tqdm

from data.records import describe_machine, load_runs, save_run

FOLDER = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(path: Path) -> float:
    """Run a notebook from a fresh kernel and keep its outputs; its seconds, without the start of the kernel."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=None, record_timing=False, resources={"metadata": {"path": FOLDER}})
    with client.setup_kernel():
        begin = time.perf_counter()
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        seconds = time.perf_counter() - begin
    notebook.metadata.pop("widgets", None)  # a slider needs the kernel that is gone
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    nbformat.write(notebook, path)
    return seconds


def main(names: list[str]) -> None:
    """Run the notebooks whose file names begin with one of the names, or all of them."""
    paths = sorted(FOLDER.glob("[0-9]*.ipynb"))
    chosen = [path for path in paths if not names or path.stem.startswith(tuple(names))]
    if not chosen:
        sys.exit(f"no notebook is called {', '.join(names)}; there are {', '.join(path.stem for path in paths)}")
    os.environ["TQDM_DISABLE"] = "1"  # in the kernels
    for path in tqdm(chosen, unit="notebook", disable=False):
        record(path.stem, execute(path))


def record(name: str, seconds: float) -> None:
    """Enter a notebook's seconds among those of the others."""
    new = pd.DataFrame([{"notebook": name, "seconds": seconds}]).assign(**describe_machine())
    try:
        kept = load_runs("notebooks").drop(columns=["file", "source"])
        new = pd.concat([kept[kept["notebook"] != name], new]).sort_values("notebook")
    except FileNotFoundError:  # the first time
        pass
    save_run(new, "notebooks")


if __name__ == "__main__":
    main(sys.argv[1:])
