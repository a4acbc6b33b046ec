"""What every notebook of the workbook keeps to. Whether its outputs are true is nbval's to say."""

import re

import nbformat
import pytest
from oracles import ROOT

from helpers import load_runs

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def tags(cell):
    return set(cell.metadata.get("tags", []))


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_notebooks_are_there():
    assert [path.stem for path in PATHS] == [
        "01_sanity_check",
        "02_kgram_architectures",
        "03_top_p_sampling",
        "04_tinystories",
        "05_cost_of_a_token",
        "06_interview",
    ]


def test_cells_were_run_in_order_without_errors(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


def test_two_thirds_of_the_cells_are_compared(notebook):
    cells = code_cells(notebook)
    ignored = [cell for cell in cells if tags(cell) & {"nbval-ignore-output", "nbval-skip"}]
    assert len(ignored) <= len(cells) / 3


def test_a_claim_follows_each_training(notebook):
    """Between a cell that trains and the next one that does, a compared cell asserts something."""
    waiting = None
    for cell in code_cells(notebook):
        ignored = "nbval-ignore-output" in tags(cell)
        if ignored and re.search(r"\b(train|compare|run_designs)\(", cell.source):
            assert waiting is None, waiting
            waiting = cell.source[:80]
        elif not ignored and "assert" in cell.source:
            waiting = None
    assert waiting is None, waiting


def test_opening_and_closing(notebook):
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    assert first.startswith("# ") and "Colab" in first and "CPU time" in first
    assert "Exercises" in last and last.count("<details>") == 3
    assert any("parameters" in tags(cell) for cell in notebook.cells)
    assert "nbval-skip" in tags(code_cells(notebook)[0]) and "google.colab" in code_cells(notebook)[0].source


def test_links_between_notebooks_lead_somewhere(notebook):
    for cell in notebook.cells:
        for target in re.findall(r"\]\(([^)#]+\.ipynb)\)", cell.source):
            assert (ROOT / "notebooks" / target).exists(), target


def test_first_and_last_cell_lead_to_the_neighbours(notebook):
    place = [nbformat.read(path, as_version=4).cells[0].source for path in PATHS].index(notebook.cells[0].source)
    neighbours = [path.name for path in PATHS[max(place - 1, 0) : place + 2] if path != PATHS[place]]
    for cell in (notebook.cells[0], notebook.cells[-1]):
        assert re.findall(r"\]\(([^)#]+\.ipynb)\)", cell.source) == neighbours


def test_the_time_that_it_states_was_measured(notebook):
    title = re.match(r"# (\d) ", notebook.cells[0].source)[1]
    stated = float(re.search(r"CPU time: about (\d+) seconds", notebook.cells[0].source)[1])
    times = load_runs("notebooks", recorded_only=True)
    (seconds,) = times.loc[times["notebook"].str.startswith(f"0{title}"), "seconds"]
    assert 0.7 * stated < seconds < 1.3 * stated


def test_no_machine_is_named(notebook):
    text = nbformat.writes(notebook)
    assert not re.search(r"/(home|tmp|root|Users|work)/[a-z]", text)


def test_every_pointer_of_the_interview_quotes_the_line_that_it_names():
    notebook = nbformat.read(ROOT / "notebooks" / "06_interview.ipynb", as_version=4)
    outputs = [
        output.data.get("text/markdown", "") for c in code_cells(notebook) for output in c.outputs if "data" in output
    ]
    pointers = [found for text in outputs for found in re.findall(r"\[(\S+), (line|cell) (\d+)\]\(\S+\): `(.+)`", text)]
    assert len(pointers) >= 24
    for path, kind, number, quoted in pointers:
        if kind == "line":
            line = (ROOT / path).read_text(encoding="utf-8").splitlines()[int(number) - 1]
            assert line.strip() == quoted, f"{path}:{number} has moved: execute notebook 06 again"
        else:
            cell = code_cells(nbformat.read(ROOT / "notebooks" / path, as_version=4))[int(number) - 1]
            assert quoted in [line.strip() for line in cell.source.splitlines()], (path, number)


def test_the_interview_has_the_notes_questions_and_twenty_more():
    notebook = nbformat.read(ROOT / "notebooks" / "06_interview.ipynb", as_version=4)
    questions = [re.search(r"^### (\d+)\. .+\?", cell.source, re.M) for cell in notebook.cells]
    assert [int(found[1]) for found in questions if found] == list(range(1, 27))
