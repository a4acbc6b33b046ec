"""Each function of workbook/findings.py on small frames whose answers are known."""

import math

import numpy as np
import pandas as pd
import pytest

from workbook import findings, record
from workbook.records import intervals, load_runs

DESIGNS = findings.DESIGNS


def frame(columns, *rows):
    return pd.DataFrame(rows, columns=columns.split())


def table_of(**samples):
    """A table of `intervals`: a name's values."""
    rows = [(name, value) for name, values in samples.items() for value in values]
    return intervals(pd.DataFrame(rows, columns=["model", "loss"]), "loss")


def speed_of(**rates):
    """Rows of kgram_speed, 10 targets each: two rounds, the second half as fast, in which the loop is slower still."""
    rows = []
    for (model, loop), number in [(item, number) for item in rates.items() for number in (1, 2)]:
        for way, factor in {"loop": 1, "one batch": 4, "distinct contexts": 20}.items():
            slow = number * (2 if number == 2 and way == "loop" else 1)
            rows.append((model, way, number, 10, 10 * slow / (loop * factor)))
    return frame("model way round tokens step_s", *rows)


def ladder_of(text="3seqs.txt", model="embedding", **seconds):
    """Rows of cost_ladder, 100 targets a step: a way's seconds in each round."""
    rows = []
    for way, values in seconds.items():
        rows += [(text, model, way.replace("_", " "), number, 100, value) for number, value in enumerate(values, 1)]
    return frame("text model way round tokens step_s", *rows)


# ---------------------------------------------------------------- speed


def test_the_notes_have_their_three_designs():
    notes = findings.notes()
    assert list(notes.index) == DESIGNS and notes["tokens_per_s"].tolist() == [17.6, 42.3, 32.3]


def test_rates_are_targets_per_second():
    assert findings.with_rate(frame("tokens step_s", (10, 2.0), (3, 0.5)))["rate"].tolist() == [5, 6]


def test_ratios_are_taken_within_a_round_in_the_order_of_the_frame():
    rows = [("b", 1, 1, 2.0), ("b", 1, 2, 8.0), ("b", 2, 1, 1.0), ("b", 2, 2, 2.0)]
    rows += [("a", 1, 1, 9.0), ("a", 1, 2, 3.0), ("a", 2, 1, 3.0), ("a", 2, 2, 3.0)]
    ratios = findings.ratios(frame("model threads round step_s", *rows), "threads", "step_s", 1, 2)
    assert list(ratios.index) == ["b", "a"]
    assert ratios.loc["b"].to_dict() == {"median": 3, "min": 2, "max": 4}  # 2 / 1 and 8 / 2
    assert ratios.loc["a"].to_dict() == {"median": 2, "min": 1, "max": 3}


def test_speed_factors():
    factors = findings.speed_factors(speed_of(b=5, a=2))
    assert list(factors.index) == ["b", "a"]
    for name, expected in {"one batch / loop": 6, "distinct contexts / loop": 30}.items():  # medians of 4, 8; 20, 40
        assert factors[name].tolist() == pytest.approx([expected, expected])
    assert factors["distinct contexts / one batch"].tolist() == pytest.approx([5, 5])


def test_the_plain_ladder_of_one_hot_is_its_lookup():
    ladder = pd.concat(
        [
            ladder_of(model="one-hot", one_batch=[8.0], lookup=[4.0], loop=[9.0]),
            ladder_of(model="one-hot", literal=[7.0]).replace("literal", "one batch, memory reuse"),
            ladder_of(model="embedding", one_batch=[2.0]),
        ]
    )
    plain = findings.plain_ladder(ladder)
    assert list(zip(plain["model"], plain["way"], plain["step_s"], strict=True)) == [
        ("one-hot", "one batch", 4),
        ("one-hot", "loop", 9),
        ("embedding", "one batch", 2),
    ]


def test_ladder_factors_have_a_column_a_round():
    ladder = pd.concat(
        [
            ladder_of(loop=[100.0, 60.0], memory_reuse=[1.0, 2.0]),
            ladder_of(text="stories", model="one-hot", one_batch=[9.0], lookup=[4.0], loop=[8.0], memory_reuse=[2.0]),
        ]
    )
    by_loop, by_batch = (findings.ladder_factors(ladder, base) for base in ("loop", "one batch"))
    assert by_loop.loc[("3seqs.txt", "embedding")].tolist() == [100, 30]
    assert by_loop.loc[("stories", "one-hot"), 1] == 4 and by_batch.loc[("stories", "one-hot"), 1] == 2


def test_shares_of_contexts_and_parts():
    texts = frame("text batch_targets batch_contexts", ("a", 100, 10), ("b", 90, 60))
    assert findings.targets_per_context(texts).to_dict() == {"a": 10, "b": 1.5}
    shares = frame("text kgram_k batch_size share", ("a", 3, 32, 0.1), ("a", 3, 32, 0.1), ("a", 4, 32, 0.2))
    assert findings.new_context_share(shares).to_dict() == {"a": 0.1}
    columns = "text model way context net head loss backward optimiser"
    rows = [("a", "embedding", "memory reuse", 1, 1, 2, 1, 4, 1), ("a", "embedding", "loop", 1, 1, 1, 1, 1, 1)]
    assert findings.head_and_backward_share(frame(columns, *rows)).to_dict() == {"a": 0.6}


def test_the_slope_of_a_power_law_is_its_power():
    rows = []
    for value in (10, 100, 1000):
        rows += [("V", "x", number, value, 2 * value**0.5) for number in (1, 2)] + [("V", "y", 1, value, 3 * value)]
    slopes = findings.growth_slopes(frame("axis model round value step_s", *rows))
    assert slopes.name == "slope" and list(slopes.index.names) == ["axis", "model", "round"]
    assert slopes["V", "x", 2] == pytest.approx(0.5) and slopes["V", "y", 1] == pytest.approx(1)


def test_what_a_larger_text_changes():
    runs = [(10, "LSTM", 2.5, 3.0), (1000, "LSTM", 2.25, 4.0), (10, "k-gram", 2.75, 3.0), (1000, "k-gram", 2.75, 4.0)]
    runs = [(*run, math.nan) for run in runs] + [(1000, "LSTM", 9.0, 4.0, 2)]  # in two processes
    table = findings.losses_by_size(frame("max_stories models validation_loss kneser_ney_loss processes", *runs))
    assert table.loc[1000].to_dict() == {"LSTM": 2.25, "k-gram": 2.75, "Kneser-Ney": 4.0}
    sentence = findings.larger_text_sentence(table)
    assert sentence.startswith("100 times as many") and "LSTM -0.25, k-gram +0.00, Kneser-Ney +1.00" in sentence


def test_slopes_of_the_stages_of_a_text():
    rows = []
    for tokens in (100, 1000):
        rows += [(tokens, "encode", "", 2.0 * tokens, 3.0 * tokens**0.5), (tokens, "step", "LSTM", 1.0, math.nan)]
    slopes = findings.size_slopes(frame("tokens stage model seconds peak_mb", *rows))
    assert list(slopes.index) == ["encode", "step LSTM"]
    assert slopes.loc["encode"].tolist() == pytest.approx([1, 0.5])
    assert slopes.loc["step LSTM", "seconds"] == pytest.approx(0) and math.isnan(slopes.loc["step LSTM", "peak_mb"])


def test_a_token_against_the_head_and_a_whole_text():
    rows = [("x", 16, 2.0), ("x", 16, 4.0), ("x", 128, 6.0), ("the head", 0, 2.0)]
    assert findings.token_times_head(frame("model length ms", *rows)).to_dict() == {"x": 3}
    rows = [("x", "the prompt", 500.0), ("x", "one step", 250.0), ("x", "one step", 250.0), ("x", "all", 4000.0)]
    seconds = findings.generation_seconds(frame("model way ms", *rows))
    assert seconds.loc["x"].to_dict() == {"one step": 1, "all": 4}


# ---------------------------------------------------------------- the machine's limit

TEXT = {"batch_targets": 10, "batch_contexts": 4}
SMALL = {"k": 2, "vocab_size": 100, "embed_size": 3, "hidden_size": 5, "layers": 1}
NET, HEAD, TABLE = 2 * 3 * 5 + 5 * 5, 5 * 100, 3 * 100  # weights


def test_costs_are_counted_from_the_shapes():
    exact = findings.count_costs("memory reuse", TEXT, **SMALL)
    assert exact["flop"].to_dict() == {
        "net": 2 * 4 * NET,
        "head": 2 * 4 * HEAD,
        "loss": 0,
        "backward": 4 * 4 * (NET + HEAD),
        "optimiser": 0,
    }
    assert exact["bytes"].to_dict() == {
        "net": 4 * NET,
        "head": 4 * HEAD,
        "loss": 0,
        "backward": 4 * (HEAD + NET + TABLE + NET + HEAD),
        "optimiser": 4 * 7 * (TABLE + NET + HEAD),
    }


def test_the_loop_moves_all_weights_for_each_target_and_one_batch_keeps_its_logits():
    loop, batch, distinct = (
        findings.count_costs(way, TEXT, **SMALL) for way in ("loop", "one batch", "distinct contexts")
    )
    assert loop["flop"].equals(batch["flop"]) and batch.loc["head", "flop"] == 2 * 10 * HEAD
    assert loop.loc["head", "bytes"] == 4 * 10 * HEAD and loop.loc["backward", "bytes"] == 4 * 10 * 3 * (HEAD + NET)
    assert batch.loc["loss", "bytes"] == 4 * 2 * 10 * 100 and distinct.loc["loss", "bytes"] == 4 * 2 * 4 * 100
    assert loop.loc["loss", "bytes"] == 0


def test_a_limit_is_what_takes_longer():
    costs = pd.DataFrame({"flop": {"net": 6.0, "loss": 0.0}, "bytes": {"net": 8.0, "loss": 4.0}})
    assert findings.limit_seconds(costs, {"float32": 2.0, "memory": 4.0}).to_dict() == {"net": 3, "loss": 1}


def test_the_roof_in_its_units():
    ladder = pd.concat(
        [ladder_of(memory_reuse=[2.0, 4.0, 3.0], loop=[50.0], other=[1.0]), ladder_of(model="x", loop=[1.0])]
    )
    texts, rates = pd.DataFrame([{"text": "3seqs.txt"} | TEXT]), pd.DataFrame([{"float32": 1e6, "memory": 1e6}])
    roof = findings.roof(ladder, texts, rates, vocab_size=100).set_index("way")
    assert sorted(roof.index) == ["loop", "memory reuse"]  # exact ways of the embedding that were measured
    costs = findings.count_costs("memory reuse", TEXT, k=2, vocab_size=100)
    limit, (flop, moved) = findings.limit_seconds(costs, rates.iloc[0]).sum(), costs.sum()
    row = roof.loc["memory reuse"]
    assert row["ms"] == 3000 and row["limit_ms"] == pytest.approx(1e3 * limit)
    assert row["flop_per_byte"] == pytest.approx(flop / moved)
    assert row["gflop_per_s"] == pytest.approx(flop / 3 / 1e9)
    assert row["share_of_limit"] == pytest.approx(limit / 3)


# ---------------------------------------------------------------- loss and verdicts


def test_losses_against_floor_window_and_position():
    assert findings.above_floor(frame("loss floor", (2.0, 1.5), (1.0, 1.0))).tolist() == [0.5, 0]
    window = frame("model validation_loss", ("window to t", 3.0), ("window to t-1", 4.25))
    assert findings.newest_token_cost(window) == 1.25
    rows = [
        ("LSTM", 0, 1, 2.0),
        ("k-gram", 0, 1, 3.0),
        ("k-gram", 1, 1, 5.0),
        ("LSTM", 0, 9, 1.0),
        ("k-gram", 0, 9, 0.5),
    ]
    gain = findings.same_position_gain(frame("model seed from loss", *rows))
    assert list(gain.columns) == ["LSTM"] and gain["LSTM"].to_dict() == {1: 2, 9: -0.5}


def test_tokens_outside_a_nucleus():
    told = frame("model outside", ("k-gram", True), ("k-gram", True), ("LSTM", False), ("LSTM", True))
    assert findings.outside_nucleus(told).to_dict() == {"k-gram": 2, "LSTM": 1}


def test_level_wants_two_intervals_that_overlap():
    assert findings.level(table_of(a=[1, 2, 3], b=[2, 3, 4]))
    assert not findings.level(table_of(a=[1.0, 1.1, 1.2], b=[9.0, 9.1, 9.2]))
    assert not findings.level(table_of(a=[1], b=[2])) and not findings.level(table_of(a=[1, 2], b=[2]))
    assert not findings.level(table_of(a=[1, 2, 3]))
    # the wide one overlaps both, but those two lie apart
    assert not findings.level(table_of(wide=[0, 5, 10], a=[1.0, 1.1, 1.2], b=[9.0, 9.1, 9.2]))


def test_behind_follows_the_better_side():
    table = table_of(a=[1.0, 1.1, 1.2], b=[9.0, 9.1, 9.2], wide=[0, 5, 10])
    assert findings.worse(table) == ["b"] and findings.worse(table, higher=True) == ["a"]
    assert findings.worse(table_of(a=[1], b=[9])) == []


def line(higher=False, **samples):
    """The rows of evidence that these values of the designs give, by model."""
    rows = [(name, value) for name, values in samples.items() for value in values]
    criterion = "targets/s, somewhere" if higher else "loss"
    return findings.evidence_line(criterion, frame("model value", *rows), "value", ["a", "b", "c"]).set_index("model")


def test_evidence_names_the_one_that_is_ahead_on_the_better_side():
    samples = {"a": [1.0, 1.1, 1.2], "b": [9.0, 9.1, 9.2], "c": [5.0, 5.1, 5.2], "LSTM": [0.0, 0.1, 0.2]}
    ahead, _, behind, _ = findings.STANDINGS
    assert line(**samples)["standing"].to_dict() == {"a": ahead, "b": behind, "c": behind}
    assert line(**samples)["rule"].unique().tolist() == ["a"]
    assert line(higher=True, **samples)["standing"].to_dict() == {"a": behind, "b": ahead, "c": behind}


def test_evidence_where_some_are_level_and_one_was_not_run():
    _, level, behind, not_run = findings.STANDINGS
    rows = line(a=[1, 2, 3], b=[1, 2, 4], c=[90, 91, 92])
    assert rows["standing"].to_dict() == {"a": level, "b": level, "c": behind}
    rows = line(a=[1, 2, 3], b=[1, 2, 4])
    assert rows["standing"].to_dict() == {"a": level, "b": level, "c": not_run} and math.isnan(rows.loc["c", "mean"])


@pytest.mark.parametrize(
    "samples", [{"a": [1], "b": [2], "c": [3]}, {"a": [1, 2], "b": [2], "c": [3, 4]}, {"a": [1, 2]}]
)
def test_evidence_of_one_measurement_judges_nobody(samples):
    rows = line(**samples)
    assert rows["rule"].unique().tolist() == ["one measurement"]
    assert rows["standing"].unique().tolist() == ["measured once, or not run"]
    assert not np.isinf(rows[["low", "high"]].to_numpy()).any()


def test_the_evidence_of_the_record_follows_its_names():
    """Two designs exchanged in every run: their rows are exchanged, and nothing else changes."""
    record = findings.evidence(load_runs)
    swap = {"embedding": "convolution", "convolution": "embedding"}
    swap |= {f"{one} rescaled": f"{other} rescaled" for one, other in swap.items()}
    swapped = findings.evidence(lambda name: load_runs(name).replace({"model": swap, "kgram_net": swap}))
    columns = ["criterion", "model", "standing", "n", "mean", "low", "high"]
    exchanged = record.assign(model=record["model"].replace(swap))[columns].sort_values(["criterion", "model"])
    swapped = swapped[columns].sort_values(["criterion", "model"])
    pd.testing.assert_frame_equal(exchanged.reset_index(drop=True), swapped.reset_index(drop=True))


def test_the_evidence_takes_a_further_design():
    def load(name):
        rows = load_runs(name)
        if name == "kgram_stories_summary":
            mine = rows[rows["model"] == "embedding"].assign(model="mine")
            return pd.concat([rows, mine.assign(validation_loss=mine["validation_loss"] - 0.5)])
        return pd.concat([rows, rows.assign(model="mine")]) if name == "kgram_designs_summary" else rows

    evidence = findings.evidence(load).set_index(["criterion", "model"])["standing"]
    assert evidence["loss on small stories, 120 steps", "mine"] == findings.STANDINGS[0]
    assert evidence["loss on small stories, 120 steps", "embedding"] == findings.STANDINGS[2]
    assert evidence["loss at best k on TinyStories, 90 s", "mine"] == findings.STANDINGS[3]


def test_the_distance_from_the_kgram_to_the_lstm_adds_up():
    losses = {("k-gram", 3): [2.9, 3.1], ("pooled k-gram", 32): [2.6, 2.4], ("LSTM", 3): [2.3, 2.3]}
    rows = [(*key, seed, loss) for key, values in losses.items() for seed, loss in enumerate(values)]
    runs = frame("model kgram_k seed validation_loss", *rows)
    by_k = frame("model kgram_k seed validation_loss", ("k=8", 8, 0, 2.65), ("k=3", 3, 0, 2.8))
    parts = findings.window_parts(by_k, runs)
    assert parts == pytest.approx({"net": 0.2, "window": 0.3, "rest": 0.2, "whole": 0.7})
    windows = findings.by_window(by_k, runs)
    assert windows["kgram_k"].tolist() == [3, 8, 32] and windows["validation_loss"].tolist() == [2.8, 2.65, 2.6]


def test_models_lie_between_others_where_their_intervals_are_apart():
    table = table_of(a=[3.0, 3.01], b=[2.0, 2.01], c=[1.0, 1.01], wide=[1.9, 2.4])
    assert findings.between(table, "a", "b", "c") and not findings.between(table, "a", "c", "b")
    assert not findings.between(table, "a", "b", "wide")


# ---------------------------------------------------------------- the designs on real stories


def real_of(**losses):
    """Rows of the designs, 90 s each: a design's {k: losses of the seeds}."""
    rows = []
    for design, windows in losses.items():
        for k, values in windows.items():
            for seed, loss in enumerate(values):
                rows.append((f"{design} k={k}", design, k, seed, 500, 90, loss, 1000 * k, "tinystories"))
    return frame("model kgram_net kgram_k seed steps budget_seconds validation_loss parameters stories", *rows)


def test_each_design_is_taken_at_the_window_where_its_mean_is_lowest():
    rows = real_of(b={1: [4.0, 4.2], 3: [3.0, 3.2], 8: [3.4, 3.6]}, a={1: [3.9, 3.9], 3: [2.0, 5.0], 8: [3.3, 3.3]})
    runs = findings.real_runs({"kgram_seconds_summary": rows, "kgram_steps_summary": rows[:0]}.get)
    assert runs["budget"].unique().tolist() == ["90 s"] and runs["model"].unique().tolist() == ["b", "a"]
    assert findings.best_k(runs).to_dict() == {"b": 3, "a": 8}  # one seed of a is lower at k = 3, its mean is not
    assert findings.at_best_k(runs)["validation_loss"].tolist() == [3.0, 3.2, 3.3, 3.3]
    assert findings.size_sentence(runs) == "Million weights where each design is best: b 0.0 (k=3), a 0.0 (k=8)"


def test_equal_seconds_come_first_and_decide():
    rows = real_of(a={3: [3.0, 3.1]})
    steps = pd.concat([rows.assign(steps=n, budget_seconds=math.nan, validation_loss=2.0) for n in (500, 1000)])
    runs = findings.real_runs({"kgram_seconds_summary": rows, "kgram_steps_summary": steps}.get)
    assert runs["budget"].unique().tolist() == ["90 s", "500 steps", "1,000 steps"]
    assert findings.first_budget(runs)["validation_loss"].tolist() == [3.0, 3.1]


def test_the_limits_name_the_setting_of_each_text():
    shown = findings.limits()
    for text in (
        "3seqs.txt: 3 seeds, 20 steps, k = 2",
        "TinyStories: 3 seeds, 90 s of training, k = 1, 2, 3, 5, 8, 16 and 32",
    ):
        assert f"- {text}, " in shown


def test_a_search_takes_the_best_start_and_then_the_best_of_each_other_option():
    trials = {  # table_std, learning rate, dropout, blanks: the loss to choose by
        (math.nan, 0.1, 0.1, 0.3): 3.0,
        (math.nan, 0.2, 0.1, 0.3): 2.6,
        (0.5, 0.1, 0.1, 0.3): 2.0,
        (0.5, 0.2, 0.1, 0.3): 2.5,
        (0.5, 0.1, 0.0, 0.3): 2.2,
        (0.5, 0.1, 0.3, 0.3): 1.9,
        (0.5, 0.1, 0.1, 0.0): 2.1,
        (0.5, 0.2, 0.0, 0.0): 1.0,  # no trial that changes one option alone
    }
    names = [str(trial) for trial in trials]
    runs = frame("table_std learning_rate dropout blanks", *trials).assign(kgram_net="a", kgram_k=3, model=names)
    steps = [(name, at, loss + at) for name, loss in zip(names, trials.values(), strict=True) for at in (0, 1)]
    found = findings.search_trials(frame("model step validation_loss", *steps), runs)
    best = {"table_std": 0.5, "learning_rate": 0.1, "dropout": 0.3, "blanks": 0.3}
    assert findings.searched(found).loc[("a", 3)].to_dict() == best
    assert findings.rate_trials(found)["loss"].tolist() == [3.0, 2.0, 2.6, 2.5]  # by rate
    assert findings.table_effect(found).loc[3, "a"] == pytest.approx(0.6)  # 2.6 - 2.0


def test_the_designs_were_trained_with_what_the_search_found():
    found = findings.searched(findings.search_trials(load_runs("kgram_search"), load_runs("kgram_search_summary")))
    for key, row in found.iterrows():
        assert record.TUNED[key] == row.to_dict() | {"table_std": row["table_std"] or None}
    runs = findings.real_runs()
    for _, run in runs.assign(table_std=runs["table_std"].fillna(0)).iterrows():
        assert run[found.columns].tolist() == found.loc[(run["kgram_net"], 3 if run["kgram_k"] <= 5 else 16)].tolist()


def test_the_decision_is_that_of_real_text_after_the_first_budget():
    def decide(**losses):
        """Losses of each design in three lines, of which the second decides."""
        criteria = (
            "loss on small",
            "loss at best k on TinyStories, 90 s",
            "loss at best k on TinyStories, 500 steps",
        )
        lines = []
        for number, criterion in enumerate(criteria):
            values = frame("model value", *((name, one) for name, three in losses.items() for one in three[number]))
            lines.append(findings.evidence_line(criterion, values, "value", [*losses]))
        return findings.decision_sentence(pd.concat(lines))

    low, high = [1.0, 1.01, 1.02], [9.0, 9.01, 9.02]
    what = "loss at best k on TinyStories, 90 s"
    assert decide(a=[high, low, high], b=[low, high, low]) == f"a has the lowest {what} (a 1.01, b 9.01)"
    assert decide(a=[high, low, high], b=[low, low, low]) == f"no difference in {what} is shown between a and b"
    assert decide(a=[low, [1.0], low], b=[low, [2.0], low]).endswith("(one seed: no interval)")
    assert decide(a=[low, low, low], b=[low, high, low], c=[low, [], low]).startswith("a has the lowest")


def test_two_models_are_compared_after_the_tokens_that_both_were_trained_with():
    columns = "models budget_tokens validation_loss"
    long = frame(columns, *(("LSTM", 9, loss) for loss in (2.0, 2.01)), ("Transformer", 7, 1.0), ("k-gram", None, 0.0))
    apart = [("Transformer", 9, loss) for loss in (1.0, 1.01)] + [("LSTM", 3, 4.0), ("LSTM", 3, 4.01)]

    def compared(*rows):
        record = {"stories_5min_summary": long, "stories_tokens_summary": frame(columns, *apart, *rows)}
        return findings.equal_tokens(record.get)

    runs = compared(("Transformer", 3, 3.0), ("Transformer", 3, 3.01))
    assert runs.groupby(["budget_tokens", "model"]).size().to_dict() == {
        (tokens, name): 2 for tokens in (3, 9) for name in ("LSTM", "Transformer")
    }
    assert findings.budget_sentence(runs) == "Lower loss: Transformer after 3e-06 and 9e-06 M tokens"
    crossed = findings.budget_sentence(compared(("Transformer", 3, 5.0), ("Transformer", 3, 5.01)))
    assert crossed == "Lower loss: LSTM after 3e-06 M tokens, Transformer after 9e-06 M tokens"
    level = findings.lowest_by_budget(compared(("Transformer", 3, 4.0), ("Transformer", 3, 4.01)))
    assert level.to_dict() == {3: "no difference: Transformer, LSTM", 9: "Transformer"}


# ---------------------------------------------------------------- the blocks of the README


def test_require_names_the_sentence_and_the_remedy():
    findings.require("all is well", True)
    with pytest.raises(ValueError, match=r"data/runs does not show that all is well \(a 1, b 2.5\): look at the runs"):
        findings.require("all is well", False, pd.Series({"a": 1, "b": 2.5}))


def worse(rows, model):
    return rows.assign(validation_loss=rows["validation_loss"] + 9.0 * (rows["model"] == model))


def worse_convolution(rows):
    return rows.assign(validation_loss=rows["validation_loss"] + 9.0 * (rows["kgram_net"] == "convolution"))


def even_further(rows):
    return rows.assign(
        validation_loss=rows["validation_loss"].where(rows["steps"] == 500, 3.0 - (rows["kgram_net"] == "embedding"))
    )


def changed(name, change):
    """The record with one run changed."""
    return lambda run: change(load_runs(run)) if run == name else load_runs(run)


@pytest.mark.parametrize(
    ("block", "run", "change", "sentence"),
    [
        ("finding", "kgram_speed", lambda f: f.assign(step_s=f["step_s"] / 3), "the notes' rates"),
        ("finding", "cost_texts", lambda f: f.assign(batch_contexts=f["batch_targets"]), "the text's repetition"),
        ("designs", "kgram_stories_summary", lambda f: worse(f, "embedding"), "the lowest loss on stories"),
        ("real_designs", "kgram_seconds_summary", worse_convolution, "the rule leaves the convolution alone"),
        ("real_designs", "kgram_steps_summary", worse_convolution, "after equal steps too it leaves the convolution"),
        ("real_designs", "kgram_steps_summary", even_further, "with more steps the convolution is ahead"),
        ("designs", "kgram_first_scale", lambda f: f.assign(loss=f["loss"] + 9), "have a lower loss than all three"),
        ("sampling", "top_p_3seqs", lambda f: f.assign(low=0.6), "the coin is fair"),
        ("sampling", "top_p_quality", lambda f: f.assign(perplexity=f.index), "less surprised by the LSTM"),
        ("stories", "stories_reuse_summary", lambda f: f.assign(validation_loss=[1, 2, 3] * 3), "embedding helps most"),
        ("stories", "stories_5min_summary", lambda f: worse(f, "Transformer"), "LSTM and Transformer are level"),
        ("stories", "stories_tokens_summary", lambda f: f.assign(validation_loss=9.0), "with few tokens the LSTM"),
        ("cost", "cost_processes", lambda f: f.assign(loss=f["processes"]), "end at the same loss"),
    ],
)
def test_a_block_stops_where_the_record_says_something_else(block, run, change, sentence):
    getattr(findings, block)(load_runs)
    with pytest.raises(ValueError, match=sentence):
        getattr(findings, block)(changed(run, change))


# ---------------------------------------------------------------- the whole curve


def curve_of(losses, floor=1.0):
    """Rows of kgram_curve, a step of 10 targets each: {(model, rate): a list of losses for each seed}."""
    rows = [
        (model, rate, seed, step, 10, loss, floor)
        for (model, rate), seeds in losses.items()
        for seed, values in enumerate(seeds)
        for step, loss in enumerate(values, start=1)
    ]
    return frame("model learning_rate seed step tokens loss floor", *rows)


CURVE = curve_of(
    {
        ("a", 0.1): [[1, 1], [9, 1.05], [9, 9]],  # better with the first seed alone
        ("a", 0.2): [[4, 3], [1, 1], [1, 1]],
        ("b", 0.1): [[4, 4], [2, 2], [2, 2]],
        ("b", 0.2): [[4, 1], [3, 1.09], [1.02, 1]],
        ("b, other", 0.1): [[1, 1], [1, 1], [1, 1]],
    }
)


def test_the_best_rate_has_the_lowest_mean_over_the_seeds_and_a_variant_at_one_rate_has_none():
    assert findings.best_rates(CURVE).to_dict() == {"a": 0.2, "b": 0.2}
    compared = findings.at_best_rates(CURVE)
    assert set(compared[["model", "learning_rate", "seed"]].itertuples(index=False, name=None)) == {
        (model, 0.2, seed) for model in "ab" for seed in (0, 1, 2)
    }
    assert findings.mean_losses(compared)["mean_loss"].round(3).tolist() == [3.5, 1, 1, 2.5, 2.045, 1.01]


def test_each_model_at_its_best_has_its_interval_its_rate_and_its_steps():
    table = findings.at_their_best(CURVE)
    assert table["mean"].round(4).to_dict() == {"a": 1.8333, "b": 1.8517} and table["n"].tolist() == [3, 3]
    assert table["rate"].tolist() == [0.2, 0.2] and table["steps"].tolist() == [1, 2]


def test_mean_losses_are_weighted_by_tokens():
    uneven = CURVE[6:8].assign(tokens=[30, 10])
    assert findings.mean_losses(uneven)["mean_loss"].tolist() == [3.75]


def test_steps_to_the_floor_are_the_first_within_a_tenth_and_infinite_where_most_seeds_do_not_arrive():
    steps = findings.steps_to_floor(CURVE)
    assert steps.loc[0.1].to_dict() == {"a": 2, "b": math.inf, "b, other": 1}
    assert steps.loc[0.2, ["a", "b"]].tolist() == [1, 2]


def test_the_effect_of_the_rate_names_those_that_do_not_arrive():
    effect = findings.rate_effect(CURVE)
    assert effect == "Steps to the floor, by rate: 2 to over 2 at 0.1, 1 to 2 at 0.2"


def test_the_last_layer_is_that_of_each_model_and_step():
    rows = [("a", 1, 0.9, 0), ("a", 2, 0.5, 0), ("b", 1, 0.4, 0), ("a", 1, 0.8, 7), ("a", 2, 0.3, 7), ("b", 1, 0.6, 7)]
    layers = frame("model layer share step", *rows)
    assert findings.last_layer(layers).to_dict() == {0: {"a": 0.5, "b": 0.4}, 7: {"a": 0.3, "b": 0.6}}
    assert findings.layer_sentence(layers).endswith("on the context by 50% (a) down to 40% (b)")
    curve = curve_of({("a", 0.1): [[9, 1]], ("b", 0.1): [[9, 9]], ("c", 0.1): [[1, 1]]})
    assert findings.wait_correlation(layers, curve) == pytest.approx(-1)  # b, with less, does not arrive


# ---------------------------------------------------------------- the museum, and the pictures of models


def museum_rows(*ends):
    """Rows of a museum's picture: two points for each fault, right and with it."""
    return frame(
        "fault who x y",
        *[
            (fault, who, x, y)
            for fault, right, wrong in ends
            for who, last in (("right", right), ("with the fault", wrong))
            for x, y in ((1, 5.0), (2, last))
        ],
    )


def test_what_a_fault_tells_is_its_last_number():
    rows = museum_rows(("mask", 0.4, 0.03), ("token 0", 0.5, 0.49))
    assert findings.museum_numbers(rows).loc["mask"].to_dict() == {"right": 0.4, "with the fault": 0.03}
    assert findings.museum_sentence(rows) == "1 of 2 faults move their number by more than a tenth: mask"
    fallen = findings.fallen_sentence(museum_rows(("mask", 0.4, 0.03), ("tied head", 0.5, 3.0)))
    assert fallen.startswith("1 of 2 wrong trainings fall to less than half") and fallen.endswith("0.03 to 3.00 nats")


def test_the_boldest_word_is_named_with_its_setting():
    rows = frame("setting probability", ("p = 0.5", 0.5), ("p = 0.5", 0.25), ("p = 1.0", 0.004))
    assert findings.boldness(rows) == "The boldest word: probability 0.25 at p = 0.5, 0.004 at p = 1.0"


def test_attention_and_tables_in_a_sentence():
    rows = frame("head position seen weight", (1, 2, 0, 0.75), (1, 2, 2, 0.25), (2, 2, 1, 1.0), (2, 0, 0, 1.0))
    assert findings.attention_sentence(rows) == "Attention on the newest two tokens: head 1 25%, head 2 100%"
    tables = frame("table name near", ("embedding", True, 0), ("embedding", False, 0), ("head", True, 1))
    assert findings.table_map_sentence(tables) == "Names whose nearest token is a name, of 1: embedding 0, head 1"
    assert "names" not in findings.table_map_sentence(tables.assign(name=False)).lower()


def test_every_sentence_of_the_results_holds_and_shows_its_numbers():
    table = findings.sentences()
    assert table["holds"].all() and table.index.is_unique and (table["shown"] != "").all()
    assert table.loc[("Three designs", "embedding and convolution are level"), "shown"].startswith(
        "embedding 9.46 (8.83"
    )
