"""Every figure of the workbook as a function of its recorded run; the notebooks draw their own runs with them.

`python -m figures` draws all of them from data/runs. Each title says the finding; CAPTIONS.md says what was measured
and which run it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from data.records import intervals, load_runs
from data.text import VOCAB_SIZE
from figures.draw import COLOURS, DASHES, HATCHES, MARKERS, plot_loss_curves, plot_throughput, slide

DESIGNS = ["one-hot", "embedding", "convolution"]
LN_V = {"ln V": math.log(VOCAB_SIZE)}
NETS = {"kgram": "k-gram", "lstm": "LSTM", "transformer": "Transformer"}
TEXTS = {"3seqs.txt": "3seqs.txt", "stories": "TinyStories"}


class Entry(NamedTuple):
    draw: Callable[..., Figure]
    runs: tuple[str, ...]  # files of data/runs, without .csv, in the order of the function's arguments
    caption: str


GALLERY: dict[str, Entry] = {}


def figure_of(*runs: str):
    """Put a drawing function into the gallery, with the runs that it is drawn from. Its docstring is the caption."""

    def enter(draw: Callable[..., Figure]) -> Callable[..., Figure]:
        GALLERY[draw.__name__] = Entry(draw, runs, " ".join(draw.__doc__.split()))
        return draw

    return enter


def draw_recorded(name: str) -> Figure:
    """The figure of that name, drawn from data/runs."""
    if name not in GALLERY:
        raise ValueError(f"no figure is called {name!r}; there are {', '.join(GALLERY)}")
    return GALLERY[name].draw(*(load_runs(run, recorded_only=True) for run in GALLERY[name].runs))


def title_of(figure: Figure) -> str:
    """The finding, on one line."""
    return " ".join(figure.get_suptitle().split())


# ------------------------------------------------------------------------------------------------ what figures share


def line_style(number: int) -> dict:
    """Colour, dash and marker of the n-th line: any one of them tells it from the others."""
    place = number % len(COLOURS)
    return {"color": COLOURS[place], "linestyle": DASHES[place], "marker": MARKERS[place]}


def plot_spread(ax, values, number: int, label: str = "", **options) -> None:
    """A line of medians with whiskers from lowest to highest, from a grouped column."""
    middle, low, high = values.median(), values.min(), values.max()
    spread = [middle - low, high - middle]
    ax.errorbar(middle.index, middle, spread, label=label, capsize=5, **line_style(number), **options)


def set_log_ticks(axis, ticks, names=None) -> None:
    """Ticks at these values of a logarithmic axis (`ax.xaxis` or `ax.yaxis`), and no others."""
    axis.set_ticks(ticks, [f"{tick:,}" for tick in ticks] if names is None else names)
    axis.set_minor_locator(mpl.ticker.NullLocator())


def thousands(values) -> list[str]:
    """1000 -> 1k"""
    return [f"{value // 1000}k" if value >= 1000 else str(value) for value in values]


# ------------------------------------------------------------------------------------------------------ 1 sanity check


@figure_of("sanity_check", "sanity_check_summary")
def sanity_check_loss(history: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """An LSTM (E = 64, H = 64) on 3seqs.txt, blocks of 32 tokens, V = 50,257: the loss of each batch before its
    update. The floor is counted: 2 ln 2 / 93. Single batches dip below it, as they hold the three lines
    unequally.
    """
    unigram, floor = summary[["unigram", "floor"]].iloc[0]
    levels = LN_V | {f"token frequencies {unigram:.2f}": unigram, f"floor {floor:.4f}": floor}
    ax = plot_loss_curves(history, title="The LSTM falls from ln V to the exact floor of its text", levels=levels)
    ax.set(yscale="log", ylim=(0.006, 30))
    set_log_ticks(ax.yaxis, [0.01, 0.1, 1, 10])
    ax.get_legend().remove()
    return ax.figure


# ----------------------------------------------------------------------------------------------------------- 2 designs


@figure_of("kgram_dependency")
def kgram_dependency(moved: pd.DataFrame) -> Figure:
    """Which token moves which logits (k = 3, V = 40, 10 tokens): token j of a sequence is changed, and a square
    is dark where the logits of position t change. Left: the workbook's models. Right: the same net with a
    window that is one token older, a common fault.
    """
    figure, axes = slide("A correct window reaches the diagonal: it sees the newest token", columns=2, sharey=True)
    for ax, (window, rows) in zip(axes, moved.groupby("window", sort=False), strict=True):
        grid = rows.pivot(index="j", columns="t", values="moved").to_numpy()
        ax.imshow(grid, cmap="Greys", vmax=1.4, aspect="auto")
        ax.plot(range(len(grid)), range(len(grid)), color=COLOURS[4], linestyle=":", linewidth=5, label="newest token")
        ax.set(title=window, xlabel="position t of the logits", xticks=range(len(grid)), yticks=range(len(grid)))
    axes[0].set_ylabel("position j of the changed token")
    axes[1].legend(loc="lower left")
    return figure


@figure_of("kgram_designs_summary")
def kgram_parameters(summary: pd.DataFrame) -> Figure:
    """Weights of the three designs at k = 2, E = 64, H = 256, two inner layers, V = 50,257. The token table is
    what ids index, the head is H x V and V.
    """
    sizes = summary.drop_duplicates("model").set_index("model")
    head = sizes["hidden"] * sizes["vocab"] + sizes["vocab"]
    parts = {"token table": sizes["parameters"] - sizes["body"] - head, "body": sizes["body"], "head": head}
    figure, ax = slide("Tables hold the weights; the rest is tiny")
    left = 0 * head
    for number, (part, weights) in enumerate(parts.items()):
        style = {"color": [COLOURS[0], "black", COLOURS[4]][number], "hatch": HATCHES[number], "edgecolor": "white"}
        ax.barh(sizes.index, weights / 1e6, left=left / 1e6, label=part, height=0.6, **style)
        left = left + weights
    for row, total in enumerate(sizes["parameters"]):
        ax.annotate(f"{total / 1e6:.1f} M", (total / 1e6, row), (8, 0), textcoords="offset points", va="center")
    ax.set(xlabel="million parameters", xlim=(0, 1.12 * sizes["parameters"].max() / 1e6))
    ax.invert_yaxis()
    ax.legend(loc="lower right")
    return figure


WAYS = ["loop", "vectorised", "distinct contexts"]


@figure_of("kgram_speed")
def kgram_speed(speed: pd.DataFrame) -> Figure:
    """Targets per second, forward and backward, of the same three nets on 3seqs.txt (V = 50,257), computed in
    three ways with the same loss and gradients. Bars: medians of the rounds, whiskers: lowest to highest. The
    step from vectorised to distinct contexts is mostly this text's: few of its contexts differ.
    """
    speed = speed.assign(rate=speed["tokens"] / speed["step_s"])
    rate = speed.groupby(["model", "way"])["rate"].agg(["median", "min", "max"]).unstack().loc[DESIGNS]
    by_round = speed.pivot(index=["model", "round"], columns="way", values="rate")
    factor = (by_round["distinct contexts"] / by_round["loop"]).groupby("model").median()
    rounds = speed["round"].nunique()
    figure, ax = slide(
        f"Same mathematics, {factor.min():.0f} to {factor.max():.0f} times the loop's tokens per second",
        note=f"medians of {rounds} rounds, whiskers: lowest to highest; 3seqs.txt",
    )
    for number, (way, colour) in enumerate(zip(WAYS, ["black", COLOURS[5], COLOURS[1]], strict=True)):
        middle, low, high = (rate[kind][way] for kind in ("median", "min", "max"))
        spots = np.arange(len(DESIGNS)) + 0.28 * (number - 1)
        spread = [middle - low, high - middle]
        ax.bar(spots, middle, 0.26, yerr=spread, capsize=6, color=colour, label=way, ecolor="0.35")
        for spot, value, top in zip(spots, middle, high, strict=True):
            ax.annotate(f"{value:,.0f}", (spot, top), (0, 5), textcoords="offset points", ha="center", weight="bold")
    ax.set(ylabel="tokens/s", ylim=(0, 1.25 * rate["max"].max().max()))
    ax.set_xticks(range(len(DESIGNS)), DESIGNS)
    ax.yaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))
    ax.legend(loc="upper center", ncols=3)
    return figure


@figure_of("kgram_designs")
def kgram_loss_curves(steps: pd.DataFrame) -> Figure:
    """Training loss of the three designs at the notes' setting (k = 2, E = 64, H = 256, Adam at 1e-3, batches
    of 32 sequences of 3seqs.txt), against steps and against seconds of training. All see the same batches.
    """
    seeds = steps["seed"].nunique()
    figure, axes = slide(
        "Embedding and convolution learn alike; one-hot hardly starts in 20 steps",
        columns=2,
        sharey=True,
        note=f"lines: mean of {seeds} seeds, bands: lowest to highest",
    )
    for ax, x in zip(axes, ("step", "elapsed_s"), strict=True):
        plot_loss_curves(steps, x, ax=ax, levels=LN_V)
    axes[0].set_xlabel("training step")
    axes[1].set(xlabel="training time (s)", ylabel="")
    axes[1].get_legend().remove()
    return figure


@figure_of("kgram_designs")
def kgram_throughput(steps: pd.DataFrame) -> Figure:
    """Targets per second in training, forward, backward and Adam, distinct contexts, at the setting of
    kgram_loss_curves. Warm-up steps are left out.
    """
    timed = steps[~steps["warm_up"]]
    rate = (timed["tokens"] / timed["step_s"]).groupby([timed["seed"], timed["model"]]).median().unstack()
    slower = 1 - rate["one-hot"] / rate["embedding"]
    title = f"Training, one-hot is {slower.min():.0%} to {slower.max():.0%} slower than embedding, seed by seed"
    return plot_throughput(steps, title=title).figure


@figure_of("kgram_designs", "kgram_first_scale")
def kgram_first_scale(steps: pd.DataFrame, rescaled: pd.DataFrame) -> Figure:
    """The same 20 steps. Rescaled: one-hot rows drawn from N(0, 1), the embedding MLP's first layer times the
    square root of 6, so that the first sums of both have variance 2.
    """
    both = pd.concat([steps, rescaled])
    return plot_loss_curves(both, title="First weights move the loss more than the design does", levels=LN_V).figure


@figure_of("kgram_floors", "kgram_floors_summary")
def kgram_floors(steps: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Training loss on 3seqs.txt (compact vocabulary) for k = 1, 2, 3, and the exact floor of each k: the
    entropy of the next token given the last k, found by counting. Single batches scatter around it.
    """
    floors = summary.set_index("context")["floor"]
    above = summary[DESIGNS].sub(summary["floor"], axis=0).max().max()
    title = f"All three designs come within {above:.3f} nats of the exact floor of their k"
    figure, axes = slide(title, columns=3, sharey=True, note="one seed")
    for ax, (k, rows) in zip(axes, steps.groupby("k"), strict=True):
        floor = floors[f"k={k}"]
        plot_loss_curves(rows, ax=ax, title=f"k = {k}, floor {floor:.4f}", levels={"": floor})
        ax.set(yscale="log", ylabel="", ylim=(0.008, 8))
        for line in ax.get_lines()[:3]:
            line.set_linewidth(2)
        set_log_ticks(ax.yaxis, [0.01, 0.1, 1])
        ax.xaxis.set_major_locator(mpl.ticker.MultipleLocator(50))
    axes[0].set_ylabel("loss (nats per token)")
    for ax in axes[1:]:
        ax.get_legend().remove()
    return figure


@figure_of("kgram_stories", "kgram_stories_summary")
def kgram_stories(steps: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Training loss on the small built-in stories (k = 3, H = 128, batches of 8 stories of up to 64 tokens,
    compact vocabulary). All see the same batches.
    """
    V = summary["vocab"].iloc[0]
    title = "On stories the embedding MLP learns fastest, as PyTorch draws the three"
    return plot_loss_curves(steps, title=title, levels={f"ln {V}": math.log(V)}).figure


# ------------------------------------------------------------------------------------------------------------- 3 top-p


@figure_of("top_p_by_hand")
def top_p_cumulative(steps: pd.DataFrame) -> Figure:
    """Four words by falling probability, one standing on the other; p = 0.6. A draw is a uniform number times
    the mass kept: go up to it, then right to the first bar that reaches it.
    """
    figure, ax = slide("The word that crosses p belongs to the nucleus (blue)")
    x = range(len(steps))
    colours = [COLOURS[0] if kept else "0.8" for kept in steps["kept"]]
    ax.bar(x, steps["probability"], bottom=steps["before"], color=colours, width=0.85)
    for i, row in steps.iterrows():
        label, spot = f"{row['probability']:.2f}", (i, row["cumulative"])
        ax.annotate(label, spot, (0, 5), textcoords="offset points", ha="center")
    ax.axhline(0.6, color=COLOURS[1], linestyle="--")
    ax.annotate("p = 0.6", (3.45, 0.6), (0, -7), textcoords="offset points", ha="right", va="top", color=COLOURS[1])
    ax.plot([-0.5, 0.55], [0.72, 0.72], color="0.2", linewidth=2, marker=">", markevery=[1])
    ax.annotate("0.9 · 0.8 = 0.72", (-0.45, 0.72), (0, 8), textcoords="offset points")
    ax.set_xticks(x, steps["word"])
    ax.set(ylabel="cumulative probability", xlim=(-0.5, 3.5), ylim=(0, 1.12))
    ax.set_xlabel("a draw: a uniform number, here 0.9, times the mass kept, 0.8")
    return figure


@figure_of("top_p_3seqs")
def top_p_3seqs(exact: pd.DataFrame) -> Figure:
    """Continuations of '0' by an LSTM at the floor of 3seqs.txt, at temperatures 1, 2 and 3, all from the same
    uniform numbers. Left: the share that is exactly a line of the text, to its 32nd token. Right: the share
    that goes on with ' 1', where one half is right. Whiskers: 95 % Wilson intervals.
    """
    draws = exact["draws"].iloc[0]
    figure, axes = slide(
        "A cut repairs a heated model; a small p removes one side of a fair coin",
        columns=2,
        sharey=True,
        note=f"{draws:,} continuations of '0' each; whiskers: 95 % intervals",
    )
    for number, (temperature, rows) in enumerate(exact.groupby("temperature")):
        x = rows["p"].where(rows["p"] > 0, 0.3) + 0.006 * (number - 1)
        for ax, column, prefix in zip(axes, ("exact", "' 1'"), ("exact_", ""), strict=True):
            spread = [rows[column] - rows[prefix + "low"], rows[prefix + "high"] - rows[column]]
            spread = [part.clip(0) for part in spread]  # rounding
            ax.errorbar(x, rows[column], spread, capsize=5, label=f"T = {temperature}", **line_style(number))
    for ax in axes:
        ax.set_xticks([0.3, 0.4, 0.5, 0.6, 0.8, 0.9, 1.0], ["greedy", "   .4", ".5", ".6", ".8", ".9", "1"])
        ax.set(xlabel="p", ylim=(-0.03, 1.05))
    axes[0].set(ylabel="share of the continuations", title="Exact lines")
    axes[0].legend(loc="lower left")
    axes[1].axhline(0.5, color="0.35", linewidth=1.5, linestyle=(0, (2, 2)))
    axes[1].set_title("Those that go on with ' 1'")
    return figure


@figure_of("top_p_nucleus_size")
def top_p_nucleus_size(sizes: pd.DataFrame) -> Figure:
    """A story that an LSTM (small built-in stories) writes at p = 0.9: how many tokens the nucleus holds at
    each of its first tokens.
    """
    sizes = sizes.head(40)
    figure, ax = slide("The nucleus (p = 0.9) holds one token inside a phrase and several where the story has a choice")
    bars = ax.bar(sizes.index, sizes["kept"], color=np.where(sizes["kept"] > 1, COLOURS[1], "0.75"))
    ax.bar_label(bars, [kept if kept > 1 else "" for kept in sizes["kept"]], weight="bold")
    ax.set_xticks(sizes.index, sizes["token"].str.strip(), rotation=90, fontsize=16)
    ax.set(ylabel="tokens in the nucleus", xlim=(-0.7, len(sizes) - 0.3))
    ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    return figure


SHADES = mpl.colors.ListedColormap(plt.cm.Blues(np.linspace(0.75, 0, 256)))  # dark: improbable


def draw_text(ax, rows: pd.DataFrame, width: int = 68) -> None:
    """A text token by token: shaded by its probability, framed where the nucleus lacks it, grey where not predicted."""
    x = y = 0
    for token, probability, outside in zip(rows["token"], rows["probability"], rows["outside"], strict=True):
        if token.startswith(" ") and x + len(token) > width:
            x, y = -1, y + 1
        box = {"boxstyle": "square,pad=0.06", "facecolor": "0.85" if math.isnan(probability) else SHADES(probability)}
        box |= {"edgecolor": "black" if outside else "none", "linewidth": 4}
        style = {"family": "monospace", "fontsize": 18.5, "color": "white" if probability < 0.35 else "black"}
        for layer in ({"bbox": box}, {"zorder": 4}):  # the boxes, then the words above all boxes
            ax.text(x + len(token) - len(token.lstrip()), -y, token.strip(), **style, **layer)
        x += len(token)
    ax.set(xlim=(-0.5, width + 2), ylim=(-y - 0.7, 0.9))
    ax.axis("off")


@figure_of("top_p_coloured_story")
def top_p_coloured_story(told: pd.DataFrame) -> Figure:
    """A held-out story (small built-in stories) under the k-gram (k = 3) and the LSTM. Shade: the probability
    that the model gave to the token, dark is improbable. Framed: outside the nucleus at p = 0.8. Grey: nobody
    predicted it.
    """
    lacks = told.groupby("model")["outside"].sum()
    title = (
        f"At p = 0.8 the k-gram's nucleus forbids {lacks['k-gram']} tokens of this story, the LSTM's {lacks['LSTM']}"
    )
    figure, axes = slide(title, rows=2, note="black frame: outside the nucleus; grey: not predicted")
    for ax, (name, rows) in zip(axes, told.groupby("model", sort=False), strict=True):
        draw_text(ax, rows)
        ax.set_title(name)
    scale = plt.cm.ScalarMappable(mpl.colors.Normalize(0, 1), SHADES)
    figure.colorbar(scale, ax=axes, label="probability of the token", pad=0.01, aspect=40)
    return figure


@figure_of("top_p_quality")
def top_p_quality_diversity(groups: pd.DataFrame) -> Figure:
    """Diversity (1 - self-BLEU within groups of 16 stories) and perplexity under an independent LSTM, of
    stories written by two models at six settings, and of held-out stories. Bars: 95 % intervals over the
    groups.
    """
    figure, ax = slide(
        "A higher p buys diversity; a better model lowers the whole curve",
        note="numbers: p; bars: 95 % intervals over groups of 16 stories",
    )
    spread = {column: intervals(groups, column, by="writer") for column in ("self-BLEU", "perplexity")}
    spots = {
        "k-gram": [(14, -24), (12, -26), (6, -34), (-44, 24), (22, -28), (14, 8)],
        "LSTM": [(14, 10), (10, 14), (-66, 22), (-34, 54), (18, 46), (26, 12)],
        "held-out stories": [],
    }
    for number, (name, offsets) in enumerate(spots.items()):
        rows = [writer for writer in spread["perplexity"].index if writer.startswith(name)]
        x, y = (spread[column].loc[rows] for column in spread)
        style = line_style(number) | {"marker": "os*"[number], "markersize": [10, 10, 28][number], "label": name}
        ax.errorbar(1 - x["mean"], y["mean"], y["high"] - y["mean"], x["high"] - x["mean"], elinewidth=1.5, **style)
        for writer, spot in zip(rows, offsets, strict=False):
            at = (1 - x.loc[writer, "mean"], y.loc[writer, "mean"])
            line = {"arrowstyle": "-", "linewidth": 1, "color": "0.4"}
            label = writer.split(", ")[1].removeprefix("p = ")
            ax.annotate(label, at, spot, textcoords="offset points", fontsize=17, arrowprops=line)
    ax.set(yscale="log", xlabel="diversity: 1 - self-BLEU", ylabel="perplexity under the judge", ylim=(1.15, 4.4))
    set_log_ticks(ax.yaxis, [1.25, 1.5, 2, 2.5, 3, 4], ["1.25", "1.5", "2", "2.5", "3", "4"])
    ax.legend(loc="center right")
    return figure


def draw_next_tokens(ax, rows: pd.DataFrame) -> None:
    """Bars of the most probable next tokens, blue where the nucleus keeps them."""
    ax.barh(range(len(rows)), rows["probability"], color=np.where(rows["kept"], COLOURS[0], "0.8"))
    ax.set_yticks(range(len(rows)), rows["token"])
    ax.invert_yaxis()
    ax.locator_params(axis="x", nbins=4)
    p, temperature, kept = rows[["p", "temperature", "nucleus"]].iloc[0]
    ax.set(xlabel="probability", title=f"p = {p:.2f}, T = {temperature:.1f}\n{kept:.0f} kept")


@figure_of("top_p_next_token")
def top_p_next_token(table: pd.DataFrame) -> Figure:
    """The most probable next tokens of an LSTM (small built-in stories) after 'Once upon a time there was a
    child called'. Blue: in the nucleus.
    """
    title = "'… there was a child called': p cuts the list, temperature lengthens it (blue: kept)"
    settings = table.groupby(["p", "temperature"], sort=False)
    figure, axes = slide(title, columns=len(settings), sharex=True)
    for ax, (_, rows) in zip(axes, settings, strict=True):
        draw_next_tokens(ax, rows)
    return figure


@figure_of("generation_latency")
def generation_latency(growth: pd.DataFrame) -> Figure:
    """Milliseconds for one more token (V = 50,257, H = 256) after texts of three lengths: the whole text
    again with all logits, with the last row of logits only, and one step from a kept state.
    """
    names, lengths = growth["model"].unique(), sorted(growth["length"].unique())
    figure, axes = slide(
        f"One step costs the same after {lengths[0]} tokens and after {lengths[-1]:,}",
        columns=2,
        sharey=True,
        note=f"medians of {growth['round'].nunique()} rounds, whiskers: lowest to highest",
    )
    for ax, name in zip(axes, names, strict=True):
        for number, (way, rows) in enumerate(growth[growth["model"] == name].groupby("way", sort=False)):
            plot_spread(ax, rows.groupby("length")["ms"], number, way)
        ax.set(xscale="log", yscale="log", xlabel="tokens in the text so far", title=name)
        set_log_ticks(ax.xaxis, lengths, thousands(lengths))
        set_log_ticks(ax.yaxis, [3, 10, 30, 100, 300])
    axes[0].set_ylabel("ms for the next token")
    axes[0].legend(loc="upper left", fontsize=17)
    return figure


# ----------------------------------------------------------------------------------------------------------- 4 stories


def at_validations(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that were validated, with the validation loss as loss and the tokens used since the last of them."""
    frame = frame.assign(used=frame.groupby(["model", "seed"])["tokens"].cumsum())
    rows = frame.dropna(subset="validation_loss")
    last = ~rows.duplicated(["model", "seed"], keep="last")
    step = rows["step"].astype(float).where(~last, rows[last].groupby("model")["step"].transform("median"))
    rows = rows.assign(loss=rows["validation_loss"], step=step)
    seeds = rows.groupby(["model", "step"])["seed"].transform("nunique")
    rows = rows[seeds == rows["seed"].nunique()]  # a mean of fewer seeds would make the line jump
    return rows.assign(tokens=rows.groupby(["model", "seed"])["used"].diff().fillna(rows["used"]))


def draw_three_curves(steps: pd.DataFrame, levels: dict[str, float], title: str) -> Figure:
    """Validation loss against steps, tokens and seconds."""
    steps = steps.replace({"model": NETS})
    steps = pd.concat([steps[steps["model"] == name] for name in NETS.values()])
    seeds = steps["seed"].nunique()
    figure, axes = slide(title if seeds > 1 else f"{title} (one seed)", columns=3, sharey=True)
    labels = {"step": "training step", "tokens": "targets used", "elapsed_s": "training time (s)"}
    for ax, (x, label) in zip(axes, labels.items(), strict=True):
        plot_loss_curves(at_validations(steps), x, ax=ax)
        for number, (name, level) in enumerate(levels.items()):
            ax.axhline(level, color="0.35", linewidth=2, linestyle=[":", (0, (6, 3))][number], label=name)
        ax.set(xscale="log", ylabel="", xlabel=label)
        ax.margins(y=0.12)
        factors = (1,) if x == "tokens" else (1, 3)
        ax.xaxis.set_major_locator(mpl.ticker.FixedLocator([f * 10**e for e in range(10) for f in factors]))
        ax.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
        ax.minorticks_off()
        ax.get_legend().remove()
    axes[0].set_ylabel("validation loss (nats per token)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=5, fontsize=17)
    return figure


@figure_of("stories_live", "stories_live_summary")
def stories_live_curves(steps: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Three models trained live for a few seconds each on the built-in stories (compact vocabulary, one seed).
    Broken lines: counts on the same stories.
    """
    levels = {f"Kneser-Ney, order {order}": summary[f"kneser_ney_{order}"].iloc[0] for order in (4, 2)}
    return draw_three_curves(steps, levels, "Live, built-in stories: who leads depends on what is counted")


@figure_of("stories_live_positions")
def stories_live_positions(positions: pd.DataFrame) -> Figure:
    """Validation loss by position in the story after the live training of stories_live_curves. A point stands
    for the positions up to the next mark.
    """
    figure, ax = slide("After seconds of training, reading the whole story has not paid off yet", note="one seed")
    for number, (model, rows) in enumerate(positions.groupby("model", sort=False)):
        ax.plot(rows["from"], rows["loss"], label=model, **line_style(number))
    ax.set(xscale="log", xlabel="position in the story", ylabel="loss (nats per token)")
    set_log_ticks(ax.xaxis, positions["from"].unique().tolist())
    ax.legend(loc="upper left", ncols=3)
    ax.set_ylim(top=1.15 * positions["loss"].max())
    return figure


@figure_of("stories_5min", "stories_5min_summary")
def stories_curves(steps: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Validation loss on TinyStories, five minutes of training on two CPU cores for each model and seed,
    compact vocabulary. Broken line: Kneser-Ney of order 4, which sees three tokens, as the k-gram does.
    """
    counted = summary.loc[summary["model"] == "kgram", "kneser_ney_loss"].iloc[0]
    title = "TinyStories, five minutes each: the whole story beats its last three tokens"
    return draw_three_curves(steps, {"Kneser-Ney, order 4": counted}, title)


@figure_of("stories_5min_summary")
def stories_mixture(summary: pd.DataFrame) -> Figure:
    """Validation loss of the five-minute runs, alone and mixed with Kneser-Ney of order 4 (the weight is fitted
    on one half of the targets for the other). Bars: mean over seeds, whiskers: lowest to highest.
    """
    summary = summary.replace({"model": NETS})
    counted = summary.loc[summary["model"] == "k-gram", "kneser_ney_loss"].iloc[0]
    figure, ax = slide(
        "Counts still help every net, the LSTM least",
        note=f"bars: mean of {summary['seed'].nunique()} seeds, whiskers: lowest to highest",
    )
    ax.bar_label(ax.bar([-0.8], [counted], 0.36, color="0.5"), fmt="%.2f", weight="bold", padding=4)
    for number, (column, label) in enumerate({"validation_loss": "alone", "mixed_loss": "with counts"}.items()):
        each = summary.groupby("model")[column].agg(["mean", "min", "max"]).loc[list(NETS.values())]
        spread = [each["mean"] - each["min"], each["max"] - each["mean"]]
        style = {"color": COLOURS[0] if number == 0 else COLOURS[5], "hatch": HATCHES[number], "edgecolor": "white"}
        spots = [place + 0.42 * number for place in range(3)]
        bars = ax.bar(spots, each["mean"], 0.38, yerr=spread, capsize=6, label=label, **style)
        ax.bar_label(bars, fmt="%.2f", weight="bold", padding=4)
    ax.set_xticks([-0.8, 0.21, 1.21, 2.21], ["Kneser-Ney\norder 4", *NETS.values()])
    ax.set(ylabel="validation loss (nats per token)", ylim=(0, 3.9))
    ax.legend(loc="upper right", ncols=2)
    return figure


@figure_of("stories_5min_positions")
def stories_positions(positions: pd.DataFrame) -> Figure:
    """Validation loss of the five-minute runs by position in the story, mean over seeds, and what it is less
    than the k-gram's at the same position. A point stands for the positions up to the next mark, of 1,000
    targets or more.
    """
    positions = positions.replace({"model": NETS}).query("targets >= 1000")
    table = positions.pivot_table(index="from", columns="model", values="loss")[list(NETS.values())]
    saved = -table.drop(columns="k-gram").sub(table["k-gram"], axis=0)
    figure, axes = slide(
        "Reading the whole story is worth most from about the tenth token on",
        columns=2,
        note=f"mean of {positions['seed'].nunique()} seeds; the point at 17 stands for positions 17 to 32, and so on",
    )
    for ax, values, first in ((axes[0], table, 0), (axes[1], saved, 1)):
        for number, model in enumerate(values.columns, first):
            ax.plot(values.index, values[model], label=model, **line_style(number))
        ax.set(xscale="log", xlabel="position in the story")
        set_log_ticks(ax.xaxis, [1, 2, 3, 5, 9, 17, 33, 65, 129, 257])
        ax.tick_params(axis="x", labelsize=17)
    axes[0].set_ylabel("loss (nats per token)")
    axes[1].set(ylabel="nats saved against the k-gram", ylim=0)
    axes[0].legend()
    return figure


@figure_of("stories_k_summary")
def stories_k(summary: pd.DataFrame) -> Figure:
    """Validation loss on TinyStories against the k of the k-gram after 45 seconds of training (one seed each),
    of Kneser-Ney counts of the same context, and of their mixture.
    """
    by_k = summary.sort_values("kgram_k").set_index("kgram_k")
    figure, ax = slide("TinyStories, 45 s: counts lead from k = 2 on, the mixture everywhere", note="one seed each")
    columns = {"validation_loss": "k-gram", "kneser_ney_loss": "Kneser-Ney", "mixed_loss": "both mixed"}
    for number, (column, label) in enumerate(columns.items()):
        ax.plot(by_k.index, by_k[column], label=label, **line_style(number))
    ax.set(xlabel="k, tokens of context", ylabel="validation loss (nats per token)")
    ax.legend()
    return figure


@figure_of("stories_window_tinystories", "stories_window_builtin")
def stories_window(real: pd.DataFrame, builtin: pd.DataFrame) -> Figure:
    """Validation loss of the same k-gram (k = 3) with the window of the workbook and with one that ends a token
    earlier, as in the code that the notes began from, trained for the same seconds. One seed each.
    """
    loss = {"TinyStories": real, "built-in stories": builtin}
    loss = pd.DataFrame({text: rows.set_index("model")["validation_loss"] for text, rows in loss.items()})
    costs = loss.loc["window to t-1"] - loss.loc["window to t"]
    title = f"Not seeing the newest token costs {costs.min():.1f} to {costs.max():.1f} nats per token"
    seconds = [
        f"{text}\n({rows['seconds'].iloc[0]:g} s of training)" for text, rows in zip(loss, (real, builtin), strict=True)
    ]
    figure, ax = slide(title, note="one seed each")
    for number, (window, label) in enumerate({"window to t": "t-2 … t", "window to t-1": "t-3 … t-1"}.items()):
        style = {"color": COLOURS[number], "hatch": HATCHES[number], "edgecolor": "white", "label": f"reads {label}"}
        bars = ax.bar(np.arange(2) + 0.42 * number, loss.loc[window], 0.38, **style)
        ax.bar_label(bars, fmt="%.2f", weight="bold", padding=4)
    ax.set_xticks(np.arange(2) + 0.21, seconds)
    ax.set(ylabel="validation loss (nats per token)", ylim=(0, 1.25 * loss.max().max()))
    ax.legend(loc="upper right", ncols=2)
    return figure


# -------------------------------------------------------------------------------------------------------------- 5 cost

CLIMBED = ["loop", "one batch", "lookup", "distinct", "chunked head", "fused Adam", "memory kept"]
CLIMBED += ["corpus", "≈ compact", "≈ bfloat16", "≈ compiled"]


@figure_of("cost_ladder_complete")
def cost_ladder(ladder: pd.DataFrame) -> Figure:
    """Targets per second of one training step (forward, backward, Adam) on each rung, at V = 50,257, H = 256:
    992 targets of 3seqs.txt (k = 2), 2,016 of TinyStories (k = 3). Medians of five rounds, whiskers: lowest to
    highest. Grey: rungs with another result, or whose targets are stood for by counts.
    """
    ladder = ladder.assign(rate=ladder["tokens"] / ladder["step_s"])
    rounds = ladder.pivot(index=["text", "design", "round"], columns="rung", values="rate")
    gain = (rounds["memory kept"] / rounds["loop"]).groupby(level=[0, 1]).median()
    most, real = gain["3seqs.txt", "embedding"], gain["stories", "embedding"]
    title = f"The same mathematics {most:.0f} times as fast, {real:.0f} times on real stories (embedding)"
    figure, axes = slide(title, columns=2, sharey=True)
    for ax, (text, name) in zip(axes, TEXTS.items(), strict=True):
        for number, design in enumerate(DESIGNS):
            here = (ladder["text"] == text) & (ladder["design"] == design) & ladder["rung"].isin(CLIMBED)
            rows = ladder[here]
            spots = rows["rung"].map(CLIMBED.index)
            plot_spread(ax, rows["rate"].groupby(spots), number, design, markersize=8)
        ax.axvspan(6.5, len(CLIMBED) - 0.5, color="0.93", zorder=0)
        ax.set(yscale="log", title=name)
        ax.set_xticks(range(len(CLIMBED)), CLIMBED, rotation=50, ha="right", rotation_mode="anchor", fontsize=16)
        ax.text(10.4, 7, "another result, or\ntargets stood for", ha="right", color="0.3", fontsize=16)
    axes[0].set_ylabel("targets/s")
    axes[0].legend(loc="upper left")
    return figure


@figure_of("cost_shares_complete")
def cost_shares(shares: pd.DataFrame) -> Figure:
    """Distinct contexts as a share of the targets of a batch, against k (32 sequences) and against the batch's
    size (k = 3).
    """
    at = shares.query("k == 3 and batch_size == 32").drop_duplicates("text").set_index("text")["share"]
    stories = at.drop("3seqs.txt")
    title = f"In 32 stories {stories.min():.0%} to {stories.max():.0%} of the contexts are new at k = 3; "
    title += f"in 3seqs.txt {at['3seqs.txt']:.0%}"
    figure, axes = slide(title, columns=2, sharey=True)
    for ax, x, fixed in zip(axes, ("k", "batch_size"), ("batch_size == 32", "k == 3"), strict=True):
        for number, (text, rows) in enumerate(shares.query(fixed).groupby("text", sort=False)):
            rows = rows.drop_duplicates(x).sort_values(x)
            ax.plot(rows[x], 100 * rows["share"], label=text, **line_style(number))
        ax.set_ylim(0, 105)
    axes[0].set(xlabel="k (32 sequences)", ylabel="distinct contexts (% of targets)")
    axes[1].set(xlabel="sequences in a batch (k = 3)", xscale="log")
    set_log_ticks(axes[1].xaxis, [1, 4, 16, 64, 256, 1024])
    axes[0].legend(loc="center right")
    return figure


PARTS = ["net", "head", "loss", "backward", "optimiser"]
PART_STYLES = list(zip([COLOURS[i] for i in (5, 0, 4, 1, 2)], ["", "//", "..", "", "xx"], strict=True))


@figure_of("cost_parts_complete")
def cost_parts(parts: pd.DataFrame) -> Figure:
    """Where the time of a step goes on each rung (embedding design), by torch.profiler, in % of the step, and
    the whole step's time. Settings as in cost_ladder.
    """
    parts = parts.assign(net=parts["net"] + parts["context"])
    last = parts.query("design == 'embedding' and rung == 'memory kept'").set_index("text")
    share = last[["head", "backward"]].sum(axis=1) / last[PARTS].sum(axis=1)
    title = f"With all exact rungs head and backward take {share['3seqs.txt']:.0%} of a step, "
    title += f"{share['stories']:.0%} on stories (embedding)"
    figure, axes = slide(title, columns=2, sharey=True)
    rungs = [rung for rung in CLIMBED if rung != "lookup"]
    for ax, (text, name) in zip(axes, TEXTS.items(), strict=True):
        here = (parts["text"] == text) & (parts["design"] == "embedding")
        rows = parts[here].set_index("rung").loc[rungs, PARTS]
        total, left = rows.sum(axis=1), 0
        for part, (colour, hatch) in zip(PARTS, PART_STYLES, strict=True):
            share = 100 * rows[part] / total
            ax.barh(rungs, share, left=left, color=colour, hatch=hatch, edgecolor="white", label=part)
            left = left + share
        for spot, seconds in enumerate(total):
            label = f"{seconds:,.1f} s" if seconds > 1 else f"{1e3 * seconds:,.1f} ms"
            ax.text(102, spot, label, va="center", fontsize=17)
        ax.set(title=name, xlabel="% of the step; times: one profile", xlim=(0, 132))
        ax.set_xticks(range(0, 101, 25))
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


@figure_of("cost_roof", "cost_rates_complete")
def cost_roof(roof: pd.DataFrame, rates: pd.DataFrame) -> Figure:
    """Each exact rung of the embedding design: operations per second against the operations per byte that its
    step cannot do without, both counted from the shapes, and the machine's limit from its measured best rates.
    """
    best, intensity = rates.iloc[0], np.geomspace(0.05, 2000, 200)
    share = roof[roof["text"] == "3seqs.txt"].set_index("rung")["share of limit"]
    title = (
        f"The loop reaches {share['loop']:.0%} of the machine's limit, the last exact rung {share['memory kept']:.0%}"
    )
    note = "embedding design, 3seqs.txt; limit of a step: the sum of its parts' limits"
    figure, ax = slide(title, note=note)
    limit = np.minimum(best["float32"], best["memory"] * intensity) / 1e9
    ax.plot(intensity, limit, color="black", label="the machine's limit")
    spots = {"loop": (14, -6), "one batch": (14, 8), "distinct": (14, -16), "chunked head": (14, -4)}
    spots |= {"fused Adam": (-16, -12), "memory kept": (16, 4)}
    for number, (text, rows) in enumerate(roof.groupby("text", sort=False)):
        style = {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": "", "markersize": 11}
        ax.plot(rows["FLOP/byte"], rows["GFLOP/s"], label=TEXTS[text], **style)
        for rung, (x, y) in (spots if number == 0 else {"memory kept": (16, 2)}).items():
            row = rows.set_index("rung").loc[rung]
            where = {"textcoords": "offset points", "ha": "left" if x > 0 else "right", "fontsize": 17}
            ax.annotate(rung, (row["FLOP/byte"], row["GFLOP/s"]), (x, y), **where)
    ax.set(xscale="log", yscale="log", ylabel="GFLOP/s", ylim=(1, 400))
    ax.set_xlabel("operations per byte that must be moved (FLOP/byte)")
    set_log_ticks(ax.yaxis, [1, 10, 100])
    set_log_ticks(ax.xaxis, [0.1, 1, 10, 100, 1000])
    ax.legend(loc="lower right")
    return figure


@figure_of("cost_growth_complete")
def cost_growth(growth: pd.DataFrame) -> Figure:
    """Time and peak memory (above model and optimiser state) of a training step when one of k, V, N (targets),
    E, H grows; the others stay at k = 3, V = 10,000, N = 1,024, E = 64, H = 128. Random tokens: every context
    is distinct. Lines: medians of the rounds, bands: lowest to highest.
    """
    title = "N costs in proportion, V and H mostly less, k and E hardly anything; k costs one-hot memory"
    figure, axes = slide(title, rows=2, columns=5, sharey="row")
    kinds = list(growth["model"].unique())
    for column, (axis, rows) in zip(axes.T, growth.groupby("axis", sort=False), strict=True):
        for kind, part in rows.groupby("model", sort=False):
            style, part = line_style(kinds.index(kind)) | {"markersize": 6, "linewidth": 2}, part.groupby("value")
            low, middle, high = (1e3 * part["step_s"].quantile(share) for share in (0, 0.5, 1))
            column[0].plot(middle.index, middle, label=kind, **style)
            column[0].fill_between(middle.index, low, high, color=style["color"], alpha=0.2, linewidth=0)
            column[1].plot(part["peak_mb"].max(), **style)
        values = sorted(rows["value"].unique())
        ends = [values[0], values[len(values) // 2], values[-1]]
        for ax in column:
            ax.set(xscale="log", yscale="log")
            set_log_ticks(ax.xaxis, ends, thousands(ends) if ax is column[1] else [""] * 3)
            ax.tick_params(labelsize=17)
        column[1].set_xlabel(axis)
    axes[0, 0].set_ylabel("step (ms)")
    axes[1, 0].set_ylabel("peak (MB)")
    handles = dict(zip(*reversed(axes[0, 1].get_legend_handles_labels()), strict=True))
    figure.legend([handles[kind] for kind in kinds], kinds, loc="outside lower center", ncols=5)
    return figure


@figure_of("cost_latency_complete")
def cost_latency(latency: pd.DataFrame) -> Figure:
    """Milliseconds for one new token after texts of three lengths (V = 50,257, H = 256), and of the head alone.
    Bars: medians, whiskers: quartiles.
    """
    kinds = [kind for kind in latency["model"].unique() if kind != "the head"]
    lengths = sorted(set(latency["text"]) - {0})
    spread = latency.groupby(["text", "model"])["ms"].quantile([0.25, 0.5, 0.75]).unstack()
    head = spread.loc[(0, "the head"), 0.5]
    times = spread[0.5].drop("the head", level="model").groupby(level="model").max() / head
    title = f"A new token costs at most {times.drop('Transformer').max():.1f} times the head, "
    title += f"in the Transformer {times['Transformer']:.1f} times, whatever came before"
    figure, ax = slide(title, note="bars: medians, whiskers: quartiles")
    for number, length in enumerate(lengths):
        rows = spread.loc[length].loc[kinds]
        style = {"color": COLOURS[number], "hatch": HATCHES[number], "edgecolor": "white"}
        error = [rows[0.5] - rows[0.25], rows[0.75] - rows[0.5]]
        spots = np.arange(len(kinds)) + 0.27 * (number - 1)
        ax.bar(spots, rows[0.5], 0.25, yerr=error, capsize=4, label=f"after {length:,} tokens", **style)
    ax.axhline(head, color="black", linestyle="--", linewidth=2, label=f"the head alone, {head:.1f} ms")
    ax.set(xticks=range(len(kinds)), xticklabels=kinds, ylabel="ms for a new token")
    ax.set_ylim(0, 1.4 * spread[0.75].max())
    ax.legend(ncols=2, loc="upper left")
    return figure


# --------------------------------------------------------------------------------------------------------- 6 interview

STANDINGS = {  # fill, edge, ink
    "ahead of both": (COLOURS[0], "-", "white"),
    "level, none shown ahead": ("0.82", "-", "black"),
    "behind another": ("white", "-", "black"),
    "measured once, or not run": ("none", ":", "0.35"),
}
CRITERIA = ["loss on 3seqs.txt, 20 steps", "the same, equal first sums", "loss on built-in stories, 120 steps"]
CRITERIA += ["the same, 1,200 steps", "most above a floor (nats / 1000)", "targets/s, loop, 3seqs.txt"]
CRITERIA += [
    "targets/s, one batch, TinyStories",
    "targets/s, exact rungs, TinyStories",
    "peak MB of a step, TinyStories",
]
CRITERIA += ["million weights", "time grows with k to the power", "ms a new token after 1,024"]


@figure_of("interview_evidence")
def interview_decision(evidence: pd.DataFrame) -> Figure:
    """Twelve of the records that compare the three designs, means over seeds or rounds, and how the rule sees each:
    ahead or behind only where the 95 % intervals lie apart. Notebook 6 has all lines with their intervals.
    """
    figure, ax = slide("One-hot and convolution are each behind on a loss, the embedding MLP on none")
    rows = evidence.set_index(["criterion", "model"])
    for y, criterion in enumerate(CRITERIA):
        ax.text(-0.06, y, criterion, ha="right", va="center", fontsize=18)
        for x, design in enumerate(DESIGNS):
            mean, standing = rows.loc[(criterion, design), ["mean", "standing"]]
            fill, edge, ink = STANDINGS[standing]
            box = {"facecolor": fill, "edgecolor": "0.3", "linestyle": edge, "linewidth": 1}
            ax.add_patch(plt.Rectangle((x, y - 0.43), 0.96, 0.86, **box))
            value = "not run" if math.isnan(mean) else f"{mean:,.2f}" if mean < 100 else f"{mean:,.0f}"
            ax.text(x + 0.48, y, value, ha="center", va="center", color=ink, weight="bold", fontsize=18)
    ax.set_xticks([0.48, 1.48, 2.48], DESIGNS, weight="bold")
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.set(xlim=(-2.3, 3), ylim=(len(CRITERIA) - 0.5, -0.5), yticks=[])
    ax.spines[:].set_visible(False)
    boxes = {
        name: plt.Rectangle((0, 0), 1, 1, fc=fill, ec="0.3", ls=edge) for name, (fill, edge, _) in STANDINGS.items()
    }
    figure.legend(boxes.values(), boxes, loc="outside lower center", ncols=4, fontsize=16, columnspacing=1)
    return figure
