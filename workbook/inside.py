"""What a trained model holds: where its attention goes, and its tables of tokens as a map."""

from __future__ import annotations

import math
from unittest import mock

import pandas as pd
import torch
from torch import Tensor, nn

from helpers import SequenceModel, TransformerModel
from workbook.neighbours import table_of


@torch.no_grad()
def attention_weights(model: TransformerModel, tokens: Tensor) -> Tensor:
    """How much each position attends to each, (blocks, heads, T, T), for one text (T, 1): rows sum to 1.

    The fused operator does not give them, so while the model reads it is exchanged for one that keeps what it computes.
    """
    if not isinstance(model, TransformerModel):
        raise TypeError(f"the model is a {type(model).__name__}; only a TransformerModel has attention")
    kept: list[Tensor] = []

    def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])  # (1, heads, T, T)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        kept.append(scores.masked_fill(future, -math.inf).softmax(-1))
        return kept[-1] @ values

    model.check_tokens(tokens)
    with mock.patch.object(nn.functional, "scaled_dot_product_attention", attend):
        model.hidden(tokens[:, :1])
    return torch.cat(kept)


def attention_shares(weights: Tensor, k: int) -> pd.DataFrame:
    """Where the attention (blocks, heads, T, T) of the last half of the positions goes, a row a head: to the token
    itself, the k - 1 before it, the first of the text, and all others."""
    late = weights[:, :, weights.shape[2] // 2 :]
    position = torch.arange(weights.shape[2] // 2, weights.shape[2], device=weights.device)
    distance = position[:, None] - torch.arange(weights.shape[3], device=weights.device)
    parts = {"itself": distance == 0, f"the {k - 1} before": (distance > 0) & (distance < k)}
    parts["the first token"] = (distance >= k) & (distance == position[:, None])
    parts["further back"] = (distance >= k) & (distance < position[:, None])
    shares = {name: (late * chosen).sum(-1).mean(-1).flatten().tolist() for name, chosen in parts.items()}
    names = [f"block {block + 1}, head {head + 1}" for block in range(len(weights)) for head in range(weights.shape[1])]
    return pd.DataFrame(shares, index=names)


def table_map(model: SequenceModel, table: str) -> pd.DataFrame:
    """The two directions in which a model's table (see `table_of`) varies most: x and y of each token (PCA)."""
    rows = table_of(model, table).double().cpu()
    rows = rows - rows.mean(0)
    directions = torch.linalg.svd(rows, full_matrices=False).Vh[:2]  # (2, E)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return pd.DataFrame((rows @ (directions * largest.sign()).t()).numpy(), columns=["x", "y"])  # each sign is settled
