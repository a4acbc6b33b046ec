"""Training, comparison and the machine: what a row says must be what happened."""

import itertools
import math
import pathlib
import signal
import threading

import pandas as pd
import pytest
import torch
from oracles import DESIGNS, kgram, lstm, random_batches, random_tokens, transformer

import helpers
from workbook import machine, training
from workbook.batches import CorpusContexts, make_batches
from workbook.config import TrainingConfig
from workbook.records import summarise
from workbook.training import Trainer, compare, make_optimizers, rate_factor, train


def run(model, batches=None, *, loss_fn=helpers.next_token_loss, on_step=None, checkpoint=None, **options):
    """Eight steps on four small batches, if `options` (the fields of a TrainingConfig) say nothing else."""
    config = TrainingConfig(**{"steps": 8, "learning_rate": 1e-2, **options})
    batches = random_batches() if batches is None else batches
    return train(model, batches, config, loss_fn=loss_fn, on_step=on_step, checkpoint=checkpoint, progress=False)


def losses(model, **options):
    return run(model, **options)["loss"].tolist()


def steps_of(trainer):
    """Drive a trainer to its end, and yield after each step."""
    for batch in trainer.stream():
        yield trainer.step(batch)


# ---------------------------------------------------------------- options


def test_the_same_seed_gives_the_same_losses_another_gives_others():
    sequences = list(random_tokens(8, 30).t())

    def seeded(seed):
        return losses(kgram(seed=seed), batches=make_batches(sequences, 4, blank=40, seed=seed))

    assert seeded(0) == seeded(0) and seeded(0) != seeded(1)


@pytest.mark.parametrize(
    "option",
    [
        {"learning_rate": 1e-3},
        {"schedule": "cosine"},
        {"warm_up_share": 0.5},
        {"weight_decay": 1.0},
        {"clip": 0.01},
        {"bfloat16": "on"},
        {"optimizer": "muon"},
        {"max_steps_per_epoch": 2},
        {"budget_tokens": 60, "schedule": "cosine"},
        {"loss_fn": lambda model, tokens: 2 * helpers.next_token_loss(model, tokens)},
    ],
    ids=lambda option: " ".join(option),
)
def test_each_option_of_training_changes_the_losses(option):
    assert losses(lstm(), **option) != losses(lstm())


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine_to_a_tenth():
    rates = [rate_factor(share, 0.2, "cosine") for share in (0, 0.1, 0.2, 0.6, 1)]
    assert rates == pytest.approx([0.01, 0.5, 1, 0.55, 0.1])
    assert rate_factor(0.9, 0.2, "constant") == 1


@pytest.mark.parametrize(
    "options, warm_up",
    [
        ({"schedule": "cosine"}, 0.03),
        ({"schedule": "cosine", "warm_up_share": 0.2}, 0.2),
        ({"schedule": "cosine", "warm_up_share": 0.0}, 0.0),
        ({}, 0.0),
        ({"warm_up_share": 0.5}, 0.5),
    ],
    ids=str,
)
def test_the_rate_of_each_step_is_that_of_the_schedule(options, warm_up):
    """Read from the optimisers' groups at every step, AdamW's and Muon's. With cosine 3 % of the steps warm up."""
    config = TrainingConfig(steps=40, learning_rate=1e-3, optimizer="muon", **options)
    trainer = Trainer(transformer(n_blocks=1), random_batches(), config)
    for number, _ in enumerate(steps_of(trainer)):
        done = number / 40
        if done < warm_up:
            expected = 1e-3 * max(done / warm_up, 0.01)
        elif "schedule" in options:
            fall = (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up))) / 2  # from 1 to 0
            expected = 1e-4 + (1e-3 - 1e-4) * fall
        else:
            expected = 1e-3
        assert [group["lr"] for group in trainer.groups()] == pytest.approx([expected, expected, 2 * expected])
    assert trainer.counts["step"] == 40


@pytest.mark.parametrize(
    "make",
    [lstm, transformer, *(lambda net=net: kgram(net) for net in DESIGNS.values())],
    ids=["LSTM", "Transformer", *DESIGNS],
)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weight_decay_shrinks_matrices_and_nothing_else(make, optimizer):
    """A loss without a gradient moves no weight, so what is left of a step is the decay: rate x decay of a matrix."""
    model = make()
    for weight in model.parameters():
        torch.nn.init.uniform_(weight, 1, 2)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    config = {"optimizer": optimizer, "learning_rate": 1e-2, "weight_decay": 3.0}
    run(model, steps=1, loss_fn=lambda model, tokens: 0 * helpers.next_token_loss(model, tokens), **config)
    for name, weight in model.named_parameters():
        table = "embedding" in name or "head" in name or "table" in name  # Muon takes the matrices between these
        rate = 2e-2 if optimizer == "muon" and weight.ndim == 2 and not table else 1e-2
        left = 1 - rate * 3.0 if weight.ndim > 1 else 1.0
        torch.testing.assert_close(weight / before[name], torch.full_like(weight, left), rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize("clip", [0.05, 1.0, 1e3])
def test_clip_bounds_the_norm_over_all_parameters_together(clip):
    """The gradient keeps its direction; clipped parameter by parameter, or number by number, it would not."""
    model, tokens = transformer(), random_tokens(9, 3)
    plain = torch.autograd.grad(helpers.next_token_loss(model, tokens), list(model.parameters()))
    norm = math.sqrt(sum(gradient.double().square().sum().item() for gradient in plain))
    assert 1.0 < norm < 1e3 and max(gradient.norm().item() for gradient in plain) < norm  # some are clipped, one not
    run(model, [tokens], steps=1, clip=clip)
    for weight, gradient in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(weight.grad, gradient * min(1, clip / norm), rtol=1e-4, atol=1e-7)


def test_muon_takes_the_inner_matrices_at_twice_the_rate_and_adamw_the_rest():
    model, config = transformer(), TrainingConfig(optimizer="muon", learning_rate=0.1, weight_decay=0.2)
    adamw, muon = make_optimizers(model, config)
    assert [group["lr"] for group in (*adamw.param_groups, *muon.param_groups)] == [0.1, 0.1, 0.2]
    inner = {id(w) for group in muon.param_groups for w in group["params"]}
    assert inner == {id(w) for name, w in model.named_parameters() if w.ndim == 2 and "blocks" in name}
    rest = [w for group in adamw.param_groups for w in group["params"]]
    assert len(inner) + len(rest) == len(list(model.parameters())) and not inner & {id(w) for w in rest}
    assert len(make_optimizers(model, TrainingConfig())) == 1


def test_each_size_of_a_model_changes_it():
    sizes = {"vocab_size": 40, "k": 3, "embed_size": 6, "hidden_size": 8, "num_layers": 1}
    count = helpers.count_parameters(kgram(**sizes))["parameters"]
    for name, value in sizes.items():
        assert helpers.count_parameters(kgram(**{**sizes, name: value + 1}))["parameters"] > count, name


# ---------------------------------------------------------------- bfloat16, on, off or whichever is faster


@pytest.fixture
def clock(monkeypatch):
    """Seconds by whether products are in bfloat16: what `settle_bfloat16` then measures."""
    seconds = {"on": 1.0, "off": 1.0}

    def timed(function, *inputs, device):
        return seconds[inputs[-1]], function(*inputs)

    monkeypatch.setattr(training, "timed", timed)
    return seconds


@pytest.mark.parametrize("faster", ["on", "off"])
def test_auto_takes_the_faster_and_leaves_everything_as_it_was(clock, faster):
    clock[faster] = 0.25
    model, batches = kgram(), make_batches(list(random_tokens(8, 30).t()), 4, blank=40)
    model.dropout.p = 0.5
    before = [weight.clone() for weight in model.parameters()]
    random, order = torch.get_rng_state(), batches.generator.get_state()
    config, taken = training.settle_bfloat16(TrainingConfig(bfloat16="auto"), model, batches)
    assert config == TrainingConfig(bfloat16=faster) and taken == clock
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(batches.generator.get_state(), order)


def test_what_is_given_is_not_measured(monkeypatch):
    monkeypatch.setattr(training, "timed", None)
    for given in ("on", "off"):
        config = TrainingConfig(bfloat16=given)
        assert training.settle_bfloat16(config, kgram(), []) == (config, {})


def test_auto_goes_on_as_the_checkpoint_began(tmp_path):
    path = tmp_path / "a.pt"
    run(lstm(), bfloat16="on", checkpoint=path, steps=4)
    config, taken = training.settle_bfloat16(TrainingConfig(bfloat16="auto"), lstm(), [], checkpoint=path)
    assert config.bfloat16 == "on" and taken == {}
    resumed = losses(lstm(), bfloat16="auto", checkpoint=path, steps=8)
    assert resumed == losses(lstm(), bfloat16="on", steps=8) != losses(lstm(), steps=8)


# ---------------------------------------------------------------- budgets and the clock


@pytest.fixture
def fake_clock(monkeypatch):
    """A clock that moves by half a second at each reading: every step takes exactly 0.5 s."""
    ticks = itertools.count()
    monkeypatch.setattr(machine.time, "perf_counter", lambda: 0.5 * next(ticks))


def test_budgets_end_a_training(fake_clock):
    def steps(**budgets):  # four batches of 15 targets
        return len(train(lstm(), random_batches(), TrainingConfig(**budgets), progress=False))

    assert steps(steps=7) == 7
    assert [steps(budget_tokens=60), steps(budget_tokens=61)] == [4, 5]
    assert steps(budget_seconds=3) == 6  # the clock moves on by .5 s a step
    assert steps(steps=5, budget_seconds=3) == steps(steps=9, budget_tokens=75) == 5
    assert [steps(), steps(epochs=2), steps(epochs=2, max_steps_per_epoch=3)] == [3 * 4, 2 * 4, 2 * 3]


def test_throughput_times_seconds_is_the_number_of_real_tokens(fake_clock):
    tokens = random_tokens(10, 2)
    tokens[4:, 1] = 40  # 9 + 3 real targets
    frame = run(lstm(), [tokens], steps=6, untimed_steps=2)
    assert (frame["tokens"] == 12).all() and (frame["step_s"] == 0.5).all() and (frame["steps"] == 1).all()
    assert frame["elapsed_s"].tolist() == [0.5 * step for step in range(1, 7)]
    assert frame["timed"].tolist() == [False] * 2 + [True] * 4
    row = summarise(frame).iloc[0]
    assert row["tokens_per_s"] * 0.5 * row["timed_steps"] == pytest.approx(12 * 4, rel=0.01)
    assert (row["steps"], row["tokens"], row["wall_s"], row["timed_steps"]) == (6, 72, 3.0, 4)


def test_the_clock_waits_for_the_device_before_it_starts_and_before_it_stops(monkeypatch):
    events = []
    monkeypatch.setattr(machine, "synchronize", lambda device: events.append(device.type))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: float(events.append("clock") or len(events)))
    seconds, result = machine.timed(lambda a, b: events.append("work") or a + b, 1, 2, device="cpu")
    assert events == ["cpu", "clock", "work", "cpu", "clock"] and (seconds, result) == (3.0, 3)


# ---------------------------------------------------------------- rows


def test_rows_are_written_as_they_come_and_add_up(tmp_path):
    batches = [random_tokens(length, 3, seed=length) for length in (6, 3, 9, 4)]  # 15, 6, 24 and 9 targets
    seen = []

    def logged(**options):
        def look(row):
            seen.append((row["step"], len(pd.read_csv(tmp_path / "log.csv"))))

        config = TrainingConfig(steps=11, learning_rate=1e-2, **options)
        return train(lstm(), batches, config, on_step=look, log=tmp_path / "log.csv", progress=False)

    every = logged()
    assert seen == [(step, step) for step in range(1, 12)]
    seen.clear()
    fourth = logged(log_every=4)
    assert [rows for _, rows in seen] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert len(pd.read_csv(tmp_path / "log.csv")) == 3  # the last row, not full, at the end
    assert fourth["step"].tolist() == [4, 8, 11] and fourth["steps"].tolist() == [4, 4, 3]
    assert fourth["tokens"].tolist() == [54, 54, 45] and fourth["timed"].tolist() == [False, True, True]
    sums = (every["loss"] * every["tokens"]).groupby((every["step"] - 1) // 4).sum()
    assert fourth["loss"].tolist() == pytest.approx((sums / fourth["tokens"]).tolist())  # by tokens, not by steps
    assert fourth["elapsed_s"].iloc[-1] == pytest.approx(fourth["step_s"].sum())
    assert summarise(fourth)["mean_loss"].item() == pytest.approx(summarise(every)["mean_loss"].item())


def test_hooks_see_each_row():
    rows = []
    frame = run(lstm(), on_step=rows.append)
    assert pd.DataFrame(rows)[frame.columns].equals(frame)  # with those of the epoch, for who wants to print them


def test_models_see_the_same_data_in_turn():
    calls = []

    def record(name):
        def loss(model, tokens):
            calls.append((name, tokens))
            return helpers.next_token_loss(model, tokens)

        return loss

    batches = make_batches(list(random_tokens(6, 20).t()), 4, blank=40)
    models = {"a": lstm(seed=0), "b": lstm(seed=1)}
    compare(models, batches, TrainingConfig(steps=7), loss_fn={name: record(name) for name in models}, progress=False)
    seen = {name: [tokens for other, tokens in calls if other == name] for name in models}
    assert all(torch.equal(a, b) for a, b in zip(seen["a"], seen["b"], strict=True))
    assert [{a[0], b[0]} for a, b in zip(calls[::2], calls[1::2], strict=True)] == [{"a", "b"}] * 7
    assert {pair[0] for pair in calls[::2]} == {"a", "b"}  # neither always goes first


def test_a_model_trains_the_same_alone_and_in_company():
    models, config = {"other": kgram(), "m": lstm()}, TrainingConfig(steps=8, learning_rate=1e-2, seed=5)
    company = compare(models, random_batches(), config, run="both", progress=False)
    assert company["model"].tolist() == ["other"] * 8 + ["m"] * 8
    assert (company["run"] == "both").all() and (company["seed"] == 5).all()
    assert company.loc[company["model"] == "m", "loss"].tolist() == losses(lstm())


# ---------------------------------------------------------------- what goes wrong


def test_training_that_cannot_go_on_says_so():
    with pytest.raises(ValueError, match="loss is nan at step 1.*learning rate"):
        losses(lstm(), loss_fn=lambda model, tokens: math.nan * helpers.next_token_loss(model, tokens))
    with pytest.raises(ValueError, match="no model"):
        compare({}, random_batches(), TrainingConfig(steps=3))
    for budget in ({"budget_seconds": 1.0}, {"budget_tokens": 100}):
        with pytest.raises(ValueError, match="expected no budget_seconds and no budget_tokens"):
            compare({"m": lstm()}, random_batches(), TrainingConfig(**budget))
    for batches in ([], iter(random_batches(2))):
        with pytest.raises(ValueError, match="steps: batches must be"):
            run(lstm(), batches, steps=3)
    for batches in ([], iter(random_batches(2))):  # no epoch can be counted
        with pytest.raises(ValueError, match="batches .*give .*steps"):
            train(lstm(), batches, progress=False)


def test_a_loss_that_is_not_finite_leaves_the_weights_alone():
    model = lstm()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match="inf"):
        losses(model, loss_fn=lambda model, tokens: math.inf * helpers.next_token_loss(model, tokens))
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


# ---------------------------------------------------------------- checkpoints


class Killed(Exception):
    pass


SEQUENCES = [random_tokens(8, 1, seed=seed)[:, 0] for seed in range(30)]  # 8 batches an epoch
KINDS = {
    "plain": {},
    "weighted, muon, dropout": {"optimizer": "muon"},
    "similar lengths, rows of 3": {"log_every": 3},
    "contexts": {},
}


def long_run(folder, kind, *, checkpoint=None, on_step=None):
    """Twenty steps with all that a checkpoint has to keep: the rows, the model."""
    more = {"weights": [1 + i for i in range(30)]} if "weighted" in kind else {}
    batches = make_batches(SEQUENCES, 4, blank=40, seed=3, similar_lengths="similar" in kind, **more)
    if kind == "contexts":
        batches = CorpusContexts(SEQUENCES, 3, 40).batches(20, blanks=0.5, seed=3)  # 11 an epoch
    options = {"schedule": "cosine", "warm_up_share": 0.2, "clip": 1.0, "learning_rate": 1e-2}
    config = TrainingConfig(steps=20, validate_every=6, save_every=7, **options, **KINDS[kind])
    model = kgram() if kind == "contexts" else lstm()
    model.dropout.p = 0.3 if "dropout" in kind else 0.0
    torch.manual_seed(4)  # of dropout; a checkpoint keeps its state
    frame = train(
        model,
        batches,
        config,
        loss_fn=helpers.context_loss if kind == "contexts" else helpers.next_token_loss,
        validation=random_batches(2),
        checkpoint=checkpoint,
        on_step=on_step,
        log=folder / "log.csv",
        progress=False,
    )
    written = pd.read_csv(folder / "log.csv")
    pd.testing.assert_frame_equal(written[["step", "loss"]], frame[["step", "loss"]])
    return frame[["step", "tokens", "loss", "validation_loss"]], model


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return {kind: long_run(tmp_path_factory.mktemp("unbroken"), kind) for kind in KINDS}


def check_the_same(run, other):
    pd.testing.assert_frame_equal(run[0], other[0], check_exact=True)
    assert all(torch.equal(a, b) for a, b in zip(run[1].parameters(), other[1].parameters(), strict=True))


@pytest.mark.parametrize("stopped_at", [5, 11, 14])  # before, between and on the saved steps
@pytest.mark.parametrize("kind", KINDS)
def test_after_a_kill_the_losses_are_those_of_an_unbroken_run(tmp_path, unbroken, kind, stopped_at):
    def kill(row):
        if row["step"] == stopped_at:
            raise Killed

    with pytest.raises(Killed):
        long_run(tmp_path, kind, checkpoint=tmp_path / "c.pt", on_step=kill)
    for _ in range(2):  # the second time it is finished, and stays so
        check_the_same(long_run(tmp_path, kind, checkpoint=tmp_path / "c.pt"), unbroken[kind])
    assert not list(tmp_path.glob("*.partial"))


def interrupt_in(monkeypatch, owner, name, call):
    """Ctrl-C, a real one, within the `call`-th call of a function: what it does is done, but not yet counted."""
    function, calls = getattr(owner, name), itertools.count(1)

    def interrupted(*arguments, **options):
        result = function(*arguments, **options)
        if next(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize("kind", ["plain", "weighted, muon, dropout"])
@pytest.mark.parametrize(
    "owner, name, call, step",
    [
        (helpers, "head_cross_entropy", 9, 7),  # after step 6 two batches are validated
        (torch.optim.AdamW, "step", 9, 9),
        (Trainer, "record", 9, 9),
        (training, "evaluate", 2, 12),
        (torch, "save", 1, 7),
        (pathlib.Path, "replace", 2, 7),  # one for the head of the log
        (pd.DataFrame, "to_csv", 9, 8),  # one for the head of the log
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_after_ctrl_c_the_losses_are_those_of_an_unbroken_run(tmp_path, unbroken, kind, owner, name, call, step):
    """Amid the loss, an update, a validation, a save: the step is done whole, then the training ends."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_in(monkeypatch, owner, name, call)
        with pytest.warns(UserWarning, match=rf"stopped after step {step}; kept in .*c\.pt"):
            frame, _ = long_run(tmp_path, kind, checkpoint=tmp_path / "c.pt")
    assert len(frame) == step and frame.attrs["stopped"] == signal.SIGINT
    check_the_same(long_run(tmp_path, kind, checkpoint=tmp_path / "c.pt"), unbroken[kind])


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C as at a terminal: a job in a shell's background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_where_ctrl_c_is_ignored_it_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def loss_fn(model, tokens):
        signal.raise_signal(signal.SIGINT)
        return helpers.next_token_loss(model, tokens)

    assert losses(lstm(), loss_fn=loss_fn, steps=3) == losses(lstm(), steps=3)


def test_a_second_ctrl_c_does_not_wait_and_leaves_the_checkpoint_as_it_was(tmp_path):
    calls = []

    def loss_fn(model, tokens):
        calls.append("began")
        if len(calls) == 9:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return helpers.next_token_loss(model, tokens)

    options = {"steps": 20, "checkpoint": tmp_path / "c.pt", "save_every": 3}
    with pytest.raises(KeyboardInterrupt):
        run(lstm(), loss_fn=loss_fn, **options)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert torch.load(tmp_path / "c.pt", weights_only=True)["counts"]["step"] == 6
    assert losses(lstm(), **options) == losses(lstm(), steps=20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_steps_keeps_what_was_learnt(tmp_path, number):
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append("terminated"))

    def stop(row):
        if row["step"] == 5:
            signal.raise_signal(number)

    options = {"steps": 20, "checkpoint": tmp_path / "c.pt"}
    try:
        with pytest.warns(UserWarning, match="stopped after step 5"):
            frame = run(lstm(), on_step=stop, **options)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == ["terminated"] * (number == signal.SIGTERM)  # it takes its course after the save
    assert len(frame) == 5 and losses(lstm(), **options) == losses(lstm(), steps=20)


def test_ctrl_c_leaves_compare_its_rows():
    def stop(row):
        if row["step"] == 3 and row["model"] == "a":
            signal.raise_signal(signal.SIGINT)

    models, config = {"a": lstm(), "b": kgram()}, TrainingConfig(steps=9)
    with pytest.warns(UserWarning, match="stopped after step 3 of each model"):
        frame = compare(models, random_batches(), config, on_step=stop, progress=False)
    assert frame.groupby("model")["step"].max().to_dict() == {"a": 3, "b": 3}


def test_a_training_outside_the_main_thread_is_the_same():
    found = []
    thread = threading.Thread(target=lambda: found.append(losses(lstm())))
    thread.start()
    thread.join()
    assert found == [losses(lstm())]


def test_dropout_acts_in_training_whatever_mode_the_model_came_in():
    found = []
    for mode in (True, False):
        model = lstm().train(mode)
        model.dropout.p = 0.5
        torch.manual_seed(0)
        found.append(losses(model))
    assert found[0] == found[1] != losses(lstm())


def test_a_checkpoint_holds_nothing_that_runs(tmp_path):
    run(lstm(), steps=3, checkpoint=tmp_path / "c.pt")
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    assert state["counts"]["step"] == 3 and len(state["rows"]) == 3


def test_a_checkpoint_of_another_model_says_so(tmp_path):
    run(lstm(), steps=1, checkpoint=tmp_path / "c.pt")
    for other in (lstm(hidden_size=9), kgram()):
        with pytest.raises(ValueError, match=r"c\.pt is of another model"):
            run(other, steps=2, checkpoint=tmp_path / "c.pt")


OTHER = {  # than batches of 4 of SEQUENCES at the usual rate: what is given, what the error says
    "rate": ({"learning_rate": 0.5}, "learning_rate 0.001, now 0.5"),
    "seed": ({"seed": 1}, "seed 0, now 1"),
    "optimizer": ({"optimizer": "muon"}, "optimizer adamw, now muon"),
    "batch size": ({"batches": make_batches(SEQUENCES, 5, blank=40)}, "batch_size 4, now 5"),
    "text": ({"batches": make_batches(SEQUENCES[1:], 4, blank=40)}, "text "),
}


@pytest.mark.parametrize("options, says", OTHER.values(), ids=OTHER)
def test_a_training_goes_on_only_with_what_it_began_with(tmp_path, options, says):
    batches = make_batches(SEQUENCES, 4, blank=40)
    train(lstm(), batches, TrainingConfig(steps=2), checkpoint=tmp_path / "c.pt", progress=False)
    kept = (tmp_path / "c.pt").read_bytes()
    options = {"batches": batches} | options
    with pytest.raises(ValueError, match=rf"c\.pt was made with {says}"):
        train(lstm(), options.pop("batches"), TrainingConfig(steps=9, **options), checkpoint=tmp_path / "c.pt")
    assert (tmp_path / "c.pt").read_bytes() == kept
    longer = train(lstm(), batches, TrainingConfig(steps=3), checkpoint=tmp_path / "c.pt", progress=False)
    assert len(longer) == 3  # a budget may grow


def write_tensor(path):
    torch.save(torch.zeros(3), path)


def write_half(path):
    train(lstm(), random_batches(), TrainingConfig(steps=1), checkpoint=path, progress=False)
    path.write_bytes(path.read_bytes()[:1000])


def write_without_rows(path):
    train(lstm(), random_batches(), TrainingConfig(steps=1), checkpoint=path, progress=False)
    torch.save({key: value for key, value in torch.load(path, weights_only=True).items() if key != "rows"}, path)


@pytest.mark.parametrize(
    "write", [pathlib.Path.touch, lambda path: path.write_text("no"), write_tensor, write_half, write_without_rows]
)
@pytest.mark.parametrize("bfloat16", ["off", "auto"])  # auto reads the file by itself
def test_a_file_that_is_no_checkpoint_says_so(tmp_path, write, bfloat16):
    write(tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"c\.pt is no checkpoint.*delete it to begin anew"):
        run(lstm(), steps=2, checkpoint=tmp_path / "c.pt", bfloat16=bfloat16)


def test_the_best_weights_come_back():
    """On random tokens a model learns its batches by heart and grows worse on others: then the best one is kept."""
    model, validation = lstm(), [random_tokens(6, 3, seed=99)]
    config = TrainingConfig(steps=12, learning_rate=0.1, validate_every=2)
    frame = train(model, random_batches(), config, validation=validation, progress=False)
    measured = frame["validation_loss"].dropna()
    assert measured.index.tolist() == [1, 3, 5, 7, 9, 11] and measured.iloc[-1] > measured.min()
    assert helpers.evaluate(model, validation)["loss"] == pytest.approx(measured.min())


# ---------------------------------------------------------------- the machine


def test_devices():
    assert machine.set_up(device="cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.warns(UserWarning, match="cuda:0 is not available"):
            assert machine.set_up(device="cuda:0") == torch.device("cpu")
    with pytest.raises(ValueError, match="gpu9"):
        machine.set_up(device="gpu9")
    with pytest.raises(ValueError, match="threads is 0"):
        machine.set_up(threads=0)


def test_a_missing_second_gpu_is_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert machine.set_up(device="cuda:0") == torch.device("cuda:0")
    with pytest.warns(UserWarning, match="cuda:1 is not available"):
        machine.set_up(device="cuda:1")


def test_set_up_seeds_and_sets_threads():
    threads = torch.get_num_threads()
    try:
        machine.set_up(seed=3, threads=1)
        first = torch.rand(2)
        machine.set_up(seed=3)
        assert torch.get_num_threads() == 1 and torch.equal(torch.rand(2), first)
    finally:
        torch.set_num_threads(threads)


def test_peak_memory_sees_a_tensor():
    peak = machine.peak_memory(lambda: torch.ones(30_000_000))  # 120 MB
    assert math.isnan(peak) or 100e6 < peak < 300e6
