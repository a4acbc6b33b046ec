"""Count models: what the next token was after the same last tokens, without a gradient. The baselines of every net."""

import math
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

from workbook.sequences import BLOCK, Sequences


def loss_floor(sequences: Iterable[Tensor], k: int | None = None) -> float:
    """The entropy (nats) of the next token given the last k (None: all): the lowest mean loss of any such model."""
    contexts, pairs = Counter[tuple](), Counter[tuple]()
    for sequence in (sequence.tolist() for sequence in sequences):
        for t, target in enumerate(sequence[1:], start=1):
            context = tuple(sequence[0 if k is None else max(0, t - k) : t])
            contexts[context] += 1
            pairs[context, target] += 1
    if not contexts:
        raise ValueError("no sequence has two tokens; expected one or more to count in")
    surprise = sum(n * math.log(contexts[context] / n) for (context, _), n in pairs.items())
    return surprise / contexts.total()


def padded(sequences: Sequences, size: int, blank: int) -> tuple[Tensor, Tensor]:
    """All tokens with `size` BLANKs before each sequence, and the places of the targets: no first token, nor BLANK."""
    flat = sequences.flat()
    if len(flat):
        low, high = (value.item() for value in flat.aminmax())
        if low < 0 or high > blank:
            raise ValueError(f"token ids run from {low} to {high}; expected 0 to {blank - 1}, or {blank} for BLANK")
    lengths = torch.from_numpy(sequences.lengths)
    number = torch.arange(len(lengths)).repeat_interleave(lengths)  # of the sequence of each token
    place = torch.arange(len(flat)) + size * (number + 1)
    tokens = torch.full((len(flat) + size * len(lengths),), blank)
    tokens[place] = flat
    target = flat != blank
    target[lengths.cumsum(0) - lengths] = False
    return tokens, place[target]


def with_targets(sequences: Iterable[Tensor]) -> Sequences:
    """Those of two tokens or more. ValueError where there is none."""
    view = Sequences.of(sequences)
    view = view[view.lengths > 1]
    if not len(view):
        raise ValueError("no sequence has two tokens; expected one or more to count in")
    return view


def target_windows(sequences: Iterable[Tensor], size: int, blank: int) -> Tensor:
    """Each target (not a first token, nor BLANK) after the `size` tokens before it, or BLANK: (M, size + 1)."""
    tokens, targets = padded(with_targets(sequences), size, blank)
    return tokens.unfold(0, size + 1, 1)[targets - size]


class WindowCounts:
    """The distinct windows of a text (a target and the `size` tokens before it) in order, and how often each occurs.

    A window is one number, its tokens the digits in base V + 1, so that a block of the text is one sort, and blocks are
    merged. Where the digits of a window do not fit into 63 bits, those of its oldest tokens are counted first and their
    places in that table take the place of their digits, as often as it needs (`tables`). The text is read in blocks,
    in a random order: where `memory` (bytes) ends, those read so far, one at least, are a random part of it, of the
    share `used`.
    `needed`: the most bytes that a window takes, in merging or in what is made of it.
    """

    def __init__(
        self, sequences: Iterable[Tensor], size: int, vocab_size: int, memory: float = math.inf, needed: int = 115
    ):
        self.base, self.blank, self.size = vocab_size + 1, vocab_size, size
        self.tables: list[Tensor] = []  # the keys of older columns
        self.keys, self.count = torch.empty(2, 0, dtype=torch.int64)
        self.digits: list[int] = []  # how many of a window's columns the keys of each table hold, and `keys` in the end
        text = with_targets(sequences)
        blocks = list(text.blocks())
        order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(0)).tolist()
        blocks = [blocks[number] for number in order]
        older: list[Tensor | None] = [None] * len(blocks)  # the place of each window's older columns in the last table
        begin = 0
        while begin <= size:
            rows, end = len(self.tables[-1]) if self.tables else 1, begin + 1
            while end <= size and rows * self.base ** (end + 1 - begin) < 2**63:
                end += 1
            blocks, older = self.count_columns(blocks, older, begin, end, memory, needed)
            begin = end
        self.used = sum(int(block.lengths.sum()) for block in blocks) / int(text.lengths.sum())

    def count_columns(
        self,
        blocks: list[Sequences],
        older: list[Tensor | None],
        begin: int,
        end: int,
        memory: float,
        needed: int,
    ) -> tuple[list[Sequences], list[Tensor | None]]:
        """Add the table of columns up to `end`; the blocks that fit, and the places of their windows in it."""
        last, runs, number = end > self.size, Runs(), 0
        held = sum(8 * len(keys) for keys in self.tables)
        if self.tables:  # the places of all windows are there
            held += sum(4 * int(block.lengths.sum()) for block in blocks)
        for number, block in enumerate(blocks):
            keys, place, count = torch.unique(self.number_windows(block, older[number], begin, end), True, True, True)
            tokens = int(block.lengths.sum())
            held += 0 if last or self.tables else 4 * tokens
            if number and held + 100 * tokens + needed * (len(keys) + len(runs)) > memory:  # with the block in work
                blocks, older = blocks[:number], older[:number]
                break
            runs.add(keys, count)
        self.keys, self.count = runs.merged()
        self.digits.append(end - begin)
        if last:
            return blocks, older
        self.tables.append(self.keys)
        if not number:  # there is one block
            return blocks, [place.int()]
        for number, block in enumerate(blocks):
            keys, place = torch.unique(self.number_windows(block, older[number], begin, end), return_inverse=True)
            older[number] = torch.searchsorted(self.keys, keys).int()[place]
        return blocks, older

    def number_windows(self, block: Sequences, older: Tensor | None, begin: int, end: int) -> Tensor:
        """For each target of a block, the number of its window's columns up to `end`."""
        tokens, targets = padded(block, self.size, self.blank)
        key = torch.zeros_like(targets) if older is None else older.long()
        for column in range(begin, end):
            key = key * self.base + tokens[targets - self.size + column]
        return key

    def windows(self) -> Tensor:
        """All of them in order, (n, size + 1) int32."""
        parts = self.keys.split(BLOCK)
        return torch.cat([decode(keys, self.tables, self.digits, self.base).int() for keys in parts])


def decode(keys: Tensor, tables: Sequence[Tensor], digits: Sequence[int], base: int) -> Tensor:
    """Windows (n, sum of digits) of keys: each holds so many tokens, and a place in the table before."""
    columns: list[Tensor] = []
    for level in reversed(range(len(digits))):
        for _ in range(digits[level]):
            columns.append(keys % base)
            keys = keys // base
        keys = tables[level - 1][keys] if level else keys
    return torch.stack(columns[::-1], 1) if columns else keys.new_empty(len(keys), 0)


def say_used(used: float, size: int, memory: float) -> None:
    """A warning where not all of a text was counted."""
    if used < 1:
        part = f"windows of {size + 1} tokens are counted in a random {used:.1%} of the text"
        warnings.warn(f"{part}: more do not fit into {memory / 1e9:g} GB (--count_memory)", stacklevel=3)


class Runs:
    """Sorted runs of distinct keys with their counts, merged as they grow: each key is merged a few times, not in each
    block anew."""

    def __init__(self) -> None:
        self.runs: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self.runs)

    def add(self, keys: Tensor, count: Tensor) -> None:
        self.runs.append((keys, count))
        while len(self.runs) > 1 and len(self.runs[-2][0]) < 2 * len(self.runs[-1][0]):
            self.merge()

    def merge(self) -> None:
        """Make one run of the last two."""
        runs = [self.runs.pop(), self.runs.pop()]
        keys, count = torch.cat([keys for keys, _ in runs]), torch.cat([count for _, count in runs])
        del runs  # with a large text each holds gigabytes
        keys, place = torch.unique(keys, return_inverse=True)
        self.runs.append((keys, torch.zeros_like(keys).index_add_(0, place, count)))

    def merged(self) -> tuple[Tensor, Tensor]:
        """All of them as one run."""
        while len(self.runs) > 1:
            self.merge()
        return self.runs[0]


class KneserNey:
    """Interpolated Kneser-Ney, modified (Chen & Goodman 1999, three discounts a level) or plain (one).

    `order` is the length of an n-gram: order - 1 tokens of context and the next one. Level m knows m tokens of context.
    The highest level counts occurrences; each lower one in how many different longer contexts a pair occurs; below the
    lowest lies 1 / V. `discounts` (for each level three, for counts of 1, 2 and more) replaces the estimates. `memory`:
    see `WindowCounts`; a warning says where it is too little.
    """

    def __init__(
        self,
        sequences: Iterable[Tensor],
        vocab_size: int,
        order: int,
        modified: bool = True,
        discounts: Sequence = (),
        memory: float = math.inf,
    ):
        if order < 1:
            raise ValueError(f"order is {order}; expected 1 or more")
        self.vocab_size, self.order, self.base = vocab_size, order, vocab_size + 1
        counted = WindowCounts(sequences, order - 1, vocab_size, memory, needed=115 + 35 * (order - 1))  # each level's
        say_used(counted.used, order - 1, memory)
        windows, counts = counted.windows(), counted.count
        del counted
        # A context's key: base * the place of the context without its oldest token + that token, below M * (V + 1).
        self.context_keys = [torch.zeros(1, dtype=torch.int64)]
        context = torch.zeros(len(windows), dtype=torch.int64)
        for older in windows[:, :-1].flip(1).unbind(1):
            keys, context = torch.unique(context.mul_(self.base).add_(older), return_inverse=True)
            self.context_keys.append(keys)
        pairs, place = context.mul_(self.base).add_(windows[:, -1]).sort()
        counts = counts[place]
        del windows, context, place
        self.levels: list[dict[str, Tensor]] = []
        for m in reversed(range(order)):
            given = discounts[m] if discounts else estimate_discounts(counts, modified)
            self.levels.insert(0, count_level(pairs, counts, torch.tensor(given, dtype=torch.float64), self.base))
            if m:  # each pair of this level is one longer context of a pair of the level below
                shorter = self.context_keys[m][pairs // self.base]
                shorter.div_(self.base, rounding_mode="floor").mul_(self.base).add_(pairs % self.base)
                pairs, counts = torch.unique(shorter, return_counts=True)

    def probability(self, contexts: Tensor, targets: Tensor) -> Tensor:
        """Contexts (M, order - 1 or more), newest last, BLANK before the start; targets (M,) -> (M,) float64."""
        if contexts.shape[1] < self.order - 1:
            raise ValueError(f"contexts hold {contexts.shape[1]} tokens; order {self.order} needs {self.order - 1}")
        contexts, targets = contexts.cpu(), targets.cpu()
        probability = torch.full(targets.shape, 1 / self.vocab_size, dtype=torch.float64)
        place, known = torch.zeros_like(targets), torch.ones_like(targets, dtype=torch.bool)
        for m, level in enumerate(self.levels):
            if m:
                place, found = look_up(self.context_keys[m], place * self.base + contexts[:, -m])
                known &= found  # a context never seen leaves the shorter one's probability as it is
            pair, found = look_up(level["pairs"], place * self.base + targets)
            longer = level["kept"][pair] * found + level["handed down"][place] * probability
            probability = probability.where(~known, longer)
        return probability

    def longest_seen(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """How many of a context's newest tokens the text has in this order, at most order - 1, and how often, (M,)."""
        contexts = contexts.cpu()
        place, known = torch.zeros(len(contexts), dtype=torch.int64), torch.ones(len(contexts), dtype=torch.bool)
        length, count = torch.zeros_like(place), torch.full_like(place, int(self.levels[0]["total"][0]))
        for m in range(1, self.order):
            place, found = look_up(self.context_keys[m], place * self.base + contexts[:, -m])
            known &= found
            length += known
            count = count.where(~known, self.levels[m]["total"][place].long())
        return length, count

    def loss(self, sequences: Iterable[Tensor]) -> float:
        """Mean nats a token over all targets of the sequences."""
        windows = target_windows(sequences, self.order - 1, self.vocab_size)
        return -self.probability(windows[:, :-1], windows[:, -1]).log().mean().item()


def count_level(pairs: Tensor, counts: Tensor, discount: Tensor, base: int) -> dict[str, Tensor]:
    """What a level knows: of each pair what its discount leaves, of each context its total and what it hands down."""
    context = pairs // base
    taken = discount[counts.clamp(max=3).sub_(1)]
    torch.minimum(taken, counts.double(), out=taken)
    total = context.bincount(counts.double())
    handed_down = context.bincount(taken).div_(total)
    kept = taken.neg_().add_(counts).div_(total[context])
    return {"pairs": pairs, "total": total, "discounts": discount, "kept": kept, "handed down": handed_down}


def look_up(keys: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where each wanted number stands in the ascending `keys`, and whether it does."""
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return place, keys[place] == wanted


def estimate_discounts(counts: Tensor, modified: bool) -> list[float]:
    """Discounts for counts of 1, 2, and 3 or more, from how many pairs occur once to four times.

    Y = n1 / (n1 + 2 n2); D_i = i - (i + 1) Y n_(i+1) / n_i; plain Kneser-Ney takes Y for all. Where a small
    text gives an estimate outside (0, i), or none, Y is taken, and 0.5 where that is missing too.
    """
    once, twice, thrice, four = (int((counts == number).sum()) for number in (1, 2, 3, 4))
    y = once / (once + 2 * twice) if once and twice else 0.5
    if not modified or not (once and twice and thrice and four):
        return [y] * 3
    estimates = [1 - 2 * y * twice / once, 2 - 3 * y * thrice / twice, 3 - 4 * y * four / thrice]
    return [estimate if 0 < estimate < i else y for i, estimate in enumerate(estimates, start=1)]


def mixed_loss(
    first: Tensor, second: Tensor, tuning: Tensor, seen: tuple[Tensor, Tensor] | None = None
) -> tuple[float, float]:
    """The loss (nats a token) of two models' mixture, and the first one's mean weight.

    `first` and `second` are their probabilities of the targets. The weight is the best one (by
    expectation-maximisation) where `tuning` is true; the loss is that of the other targets. With `seen`, what
    `longest_seen` finds, contexts of which as much was seen, 1, 2 to 3, 4 to 7, … times, have a weight of their own
    (Jelinek & Mercer 1980), as if of five targets more each model had taken its overall share.
    """
    group = torch.zeros_like(tuning, dtype=torch.int64)
    if seen is not None:
        group = 64 * seen[0] + seen[1].clamp(min=1).log2().floor().long()
    weight = torch.full((int(group.max()) + 1,), 0.5, dtype=first.dtype)
    size = group[tuning].bincount(minlength=len(weight))
    for _ in range(50):
        a = weight[group[tuning]] * first[tuning]
        share = a / (a + (1 - weight[group[tuning]]) * second[tuning])
        weight = torch.zeros_like(weight).index_add_(0, group[tuning], share)
        weight = (weight + 5 * share.mean()) / (size + 5)
    weights = weight[group[~tuning]]
    mixed = weights * first[~tuning] + (1 - weights) * second[~tuning]
    return -mixed.log().mean().item(), weights.mean().item()


def n_grams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All n neighbours in a row, of tokens or of words."""
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def distinct_share(texts: Iterable[Sequence[Hashable]], n: int) -> float:
    """Of all n-grams of the texts, the share that differs: distinct-n (Li et al. 2016). NaN where there is none."""
    grams = [gram for text in texts for gram in n_grams(text, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repeated_share(texts: Iterable[Sequence[Hashable]], n: int = 4) -> float:
    """Of all n-grams, the share that its own text had before. NaN where there is none."""
    grams = [n_grams(text, n) for text in texts]
    total = sum(map(len, grams))
    return 1 - sum(len(set(one)) for one in grams) / total if total else math.nan
