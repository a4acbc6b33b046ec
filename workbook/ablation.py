"""What the training of a k-gram design rests on: its learning rate, its initialisation, its layers."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd
from torch import Tensor, nn

from helpers import KGramMLPSeqModel, next_token_loss
from workbook.batches import make_batches
from workbook.config import TrainingConfig
from workbook.counts import loss_floor
from workbook.training import compare

RATES, STEPS = (0.001, 0.003, 0.01, 0.03), 200


def whole_curve(
    make: Callable[[str, int], KGramMLPSeqModel],
    names: Sequence[str],
    variants: Sequence[str],
    sequences: Sequence[Tensor],
    *,
    batch_size: int = 32,
    seeds: Iterable[int] = range(4),
    steps: int = STEPS,
) -> pd.DataFrame:
    """Step rows, five steps each, of `make(name, seed)` for each name, learning rate and seed.

    `variants` are trained at the lowest rate alone. Columns beside those of `compare` without its clock: learning_rate;
    unigram and floor, the lowest mean loss (nats) of a model that sees no token and of one that sees k.
    """
    parts = []
    for rate, seed in itertools.product(RATES, seeds):
        chosen = [*names, *variants] if rate == min(RATES) else names
        models = {name: make(name, seed) for name in chosen}
        k, blank = next((model.k, model.blank) for model in models.values())
        batches = make_batches(sequences, batch_size, blank=blank, seed=seed)
        config = TrainingConfig(steps=steps, learning_rate=rate, seed=seed, log_every=5)
        parts.append(compare(models, batches, config, run="kgram_curve").assign(learning_rate=rate))
    rows = pd.concat(parts, ignore_index=True).drop(columns=["step_s", "elapsed_s", "timed"])
    return rows.assign(unigram=loss_floor(sequences, 0), floor=loss_floor(sequences, k))


def layer_signals(model: KGramMLPSeqModel, tokens: Tensor) -> pd.DataFrame:
    """A row for each layer of the net, in the order in which one batch (T, B) goes through them: layer, type, share.

    share: how much of a layer's output depends on the context, its standard deviation over the distinct contexts
    divided by its root mean square; 0: the same for each, 1: nothing else. gradient: the norm of the gradient of its
    own weights, 0 where it has none.
    """
    called: list[tuple[nn.Module, float]] = []

    def look(layer: nn.Module, _, output: Tensor) -> None:
        rows = output.detach().flatten(1)
        share = (rows - rows.mean(0)).square().mean() / rows.square().mean()
        called.append((layer, share.sqrt().item()))

    leaves = [layer for layer in model.net.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(look) for layer in leaves]
    model.zero_grad()
    try:
        next_token_loss(model, tokens).backward()
    finally:
        for hook in hooks:
            hook.remove()
    rows = []
    for number, (layer, share) in enumerate(called, start=1):
        squares = sum(weight.grad.square().sum().item() for weight in layer.parameters() if weight.grad is not None)
        rows.append({"layer": number, "type": type(layer).__name__, "share": share, "gradient": squares**0.5})
    model.zero_grad()
    return pd.DataFrame(rows)


def layers_in_training(
    models: Mapping[str, KGramMLPSeqModel],
    sequences: Sequence[Tensor],
    tokens: Tensor,
    steps: int,
    learning_rate: float,
    seed: int = 0,
) -> pd.DataFrame:
    """`layer_signals` of each model on `tokens`, before `steps` steps on batches of the sequences and after them."""

    def look(step: int) -> list[pd.DataFrame]:
        return [layer_signals(model, tokens).assign(model=name, step=step) for name, model in models.items()]

    before, blank = look(0), next(model.blank for model in models.values())
    batches = make_batches(sequences, tokens.shape[1], blank=blank, seed=seed)
    config = TrainingConfig(steps=steps, learning_rate=learning_rate, seed=seed)
    compare(models, batches, config, run="kgram_layers", progress=False)  # its cell's output is compared
    return pd.concat([*before, *look(steps)], ignore_index=True).assign(run="kgram_layers", seed=seed)
