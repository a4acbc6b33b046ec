"""From sequences to batches: a split that is one, padding, the order of the data, and the contexts of a whole text."""

import hashlib
import math
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler

from helpers import ContextBatch, count_targets
from workbook.counts import WindowCounts
from workbook.sequences import BLOCK, Sequences
from workbook.text import VOCAB_SIZE, tokens_hash


def split_sequences(sequences: Sequence[Tensor], validation: float = 0.1, seed: int = 0) -> tuple[Sequences, Sequences]:
    """Training sequences, and a share of the distinct ones for validation: all copies of one go to one side."""
    if not 0 < validation < 1:
        raise ValueError(f"validation is {validation}; expected a share between 0 and 1")
    view = Sequences.of(sequences)
    names = [view[number].numpy().astype(">u4").tobytes() for number in range(len(view))]  # in the order of tuples
    distinct = sorted({*names})
    if len(distinct) < 2:
        raise ValueError(f"{len(distinct)} distinct sequence cannot be split in two; give more text")
    if len(distinct) < 20:
        few = f"only {len(distinct)} of {len(view)} sequences are distinct: a split of them is no split;"
        warnings.warn(f"{few} validation measures whether a model guesses a rule that it was never shown", stacklevel=2)
    random.Random(seed).shuffle(distinct)
    held_out = set(distinct[: min(max(1, round(validation * len(distinct))), len(distinct) - 1)])
    out = np.array([name in held_out for name in names])
    return view[~out], view[out]


def pad_batch(sequences: Sequence[Tensor], blank: int = VOCAB_SIZE) -> Tensor:
    """Sequences of several lengths -> (T, B) int64, padded at the end with `blank`. ValueError for none."""
    if not len(sequences):
        raise ValueError("there are no sequences to make a batch of; expected one or more")
    return nn.utils.rnn.pad_sequence(list(sequences), padding_value=blank)


class SimilarLengths(BatchSampler):
    """Batches of indices: of every 50 batches' worth in the order of a sampler, neighbours in length come together."""

    def __init__(self, sampler: Sampler[int], batch_size: int, lengths: np.ndarray, generator: torch.Generator):
        super().__init__(sampler, batch_size, drop_last=False)
        self.lengths, self.generator = lengths, generator

    def __iter__(self) -> Iterator[list[int]]:
        order = np.fromiter(self.sampler, np.int64)
        pool = np.arange(len(order)) // (50 * self.batch_size)
        order = order[np.lexsort((self.lengths[order], pool))]  # of equal lengths the first drawn comes first
        for number in torch.randperm(-(-len(order) // self.batch_size), generator=self.generator).tolist():
            yield order[number * self.batch_size :][: self.batch_size].tolist()


def make_batches(
    sequences: Sequence[Tensor],
    batch_size: int,
    *,
    blank: int = VOCAB_SIZE,
    seed: int = 0,
    shuffle: bool = True,
    weights: Sequence[float] | None = None,
    similar_lengths: bool = False,
) -> DataLoader:
    """A DataLoader of (T, B) batches, an epoch a pass: shuffled by `seed`, or drawn by `weights` of the sequences."""
    if not len(sequences):
        raise ValueError("there are no sequences to make batches of; expected one or more")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
    if weights is not None and len(weights) != len(sequences):
        raise ValueError(f"there are {len(weights)} weights for {len(sequences)} sequences; expected one for each")
    view, generator = Sequences.of(sequences), torch.Generator().manual_seed(seed)
    sampler: Sampler[int] = SequentialSampler(view)
    if weights is not None:
        sampler = Draws(weights, len(view), generator)
    elif shuffle:
        sampler = RandomSampler(view, generator=generator)
    batches = BatchSampler(sampler, batch_size, drop_last=False)
    if similar_lengths:
        batches = SimilarLengths(sampler, batch_size, view.lengths, generator)
    options: dict[str, Any] = {"generator": generator, "pin_memory": torch.cuda.is_available()}
    dataset: Any = view
    return DataLoader(dataset, batch_sampler=batches, collate_fn=lambda chosen: pad_batch(chosen, blank), **options)


class Draws(Sampler[int]):
    """Places drawn with replacement, with probabilities ~ weights: those that `torch.multinomial` draws, which ends at
    2^24 weights, a part at a time."""

    def __init__(self, weights: Any, draws: int, generator: torch.Generator):
        self.weights, self.draws, self.generator = torch.as_tensor(weights, dtype=torch.float64), draws, generator
        self.cumulative = self.weights.cumsum(0)
        self.cumulative /= self.cumulative[-1].item()

    def __len__(self) -> int:
        return self.draws

    def __iter__(self) -> Iterator[int]:
        for begin in range(0, self.draws, BLOCK):
            size = min(BLOCK, self.draws - begin)
            uniform = torch.rand(size, dtype=torch.float64, generator=self.generator)
            for places in torch.searchsorted(self.cumulative, uniform).split(2**16):
                yield from places.tolist()


class CorpusContexts:
    """A text as a k-gram needs it: each distinct context (U, k) once, with all its continuations and their counts.

    `memory`, in bytes: see `WindowCounts`.
    """

    def __init__(self, sequences: Iterable[Tensor], k: int, vocab_size: int, memory: float = math.inf):
        self.k, self.counted = k, WindowCounts(sequences, k, vocab_size, memory)
        pairs, self.count = self.counted.tables[-1][0], self.counted.count.int()
        self.target = (pairs % self.counted.base).int()
        self.keys, sizes = torch.unique_consecutive(pairs // self.counted.base, return_counts=True)
        self.counted.tables[-1] = pairs[:0], self.counted.tables[-1][1]  # what is left are the tables of older tokens
        self.edges = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        sums = torch.cat([torch.zeros(1, dtype=torch.int64), self.counted.count.cumsum(0)])
        self.total = sums[self.edges].diff()  # (U,) targets after each context

    @property
    def contexts(self) -> Tensor:
        """All of them, (U, k)."""
        return self.counted.decode(self.keys, newest=0)

    def __len__(self) -> int:
        return len(self.total)

    def batches(self, batch_size: int, *, power: float = 0.5, blanks: float = 0.0, seed: int = 0) -> DataLoader:
        """Batches of contexts drawn with probability ~ count^power, each weighted by count^(1 - power).

        Whatever `power` from 0 to 1 is, the expected loss and gradient are those of the whole text. Of a share `blanks`
        of the contexts only the newest 1 … k-1 tokens are shown, against overfitting: the net learns shorter contexts
        too, which is what Kneser-Ney falls back to (Xie et al. 2017).
        """
        if not (0 <= power <= 1 and 0 <= blanks <= 1) or batch_size < 1:
            raise ValueError(f"power {power}, blanks {blanks}, batch_size {batch_size}; expected 0 to 1, and 1 or more")
        generator = torch.Generator().manual_seed(seed)
        drawn = DrawnContexts(self, power, blanks, generator)
        rows = BatchSampler(Draws(drawn.chance, len(self), generator), batch_size, drop_last=False)
        options: dict[str, Any] = {"collate_fn": lambda batch: batch, "pin_memory": torch.cuda.is_available()}
        return DataLoader(drawn, batch_sampler=rows, generator=generator, **options)


class DrawnContexts(Dataset):
    """What a `DataLoader` takes of the drawn contexts: a whole batch at once."""

    def __init__(self, corpus: CorpusContexts, power: float, blanks: float, generator: torch.Generator):
        self.corpus, self.power, self.blanks, self.generator = corpus, power, blanks, generator
        self.chance: Any = corpus.total.double() ** power
        self.chance /= self.chance.sum()
        self.targets = corpus.total.sum()

    def __getitems__(self, chosen: list[int]) -> ContextBatch:
        corpus, k, rows = self.corpus, self.corpus.k, torch.tensor(chosen)
        sizes = corpus.edges[rows + 1] - corpus.edges[rows]
        row = torch.arange(len(rows)).repeat_interleave(sizes)
        first = corpus.edges[rows] - (sizes.cumsum(0) - sizes)  # pair number minus place in the batch
        pair = torch.arange(len(row)) + first[row]
        weight = 1 / (self.chance[rows] * len(rows) * self.targets)  # one over the draws expected of a row
        share = (corpus.count[pair] * weight[row]).float()
        contexts = corpus.counted.decode(corpus.keys[rows], newest=0)
        if self.blanks and k > 1:
            short = torch.rand(len(rows), generator=self.generator) < self.blanks
            hidden = torch.randint(1, k, (len(rows),), generator=self.generator) * short  # oldest tokens
            contexts = contexts.masked_fill(torch.arange(k) < hidden[:, None], corpus.counted.blank)
        return ContextBatch(contexts, row, corpus.target[pair].long(), share, int(corpus.total[rows].sum()))


def data_hash(batches: Any) -> str:
    """12 hex digits of the tokens that batches are made of, and their weights; "" where they cannot be known before."""
    data = getattr(batches, "dataset", batches)
    weights = getattr(getattr(getattr(batches, "batch_sampler", None), "sampler", None), "weights", None)
    if isinstance(data, DrawnContexts):
        digests = [array_hash(array) for array in (data.corpus.keys, data.corpus.target, data.corpus.count)]
    elif isinstance(data, (Sequences, list, tuple)) and data and isinstance(data[0], Tensor):
        digests = [tokens_hash([tokens.flatten() for tokens in data] if isinstance(data, (list, tuple)) else data)]
    else:
        return ""
    digests += [] if weights is None else [array_hash(weights)]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()[:12]


def array_hash(array: Tensor) -> str:
    """The SHA-256 of a tensor's bytes."""
    return hashlib.sha256(array.numpy().data).hexdigest()


def shard(batch: Tensor | ContextBatch, rank: int, world_size: int, blank: int) -> tuple[Tensor | ContextBatch, float]:
    """The part of a batch that process `rank` of `world_size` computes, and what its loss counts for in the whole.

    The shares times the losses of all processes add up to the loss of the batch. A process that would be left without
    a target takes the whole batch for a share of 0, as every process has to take part in each step.
    """
    if isinstance(batch, ContextBatch):
        mine = batch.row % world_size == rank
        row = batch.row[mine] // world_size
        part = ContextBatch(batch.contexts[rank::world_size], row, batch.target[mine], batch.share[mine], batch.tokens)
        return (part, 1.0) if len(row) else (batch, 0.0)
    columns, total = batch[:, rank::world_size], count_targets(batch, blank)
    share = count_targets(columns, blank) / max(total, 1)
    return (columns, share) if share else (batch, 0.0)
