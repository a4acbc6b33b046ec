"""Small models, random tokens, and the literal loop that the tests compare with: the one of notebook 02."""

from pathlib import Path

import torch

import helpers
from workbook.notebooks import notebook_module

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK_02 = notebook_module("02_kgram_architectures", "imports", "design", "export", "loop")
DESIGNS = NOTEBOOK_02.DESIGNS  # {name: net}: a design that is entered in the notebook is tested with the others
loop_loss = NOTEBOOK_02.loop_loss


def loop_logits(model, tokens):
    """One context at a time, over t and b. (T, B) -> (T, B, V)"""
    return NOTEBOOK_02.loop_logits(model, tokens).reshape(*tokens.shape, -1)


def kgram(net_class=helpers.EmbeddingMLP, *, k=3, embed_size=6, hidden_size=8, num_layers=1, seed=0, **options):
    """A small k-gram model of any of the designs."""
    torch.manual_seed(seed)
    options = {"vocab_size": 40, **options}
    net = net_class(options["vocab_size"], k, embed_size, hidden_size, num_layers)
    return helpers.KGramMLPSeqModel(net, k=k, **options)


def lstm(vocab_size=40, embed_size=6, hidden_size=8, seed=0, tied=False):
    torch.manual_seed(seed)
    return helpers.LSTMSeqModel(vocab_size, embed_size, hidden_size, tied=tied)


def transformer(vocab_size=40, d_model=16, n_heads=2, n_blocks=2, seed=0, **options):
    """A small Transformer; its weights are made larger, so that what a test changes shows in the logits."""
    torch.manual_seed(seed)
    model = helpers.TransformerModel(vocab_size, d_model, n_heads, n_blocks, **options)
    for weight in model.parameters():
        weight.data *= 5 if weight.ndim > 1 else 1
    return model


def random_tokens(length, batch, vocab_size=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (length, batch), generator=generator)


def random_batches(count=4, length=6, batch=3):
    return [random_tokens(length, batch, seed=seed) for seed in range(count)]
