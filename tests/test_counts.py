"""Count models: sums, the definition token by token, and nltk as the oracle."""

import math
from collections import Counter, defaultdict

import pytest
import torch
from nltk.lm import KneserNeyInterpolated

from workbook.counts import KneserNey, distinct_share, loss_floor, mixed_loss, repeated_share, target_windows
from workbook.text import compact_vocabulary, read_sequences


def some_text(number=12, vocab_size=7, seed=0):
    """Sequences of 2 to 20 tokens in which some pairs are much more frequent than others."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 21, (number,), generator=generator).tolist()
    shares = torch.rand(vocab_size, generator=generator) ** 3
    return [torch.multinomial(shares, n, replacement=True, generator=generator) for n in lengths]


def all_contexts(order, vocab_size):
    """Every context of order - 1 ids, BLANK among them."""
    ids = torch.arange(vocab_size + 1)
    return torch.cartesian_prod(*[ids] * (order - 1)).reshape(-1, order - 1) if order > 1 else torch.zeros(1, 0).long()


def test_windows_hold_each_target_once_with_what_came_before():
    sequences = [torch.tensor([1, 2, 3]), torch.tensor([4]), torch.tensor([5, 6])]
    assert target_windows(sequences, 2, 9).tolist() == [[9, 1, 2], [1, 2, 3], [9, 5, 6]]
    assert target_windows(sequences, 0, 9).tolist() == [[2], [3], [6]]
    with pytest.raises(ValueError, match="no sequence has two tokens"):
        target_windows([torch.tensor([4])], 2, 9)


@pytest.mark.parametrize("modified", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one_after_any_context(order, modified):
    model = KneserNey(some_text(), 7, order, modified=modified)
    contexts = all_contexts(order, 7)
    every = model.probability(contexts.repeat_interleave(7, 0), torch.arange(7).repeat(len(contexts))).view(-1, 7)
    assert (every > 0).all()
    torch.testing.assert_close(every.sum(1), torch.ones(len(contexts), dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_against_nltk(order):
    """nltk knows one discount for all levels, none at the lowest: the same numbers, to rounding."""
    sequences, discount = some_text(), 0.1
    model = KneserNey(sequences, 7, order, discounts=[[0.0] * 3] + [[discount] * 3] * (order - 1))
    windows = target_windows(sequences, order - 1, 7).tolist()
    oracle = KneserNeyInterpolated(order, discount=discount)
    grams = [tuple(str(token) for token in window[-n:]) for window in windows for n in range(1, order + 1)]
    oracle.fit([grams], vocabulary_text=[str(token) for token in range(8)])
    seen = {window[-1] for window in windows}
    for context in all_contexts(order, 7).tolist():
        for target in seen:
            ours = model.probability(torch.tensor([context]), torch.tensor([target])).item()
            theirs = oracle.score(str(target), [str(token) for token in context])
            assert ours == pytest.approx(theirs, abs=1e-12), (context, target)


def literal_kneser_ney(sequences, vocab_size, order, discounts):
    """The oracle of the modified form: dictionaries and the formula, one probability at a time."""
    windows = [tuple(window) for window in target_windows(sequences, order - 1, vocab_size).tolist()]
    counts = [Counter() for _ in range(order)]
    counts[order - 1].update(windows)
    for m in reversed(range(order - 1)):
        counts[m].update(gram[1:] for gram in counts[m + 1])  # how many different longer n-grams end so
    after = [defaultdict(list) for _ in range(order)]
    for m in range(order):
        for gram, count in counts[m].items():
            after[m][gram[:-1]].append(count)

    def probability(context, target, m):
        if m < 0:
            return 1 / vocab_size
        lower = probability(context[1:], target, m - 1)
        following = after[m][context]
        if not following:
            return lower
        taken = [min(discounts[m][min(count, 3) - 1], count) for count in following]
        count = counts[m][(*context, target)]
        kept = count - min(discounts[m][min(count, 3) - 1], count) if count else 0
        return (kept + sum(taken) * lower) / sum(following)

    return lambda context, target: probability(tuple(context), target, order - 1)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_against_the_definition(order):
    sequences = some_text(number=30)
    model = KneserNey(sequences, 7, order)
    literal = literal_kneser_ney(sequences, 7, order, [level["discounts"].tolist() for level in model.levels])
    for context in all_contexts(order, 7).tolist()[::3]:
        for target in range(7):
            ours = model.probability(torch.tensor([context]).reshape(1, -1), torch.tensor([target])).item()
            assert ours == pytest.approx(literal(context, target), abs=1e-12)


def test_discounts_follow_the_counts_of_counts():
    """A text whose pairs occur once, twice, three and four times as often as the formula is worked out for by hand."""
    repeats = [1] * 8 + [2] * 4 + [3] * 2 + [4]  # n1 = 8, n2 = 4, n3 = 2, n4 = 1: Y = 8 / 16
    sequences = [torch.tensor([2 * i, 2 * i + 1]) for i, number in enumerate(repeats) for _ in range(number)]
    model = KneserNey(sequences, 30, 2)
    assert model.levels[1]["discounts"].tolist() == [1 - 2 * 0.5 * 4 / 8, 2 - 3 * 0.5 * 2 / 4, 3 - 4 * 0.5 * 1 / 2]
    assert KneserNey(sequences, 30, 2, modified=False).levels[1]["discounts"].tolist() == [0.5] * 3


def test_more_context_helps_on_3seqs_down_to_its_floor(tokenizer):
    """Counted from the text itself, the loss comes near the exact floor of that context and never under it."""
    sequences, ids = compact_vocabulary(read_sequences("3seqs.txt", tokenizer, 32))
    for k in (1, 2, 3):
        loss, floor = KneserNey(sequences, len(ids), k + 1).loss(sequences), loss_floor(sequences, k)
        assert floor - 1e-9 <= loss < floor + 0.15


def test_a_mixture_may_beat_both_of_its_models():
    one = torch.tensor([0.9, 0.1], dtype=torch.float64).repeat(200)
    loss, weight = mixed_loss(one, 1 - one, torch.arange(400) < 200)
    assert loss == pytest.approx(-math.log(0.5)) and weight == pytest.approx(0.5)
    assert loss < -one.log().mean()


def test_wrong_orders_and_contexts_say_so():
    with pytest.raises(ValueError, match="order is 0"):
        KneserNey(some_text(), 7, 0)
    with pytest.raises(ValueError, match="order 3 needs 2"):
        KneserNey(some_text(), 7, 3).probability(torch.tensor([[1]]), torch.tensor([1]))


def test_a_token_outside_the_vocabulary_is_context_and_no_target():
    windows = target_windows([torch.tensor([1, 2, 4, 0])], 2, 4)  # V = 4
    assert windows.tolist() == [[4, 1, 2], [2, 4, 0]]


def test_no_target_chooses_its_own_mixture():
    tuning = torch.tensor([True] * 500 + [False] * 500)
    first = torch.full((1000,), 0.4, dtype=torch.float64)
    second = torch.where(tuning, 0.8, 0.1).double()  # better where the weight is fitted, worse where the loss is taken
    loss, weight = mixed_loss(first, second, tuning)
    assert loss == pytest.approx(-math.log(0.1), abs=1e-3) and weight == pytest.approx(0, abs=1e-3)
    loss, weight = mixed_loss(first, second, ~tuning)
    assert loss == pytest.approx(-math.log(0.4), abs=1e-3) and weight == pytest.approx(1, abs=1e-3)
    rng = torch.Generator().manual_seed(0)
    first, second = (torch.rand(4000, generator=rng, dtype=torch.float64) for _ in range(2))
    loss, weight = mixed_loss(first, second, torch.arange(4000) < 2000)
    best = min(-(w * first + (1 - w) * second)[2000:].log().mean().item() for w in torch.arange(1, 100) / 100)
    assert best - 1e-9 <= loss < best + 2e-3 and 0.4 < weight < 0.6


def test_how_much_of_a_context_was_seen_and_how_often():
    model = KneserNey([torch.tensor([0, 1, 2, 0, 1, 3, 0, 1, 2, 4])], 5, 3)
    contexts = torch.tensor([[0, 1], [1, 2], [2, 2], [4, 0], [5, 0], [0, 4]])
    length, count = model.longest_seen(contexts)
    assert length.tolist() == [2, 2, 1, 1, 2, 0] and count[:2].tolist() == [3, 2]
    assert count[4] == 1  # the start of the text
    # lower levels count pairs by the different tokens before them, as Kneser-Ney does: "2" goes on in two ways
    assert count[2] == 2 and count[5] == model.levels[0]["total"][0]


@pytest.mark.parametrize("rare, often", [((1, 5), (2, 5)), ((0, 1), (1, 1)), ((2, 1), (2, 2)), ((2, 3), (2, 4))])
def test_contexts_of_which_more_was_seen_have_a_weight_of_their_own(rare, often):
    tuning, second_half = torch.arange(4000) % 2 == 0, torch.arange(4000) >= 2000
    seen = tuple(torch.where(second_half, torch.tensor(b), torch.tensor(a)) for a, b in zip(rare, often, strict=True))
    first = torch.where(second_half, 0.1, 0.5).double()  # better where the context is rare
    second = torch.where(second_half, 0.5, 0.1).double()
    alike, weight = mixed_loss(first, second, tuning)
    apart, _ = mixed_loss(first, second, tuning, seen)
    assert alike == pytest.approx(-math.log(0.3), abs=1e-6) and weight == pytest.approx(0.5)
    assert apart == pytest.approx(-math.log(0.5), abs=4e-3)


def test_shares_of_distinct_and_of_repeated_n_grams():
    texts = ["ababab", "ab", "a"]  # a text is any sequence: here of letters
    assert distinct_share(texts, 1) == 2 / 9 and distinct_share(texts, 2) == 2 / 6
    assert distinct_share(texts, 4) == 2 / 3 and repeated_share(texts) == pytest.approx(1 / 3)  # abab, baba, abab
    assert repeated_share(texts, 2) == pytest.approx(3 / 6)  # what another text had is no repetition
    assert math.isnan(distinct_share(["a"], 2)) and math.isnan(repeated_share([]))
