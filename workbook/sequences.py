"""Sequences of tokens as one flat array, in memory or in a file, and where each of them begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**22  # tokens that are worked on at once


class Sequences(Sequence[Tensor]):
    """A view of a flat array of tokens: number i is the int64 tensor of the `lengths[i]` tokens from `starts[i]` on.

    `ids`, a table, renumbers them: token t of the array is `ids[t]`. The array may be a memory map, which processes
    share. A slice, or an array of numbers, is a view of fewer; `+` joins two views.
    """

    def __init__(self, tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray, ids: np.ndarray | None = None):
        self.tokens, self.starts, self.lengths, self.ids = tokens, starts, lengths, ids

    @classmethod
    def of(cls, sequences: Iterable[Tensor]) -> Sequences:
        """The view itself, or one of what tensors (length,) hold."""
        if isinstance(sequences, Sequences):
            return sequences
        arrays = [sequence.cpu().numpy() for sequence in sequences]
        lengths = np.array([len(array) for array in arrays], dtype=np.int64)
        tokens = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)
        return cls(tokens, lengths.cumsum() - lengths, lengths)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, which: int) -> Tensor: ...
    @overload
    def __getitem__(self, which: slice | np.ndarray) -> Sequences: ...
    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, (slice, np.ndarray)):
            return Sequences(self.tokens, self.starts[which], self.lengths[which], self.ids)
        start = self.starts[which]
        return torch.from_numpy(self.renumber(self.tokens[start : start + self.lengths[which]]))

    def __add__(self, other: Sequences) -> Sequences:
        if not (len(self) and len(other)):
            return self if len(self) else other
        lengths = np.concatenate([self.lengths, other.lengths])
        if other.tokens is self.tokens and other.ids is self.ids:
            return Sequences(self.tokens, np.concatenate([self.starts, other.starts]), lengths, self.ids)
        arrays = [each.gather() if each.ids is None else each.renumber(each.gather()) for each in (self, other)]
        return Sequences(np.concatenate(arrays), lengths.cumsum() - lengths, lengths)

    def renumber(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens of the array as int64, in the numbers of `ids`."""
        return tokens.astype(np.int64) if self.ids is None else self.ids[tokens]

    def gather(self) -> np.ndarray:
        """What the array holds of all sequences, one after the other."""
        ends = self.starts + self.lengths
        if len(self) and (ends[:-1] == self.starts[1:]).all():  # neighbours in the array
            return self.tokens[self.starts[0] : ends[-1]]
        found, end = np.empty(self.lengths.sum(), self.tokens.dtype), 0
        for block in self.blocks():
            before = block.lengths.cumsum() - block.lengths
            place = np.arange(block.lengths.sum()) + np.repeat(block.starts - before, block.lengths)
            found[end : end + len(place)] = self.tokens[place]
            end += len(place)
        return found

    def flat(self) -> Tensor:
        """All tokens, one sequence after the other, int64."""
        return torch.from_numpy(self.renumber(self.gather()))

    def blocks(self) -> Iterator[Sequences]:
        """Views of neighbours that hold about `BLOCK` tokens each."""
        ends = self.lengths.cumsum()
        borders = np.searchsorted(ends, np.arange(BLOCK, self.lengths.sum(), BLOCK)) + 1
        borders = np.unique([*borders, 0, len(self)])
        yield from (self[begin:end] for begin, end in zip(borders[:-1], borders[1:], strict=True))

    def renumbered(self, ids: np.ndarray) -> Sequences:
        """The same sequences, each token t as `ids[t]`."""
        return Sequences(self.tokens, self.starts, self.lengths, ids if self.ids is None else ids[self.ids])

    @property
    def highest(self) -> int:
        """A token id that no other exceeds."""
        if self.ids is not None:
            return int(self.ids.max())
        return np.iinfo(self.tokens.dtype).max if self.tokens.itemsize < 4 else int(self.tokens.max(initial=0))

    def targets(self) -> Sequences:
        """The sequences without their first tokens, which are no targets."""
        some = self[self.lengths > 1]
        return Sequences(some.tokens, some.starts + 1, some.lengths - 1, some.ids)

    def counts(self, vocab_size: int) -> Tensor:
        """How often each id below `vocab_size` occurs, (V,)."""
        total = torch.zeros(vocab_size, dtype=torch.int64)
        for block in self.blocks():
            flat = block.flat()
            total += flat[flat < vocab_size].bincount(minlength=vocab_size)
        return total
