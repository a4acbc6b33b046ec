"""The nucleus, draws, generation and annotation."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import kgram, lstm, random_tokens, transformer

import helpers
from workbook.neighbours import annotate, nearest_tokens
from workbook.text import CompactTokenizer, compact_vocabulary, encode_texts

PROBABILITIES = torch.tensor([0.5, 0.3, 0.15, 0.05])


@pytest.mark.parametrize("p, kept", [(0.4, 1), (0.5, 1), (0.6, 2), (0.79, 2), (0.9, 3), (0.96, 4), (1.0, 4)])
def test_the_nucleus_is_the_smallest_set_of_mass_p(p, kept):
    order = torch.tensor([2, 0, 3, 1])
    filtered = helpers.top_p_filter(PROBABILITIES.log()[order], p)
    assert set(order[filtered.isfinite()].tolist()) == set(range(kept))


@pytest.mark.parametrize("size, p, kept", [(2, 0.5, 1), (4, 0.5, 2), (4, 0.75, 3), (8, 0.125, 1), (8, 0.126, 2)])
def test_mass_that_is_exactly_p_is_enough(size, p, kept):
    assert helpers.top_p_filter(torch.zeros(size), p).isfinite().sum() == kept


def brute_force_nucleus(logits, p):
    """The oracle, token after token: the ids of the nucleus, how near p is to a mass at its border."""
    peak = max(logits)
    shares = [math.exp(value - peak) for value in logits]
    total = math.fsum(shares)
    kept, mass = [], 0.0
    for token in sorted(range(len(logits)), key=lambda token: (-logits[token], token)):
        before, mass = mass, mass + shares[token] / total
        kept.append(token)
        if mass >= p:
            break
    return kept, min(abs(mass - p), abs(before - p))


@st.composite
def rows_of_logits(draw):
    """Logits of 1 to 50,257 tokens, flat to peaked, some with many ties, some with impossible tokens."""
    size = draw(
        st.one_of(
            st.integers(1, 12), st.integers(13, 300), st.integers(250, 600), st.sampled_from([4097, 9000, 50_257])
        )
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.randn(size, generator=generator) * draw(st.sampled_from([0, 0.1, 1, 3, 10, 60]))
    if draw(st.booleans()):
        logits = logits.round()
    if draw(st.booleans()) and size > 1:
        logits[torch.rand(size, generator=generator).argsort()[: size // 2]] = -math.inf
    return logits


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(logits=rows_of_logits(), p=st.floats(0, 1, exclude_min=True) | st.sampled_from([0.5, 0.9, 0.95, 0.999999, 1.0]))
def test_the_nucleus_against_brute_force(logits, p):
    filtered = helpers.top_p_filter(logits, p)
    kept = filtered.isfinite().nonzero().flatten().tolist()
    assert torch.equal(filtered[kept], logits[kept])
    expected, distance = brute_force_nucleus(logits.tolist(), p)
    if p == 1:
        assert torch.equal(filtered, logits)
    elif distance > 1e-12:  # nearer to p than that, float64 rounding decides
        assert kept == sorted(expected)
    else:
        extra = list(set(kept) ^ set(expected))
        assert len(extra) <= 1 or logits.double().softmax(0)[extra].sum() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_types_are_filtered_as_their_values_in_float32_or_more(dtype):
    logits = (torch.randn(5, 3000, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    for p in (0.3, 0.9, 0.999):
        filtered = helpers.top_p_filter(logits, p)
        assert filtered.dtype == dtype
        assert torch.equal(filtered.isfinite(), helpers.top_p_filter(logits.double(), p).isfinite())
    assert torch.equal(helpers.sample_token(logits), logits.argmax(-1))
    draws = [
        helpers.sample_token(x.expand(200, 5, -1), 0.9, 0.7, torch.Generator().manual_seed(0))
        for x in (logits, logits.double())
    ]
    assert torch.equal(*draws)  # rounded to half precision, other tokens would be drawn


def test_any_batch_shape_is_filtered_row_by_row():
    logits = torch.randn(2, 3, 700, generator=torch.Generator().manual_seed(0)) * 4
    for cut in (lambda x: helpers.top_p_filter(x, 0.8), lambda x: helpers.top_k_filter(x, 9)):
        rows = torch.stack([cut(row) for row in logits.flatten(0, 1)]).unflatten(0, (2, 3))
        assert torch.equal(cut(logits), rows)
    assert helpers.sample_token(logits, 0.9).shape == helpers.sample_token(logits).shape == (2, 3)


@given(
    st.lists(st.integers(-3, 3) | st.just(-math.inf), min_size=1, max_size=30).filter(lambda x: max(x) > -math.inf),
    st.integers(1, 40),
)
def test_top_k_keeps_the_k_largest_and_of_equals_the_first(values, k):
    kept = sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:k])
    expected = [values[i] if i in kept else -math.inf for i in range(len(values))]
    assert helpers.top_k_filter(torch.tensor(values, dtype=torch.float32), k).tolist() == expected


def test_top_k_and_top_p_work_together():
    logits = PROBABILITIES.log().expand(20_000, 4)
    draw = {"generator": torch.Generator().manual_seed(0)}
    assert helpers.sample_token(logits, top_k=1).eq(0).all()
    assert helpers.sample_token(logits, top_k=3, **draw).unique().tolist() == [0, 1, 2]
    # of the three that top_k leaves, .95 of the mass, the first two hold .8 / .95 = .842
    assert helpers.sample_token(logits, 0.84, top_k=3, **draw).unique().tolist() == [0, 1]
    assert helpers.sample_token(logits, 0.85, top_k=3, **draw).unique().tolist() == [0, 1, 2]


def test_of_equal_logits_the_lower_id_comes_first():
    assert helpers.top_p_filter(torch.zeros(5000), 0.49999).isfinite().nonzero().flatten().tolist() == list(range(2500))


def test_draws_follow_the_renormalised_nucleus():
    logits = PROBABILITIES.log().expand(20_000, 4)
    draws = helpers.sample_token(logits, top_p=0.6, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(draws, minlength=4) / 20_000
    assert shares.tolist() == pytest.approx([0.625, 0.375, 0, 0], abs=0.015)


@pytest.mark.parametrize("p", [0, -0.1, 1.1, math.nan])
def test_p_outside_its_range_says_so(p):
    with pytest.raises(ValueError, match="expected 0 < p <= 1"):
        helpers.top_p_filter(torch.zeros(4), p)


def test_bad_logits_and_temperatures_say_so():
    broken = torch.tensor([0.0, math.nan])
    for draw in (lambda: helpers.top_p_filter(broken, 0.5), lambda: helpers.sample_token(broken)):
        with pytest.raises(ValueError, match="NaN"):
            draw()
    for hopeless in (torch.full((2,), -math.inf), torch.tensor([0.0, math.inf])):
        with pytest.raises(ValueError, match="largest logit"):
            helpers.sample_token(hopeless, 1.0)
    for wrong in (torch.arange(4), torch.zeros(3, 0)):
        with pytest.raises(TypeError, match="expected floating point"):
            helpers.top_p_filter(wrong, 0.5)
    with pytest.raises(ValueError, match="top_k is 0"):
        helpers.sample_token(torch.zeros(4), top_k=0)
    with pytest.raises(ValueError, match="temperature is 0"):
        helpers.sample_token(torch.zeros(4), top_p=0.5, temperature=0)
    with pytest.raises(ValueError, match="temperature is nan"):
        helpers.sample_token(torch.zeros(4), temperature=math.nan)


def test_impossible_tokens_are_never_drawn():
    logits = torch.tensor([0.0, -math.inf, 0.0]).expand(2000, 3)
    for p in (0.5, 0.9, 1.0):
        assert not (helpers.sample_token(logits, top_p=p) == 1).any()


def test_p_1_keeps_a_large_vocabulary_in_any_order():
    torch.manual_seed(0)
    logits = torch.randn(50_257) * 6
    assert helpers.top_p_filter(logits, 1.0).isfinite().all()
    order = torch.randperm(50_257)
    for p in (0.5, 0.99, 0.999999):
        assert torch.equal(helpers.top_p_filter(logits[order], p), helpers.top_p_filter(logits, p)[order])


def test_temperature_sharpens_and_flattens():
    logits = torch.tensor([1.0, 0.0]).expand(4000, 2)
    cold, warm, hot = (
        (helpers.sample_token(logits, 1.0, t, torch.Generator().manual_seed(0)) == 0).float().mean()
        for t in (0.3, 1, 9)
    )
    assert cold > warm > hot
    cut = torch.tensor([1.0, 0.0, -math.inf])
    assert helpers.sample_token(cut, 1.0, 1e-50) == 0  # a tiny one is greedy, not an overflow
    assert set(helpers.sample_token(cut.expand(50, 3), 1.0, 1e40).tolist()) == {0, 1}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_divides_the_logits(temperature):
    logits = torch.randn(9, generator=torch.Generator().manual_seed(0))
    drawn = helpers.sample_token(logits.expand(500, -1), 1.0, temperature, torch.Generator().manual_seed(1))
    uniform = 1 - torch.rand(500, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    assert torch.equal(drawn, (cumulative < uniform).sum(-1))


def test_draws_of_a_large_vocabulary_follow_its_probabilities():
    """Over 50,257 tokens the mass of each tenth of the ids is met, and the uniform number decides alone."""
    logits = torch.randn(50_257, generator=torch.Generator().manual_seed(0))
    draws = helpers.sample_token(logits.expand(400, -1), 1.0, generator=torch.Generator().manual_seed(1))
    uniform = 1 - torch.rand(400, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cumulative = logits.double().softmax(-1).cumsum(-1)
    assert torch.equal(draws, (cumulative < uniform).sum(-1))
    assert len(draws.unique()) > 350


@pytest.mark.parametrize("make", [lstm, kgram])
def test_generation(tokenizer, make):
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


def test_generation_ends_before_stop_with_the_prompt_whole(tokenizer):
    model = kgram(vocab_size=50_257, k=1)
    full = helpers.generate(model, tokenizer, "0 1", 12)
    stop = full[len("0 1") + 6 : len("0 1") + 9]
    assert helpers.generate(model, tokenizer, "0 1", 12, stop=stop) == full[: full.index(stop, len("0 1"))]
    assert helpers.generate(model, tokenizer, "0 1", 12, stop="0").startswith("0 1")
    for length in range(1, 8):  # a stop text of any length, across the borders of tokens
        stop, drawn = full[5 : 5 + length], []
        text = helpers.generate(model, tokenizer, "0 1", 12, stop=stop, on_token=lambda token, _: drawn.append(token))  # noqa: B023
        assert text == full[: full.index(stop, len("0 1"))]
        assert stop in tokenizer.decode(drawn) and stop not in tokenizer.decode(drawn[:-1])  # and none after it


def test_generation_calls_on_token_with_what_it_drew(tokenizer):
    model, seen = kgram(vocab_size=50_257), []
    text = helpers.generate(model, tokenizer, "0", 5, on_token=lambda *pair: seen.append(pair))
    assert tokenizer.decode([15] + [token for token, _ in seen]) == text
    assert all(logits.shape == (50_257,) and logits.argmax() == token for token, logits in seen)


@pytest.mark.parametrize("make", [lstm, kgram, transformer])
def test_a_stream_draws_from_the_models_own_distribution(make):
    """For each token the stream's logits are those of a forward pass over all before it."""
    model, prompt = make(), random_tokens(7, 4)
    stream = itertools.islice(helpers.token_stream(model, prompt, top_p=0.9), 50)
    tokens, logits = map(torch.stack, zip(*stream, strict=True))  # (50, B), (50, B, V)
    whole = model(torch.cat([prompt, tokens]))[6:-1]
    torch.testing.assert_close(logits, whole, atol=1e-4, rtol=0)
    again = helpers.token_stream(model, prompt, top_p=0.9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tokens[0], next(again)[0])


def test_neighbours_are_the_nearest_by_cosine():
    model = kgram()
    table = model.net.embedding.weight.detach()
    nearest = nearest_tokens(model, [3, 17], count=4)
    for token, found in zip((3, 17), nearest.tolist(), strict=True):
        cosine = torch.nn.functional.cosine_similarity(table[token], table, dim=-1)
        assert found == [i for i in cosine.argsort(descending=True).tolist() if i != token][:4]
    assert torch.equal(table, model.net.embedding.weight)
    head = torch.nn.functional.cosine_similarity(model.head.weight[3], model.head.weight, dim=-1).topk(3).indices
    assert nearest_tokens(model, [3], 2, table="head")[0].tolist() == head[1:].tolist()
    with pytest.raises(ValueError, match="table is 'body'; this KGramMLPSeqModel has head, embedding"):
        nearest_tokens(model, [0], table="body")


def test_annotation_keeps_characters_whole(tokenizer):
    model = kgram(vocab_size=50_257)
    text = "a 🦜 naïve 猫"
    tokens = tokenizer.encode(text)
    annotated = annotate(model, tokenizer, tokens, count=2)
    pieces = re.split(r"\[NN=.*?\](?=[^,|]|$)", annotated)
    assert "".join(pieces) == text and "�" not in annotated
    assert len(tokens) == 8 and annotated.count("[NN=") == 4 and annotated.count(" | ") == 4  # 🦜 and 猫 in parts
    broken = annotate(model, tokenizer, tokens[1:3], count=2)  # an emoji cut off
    assert broken.startswith("�") or broken.startswith(" �")
    assert annotate(model, tokenizer, []) == ""


def test_a_compact_tokenizer_speaks_the_same_text(tokenizer):
    sequences = encode_texts(["one two three", "two one 🙂"], tokenizer, 16)
    compact, ids = compact_vocabulary(sequences)
    small = CompactTokenizer(tokenizer, ids)
    assert small.n_vocab == len(ids) and small.encode("one two three") == compact[0].tolist()
    assert small.decode(small.encode("two one 🙂")) == "two one 🙂"
    model = kgram(vocab_size=len(ids))
    assert helpers.generate(model, small, "one two", 3).startswith("one two")
    assert annotate(model, small, compact[1].tolist()).startswith("two[NN=")
    with pytest.raises(ValueError, match=r"\[' four'\] not among the"):
        small.encode("one four")
