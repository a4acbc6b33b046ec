"""The whole curve of the designs and the signals of their layers, against the same by hand."""

import math

import pytest
import torch
from oracles import DESIGNS, kgram, random_tokens

from helpers import check_gradient_flow, context_windows, distinct_contexts
from workbook import ablation
from workbook.config import TrainingConfig
from workbook.counts import loss_floor
from workbook.training import compare

SEQUENCES = list(random_tokens(6, 12).t())


@pytest.fixture(scope="module")
def curve():
    return ablation.whole_curve(
        lambda name, seed: kgram(DESIGNS[name.split(",")[0]], k=2, seed=seed),
        ["one-hot", "embedding"],
        ["embedding, again"],
        SEQUENCES,
        batch_size=4,
        seeds=range(2),
        steps=10,
    )


def test_every_name_is_trained_at_every_rate_with_every_seed_and_variants_at_the_lowest(curve):
    runs = set(curve[["model", "learning_rate", "seed"]].itertuples(index=False, name=None))
    names = [(name, rate) for name in ("one-hot", "embedding") for rate in ablation.RATES]
    assert runs == {(*name, seed) for name in [*names, ("embedding, again", 0.001)] for seed in (0, 1)}
    assert (curve["steps"] == 5).all() and sorted(curve["step"].unique()) == [5, 10]
    assert set(curve["run"]) == {"kgram_curve"}


def test_a_variant_that_changes_nothing_has_the_curve_of_its_design(curve):
    lowest = curve[curve["learning_rate"] == 0.001].set_index(["seed", "step"])
    one, other = (lowest.loc[lowest["model"] == name, "loss"] for name in ("embedding", "embedding, again"))
    assert one.equals(other)


def test_the_levels_are_the_entropies_of_the_text(curve):
    assert curve["unigram"].unique().tolist() == [loss_floor(SEQUENCES, 0)]
    assert curve["floor"].unique().tolist() == [loss_floor(SEQUENCES, 2)]


@pytest.mark.parametrize("name", DESIGNS)
def test_the_gradients_are_those_of_the_loss(name):
    model, tokens = kgram(DESIGNS[name]), random_tokens(7, 3)
    expected = check_gradient_flow(model, tokens)
    rows = ablation.layer_signals(model, tokens)
    net = math.hypot(*(norm for key, norm in expected.items() if key.startswith("net.") and key != "net.bias"))
    assert math.isclose(math.hypot(*rows["gradient"]), net, rel_tol=1e-5)  # one-hot's bias belongs to no layer
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(layer._forward_hooks for layer in model.modules())


def test_the_share_is_the_spread_over_distinct_contexts_by_the_root_mean_square():
    model, tokens = kgram(), random_tokens(7, 3)
    rows = ablation.layer_signals(model, tokens)
    assert rows["type"].tolist() == ["TokenEmbedding", "Linear", "SiLU", "Linear", "SiLU"]
    assert rows["layer"].tolist() == [1, 2, 3, 4, 5]
    contexts, _ = distinct_contexts(context_windows(tokens[:-1], model.k, model.blank).flatten(0, 1), 40)
    with torch.no_grad():
        outputs = [model.net.embedding(contexts).flatten(1)]
        for layer in model.net.mlp:
            outputs.append(layer(outputs[-1]))
    for share, output in zip(rows["share"], outputs, strict=True):
        spread = output.var(0, correction=0).mean().sqrt() / output.square().mean().sqrt()
        assert math.isclose(share, spread.item(), rel_tol=1e-4)


def test_a_layer_that_sees_no_context_has_no_share():
    model = kgram()
    model.net.mlp[0].weight.data.zero_()
    shares = ablation.layer_signals(model, random_tokens(7, 3)).set_index("type")["share"]
    assert shares["TokenEmbedding"] > 0.9 and shares[["Linear", "SiLU"]].max() < 1e-6


def test_layers_are_looked_at_before_and_after_the_steps_without_a_bar(capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    tokens, fresh = random_tokens(6, 4), kgram(k=2)
    rows = ablation.layers_in_training({"m": kgram(k=2)}, SEQUENCES, tokens, 9, 0.01)
    before, after = (rows.loc[rows["step"] == step, "share"].tolist() for step in (0, 9))
    assert before == ablation.layer_signals(fresh, tokens)["share"].tolist() and after != before
    assert capsys.readouterr() == ("", "")


def test_rows_of_a_comparison_sum_up_as_many_steps_as_asked():
    batches = [random_tokens(6, 3, seed=seed) for seed in range(4)]
    each, few = (
        compare({"m": kgram()}, batches, TrainingConfig(steps=8, learning_rate=0.01, log_every=n), progress=False)
        for n in (1, 4)
    )
    assert few["steps"].tolist() == [4, 4] and few["step"].tolist() == [4, 8]
    assert few["tokens"].tolist() == [each["tokens"][:4].sum(), each["tokens"][4:].sum()]
    first = (each["loss"] * each["tokens"])[:4].sum() / each["tokens"][:4].sum()
    assert math.isclose(few["loss"][0], first)
