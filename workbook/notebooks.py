"""The notebooks as files: run one, read its definitions as a module, link to a line of code by its name."""

import ast
import functools
import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

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
    """Run a notebook, `parameters` after its cell of that tag: with outputs, and the seconds of its cells alone."""
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
    """A Markdown link to a function or class, and the one line in it that holds `quote`; ValueError if not one."""
    if path.endswith(".ipynb"):
        cells = nbformat.read(ROOT / path, as_version=4).cells
        source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    else:
        source = (ROOT / path).read_text(encoding="utf-8")
    found: list[Any] = [ast.parse(source)]
    for part in name.split("."):
        inside = [node for parent in found for node in ast.walk(parent)]
        found = [node for node in inside if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == part]
    lines = [line.strip() for node in found for line in source.split("\n")[node.lineno - 1 : node.end_lineno]]
    quoted = [line for line in lines if quote in line] if quote else lines[:1]
    if len(quoted) != 1:
        raise ValueError(f"{len(quoted)} lines of {name} in {path} hold {quote!r}; expected one")
    link = path.removeprefix("notebooks/") if path.endswith(".ipynb") else f"../{path}#{name}"
    return f"[{path.removeprefix('notebooks/')}, {name}]({link}): `{quoted[0]}`"
