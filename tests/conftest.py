"""Fixtures and hooks of the whole test session: a reader's runs go to a temporary folder, notebooks carry a marker."""

import os
import tempfile

import nbformat
import pytest
import torch
from oracles import ROOT

from workbook import fast
from workbook.text import load_tokenizer

cache = tempfile.TemporaryDirectory(prefix="workbook-tests-")  # datasets reads its place when first imported
os.environ["HF_HOME"] = cache.name
torch.set_num_threads(1)  # the models are small: on a busy machine several threads only wait for each other


def pytest_collection_modifyitems(config, items):
    """The cells of a notebook are the slow tier, `-m "not notebook"` leaves them out; the matrix asks for its name."""
    if "matrix" not in (config.option.markexpr or ""):
        items[:] = [item for item in items if not item.get_closest_marker("matrix")]
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("notebook")


@pytest.fixture(autouse=True)
def workbook_out(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_OUT", str(tmp_path / "out"))
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def speed_settings(monkeypatch):
    """What a test switches is put back, and so is the variable that large pages set."""
    monkeypatch.setattr(fast, "_on", dict(fast._on))
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer()


@pytest.fixture(scope="session")
def notebook_02():
    return nbformat.read(ROOT / "notebooks" / "02_kgram_architectures.ipynb", as_version=4)
