"""Fixtures: runs and figures go to a temporary folder; the nets of notebook 02 are read out of its cells."""

import os
import tempfile
from types import SimpleNamespace

import nbformat
import pytest
import torch
from oracles import ROOT

import helpers

cache = tempfile.TemporaryDirectory(prefix="workbook-tests-")  # datasets reads its place when first imported
os.environ["HF_HOME"] = cache.name


@pytest.fixture(autouse=True)
def workbook_out(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_OUT", str(tmp_path / "out"))
    return tmp_path / "out"


@pytest.fixture(scope="session")
def tokenizer():
    return helpers.load_tokenizer()


@pytest.fixture(scope="session")
def notebook_02():
    return nbformat.read(ROOT / "notebooks" / "02_kgram_architectures.ipynb", as_version=4)


@pytest.fixture(scope="session")
def designs():
    """The nets as the notebook defines them: OneHotMLP, OneHotLiteral, EmbeddingMLP, ConvHybrid, DESIGNS."""
    names = {name: getattr(helpers, name) for name in helpers.__all__}
    names |= {"torch": torch, "nn": torch.nn, "F": torch.nn.functional}
    exec(helpers.notebook_source("02_kgram_architectures", "design", "export"), names)
    found = {name: names[name] for name in ("OneHotLiteral", "OneHotMLP", "EmbeddingMLP", "ConvHybrid")}
    return SimpleNamespace(**found)
