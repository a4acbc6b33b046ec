"""The benchmark of notebook 5: ways, parts of a step, shares of contexts, and a process that says why it ended."""

from types import SimpleNamespace

import pytest
import torch

from helpers import LSTMSeqModel, context_loss, next_token_loss
from workbook import benchmark
from workbook.benchmark import Setting, part_of


def event(*names, shapes=()):
    """A profiler's event inside others, the innermost first."""
    found = None
    for name in reversed(names):
        found = SimpleNamespace(name=name, cpu_parent=found, input_shapes=shapes)
    return found


def test_each_way_has_its_loss():
    nets = benchmark.nets()
    assert benchmark.loss_of("loop") is nets.loop_loss and benchmark.loss_of("lookup") is nets.batch_loss
    assert benchmark.loss_of("memory reuse") is next_token_loss and benchmark.loss_of("≈ compact") is context_loss
    model = benchmark.build("embedding", 2, vocab_size=40)
    tokens = torch.randint(40, (5, 3))
    gap = benchmark.loss_of("distinct contexts")(model, tokens) - next_token_loss(model, tokens)
    assert abs(gap.item()) < 1e-5


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ("optimiser", event("aten::mul", "Optimizer.step#Adam.step")),
        ("head", event("aten::addmm", "head", "step")),
        ("backward", event("aten::mm", "net", "backward")),
        ("loss", event("aten::exp", "_HeadCrossEntropy")),
        ("head", event("aten::linear", "_HeadCrossEntropy", shapes=[[4, 8], [9, 8], [9]])),
        ("backward", event("aten::mm", "_HeadCrossEntropy", shapes=[[4, 8], [9, 8]])),
        ("loss", event("aten::log_softmax", "step")),
        ("context", event("aten::unique")),
    ],
)
def test_the_part_of_an_event(part, found):
    assert part_of(found) == part


def test_contexts_are_those_of_real_targets():
    blank = benchmark.VOCAB_SIZE
    batch = torch.tensor([[1, 4], [2, 5], [3, blank]])
    assert benchmark.real_contexts(batch, 2).tolist() == [[blank, 1], [blank, 4], [1, 2]]
    shares = benchmark.measure_shares({"same": [torch.tensor([1, 2, 3])] * 32})
    assert shares.set_index(["kgram_k", "batch_size"])["share"].to_dict() == pytest.approx(
        {(k, 32): 1 / 32 for k in (1, 2, 3, 4, 6, 8)} | {(3, 1): 1, (3, 4): 1 / 4, (3, 16): 1 / 16}
    )


def test_differences_are_shares_of_the_largest_number():
    one, other = (0.5, {"w": torch.tensor([1.0, 4.0])}), (0.5, {"w": torch.tensor([1.0, 5.0])})
    assert benchmark.largest_difference(one, other) == pytest.approx(0.2)
    assert benchmark.largest_difference((0.9, one[1]), one) == pytest.approx(0.4)
    torch.manual_seed(0)
    model, tokens = LSTMSeqModel(9, 4, 4), torch.randint(9, (5, 2))
    assert benchmark.largest_difference(*[benchmark.loss_and_gradients(model, next_token_loss, tokens)] * 2) == 0


def test_a_step_changes_the_weights_and_the_models_have_their_sizes():
    step = benchmark.make_step("embedding", torch.randint(50, (5, 2)), torch.device("cpu"), k=2, V=50, E=4, H=8)
    assert step() is None
    for name in ("one-hot", "convolution", "LSTM", "Transformer"):
        model = benchmark.make_model(name, k=2, V=50, E=4, H=8)
        assert model(torch.randint(50, (4, 2))).shape == (4, 2, 50)


def test_a_process_that_ends_says_why():
    worker = benchmark.Worker(Setting("no such design", "memory reuse", "3seqs.txt"))
    with pytest.raises(RuntimeError, match="KeyError: 'no such design'"):
        worker("measure_time")
