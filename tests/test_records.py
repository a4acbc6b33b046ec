"""Records: the reader's runs and the record apart, rows, intervals, verdicts, claims, and the files of data/runs."""

import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from oracles import ROOT, lstm, random_batches

from workbook import records
from workbook.config import TrainingConfig
from workbook.files import write_whole
from workbook.records import (
    add_to_run,
    check_name,
    claim,
    intervals,
    load_runs,
    output_folder,
    save_run,
    short,
    summarise,
    verdict,
)
from workbook.training import train

RECORDED = sorted((ROOT / "data" / "runs").glob("*.csv"))


def bytes_of_the_record():
    return {path.name: path.read_bytes() for path in (ROOT / "data").rglob("*.csv")}


# ---------------------------------------------------------------- a reader's run and the record


def test_a_run_goes_to_the_readers_folder_and_comes_back_from_there(workbook_out):
    frame = train(lstm(), random_batches(), TrainingConfig(steps=3), progress=False, run="test_run")
    path = save_run(frame, "test_run")
    assert path == workbook_out / "runs" / "test_run.csv" and not list(path.parent.glob("*.partial"))
    back = load_runs("test_run", own=True)
    assert list(back) == list(frame) and back["timed"].dtype == bool
    assert back["loss"].tolist() == pytest.approx(frame["loss"].tolist(), rel=1e-5)
    with pytest.raises(FileNotFoundError, match="no run 'test_run' in data/runs"):
        load_runs("test_run")


def test_the_record_is_read_even_where_the_reader_has_a_run_of_that_name():
    before, recorded = bytes_of_the_record(), load_runs("kgram_speed")
    save_run(recorded.assign(tokens=1), "kgram_speed")
    add_to_run(recorded.assign(tokens=2), "kgram_speed", ("model", "way", "round"))
    pd.testing.assert_frame_equal(load_runs("kgram_speed"), recorded)
    assert (load_runs("kgram_speed", own=True)["tokens"] == 2).sum() == len(recorded)
    assert bytes_of_the_record() == before


def test_without_a_place_that_is_told_runs_go_to_out(tmp_path, monkeypatch):
    monkeypatch.delenv("WORKBOOK_OUT")
    monkeypatch.setattr(records, "ROOT", tmp_path)
    assert save_run(pd.DataFrame({"a": [1]}), "mine") == tmp_path / "out" / "runs" / "mine.csv"
    assert output_folder("figures") == tmp_path / "out" / "figures" and (tmp_path / "out" / "figures").is_dir()
    assert short(tmp_path / "out" / "runs") == "out/runs" and short(ROOT / "data") == str(ROOT / "data")
    assert "/out/" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()


@pytest.mark.parametrize("name", ["../../data/runs/kgram_speed", "/run", "a/b", "..", ".lock", "", "a\0b", "é" * 101])
def test_no_name_leads_out_of_the_folder(name):
    before = bytes_of_the_record()
    for write in (save_run, add_to_run, lambda frame, name: load_runs(name), lambda _, name: check_name(name)):
        with pytest.raises(ValueError, match="run name .* is none; expected 200 bytes or fewer, no /, no dot in front"):
            write(pd.DataFrame({"model": ["a"], "seed": [0]}), name)
    assert bytes_of_the_record() == before


def test_names_that_cannot_be_added_to_are_refused_beforehand(tmp_path, monkeypatch):
    check_name("mine")
    save_run(pd.DataFrame({"text": ["a"], "seed": [1]}), "mine")
    with pytest.raises(ValueError, match=r"mine\.csv has no column model: no run to add to; choose another"):
        check_name("mine")
    check_name("kgram_speed")  # here the folder is told
    monkeypatch.delenv("WORKBOOK_OUT")
    monkeypatch.setattr(records, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="run name 'kgram_speed' is one of the record"):
        check_name("kgram_speed")


def test_a_name_is_free_for_all_tables_of_a_run(workbook_out):
    save_run(pd.DataFrame({"text": ["a"], "seed": [1]}), "mine_samples")
    with pytest.raises(ValueError, match=r"mine_samples\.csv has no column model"):
        check_name("mine")
    with pytest.raises(ValueError, match="ends as one of a run's own tables does"):
        check_name("mine_summary")
    with pytest.raises(ValueError, match="expected 200 bytes or fewer"):
        check_name("x" * 195)  # with _samples it is longer


def test_options_and_hashes_of_digits_are_text(workbook_out):
    row = {
        "model": "007",
        "seed": 0,
        "models": "LSTM",
        "stories": "1984",
        "input_files": "007",
        "data_hash": "12345e678901",
    }
    save_run(pd.DataFrame([row]), "digits")
    assert load_runs("digits", own=True).iloc[0].to_dict() == row
    save_run(pd.DataFrame({"stories": [7], "head": [0.5]}), "counts")  # no options
    assert load_runs("counts", own=True)["stories"].tolist() == [7]


def test_a_file_comes_into_being_whole_and_as_readable_as_others(tmp_path):
    path = tmp_path / "file"

    def half(partial):
        partial.write_text("half")
        raise OSError("no space")

    usual = os.umask(0o027)
    try:
        write_whole(path, lambda partial: (partial.write_text("whole"), partial.chmod(0o600)))
        assert path.stat().st_mode & 0o777 == 0o640 and os.umask(0o027) == 0o027
    finally:
        os.umask(usual)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, half)
    assert path.read_text() == "whole" and [*tmp_path.iterdir()] == [path]


WRITER = """
import sys, pandas as pd
from workbook.records import add_to_run
for seed in range(20):
    add_to_run(pd.DataFrame({"model": [sys.argv[1]], "seed": [seed]}), "shared")
"""


def test_processes_that_record_at_once_lose_no_row(workbook_out):
    command = [sys.executable, "-c", WRITER]
    writers = [subprocess.Popen([*command, name], cwd=ROOT, stderr=subprocess.PIPE) for name in "abc"]
    assert [writer.communicate(timeout=120)[1] for writer in writers] == [b""] * 3
    rows = load_runs("shared", own=True)
    assert sorted(zip(rows["model"], rows["seed"], strict=True)) == [(name, n) for name in "abc" for n in range(20)]


@pytest.mark.parametrize("own", [True, False])
def test_a_run_that_is_missing_names_those_that_are_there(own):
    save_run(pd.DataFrame({"a": [1]}), "mine")
    there, advice = ("mine", "run the notebook") if own else ("cost_growth, .*top_p_written", "workbook record")
    for name in ("absent", "kgram_*", "KGRAM_SPEED", "min"):  # one exact name, no pattern
        with pytest.raises(FileNotFoundError, match=f"there are {there}; .*{advice}"):
            load_runs(name, own=own)


def test_a_run_of_the_same_model_and_seed_takes_the_place_of_the_old_one():
    row = {"model": "a", "seed": 0, "loss": 1.0}
    add_to_run(pd.DataFrame([row, row]), "many")
    add_to_run(pd.DataFrame([row | {"seed": 1}]), "many")
    add_to_run(pd.DataFrame([row | {"loss": 2.0}]), "many")
    assert load_runs("many", own=True)[["seed", "loss"]].values.tolist() == [[1, 1.0], [0, 2.0]]


@pytest.mark.parametrize(
    "label", ["007", "1e3", "NA", "None", "nan", "True", " padded ", 'a "b", c', "a\nb", "k=1", "2", ""]
)
def test_a_label_survives_and_the_same_run_twice_is_one_row(label):
    rows = pd.DataFrame({"run": [label], "model": [label], "seed": [0], "loss": [math.nan]})
    for _ in range(2):
        add_to_run(rows, "labels")
    back = load_runs("labels", own=True)
    assert back["model"].tolist() == back["run"].tolist() == [label] and back["loss"].isna().all()


# ---------------------------------------------------------------- rows and verdicts


def step_rows(**columns):
    rows = {"run": "r", "model": "a", "seed": 0, "steps": 1, "tokens": 10, "loss": 1.0, "step_s": 1.0, "timed": True}
    return pd.DataFrame({**rows, **columns})


def test_a_run_row_weighs_losses_by_tokens_and_counts_steps():
    frame = step_rows(
        steps=[2, 3, 4, 1],
        tokens=[10, 30, 40, 20],
        loss=[5.0, 3.0, 2.0, 1.0],
        step_s=[10.0, 1.0, 2.0, 4.0],
        timed=[False, True, True, True],
    )
    (row,) = summarise(frame).to_dict("records")
    assert row["mean_loss"] == pytest.approx((50 + 90 + 80 + 20) / 100) and row["final_loss"] == 1.0
    assert (row["steps"], row["tokens"], row["wall_s"], row["timed_steps"]) == (10, 100, 17.0, 8)
    rates = [30 / 1, 40 / 2, 20 / 4]  # the first row is not timed
    quartiles = [np.quantile(rates, share) for share in (0.25, 0.5, 0.75)]
    assert [row["tokens_per_s_q1"], row["tokens_per_s"], row["tokens_per_s_q3"]] == pytest.approx(quartiles)


def test_each_run_model_and_seed_has_a_row_in_their_order():
    frame = pd.concat([step_rows(model=["b", "a", "b"], seed=[1, 0, 0]), step_rows(run=["q"])])
    rows = summarise(frame)
    assert rows[["run", "model", "seed"]].values.tolist() == [
        ["r", "b", 1],
        ["r", "a", 0],
        ["r", "b", 0],
        ["q", "a", 0],
    ]
    assert rows["steps"].dtype == rows["tokens"].dtype == int and rows["mean_loss"].dtype == float


def test_intervals_are_students_t_and_one_row_has_none():
    frame = pd.DataFrame({"model": ["b"] * 3 + ["a"] + ["c"] * 2, "loss": [1.0, 2.0, 3.0, 5.0, 4.0, math.nan]})
    table = intervals(frame, "loss")
    assert list(table.index) == ["b", "a", "c"] and table["n"].tolist() == [3, 1, 1]
    assert table["mean"].tolist() == [2, 5, 4]
    half = 4.30265 / 3**0.5  # t(2) at 97.5 %, s = 1
    assert table.loc["b", ["low", "high"]].tolist() == pytest.approx([2 - half, 2 + half], abs=1e-4)
    assert intervals(frame, "loss", level=0.9).loc["b", "high"] == pytest.approx(2 + 2.91999 / 3**0.5, abs=1e-4)
    assert table.loc[["a", "c"], ["low", "high"]].isna().all(axis=None)
    assert "inf" not in table.to_string()


@pytest.mark.parametrize(
    "low, high, higher, says",
    [
        ([1, 3], [2, 4], True, "b"),
        ([1, 3], [2, 4], False, "a"),
        ([1, 2], [3, 4], False, "no difference: a, b"),
        ([1, 2], [2, 4], False, "no difference: a, b"),  # they touch
        ([1, 1.5, 9], [2, 2.5, 10], False, "no difference: a, b"),
        ([1, 1.5, 9], [2, 2.5, 10], True, "c"),
        ([1, math.nan], [2, math.nan], True, "one seed: no interval"),
        ([math.nan], [math.nan], True, "one seed: no interval"),
    ],
)
def test_best_is_named_only_where_intervals_separate(low, high, higher, says):
    table = pd.DataFrame({"low": low, "high": high}, index=list("abc")[: len(low)], dtype=float)
    table["mean"] = ((table["low"] + table["high"]) / 2).fillna(9.0)
    assert verdict(table, higher_is_better=higher) == says


def test_of_one_seed_there_is_no_verdict():
    frame = pd.DataFrame({"model": ["a", "b"], "loss": [1.0, 100.0]})
    assert verdict(intervals(frame, "loss"), higher_is_better=False) == "one seed: no interval"


@pytest.mark.parametrize("holds", [True, np.True_, 1])
def test_a_claim_that_holds_is_said_so(holds, capsys):
    assert claim("one-hot is behind", holds) is None
    assert capsys.readouterr().out == "holds: one-hot is behind\n"


@pytest.mark.parametrize("fails", [False, np.False_, 0, math.nan > 1, None])
def test_a_claim_that_does_not_hold_is_said_so_and_the_run_goes_on(fails, capsys):
    assert claim("one-hot is behind", fails) is None
    assert capsys.readouterr().out == "does not hold here: one-hot is behind\n"


# ---------------------------------------------------------------- the files of data/runs

OLD_NAMES = {
    "k",
    "embed",
    "hidden",
    "layers",
    "batch",
    "block",
    "lr",
    "vocab",
    "data",
    "warm_up",
    "rung",
    "design",
    "kind",
}
OLD_NAMES |= {"step_peak_mb", "peak_memory", "file", "source"}
STEP_COLUMNS = ["run", "model", "seed", "step", "steps", "tokens", "loss", "step_s", "elapsed_s", "timed"]
STEP_FILES = [path.stem for path in RECORDED if "elapsed_s" in pd.read_csv(path, nrows=0)]
MODELS = {"k-gram", "LSTM", "Transformer", "one-hot", "embedding", "convolution"}


@pytest.mark.parametrize("name", [path.stem for path in RECORDED])
def test_the_record_uses_the_one_vocabulary(name):
    frame = load_runs(name)
    assert (
        len(frame) and not set(frame) & OLD_NAMES and not [column for column in frame if column.startswith("Unnamed")]
    )
    assert not name.endswith("_complete")
    old_models = {"kgram", "lstm", "transformer", "one_hot", "conv", "KGram", "K-gram"}
    assert not set(frame.get("model", [])) & old_models and set(frame.get("models", [])) <= MODELS
    assert not set(frame.get("way", [])) & {"vectorised", "distinct", "memory kept", "corpus"}


def test_there_are_step_rows():
    assert {"kgram_designs", "kgram_stories", "sanity_check", "stories_5min", "stories_k", "stories_live"} <= set(
        STEP_FILES
    )


@pytest.mark.parametrize("name", STEP_FILES)
def test_recorded_step_rows_hold_what_the_contract_names(name):
    frame = load_runs(name)
    assert list(frame)[:10] == STEP_COLUMNS and (frame["run"] == name).all()
    assert frame[STEP_COLUMNS].notna().all(axis=None) and frame["timed"].dtype == bool and (frame["tokens"] > 0).all()
    for _, rows in frame.groupby([column for column in ("model", "seed", "kgram_k") if column in frame]):
        assert rows["step"].tolist() == rows["steps"].cumsum().tolist() and rows["timed"].any()
        assert not rows["timed"].iloc[0]  # the machine warms up


def test_the_whole_curve_holds_step_rows_without_a_clock():
    frame = load_runs("kgram_curve")
    assert list(frame)[:8] == [*STEP_COLUMNS[:7], "learning_rate"] and frame.notna().all(axis=None)
    for _, rows in frame.groupby(["model", "seed", "learning_rate"]):
        assert rows["step"].tolist() == rows["steps"].cumsum().tolist() and rows["step"].max() == 200


SUMMARIES = [path.stem for path in RECORDED if {"mean_loss", "timed_steps"} <= set(pd.read_csv(path, nrows=0))]


@pytest.mark.parametrize("name", [name for name in STEP_FILES if f"{name}_summary" in SUMMARIES])
def test_recorded_run_rows_are_those_of_their_steps(name):
    runs = load_runs(f"{name}_summary")
    keys = ["run", "model", "seed"]
    both = runs.merge(summarise(load_runs(name)), on=keys, suffixes=("", "_again"))
    assert len(both) == len(runs)
    for column in ("steps", "tokens", "timed_steps", "mean_loss", "final_loss", "wall_s", "tokens_per_s"):
        assert both[column].tolist() == pytest.approx(both[f"{column}_again"].tolist(), rel=1e-4), column


@pytest.mark.parametrize("name", ["kgram_designs_summary", "kgram_stories_summary", "stories_5min_summary"])
def test_a_recorded_run_row_says_how_to_make_it_again(name):
    configuration = {"kgram_k", "embed_size", "hidden_size", "num_inner_mlp_layers", "batch_size", "block_size"}
    configuration |= {"learning_rate", "vocab_size", "data_hash", "parameters", "body", "device", "threads", "torch"}
    configuration |= {"onednn_linear", "keep_memory", "large_pages", "peak_mb", "python", "processor"}
    runs = load_runs(name)
    needed = configuration - ({"peak_mb"} if name == "kgram_stories_summary" else set())
    assert needed <= set(runs) and runs.groupby("model")["seed"].nunique().min() >= 3
