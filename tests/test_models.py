"""The window, the layout, the designs and their checks. Numbers in comments are those of known public faults."""

import ast
import inspect
import itertools
import math
from functools import partial

import nbformat
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import DESIGNS, NOTEBOOK_02, ROOT, kgram, loop_logits, lstm, random_tokens, transformer
from torch import nn

import helpers

TRANSFORMERS = {
    "Transformer": {},
    "Transformer, post-norm, learned positions": {"norm": "post", "positions": "learned", "mlp": "silu"},
    "Transformer, free head, no positions": {"tied": False, "positions": "none"},
    "Transformer, short convolution, normed queries": {"short_conv": True, "qk_norm": True},
}


MODELS = {name: partial(kgram, net_class) for name, net_class in DESIGNS.items()}
MODELS |= {
    "pooled": partial(kgram, helpers.PooledMLP, k=9),
    "pooled, tied": partial(kgram, helpers.PooledMLP, tied=True),
}
MODELS |= {"embedding, tied": partial(kgram, tied=True), "LSTM": lstm, "LSTM, tied": partial(lstm, tied=True)}
MODELS |= {name: partial(transformer, **options) for name, options in TRANSFORMERS.items()}


@pytest.fixture(params=MODELS)
def any_model(request):
    return MODELS[request.param]()


@pytest.fixture(params=DESIGNS)
def net_class(request):
    return DESIGNS[request.param]


def moved_by(model, tokens, j, b=0):
    """Which logits (T, B) change, by more than rounding, when token j of sequence b changes."""
    changed = tokens.clone()
    changed[j, b] = (changed[j, b] + 1) % model.vocab_size
    return (model(changed) - model(tokens)).abs().amax(-1) > 1e-6


def test_kgram_sees_exactly_its_last_k_tokens(net_class):  # not {4, 5, 6}
    model, tokens = kgram(net_class), random_tokens(10, 3)
    assert [j for j in range(10) if moved_by(model, tokens, j)[7, 0]] == [5, 6, 7]


@pytest.mark.parametrize(
    "k, lengths",
    [(1, [1]), (2, [1, 1]), (3, [1] * 3), (4, [1] * 4), (9, [3, 3, 1, 1, 1]), (32, [8, 12, 6, 3, 1, 1, 1])],
)
def test_a_pooled_net_sums_older_tokens_in_groups(k, lengths):
    net = helpers.PooledMLP(40, k, 4, 6, 1)
    assert net.lengths == lengths and net.weights.shape == (k,)
    contexts = torch.randint(40, (5, k), generator=torch.Generator().manual_seed(0))
    parts, begin = [], 0
    for length in lengths:
        rows = [net.embedding.weight[contexts[:, i]] * net.weights[i] for i in range(begin, begin + length)]
        parts.append(torch.stack(rows).sum(0))
        begin += length
    x = net.first(torch.cat(parts, 1))
    torch.testing.assert_close(net(contexts), net.norm(x + net.blocks[0](x)))
    model = helpers.KGramMLPSeqModel(net, vocab_size=40, k=k)
    tokens = random_tokens(k + 3, 2)
    nn.init.normal_(net.blocks[0][-1].weight)
    assert [j for j in range(k + 3) if moved_by(model, tokens, j)[k + 1, 0]] == list(range(2, k + 2))


@pytest.mark.parametrize("make", [lstm, *(partial(transformer, **options) for options in TRANSFORMERS.values())])
def test_full_context_models_see_the_past_and_nothing_else(make):
    model, tokens = make(), random_tokens(10, 3)
    assert [j for j in range(10) if moved_by(model, tokens, j)[7, 0]] == list(range(8))


def test_sequences_of_a_batch_do_not_mix(any_model):
    tokens = random_tokens(10, 3)
    for j in range(10):
        assert not moved_by(any_model, tokens, j, b=1)[:, [0, 2]].any()


@pytest.mark.parametrize("batch", [1, 3, 7])  # 1, k and T
def test_a_batch_equals_its_columns(any_model, batch):
    tokens = random_tokens(7, batch)
    logits = any_model(tokens)
    assert logits.shape == (7, batch, 40)
    for b in range(batch):
        torch.testing.assert_close(logits[:, [b]], any_model(tokens[:, [b]]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 9])
def test_chunks_equal_the_loop(net_class, chunk_size):
    model, tokens = kgram(net_class, chunk_size=chunk_size), random_tokens(9, 3)
    tokens[6:, 1] = model.blank
    torch.testing.assert_close(model(tokens), loop_logits(model, tokens), atol=1e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), k=st.integers(1, 6), length=st.integers(1, 8), batch=st.integers(1, 4))
def test_windows_and_distinct_contexts_against_their_definition(data, k, length, batch):
    vocab_size = 3  # few ids, so that contexts repeat
    ids = data.draw(st.lists(st.integers(0, vocab_size), min_size=length * batch, max_size=length * batch))
    tokens = torch.tensor(ids).reshape(length, batch)
    windows = helpers.context_windows(tokens, k, blank=vocab_size)
    for t in range(length):
        for b in range(batch):
            expected = [tokens[i, b].item() if i >= 0 else vocab_size for i in range(t - k + 1, t + 1)]
            assert windows[t, b].tolist() == expected
    contexts = windows.flatten(0, 1)
    rows, index = helpers.distinct_contexts(contexts, vocab_size)
    assert torch.equal(rows, torch.unique(contexts, dim=0)) and torch.equal(rows[index], contexts)


def test_distinct_contexts_do_not_overflow_at_large_k():
    contexts = torch.full((2, 32), 50_257)
    contexts[1, 0] = 0
    assert len(helpers.distinct_contexts(contexts, 50_257)[0]) == 2


def test_one_hot_equals_the_lookup():
    literal, lookup = (net(40, 3, 6, 8, 2) for net in (NOTEBOOK_02.OneHotLiteral, DESIGNS["one-hot"]))
    lookup.load_literal(literal)
    contexts = random_tokens(30, 3).where(random_tokens(30, 3, seed=1) > 5, 40)  # some BLANK
    torch.testing.assert_close(lookup(contexts), literal(contexts), atol=1e-5, rtol=0)
    weight = torch.randn(30, 8)
    (lookup(contexts) * weight).sum().backward()
    (literal(contexts) * weight).sum().backward()
    torch.testing.assert_close(lookup.table.weight.grad, literal.first.weight.grad.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(lookup.bias.grad, literal.first.bias.grad, atol=1e-5, rtol=0)


def test_blank_is_no_token(any_model):  # padding with 0 would make the first two equal
    bare, with_zero, with_blank = (torch.tensor([start + [5, 6]]).T for start in ([], [0], [40]))
    assert not torch.allclose(any_model(with_zero)[-1], any_model(bare)[-1])
    if isinstance(any_model, helpers.KGramMLPSeqModel):
        torch.testing.assert_close(any_model(with_blank)[-1], any_model(bare)[-1])


def test_blank_embeds_to_zeros_and_takes_no_gradient():
    embedding = helpers.TokenEmbedding(4, 3)
    embedding(torch.tensor([4, 4, 1])).sum().backward()
    assert embedding(torch.tensor([4])).eq(0).all()
    assert embedding.weight.grad.sum(1).tolist() == [0, 3, 0, 0]


def test_convolution_is_depthwise_and_sees_order():
    model = kgram(DESIGNS["convolution"], k=3, embed_size=6)
    a, b = model.net(torch.tensor([[1, 2, 3]])), model.net(torch.tensor([[3, 2, 1]]))
    assert not torch.allclose(a, b)
    assert model.net.convolution.groups == 6 and model.net.convolution.weight.numel() == 6 * 3


def test_each_inner_layer_adds_its_weights(net_class):
    sizes = [helpers.count_parameters(kgram(net_class, hidden_size=8, num_layers=depth))["body"] for depth in range(4)]
    assert [b - a for a, b in itertools.pairwise(sizes)] == [8 * 8 + 8] * 3


def test_parameters_with_and_without_tables():
    model = kgram(vocab_size=40, k=3, embed_size=6, hidden_size=8, num_layers=1)
    body = 3 * 6 * 8 + 8 + 8 * 8 + 8
    assert helpers.count_parameters(model) == {"parameters": 40 * 6 + body + 8 * 40 + 40, "body": body}


@pytest.mark.parametrize("seed", range(3))
def test_first_loss_is_near_ln_v(seed):  # public runs start at 173 and 428
    tokens = random_tokens(32, 8, vocab_size=2000, seed=seed)
    sizes = {"vocab_size": 2000, "embed_size": 64, "hidden_size": 64, "seed": seed}
    models = [kgram(net_class, **sizes) for net_class in DESIGNS.values()] + [lstm(**sizes)]
    models += [helpers.TransformerModel(2000, 64, 4, 2, **options) for options in TRANSFORMERS.values()]
    models += [kgram(tied=True, **sizes), lstm(tied=True, **sizes)]
    for model in models:
        assert abs(helpers.next_token_loss(model, tokens).item() - math.log(2000)) < 0.3


def test_incremental_decoding_equals_forward(any_model):
    tokens = random_tokens(50, 2)
    state, logits = any_model.start(2), any_model(tokens)
    for t in range(50):
        step, state = any_model.step(tokens[t], state)
        torch.testing.assert_close(step, logits[t], atol=1e-4, rtol=0)


@pytest.mark.parametrize("first", [1, 7, 20])
def test_reading_in_pieces_equals_forward(any_model, first):  # the prompt at once, then the rest at once
    tokens = random_tokens(40, 2)
    logits, state = any_model.prefill(tokens[:first], any_model.start(2))
    torch.testing.assert_close(logits, any_model(tokens)[first - 1], atol=1e-4, rtol=0)
    logits, _ = any_model.prefill(tokens[first:], state)
    torch.testing.assert_close(logits, any_model(tokens)[-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_precision_decodes(any_model, dtype):
    model, tokens = any_model.to(dtype).eval(), random_tokens(5, 2)
    logits, state = model.prefill(tokens, model.start(2))
    assert logits.dtype == dtype == model.step(tokens[0], state)[0].dtype
    assert torch.allclose(logits, model(tokens)[-1], atol=1e-6 if dtype == torch.float64 else 0.1)


def test_distinct_sequences_are_computed_once():
    model = lstm()
    tokens = random_tokens(5, 2)[:, [0, 1, 0, 0, 1]]
    rows, index = model.hidden_rows(tokens)
    assert rows.shape == (10, 8)
    torch.testing.assert_close(rows[index].reshape(5, 5, 8), model.hidden(tokens))


@pytest.mark.parametrize(
    "tokens, error, says",
    [
        (torch.zeros(4, 2), TypeError, "float32"),
        ([[1, 2]], TypeError, "list"),
        (torch.zeros(4, dtype=torch.long), ValueError, r"\(4,\)"),
        (torch.zeros(0, 2, dtype=torch.long), ValueError, r"\(0, 2\)"),
        (torch.full((4, 2), 41), ValueError, "41"),
        (torch.full((4, 2), -1), ValueError, "-1"),
    ],
)
def test_wrong_tokens_say_what_came(any_model, tokens, error, says):
    with pytest.raises(error, match=says):
        any_model(tokens)
    with pytest.raises(error, match=says):
        helpers.next_token_loss(any_model, tokens)
    with pytest.raises(error, match=says):
        next(helpers.token_stream(any_model, tokens))


def test_a_net_that_is_missing_or_misshapen_says_so():
    class Narrow(nn.Linear):
        hidden_size = 5

        def forward(self, contexts):
            return super().forward(contexts.float())

    with pytest.raises(TypeError, match="net is None"):
        helpers.KGramMLPSeqModel(None, vocab_size=40, k=3)
    with pytest.raises(TypeError, match="Linear has no whole number hidden_size"):
        helpers.KGramMLPSeqModel(nn.Linear(3, 4), vocab_size=40, k=3)
    with pytest.raises(ValueError, match=r"Narrow gave shape \(\d+, 4\).*expected \(\d+, 5\)"):
        helpers.KGramMLPSeqModel(Narrow(3, 4), vocab_size=40, k=3)(random_tokens(5, 2))
    for wrong in ({"k": 0}, {"vocab_size": 0}, {"chunk_size": -1}):
        with pytest.raises(ValueError, match="expected 1 or more"):
            helpers.KGramMLPSeqModel(Narrow(3, 5), **{"vocab_size": 40, "k": 3, **wrong})


def test_gradients_reach_every_parameter(any_model):
    norms = helpers.check_gradient_flow(any_model, random_tokens(10, 4))
    assert list(norms) == [name for name, _ in any_model.named_parameters()] and min(norms.values()) > 0


def test_a_detached_embedding_is_found():
    class Detached(helpers.EmbeddingMLP):
        def forward(self, contexts):
            return self.mlp(self.embedding(contexts).detach().flatten(1))

    with pytest.raises(ValueError, match="net.embedding.weight"):
        helpers.check_gradient_flow(kgram(Detached), random_tokens(10, 4))


@pytest.mark.parametrize("number, name", [("02", "EmbeddingMLP"), ("04", "PooledMLP")])
def test_notebook_and_helpers_hold_the_same_net(number, name):
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    cells = [cell for cell in nbformat.read(path, 4).cells if "export" in cell.metadata.get("tags", [])]
    taught = [node for cell in cells for node in ast.parse(cell.source).body]
    assert [node.name for node in taught] == [name]
    shared = ast.parse(inspect.getsource(getattr(helpers, name))).body[0]
    assert ast.dump(taught[0]) == ast.dump(shared)


def test_rms_norm_is_pytorchs_and_does_not_overflow():
    x = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0)) * 3
    ours, theirs = helpers.RMSNorm(16, eps=1e-5), torch.nn.RMSNorm(16, eps=1e-5)
    ours.weight.data = theirs.weight.data = torch.randn(16)
    torch.testing.assert_close(ours(x), theirs(x))
    assert helpers.RMSNorm(16)(300 * torch.ones(16, dtype=torch.float16)).eq(1).all()


def test_the_eps_of_rms_norm_stands_inside_the_root():
    """Of numbers as small as the root of eps it shows: outside the root, this would be 0.999."""
    x = torch.full((1, 8), 1e-3)
    torch.testing.assert_close(helpers.RMSNorm(8)(x), torch.full((1, 8), 1 / math.sqrt(2)), atol=1e-5, rtol=0)


def test_rotary_positions_turn_complex_numbers():
    """Pair i of D / 2 is one complex number, times e^(i position 10000^(-2i / D)); far out a wrong base shows most."""
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = torch.complex(*x.chunk(2, dim=-1))  # (2, 7, 8)
    for position, row in enumerate(pairs.unbind(1), start=900):
        angles = [position / 10_000 ** (2 * i / 16) for i in range(8)]
        row *= torch.tensor([complex(math.cos(angle), math.sin(angle)) for angle in angles])
    expected = torch.cat([pairs.real, pairs.imag], dim=-1)
    torch.testing.assert_close(helpers.rotate(x, 900), expected, atol=3e-4, rtol=0)


def test_rotary_scores_depend_on_the_distance_alone():
    query, key = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))
    scores = [(helpers.rotate(query, i + 3) * helpers.rotate(key, i)).sum().item() for i in (0, 1, 40)]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-5)
    assert (helpers.rotate(query, 4) * helpers.rotate(key, 0)).sum().item() != pytest.approx(scores[0], abs=1e-3)
    assert torch.equal(helpers.rotate(query, 0), query)


def test_attention_against_its_definition():
    """One block, no positions: softmax(QK / sqrt(D)) V over the past, head by head, one query at a time."""
    block = transformer(positions="none").blocks[0]
    x = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0))
    attended, _ = block.attend(x, block.start(1, x))
    queries, keys, values = (block.attention_in(x)[0, :, part * 16 : part * 16 + 16] for part in range(3))
    for t in range(6):
        heads = []
        for head in (slice(0, 8), slice(8, 16)):
            weights = (keys[: t + 1, head] @ queries[t, head] / math.sqrt(8)).softmax(0)
            heads.append(weights @ values[: t + 1, head])
        torch.testing.assert_close(attended[0, t], block.attention_out(torch.cat(heads)), atol=1e-5, rtol=1e-4)


def test_the_short_convolution_and_the_norm_of_queries_and_keys_against_their_definitions():
    """One block, no positions, one head: filters of three over time, then rows of mean square 1; token by token too."""
    block = transformer(positions="none", n_heads=1, short_conv=True, qk_norm=True).blocks[0]
    nn.init.normal_(block.conv)
    x = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0))
    before = nn.functional.pad(block.attention_in(x)[0], (0, 0, 2, 0))  # (2 + T, 3 d)
    filtered = torch.stack([(before[t : t + 3] * block.conv).sum(0) for t in range(6)])
    queries, keys, values = filtered.chunk(3, dim=1)
    queries, keys = (each / each.square().mean(1, keepdim=True).sqrt() for each in (queries, keys))
    rows = [(keys[: t + 1] @ queries[t] / 4).softmax(0) @ values[: t + 1] for t in range(6)]
    expected = block.attention_out(torch.stack(rows))
    torch.testing.assert_close(block.attend(x, block.start(1, x))[0][0], expected, atol=1e-4, rtol=1e-4)
    past, steps = block.start(1, x), []
    for part in (x[:, :1], x[:, 1:4], x[:, 4:]):
        attended, past = block.attend(part, past)
        steps.append(attended[0])
    torch.testing.assert_close(torch.cat(steps), expected, atol=1e-4, rtol=1e-4)


def test_a_short_convolution_changes_nothing_before_training():
    plain, conv = transformer(), transformer(short_conv=True)
    conv.load_state_dict(plain.state_dict(), strict=False)
    for block in conv.blocks:
        block.conv.data /= 5  # what `transformer` made of it
    torch.testing.assert_close(conv(random_tokens(7, 3)), plain(random_tokens(7, 3)))


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("mlp", ["swiglu", "silu"])
def test_a_block_against_its_definition(norm, mlp):
    block = transformer(norm=norm, mlp=mlp).blocks[0]
    for each in block.norms:
        nn.init.uniform_(each.weight, 0.5, 2)
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    past = block.start(2, x)

    def mixed(x):
        if mlp == "silu":
            return block.mlp_out(nn.functional.silu(block.mlp_in(x)))
        gate, up = (nn.functional.linear(x, weight) for weight in block.mlp_in.weight.chunk(2))
        return block.mlp_out(gate * gate.sigmoid() * up)

    if norm == "pre":
        middle = x + block.attend(block.norms[0](x), past)[0]
        expected = middle + mixed(block.norms[1](middle))
    else:
        middle = block.norms[0](x + block.attend(x, past)[0])
        expected = block.norms[1](middle + mixed(middle))
    torch.testing.assert_close(block(x, past)[0], expected)


def test_the_hidden_width_of_a_block_keeps_its_number_of_weights():
    gated, plain = (transformer(d_model=48, mlp=mlp).blocks[0] for mlp in ("swiglu", "silu"))
    assert gated.mlp_out.in_features == 8 * 48 // 3 and gated.mlp_in.out_features == 2 * 8 * 48 // 3
    assert plain.mlp_out.in_features == plain.mlp_in.out_features == 4 * 48


def spread(weight):
    """The standard deviation of weights that are drawn around 0; of thousands it is known to a few percent."""
    return weight.square().mean().sqrt().item()


def test_first_weights_of_the_transformer():
    """N(0, .02); the two projections of each block that are summed up, divided by the root of their number."""
    torch.manual_seed(0)
    model = helpers.TransformerModel(500, 64, 4, 3, tied=False, positions="learned")
    drawn = [model.embedding.weight, model.positions.weight, model.head.weight]
    drawn += [weight for block in model.blocks for weight in (block.attention_in.weight, block.mlp_in.weight)]
    assert [spread(weight) for weight in drawn] == pytest.approx([0.02] * 9, rel=0.05)
    summed = [weight for block in model.blocks for weight in (block.attention_out.weight, block.mlp_out.weight)]
    assert [spread(weight) for weight in summed] == pytest.approx([0.02 / math.sqrt(2 * 3)] * 6, rel=0.05)
    assert model.head.bias.eq(0).all()


@pytest.mark.parametrize("make", [lstm, kgram])
def test_first_weights_of_a_tied_table(make):
    model = make(vocab_size=500, embed_size=36, hidden_size=50, tied=True)
    assert model.head.weight is next(m for m in model.modules() if isinstance(m, nn.Embedding)).weight
    assert spread(model.head.weight) == pytest.approx(0.5 / 6, rel=0.05) and model.head.bias.eq(0).all()
    assert model.project.weight.shape == (36, 50) and model.project.bias is None


def test_positions_tell_orders_apart():  # with one block and no positions, the past is a bag of tokens
    ab, ba = torch.tensor([[1, 2, 5], [2, 1, 5]]).unsqueeze(-1)
    for positions, same in (("none", True), ("rotary", False), ("learned", False)):
        model = transformer(n_blocks=1, positions=positions)
        assert torch.allclose(model(ab)[-1], model(ba)[-1], atol=1e-5) is same


def test_each_option_of_the_transformer_changes_it():
    usual = transformer()
    for option in ({"norm": "post"}, {"positions": "learned"}, {"mlp": "silu"}, {"tied": False}):
        assert not torch.allclose(transformer(**option)(random_tokens(9, 2)), usual(random_tokens(9, 2)), atol=1e-4)
    assert usual.head.weight is usual.embedding.weight
    tied, free = (helpers.count_parameters(transformer(tied=tied)) for tied in (True, False))
    assert tied["body"] == free["body"] and free["parameters"] - tied["parameters"] == 40 * 16


@pytest.mark.parametrize("sizes", [{"n_heads": 0}, {"n_blocks": 0}, {"n_heads": -2}, {"d_model": 0}, {"vocab_size": 0}])
def test_a_size_of_zero_says_so(sizes):
    with pytest.raises(ValueError, match="expected 1 or more"):
        helpers.TransformerModel(**{"vocab_size": 9, "d_model": 8, "n_heads": 2, "n_blocks": 1} | sizes)


def test_wrong_transformers_say_so():
    for options, says in (
        ({"norm": "layer"}, "norm is 'layer'; expected one of pre, post"),
        ({"positions": "sine"}, "positions is 'sine'"),
        ({"n_heads": 3}, "multiple of 2"),
    ):
        with pytest.raises(ValueError, match=says):
            transformer(**options)
    with pytest.raises(ValueError, match="learned positions end at max_length=8"):
        transformer(positions="learned", max_length=8)(random_tokens(9, 1))
