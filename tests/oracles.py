"""Small models, random tokens, and the literal loops that the tests compare with."""

from pathlib import Path

import torch

import helpers

ROOT = Path(__file__).resolve().parent.parent


def kgram(
    net_class, *, vocab_size=40, k=3, hidden_size=8, num_layers=1, embed_size=6, chunk_size=None, seed=0, tied=False
):
    """A small k-gram model of any of the designs."""
    torch.manual_seed(seed)
    sizes = (
        (hidden_size, num_layers) if net_class.__name__.startswith("OneHot") else (embed_size, hidden_size, num_layers)
    )
    net = net_class(vocab_size, k, *sizes)
    return helpers.KGramMLPSeqModel(net, vocab_size=vocab_size, k=k, chunk_size=chunk_size, tied=tied)


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
