"""The loss against a literal loop, its padding, its floors; evaluation."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import DESIGNS, kgram, loop_loss, lstm, random_tokens, transformer
from torch import nn

import helpers
from workbook.batches import CorpusContexts, Part, make_batches, pad_batch
from workbook.config import TrainingConfig
from workbook.counts import loss_floor
from workbook.text import compact_vocabulary, read_sequences
from workbook.training import compare, train


@pytest.mark.parametrize("name", DESIGNS)
def test_twenty_steps_equal_the_literal_loop(name):
    model = kgram(DESIGNS[name], vocab_size=60, k=2, hidden_size=16, num_layers=2)
    twin = copy.deepcopy(model)
    batches = [random_tokens(7, 4, vocab_size=60, seed=seed) for seed in range(20)]
    for tokens in batches:
        tokens[5:, 0] = model.blank
    fast = compare({"m": model}, batches, TrainingConfig(steps=20), progress=False)["loss"]
    slow = compare({"m": twin}, batches, TrainingConfig(steps=20), loss_fn=loop_loss, progress=False)["loss"]
    assert (fast - slow).abs().max() < 1e-4 and fast.iloc[-1] < fast.iloc[0]


@pytest.mark.parametrize("name", [*DESIGNS, "LSTM"])
@settings(max_examples=15, deadline=None)
@given(length=st.integers(2, 9), batch=st.integers(1, 4), seed=st.integers(0, 999), cut=st.integers(0, 8))
def test_loss_and_gradients_equal_plain_cross_entropy(name, length, batch, seed, cut):
    model = lstm() if name == "LSTM" else kgram(DESIGNS[name])
    tokens = random_tokens(length, batch, vocab_size=4, seed=seed)  # four ids: contexts and pairs repeat
    tokens[max(2, length - cut) :, 0] = model.blank
    plain = F.cross_entropy(model(tokens[:-1]).flatten(0, 1), tokens[1:].flatten(), ignore_index=model.blank)
    loss = helpers.next_token_loss(model, tokens)
    assert abs(loss.item() - plain.item()) < 1e-5
    if name != "LSTM":
        assert abs(loss.item() - loop_loss(model, tokens).item()) < 1e-5
    for ours, theirs in zip(*(torch.autograd.grad(x, model.parameters()) for x in (3 * loss, 3 * plain)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk_rows", [1, 2, 5, 100])
def test_head_cross_entropy_in_chunks(chunk_rows):
    torch.manual_seed(0)
    rows, head = torch.randn(5, 4, dtype=torch.double, requires_grad=True), nn.Linear(4, 7).double()
    row, target = torch.tensor([0, 0, 2, 3, 4]), torch.tensor([1, 6, 0, 3, 3])  # row 1 has no target
    share = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1], dtype=torch.double)

    plain = (share * F.cross_entropy(head(rows)[row], target, reduction="none")).sum()
    expected = torch.autograd.grad(plain, (rows, *head.parameters()))
    ours = helpers.head_cross_entropy(rows, head, row, target, share, chunk_rows)
    torch.testing.assert_close(ours, plain)
    for a, b in zip(torch.autograd.grad(ours, (rows, *head.parameters())), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_second_backward_says_why_not():
    loss = helpers.next_token_loss(lstm(), random_tokens(5, 2))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


@pytest.mark.parametrize("make", [kgram, lstm])
def test_padding_does_not_count(make):
    model = make()
    long, short = random_tokens(10, 1)[:, 0], random_tokens(4, 1, seed=1)[:, 0]
    each = [helpers.next_token_loss(model, sequence[:, None]).item() for sequence in (long, short)]
    both = pad_batch([long, short], model.blank)
    assert helpers.next_token_loss(model, both).item() == pytest.approx((9 * each[0] + 3 * each[1]) / 12, abs=1e-6)
    wider = torch.cat([both, torch.full((10, 20), model.blank)], dim=1)
    longer = torch.cat([both, torch.full((20, 2), model.blank)])
    for padded in (wider, longer):
        assert helpers.next_token_loss(model, padded).item() == pytest.approx(
            helpers.next_token_loss(model, both).item(), abs=1e-6
        )
        assert helpers.count_targets(padded, model.blank) == 12


@pytest.mark.parametrize("target", [0, 39])  # "!" is id 0, <|endoftext|> the last id
def test_every_real_id_is_a_target(target):
    model, tokens = lstm(), torch.tensor([[5], [target]])
    expected = -model(tokens)[0, 0].log_softmax(-1)[target].item()
    assert helpers.count_targets(tokens, model.blank) == 1
    assert helpers.next_token_loss(model, tokens).item() == pytest.approx(expected, abs=1e-5)


def test_a_batch_without_targets_says_so():
    for tokens in (torch.tensor([[3, 4]]), torch.tensor([[3], [40]])):
        with pytest.raises(ValueError, match="no target"):
            helpers.next_token_loss(lstm(), tokens)


class Constant(helpers.SequenceModel):
    """Gives token 0 a loss of 1.0 and token 1 a loss of 5.0, whatever came before."""

    def __init__(self):
        super().__init__(3, 1)
        rest = 1 - math.exp(-1) - math.exp(-5)
        self.head.weight.data.zero_()
        self.head.bias.data = torch.tensor([-1, -5, math.log(rest)])

    def hidden(self, tokens):
        return torch.zeros(*tokens.shape, 1)


@pytest.mark.parametrize("batch_size", [1, 2, 11])
def test_evaluation_is_weighted_by_tokens(batch_size):  # 1.4, not the mean of batch means, 3.0
    sequences = [torch.zeros(10, dtype=torch.long), torch.tensor([0, 1])]
    model = Constant().train()
    result = helpers.evaluate(model, make_batches(sequences, batch_size, blank=3, shuffle=False))
    assert result["loss"] == pytest.approx(1.4, abs=1e-6) and result["tokens"] == 10
    assert result["perplexity"] == pytest.approx(math.exp(1.4), abs=1e-5)
    assert model.training


@pytest.mark.parametrize("make", [lstm, kgram, transformer])
def test_dropout_acts_in_training_alone(make):
    model, tokens = make(), random_tokens(9, 3)
    plain = helpers.evaluate(model, [tokens])["loss"]
    model.dropout.p = 0.5
    assert helpers.evaluate(model, [tokens])["loss"] == plain and model.training
    log_p = helpers.target_log_probabilities(model, list(tokens.t()))
    assert -torch.cat(log_p).mean().item() == pytest.approx(plain, abs=1e-5) and model.training
    assert len({helpers.next_token_loss(model, tokens).item() for _ in range(3)} - {plain}) == 3


def test_evaluation_of_nothing_says_so():
    with pytest.raises(ValueError, match="no target"):
        helpers.evaluate(Constant(), [])


FLOORS = {
    32: (0.41935, 0.02981, 0.01491, 0.01491),
    128: (0.44530, 0.01092, 0.00364, 0.00364),
    1024: (1.83460, 0.10511, 0.04512, 0.00057),
}


@pytest.mark.parametrize("block_size", FLOORS)
def test_exact_floors_of_3seqs(tokenizer, block_size):
    copies = {tuple(sequence.tolist()): sequence for sequence in read_sequences("3seqs.txt", tokenizer, block_size)}
    sequences = list(copies.values())  # each of the three once: all have 32 copies, so the floors are the same
    floors = [round(loss_floor(sequences, k), 5) for k in (1, 2, 3, None)]
    assert floors == pytest.approx(FLOORS[block_size], abs=1e-9)


@pytest.fixture(scope="module")
def small_3seqs(tokenizer):
    """3seqs.txt at block 32 with its ids renumbered 0 … V-1: the same floors, a small head."""
    sequences = read_sequences("3seqs.txt", tokenizer, 32)
    compact, ids = compact_vocabulary(sequences)
    return compact, len(ids)


@pytest.mark.parametrize("k", [1, 2, 3, None])
def test_trained_models_reach_their_floor_and_never_pass_it(small_3seqs, k):
    sequences, vocab_size = small_3seqs
    floor = loss_floor(sequences, k)
    sizes = {"vocab_size": vocab_size, "embed_size": 32, "hidden_size": 64}
    model = lstm(**sizes) if k is None else kgram(k=k, **sizes)
    batches = make_batches(sequences, 16, blank=vocab_size)
    for steps, rate in ((300, 1e-2), (150, 1e-3)):
        train(model, batches, TrainingConfig(steps=steps, learning_rate=rate), progress=False)
    loss = helpers.evaluate(model, batches)["loss"]
    assert floor - 1e-6 <= loss <= floor + 0.01  # 1e-6: float32


def test_bfloat16_changes_the_head_by_its_rounding_and_no_more():
    model, tokens = lstm(vocab_size=300, hidden_size=32, embed_size=16), random_tokens(12, 8, vocab_size=300)
    wide = helpers.next_token_loss(model, tokens)
    wide.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = helpers.next_token_loss(model, tokens)
    narrow.backward()
    assert narrow.dtype == torch.float32 and 0 < abs(narrow.item() - wide.item()) < wide.item() / 256  # its 8 bits
    for name, weight in model.named_parameters():
        assert (weight.grad - gradients[name]).norm() < 0.03 * gradients[name].norm(), name


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_contexts_of_the_text_give_its_expected_loss_and_gradient(power):
    """Over all draws, each with its chance, the loss and its gradient are those of the whole text."""
    sequences = [random_tokens(length, 1, vocab_size=5, seed=length)[:, 0] for length in range(2, 20)]
    model = kgram(vocab_size=5, k=2)
    contexts = CorpusContexts(sequences, 2, 5)
    assert contexts.total.sum() == sum(len(sequence) - 1 for sequence in sequences) == contexts.count.sum()
    chance = contexts.total.double() ** power / (contexts.total.double() ** power).sum()
    batch = contexts.batches(len(contexts), power=power)
    losses = [helpers.context_loss(model, batch.dataset.__getitems__([number])) for number in range(len(contexts))]
    expected = sum(p.item() * loss for p, loss in zip(chance, losses, strict=True))
    plain = helpers.next_token_loss(model, pad_batch(sequences, 5))
    assert abs(expected.item() - plain.item()) < 1e-5
    for ours, theirs in zip(*(torch.autograd.grad(x, model.parameters()) for x in (expected, plain)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_batches_of_contexts_follow_their_chances_and_repeat_by_seed():
    sequences = [random_tokens(40, 1, vocab_size=3, seed=seed)[:, 0] for seed in range(20)]
    contexts = CorpusContexts(sequences, 1, 3)
    assert len(contexts) == 3 and helpers.count_targets(contexts.batches(3).dataset.__getitems__([0, 1, 2])) == 780

    first, again, other = (list(contexts.batches(2, seed=seed)) for seed in (0, 0, 1))
    assert [len(batch.contexts) for batch in first] == [2, 1]
    assert all(torch.equal(a.contexts, b.contexts) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a.contexts, b.contexts) for a, b in zip(first, other, strict=True))
    assert all((batch.row.diff() >= 0).all() and batch.row.max() < len(batch.contexts) for batch in first)
    with pytest.raises(ValueError, match="expected 0 to 1"):
        contexts.batches(4, power=1.5)
    skewed = CorpusContexts([torch.tensor([0] * 90 + [1] * 10)], 1, 2)
    shares = {}
    for power in (0.0, 0.5, 1.0):
        rows = torch.cat([b.contexts for s in range(400) for b in skewed.batches(2, power=power, seed=s)])
        shares[power] = (rows == 1).float().mean().item()  # 9 of the 99 contexts
    assert [abs(shares[0.0] - 1 / 2) < 0.05, abs(shares[0.5] - 3 / (3 + 90**0.5)) < 0.05] == [True, True]
    assert abs(shares[1.0] - 1 / 11) < 0.05


@pytest.mark.parametrize("make", [lstm, transformer, kgram])
def test_each_targets_log_probability_is_the_models(make):
    model = make()
    sequences = [random_tokens(length, 1, seed=length)[:, 0] for length in (7, 2, 12, 5)]
    sequences[2][4] = model.blank  # a token outside the vocabulary
    found = helpers.target_log_probabilities(model, sequences, batch_size=3)
    for ours, sequence in zip(found, sequences, strict=True):
        log_p = model(sequence[:-1, None])[:, 0].log_softmax(-1)
        for t, target in enumerate(sequence[1:].tolist()):
            assert math.isnan(ours[t]) if target == model.blank else abs(ours[t] - log_p[t, target]) < 1e-5
    flat = torch.cat(found)
    whole = helpers.evaluate(model, [pad_batch(sequences, model.blank)])
    assert abs(-flat.nanmean().item() - whole["loss"]) < 1e-5 and (~flat.isnan()).sum() == whole["tokens"]


def test_blanks_hide_the_oldest_tokens_of_their_share():
    sequences = [random_tokens(30, 1, seed=seed)[:, 0] for seed in range(60)]
    contexts = CorpusContexts([sequence[3:] for sequence in sequences], 3, 40)
    shown = torch.cat([batch.contexts for batch in contexts.batches(50, blanks=0.4)])
    blank = shown == 40
    assert (blank[:, :-1].int().diff(dim=1) <= 0).all() and not blank[
        :, -1
    ].any()  # from the oldest on, never the newest
    plain = torch.cat([batch.contexts for batch in contexts.batches(50)]) == 40
    assert abs((blank.any(1).float().mean() - plain.any(1).float().mean()).item() - 0.4) < 0.05


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**16))
def test_the_parts_of_several_processes_add_up_to_the_loss_of_the_batch(processes, width, seed):
    model, tokens = kgram(), random_tokens(5, width, seed=seed)
    tokens[1 + seed % 4 :, 1:] = model.blank  # a process may be left without a target
    contexts = CorpusContexts(tokens.t(), model.k, model.vocab_size).batches(width, seed=seed, blanks=0.5)
    padded = make_batches(tokens.t(), width, blank=model.blank, seed=seed)
    loaders = {padded: helpers.next_token_loss, contexts: helpers.context_loss}
    for loader, loss_fn in loaders.items():
        batch, parts = first_batch(loader, seed), []
        for loader.dataset.rank in range(processes):
            loader.dataset.processes = processes
            part = first_batch(loader, seed)
            parts.append(part if processes > 1 else Part(part, 1, helpers.count_targets(part, model.blank)))
        total = sum(part.weight * loss_fn(model, part.batch) for part in parts) / sum(part.weight for part in parts)
        assert torch.allclose(total, loss_fn(model, batch), atol=1e-5)
        assert sum(part.tokens for part in parts) == helpers.count_targets(batch, model.blank)
        columns = [part.batch.contexts if loader is contexts else part.batch.t() for part in parts if part.weight]
        assert sum(map(len, columns)) <= len(batch.contexts if loader is contexts else batch.t())  # none is read twice


def first_batch(loader, seed):
    loader.generator.manual_seed(seed)
    return next(iter(loader))
