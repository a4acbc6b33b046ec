"""Measures of generated text and of its cost: hand-made texts, models that say one thing, tiny models."""

import math

import pytest
import torch
from torch import nn

from helpers import EmbeddingMLP, KGramMLPSeqModel, LSTMSeqModel, evaluate, top_p_filter
from workbook import generation
from workbook.batches import pad_batch


class Words:
    """A tokenizer whose tokens are letters: a is 0."""

    n_vocab = 6

    def encode(self, text, **options):
        return [ord(letter) - 97 for letter in text]

    def decode(self, tokens):
        return "".join(chr(97 + token) for token in tokens)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LSTMSeqModel(6, 8, 8)


def follower(vocab_size=6):
    """A k-gram that says after each token the next one, and after the last the first."""
    model = KGramMLPSeqModel(EmbeddingMLP(vocab_size, 1, vocab_size, vocab_size, 0), vocab_size=vocab_size, k=1)
    model.net.embedding.weight.data = torch.eye(vocab_size)
    model.net.mlp = nn.Identity()
    model.head.weight.data = 50 * torch.eye(vocab_size).roll(1, 0)
    nn.init.zeros_(model.head.bias)
    return model


def test_the_mark_stands_where_texts_part():
    assert generation.mark_difference("once upon", "once more") == "once ▸upon"
    assert generation.mark_difference("once", "") == "▸once" and generation.mark_difference("once", "once") == "once▸"


def test_self_bleu_of_equal_and_of_different_texts():
    assert generation.self_bleu([[1, 2, 3, 4, 5]] * 3) == 1
    assert generation.self_bleu([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]) < 0.1
    assert math.isnan(generation.self_bleu([[1, 2, 3, 4]]))


def test_written_texts_go_on_from_the_prompt_and_are_blank_after_their_end():
    tokens = generation.write_texts(follower(), [1, 2], 3, end=4, top_p=0.9, length=6)
    assert tokens.t().tolist() == [[1, 2, 3, 4, 6, 6, 6, 6]] * 3  # 6: BLANK


def test_written_texts_follow_the_seed(model):
    first, again, other = (generation.write_texts(model, [0], 4, 5, 1.0, 20, seed) for seed in (0, 0, 1))
    assert first.equal(again) and not first.equal(other)


def test_perplexity_is_that_of_the_loss_after_the_prompt(model):
    texts = [torch.tensor([0, 1, 2, 3, 4]), torch.tensor([3, 3, 1])]
    batch = pad_batch(texts, 6)
    assert generation.perplexity(model, batch, 1) == pytest.approx(math.exp(evaluate(model, [batch])["loss"]), rel=1e-5)
    log_p = model(batch[:-1]).log_softmax(-1)
    later = [log_p[t, 0, texts[0][t + 1]].item() for t in (2, 3)]
    assert generation.perplexity(model, batch, 3) == pytest.approx(math.exp(-sum(later) / 2), rel=1e-5)


def test_quality_has_a_row_a_group(model):
    tokens = pad_batch([torch.tensor(ids) for ids in ([0, 1, 2, 5], [0, 1, 2, 5], [0, 3, 3], [0, 4, 1])], 6)
    same, different = generation.quality(tokens, model, prompt_length=1, end=5, group_size=2)
    assert same["self-BLEU"] == 1 and same["distinct-1"] == 4 / 8 and same["ended"] == 1 and same["tokens"] == 4
    assert different["ended"] == 0 and different["tokens"] == 3 and different["self-BLEU"] < 0.5


def test_next_tokens_are_the_most_probable_with_their_nucleus(model):
    table = generation.next_tokens(model, Words(), "abc", 0.6, temperature=2.0)
    logits = model(torch.tensor([[0], [1], [2]]))[-1, 0] / 2
    assert table["probability"].tolist() == pytest.approx(sorted(logits.softmax(-1).tolist(), reverse=True), rel=1e-4)
    kept = int(top_p_filter(logits, 0.6).isfinite().sum())
    assert table["kept"].tolist() == [True] * kept + [False] * (6 - kept) and set(table["nucleus"]) == {kept}
    assert set(table["prompt"]) == {"abc"} and len(generation.next_tokens(model, Words(), "a", 0.6, most=2)) == 2


def test_reading_gives_each_target_its_probability_and_what_the_nucleus_lacks(model):
    batch = pad_batch([torch.tensor([0, 1, 2, 3]), torch.tensor([3, 3])], 6)
    rows = generation.read_texts(model, batch, 0.7)
    assert len(rows) == 4  # targets
    first = model(batch[:1])[0, 0].softmax(-1)
    assert rows["probability"][0] == pytest.approx(first[1].item(), rel=1e-5)
    assert (rows["mass outside"] <= 0.3 + 1e-6).all()
    outside = ~top_p_filter(first.log(), 0.7).isfinite()
    assert rows["outside"][0] == outside[1].item()
    assert rows["mass outside"][0] == pytest.approx(first[outside].sum().item(), abs=1e-5)


def test_continuations_are_counted_as_lines_and_by_their_first_token():
    lines = [torch.tensor([0, 1, 2, 3]), torch.tensor([0, 4, 5, 0])]
    toss = {"prompt": torch.tensor([[0]]), "lines": lines, "sides": {"b": 1, "e": 4}, "draws": 50, "seed": 0}
    row = generation.continuations(follower(), **toss, top_p=0.9, temperature=1.0)
    assert row["exact"] == 1 and row["b"] == 1 and row["e"] == 0 and row["p"] == 0.9
    assert 0.9 < row["exact_low"] < 1 and row["exact_high"] == 1 and row["low"] == row["exact_low"]
    flat = follower()
    nn.init.zeros_(flat.head.weight)
    row = generation.continuations(flat, **toss, top_p=1.0, temperature=1.0)
    assert row["low"] < 1 / 6 < row["high"] and row["exact"] < 0.2
    assert generation.continuations(flat, **toss, top_p=None, temperature=1.0)["p"] == 0  # greedy


def test_times_have_a_row_for_each_way_length_and_round(model):
    ways = {"whole": lambda model, text, state: model(text)[-1]}
    rows = generation.latency({"LSTM": model}, ways, (2, 5), rounds=3)
    assert rows.groupby(["way", "length"])["round"].agg(
        ["min", "max", "size"]
    ).drop_duplicates().to_numpy().tolist() == [[1, 3, 3]]
    assert set(rows["way"]) == {"whole", "of that the head"} and (rows["ms"] > 0).all()


def test_a_text_is_written_by_each_way_token_by_token(model):
    seen = []

    def step(model, text, state):
        logits = model.step(text[-1], state)[0]
        seen.append((len(text), (logits - model(text)[-1]).abs().max().item()))
        return logits

    rows = generation.write_timed({"LSTM": model}, {"one step": step}, length=4)
    assert [length for length, _ in seen] == [4, 5, 6, 7] and max(gap for _, gap in seen) < 1e-5
    assert rows["way"].tolist() == ["the prompt"] + ["one step"] * 4 and rows["position"].tolist() == [0, 0, 1, 2, 3]


def test_the_cost_of_the_filter_is_in_sorts():
    rows = generation.filter_cost(500, torch.device("cpu"), rounds=2)
    assert set(rows["round"]) == {1, 2} and rows["logits"].nunique() == 4
    assert (rows["filter / sort"] - rows["filter_ms"] / rows["sort_ms"]).abs().max() == 0
    assert rows.set_index("logits")["kept"]["peaked"].max() < rows.set_index("logits")["kept"]["flat"].min()
