"""The notebooks as files: run one, read its definitions as a module, link to a line of code by its name."""

from __future__ import annotations

import ast
import functools
import os
import time
from pathlib import Path
from types import ModuleType

import nbformat
from nbclient import NotebookClient

from workbook.records import ROOT

FOLDER = ROOT / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


@functools.cache
def notebook_module(name: str, *wanted: str) -> ModuleType:
    """The cells of notebooks/<name>.ipynb that carry one of the tags (imports, design, …) as a module."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    chosen = [cell.source for cell in notebook.cells if set(wanted) & set(tags(cell))]
    if not chosen:
        raise ValueError(f"no cell of {name}.ipynb has one of the tags {', '.join(wanted)}")
    module = ModuleType(name)
    exec(compile("\n\n".join(chosen), f"{name}.ipynb", "exec"), module.__dict__)
    return module


def execute(path: Path, parameters: dict | None = None) -> tuple[nbformat.NotebookNode, float]:
    """Run a notebook from a fresh kernel: with its outputs, and the seconds of its cells, the kernel's start apart.

    `parameters` replace the values of the cell tagged `parameters`.
    """
    notebook = nbformat.read(path, as_version=4)
    if parameters:
        place = next(index for index, cell in enumerate(notebook.cells) if "parameters" in tags(cell))
        lines = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(lines))
    client = NotebookClient(notebook, timeout=None, record_timing=False, resources={"metadata": {"path": FOLDER}})
    with client.setup_kernel(env={**os.environ, "TQDM_DISABLE": "1"}):
        begin = time.perf_counter()
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        seconds = time.perf_counter() - begin
    notebook.metadata.pop("widgets", None)  # a slider needs the kernel that is gone
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    return notebook, seconds


def code_link(path: str, name: str, quote: str = "") -> str:
    """A Markdown link to a function or class by its name, and the one line in it that holds `quote`.

    `path` is a file of the project; of a notebook, the definition that a cell of it holds. ValueError unless
    exactly one line is meant, so that a pointer is never wrong in silence.
    """
    if path.endswith(".ipynb"):
        cells = nbformat.read(ROOT / path, as_version=4).cells
        source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    else:
        source = (ROOT / path).read_text(encoding="utf-8")
    *outer, last = name.split(".")
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds) and node.name == (outer or [last])[0]
    ]
    if outer:
        found = [node for parent in found for node in ast.walk(parent) if isinstance(node, kinds) and node.name == last]
    lines = [line.strip() for node in found for line in source.split("\n")[node.lineno - 1 : node.end_lineno]]
    quoted = [line for line in lines if quote in line] if quote else lines[:1]
    if len(quoted) != 1:
        raise ValueError(f"{len(quoted)} lines of {name} in {path} hold {quote!r}; expected one")
    link = path.removeprefix("notebooks/") if path.endswith(".ipynb") else f"../{path}#{name}"
    return f"[{path.removeprefix('notebooks/')}, {name}]({link}): `{quoted[0]}`"
