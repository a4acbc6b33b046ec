"""From sequences to batches: a split that is one, padding, the order of the data, and the contexts of a whole text."""

from __future__ import annotations

import functools
import hashlib
import math
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler

from helpers import ContextBatch, count_targets
from workbook.counts import WindowCounts, decode, say_used
from workbook.sequences import BLOCK, Sequences
from workbook.store import kept_arrays
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
    return load_batches(PaddedBatches(view, blank), batches, generator)


class Part(NamedTuple):
    """What one of several processes computes of a batch, how much that counts for, and its targets: those of all
    processes, once these have been added up (`weigh`)."""

    batch: Tensor | ContextBatch
    weight: float  # at first a whole number
    tokens: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Part:
        return self._replace(batch=self.batch.to(device, non_blocking=non_blocking))


class Batches(Dataset):
    """What a `DataLoader` takes a batch of at once: numbers of sequences, or of contexts.

    Of n processes, each reads its `Part` alone: every n-th number. One without a target takes the whole batch for a
    weight of 0, as every process has to take part in each step.
    """

    rank, processes = 0, 1

    def read(self, numbers: list[int], part: slice) -> Part:
        """This part of a batch."""
        raise NotImplementedError

    def __getitem__(self, number: int) -> Tensor | ContextBatch | Part:
        return self.__getitems__([number])

    def __getitems__(self, numbers: list[int]) -> Tensor | ContextBatch | Part:
        part = self.read(numbers, slice(self.rank, None, self.processes))
        return part if self.processes > 1 else part.batch


def load_batches(batches: Batches, numbers: BatchSampler, generator: torch.Generator) -> DataLoader:
    """The batches of numbers, as they are."""
    options: dict[str, Any] = {"collate_fn": lambda batch: batch, "pin_memory": torch.cuda.is_available()}
    return DataLoader(batches, batch_sampler=numbers, generator=generator, **options)


class PaddedBatches(Batches):
    """Sequences side by side, (T, B)."""

    def __init__(self, sequences: Sequences, blank: int):
        self.sequences, self.blank = sequences, blank

    def read(self, numbers: list[int], part: slice) -> Part:
        own = [self.sequences[number] for number in numbers[part]]
        tokens = pad_batch(own, self.blank) if own else torch.empty(0, 0)
        if targets := count_targets(tokens, self.blank):
            return Part(tokens, targets, targets)
        return Part(pad_batch([self.sequences[number] for number in numbers], self.blank), 0, 0)


class Draws(Sampler[int]):
    """Places drawn with replacement, with probabilities ~ weights: those that `torch.multinomial` draws, which ends at
    2^24 weights, a part at a time."""

    def __init__(self, weights: Any, draws: int, generator: torch.Generator):
        self.weights, self.draws, self.generator = torch.as_tensor(weights, dtype=torch.float64), draws, generator
        self.cumulative = self.weights.cumsum(0)
        if not 0 < self.cumulative[-1] < math.inf or (self.weights < 0).any():
            raise ValueError("the weights of a draw are below 0, not finite, or all 0; expected 0 or more")
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

    `memory`, in bytes: see `WindowCounts`; a warning says where it is too little. `kept`: a folder from which the
    contexts are mapped into memory, which processes share; the first to come counts them.
    """

    def __init__(
        self,
        sequences: Iterable[Tensor],
        k: int,
        vocab_size: int,
        memory: float = math.inf,
        kept: Path | None = None,
    ):
        self.k, self.vocab_size = k, vocab_size
        make = functools.partial(count_contexts, sequences, k, vocab_size, memory)
        self.arrays = kept_arrays(kept, make) if kept else make()
        say_used(self.arrays["used"].item(), k, memory)
        self.keys, self.edges, self.total = (self.arrays[name] for name in ("keys", "edges", "total"))  # of contexts
        self.target, self.count = self.arrays["target"], self.arrays["count"]  # of pairs of a context and a target

    @property
    def contexts(self) -> Tensor:
        """All of them, (U, k)."""
        return self.decode(self.keys)

    def decode(self, keys: Tensor) -> Tensor:
        """The contexts (n, k) of keys."""
        digits = self.arrays["digits"].tolist()
        tables = [self.arrays[f"table {number}"] for number in range(len(digits) - 1)]
        return decode(keys, tables, [*digits[:-1], digits[-1] - 1], self.vocab_size + 1)

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
        return load_batches(drawn, rows, generator)


def count_contexts(sequences: Iterable[Tensor], k: int, vocab_size: int, memory: float) -> dict[str, Tensor]:
    """The arrays of `CorpusContexts`."""
    counted = WindowCounts(sequences, k, vocab_size, memory)
    zero = torch.zeros(1, dtype=torch.int64)
    pairs, (keys, sizes) = counted.keys, torch.unique_consecutive(counted.keys // counted.base, return_counts=True)
    arrays = {"keys": keys, "edges": torch.cat([zero, sizes.cumsum(0)])}
    arrays["total"] = torch.cat([zero, counted.count.cumsum(0)])[arrays["edges"]].diff()  # (U,) targets after each
    arrays |= {"target": (pairs % counted.base).int(), "count": counted.count.int()}
    arrays |= {f"table {number}": table for number, table in enumerate(counted.tables)}
    return arrays | {"digits": torch.tensor(counted.digits), "used": torch.tensor([counted.used], dtype=torch.float64)}


class DrawnContexts(Batches):
    """Drawn contexts with all that follows them, weighted so that the expected loss is that of the text."""

    def __init__(self, corpus: CorpusContexts, power: float, blanks: float, generator: torch.Generator):
        self.corpus, self.power, self.blanks, self.generator = corpus, power, blanks, generator
        self.chance: Any = corpus.total.double() ** power
        self.chance /= self.chance.sum()
        self.targets = corpus.total.sum()

    def read(self, numbers: list[int], part: slice) -> Part:
        corpus, k, rows = self.corpus, self.corpus.k, torch.tensor(numbers)
        hidden = torch.zeros_like(rows)  # oldest tokens
        if self.blanks and k > 1:  # drawn for all of them, that every process draws the same
            short = torch.rand(len(rows), generator=self.generator) < self.blanks
            hidden = torch.randint(1, k, (len(rows),), generator=self.generator) * short
        own = len(numbers[part])
        rows, hidden = (rows[part], hidden[part]) if own else (rows, hidden)
        sizes = corpus.edges[rows + 1] - corpus.edges[rows]
        row = torch.arange(len(rows)).repeat_interleave(sizes)
        first = corpus.edges[rows] - (sizes.cumsum(0) - sizes)  # pair number minus place in the batch
        pair = torch.arange(len(row)) + first[row]
        weight = 1 / (self.chance[rows] * len(rows) * self.targets)  # one over the draws expected of a row
        share = (corpus.count[pair] * weight[row]).float()
        contexts = corpus.decode(corpus.keys[rows])
        contexts = contexts.masked_fill(torch.arange(k) < hidden[:, None], corpus.vocab_size)
        tokens = int(corpus.total[rows].sum())
        return Part(ContextBatch(contexts, row, corpus.target[pair].long(), share, tokens), own, tokens if own else 0)


def data_hash(batches: Any) -> str:
    """12 hex digits of the tokens that batches are made of, and their weights; "" where they cannot be known before."""
    data = getattr(batches, "dataset", batches)
    data = data.sequences if isinstance(data, PaddedBatches) else data
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
