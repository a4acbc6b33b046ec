"""The nearest neighbours of a token in a model's tables, and a text with those of each token beside it."""

import codecs
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from helpers import SequenceModel


def table_of(model: SequenceModel, table: str) -> Tensor:
    """The "embedding" of a model, rows that it reads tokens with, or its "head", those that it writes with.

    ValueError for another name, and for a net with a row for each token and place (one-hot), which has no embedding.
    """
    embeddings = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    embeddings = [weight for weight in embeddings if len(weight) == model.vocab_size]
    tables = {"head": model.head.weight} | ({"embedding": embeddings[0]} if embeddings else {})
    if table not in tables:
        raise ValueError(f"table is {table!r}; this {type(model).__name__} has {', '.join(tables)}")
    return tables[table].detach()


def nearest_tokens(model: SequenceModel, tokens: Sequence[int], count: int = 3, table: str = "embedding") -> Tensor:
    """For each of N tokens the `count` others whose rows in a table have the largest cosine with its own, (N, count).

    `table`: see `table_of`. ValueError for tokens outside it.
    """
    if outside := [int(token) for token in tokens if not 0 <= token < model.vocab_size]:
        raise ValueError(f"tokens {outside[:5]} lie outside the table; expected 0 to {model.vocab_size - 1}")
    rows = torch.nn.functional.normalize(table_of(model, table), dim=1)  # (V, E) or (V, H)
    ids = torch.as_tensor(tokens, dtype=torch.int64, device=rows.device)
    cosine = rows[ids] @ rows.t()  # (N, V)
    cosine.scatter_(1, ids[:, None], -math.inf)
    return cosine.topk(min(count, len(rows) - 1)).indices


def annotate(model: SequenceModel, tokenizer, tokens: Sequence[int], count: int = 3, table: str = "embedding") -> str:
    """The text of `tokens`, each followed by its `nearest_tokens`: ` cat[NN=' dog', ' cats', ' kitten']`.

    Tokens that only together make up a character are written as that character, with the neighbours of each
    after it. A neighbour that is part of a character is shown as bytes.
    """

    def name(token: int) -> str:
        raw = tokenizer.decode_single_token_bytes(token)
        try:
            return repr(raw.decode())
        except UnicodeDecodeError:
            return repr(raw)

    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, lists = "", []
    for position, near in enumerate(nearest_tokens(model, tokens, count, table).tolist()):
        text += decoder.decode(tokenizer.decode_single_token_bytes(tokens[position]), position == len(tokens) - 1)
        lists.append(", ".join(map(name, near)))
        if not decoder.getstate()[0]:  # no character is left half-read
            text += f"[NN={' | '.join(lists)}]"
            lists = []
    return text
