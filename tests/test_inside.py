"""What is shown of a model's inside is what the model computes with."""

import pytest
import torch

from helpers import LSTMSeqModel, TransformerModel
from workbook import inside


@pytest.mark.parametrize("options", [{}, {"short_conv": True, "qk_norm": True}, {"positions": "learned"}])
def test_attention_sums_to_one_sees_no_future_and_changes_nothing(options):
    torch.manual_seed(0)
    model, tokens = TransformerModel(30, 16, 2, 3, **options), torch.randint(30, (9, 1))
    for block in model.blocks:
        block.attention_in.weight.data *= 20
    before = model(tokens)
    weights = inside.attention_weights(model, tokens)
    assert weights.shape == (3, 2, 9, 9) and torch.allclose(weights.sum(-1), torch.ones(3, 2, 9))
    assert weights.triu(1).abs().max() == 0 and weights[0].std() > 0.05
    assert torch.equal(model(tokens), before)


def test_what_is_kept_is_what_the_model_attends_with():
    """With values of one at a position and zeros elsewhere, the output is the weight on it."""
    torch.manual_seed(0)
    model, tokens = TransformerModel(30, 16, 2, 1), torch.randint(30, (6, 1))
    seen, usual = [], torch.nn.functional.scaled_dot_product_attention

    def look(queries, keys, values, mask, is_causal):
        one = torch.zeros_like(values)
        one[:, :, 2] = 1
        seen.append(usual(queries, keys, one, mask, is_causal=is_causal)[..., 0])
        return usual(queries, keys, values, mask, is_causal=is_causal)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", look)
        model(tokens)
    assert torch.allclose(inside.attention_weights(model, tokens)[0, :, :, 2], seen[0][0], atol=1e-6)


def test_shares_are_of_all_attention():
    weights = torch.rand(2, 2, 8, 8).tril()
    weights /= weights.sum(-1, keepdim=True)
    shares = inside.attention_shares(weights, 3)
    assert list(shares.index) == ["block 1, head 1", "block 1, head 2", "block 2, head 1", "block 2, head 2"]
    assert shares.sum(axis=1).to_numpy() == pytest.approx(1)
    assert shares["itself"].iloc[0] == pytest.approx(weights[0, 0].diagonal()[4:].mean().item())
    assert shares["the first token"].iloc[3] == pytest.approx(weights[1, 1, 4:, 0].mean().item())


def test_a_model_without_attention_says_so():
    with pytest.raises(TypeError, match="the model is a LSTMSeqModel; only a TransformerModel has attention"):
        inside.attention_weights(LSTMSeqModel(30, 4, 4), torch.zeros(3, 1, dtype=torch.int64))


def test_a_map_shows_where_a_table_varies_most():
    model = LSTMSeqModel(4, 3, 4)
    model.embedding.weight.data = torch.tensor([[9.0, 0, 0], [-9, 0, 0], [0, 1, 0], [0, -1, 0]])
    table = inside.table_map(model, "embedding")
    assert table["x"].tolist() == pytest.approx([9, -9, 0, 0]) and table["y"].tolist() == pytest.approx([0, 0, 1, -1])
