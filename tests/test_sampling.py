"""The nucleus, draws and generation."""

import math

import pytest
import torch
from oracles import kgram, lstm

import helpers

PROBABILITIES = torch.tensor([0.5, 0.3, 0.15, 0.05])


@pytest.mark.parametrize("p, kept", [(0.4, 1), (0.5, 1), (0.6, 2), (0.79, 2), (0.9, 3), (0.96, 4), (1.0, 4)])
def test_the_nucleus_is_the_smallest_set_of_mass_p(p, kept):  # TRAPS 16
    order = torch.tensor([2, 0, 3, 1])
    filtered = helpers.top_p_filter(PROBABILITIES.log()[order], p)
    assert set(order[filtered.isfinite()].tolist()) == set(range(kept))


@pytest.mark.parametrize("p", [0.3, 0.95, 0.999, 0.999999, 0.9999999])
def test_the_nucleus_of_a_large_vocabulary_against_exact_sums(p):
    torch.manual_seed(0)
    logits = torch.randn(50_257) * 6
    mass = logits.double().softmax(-1).sort(descending=True)[0].cumsum(0)
    assert helpers.top_p_filter(logits, p).isfinite().sum() == int((mass < p).sum()) + 1


def test_of_equal_logits_the_lower_id_comes_first():
    assert helpers.top_p_filter(torch.zeros(5000), 0.49999).isfinite().nonzero().flatten().tolist() == list(range(2500))


def test_draws_follow_the_renormalised_nucleus():  # TRAPS 16
    logits = PROBABILITIES.log().expand(20_000, 4)
    draws = helpers.sample_token(logits, top_p=0.6, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(draws, minlength=4) / 20_000
    assert shares.tolist() == pytest.approx([0.625, 0.375, 0, 0], abs=0.015)


@pytest.mark.parametrize("p", [0, -0.1, 1.1, math.nan])
def test_p_outside_its_range_says_so(p):  # TRAPS 16
    with pytest.raises(ValueError, match="expected 0 < p <= 1"):
        helpers.top_p_filter(torch.zeros(4), p)


def test_bad_logits_and_temperatures_say_so():  # TRAPS 16
    broken = torch.tensor([0.0, math.nan])
    for draw in (lambda: helpers.top_p_filter(broken, 0.5), lambda: helpers.sample_token(broken)):
        with pytest.raises(ValueError, match="NaN"):
            draw()
    with pytest.raises(ValueError, match="temperature is 0"):
        helpers.sample_token(torch.zeros(4), top_p=0.5, temperature=0)
    with pytest.raises(ValueError, match="temperature is nan"):
        helpers.sample_token(torch.zeros(4), temperature=math.nan)


def test_impossible_tokens_are_never_drawn():  # TRAPS 16
    logits = torch.tensor([0.0, -math.inf, 0.0]).expand(2000, 3)
    for p in (0.5, 0.9, 1.0):
        assert not (helpers.sample_token(logits, top_p=p) == 1).any()


def test_p_1_keeps_a_large_vocabulary_in_any_order():  # TRAPS 17
    torch.manual_seed(0)
    logits = torch.randn(50_257) * 6
    assert helpers.top_p_filter(logits, 1.0).isfinite().all()
    order = torch.randperm(50_257)
    for p in (0.5, 0.99, 0.999999):
        assert torch.equal(helpers.top_p_filter(logits[order], p), helpers.top_p_filter(logits, p)[order])


def test_temperature_sharpens_and_flattens():  # TRAPS 26
    logits = torch.tensor([1.0, 0.0]).expand(4000, 2)
    cold, warm, hot = (
        (helpers.sample_token(logits, 1.0, t, torch.Generator().manual_seed(0)) == 0).float().mean()
        for t in (0.3, 1, 9)
    )
    assert cold > warm > hot


@pytest.mark.parametrize("make", [lstm, lambda **sizes: kgram(helpers.EmbeddingMLP, **sizes)])
def test_generation(tokenizer, make):  # TRAPS 18, 19
    model = make(vocab_size=50_257)
    seeded = [
        helpers.generate(model, tokenizer, "0", 30, top_p=0.9, generator=torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    ]
    assert seeded[0] == seeded[1] != seeded[2] and seeded[0].startswith("0")
    before = torch.get_rng_state()
    helpers.generate(model, tokenizer, "0", 5, top_p=0.9)
    assert torch.equal(before, torch.get_rng_state())
    assert helpers.generate(model, tokenizer, "0 1", 0) == "0 1"
    for training in (True, False):
        model.train(training)
        helpers.generate(model, tokenizer, "0", 2)
        assert model.training is training
    with pytest.raises(ValueError, match="prompt is empty"):
        helpers.generate(model, tokenizer, "")


def test_generation_ends_before_stop_with_the_prompt_whole(tokenizer):  # TRAPS 19
    model = kgram(helpers.EmbeddingMLP, vocab_size=50_257, k=1)
    full = helpers.generate(model, tokenizer, "0 1", 12)
    stop = full[len("0 1") + 6 : len("0 1") + 9]
    assert helpers.generate(model, tokenizer, "0 1", 12, stop=stop) == full[: full.index(stop, len("0 1"))]
    assert helpers.generate(model, tokenizer, "0 1", 12, stop="0").startswith("0 1")
