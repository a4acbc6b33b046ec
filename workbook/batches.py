"""From sequences to batches: a split that is one, padding, the order of the data, and the contexts of a whole text."""

import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SequentialSampler, WeightedRandomSampler

from helpers import ContextBatch, count_targets, distinct_contexts
from workbook.counts import target_windows
from workbook.text import VOCAB_SIZE, tokens_hash


def split_sequences(sequences: Sequence[Tensor], validation: float = 0.1, seed: int = 0) -> tuple[list[Tensor], ...]:
    """Training sequences, and a share of the distinct ones for validation: all copies of one go to one side."""
    if not 0 < validation < 1:
        raise ValueError(f"validation is {validation}; expected a share between 0 and 1")
    distinct = sorted({tuple(sequence.tolist()) for sequence in sequences})
    if len(distinct) < 2:
        raise ValueError(f"{len(distinct)} distinct sequence cannot be split in two; give more text")
    if len(distinct) < 20:
        few = f"only {len(distinct)} of {len(sequences)} sequences are distinct: a split of them is no split;"
        warnings.warn(f"{few} validation measures whether a model guesses a rule that it was never shown", stacklevel=2)
    random.Random(seed).shuffle(distinct)
    held_out = set(distinct[: min(max(1, round(validation * len(distinct))), len(distinct) - 1)])
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for sequence in sequences:
        sides[tuple(sequence.tolist()) in held_out].append(sequence)
    return sides


def pad_batch(sequences: Sequence[Tensor], blank: int = VOCAB_SIZE) -> Tensor:
    """Sequences of several lengths -> (T, B) int64, padded at the end with `blank`. ValueError for none."""
    if not len(sequences):
        raise ValueError("there are no sequences to make a batch of; expected one or more")
    return nn.utils.rnn.pad_sequence(list(sequences), padding_value=blank)


class SimilarLengths(BatchSampler):
    """Batches of indices: of every 50 batches' worth in the order of a sampler, neighbours in length come together."""

    def __init__(self, sampler: Sampler[int], batch_size: int, lengths: Sequence[int], generator: torch.Generator):
        super().__init__(sampler, batch_size, drop_last=False)
        self.lengths, self.generator = lengths, generator

    def __iter__(self) -> Iterator[list[int]]:
        pools = BatchSampler(self.sampler, 50 * self.batch_size, drop_last=False)
        order = [index for pool in pools for index in sorted(pool, key=self.lengths.__getitem__)]
        batches = list(BatchSampler(order, self.batch_size, drop_last=False))
        yield from (batches[n] for n in torch.randperm(len(batches), generator=self.generator).tolist())


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
    generator = torch.Generator().manual_seed(seed)
    sampler: Sampler[int] = SequentialSampler(sequences)
    if weights is not None:
        sampler = WeightedRandomSampler(weights, len(sequences), generator=generator)
    elif shuffle:
        sampler = RandomSampler(sequences, generator=generator)
    batches = BatchSampler(sampler, batch_size, drop_last=False)
    if similar_lengths:
        batches = SimilarLengths(sampler, batch_size, [len(sequence) for sequence in sequences], generator)
    options: dict[str, Any] = {"dataset": sequences, "generator": generator, "pin_memory": torch.cuda.is_available()}
    return DataLoader(batch_sampler=batches, collate_fn=lambda chosen: pad_batch(chosen, blank), **options)


class CorpusContexts:
    """A text as a k-gram needs it: each distinct context (U, k) once, with all its continuations and their counts."""

    def __init__(self, sequences: Iterable[Tensor], k: int, vocab_size: int):
        self.blank = vocab_size
        windows = target_windows(sequences, k, vocab_size)
        self.contexts, index = distinct_contexts(windows[:, :k], vocab_size)
        pairs, self.count = torch.unique(index * vocab_size + windows[:, k], return_counts=True)
        self.target = pairs % vocab_size
        self.total = index.bincount()  # (U,) targets after each context
        self.edges = torch.searchsorted(pairs, vocab_size * torch.arange(len(self.total) + 1))

    def __len__(self) -> int:
        return len(self.total)

    def __getitem__(self, number: int) -> int:
        return number  # of a context: `batches` puts together what follows it

    def batches(self, batch_size: int, *, power: float = 0.5, blanks: float = 0.0, seed: int = 0) -> DataLoader:
        """Batches of contexts drawn with probability ~ count^power, each weighted by count^(1 - power).

        Whatever `power` from 0 to 1 is, the expected loss and gradient are those of the whole text. Of a share `blanks`
        of the contexts only the newest 1 … k-1 tokens are shown, against overfitting: the net learns shorter contexts
        too, which is what Kneser-Ney falls back to (Xie et al. 2017).
        """
        if not (0 <= power <= 1 and 0 <= blanks <= 1) or batch_size < 1:
            raise ValueError(f"power {power}, blanks {blanks}, batch_size {batch_size}; expected 0 to 1, and 1 or more")
        k, generator = self.contexts.shape[1], torch.Generator().manual_seed(seed)
        chance: Any = self.total.double() ** power
        chance /= chance.sum()

        def collate(chosen: list[int]) -> ContextBatch:
            rows = torch.tensor(chosen)
            sizes = self.edges[rows + 1] - self.edges[rows]
            row = torch.arange(len(rows)).repeat_interleave(sizes)
            first = self.edges[rows] - (sizes.cumsum(0) - sizes)  # pair number minus place in the batch
            pair = torch.arange(len(row)) + first[row]
            weight = 1 / (chance[rows] * len(rows) * self.total.sum())  # one over the draws expected of a row
            share = (self.count[pair] * weight[row]).float()
            contexts = self.contexts[rows]
            if blanks and k > 1:
                short = torch.rand(len(rows), generator=generator) < blanks
                hidden = torch.randint(1, k, (len(rows),), generator=generator) * short  # oldest tokens
                contexts = contexts.masked_fill(torch.arange(k) < hidden[:, None], self.blank)
            return ContextBatch(contexts, row, self.target[pair], share, int(self.total[rows].sum()))

        rows = WeightedRandomSampler(chance, len(self), generator=generator)
        options: dict[str, Any] = {"dataset": self, "pin_memory": torch.cuda.is_available()}
        return DataLoader(batch_size=batch_size, sampler=rows, collate_fn=collate, generator=generator, **options)


def data_hash(batches: Any) -> str:
    """12 hex digits of the tokens that batches are made of, and their weights; "" where they cannot be known before."""
    data = getattr(batches, "dataset", batches)
    weights = getattr(getattr(batches, "sampler", None), "weights", None)  # of each sequence or context
    if isinstance(data, CorpusContexts):
        data = [data.contexts.flatten(), data.target, data.count]
    elif isinstance(data, (list, tuple)) and data and isinstance(data[0], Tensor):
        data = [tokens.flatten() for tokens in data]
    else:
        return ""
    return tokens_hash(data if weights is None else [*data, weights])


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
