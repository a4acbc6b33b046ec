"""The models of the pico-llm workbook, their loss, their evaluation, and sampling from them.

One alphabet for shapes: T time, B batch, N = T*B rows, K context length (`k`), V vocabulary, E embedding,
H hidden. Token tensors are time first, (T, B); logits are (T, B, V); `logits[t]` predicts token t+1 from the
tokens up to and including t. BLANK, the id V, stands for "no token": history before the start of a sequence
and padding after its end. It embeds to zeros and is never a target.

Contents
    1. Models                       TokenEmbedding, context_windows, distinct_contexts, SequenceModel,
                                    KGramMLPSeqModel, EmbeddingMLP, PooledMLP, LSTMSeqModel, RMSNorm, rotate,
                                    TransformerBlock, TransformerModel, count_parameters, check_gradient_flow
    2. Loss and evaluation          head_cross_entropy, next_token_loss, context_loss, evaluate,
                                    target_log_probabilities, loss_by_position
    3. Sampling                     top_p_filter, top_k_filter, sample_token, token_stream, generate

Text, batches, counts, training and records are in the package workbook.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from workbook.fast import linear
from workbook.text import VOCAB_SIZE

BLANK = VOCAB_SIZE  # a model of another vocabulary uses its own size: `model.blank`


# ==== 1. Models =======================================================================================


class TokenEmbedding(nn.Embedding):
    """`nn.Embedding` of V ids, in which every id from V on (BLANK) gives zeros and takes no gradient."""

    def forward(self, ids: Tensor) -> Tensor:  # (...) -> (..., E)
        real = ids < self.num_embeddings
        return super().forward(ids.where(real, 0)) * real.unsqueeze(-1)


def context_windows(tokens: Tensor, k: int, blank: int) -> Tensor:
    """(T, B) -> (T, B, k): position t gets tokens t-k+1 … t, the newest last, BLANK before the start."""
    history = tokens.new_full((k - 1, tokens.shape[1]), blank)
    return torch.cat([history, tokens]).unfold(0, k, 1)


def distinct_contexts(contexts: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """(N, k) -> the distinct rows (U, k) in sorted order, and index (N,): contexts = rows[index].

    The same as `torch.unique(dim=0)`, one column at a time, which is many times faster on a CPU.
    """
    index = torch.zeros_like(contexts[:, 0])
    for column in contexts.unbind(1):  # ids stay below N * (V + 1): no overflow, whatever k
        ids, index = torch.unique(index * (vocab_size + 1) + column, return_inverse=True)
    position = torch.arange(len(contexts), device=contexts.device)
    some_row = torch.empty_like(ids).scatter_(0, index, position)
    return contexts[some_row], index


class SequenceModel(nn.Module):
    """What every model is: hidden states (T, B, H), then one linear head to logits (T, B, V).

    A subclass defines `hidden`, and for decoding `start` and `prefill`.
    """

    def __init__(self, vocab_size: int, hidden_size: int):
        super().__init__()
        for name, value in (("vocab_size", vocab_size), ("hidden size", hidden_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        self.vocab_size = vocab_size
        self.dropout = nn.Dropout(0.0)  # of the last hidden state; set its p
        self.project: nn.Module = nn.Identity()
        self.head = nn.Linear(hidden_size, vocab_size)

    def tie(self, embedding: nn.Embedding) -> None:
        """Let the head share the embedding's table, behind a projection H -> E (Press & Wolf 2017)."""
        width = embedding.embedding_dim
        self.project = nn.Linear(self.head.in_features, width, bias=False)
        self.head = nn.Linear(width, self.vocab_size)
        self.head.weight = embedding.weight
        nn.init.normal_(embedding.weight, std=0.5 / math.sqrt(width))  # larger: a first loss far above ln V
        nn.init.zeros_(self.head.bias)

    @property
    def blank(self) -> int:
        """The id of "no token": one past the last real token."""
        return self.vocab_size

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def hidden(self, tokens: Tensor) -> Tensor:  # (T, B) -> (T, B, H)
        raise NotImplementedError

    def forward(self, tokens: Tensor) -> Tensor:  # (T, B) -> (T, B, V)
        self.check_tokens(tokens)
        return self.logits(self.hidden(tokens))

    def logits(self, hidden: Tensor) -> Tensor:  # (..., H) -> (..., V)
        """The head alone."""
        return linear(hidden, self.head.weight, self.head.bias)

    def hidden_rows(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(T, B) -> rows (R, H) and index (T*B,): the hidden states, row after row, are rows[index].

        Here each distinct sequence of the batch is computed once; a k-gram computes each distinct context.
        """
        columns, index = torch.unique(tokens, dim=1, return_inverse=True)  # (T, U), (B,)
        rows = self.hidden(columns).flatten(0, 1)  # (T * U, H)
        steps = torch.arange(len(tokens), device=tokens.device)
        return rows, (steps[:, None] * columns.shape[1] + index).flatten()

    def start(self, batch_size: int):
        """The state before the first token, for incremental decoding."""
        raise NotImplementedError

    def prefill(self, tokens: Tensor, state):
        """Tokens (T, B) and the state -> the logits (B, V) after the last of them and the next state."""
        raise NotImplementedError

    def step(self, tokens: Tensor, state):
        """Tokens (B,) and the state -> logits (B, V) and the next state; equals `forward`."""
        return self.prefill(tokens[None], state)

    def check_tokens(self, tokens: Tensor) -> None:
        """TypeError or ValueError unless `tokens` is integer, (T, B), not empty, with ids 0 … V (V: BLANK).

        It reads two numbers back from the device, so it stands at the doors (`forward`, `next_token_loss`,
        `token_stream`, `target_log_probabilities`) and not in each step.
        """
        if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
            came = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
            raise TypeError(f"tokens are {came}; expected a torch.int64 tensor of token ids")
        if tokens.ndim != 2 or not tokens.numel():
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}; expected (T, B), time first, not empty")
        low, high = (value.item() for value in tokens.aminmax())
        if low < 0 or high > self.blank:
            raise ValueError(
                f"token ids run from {low} to {high}; expected 0 to {self.vocab_size - 1}, or {self.blank} for "
                "BLANK; is the model's vocab_size the tokenizer's?"
            )


class KGramMLPSeqModel(SequenceModel):
    """Predicts the next token from the last k: `net` maps contexts (N, k) to (N, net.hidden_size).

    `chunk_size`: contexts that go through the net at once (None: all). `tied`: the head shares `net.embedding`.
    """

    def __init__(self, net: nn.Module, *, vocab_size: int, k: int, chunk_size: int | None = None, tied: bool = False):
        if not isinstance(net, nn.Module):
            raise TypeError(f"net is {net!r}; expected a module that maps contexts (N, k) to (N, net.hidden_size)")
        width = getattr(net, "hidden_size", None)
        if not isinstance(width, int):
            raise TypeError(f"{type(net).__name__} has no whole number hidden_size; the head needs the net's width")
        for name, value in (("k", k), ("chunk_size", 1 if chunk_size is None else chunk_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        super().__init__(vocab_size, width)
        self.net, self.k, self.chunk_size = net, k, chunk_size
        if tied:
            table = getattr(net, "embedding", None)
            if not isinstance(table, nn.Embedding):
                raise ValueError(f"{type(net).__name__} has no embedding for a tied head to share; use a free head")
            self.tie(table)

    def apply_net(self, contexts: Tensor) -> Tensor:  # (N, k) -> (N, H)
        """The net, and the projection to a tied head, `chunk_size` contexts at a time, with its output checked."""
        chunks = [self.net(chunk) for chunk in contexts.split(self.chunk_size or len(contexts))]
        hidden = torch.cat(chunks) if len(chunks) > 1 else chunks[0]
        if hidden.shape != (len(contexts), self.net.hidden_size):
            raise ValueError(
                f"{type(self.net).__name__} gave shape {tuple(hidden.shape)} for {len(contexts)} contexts; expected "
                f"({len(contexts)}, {self.net.hidden_size}), a row of hidden_size numbers for each context"
            )
        return self.project(self.dropout(hidden))

    def hidden_rows(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(T, B) -> rows (R, H), one for each distinct context of the batch, and index (T*B,)."""
        contexts = context_windows(tokens, self.k, self.blank).flatten(0, 1)  # (N, k)
        rows, index = distinct_contexts(contexts, self.vocab_size)
        return self.apply_net(rows), index

    def hidden(self, tokens: Tensor) -> Tensor:  # (T, B) -> (T, B, H)
        rows, index = self.hidden_rows(tokens)
        return rows[index].unflatten(0, tokens.shape)

    def start(self, batch_size: int) -> Tensor:
        return torch.full((batch_size, self.k), self.blank, device=self.device)

    def prefill(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.cat([state, tokens.t()], dim=1)[:, -self.k :]  # (B, k), the newest last
        return self.logits(self.apply_net(state)), state


class EmbeddingMLP(nn.Module):
    """Embed the k tokens, concatenate, and mix them in an MLP (Bengio et al. 2003)."""

    def __init__(self, vocab_size, k, embed_size, hidden_size, num_layers):
        super().__init__()
        self.hidden_size = hidden_size
        self.embedding = TokenEmbedding(vocab_size, embed_size)
        layers = [nn.Linear(k * embed_size, hidden_size), nn.SiLU()]
        for _ in range(num_layers):
            layers += [nn.Linear(hidden_size, hidden_size), nn.SiLU()]
        self.mlp = nn.Sequential(*layers)

    def forward(self, contexts):  # (N, k) -> (N, H)
        embedded = self.embedding(contexts)  # (N, k, E)
        return self.mlp(embedded.flatten(1))  # (N, k * E) -> (N, H)


class PooledMLP(nn.Module):
    """The newest tokens one by one, older ones summed in groups, then residual blocks (Sun & Iyyer 2021).

    From the newest token back, the groups hold 1, 1, 1, 3, 6, 12, 24 … tokens, so that the first layer has few weights
    however long the window is. Each place has a weight in its group's sum.
    """

    def __init__(self, vocab_size, k, embed_size, hidden_size, num_layers):
        super().__init__()
        self.hidden_size = hidden_size
        self.embedding = TokenEmbedding(vocab_size, embed_size)
        ages = [0, 1, 2] + [3 * 2**n for n in range(k.bit_length())]  # at which a group begins; the newest token is 0
        borders = [*(age for age in ages if age < k), k]
        self.lengths = [end - begin for begin, end in itertools.pairwise(borders)][::-1]  # the oldest first
        self.weights = nn.Parameter(torch.cat([torch.full((n,), n**-0.5) for n in self.lengths]))  # (k,)
        self.first = nn.Linear(len(self.lengths) * embed_size, hidden_size)
        self.blocks = nn.ModuleList()
        for _ in range(num_layers):
            up, down = nn.Linear(hidden_size, 2 * hidden_size), nn.Linear(2 * hidden_size, hidden_size)
            down.weight.data /= 10  # at first a block adds little
            self.blocks.append(nn.Sequential(RMSNorm(hidden_size), up, nn.SiLU(), down))
        self.norm = RMSNorm(hidden_size)

    def forward(self, contexts):  # (N, k) -> (N, H)
        embedded = self.embedding(contexts) * self.weights[:, None]  # (N, k, E)
        pooled = [group.sum(1) for group in embedded.split(self.lengths, dim=1)]  # each (N, E)
        x = self.first(torch.cat(pooled, dim=1))
        for block in self.blocks:
            x = x + block(x)
        return self.norm(x)


class LSTMSeqModel(SequenceModel):
    """Embedding -> one LSTM layer (Hochreiter & Schmidhuber 1997) -> head, `tied` to the embedding or not."""

    def __init__(self, vocab_size: int, embed_size: int, hidden_size: int, *, tied: bool = False):
        super().__init__(vocab_size, hidden_size)
        self.embedding = TokenEmbedding(vocab_size, embed_size)
        self.lstm = nn.LSTM(embed_size, hidden_size)
        if tied:
            self.tie(self.embedding)

    def hidden(self, tokens: Tensor) -> Tensor:  # (T, B) -> (T, B, H)
        return self.project(self.dropout(self.lstm(self.embedding(tokens))[0]))

    def start(self, batch_size: int) -> tuple[Tensor, Tensor]:
        zeros = self.head.weight.new_zeros(1, batch_size, self.lstm.hidden_size)
        return zeros, zeros

    def prefill(self, tokens: Tensor, state: tuple[Tensor, Tensor]):
        output, state = self.lstm(self.embedding(tokens), state)  # (T, B, H)
        return self.logits(self.project(output[-1])), state


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019), computed in float32."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (..., dim) -> (..., dim)
        wide = x.float()  # in float16 the squares of 300 overflow
        return (wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()).to(x.dtype) * self.weight


def rotate(x: Tensor, start: int) -> Tensor:  # (..., T, D) -> (..., T, D)
    """Rotary positions start, start+1, … (Su et al. 2021): the pair (i, i + D/2) turns by position * 10000^(-2i/D)."""
    length, width = x.shape[-2:]
    position = torch.arange(start, start + length, device=x.device, dtype=torch.float32)
    speed = 10_000.0 ** (-torch.arange(0, width, 2, device=x.device) / width)  # (D / 2,)
    angle = position[:, None] * speed  # (T, D / 2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class TransformerBlock(nn.Module):
    """Causal self-attention, then an MLP, each added to what came in and normed before ("pre") or after ("post").

    `short_conv`: each number of the queries, keys and values is a weighted sum of its own at t, t-1 and t-2 (So et al.
    2021). `qk_norm`: queries and keys have a mean square of 1 (Henry et al. 2020).
    """

    def __init__(self, d_model: int, n_heads: int, norm: str, mlp: str, rotary: bool, short_conv: bool, qk_norm: bool):
        super().__init__()
        self.n_heads, self.pre, self.gated, self.rotary = n_heads, norm == "pre", mlp == "swiglu", rotary
        self.qk_norm, self.conv = qk_norm, None
        if short_conv:  # (3, 3 d), the newest last; at first it changes nothing
            self.conv = nn.Parameter(torch.tensor([0.0, 0.0, 1.0])[:, None].repeat(1, 3 * d_model))
        self.norms = nn.ModuleList(RMSNorm(d_model) for _ in range(2))
        self.attention_in = nn.Linear(d_model, 3 * d_model, bias=False)
        self.attention_out = nn.Linear(d_model, d_model, bias=False)
        width = 8 * d_model // 3 if self.gated else 4 * d_model  # about as many weights either way
        self.mlp_in = nn.Linear(d_model, 2 * width if self.gated else width, bias=False)
        self.mlp_out = nn.Linear(width, d_model, bias=False)

    def start(self, batch_size: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """No keys and values yet, and zeros for the two positions before the first."""
        width = self.attention_in.in_features
        empty = like.new_zeros(batch_size, self.n_heads, 0, width // self.n_heads)
        return empty, empty, like.new_zeros(batch_size, 2, 3 * width)

    def forward(self, x: Tensor, past: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x (B, T, d) and what is kept of S earlier positions -> (B, T, d) and what is kept of S + T.

        Kept are all keys and values, and of the newest two positions what the convolution takes.
        """
        attended, past = self.attend(self.norms[0](x) if self.pre else x, past)
        x = x + attended if self.pre else self.norms[0](x + attended)
        mixed = self.mix(self.norms[1](x) if self.pre else x)
        return (x + mixed if self.pre else self.norms[1](x + mixed)), past

    def attend(self, x: Tensor, past: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        begin, length = past[0].shape[2], x.shape[1]
        projected, newest = self.attention_in(x), past[2]  # (B, T, 3 d), (B, 2, 3 d)
        if self.conv is not None:
            longer = torch.cat([newest.to(projected.dtype), projected], dim=1)  # (B, 2 + T, 3 d)
            weights = self.conv.to(projected.dtype)
            projected = sum(longer[:, i : i + length] * weights[i] for i in range(3))
            newest = longer[:, -2:]
        split = projected.unflatten(-1, (3, self.n_heads, -1))  # (B, T, 3, heads, D)
        queries, keys, values = split.permute(2, 0, 3, 1, 4)  # each (B, heads, T, D)
        if self.qk_norm:
            queries, keys = (nn.functional.rms_norm(each, each.shape[-1:], eps=1e-6) for each in (queries, keys))
        if self.rotary:
            queries, keys = rotate(queries, begin), rotate(keys, begin)
        keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        mask = None  # a single new token sees all
        if begin and length > 1:  # query i sees keys 0 … begin + i
            mask = torch.ones(length, begin + length, dtype=torch.bool, device=x.device).tril(begin)
        seen = nn.functional.scaled_dot_product_attention(queries, keys, values, mask, is_causal=not begin)
        return self.attention_out(seen.transpose(1, 2).flatten(2)), (keys, values, newest)

    def mix(self, x: Tensor) -> Tensor:
        inner = self.mlp_in(x)
        if not self.gated:
            return self.mlp_out(nn.functional.silu(inner))
        gate, inner = inner.chunk(2, dim=-1)
        return self.mlp_out(nn.functional.silu(gate) * inner)  # SwiGLU (Shazeer 2020)


class TransformerModel(SequenceModel):
    """Decoder-only Transformer (Vaswani et al. 2017; pre-norm, rotary and SwiGLU as in Touvron et al. 2023).

    `norm` "pre" or "post"; `positions` "rotary", "learned" (up to `max_length`) or "none"; `mlp` "swiglu" or
    "silu"; `tied`: embedding and head share their weights; `short_conv`, `qk_norm`: see `TransformerBlock`. The state
    holds what each block keeps.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        n_heads: int,
        n_blocks: int,
        *,
        norm: str = "pre",
        positions: str = "rotary",
        mlp: str = "swiglu",
        tied: bool = True,
        max_length: int = 1024,
        short_conv: bool = False,
        qk_norm: bool = False,
    ):
        choices = {"norm": ("pre", "post"), "positions": ("rotary", "learned", "none"), "mlp": ("swiglu", "silu")}
        for (name, allowed), came in zip(choices.items(), (norm, positions, mlp), strict=True):
            if came not in allowed:
                raise ValueError(f"{name} is {came!r}; expected one of {', '.join(allowed)}")
        if min(n_heads, n_blocks) < 1:
            raise ValueError(f"n_heads is {n_heads}, n_blocks {n_blocks}; expected 1 or more of each")
        if d_model % (2 * n_heads):
            raise ValueError(f"d_model is {d_model}, n_heads {n_heads}; expected d_model a multiple of 2 * n_heads")
        super().__init__(vocab_size, d_model)
        self.embedding = TokenEmbedding(vocab_size, d_model)
        self.positions = nn.Embedding(max_length, d_model) if positions == "learned" else None
        options = (norm, mlp, positions == "rotary", short_conv, qk_norm)
        blocks = [TransformerBlock(d_model, n_heads, *options) for _ in range(n_blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = RMSNorm(d_model) if norm == "pre" else nn.Identity()
        if tied:
            self.head.weight = self.embedding.weight
        self.apply(self.draw_weights)
        for block in blocks:  # the sum of 2 * n_blocks outputs keeps the size of one (Radford et al. 2019)
            for last in (block.attention_out, block.mlp_out):
                last.weight.data /= math.sqrt(2 * n_blocks)

    @staticmethod
    def draw_weights(module: nn.Module) -> None:
        """N(0, 0.02²): with larger numbers a tied head's first loss is far above ln V."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def hidden(self, tokens: Tensor) -> Tensor:  # (T, B) -> (T, B, H)
        return self.dropout(self.extend(tokens, self.start(tokens.shape[1]))[0])

    def extend(self, tokens: Tensor, state: list) -> tuple[Tensor, list]:
        """(T, B) tokens after those of the state -> hidden states (T, B, H) and the next state."""
        x, begin = self.embedding(tokens.t()), state[0][0].shape[2]  # (B, T, d)
        if self.positions is not None:
            if begin + len(tokens) > self.positions.num_embeddings:
                limit = self.positions.num_embeddings
                raise ValueError(f"{begin + len(tokens)} tokens; learned positions end at max_length={limit}")
            x = x + self.positions.weight[begin : begin + len(tokens)]
        pasts = []
        for block, past in zip(self.blocks, state, strict=True):
            x, past = block(x, past)
            pasts.append(past)
        return self.final_norm(x).transpose(0, 1), pasts

    def start(self, batch_size: int) -> list[tuple[Tensor, ...]]:
        blocks: Any = self.blocks
        return [block.start(batch_size, self.head.weight) for block in blocks]

    def prefill(self, tokens: Tensor, state: list) -> tuple[Tensor, list]:
        hidden, state = self.extend(tokens, state)
        return self.logits(hidden[-1]), state


def count_parameters(model: SequenceModel) -> dict[str, int]:
    """`parameters`: all; `body`: without the tables that token ids index and without the head."""
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    outside = {id(weight) for weight in [*tables, *model.head.parameters()]}
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "body": sum(weight.numel() for weight in model.parameters() if id(weight) not in outside),
    }


def check_gradient_flow(model: SequenceModel, tokens: Tensor) -> dict[str, float]:
    """The gradient norm of each parameter on one batch. ValueError names those that get none."""
    names, weights = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(next_token_loss(model, tokens), weights, allow_unused=True)
    norms = {name: 0.0 if g is None else g.norm().item() for name, g in zip(names, gradients, strict=True)}
    if dead := [name for name, norm in norms.items() if norm == 0]:
        raise ValueError(f"no gradient reaches {', '.join(dead)}; expected one for every parameter: is it used?")
    return norms


# ==== 2. Loss and evaluation ==========================================================================


class ContextBatch(NamedTuple):
    """Contexts (R, k), and (row, target) pairs that count for `share` of the loss; they make up `tokens` targets."""

    contexts: Tensor
    row: Tensor
    target: Tensor
    share: Tensor
    tokens: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ContextBatch:
        contexts, row, target, share = (part.to(device, non_blocking=non_blocking) for part in self[:4])
        return ContextBatch(contexts, row, target, share, self.tokens)


def count_targets(tokens: Tensor | ContextBatch, blank: int = VOCAB_SIZE) -> int:
    """The number of real targets of a (T, B) batch, or that a `ContextBatch` counts for."""
    if isinstance(tokens, ContextBatch):
        return tokens.tokens
    return int((tokens[1:] != blank).sum())


class _HeadCrossEntropy(torch.autograd.Function):
    """Head, softmax and loss in row chunks; the gradients are formed on the way, as logits do not last."""

    @staticmethod
    def forward(ctx, rows, weight, bias, row, target, share, chunk_rows, with_gradient):
        row_share = share.new_zeros(len(rows)).index_add_(0, row, share)  # (R,)
        device = rows.device.type
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        products = (rows.to(narrow), weight.to(narrow), bias.to(narrow)) if narrow else (rows, weight, bias)
        begins = torch.arange(0, len(rows) + chunk_rows, chunk_rows, device=row.device)
        edges: list[int] = torch.searchsorted(row, begins).tolist()  # pairs are sorted by row
        loss = share.new_zeros(())
        if with_gradient:
            empty = torch.zeros_like if narrow else torch.empty_like
            grads = torch.empty_like(rows), empty(weight), torch.zeros_like(bias)
        for number, begin in enumerate(range(0, len(rows), chunk_rows)):
            chunk = slice(begin, begin + chunk_rows)
            pairs = slice(edges[number], edges[number + 1])
            place = row[pairs] - begin, target[pairs]
            scores = linear(products[0][chunk], *products[1:]).to(share.dtype)  # logits (C, V), C <= chunk_rows
            loss -= share[pairs] @ scores[place]
            peak = scores.amax(1)
            torch.softmax(scores, 1, out=scores)  # in place; torch.exp is ten times slower where it underflows
            log_sum_exp = peak - scores.amax(1).log()  # as the largest share is exp(peak) / sum
            loss += row_share[chunk] @ log_sum_exp
            if with_gradient:  # d loss / d logits = row share * (softmax - pair share / row share at the targets)
                scores[place] -= share[pairs] / row_share[row[pairs]]
                grads[2].add_(row_share[chunk] @ scores)
                weighted = products[0][chunk] * row_share[chunk, None].to(narrow)
                if narrow:  # only the products are narrow; softmax and sums stay in float32
                    scores = scores.to(narrow)
                    grads[0][chunk] = scores @ products[1]
                    grads[1].add_(scores.t() @ weighted)
                else:
                    grads[0][chunk] = linear(scores, weight.t())
                    grads[1].addmm_(scores.t(), weighted, beta=min(number, 1))  # the first chunk overwrites
                grads[0][chunk] *= row_share[chunk, None]
            del scores  # before the next chunk's are made
        ctx.grads = grads if with_gradient else None
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        if ctx.grads is None:
            raise RuntimeError("backward through head_cross_entropy runs once; compute the loss again")
        grads, ctx.grads = ctx.grads, None
        if upstream != 1:
            grads = tuple(grad.mul_(upstream) for grad in grads)
        return *grads, None, None, None, None, None


def head_cross_entropy(
    rows: Tensor, head: nn.Linear, row: Tensor, target: Tensor, share: Tensor, chunk_rows: int = 256
) -> Tensor:
    """The share-weighted cross-entropy (nats) of (row, target) pairs, without the logits of all rows at once.

    rows (R, H); row, target, share (M,): pair m says that token `target[m]` follows hidden state
    `rows[row[m]]` and counts for `share[m]` of the loss. No pair may come twice, and `row` must ascend.
    Memory is chunk_rows * V numbers and one gradient of the head, whatever R is.
    """
    with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (rows, head.weight, head.bias))
    return _HeadCrossEntropy.apply(rows, head.weight, head.bias, row, target, share, chunk_rows, with_gradient)


def next_token_loss(model: SequenceModel, tokens: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the real targets of `tokens` (T, B); padding does not count.

    The same number and gradients as a loop over t and b, to rounding: each distinct hidden row goes through
    the head once, and each distinct (row, target) pair counts as often as it occurs. ValueError where no
    position has a real target.
    """
    model.check_tokens(tokens)
    targets = tokens[1:].flatten()
    real = targets != model.blank
    if not real.any():
        raise ValueError(f"tokens of shape {tuple(tokens.shape)} hold no target; expected two real tokens in a row")
    rows, index = model.hidden_rows(tokens[:-1])
    pairs = index[real] * model.vocab_size + targets[real]
    pairs, count = torch.unique(pairs, return_counts=True)  # sorted by row, then target
    row, target = pairs // model.vocab_size, pairs % model.vocab_size
    used, row = torch.unique_consecutive(row, return_inverse=True)  # rows of padding never reach the head
    return head_cross_entropy(rows[used], model.head, row, target, count.to(model.head.weight.dtype) / count.sum())


def context_loss(model: KGramMLPSeqModel, batch: ContextBatch) -> Tensor:
    """An unbiased estimate, from one batch of `CorpusContexts`, of the loss (nats) on the whole text."""
    return head_cross_entropy(model.apply_net(batch.contexts), model.head, batch.row, batch.target, batch.share)


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf


@torch.no_grad()
def evaluate(model: SequenceModel, batches: Iterable[Tensor]) -> dict[str, float]:
    """Loss (nats a token), perplexity and number of real targets over all batches, weighted by tokens.

    The batch size has no influence. `model.training` is left as it was. ValueError where nothing is real.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        for tokens in batches:
            if targets := count_targets(tokens, model.blank):
                total += targets * next_token_loss(model, tokens.to(model.device)).item()
                count += targets
    finally:
        model.train(was_training)
    if not count:
        raise ValueError("the batches hold no target; expected sequences of two tokens or more")
    return {"loss": total / count, "perplexity": perplexity(total / count), "tokens": count}


@torch.no_grad()
def target_log_probabilities(model: SequenceModel, sequences: Sequence[Tensor], batch_size: int = 16) -> list[Tensor]:
    """For each sequence (length,) the log-probability (nats) of each of its targets, (length - 1,); NaN at BLANK."""
    was_training = model.training
    model.eval()
    found: list[Tensor] = [torch.empty(0)] * len(sequences)
    by_length = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    for begin in range(0, len(by_length), batch_size):
        chosen = by_length[begin : begin + batch_size]
        columns = [sequences[number] for number in chosen]
        tokens = nn.utils.rnn.pad_sequence(columns, padding_value=model.blank).to(model.device)  # (T, B)
        model.check_tokens(tokens)
        rows, index = model.hidden_rows(tokens[:-1])
        targets = tokens[1:].flatten()
        chunks = zip(index.split(512), targets.clamp(max=model.vocab_size - 1).split(512), strict=True)
        parts = [model.logits(rows[i]).log_softmax(1).gather(1, t[:, None]).squeeze(1) for i, t in chunks]
        nats = torch.cat(parts).masked_fill(targets == model.blank, math.nan).unflatten(0, tokens[1:].shape).cpu()
        for column, number in enumerate(chosen):
            found[number] = nats[: len(sequences[number]) - 1, column]
    model.train(was_training)
    return found


def loss_by_position(log_probabilities: Sequence[Tensor], edges: Sequence[int]) -> list[dict[str, float]]:
    """The mean loss (nats) of the targets at positions `from` … `to` of their sequence, the first target at 1.

    `log_probabilities` are those of `target_log_probabilities`; `edges` are the ascending values of `from`.
    """
    if not len(log_probabilities):
        raise ValueError("there are no sequences; expected those of target_log_probabilities, one or more")
    table = nn.utils.rnn.pad_sequence(list(log_probabilities), padding_value=math.nan)  # (T, sequences)
    starts = [edge for edge in edges if edge <= len(table)]
    rows: list[dict[str, float]] = []
    for start, end in itertools.pairwise([*starts, len(table) + 1]):
        losses = -table[start - 1 : end - 1]
        losses = losses[~losses.isnan()]
        rows.append({"from": start, "to": end - 1, "targets": len(losses), "loss": losses.mean().item()})
    return rows


# ==== 3. Sampling =====================================================================================


def _checked(logits: Tensor) -> Tensor:
    """The logits, float16 and bfloat16 as float32. TypeError or ValueError unless each row has a finite largest one."""
    if not logits.is_floating_point() or not logits.numel():
        raise TypeError(f"logits are {logits.dtype}, shape {tuple(logits.shape)}; expected floating point, (…, V)")
    peak = logits.amax(-1)
    if not peak.isfinite().all():
        raise ValueError("a row's largest logit is NaN or infinite; expected a finite number: has the model diverged?")
    return logits if logits.dtype == torch.float64 else logits.float()


def _float64(values: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none; a float32 sum over 50,000 small shares is not exact enough."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _first_ranked(values: Tensor, ranked: Tensor, count: Tensor) -> Tensor:
    """True for the `count` (…, 1) largest of values (…, V); of equal ones the lower ids come first.

    `ranked` holds the largest values in descending order, `count` of them or more.
    """
    last = ranked.gather(-1, count - 1)
    room = count - (ranked > last).sum(-1, keepdim=True)  # for those that equal the last
    equal = values == last
    if (equal.sum(-1, keepdim=True) > room).any():
        equal &= equal.cumsum(-1) <= room
    return equal.logical_or_(values > last)


def top_k_filter(logits: Tensor, k: int) -> Tensor:
    """Logits (…, V) with -inf outside the k largest (Fan et al. 2018). Of equal logits the lower id comes first.

    ValueError for k below 1 or logits that hold NaN.
    """
    if k < 1:
        raise ValueError(f"top_k is {k}; expected 1 or more, or None to leave it out")
    values = _checked(logits)
    ranked = values.topk(min(k, values.shape[-1])).values
    count = torch.full_like(ranked[..., :1], ranked.shape[-1], dtype=torch.int64)
    return logits.masked_fill(~_first_ranked(values, ranked, count), -math.inf)


def top_p_filter(logits: Tensor, p: float) -> Tensor:
    """Logits (…, V) with -inf outside the nucleus (Holtzman et al. 2020).

    The nucleus is the smallest set of most probable tokens whose mass is at least p, the token that crosses
    p included. Of equal logits the lower id comes first. p=1 returns the logits themselves. 256 tokens are
    ranked, or 4,096, or all: as many as every row needs. ValueError for p outside (0, 1] or logits with NaN.
    """
    if not 0 < p <= 1:
        raise ValueError(f"p is {p}; expected 0 < p <= 1 (p=1 keeps every token; greedy is top_p=None)")
    values = _checked(logits)
    if p == 1:
        return logits
    probabilities = _float64(values).softmax(-1)
    vocab_size = logits.shape[-1]
    for most in (256, 4096, vocab_size):
        few = most < vocab_size
        ranked = probabilities.topk(most).values if few else probabilities.sort(dim=-1, descending=True).values
        mass = ranked.cumsum(-1)
        if (mass[..., -1] >= p).all():
            break
    below = (mass < p).sum(-1, keepdim=True).clamp(max=ranked.shape[-1] - 1)  # the next token crosses p
    inside = _first_ranked(probabilities, ranked, below + 1)
    return logits.masked_fill(~inside.to(logits.device), -math.inf)


def sample_token(
    logits: Tensor,
    top_p: float | None = None,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    top_k: int | None = None,
) -> Tensor:
    """Logits (…, V) -> token ids (…). Greedy where top_p and top_k are None, else a draw.

    `temperature` divides the logits first, then `top_k` cuts, then `top_p`. A draw is one uniform number from
    `generator` looked up in the cumulative distribution, so a token of probability 0 is never drawn.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; expected a number above 0 (greedy is top_p=None)")
    values = _checked(logits)
    if top_p is None and top_k is None:
        return values.argmax(-1)
    values = _float64(values - values.amax(-1, keepdim=True)) / temperature
    if top_k is not None:
        values = top_k_filter(values, top_k)
    cumulative = top_p_filter(values, 1.0 if top_p is None else top_p).softmax(-1).cumsum(-1)
    device = generator.device if generator else "cpu"
    uniform = torch.rand(cumulative[..., :1].shape, dtype=torch.float64, generator=generator, device=device)
    uniform = 1 - uniform  # above 0, up to 1
    height = uniform.to(cumulative.device) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, height).squeeze(-1).to(logits.device)


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits (B, V), those of `seen` tokens (B, V) over `penalty`, or times it below 0 (Keskar et al. 2019)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def token_stream(
    model: SequenceModel,
    prompt: Tensor,
    top_p: float | None = None,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    top_k: int | None = None,
    repetition_penalty: float = 1.0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """After a prompt (T, B), without end: new tokens (B,) and the logits (B, V) that they were drawn from.

    The prompt is read once and each new token is one `model.step`, however long the text has become. Without
    a generator the draws are seeded by 0; the global generator is left alone. `repetition_penalty`: see `penalise`.
    """
    if not 0 < repetition_penalty < math.inf:
        raise ValueError(f"repetition_penalty is {repetition_penalty}; expected a number above 0; 1 changes nothing")
    generator = generator or torch.Generator().manual_seed(0)
    model.check_tokens(prompt)
    seen = torch.zeros(prompt.shape[1], model.vocab_size + 1, dtype=torch.bool, device=prompt.device)
    seen.scatter_(1, prompt.t().long(), True)
    with torch.no_grad():
        logits, state = model.prefill(prompt, model.start(prompt.shape[1]))
    while True:
        if repetition_penalty != 1:
            logits = penalise(logits, seen[:, :-1], repetition_penalty)
        tokens = sample_token(logits, top_p, temperature, generator, top_k)
        seen.scatter_(1, tokens[:, None], True)
        yield tokens, logits
        with torch.no_grad():  # not around the yield: the caller keeps its own mode
            logits, state = model.step(tokens, state)


def generate(
    model: SequenceModel,
    tokenizer,
    prompt: str,
    max_new_tokens: int = 20,
    top_p: float | None = None,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    stop: str | None = None,
    top_k: int | None = None,
    on_token: Callable[[int, Tensor], None] | None = None,
    repetition_penalty: float = 1.0,
) -> str:
    """The prompt and what the model makes of it (see `token_stream`; greedy where top_p and top_k are None).

    Ends after `max_new_tokens`, or before the first `stop` in the new text. `on_token` gets each new token
    and the logits (V,) that it was drawn from. Without a generator each call draws the same text. ValueError
    for a prompt without tokens: the models predict a token from at least one before it.
    """
    ids = tokenizer.encode(prompt, allowed_special="all")
    if not ids:
        raise ValueError("the prompt is empty; the models predict from at least one token: try '0' or 'Once upon a'")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; expected 0 or more")
    was_training = model.training
    new: list[int] = []
    model.eval()
    tokens = torch.tensor(ids, device=model.device)[:, None]
    stream = token_stream(model, tokens, top_p, temperature, generator, top_k, repetition_penalty)
    try:
        for tokens, logits in itertools.islice(stream, max_new_tokens):
            new.append(int(tokens))
            if on_token:
                on_token(new[-1], logits[0])
            if stop and stop in tokenizer.decode(new[-len(stop.encode()) :]):  # a token is a byte or more
                break
    finally:
        model.train(was_training)
    text = tokenizer.decode(ids + new)
    end = text.find(stop, len(prompt)) if stop else -1
    return text if end < 0 else text[:end]
