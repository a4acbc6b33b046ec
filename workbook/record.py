"""The record that comes with the workbook: what makes each file of data/runs, and how it is made again.

`python -m workbook record [NAME…]` runs notebooks or command lines in out/record and copies the files that they make
to data/runs; then it draws figures/ with its captions and writes README.md. Nothing else writes there.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pandas as pd

from workbook import gallery, readme
from workbook.files import write_whole
from workbook.machine import describe_machine
from workbook.notebooks import FOLDER, execute
from workbook.records import RECORD, ROOT, load_runs, output_folder, save_run
from workbook.text import write_stories

TEXT = "--stories {stories} --max_stories 10000 --validation_stories 2000 --compact --block_size 1024 --head tied"
RECIPE = "--schedule cosine --optimizer muon --clip 1 --bfloat16 auto --log_every 20 --samples 8 --max_new_tokens 100"
WHOLE_STORY = "--similar_lengths --embed_size 192"
LSTM = (
    f"--models LSTM {WHOLE_STORY} --hidden_size 384 --batch_size 4 --learning_rate 0.012 --dropout 0.1 "
    "--weight_decay 0.1 --validate_every 400"
)
TRANSFORMER = (
    f"--models Transformer {WHOLE_STORY} --n_heads 2 --short_conv --qk_norm --batch_size 8 --learning_rate 0.003 "
    "--weight_decay 0.01 --validate_every 150"
)
CONTEXTS = "--models k-gram --corpus_contexts --batch_size 1024 --validate_every 250"
KGRAM = f"{CONTEXTS} --hidden_size 320 --learning_rate 0.003 --blanks 0.3 --dropout 0.2 --weight_decay 0.2"
POOLED = (
    f"{CONTEXTS} --kgram_net pooled --embed_size 192 --hidden_size 384 --learning_rate 0.004 "
    "--dropout 0.2 --weight_decay 0.1"
)
# Of each design at a short and a long window: rates for its token tables as PyTorch draws them, and drawn from
# N(0, 0.1²), doubled or halved from 0.008 until the loss rises; and what the search found.
RATES: dict[tuple[str, int], dict[float | None, tuple[float, ...]]] = {
    ("one-hot", 3): {None: (0.008, 0.016, 0.032), 0.1: (0.008, 0.004, 0.016)},
    ("one-hot", 16): {None: (0.008, 0.004, 0.016), 0.1: (0.008, 0.004, 0.016)},
    ("embedding", 3): {None: (0.008, 0.004, 0.002), 0.1: (0.008, 0.004, 0.016)},
    ("embedding", 16): {None: (0.008, 0.004, 0.002, 0.001), 0.1: (0.008, 0.004, 0.002)},
    ("convolution", 3): {None: (0.008, 0.016, 0.032, 0.064), 0.1: (0.008, 0.016, 0.032)},
    ("convolution", 16): {None: (0.008, 0.016, 0.032, 0.064), 0.1: (0.008, 0.016, 0.032)},
}
SIZES = [10_000, 30_000, 100_000, 300_000, 1_000_000, 2_450_000]  # stories
WINDOWS = (1, 2, 3, 5, 8, 16, 32)
UNTUNED: dict[str, float | None] = {"dropout": 0.1, "blanks": 0.3}
TUNED: dict[tuple[str, int], dict[str, float | None]] = {  # as findings.searched reads kgram_search
    ("one-hot", 3): {"table_std": 0.1, "learning_rate": 0.008, "dropout": 0.0, "blanks": 0.0},
    ("one-hot", 16): {"table_std": None, "learning_rate": 0.008, "dropout": 0.0, "blanks": 0.0},
    ("embedding", 3): {"table_std": 0.1, "learning_rate": 0.008, "dropout": 0.0, "blanks": 0.0},
    ("embedding", 16): {"table_std": 0.1, "learning_rate": 0.004, "dropout": 0.0, "blanks": 0.0},
    ("convolution", 3): {"table_std": 0.1, "learning_rate": 0.016, "dropout": 0.0, "blanks": 0.0},
    ("convolution", 16): {"table_std": 0.1, "learning_rate": 0.016, "dropout": 0.0, "blanks": 0.0},
}


class Recording(NamedTuple):
    """A notebook with its parameters, or command lines of pico-llm.py; the files that they make; how long it takes."""

    files: str  # without .csv
    minutes: float
    notebook: str = ""
    parameters: dict[str, Any] = {}
    commands: tuple[str, ...] = ()
    shown_in: str = ""  # the notebook that shows what a longer one recorded
    prefix: str = ""  # of the files in data/runs: what is made on another device, only where it is named


def five_minutes() -> list[str]:
    """Four models, six seeds, two to seven minutes each."""
    long = f"{TEXT} {RECIPE} --unigram_bias --seed {{seed}} --record stories_5min --output_dir {{out}}/seed{{seed}}"
    nets = {"pooled": f'{POOLED} --kgram_k 32 --label "pooled k-gram"', "plain": f"{KGRAM} --embed_size 160"}
    lines = [f"{long}/transformer {TRANSFORMER} --budget_tokens 2300000"]
    lines += [f"{long}/lstm {LSTM} --budget_tokens 2900000"]
    lines += [f"{long}/{name} --steps 2250 {net}" for name, net in nets.items()]
    return [line.replace("{seed}", str(seed)) for line in lines for seed in range(6)]


def equal_tokens() -> list[str]:
    """LSTM and Transformer trained on the same number of tokens, three seeds; `five_minutes` has the LSTM's longest."""
    line = f"{TEXT} {RECIPE} --unigram_bias --seed {{seed}} --record stories_tokens"
    trained = [(TRANSFORMER, "Transformer", tokens) for tokens in (300_000, 1_000_000, 2_900_000)]
    trained += [(LSTM, "LSTM", tokens) for tokens in (300_000, 1_000_000)]
    lines = [
        f'{line} {options} --budget_tokens {tokens} --label "{model}, {tokens:,} tokens"'
        for options, model, tokens in trained
    ]
    return [line.replace("{seed}", str(seed)) for line in lines for seed in range(3)]


def more_text() -> list[str]:
    """What takes each model about five minutes, on ever more stories, made of the halves of the sample's; one seed. The
    last once more in two processes."""
    nets = {
        "k-gram": f"{KGRAM} --embed_size 160 --steps 4500",
        "LSTM": f"{LSTM} --budget_tokens 2300000",
        "Transformer": f"{TRANSFORMER} --budget_tokens 2300000",
    }
    line = f"{TEXT} {RECIPE} --unigram_bias --seed 0 --record stories_size"
    line = line.replace("{stories}", "{many}").replace("--max_stories 10000", "--max_stories {stories}")
    lines = [
        line.replace("{stories}", str(stories)) + f' {options} --label "{model}, {stories:,} stories"'
        for stories in SIZES[::2] + SIZES[-1:]
        for model, options in nets.items()
    ]
    return [*lines, f"torchrun {lines[-2]}".replace(' stories"', ' stories, two processes"')]


def other_starts() -> list[str]:
    """A k-gram for 20 s from an embedding of each kind: fresh, or what the long runs of seed 0 have left."""
    line = f"{TEXT} {RECIPE} --seed {{seed}} --record stories_reuse --budget_seconds 20 {KGRAM} --embed_size 192"
    start = "--label from_{name} --embedding_from {{out}}/seed0/{name}/{model}.safetensors"
    starts = [start.format(name=model.lower(), model=model) for model in ("LSTM", "Transformer")]
    return [f"{line} {each}".replace("{seed}", str(seed)) for each in ("--label fresh", *starts) for seed in range(3)]


def on_gpu() -> list[str]:
    """The long runs of one seed on a GPU."""
    return [f"{line} --device_id cuda" for line in five_minutes() if "--seed 0" in line]


def short_window() -> list[str]:
    """The pooled k-gram of the long runs with the plain one's window of 3 tokens."""
    return [f"{TEXT} {RECIPE} --unigram_bias --record stories_k --steps 2250 {POOLED} --kgram_k 3 --label k=3"]


def design_line(net: str, k: int, chosen: dict[str, float | None], more: str) -> str:
    """A design of notebook 02 on the contexts of stories: all have the same widths, optimizer and free head."""
    options = " ".join(f"--{option} {value}" for option, value in chosen.items() if value is not None)
    few = "--head free --unigram_bias --weight_decay 0.1 --samples 1 --max_new_tokens 0"
    line = f"{TEXT} {RECIPE} {CONTEXTS} --kgram_net {net} --kgram_k {k} --embed_size 160 --hidden_size 320 {few}"
    return f"{line} {options} {more}"


def design_search() -> list[str]:
    """Each design at a short and a long window: tables and rates, then at the best ones other dropouts and blanks.

    Validated on the first 200 stories of the half to choose by, and on no other that a reported loss is of.
    """
    trials = [
        (net, k, {"table_std": table, "learning_rate": rate} | UNTUNED)
        for (net, k), tables in RATES.items()
        for table, rates in tables.items()
        for rate in rates
    ]
    for option, value in (("dropout", 0.0), ("blanks", 0.0), ("blanks", 0.6)):
        trials += [(net, k, found | UNTUNED | {option: value}) for (net, k), found in TUNED.items()]
    more = "--steps 500 --validation_stories 400 --record kgram_search --label"
    return [
        design_line(net, k, trial, f'{more} "{net} k={k} {" ".join(map(str, trial.values()))}"')
        for net, k, trial in trials
    ]


def design_lines(budgets: Sequence[tuple[int, str, str]], windows: Sequence[int], table: str) -> list[str]:
    """Each design at each window with what the search found for it; a budget: seed, option, ending of the label.

    Up to 5 tokens a design has what was found for 3, beyond that what was found for 16. One-hot, with a table for each
    place in the window, goes to 16.
    """
    more = f"--validate_every 100 --record {table}"
    return [
        design_line(
            net, k, TUNED[net, 3 if k <= 5 else 16], f'--seed {seed} {budget} {more} --label "{net} k={k}{end}"'
        )
        for seed, budget, end in budgets
        for k in windows
        for net in ("one-hot", "embedding", "convolution")
        if k <= 16 or net != "one-hot"
    ]


def equal_seconds() -> list[str]:
    """The designs at windows of 1 to 32 tokens, 90 s each, three seeds."""
    return design_lines([(seed, "--budget_seconds 90", "") for seed in range(3)], WINDOWS, "kgram_seconds")


def equal_steps() -> list[str]:
    """The designs with 500 steps at windows of 1 to 32 tokens, three seeds; at 3 and 16 one with 1,000."""
    three = design_lines([(seed, "--steps 500", "") for seed in range(3)], WINDOWS, "kgram_steps")
    return three + design_lines([(0, "--steps 1000", ", 1,000 steps")], (3, 16), "kgram_steps")


def book(number: str, files: str, minutes: float, **parameters: Any) -> Recording:
    """A recording by the notebook of that number."""
    stem = next(FOLDER.glob(f"{number}_*.ipynb")).stem
    return Recording(files, minutes, stem, parameters, shown_in=number if parameters else "")


def recordings() -> dict[str, Recording]:
    """By name, in the order in which they are made: notebooks 04 to 06 show what the long ones record."""
    summary, tables = "{0} {0}_summary", "{0} {0}_summary {0}_positions {0}_samples"
    top_p = "3seqs by_hand coloured_story next_token nucleus_size quality written tables"
    kgram = "dependency designs designs_summary first_scale layers floors floors_summary speed stories stories_summary"
    cost = "growth ladder latency parts processes rates shares texts threads"
    real = {"TEXT": "{stories}", "TRAIN": 10_000, "HELD_OUT": 2000, "BLOCK": 1024, "BUDGET": 6, "STEPS": 900}

    on_cuda = {"ROUNDS": 5, "TEXT": "{stories}", "DEVICE": "cuda"}

    def names(prefix: str, endings: str) -> str:
        return " ".join(f"{prefix}_{ending}" for ending in endings.split())

    def designs(name: str, minutes: float, lines: list[str]) -> Recording:
        return Recording(f"{name} {name}_summary", minutes, commands=tuple(lines), shown_in="02")

    return {
        "kgram_curve": book("02", "kgram_curve", 25, COMPLETE=True),
        "kgram_search": designs("kgram_search", 70, design_search()),
        "kgram_seconds": designs("kgram_seconds", 140, equal_seconds()),
        "kgram_steps": designs("kgram_steps", 110, equal_steps()),
        "generation": book("03", "generation_512 top_p_cost", 6, COMPLETE=True),
        "stories_window": book("04", "stories_text_tinystories stories_window_tinystories", 4, **real),
        "stories_k": Recording(tables.format("stories_k"), 5, commands=tuple(short_window()), shown_in="04"),
        "stories_5min": Recording(tables.format("stories_5min"), 130, commands=tuple(five_minutes()), shown_in="04"),
        "stories_tokens": Recording(
            summary.format("stories_tokens"), 45, commands=tuple(equal_tokens()), shown_in="06"
        ),
        "stories_size": Recording(summary.format("stories_size"), 80, commands=tuple(more_text()), shown_in="04"),
        "stories_reuse": Recording(tables.format("stories_reuse"), 8, commands=tuple(other_starts()), shown_in="04"),
        "cost": book("05", names("cost", cost), 45, COMPLETE=True, ROUNDS=5, TEXT="{stories}"),
        "cost_sizes": book("05", "cost_sizes", 15, SIZES=SIZES, TEXT="{stories}"),
        "gpu": book(
            "05", f"{tables.format('stories_5min')} {names('cost', cost)}", 30, COMPLETE=True, **on_cuda
        )._replace(commands=tuple(on_gpu()), shown_in="", prefix="gpu_"),
        "01": book("01", summary.format("sanity_check"), 0.5),
        "02": book("02", names("kgram", kgram), 1.5),
        "03": book("03", names("top_p", top_p) + " generation_latency", 1.5),
        "04": book(
            "04", names("stories", "live live_summary live_positions live_attention text_builtin window_builtin"), 1.5
        ),
        "05": book("05", "", 1),
        "06": book("06", "", 0.5),
        "07": book("07", names("museum", "training sampling reporting summary"), 1.5),
    }


def table() -> str:
    """What can be recorded, as a Markdown table."""
    lines = ["| name | runs | makes in data/runs | minutes |", "| --- | --- | --- | --- |"]
    for name, each in recordings().items():
        values = ", ".join(f"{key}={value}" for key, value in each.parameters.items()).replace("{stories}", "FOLDER")
        what = [f"{len(each.commands)} command line{'s' * (len(each.commands) > 1)}"] if each.commands else []
        what += (
            [f"notebook {each.notebook[:2]}{f' with {values}' if values else ', in place'}"] if each.notebook else []
        )
        files = [f"{each.prefix}{file}" for file in each.files.split()]
        files += ["notebooks"] if each.notebook and not values else []
        lines.append(f"| {name} | {'; '.join(what)} | {', '.join(files)} | {each.minutes:g} |")
    return "\n".join(lines)


def record(names: Sequence[str], stories: str | None = None, resume: bool = False) -> None:
    """Make the named recordings again (all of them where none is named), then figures, captions and README.

    The notebooks that show what was recorded are executed in place, 06, which answers from all of it, last.

    `stories` is a folder with train.txt and valid.txt of TinyStories, for those that train on them. `resume` leaves out
    the command lines that have run to their end since a recording began and was stopped. ValueError before anything
    runs for an unknown name or a folder that is needed and missing.
    """
    known = recordings()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"nothing to record is called {', '.join(unknown)}; there are {', '.join(known)}")
    usual = [name for name, each in known.items() if not each.prefix]
    wanted = set(names or usual) | {known[name].shown_in for name in names} | {"06"}
    chosen = {name: each for name, each in known.items() if name in wanted}
    of_stories = re.compile("{(stories|many)}")
    needy = [name for name, each in chosen.items() if of_stories.search(f"{each.commands}{each.parameters}")]
    if needy and not (stories and Path(stories).is_dir()):
        raise ValueError(f"{', '.join(needy)} train on TinyStories; give --stories FOLDER with train.txt and valid.txt")
    print(f"recording {', '.join(chosen)}: about {sum(each.minutes for each in chosen.values()):.0f} minutes")
    for name, each in chosen.items():
        print(f"\n== {name}: {each.notebook or f'{len(each.commands)} command lines'}, {each.minutes:g} minutes")
        make(each, stories, output_folder("record") / f"{name}.done", resume)
    print(f"\nfigures and README: {draw_record()}")


def make(each: Recording, folder_of_stories: str | None, log: Path, resume: bool = False) -> None:
    """Run one recording in out/record and copy its files to data/runs. A file that it did not make is an error."""
    folder = output_folder("record") / each.prefix
    files = run(each, folder_of_stories, log, resume, folder)
    for name in files:
        write_whole(RECORD / f"{each.prefix}{name}", functools.partial(shutil.copyfile, folder / "runs" / name))


def run(each: Recording, folder_of_stories: str | None, log: Path, resume: bool, folder: Path) -> list[str]:
    """Run the command lines and the notebook of a recording in a folder; the files that it makes in its runs/.

    `log` gets each command line that has run to its end; with `resume` those in it are left out.
    """
    runs, stories = folder / "runs", str(folder / "tinystories")
    runs.mkdir(parents=True, exist_ok=True)
    if folder_of_stories:  # whatever the folder is called: records name the text by this
        Path(stories).unlink(missing_ok=True)
        Path(stories).symlink_to(Path(folder_of_stories).resolve())
    many = folder / "many"
    if "{many}" in f"{each.commands}" and not many.exists():
        write_stories(many, SIZES[-1], stories)
    files = [f"{name}.csv" for name in each.files.split()]
    if not (resume and log.exists()):
        log.write_text("")
        for name in files:
            (runs / name).unlink(missing_ok=True)
    done = log.read_text().splitlines()
    before = os.environ.get("WORKBOOK_OUT")
    os.environ["WORKBOOK_OUT"] = str(folder)  # of the kernel and the command lines
    try:
        for line in (line for line in each.commands if line not in done):
            run_line(line, {"stories": stories, "many": many, "out": folder})
            with log.open("a") as lines:
                lines.write(f"{line}\n")
        if each.notebook:
            path = FOLDER / f"{each.notebook}.ipynb"
            values = {key: stories if value == "{stories}" else value for key, value in each.parameters.items()}
            notebook, seconds = execute(path, values)
            if not values:
                write_whole(path, functools.partial(nbformat.write, notebook))
                enter_seconds(each.notebook, seconds)
                files.append("notebooks.csv")
    finally:
        del os.environ["WORKBOOK_OUT"]
        if before is not None:
            os.environ["WORKBOOK_OUT"] = before
    return files


def run_line(line: str, places: Mapping[str, Any]) -> None:
    """Run one command line of pico-llm.py, with its {places} filled in; "torchrun" in front: in two processes."""
    command = line.format(**{name: shlex.quote(str(place)) for name, place in places.items()})
    words, program = shlex.split(command), ["pico-llm.py"]
    if words[0] == "torchrun":
        words, program = words[1:], ["-m", "torch.distributed.run", "--nproc-per-node=2", *program]
    print(f"$ python {shlex.join(program + words)}", flush=True)
    if "--output_dir" in words:  # what an earlier recording left there
        shutil.rmtree(words[words.index("--output_dir") + 1], ignore_errors=True)
    subprocess.run([sys.executable, *program, *words], cwd=ROOT, check=True)


def enter_seconds(notebook: str, seconds: float) -> None:
    """A notebook's seconds, among those of the others in the record."""
    row = pd.DataFrame([{"notebook": notebook, "seconds": seconds}]).assign(**describe_machine())
    others = load_runs("notebooks")
    save_run(pd.concat([others[others["notebook"] != notebook], row]).sort_values("notebook"), "notebooks")


def draw_record() -> str:
    """Draw figures/ with its captions from data/runs, and write README.md."""
    titles = gallery.draw_figures(list(gallery.GALLERY), load_runs, folder=ROOT / "figures")
    captions = gallery.render_captions(titles)
    write_whole(ROOT / "figures" / "CAPTIONS.md", lambda path: path.write_text(captions, encoding="utf-8"))
    readme.write_pages()
    return f"{len(titles)} figures"
