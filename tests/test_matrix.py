"""Every notebook with other parameters, texts and designs: no cell fails, no printed sentence contradicts its run.

Tier `matrix`: `python -m pytest -m matrix tests/test_matrix.py`.
"""

import re
import shutil
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from oracles import ROOT
from scipy import stats

from workbook.notebooks import execute
from workbook.records import NO_INTERVAL

pytestmark = pytest.mark.matrix

GERMAN = [
    f"Es war einmal {who}, {what} in {where} wohnte.\nEines Tages sagte {who}: „Ich gehe zum {goal}, ehe es regnet.“"
    for who in ("ein Fuchs", "eine Amsel", "ein Müller", "die Großmutter", "ein Bär", "eine Maus")
    for what, where, goal in (
        ("der", "einer Höhle", "Bäcker"),
        ("die", "einem Baum", "Fluss"),
        ("das", "der Mühle", "Markt"),
        ("der", "einem Häuschen", "Bahnhof"),
        ("die", "der Küche", "Feld"),
    )
]
LINES = [f"{a} plus {b} makes {a + b}" for a in range(1, 21) for b in range(1, 11)]
TEXTS = {"german": "\n\n".join(GERMAN), "lines": "\n".join(LINES)}
MINE = '''
class MeanMLP(EmbeddingMLP):
    """The mean of the k embeddings, whatever their order."""

    def __init__(self, vocab_size, k, embed_size, hidden_size, num_layers):
        super().__init__(vocab_size, 1, embed_size, hidden_size, num_layers)

    def forward(self, contexts):  # (N, k) -> (N, H)
        return self.mlp(self.embedding(contexts).mean(1))


DESIGNS["mine"] = MeanMLP
'''


@pytest.fixture
def run(tmp_path, monkeypatch, workbook_out):
    """Execute a notebook with these parameters; {german} and {lines} name texts, `threads` sets OpenMP's."""

    def run(number, parameters, cell=""):
        for name, text in TEXTS.items():
            (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
        parameters = {
            key: value.format(german=tmp_path / "german.txt", lines=tmp_path / "lines.txt")
            if isinstance(value, str)
            else value
            for key, value in parameters.items()
        }
        monkeypatch.setenv("OMP_NUM_THREADS", str(parameters.pop("threads", 2)))
        (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
        if cell:
            notebook = nbformat.read(path, as_version=4)
            place = next(i for i, each in enumerate(notebook.cells) if "DESIGNS = {" in each.source)
            notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(cell))
            nbformat.write(notebook, path := tmp_path / path.name)
        return execute(path, parameters)[0]

    return run


def outputs(notebook):
    """All that the code cells show as text, cell by cell."""
    texts = []
    for cell in notebook.cells:
        parts = []
        for output in cell.get("outputs", []):
            if output.get("name") != "stderr":
                parts.append(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
        texts.append("\n".join(parts))
    return texts


SMALL = {
    "01": {"EMBED_SIZE": 16, "HIDDEN_SIZE": 16},
    "02": {"SEEDS": 2, "STEPS": 5, "ROUNDS": 1, "EMBED_SIZE": 16, "HIDDEN_SIZE": 32},
    "03": {"STEPS": 40, "SAMPLES": 32, "GROUP": 8, "DRAWS": 100},
    "05": {"ROUNDS": 1},
    "04": {"TRAIN": 300, "HELD_OUT": 60, "BUDGET": 1, "STEPS": 40},
    "07": {"STEPS": 20, "SEEDS": 3},
}
CASES = [
    ("01", {"BLOCK_SIZE": 64}),
    ("01", {"EMBED_SIZE": 32, "HIDDEN_SIZE": 32}),
    ("01", {"TEXT": "{german}"}),
    ("01", {"TEXT": "{lines}", "threads": 1}),
    ("01", {"SEED": 1, "BATCH_SIZE": 7, "PROMPT": "0 2 4"}),
    ("02", {"SEEDS": 1}),
    ("02", {"SEEDS": 2, "STEPS": 40}),
    ("02", {"HIDDEN_SIZE": 64}),
    ("02", {"BLOCK_SIZE": 64}),
    ("02", {"LEARNING_RATE": 1e-2}),
    ("02", {"K": 1, "NUM_LAYERS": 0}),
    ("02", {"K": 4, "BATCH_SIZE": 5}),
    ("02", {"TEXT": "{german}"}),
    ("02", {"TEXT": "{lines}", "threads": 1}),
    ("02", {"STORIES": "{german}"}),
    ("02", {"TEXT": "{german}", "SEPARATOR": "lines", "SEEDS": 1}),
    ("02", {"STORIES": "builtin", "threads": 1}),
    ("03", {"SEED": 1}),
    ("03", {"SAMPLES": 8}),
    ("03", {"SAMPLES": 16, "GROUP": 16, "SEED": 2}),
    ("03", {"SETTINGS": {"greedy": None, "p = 0.7": 0.7}}),
    ("03", {"SETTINGS": {"p = 0.3": 0.3, "p = 0.6": 0.6, "p = 1.0": 1.0}, "PROMPT": "Zoe"}),
    ("03", {"TEXT": "{german}", "threads": 1}),
    ("03", {"TEXT": "{lines}"}),
    ("04", {"SEED": 1}),
    ("04", {"K": 1, "BLOCK": 64}),
    ("04", {"K": 6, "PROMPT": "The"}),
    ("04", {"TEXT": "{german}"}),
    ("04", {"TEXT": "{german}", "SEPARATOR": "lines", "PROMPT": "Eines Tages"}),
    ("04", {"TEXT": "{lines}", "threads": 1}),
    ("04", {"TEXT": "small", "SEPARATOR": "lines"}),
    ("05", {"TEXT": "{german}"}),
    ("05", {"TEXT": "{lines}", "threads": 1}),
    ("06", {"SEED": 1}),
    ("06", {"OWN": True, "threads": 1}),
    ("07", {"SEED": 1}),
    ("07", {"TEXT": "{german}"}),
    ("07", {"TEXT": "{lines}", "threads": 1}),
]


def lowest(values):
    """The verdict on losses by model, counted anew: a name, "no difference: …" or "one seed: no interval"."""
    if values.groupby(level=0).size().min() < 2:
        return NO_INTERVAL
    ends = {}
    for name, own in values.groupby(level=0, sort=False):
        ends[name] = stats.t.interval(0.95, len(own) - 1, own.mean(), stats.sem(own))
    best = min(ends, key=lambda name: sum(ends[name]))
    level = [name for name in ends if ends[name][0] <= ends[best][1] and ends[name][1] >= ends[best][0]]
    return best if level == [best] else "no difference: " + ", ".join(level)


def check_verdicts(text, folder):
    """What notebook 02 says of its losses is what its records show."""
    for sentence, name, column in (
        (r"^mean loss over \d+ steps: (.+)$", "designs", "mean_loss"),
        (r"^validation loss after \d+ steps: (.+)$", "stories", "validation_loss"),
    ):
        losses = pd.read_csv(folder / "runs" / f"kgram_{name}_summary.csv").set_index("model")[column]
        assert re.search(sentence, text, re.M)[1] == lowest(losses), sentence


@pytest.mark.parametrize("number, changed", CASES, ids=lambda value: str(value))
def test_a_notebook_runs_and_says_what_its_run_shows(run, workbook_out, number, changed):
    shown = outputs(run(number, SMALL.get(number, {}) | changed))
    text = "\n".join(shown)
    assert not re.search(r"\b-?inf\b|\bnan to\b", text)
    if number == "02":
        check_verdicts(text, workbook_out)
    if changed.get("SEEDS") == 1:
        assert NO_INTERVAL in text
        own = [line for line in text.splitlines() if "record" not in line]
        assert not any("no difference" in line for line in own)


@pytest.mark.parametrize("changed", [{}, {"SEEDS": 1}, {"TEXT": "{german}"}], ids=str)
def test_a_fourth_design_is_in_every_table_and_record(run, workbook_out, changed):
    notebook = run("02", SMALL["02"] | changed, cell=MINE)
    for name in ("designs", "designs_summary", "speed", "floors", "floors_summary", "stories", "stories_summary"):
        models = pd.read_csv(workbook_out / "runs" / f"kgram_{name}.csv")["model"].unique()
        assert "mine" in models, name
    for cell in notebook.cells:
        tables = [output.data["text/plain"] for output in cell.get("outputs", []) if "data" in output]
        listed = [table for table in tables if "one-hot" in table and "embedding" in table and "rescaled" not in table]
        assert all("mine" in table for table in listed) or "COMPLETE" in cell.source, cell.source
    for figure in ("kgram_side_by_side", "kgram_parameters", "kgram_speed", "kgram_floors"):
        assert "mine" in (workbook_out / "figures" / f"{figure}.svg").read_text(encoding="utf-8"), figure
    decided = "\n".join(outputs(run("06", {"OWN": True})))
    assert re.search(r"^mine: another is better in \d+ of \d+", decided, re.M)
    assert "mine" in (workbook_out / "figures" / "interview_decision.svg").read_text(encoding="utf-8")
    if changed.get("SEEDS") == 1:
        assert NO_INTERVAL in decided


def test_a_fourth_design_of_notebook_2_is_timed_in_notebook_5(tmp_path, workbook_out):
    copy = tmp_path / "workbook"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "out", ".*cache", "__pycache__", "tests"))
    path = copy / "notebooks" / "02_kgram_architectures.ipynb"
    notebook = nbformat.read(path, as_version=4)
    next(cell for cell in notebook.cells if "DESIGNS = {" in cell.source).source += MINE
    nbformat.write(notebook, path)
    line = (
        "import nbformat; from workbook.notebooks import FOLDER, execute; path = FOLDER / '05_cost_of_a_token.ipynb'; "
    )
    line += "nbformat.write(execute(path, {'ROUNDS': 1})[0], path)"
    subprocess.run([sys.executable, "-c", line], cwd=copy, check=True)
    done = nbformat.read(copy / "notebooks" / "05_cost_of_a_token.ipynb", as_version=4)
    text = "\n".join(outputs(done))
    assert len(re.findall(r"\bmine\b", text)) >= 3  # the ladder, the growth against V, a new token
    for name in ("cost_ladder", "cost_growth", "cost_latency"):
        assert "mine" in set(pd.read_csv(workbook_out / "runs" / f"{name}.csv")["model"]), name
