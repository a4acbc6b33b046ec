"""What README.md and RESULTS.md say is what data/runs holds: rendered by a command, parsed here, counted anew here."""

import csv
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from statistics import mean, median

import pytest
from oracles import ROOT

from workbook import config, readme
from workbook.records import load_runs

README, RESULTS, CLI = ((ROOT / page).read_text(encoding="utf-8") for page in readme.PAGES)
TEMPLATES = {page: (readme.TEMPLATES / f"{page}.j2").read_text(encoding="utf-8") for page in readme.PAGES}
EXPERIMENTS = re.search(r"^## Change something\n.*?```\n(.*?)\n```", README, re.S | re.M)[1].split("\n")
DESIGNS = ["one-hot", "embedding", "convolution"]
GROUPS = [each for each in vars(config).values() if isinstance(each, type) and issubclass(each, config.Options)]

# Settings and names, not results: the only numbers that the template itself says.
SETTINGS = ["Python 3.10 to 3.14", "notebook 02", "notebooks 02 and 03", "95 % interval", "k=2", "k=3"]
SETTINGS += ["hidden 256", '" 1"', '" 2"', '"0"', "p = 0.6", "p = 0.4", "p = 0.5", "p = 1", "32 rows"]
SETTINGS += ["GPT-2", "bfloat16", "UTF-8"]  # names


def read(name, folder="runs/"):
    """A run's rows, without pandas and the workbook."""
    with open(ROOT / "data" / f"{folder}{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def section(title, page=RESULTS):
    return re.search(rf"^##+ {title}\n(.*?)(?=^##|\Z)", page, re.S | re.M)[1]


def parse_table(title, page=RESULTS):
    """The rows of a section's table, cell by cell."""
    lines = [line for line in section(title, page).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def numbers(text):
    """The numbers in a text; 38.8 M is 38.8."""
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*\.?\d*", text)]


def own_row(rows, model):
    return next(row for row in rows if row["model"] == model)


def rates_of(rows, **chosen):
    """Targets per second of the rows with these values."""
    rows = [row for row in rows if all(row[column] == value for column, value in chosen.items())]
    return [int(row["tokens"]) / float(row["step_s"]) for row in rows]


def test_the_pages_are_what_the_command_writes(tmp_path):
    written = [path.read_text(encoding="utf-8") for path in readme.write_pages(tmp_path)]
    assert written == [README, RESULTS, CLI], "run `python -m workbook readme`"


def test_the_templates_state_no_number_of_their_own():
    text = "".join(TEMPLATES.values())
    text = re.sub(r"\{[{%].*?[}%]\}|```.*?```|`[^`]*`|\]\([^)]*\)|<[^>]*>", "", text, flags=re.S)  # code, links, tags
    for setting in SETTINGS:
        assert setting in text, f"{setting!r} is said no more: take it off the list"
        text = text.replace(setting, "")
    assert not re.findall(r".*\d.*", text)


def test_the_readme_is_a_front_door():
    assert len(README.split()) <= 900
    start = README.index("## Start")
    first, last = README.index("figures/"), README.rindex('src="figures/')
    assert first < last < start and "notes" not in README
    assert "--inplace" not in README  # nothing that git keeps is written


def test_there_are_five_experiments():
    assert len(EXPERIMENTS) == 5


@pytest.mark.notebook
@pytest.mark.parametrize("line", EXPERIMENTS)
def test_each_experiment_of_the_readme_runs(line, tmp_path):
    words = [str(tmp_path / word[4:]) if word.startswith("out/") else word for word in shlex.split(line)]
    program = [sys.executable, *(["-m", "papermill"] if words[0] == "papermill" else [])]
    done = subprocess.run([*program, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_option_stands_in_its_table():
    listed = re.findall(r"^\| `--(?:\[no-\])?(\w+)", CLI, re.M)
    assert sorted(listed) == sorted(each.name for part in GROUPS for each in fields(part))


def test_every_run_that_is_named_is_there():
    links = re.findall(r"\]\((data/[^)]+)\)", RESULTS)
    assert len(links) > 15 and all((ROOT / link).is_file() for link in links)


def test_every_module_stands_in_the_map():
    modules = {path.name for path in (ROOT / "workbook").glob("*.py") if path.name != "__init__.py"}
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`workbook/(\w+\.py)`", section("Where things are", text))) == modules


def test_the_table_of_designs():
    notes = {row["model"]: row for row in read("notes", folder="")}
    losses, speed, stories = read("kgram_designs_summary"), read("kgram_speed"), read("kgram_stories_summary")
    for line, design in zip(parse_table("Three designs"), DESIGNS, strict=True):
        own = [float(row["mean_loss"]) for row in losses if row["model"] == design]
        shown = numbers(line[2])
        assert line[0] == design and numbers(line[1]) == [float(notes[design]["loss"])]
        assert shown[0] == pytest.approx(mean(own), abs=0.005) and shown[1] < min(own) <= max(own) < shown[2]
        assert numbers(line[3]) == [float(notes[design]["tokens_per_s"])]
        for cell, way in zip(line[4:7], ("loop", "one batch", "distinct contexts"), strict=True):
            assert numbers(cell)[0] == pytest.approx(median(rates_of(speed, model=design, way=way)), abs=0.5)
        assert numbers(line[7])[0] == pytest.approx(int(own_row(losses, design)["parameters"]) / 1e6, abs=0.05)
        held_out = [float(row["validation_loss"]) for row in stories if row["model"] == design]
        assert numbers(line[8])[0] == pytest.approx(mean(held_out), abs=0.005)


def test_the_table_of_designs_on_real_stories():
    rows = read("kgram_seconds_summary")
    lines = parse_table("Three designs on real stories")
    assert [line[0] for line in lines] == sorted({row["kgram_k"] for row in rows}, key=int)
    for line in lines:
        for cell, design in zip(line[1:4], DESIGNS, strict=True):
            own = [row for row in rows if (row["kgram_net"], row["kgram_k"]) == (design, line[0])]
            assert len(own) == (0 if cell == "not run" else 3)
            if not own:
                continue
            for shown, column in zip(numbers(cell), ("validation_loss", "mixed_loss"), strict=True):
                assert shown == pytest.approx(mean(float(row[column]) for row in own), abs=0.00051)
        assert numbers(line[4])[0] == pytest.approx(float(own[0]["kneser_ney_loss"]), abs=0.00051)


def test_the_table_of_stories():
    rows = read("stories_5min_summary")
    counts, *nets = parse_table("Stories")
    assert numbers(counts[2])[0] == pytest.approx(float(own_row(rows, "k-gram")["kneser_ney_loss"]), abs=0.0005)
    losses = []
    for line in nets:
        own = [row for row in rows if row["model"] == line[0].split(" (k=")[0]]
        assert len(own) >= 3
        losses.append(numbers(line[2])[0])
        for cell, column, digits, unit in (
            (1, "parameters", 2, 1e6),
            (2, "validation_loss", 3, 1),
            (3, "perplexity", 1, 1),
            (4, "bits_per_byte", 3, 1),
            (5, "mixed_loss", 3, 1),
            (6, "tokens", 1, 1e6),
        ):
            shown, true = numbers(line[cell])[0], mean(float(row[column]) for row in own) / unit
            assert shown == pytest.approx(true, abs=0.51 * 10**-digits), (line[0], column)
    assert len(nets) == 4 and losses == sorted(losses, reverse=True)


def test_the_table_of_costs():
    ladder, parts = read("cost_ladder"), read("cost_parts")
    places = [(text, design) for text in ("3seqs.txt", "stories") for design in DESIGNS]
    for line, (text, design) in zip(parse_table("What a token costs"), places, strict=True):
        plain = "lookup" if design == "one-hot" else "one batch"
        rates = {way: rates_of(ladder, text=text, model=design, way=way) for way in ("loop", plain, "memory reuse")}
        exact = rates["memory reuse"]
        assert len(exact) >= 5 and line[1] == design
        assert numbers(line[2])[0] == pytest.approx(median(rates["loop"]), abs=0.51)
        assert numbers(line[3])[0] == pytest.approx(median(exact), abs=0.51)
        for cell, base, digits in ((4, "loop", 0), (5, plain, 1)):
            factors = [a / b for a, b in zip(exact, rates[base], strict=True)]
            expected = [median(factors), min(factors), max(factors)]
            assert numbers(line[cell]) == pytest.approx(expected, abs=0.51 * 10**-digits)
        peaks = {row["way"]: float(row["peak_mb"]) for row in parts if (row["text"], row["model"]) == (text, design)}
        assert numbers(line[6] + " " + line[7]) == pytest.approx([peaks[plain], peaks["memory reuse"]], abs=0.51)


def test_the_finding():
    speed, factors = read("kgram_speed"), []
    for design in DESIGNS:
        fast, loop = (rates_of(speed, model=design, way=way) for way in ("distinct contexts", "loop"))
        factors.append(median(a / b for a, b in zip(fast, loop, strict=True)))
    finding = " ".join(re.search(r"^\*\*(.*?)^## ", RESULTS, re.S | re.M)[1].split())
    assert f"{min(factors):,.0f} to {max(factors):,.0f} times as fast" in finding
    assert finding.startswith(
        f"The notes' {', '.join(row['tokens_per_s'] for row in read('notes', folder=''))} tokens/s"
    )


def test_the_cpu_times():
    seconds = {row["notebook"]: float(row["seconds"]) for row in read("notebooks")}
    lines = parse_table("The notebooks", README)
    assert [re.search(r"notebooks/(\w+)\.ipynb", line[0])[1] for line in lines] == sorted(seconds)
    assert [numbers(line[2])[0] for line in lines] == pytest.approx([seconds[key] for key in sorted(seconds)], abs=0.5)


def worse_embedding(name):
    """The record, but on stories the embedding MLP ends nine nats higher."""
    frame = load_runs(name)
    if not name.startswith("kgram_stories"):
        return frame
    return frame.assign(validation_loss=frame["validation_loss"] + 9.0 * (frame["model"] == "embedding"))


def one_seed(name):
    """The record of the first seed: nothing has an interval."""
    frame = load_runs(name)
    return frame[frame["seed"] == 0] if "seed" in frame else frame


@pytest.mark.parametrize(
    ("load", "sentence"),
    [(worse_embedding, "embedding has the lowest loss on stories"), (one_seed, "embedding and convolution are level")],
)
def test_a_sentence_that_the_runs_do_not_bear_out_stops_the_rendering(load, sentence):
    with pytest.raises(ValueError, match=f"data/runs does not show that {sentence} .* change the template"):
        readme.render("RESULTS.md", load)


def test_lines_are_wrapped_but_not_inside_code_tables_and_headings():
    long = "word " * 30 + "`--some option` and 95 % of it"
    lines = readme.wrap(f"# {long}\n\n{long}\n\n* {long}\n* short\n\n| {long} |\n| --- |\n\n\n```\n{long}\n```").split(
        "\n"
    )
    assert lines[0] == f"# {long}" and f"| {long} |" in lines and long in lines
    wrapped = [line for line in lines if len(line) <= 120]
    assert "* short" in wrapped and sum("`--some option`" in line and "95 %" in line for line in wrapped) == 2
