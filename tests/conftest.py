"""Fixtures: runs and figures go to a temporary folder; the nets of notebook 02 are read out of its cells."""

import ast
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import helpers  # noqa: E402


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
def designs(notebook_02):
    """The nets as the notebook defines them: OneHotMLP, OneHotLiteral, EmbeddingMLP, ConvHybrid, DESIGNS."""
    names = {name: getattr(helpers, name) for name in helpers.__all__}
    names |= {"torch": torch, "nn": torch.nn, "F": torch.nn.functional}
    for cell in notebook_02.cells:
        if {"design", "export"} & set(cell.metadata.get("tags", [])):
            exec(compile(ast.parse(cell.source), "02_kgram_architectures", "exec"), names)
    found = {name: names[name] for name in ("OneHotLiteral", "OneHotMLP", "EmbeddingMLP", "ConvHybrid")}
    return SimpleNamespace(**found)


def kgram(net_class, *, vocab_size=40, k=3, hidden_size=8, num_layers=1, embed_size=6, chunk_size=None, seed=0):
    """A small k-gram model of any of the designs."""
    torch.manual_seed(seed)
    sizes = (
        (hidden_size, num_layers) if net_class.__name__.startswith("OneHot") else (embed_size, hidden_size, num_layers)
    )
    net = net_class(vocab_size, k, *sizes)
    return helpers.KGramMLPSeqModel(net, vocab_size=vocab_size, k=k, chunk_size=chunk_size)


def lstm(vocab_size=40, embed_size=6, hidden_size=8, seed=0):
    torch.manual_seed(seed)
    return helpers.LSTMSeqModel(vocab_size, embed_size, hidden_size)


def random_tokens(length, batch, vocab_size=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (length, batch), generator=generator)


def loop_logits(model, tokens):
    """The oracle: one context at a time, over t and b, straight from the definition. (T, B) -> (T, B, V)"""
    length, batch = tokens.shape
    rows = []
    for t in range(length):
        for b in range(batch):
            context = [tokens[i, b].item() if i >= 0 else model.vocab_size for i in range(t - model.k + 1, t + 1)]
            rows.append(model.head(model.net(torch.tensor([context]))[0]))
    return torch.stack(rows).reshape(length, batch, -1)


def loop_loss(model, tokens):
    """The oracle of the loss: the mean of -log p over every real target, one at a time."""
    log_p = loop_logits(model, tokens[:-1]).log_softmax(-1)
    terms = [
        -log_p[t, b, tokens[t + 1, b]]
        for t in range(len(tokens) - 1)
        for b in range(tokens.shape[1])
        if tokens[t + 1, b] != model.vocab_size
    ]
    return torch.stack(terms).mean()
