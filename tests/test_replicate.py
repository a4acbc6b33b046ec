"""`python -m workbook replicate`: which experiments run, what fits into a budget, what is said of each sentence."""

import functools
import shlex

import pandas as pd
import pytest

from workbook import findings, record, replicate
from workbook.__main__ import main
from workbook.records import load_runs, output_folder


@pytest.fixture
def ran(monkeypatch):
    """What would have been run."""
    each = []
    monkeypatch.setattr(record, "run", lambda recording, *_: each.append(recording))
    return each


def test_the_record_against_itself_has_nothing_new():
    table = replicate.judge(load_runs)
    assert table["holds_record"].all() and not table["tried"].any() and len(table) > 30


def test_a_sentence_that_new_runs_do_not_bear_out_is_named_with_both_numbers():
    def load(name):
        frame = load_runs(name)
        if name == "kgram_stories_summary":
            frame["validation_loss"] += 9.0 * (frame["model"] == "embedding")
        return frame

    table = replicate.judge(load)
    assert list(table.loc[table["tried"], "sentence"]) == ["embedding has the lowest loss on stories"]
    said = replicate.report(table)
    assert said.startswith(
        "DOES NOT HOLD: Three designs: embedding has the lowest loss on stories\n    record: one-hot 3.49"
    )
    assert (
        "embedding 0.80" in said
        and "embedding 9.80" in said
        and said.endswith("0 of 1 sentences that were tried again hold")
    )


def test_new_seeds_are_those_of_no_record():
    for each in replicate.experiments().values():
        for line in replicate.recording(each, 3).commands:
            words = shlex.split(line)
            name = words[words.index("--record") + 1]
            seed = int(words[words.index("--seed") + 1])
            assert seed >= replicate.FIRST > load_runs(f"{name}_summary")["seed"].max()
            assert "--output_dir" not in words and "{" not in line.replace("{stories}", "")


def test_new_rows_stand_beside_what_was_not_run_again(workbook_out):
    folder = output_folder("new")
    old = load_runs("kgram_seconds_summary")
    new = old[old["model"] == "one-hot k=5"].assign(seed=100, validation_loss=1.0)
    new.to_csv(folder / "kgram_seconds_summary.csv", index=False)
    load = functools.partial(replicate.load_new, folder=folder)
    rows = load("kgram_seconds_summary")
    assert len(rows) == len(old) and set(rows.loc[rows["model"] == "one-hot k=5", "validation_loss"]) == {1.0}
    assert load("kgram_steps_summary").equals(load_runs("kgram_steps_summary"))
    verdicts = findings.sentences(load)["holds"]
    assert not verdicts["Three designs on real stories", "the rule leaves the convolution alone"]


def test_what_does_not_fit_into_the_minutes_is_left_out(ran, tmp_path, capsys):
    replicate.replicate([], seeds=2, minutes=20, stories=str(tmp_path))
    assert [len(each.commands) for each in ran] == [0, 0, 6]  # designs, sampling, kgram_seconds
    said = capsys.readouterr().out
    assert "left out: stories_tokens, about 30 minutes" in said and "left out: stories_5min" in said


def test_without_a_text_only_what_needs_none_runs(ran):
    replicate.replicate([], seeds=2)
    assert [each.parameters for each in ran] == [{"FIRST_SEED": 100, "SEEDS": 2}, {"SEED": 100}]


@pytest.mark.parametrize(
    ("names", "seeds", "says"),
    [
        (["everything"], 3, "no experiment is called everything; there are designs"),
        (["designs"], 1, "seeds is 1; expected 2 or more"),
        (["stories_5min"], 3, "stories_5min train on TinyStories; give --stories"),
    ],
)
def test_bad_input_runs_nothing(ran, names, seeds, says, capsys):
    with pytest.raises(SystemExit):
        main(["replicate", *names, "--seeds", str(seeds)])
    assert says in capsys.readouterr().err and not ran


def test_the_table_is_written_and_kept_where_it_is_asked(ran, monkeypatch, tmp_path, workbook_out):
    monkeypatch.setattr(replicate, "RECORD", tmp_path)
    main(["replicate", "designs", "--keep"])
    kept = pd.read_csv(tmp_path / "replication.csv")
    assert set(kept) >= {"section", "sentence", "holds_record", "shown_record", "holds_new", "shown_new", "tried"}
    assert (workbook_out / "runs" / "replication.csv").read_bytes() == (tmp_path / "replication.csv").read_bytes()
