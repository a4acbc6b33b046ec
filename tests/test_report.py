"""What the README says of results is what data/runs holds: written by a command, parsed here, counted anew here."""

import csv
import re
from statistics import mean, median

import pandas as pd
import pytest
from oracles import ROOT

from data import report

README = (ROOT / "README.md").read_text(encoding="utf-8")
DESIGNS = ["one-hot", "embedding", "convolution"]

# Numbers that are no results: the README says them outside of the blocks that come from data/runs.
SETTINGS = {"3.10", "3.13"} | {f"{number:02d}" for number in range(1, 7)}


def read(name):
    """A run's rows, without pandas or helpers.py."""
    with open(ROOT / "data" / "runs" / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def block(name):
    return re.search(rf"<!-- begin {name}[^>]*-->\n(.*?)\n<!-- end {name} -->", README, re.S)[1]


def parse_table(name):
    """The rows of a block's table, cell by cell."""
    lines = [line for line in block(name).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def numbers(text):
    """The numbers in a text; 38.8 M is 38.8."""
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*\.?\d*", text)]


def test_the_blocks_are_as_the_command_writes_them():
    assert report.fill(README) == README, "run `python -m data.report`"


def test_no_number_stands_outside_the_blocks():
    text = re.sub(r"<!-- begin (\w+).*?<!-- end \1 -->", "", README, flags=re.S)
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.S)  # code, and where links lead
    assert set(re.findall(r"(?<![\w.])\d[\d.,]*\d|(?<![\w.])\d(?!\w)", text)) - SETTINGS <= {"1"}  # token t+1


def test_every_run_that_is_named_is_there():
    links = re.findall(r"\]\((data/runs/[^)]+)\)", README)
    assert len(links) > 15 and all((ROOT / link).exists() for link in links)


def test_the_table_of_designs():
    notes = {row["model"]: row for row in read("notes")}
    losses, speed, stories = read("kgram_designs_summary"), read("kgram_speed"), read("kgram_stories_summary")
    for line, design in zip(parse_table("designs"), DESIGNS, strict=True):
        own = [float(row["mean_loss"]) for row in losses if row["model"] == design]
        shown = numbers(line[2])
        assert line[0] == design and numbers(line[1]) == [float(notes[design]["loss"])]
        assert shown[0] == pytest.approx(mean(own), abs=0.005) and shown[1] < min(own) <= max(own) < shown[2]
        assert numbers(line[3]) == [float(notes[design]["tokens_per_s"])]
        for cell, way in zip(line[4:7], ("loop", "vectorised", "distinct contexts"), strict=True):
            rates = [int(r["tokens"]) / float(r["step_s"]) for r in speed if (r["model"], r["way"]) == (design, way)]
            assert numbers(cell)[0] == pytest.approx(median(rates), abs=0.5)
        assert numbers(line[7])[0] == pytest.approx(int(own_row(losses, design)["parameters"]) / 1e6, abs=0.05)
        held_out = [float(row["validation_loss"]) for row in stories if row["model"] == design]
        assert numbers(line[8])[0] == pytest.approx(mean(held_out), abs=0.005)


def own_row(rows, model):
    return next(row for row in rows if row["model"] == model)


def test_the_table_of_stories():
    rows = read("stories_5min_summary")
    counts, *nets = parse_table("stories")
    assert numbers(counts[2])[0] == pytest.approx(float(own_row(rows, "kgram")["kneser_ney_loss"]), abs=0.0005)
    for line, model in zip(nets, ("kgram", "transformer", "lstm"), strict=True):
        own = [row for row in rows if row["model"] == model]
        assert len(own) >= 3
        for cell, column, digits, unit in (
            (1, "parameters", 2, 1e6),
            (2, "validation_loss", 3, 1),
            (3, "perplexity", 1, 1),
            (4, "bits_per_byte", 3, 1),
            (5, "mixed_loss", 3, 1),
            (6, "tokens", 1, 1e6),
        ):
            shown, true = numbers(line[cell])[0], mean(float(row[column]) for row in own) / unit
            assert shown == pytest.approx(true, abs=0.51 * 10**-digits), (model, column)


def test_the_table_of_costs():
    rows, parts = read("cost_ladder_complete"), read("cost_parts_complete")
    for line, (text, design) in zip(
        parse_table("cost"), [(t, d) for t in ("3seqs.txt", "stories") for d in DESIGNS], strict=True
    ):
        plain = "lookup" if design == "one-hot" else "one batch"
        own = [row for row in rows if (row["text"], row["design"]) == (text, design)]
        rates = {
            rung: [int(r["tokens"]) / float(r["step_s"]) for r in own if r["rung"] == rung]
            for rung in ("loop", plain, "memory kept")
        }
        kept = rates["memory kept"]
        assert len(kept) >= 5 and line[1] == design
        assert numbers(line[2])[0] == pytest.approx(median(rates["loop"]), abs=0.51)
        assert numbers(line[3])[0] == pytest.approx(median(kept), abs=0.51)
        for cell, base, digits in ((4, "loop", 0), (5, plain, 1)):
            factors = [a / b for a, b in zip(kept, rates[base], strict=True)]
            expected = [median(factors), min(factors), max(factors)]
            assert numbers(line[cell]) == pytest.approx(expected, abs=0.51 * 10**-digits)
        peaks = {row["rung"]: float(row["peak_mb"]) for row in parts if (row["text"], row["design"]) == (text, design)}
        assert numbers(line[6] + " " + line[7]) == pytest.approx([peaks[plain], peaks["memory kept"]], abs=0.51)


def test_the_finding():
    speed = read("kgram_speed")
    rate = {(r["model"], r["way"], r["round"]): int(r["tokens"]) / float(r["step_s"]) for r in speed}
    rounds = sorted({row["round"] for row in speed})
    factors = [median(rate[d, "distinct contexts", r] / rate[d, "loop", r] for r in rounds) for d in DESIGNS]
    assert f"{min(factors):.0f} to {max(factors):.0f} times as fast" in " ".join(block("finding").split())
    assert [row["tokens_per_s"] for row in read("notes")] == ["17.6", "42.3", "32.3"]


def test_the_cpu_times():
    seconds = {row["notebook"]: float(row["seconds"]) for row in read("notebooks")}
    lines = parse_table("notebooks")
    assert [re.search(r"notebooks/(\w+)\.ipynb", line[0])[1] for line in lines] == sorted(seconds)
    assert [numbers(line[2])[0] for line in lines] == pytest.approx([seconds[key] for key in sorted(seconds)], abs=0.5)


def test_a_sentence_that_the_runs_do_not_bear_out_stops_the_report(monkeypatch):
    real = report.runs

    def worse(name):
        frame = real(name)
        embedding = frame.get("model", pd.Series(dtype=str)) == "embedding"
        return frame.assign(validation_loss=frame["validation_loss"] + 9.0 * embedding) if "stories" in name else frame

    monkeypatch.setattr(report, "runs", worse)
    with pytest.raises(ValueError, match="does not show that embedding is ahead on stories"):
        report.BLOCKS["designs"]()


@pytest.mark.parametrize("text", ["no marks", README.replace("begin cost", "begin costs")])
def test_marks_that_are_missing_or_unknown_say_so(text):
    with pytest.raises(ValueError, match="expected each of"):
        report.fill(text)
