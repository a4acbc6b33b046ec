"""Training, comparison, records: what a row says must be what happened."""

import itertools
import math
import subprocess
import sys

import pandas as pd
import pytest
import torch
from oracles import ROOT, kgram, lstm, random_tokens, transformer

import helpers
from helpers import EmbeddingMLP


def batches_of(count=4, length=6, batch=3):
    return [random_tokens(length, batch, seed=seed) for seed in range(count)]


def losses(model, **options):
    options = {"steps": 8, "progress": False, "learning_rate": 1e-2, **options}
    return helpers.train(model, batches_of(), **options)["loss"].tolist()


def test_the_same_seed_gives_the_same_losses_another_gives_others():  # TRAPS 23
    sequences = [torch.randint(40, (8,)) for _ in range(30)]

    def run(seed):
        batches = helpers.make_batches(sequences, 4, blank=40, seed=seed)
        return helpers.train(kgram(EmbeddingMLP, seed=seed), batches, steps=10, progress=False)["loss"].tolist()

    assert run(0) == run(0) and run(0) != run(1)


def test_each_option_of_training_changes_the_losses():  # TRAPS 26
    usual = losses(lstm())
    assert losses(lstm(), learning_rate=1e-3) != usual
    assert losses(lstm(), max_steps_per_epoch=2) != usual
    assert len(losses(lstm(), steps=5)) == 5
    assert losses(lstm(), loss_fn=lambda model, tokens: 2 * helpers.next_token_loss(model, tokens)) != usual


@pytest.mark.parametrize(
    "option",
    [
        {"schedule": "cosine"},
        {"warm_up_share": 0.5},
        {"weight_decay": 1.0},
        {"clip": 0.01},
        {"bfloat16": True},
        {"optimizer": "muon"},
        {"budget_tokens": 60, "schedule": "cosine"},
    ],
    ids=str,
)
def test_each_further_option_of_train_changes_the_losses(option):  # TRAPS 26
    assert losses(lstm(), **option) != losses(lstm())


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine_to_a_tenth():
    rates = [helpers.rate_factor(share, 0.2, "cosine") for share in (0, 0.1, 0.2, 0.6, 1)]
    assert rates == pytest.approx([0.01, 0.5, 1, 0.55, 0.1])
    assert helpers.rate_factor(0.9, 0.2, "constant") == 1


def test_budgets_end_a_training(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(helpers.time, "perf_counter", lambda: 0.5 * next(ticks))  # each step takes .5 s
    train = {"batches": batches_of(), "progress": False}  # 15 targets a batch
    assert len(helpers.train(lstm(), steps=7, **train)) == 7
    assert len(helpers.train(lstm(), budget_tokens=60, **train)) == 4
    assert len(helpers.train(lstm(), budget_tokens=61, **train)) == 5
    assert len(helpers.train(lstm(), budget_seconds=3, **train)) == 6
    assert len(helpers.train(lstm(), steps=5, budget_seconds=3, **train)) == 5
    for wrong in ({}, {"steps": 0}, {"steps": 3, "schedule": "linear"}):
        with pytest.raises(ValueError, match="expected steps, seconds or tokens above 0"):
            helpers.train(lstm(), **train, **wrong)


class Killed(Exception):
    pass


@pytest.mark.parametrize("stopped_at", [5, 11, 14])  # before, between and on the saved steps
@pytest.mark.parametrize("kind", ["plain", "weighted, muon", "similar lengths, log rows of 3", "contexts"])
def test_after_a_kill_the_losses_are_those_of_an_unbroken_run(tmp_path, stopped_at, kind):
    sequences = [random_tokens(8, 1, seed=seed)[:, 0] for seed in range(30)]  # 8 batches an epoch

    def run(checkpoint, on_step=None):
        more = {"weights": [1 + i for i in range(30)]} if "weighted" in kind else {}
        batches = helpers.make_batches(sequences, 4, blank=40, seed=3, similar_lengths="similar" in kind, **more)
        more = {"optimizer": "muon"} if "muon" in kind else {"log_every": 3} if "log" in kind else {}
        if kind == "contexts":
            batches = helpers.CorpusContexts(sequences, 3, 40).batches(20, blanks=0.5, seed=3)  # 11 an epoch
            more = {"loss_fn": helpers.context_loss}
        options = {"steps": 20, "schedule": "cosine", "warm_up_share": 0.2, "clip": 1.0, "learning_rate": 1e-2}
        valid = {"validation": batches_of(2), "validate_every": 6, "save_every": 7, "progress": False}
        model = kgram(EmbeddingMLP) if kind == "contexts" else lstm()
        model.dropout.p = 0.3 if "muon" in kind else 0.0
        torch.manual_seed(4)  # of dropout; a checkpoint keeps its state
        log = tmp_path / "log.csv"
        frame = helpers.train(
            model, batches, checkpoint=checkpoint, on_step=on_step, log=log, **options, **valid, **more
        )
        written = pd.read_csv(log)
        pd.testing.assert_frame_equal(written[["step", "loss"]], frame[["step", "loss"]])
        return frame[["step", "tokens", "loss", "validation_loss"]], model

    def kill(row):
        if row["step"] == stopped_at:
            raise Killed

    whole, first = run(None)
    with pytest.raises(Killed):
        run(tmp_path / "c.pt", kill)
    resumed, second = run(tmp_path / "c.pt")
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    again, _ = run(tmp_path / "c.pt")  # a finished training stays finished
    pd.testing.assert_frame_equal(again, whole, check_exact=True)
    assert not list(tmp_path.glob("*.partial"))


def test_ctrl_c_keeps_what_was_learnt(tmp_path):
    def interrupt(row):
        if row["step"] == 5:
            raise KeyboardInterrupt

    options = {"steps": 20, "progress": False, "checkpoint": tmp_path / "c.pt"}
    with pytest.warns(UserWarning, match="stopped after step 5"):
        frame = helpers.train(lstm(), batches_of(), on_step=interrupt, **options)
    assert len(frame) == 5 and len(helpers.train(lstm(), batches_of(), **options)) == 20


def test_a_checkpoint_holds_nothing_that_runs(tmp_path):  # TRAPS 24
    helpers.train(lstm(), batches_of(), steps=3, progress=False, checkpoint=tmp_path / "c.pt")
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    assert state["counts"]["step"] == 3 and len(state["rows"]) == 3


def test_the_best_weights_come_back():
    """On random tokens a model learns its batches by heart and grows worse on others: then the best one is kept."""
    model, validation = lstm(), [random_tokens(6, 3, seed=99)]
    frame = helpers.train(
        model, batches_of(), steps=12, learning_rate=0.1, validation=validation, validate_every=2, progress=False
    )
    measured = frame["validation_loss"].dropna()
    assert measured.index.tolist() == [1, 3, 5, 7, 9, 11] and measured.iloc[-1] > measured.min()
    assert helpers.evaluate(model, validation)["loss"] == pytest.approx(measured.min())


def test_each_size_of_a_model_changes_it():  # TRAPS 26
    sizes = {"vocab_size": 40, "k": 3, "embed_size": 6, "hidden_size": 8, "num_layers": 1}
    count = helpers.count_parameters(kgram(EmbeddingMLP, **sizes))["parameters"]
    for name, value in sizes.items():
        changed = kgram(EmbeddingMLP, **{**sizes, name: value + 1})
        assert helpers.count_parameters(changed)["parameters"] > count, name


def test_models_see_the_same_data_in_turn():  # TRAPS 27
    calls = []

    def record(name):
        def loss(model, tokens):
            calls.append((name, tokens))
            return helpers.next_token_loss(model, tokens)

        return loss

    batches = helpers.make_batches([torch.randint(40, (6,)) for _ in range(20)], 4, blank=40)
    models = {"a": lstm(seed=0), "b": lstm(seed=1)}
    helpers.compare(models, batches, steps=7, loss_fn={n: record(n) for n in models}, progress=False)
    seen = {name: [tokens for n, tokens in calls if n == name] for name in models}
    assert all(torch.equal(a, b) for a, b in zip(seen["a"], seen["b"], strict=True))
    assert [{a[0], b[0]} for a, b in zip(calls[::2], calls[1::2], strict=True)] == [{"a", "b"}] * 7
    assert {pair[0] for pair in calls[::2]} == {"a", "b"}  # neither always goes first


def test_a_model_trains_the_same_alone_and_in_company():
    alone = losses(lstm())
    company = helpers.compare(
        {"other": kgram(EmbeddingMLP), "m": lstm()}, batches_of(), steps=8, learning_rate=1e-2, progress=False
    )
    assert company.loc[company["model"] == "m", "loss"].tolist() == alone


@pytest.fixture
def fake_clock(monkeypatch):
    """A clock that moves by half a second at each reading: every step takes exactly 0.5 s."""
    ticks = itertools.count()
    monkeypatch.setattr(helpers.time, "perf_counter", lambda: 0.5 * next(ticks))


def test_throughput_times_seconds_is_the_number_of_real_tokens(fake_clock):  # TRAPS 21
    tokens = random_tokens(10, 2)
    tokens[4:, 1] = 40  # 9 + 3 real targets
    frame = helpers.train(lstm(), [tokens], steps=6, warm_up=2, progress=False)
    assert (frame["tokens"] == 12).all() and (frame["step_s"] == 0.5).all()
    assert frame["elapsed_s"].tolist() == [0.5 * step for step in range(1, 7)]
    row = helpers.summarise(frame).iloc[0]
    assert row["tokens_per_s"] * 0.5 * row["timed_steps"] == pytest.approx(12 * 4, rel=0.01)
    assert (row["steps"], row["tokens"], row["wall_s"], row["timed_steps"]) == (6, 72, 3.0, 4)


def test_warm_up_counts_in_the_losses_but_not_in_the_rate(fake_clock):
    frame = helpers.train(lstm(), batches_of(), steps=4, warm_up=1, progress=False)
    frame.loc[frame["warm_up"], "step_s"] = 100.0
    row = helpers.summarise(frame).iloc[0]
    assert row["tokens_per_s"] == pytest.approx(15 / 0.5) and row["mean_loss"] == pytest.approx(frame["loss"].mean())


def test_hooks_see_each_row():
    rows = []
    frame = helpers.train(lstm(), batches_of(), steps=3, on_step=rows.append, progress=False)
    assert pd.DataFrame(rows).equals(frame)


def test_training_that_cannot_go_on_says_so():
    with pytest.raises(ValueError, match="loss is nan at step 1.*learning rate"):
        losses(lstm(), loss_fn=lambda model, tokens: math.nan * helpers.next_token_loss(model, tokens))
    with pytest.raises(ValueError, match="no model"):
        helpers.compare({}, batches_of(), steps=3)
    for batches in ([], iter(batches_of(2))):
        with pytest.raises(ValueError, match="steps: batches must be"):
            helpers.train(lstm(), batches, steps=3, progress=False)


def test_a_loss_that_is_not_finite_leaves_the_weights_alone():
    model = lstm()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match="inf"):
        losses(model, loss_fn=lambda model, tokens: math.inf * helpers.next_token_loss(model, tokens))
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_intervals_are_students_t():
    frame = pd.DataFrame({"model": ["a"] * 3 + ["b"], "loss": [1.0, 2.0, 3.0, 5.0]})
    table = helpers.intervals(frame, "loss")
    assert table.loc["a", ["n", "mean"]].tolist() == [3, 2]
    assert table.loc["a", "high"] - 2 == pytest.approx(4.30265 / 3**0.5, abs=1e-4)  # t(2) at 97.5 %, s = 1
    assert table.loc["b", ["low", "high"]].tolist() == [-math.inf, math.inf]


@pytest.mark.parametrize(
    "low, high, higher, says",
    [
        ([1, 3], [2, 4], True, "b"),
        ([1, 3], [2, 4], False, "a"),
        ([1, 2], [3, 4], False, "no difference: a, b"),
        ([1, 1.5, 9], [2, 2.5, 10], False, "no difference: a, b"),
    ],
)
def test_best_is_named_only_where_intervals_separate(low, high, higher, says):  # TRAPS 27
    table = pd.DataFrame({"low": low, "high": high}, index=list("abc")[: len(low)], dtype=float)
    table["mean"] = (table["low"] + table["high"]) / 2
    assert helpers.verdict(table, higher_is_better=higher) == says


def test_runs_are_saved_outside_the_checkout_and_read_back(workbook_out):
    frame = helpers.train(lstm(), batches_of(), steps=3, progress=False, run="test_run")
    path = helpers.save_run(frame, "test_run")
    assert path == workbook_out / "runs" / "test_run.csv"
    back = helpers.load_runs("test_run")
    assert (back["source"] == "new").all() and (back["file"] == "test_run").all()
    assert back["loss"].tolist() == pytest.approx(frame["loss"].tolist(), rel=1e-5)
    with pytest.raises(FileNotFoundError, match="no_such_run"):
        helpers.load_runs("no_such_run")


def test_a_new_run_stands_in_for_the_recorded_one_unless_told(workbook_out):
    recorded = helpers.load_runs("kgram_speed")
    assert set(recorded["source"]) == {"recorded"}
    helpers.save_run(recorded.assign(tokens=1), "kgram_speed")
    assert set(helpers.load_runs("kgram_speed")["source"]) == {"new"}
    assert helpers.load_runs("kgram_speed", recorded_only=True).equals(recorded)


def test_recorded_runs_hold_the_columns_of_the_contract():
    steps = helpers.load_runs("kgram_designs")
    assert {"run", "model", "seed", "step", "tokens", "loss", "step_s", "elapsed_s"} <= set(steps.columns)
    assert (steps["source"] == "recorded").all() and steps.groupby("model")["seed"].nunique().min() >= 3
    runs = helpers.load_runs("kgram_designs_summary")
    configuration = {"k", "embed", "hidden", "layers", "batch", "block", "lr", "parameters", "body", "data", "vocab"}
    assert configuration <= set(helpers.load_runs("kgram_stories_summary").columns)
    assert configuration | {"device", "threads", "torch"} <= set(runs.columns) and runs.notna().all().all()


def test_devices():
    assert helpers.set_up(device="cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.warns(UserWarning, match="cuda:0 is not available"):
            assert helpers.set_up(device="cuda:0") == torch.device("cpu")
    with pytest.raises(ValueError, match="gpu9"):
        helpers.set_up(device="gpu9")
    with pytest.raises(ValueError, match="threads is 0"):
        helpers.set_up(threads=0)


def test_a_missing_second_gpu_is_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert helpers.set_up(device="cuda:0") == torch.device("cuda:0")
    with pytest.warns(UserWarning, match="cuda:1 is not available"):
        helpers.set_up(device="cuda:1")


def test_set_up_seeds_and_sets_threads():
    threads = torch.get_num_threads()
    try:
        helpers.set_up(seed=3, threads=1)
        first = torch.rand(2)
        helpers.set_up(seed=3)
        assert torch.get_num_threads() == 1 and torch.equal(torch.rand(2), first)
    finally:
        torch.set_num_threads(threads)


def test_peak_memory_sees_a_tensor():
    peak = helpers.peak_memory(lambda: torch.ones(30_000_000))
    assert math.isnan(peak) or 100e6 < peak < 300e6


def test_rows_are_written_as_they_come_and_add_up(tmp_path):
    seen = []

    def look(row):
        seen.append((row["step"], len(pd.read_csv(tmp_path / "log.csv"))))

    options = {"steps": 11, "progress": False, "learning_rate": 1e-2}
    every = helpers.train(lstm(), batches_of(), on_step=look, log=tmp_path / "log.csv", **options)
    assert seen == [(step, step) for step in range(1, 12)]
    seen.clear()
    fourth = helpers.train(lstm(), batches_of(), on_step=look, log=tmp_path / "log.csv", log_every=4, **options)
    assert [rows for _, rows in seen] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert len(pd.read_csv(tmp_path / "log.csv")) == 3  # the last row, not full, at the end
    assert fourth["step"].tolist() == [4, 8, 11] and fourth["tokens"].tolist() == [60, 60, 45]
    losses = every["loss"].tolist()
    expected = [sum(losses[:4]) / 4, sum(losses[4:8]) / 4, sum(losses[8:]) / 3]
    assert fourth["loss"].tolist() == pytest.approx(expected)
    assert fourth["elapsed_s"].iloc[-1] == pytest.approx(fourth["step_s"].sum())


def test_muon_takes_the_inner_matrices_and_adamw_the_rest(monkeypatch):
    model = transformer()
    adamw, muon = helpers.make_optimizers(model, "muon", 0.1, 0.2)
    assert [group["lr"] for group in (*adamw.param_groups, *muon.param_groups)] == [0.1, 0.1, 0.2]
    inner = {id(w) for group in muon.param_groups for w in group["params"]}
    assert inner == {id(w) for name, w in model.named_parameters() if w.ndim == 2 and "blocks" in name}
    rest = [w for group in adamw.param_groups for w in group["params"]]
    assert len(inner) + len(rest) == len(list(model.parameters())) and not inner & {id(w) for w in rest}
    with pytest.raises(ValueError, match="expected 'adamw' or 'muon'"):
        helpers.make_optimizers(model, "sgd", 0.1, 0)
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match="needs torch 2.9 or newer"):
        helpers.make_optimizers(model, "muon", 0.1, 0)


def test_runs_are_added_to(workbook_out):
    row = {"model": "a", "seed": 0, "loss": 1.0}
    helpers.add_to_run(pd.DataFrame([row, row]), "many")
    helpers.add_to_run(pd.DataFrame([row | {"seed": 1}]), "many")
    helpers.add_to_run(pd.DataFrame([row | {"loss": 2.0}]), "many")  # replaces both rows of its model and seed
    assert sorted(helpers.load_runs("many")["loss"]) == [1.0, 2.0]


FAULTS = """
import resource, torch
from data.records import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20_000_000)  # 80 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = min(faults() for _ in range(4))
print(keep_memory(), plain, min(faults() for _ in range(4)))
"""


def test_kept_memory_costs_no_new_pages():
    command = [sys.executable, "-c", FAULTS]  # a process of its own: others have memory left from before
    took_hold, plain, kept = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    if took_hold == "False":
        pytest.skip("no glibc here")
    assert int(kept) < int(plain) / 4, (kept, plain)
