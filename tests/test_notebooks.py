"""What every notebook of the workbook keeps to. Whether its outputs are true is nbval's to say."""

import ast
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from oracles import ROOT

from workbook import notebooks
from workbook.records import load_runs

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
        "07_bug_museum",
    ]


def test_cells_were_run_in_order_without_errors(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


def test_two_thirds_of_the_cells_are_compared(notebook):
    cells = code_cells(notebook)
    ignored = [cell for cell in cells if tags(cell) & {"nbval-ignore-output", "nbval-skip"}]
    assert len(ignored) <= len(cells) / 3


def test_an_assertion_or_a_claim_follows_each_training(notebook):
    """Between a cell that trains and the next one that does, a compared cell says what must hold, or what did."""
    waiting = None
    for cell in code_cells(notebook):
        ignored = "nbval-ignore-output" in tags(cell)
        if ignored and re.search(r"\b(train|compare|run_designs)\(", cell.source):
            assert waiting is None, waiting
            waiting = cell.source[:80]
        elif not ignored and re.search(r"\bassert\b|\bclaim\(", cell.source):
            waiting = None
    assert waiting is None, waiting


def test_opening_and_closing(notebook):
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    assert first.startswith("# ") and "Colab" in first and "CPU time" in first
    assert "Exercises" in last and last.count("<details>") == 3
    assert any("parameters" in tags(cell) for cell in notebook.cells)
    assert "google.colab" in code_cells(notebook)[0].source


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
    times = load_runs("notebooks")
    (seconds,) = times.loc[times["notebook"].str.startswith(f"0{title}"), "seconds"]
    assert 0.7 * stated < seconds < 1.3 * stated


def test_no_machine_is_named(notebook):
    text = nbformat.writes(notebook)
    assert not re.search(r"/(home|tmp|root|Users|work)/[a-z]", text)


def pointers_of_the_interview():
    """What notebook 06 shows as links to code: file, name, address and the quoted line of each."""
    notebook = nbformat.read(ROOT / "notebooks" / "06_interview.ipynb", as_version=4)
    data = [output.data for cell in code_cells(notebook) for output in cell.outputs if "data" in output]
    texts = [entry.get("text/markdown", "") for entry in data]
    return [found for text in texts for found in re.findall(r"\[(\S+), ([\w.]+)\]\((\S+)\): `(.+)`", text)]


def path_of(file):
    """From the root; a notebook is named without its folder."""
    return f"notebooks/{file}" if file.endswith(".ipynb") else file


def definition(path, name):
    """The stripped lines of a function, method or class of a file of Python or of a notebook."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        source = "\n".join(cell.source for cell in code_cells(nbformat.reads(source, as_version=4)))
    scope = ast.parse(source)
    for part in name.split("."):
        (scope,) = (node for node in ast.walk(scope) if getattr(node, "name", None) == part)
    return [line.strip() for line in ast.get_source_segment(source, scope).splitlines()]


def test_every_pointer_of_the_interview_quotes_a_line_of_what_it_names():
    pointers = pointers_of_the_interview()
    assert len(pointers) >= 24
    for file, name, address, quoted in pointers:
        assert quoted in definition(ROOT / path_of(file), name), (file, name)
        assert (ROOT / "notebooks" / address.partition("#")[0]).resolve() == ROOT / path_of(file)


def test_a_line_more_above_the_code_changes_no_pointer(tmp_path, monkeypatch):
    pointers = pointers_of_the_interview()
    for file, *_ in pointers:
        copy = tmp_path / path_of(file)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path_of(file), copy)
        if copy.suffix == ".py":
            copy.write_text("# one line more\n" + copy.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    for file, name, address, quoted in pointers:
        assert notebooks.code_link(path_of(file), name, quoted) == f"[{file}, {name}]({address}): `{quoted}`"


def test_a_pointer_to_no_line_or_to_several_says_so():
    assert notebooks.code_link("helpers.py", "rotate").startswith("[helpers.py, rotate](../helpers.py#rotate): `def ")
    for name, quote, says in (
        ("rotate", "no such line", "0 lines"),
        ("rotate", "x", "lines of"),
        ("absent", "", "0 lines"),
    ):
        with pytest.raises(ValueError, match=f"{says}.*expected one"):
            notebooks.code_link("helpers.py", name, quote)


def test_the_definitions_of_a_notebook_are_a_module():
    module = notebooks.notebook_module("02_kgram_architectures", "imports", "export")
    assert module.EmbeddingMLP.__doc__ and not hasattr(module, "DESIGNS")
    with pytest.raises(ValueError, match="no cell of 02_kgram_architectures.ipynb has one of the tags absent"):
        notebooks.notebook_module("02_kgram_architectures", "absent")


def test_a_notebook_runs_with_other_parameters(tmp_path, monkeypatch):
    cells = ["import os", "WIDTH = 3", "print(WIDTH, os.environ['TQDM_DISABLE'])"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, tmp_path / "small.ipynb")
    for parameters, printed in ((None, "3 1"), ({"WIDTH": 7}, "7 1")):
        done, seconds = notebooks.execute(tmp_path / "small.ipynb", parameters)
        assert done.cells[-1].outputs[0].text.strip() == printed and seconds > 0
    assert nbformat.read(tmp_path / "small.ipynb", as_version=4).cells[1].source == "WIDTH = 3"


def test_a_notebook_runs_on_a_machine_without_a_network(tmp_path):
    """Not even a loopback interface: the kernel is spoken to through files."""
    alone = ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    command = [*alone, sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "01_sanity_check.ipynb"]
    command += ["--output-dir", str(tmp_path), "--KernelManager.transport=ipc", f"--KernelManager.ip={tmp_path}/kernel"]
    done = subprocess.run(command, cwd=ROOT / "notebooks", capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "01_sanity_check.ipynb").exists()


def test_no_fault_of_the_museum_has_become_a_no_op():
    """Its check holds without it, and says what it found with it in place."""
    museum = notebooks.notebook_module("07_bug_museum", "imports", "export")
    assert len(museum.FAULTS) == 15
    for name, fault in museum.FAULTS.items():
        assert museum.caught(fault.check) is None, name
        with museum.mock.patch(fault.target, fault.wrong):
            assert museum.caught(fault.check), name
        assert museum.caught(fault.check) is None, name


def test_no_cell_is_longer_than_a_class(notebook):
    cells = [cell for cell in code_cells(notebook) if "imports" not in tags(cell)]
    assert max(len(cell.source.splitlines()) for cell in cells) <= 45


def test_the_interview_has_the_notes_questions_and_twenty_more():
    notebook = nbformat.read(ROOT / "notebooks" / "06_interview.ipynb", as_version=4)
    questions = [re.search(r"^### (\d+)\. .+\?", cell.source, re.M) for cell in notebook.cells]
    assert [int(found[1]) for found in questions if found] == list(range(1, 27))
