"""The published findings once more: their experiments with seeds that no record has used, sentence by sentence.

`python -m workbook replicate` runs them in out/replicate and prints for each sentence of findings.py whether it holds,
with the record's numbers and the new ones. With `--keep` the table becomes data/runs/replication.csv.
"""

from __future__ import annotations

import functools
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from workbook import findings, record
from workbook.files import write_whole
from workbook.records import RECORD, load_runs, output_folder, read_rows, run_file, save_run

FIRST = 100  # the first new seed; those of the record are below
SECONDS = "--budget_seconds 90"  # of a design on real stories, as in the record


class Experiment(NamedTuple):
    """What is run anew: a notebook with parameters, or command lines for each seed, and the minutes of a seed."""

    minutes: float
    lines: tuple[str, ...] = ()  # with {seed}
    notebook: str = ""
    seeded: str = ""  # the notebook's parameter that takes the first new seed


def experiments() -> dict[str, Experiment]:
    """By name, the cheap ones first."""

    def of_recording(name: str, minutes: float) -> Experiment:
        lines = [line for line in record.recordings()[name].commands if "--seed 0 " in f"{line} "]
        lines = [re.sub(r" --output_dir \S+", "", line) for line in lines]
        return Experiment(minutes, tuple(line.replace("--seed 0", "--seed {seed}") for line in lines))

    best = findings.best_k(findings.first_budget(findings.real_runs()))
    lines = record.design_lines([(0, SECONDS, "")], sorted(set(best)), "kgram_seconds")
    chosen = [line for line in lines if any(f"--kgram_net {net} --kgram_k {k} " in line for net, k in best.items())]
    each = tuple(line.replace("--seed 0", "--seed {seed}") for line in chosen)
    return {
        "designs": Experiment(0.5, notebook="02", seeded="FIRST_SEED"),
        "sampling": Experiment(0.5, notebook="03", seeded="SEED"),
        "kgram_seconds": Experiment(5, each),
        "stories_tokens": of_recording("stories_tokens", 15),
        "stories_5min": of_recording("stories_5min", 22),
    }


def replicate(
    names: Sequence[str], seeds: int = 3, minutes: float | None = None, stories: str | None = None, resume: bool = False
) -> pd.DataFrame:
    """Run the experiments of these names (default: all that `stories` allows) and judge each sentence again.

    A name is begun only where what it takes fits into the rest of `minutes`, by the estimate. Rows: section, sentence,
    `tried` (whether its numbers come from new runs), and `holds` and `shown` of the record and of the new runs.
    ValueError for an unknown name, fewer than two seeds, or a text that is needed and missing.
    """
    known = experiments()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no experiment is called {', '.join(unknown)}; there are {', '.join(known)}")
    if seeds < 2:
        raise ValueError(f"seeds is {seeds}; expected 2 or more, or nothing has an interval")
    needy = [name for name in names if known[name].lines]
    if needy and not (stories and Path(stories).is_dir()):
        raise ValueError(f"{', '.join(needy)} train on TinyStories; give --stories FOLDER with train.txt and valid.txt")
    begin, folder = time.monotonic(), output_folder("replicate")
    if not resume:
        shutil.rmtree(folder / "runs", ignore_errors=True)
    for name, each in known.items():
        if name not in (names or known) or (each.lines and not stories):
            continue
        spent, takes = (time.monotonic() - begin) / 60, each.minutes * seeds
        if minutes is not None and spent + takes > minutes:
            print(f"left out: {name}, about {takes:.0f} minutes; {minutes - spent:.0f} of {minutes:g} are left")
            continue
        print(f"== {name}: about {takes:.0f} minutes", flush=True)
        record.run(recording(each, seeds), stories, folder / f"{name}.done", resume, folder)
    print(f"{(time.monotonic() - begin) / 60:.0f} minutes, seeds {FIRST} to {FIRST + seeds - 1}")
    return judge(functools.partial(load_new, folder=folder / "runs"))


def recording(each: Experiment, seeds: int) -> record.Recording:
    """An experiment as `record.make` takes it; of a notebook as many seeds as it takes by itself."""
    new = range(FIRST, FIRST + seeds)
    if each.notebook:
        parameters: dict[str, Any] = {each.seeded: FIRST} | ({"SEEDS": seeds} if each.seeded == "FIRST_SEED" else {})
        return record.book(each.notebook, "", each.minutes, **parameters)
    return record.Recording(
        "", each.minutes, commands=tuple(line.replace("{seed}", str(seed)) for seed in new for line in each.lines)
    )


def load_new(name: str, folder: Path) -> pd.DataFrame:
    """The new rows of a run, where there are any, else the recorded ones. What was recorded at other sizes, budgets or
    windows stays beside them."""
    path = run_file(folder, name)
    if not path.exists():
        return load_runs(name)
    rows = read_rows(path)
    if name in ("kgram_seconds_summary", "stories_tokens_summary"):
        old = load_runs(name)
        rows = pd.concat([rows, old[~old["model"].isin(rows["model"])]], ignore_index=True)
    return rows


def judge(load: findings.Load) -> pd.DataFrame:
    """Each sentence by the record and by the new runs."""
    old, new = findings.sentences(), findings.sentences(load)
    table = old.add_suffix("_record").join(new.add_suffix("_new"))
    return table.assign(tried=table["shown_record"] != table["shown_new"]).reset_index()


def report(table: pd.DataFrame) -> str:
    """The table in words, a paragraph for each sentence that was tried, and how many hold."""
    tried = table[table["tried"]]
    lines = [
        f"{'holds' if row.holds_new else 'DOES NOT HOLD'}: {row.section}: {row.sentence}\n"
        f"    record: {row.shown_record}\n    new:    {row.shown_new}"
        for row in tried.itertuples()
    ]
    return "\n".join([*lines, f"{tried['holds_new'].sum()} of {len(tried)} sentences that were tried again hold"])


def keep(table: pd.DataFrame) -> Path:
    """The table as part of the record."""
    path = save_run(table, "replication")
    return write_whole(RECORD / "replication.csv", lambda partial: shutil.copyfile(path, partial))
