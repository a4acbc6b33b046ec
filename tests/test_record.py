"""`python -m workbook`: who may write the record, what makes each of its files, and what goes to a reader's folder."""

import hashlib
import json
import re
import shlex
import subprocess
import sys

import matplotlib
import pandas as pd
import pytest
from oracles import ROOT

from workbook import __main__ as command
from workbook import gallery, record
from workbook.records import RECORD, load_runs, save_run


def digests(*folders):
    """The content of every file of the record, to see whether one changed."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_each_file_of_the_record_is_made_by_exactly_one_name():
    made = [f"{each.prefix}{name}" for each in record.recordings().values() for name in each.files.split()]
    there = {path.stem for path in RECORD.glob("*.csv")}
    usual = [name for name in made if name in there or not name.startswith("gpu_")]  # a GPU may not be at hand
    assert sorted([*usual, "notebooks"]) == sorted(there)


def test_the_table_in_contributing_is_that_of_the_command():
    assert record.table() in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), "python -m workbook record --list"


def test_every_command_line_is_one_that_the_parser_takes():
    code = "import importlib.util, json, sys; spec = importlib.util.spec_from_file_location('p', 'pico-llm.py'); "
    code += "p = importlib.util.module_from_spec(spec); spec.loader.exec_module(p); "
    code += "[p.read_options(p.build_parser().parse_args(line)) for line in json.load(sys.stdin)]"
    lines = [line for each in record.recordings().values() for line in each.commands]
    split = [
        shlex.split(line.removeprefix("torchrun ").format(stories="tinystories", many="many", out="out"))
        for line in lines
    ]
    subprocess.run([sys.executable, "-c", code], input=json.dumps(split), text=True, cwd=ROOT, check=True)
    assert len(lines) == 1 + 24 + 15 + 13 + 9 + 57 + 60 + 66 + 4


def test_nothing_runs_for_an_unknown_name_or_without_the_text(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "make", lambda *_: pytest.fail("it ran"))
    with pytest.raises(ValueError, match="nothing to record is called 09; there are .*stories_5min"):
        record.record(["09", "01"])
    for stories in (None, str(tmp_path / "absent")):
        with pytest.raises(ValueError, match="stories_k train on TinyStories; give --stories FOLDER"):
            record.record(["01", "stories_k"], stories)


def test_notebooks_that_show_a_recording_run_after_it(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(record, "make", lambda each, *_: made.append(each))
    monkeypatch.setattr(record, "draw_record", lambda: "none")
    known = record.recordings()
    for names, expected in {
        ("stories_k",): ["stories_k", "04", "06"],
        ("cost", "01"): ["cost", "01", "05", "06"],
    }.items():
        record.record(names, str(tmp_path))
        assert made == [known[name] for name in expected]
        made.clear()
    record.record([], str(tmp_path))
    assert made == [each for name, each in known.items() if name != "gpu"]  # only where it is named


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A record of its own, to be written to."""
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(record, "RECORD", tmp_path / "data")
    return tmp_path / "data"


def test_a_recording_copies_its_own_files_and_no_others(elsewhere, monkeypatch, workbook_out, tmp_path):
    line = "--stories small --max_stories 60 --block_size 20 --models kgram --steps 2 --prompt Once --record tale"
    each = record.Recording("tale tale_summary", 1, commands=(line,))
    before = digests(RECORD, ROOT / "figures")
    record.make(each, str(tmp_path), tmp_path / "tale.done")
    assert sorted(path.name for path in elsewhere.iterdir()) == ["tale.csv", "tale_summary.csv"]
    assert (workbook_out / "record" / "runs" / "tale_samples.csv").exists()  # made, and not asked for
    assert digests(RECORD, ROOT / "figures") == before
    with pytest.raises(FileNotFoundError):  # a file that the run did not make is never the one of the time before
        record.make(each._replace(files="tale", commands=()), None, tmp_path / "none.done")


def test_a_failed_recording_changes_nothing_and_goes_on_where_it_was(elsewhere, workbook_out, tmp_path):
    line = "--stories small --max_stories 60 --block_size 20 --models kgram --steps 2 --prompt Once --record tale"
    lines, log = (f"{line} --seed 0", f"{line} --seed 1"), tmp_path / "tale.done"
    broken = record.Recording("tale", 1, commands=(lines[0], "--kgram_k 0", lines[1]))
    with pytest.raises(subprocess.CalledProcessError):
        record.make(broken, None, log)
    assert not list(elsewhere.iterdir()) and log.read_text().splitlines() == [lines[0]]
    first = pd.read_csv(workbook_out / "record" / "runs" / "tale.csv")
    record.make(broken._replace(commands=lines), None, log, resume=True)
    whole = pd.read_csv(elsewhere / "tale.csv")
    assert whole["seed"].tolist() == [0, 0, 1, 1] and log.read_text().splitlines() == [*lines]
    assert whole["step_s"].tolist()[:2] == first["step_s"].tolist()  # not run again


def test_figures_are_the_readers_where_the_runs_are(workbook_out, capsys):
    before = digests(RECORD, ROOT / "figures")
    speed = load_runs("kgram_speed")
    save_run(speed.assign(step_s=speed["step_s"].where(speed["way"] != "loop", speed["step_s"] / 10)), "kgram_speed")
    command.main(["figures", "kgram_speed", "stories_k"])
    printed = capsys.readouterr().out
    assert "kgram_speed: your own run" in printed and "stories_k: the record" in printed
    own, recorded = (path / "kgram_speed.svg" for path in (workbook_out / "figures", ROOT / "figures"))
    assert own.read_text() != recorded.read_text()
    gallery.draw_figures(["stories_k"], load_runs, folder=workbook_out)
    assert (workbook_out / "figures" / "stories_k.svg").read_text() == (workbook_out / "stories_k.svg").read_text()
    assert digests(RECORD, ROOT / "figures") == before


def test_an_unknown_figure_is_one_clear_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["figures", "kgram_sped"])
    assert stopped.value.code == 2 and "no figure is called kgram_sped; there are " in capsys.readouterr().err


def test_the_record_draws_itself_again_byte_for_byte(tmp_path):
    names = ["sanity_check_loss", "kgram_speed", "cost_roof", "interview_decision"]
    drawn_by = re.search(r"Matplotlib v([\d.]+)", (ROOT / "figures" / "kgram_speed.svg").read_text(encoding="utf-8"))[1]
    if drawn_by != matplotlib.__version__:
        pytest.skip(f"figures/ was drawn by Matplotlib {drawn_by}, here is {matplotlib.__version__}")
    gallery.draw_figures(names, load_runs, folder=tmp_path)
    for name in names:
        assert (tmp_path / f"{name}.svg").read_bytes() == (ROOT / "figures" / f"{name}.svg").read_bytes()
