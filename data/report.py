"""What the README says of results, from data/runs: `python -m data.report` writes it between the README's marks.

A block is a text with gaps and a function that fills them from the records. Where the records no longer bear out what
the text says, `claim` stops it.
"""

from __future__ import annotations

import json
import math
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from data.records import ROOT, growth_slopes, intervals, load_runs, verdict

DESIGNS = ["one-hot", "embedding", "convolution"]
NETS = {"kgram": "k-gram", "transformer": "Transformer", "lstm": "LSTM"}
TEXTS = {"3seqs.txt": "`3seqs.txt`", "stories": "TinyStories"}
BLOCKS: dict[str, Callable[[], str]] = {}


def block(text: str):
    """Enter a function, which returns what belongs into the gaps of the text, as the README's block of its name."""

    def enter(values: Callable[[], dict]) -> Callable[[], dict]:
        BLOCKS[values.__name__] = lambda: wrap(text.strip().format_map(values()))
        return values

    return enter


def wrap(text: str) -> str:
    """Paragraphs and list items in lines of at most 120 characters; tables as they are. 95% becomes 95 %."""
    text = re.sub(r"(?<=\d)%", " %", text)
    options = {"width": 120, "break_long_words": False, "break_on_hyphens": False}
    wrapped = []
    for paragraph in text.split("\n\n"):
        items = [paragraph] if "| ---" in paragraph else re.split(r"\n(?=\* )", paragraph)
        for number, item in enumerate(items):
            if "| ---" not in item:
                hanging = "  " if item.startswith("* ") else ""
                items[number] = textwrap.fill(" ".join(item.split()), subsequent_indent=hanging, **options)
        wrapped.append("\n".join(items))
    return "\n\n".join(wrapped)


def runs(name: str) -> pd.DataFrame:
    return load_runs(name, recorded_only=True)


def claim(holds: bool, sentence: str) -> None:
    """ValueError where the records do not show what the README says."""
    if not holds:
        raise ValueError(f"data/runs does not show that {sentence}: look at the runs, and change the README's block")


def level(table: pd.DataFrame) -> bool:
    """Whether the intervals of all rows overlap the best one's."""
    return verdict(table, higher_is_better=False) == f"no difference: {', '.join(table.index)}"


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Rows as a Markdown table."""
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def files(*names: str) -> str:
    """Links to the recorded runs of a block."""
    return "Runs: " + ", ".join(f"[{name}](data/runs/{name}.csv)" for name in names) + "."


def median_of(values: pd.Series, digits: int = 0) -> str:
    """Median (lowest to highest)."""
    return f"{values.median():,.{digits}f} ({values.min():,.{digits}f} to {values.max():,.{digits}f})"


def mean_of(row: pd.Series, digits: int = 2) -> str:
    """Mean (interval) of a row of `intervals`."""
    return f"{row['mean']:.{digits}f} ({row['low']:.{digits}f} to {row['high']:.{digits}f})"


def millions(number: float, digits: int = 1) -> str:
    return f"{number / 1e6:,.{digits}f} M"


def ladder_rates() -> pd.Series:
    """Targets/s by text, design, round and rung; one-hot's plain version is the lookup."""
    ladder = runs("cost_ladder_complete")
    literal = (ladder["design"] == "one-hot") & (ladder["rung"] == "one batch")
    ladder = ladder[~literal].replace({"rung": {"lookup": "one batch"}})
    ladder["rate"] = ladder["tokens"] / ladder["step_s"]
    return ladder.set_index(["text", "design", "round", "rung"])["rate"]


def ladder_factors(base: str) -> pd.DataFrame:
    """The exact rungs' targets/s over those of the rung `base`: a row for each text and design, a column a round."""
    rate = ladder_rates().unstack("rung")
    return (rate["memory kept"] / rate[base]).unstack("round")


def same_context() -> pd.Series:
    """Targets of a batch for each of its distinct contexts, by text."""
    texts = runs("cost_texts_complete").set_index("text")
    return texts["batch_targets"] / texts["batch_contexts"]


@block("""
**The notes' {notes} tokens/s measure a Python loop, not three designs: the same mathematics runs {all[0]:.0f} to
{all[1]:.0f} times as fast, and on `3seqs.txt`, with {seeds} seeds, no difference in loss between embedding and
convolution is shown.** One plain batch alone is {batch[0]:.0f} to {batch[1]:.0f} times the loop. The last step is
another {last[0]:.0f} to {last[1]:.0f} times and mostly this text's repetition: {same[3seqs.txt]:.1f} of its targets
share a context. On TinyStories ({same[stories]:.2f}) all of it together is {stories:.0f} times (embedding, a whole
training step).
""")
def finding() -> dict:
    summary, speed = runs("kgram_designs_summary"), runs("kgram_speed")
    claim(level(intervals(summary, "mean_loss").drop("one-hot")), "embedding and convolution differ in no interval")
    rate = speed.assign(rate=speed["tokens"] / speed["step_s"])

    def factor(above: str, below: str) -> list[float]:
        return ratios(rate, "way", "rate", above, below)

    return {
        "notes": ", ".join(map(str, runs("notes")["tokens_per_s"])),
        "all": factor("distinct contexts", "loop"),
        "batch": factor("vectorised", "loop"),
        "last": factor("distinct contexts", "vectorised"),
        "same": same_context(),
        "stories": ladder_factors("loop").loc[("stories", "embedding")].median(),
        "seeds": summary["seed"].nunique(),
    }


SHOWS = {
    "01_sanity_check": "an LSTM on `3seqs.txt`: ln V, exact floors, samples, why a split of this file is no split",
    "02_kgram_architectures": "the designs written out and checked, trained side by side, and a decision by rule",
    "03_top_p_sampling": "the nucleus in four steps and proved, what p does to text, a slider, latency",
    "04_tinystories": "k-gram, LSTM, Transformer and Kneser-Ney on the same stories, live and in recorded runs",
    "05_cost_of_a_token": "one step written in eleven ways, timed against the machine's limit; growth, threads",
    "06_interview": "what an examiner asks, each answer with its number and its line of code; the decision once more",
}


@block("""
{table}

CPU time: all cells with the default parameters, on {threads} cores. Run: [notebooks](data/runs/notebooks.csv).
""")
def notebooks() -> dict:
    times, lines = runs("notebooks").set_index("notebook"), []
    for name, shows in SHOWS.items():
        cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        title = re.match(r"# (\d) · (.+)", "".join(cells[0]["source"]))
        link = f"[{title[1]} {title[2]}](notebooks/{name}.ipynb)"
        lines.append((link, shows, f"{times.loc[name, 'seconds']:.0f} s"))
    return {"table": table(["notebook", "what it shows", "CPU time"], lines), "threads": times["threads"].iloc[0]}


@block("""
k={here.k}, embeddings of {here.embed}, hidden {here.hidden}, {here.layers} inner layers, Adam at {here.lr:g},
{here.steps} mini-batches of {here.batch} sequences of {here.block} tokens of `3seqs.txt`, V = {here.vocab:,},
{here.threads} CPU cores. Loss: mean over the {here.steps} steps, 95 % interval over {seeds} seeds. Tokens/s: medians
of {rounds} rounds, forward and backward. Stories: validation loss (nats per token) after {there.steps} steps at
k={there.k}, hidden {there.hidden}, batches of {there.batch} small built-in stories of {there.block} tokens, compact
vocabulary.

{table}

The notes' three runs took {notes_seconds:,} s; these take {seconds:.1f} s together.

* On `3seqs.txt` the intervals of embedding and convolution overlap: no difference is shown. One-hot is behind as
  PyTorch draws it, since `nn.Linear` draws first weights for {inputs:,} inputs of which {here.k} are on.
* With first sums of the same variance both one-hot, {one_hot}, and embedding, {embedding}, pass all three, and no
  difference between them is shown.
* On stories the embedding MLP is ahead of the other two after {there.steps} steps, with the intervals apart, so the
  later notebooks use it. After {longer.steps:,} steps no difference is shown: {level}.

{files}
""")
def designs() -> dict:
    notes, summary = runs("notes").set_index("model"), runs("kgram_designs_summary")
    stories, longer = runs("kgram_stories_summary"), runs("kgram_stories_long_summary")
    loss, held_out = intervals(summary, "mean_loss"), intervals(stories, "validation_loss")
    rescaled = runs("kgram_first_scale").groupby(["model", "seed"], sort=False, as_index=False)["loss"].mean()
    rescaled = intervals(rescaled, "loss")
    claim(level(loss.drop("one-hot")), "embedding and convolution differ in no interval")
    claim(loss.loc["one-hot", "low"] > loss.drop("one-hot")["high"].max(), "one-hot is behind")
    claim(rescaled["high"].max() < loss["low"].min() and level(rescaled), "rescaled, both pass all three")
    claim(verdict(held_out, higher_is_better=False) == "embedding", "embedding is ahead on stories")
    long_loss = intervals(longer, "validation_loss")
    claim(level(long_loss), "trained longer on stories, the three are level")
    here, size = summary.iloc[0], summary.groupby("model")["parameters"].first()
    kinds = ("designs_summary", "speed", "first_scale", "stories_summary", "stories_long_summary")
    return {
        "table": designs_table(notes, loss, held_out, size),
        "here": here,
        "there": stories.iloc[0],
        "longer": longer.iloc[0],
        "level": ", ".join(f"{name} {mean_of(row)}" for name, row in long_loss.iterrows()),
        "seeds": summary["seed"].nunique(),
        "rounds": runs("kgram_speed")["round"].nunique(),
        "notes_seconds": notes["seconds"].sum(),
        "seconds": summary.groupby("model")["wall_s"].mean().sum(),
        "inputs": here["k"] * here["vocab"],
        "one_hot": mean_of(rescaled.loc["one-hot, rescaled"]),
        "embedding": mean_of(rescaled.loc["embedding, rescaled"]),
        "files": files("notes", *(f"kgram_{kind}" for kind in kinds)),
    }


def designs_table(notes: pd.DataFrame, loss: pd.DataFrame, held_out: pd.DataFrame, size: pd.Series) -> str:
    speed, ways = runs("kgram_speed"), ("loop", "vectorised", "distinct contexts")
    rate = (speed["tokens"] / speed["step_s"]).groupby([speed["model"], speed["way"]]).median()
    lines = []
    for name in DESIGNS:
        line = [name, notes.loc[name, "loss"], mean_of(loss.loc[name]), notes.loc[name, "tokens_per_s"]]
        line += [f"{rate[name, way]:,.0f}" for way in ways]
        lines.append([*line, millions(size[name]), mean_of(held_out.loc[name])])
    head = ["design", "loss: notes", "loss: here", "tokens/s: notes", "the loop, here", *ways[1:]]
    return table([*head, "parameters", "stories: loss"], lines)


@block("""
* A fair coin: after "0" `3seqs.txt` goes on with " 1" or " 2", half each. The trained LSTM draws " 1" in {coin:.0%}
  of {draws:,} continuations at p = 0.6; at p = 0.4 only one side is left.
* On stories both models are less diverse at p = 0.5 than at p = 1 (self-BLEU, intervals apart). At every p an
  independent model is less surprised by the LSTM's stories than by the k-gram's (intervals apart).
* {tokens} tokens after a prompt of {tokens}, V = {vocab:,}, hidden {hidden}: one step a token takes
  {step[k-gram]:.1f} s (k-gram) and {step[LSTM]:.1f} s (LSTM), prompt included; the whole text and all its logits
  again at each token {all_logits[k-gram]:.1f} s and {all_logits[LSTM]:.1f} s; the whole text and only the last row of
  logits {last_logits[k-gram]:.1f} s and {last_logits[LSTM]:.1f} s.
* The filter on 32 rows of {vocab:,} logits costs {peaked[cost]:.2f} of a `torch.sort` where the nucleus holds
  {peaked[kept]:,.0f} tokens and {flat[cost]:.2f} where it holds {flat[kept]:,.0f} (medians).

{files}
""")
def sampling() -> dict:
    coin, quality = runs("top_p_3seqs").set_index(["temperature", "p"]), runs("top_p_quality")
    fair = coin.loc[(1, 0.6)]
    claim(fair["low"] < 0.5 < fair["high"] and coin.loc[(1, 0.4), "' 1'"] in (0, 1), "a small p removes one side")
    bleu, judged = (intervals(quality, column, by="writer") for column in ("self-BLEU", "perplexity"))
    for name in ("k-gram", "LSTM"):
        claim(bleu.loc[f"{name}, p = 1.0", "high"] < bleu.loc[f"{name}, p = 0.5", "low"], "p = 0.5 is less diverse")
    for p in (0.5, 0.8, 0.9, 0.95, 1.0):
        better = judged.loc[f"LSTM, p = {p}", "high"] < judged.loc[f"k-gram, p = {p}", "low"]
        claim(better, f"the judge is less surprised by the LSTM at p = {p}")
    written = runs("generation_512_complete")
    total = written.groupby(["model", "way"])["ms"].sum().unstack() / 1e3
    cost = runs("top_p_cost_complete").rename(columns={"filter / sort": "cost"})
    cost = cost.groupby("logits")[["cost", "kept"]].median()
    return {
        "coin": fair["' 1'"],
        "draws": int(fair["draws"]),
        "tokens": written["position"].max() + 1,
        "vocab": written["vocab"].iloc[0],
        "hidden": written["hidden"].iloc[0],
        "step": total["one step"] + total["the prompt"],
        "all_logits": total["whole text, all logits"],
        "last_logits": total["whole text, last logits"],
        "peaked": cost.loc["peaked"],
        "flat": cost.loc["flat"],
        "files": files("top_p_3seqs", "top_p_quality", "generation_512_complete", "top_p_cost_complete"),
    }


@block("""
{seconds:.0f} seconds of training each on {kgram.threads} CPU cores, on a TinyStories sample ({train.stories:,}
stories, {targets} targets), measured on {valid.stories:,} other stories. GPT-2 tokens compacted to the
{kgram.vocab_size:,} that occur in training. Mean of {seeds} seeds, 95 % interval.

{table}

* The k-gram sees {kgram.kgram_k:.0f} tokens, as Kneser-Ney of order {kgram.kneser_ney_order:.0f} does. It is trained
  on the distinct contexts of the text, so each of its rows stands for every place where the context occurs.
* Without the newest token, as in the code that the notes began from, the same k-gram stands at {late:.2f} instead of
  {right:.2f} after {window_seconds:.0f} s.
* Started from the LSTM's embedding instead of a random one, the k-gram stands at {reused} instead of {fresh} after
  {reuse_seconds:.0f} s. The LSTM's took its {seconds:.0f} s to learn.
* No difference between LSTM and Transformer is shown: their intervals overlap.
* Tokens outside the training vocabulary ({outside:.1%} of the validation tokens) count for no model.

{files}
""")
def stories() -> dict:
    summary, text = runs("stories_5min_summary"), runs("stories_text_tinystories").set_index("split")
    loss, reuse = intervals(summary, "validation_loss"), runs("stories_reuse_summary")
    window = runs("stories_window_tinystories").set_index("model")
    starts = intervals(reuse, "validation_loss")
    claim(level(loss.drop("kgram")), "LSTM and Transformer differ in no interval")
    claim(verdict(starts, higher_is_better=False) == "from_lstm", "the LSTM's embedding helps most")
    return {
        "table": stories_table(summary, loss),
        "kgram": summary[summary["model"] == "kgram"].iloc[0],
        "seconds": summary["wall_s"].median(),
        "seeds": summary["seed"].nunique(),
        "train": text.loc["train"],
        "targets": millions(text.loc["train", "targets"], 2),
        "valid": text.loc["validation"],
        "outside": text.loc["validation", "outside"] / text.loc["validation", "targets"],
        "late": window.loc["window to t-1", "validation_loss"],
        "right": window.loc["window to t", "validation_loss"],
        "window_seconds": window["seconds"].iloc[0],
        "reused": mean_of(starts.loc["from_lstm"]),
        "fresh": mean_of(starts.loc["fresh"]),
        "reuse_seconds": reuse["wall_s"].median(),
        "files": files(
            "stories_5min_summary", "stories_text_tinystories", "stories_reuse_summary", "stories_window_tinystories"
        ),
    }


def stories_table(summary: pd.DataFrame, loss: pd.DataFrame) -> str:
    mean = summary.groupby("model")[
        ["parameters", "body", "perplexity", "bits_per_byte", "mixed_loss", "tokens"]
    ].mean()
    kgram = summary[summary["model"] == "kgram"].iloc[0]
    nats = kgram["kneser_ney_loss"]
    bits = nats * kgram["bits_per_byte"] / kgram["validation_loss"]  # the same text: bits are in proportion
    line = [f"Kneser-Ney, order {kgram['kneser_ney_order']:.0f}", "", f"{nats:.3f}"]
    lines = [[*line, f"{math.exp(nats):.1f}", f"{bits:.3f}", "", ""]]
    for model, name in NETS.items():
        row = mean.loc[model]
        label = f"{name} (k={kgram['kgram_k']:.0f})" if model == "kgram" else name
        line = [label, f"{millions(row['parameters'], 2)} ({millions(row['body'], 2)})", mean_of(loss.loc[model], 3)]
        line += [f"{row['perplexity']:.1f}", f"{row['bits_per_byte']:.3f}"]
        lines.append([*line, f"{row['mixed_loss']:.3f}", millions(row["tokens"])])
    head = ["model", "parameters (body)", "nats per token", "perplexity", "bits per byte", "mixed with Kneser-Ney"]
    return table([*head, "targets used"], lines)


@block("""
One training step (forward, backward, Adam) at hidden 256, V = {vocab:,}, {threads} CPU cores: {targets[3seqs.txt]:,}
targets of `3seqs.txt` (k=2), {targets[stories]:,} of TinyStories (k=3). All ways in this table have the same loss and
gradients. "Exact rungs": distinct contexts, the head in chunks, fused Adam, memory kept. Medians, lowest to highest
of {rounds} rounds; MB are the peak above model and optimiser state.

{table}

* How much of it is the text: in a batch of `3seqs.txt` {same[3seqs.txt]:.1f} targets share a context, in one of
  TinyStories {same[stories]:.2f}. The rest of the factor is gained on any text.
* The plain batch in a process that keeps its memory in large pages is itself faster: against that one the exact rungs
  are {kept[3seqs.txt]:.1f} times as fast on `3seqs.txt` and {kept[stories]:.1f} times on TinyStories (embedding).
* The counted limit of the embedding design's step on `3seqs.txt`, from operations, bytes and the machine's best
  rates, is {limit:.0f} ms; it takes {taken:.0f} ms ({share:.0%}).
* Step time grows with V to the power {slope[V][0]:.2f} to {slope[V][1]:.2f}, with N to {slope[N][0]:.2f} to
  {slope[N][1]:.2f}, with k to {slope[k][1]:.2f} at most ({kinds} models, V to {largest[V]:,}, N to {largest[N]:,}, k
  to {largest[k]}).
* Two threads instead of one (the notes' `OMP_NUM_THREADS=1`) make a step {threaded[0]:.1f} to {threaded[1]:.1f} times
  as fast. Two processes with a thread each reach {split[0]:.0%} to {split[1]:.0%} of one process with two, and the
  same losses.

{files}
""")
def cost() -> dict:
    ladder, growth = runs("cost_ladder_complete"), runs("cost_growth_complete")
    texts, kept = runs("cost_texts_complete").set_index("text"), ladder_factors("one batch, memory kept")
    limit = runs("cost_roof").set_index(["text", "rung"]).loc[("3seqs.txt", "memory kept")]
    processes = runs("cost_processes_complete")
    last = processes.groupby(["model", "processes"])["loss"].last().unstack()
    claim((last[1] - last[2]).abs().max() < 1e-4, "one and two processes end at the same loss")
    kinds = ("ladder", "parts", "texts", "growth", "threads", "processes")
    return {
        "table": cost_table(),
        "vocab": runs("kgram_designs_summary")["vocab"].iloc[0],
        "threads": ladder["threads"].iloc[0],
        "rounds": ladder["round"].nunique(),
        "targets": texts["batch_targets"],
        "same": same_context(),
        "kept": kept.median(axis=1).xs("embedding", level="design"),
        "limit": limit["limit, ms"],
        "taken": limit["ms"],
        "share": limit["share of limit"],
        "slope": slope_ends(growth),
        "kinds": growth["model"].nunique(),
        "largest": growth.groupby("axis")["value"].max(),
        "threaded": ratios(runs("cost_threads_complete"), "threads", "step_s", 1, 2),
        "split": ratios(processes, "processes", "tokens_per_s", 2, 1),
        "files": files(*(f"cost_{kind}_complete" for kind in kinds), "cost_roof"),
    }


def cost_table() -> str:
    rate = ladder_rates().groupby(level=["text", "design", "rung"]).median()
    peak = runs("cost_parts_complete").set_index(["text", "design", "rung"])["peak_mb"]
    by_loop, by_batch, lines = ladder_factors("loop"), ladder_factors("one batch"), []
    for text, name in TEXTS.items():
        for design in DESIGNS:
            plain = "lookup" if design == "one-hot" else "one batch"
            line = [name, design, *(f"{rate[text, design, rung]:,.0f}" for rung in ("loop", "memory kept"))]
            line += [median_of(by_loop.loc[(text, design)]), median_of(by_batch.loc[(text, design)], 1)]
            lines.append([*line, *(f"{peak[text, design, rung]:,.0f}" for rung in (plain, "memory kept"))])
    head = ["text", "design", "targets/s: loop", "exact rungs", "/ loop", "/ one batch", "MB: one batch", "exact rungs"]
    return table(head, lines)


def ratios(frame: pd.DataFrame, column: str, value: str, above: object, below: object) -> list[float]:
    """Smallest and largest over the models of the median ratio of `value` at two settings of `column`."""
    wide = frame.pivot(index=["model", "round"], columns=column, values=value)
    return (wide[above] / wide[below]).groupby("model").median().agg(["min", "max"]).tolist()


def slope_ends(growth: pd.DataFrame) -> dict[str, list[float]]:
    """For each axis the smallest and largest median slope of the models."""
    ends = growth_slopes(growth).groupby(level=[0, 1]).median().groupby(level=0).agg(["min", "max"])
    return {axis: row.tolist() for axis, row in ends.iterrows()}


def fill(text: str) -> str:
    """The text with each block between its marks written anew. ValueError where a mark is missing or unknown."""
    marked = re.findall(r"<!-- begin (\w+)", text)
    if sorted(marked) != sorted(BLOCKS):
        raise ValueError(f"README.md marks the blocks {marked}; expected each of {list(BLOCKS)} once")
    for name, write in BLOCKS.items():
        pattern = rf"(<!-- begin {name}[^>]*-->\n).*?(\n<!-- end {name} -->)"
        text = re.sub(pattern, lambda found, write=write: found[1] + write() + found[2], text, flags=re.S)
    return text


def main(path: Path = ROOT / "README.md") -> None:
    before = path.read_text(encoding="utf-8")
    after = fill(before)
    path.write_text(after, encoding="utf-8")
    print(f"{path.name}: {len(BLOCKS)} blocks from data/runs, {'changed' if after != before else 'as before'}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
