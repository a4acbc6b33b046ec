"""Every figure of the workbook as a function of its runs; the notebooks draw their own runs with them.

`python -m workbook figures` draws them. A title says the finding, its numbers come from findings.py;
templates/captions.md.j2 says what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from workbook import findings, plots
from workbook.findings import TEXTS, Load
from workbook.plots import COLOURS, line_style, model_styles, plot_loss_curves, plot_throughput, slide
from workbook.records import intervals
from workbook.text import VOCAB_SIZE

BARS = [("#14527A", ""), ("#56B4E9", "//"), ("#A9D6F2", ""), ("0.6", "xx")]  # of no model: colour, hatch
LN_V = {"ln V": math.log(VOCAB_SIZE)}
NETS = ["k-gram", "LSTM", "Transformer"]
LADDER = ["loop", "one batch", "lookup", "distinct contexts", "chunked head", "fused Adam", "memory reuse"]
LADDER += ["corpus contexts", "≈ compact", "≈ bfloat16", "≈ compiled"]


class Entry(NamedTuple):
    draw: Callable[..., Figure]
    runs: tuple[str, ...]  # names of runs, in the order of the function's arguments …
    prepare: Callable[[Load], pd.DataFrame] | None  # … or what makes its one argument from them


GALLERY: dict[str, Entry] = {}


def figure_of(*runs: str, prepare: Callable[[Load], pd.DataFrame] | None = None) -> Callable:
    """Put a drawing function into the gallery, with the runs that it is drawn from."""

    def enter(function: Callable[..., Figure]) -> Callable[..., Figure]:
        GALLERY[function.__name__] = Entry(function, runs, prepare)
        return function

    return enter


def check_names(names: Iterable[str]) -> None:
    """ValueError where one of the names is no figure's."""
    if unknown := [name for name in names if name not in GALLERY]:
        raise ValueError(f"no figure is called {', '.join(unknown)}; there are {', '.join(GALLERY)}")


def draw(name: str, load: Load) -> Figure:
    """The figure of that name, from the runs that `load` returns for their names."""
    check_names([name])
    function, runs, prepare = GALLERY[name]
    return function(prepare(load)) if prepare else function(*map(load, runs))


def title_of(figure: Figure) -> str:
    """The finding, on one line."""
    return " ".join(figure.get_suptitle().split())


def draw_figures(names: Sequence[str], load: Load, folder: Path) -> list[tuple[str, str]]:
    """Draw the figures of these names, or all, into the folder as PNG and SVG; (name, title) of each."""
    check_names(names)
    titles = []
    with mpl.rc_context():
        plots.set_style()
        for name in tqdm(names or list(GALLERY), unit="figure", leave=False):
            figure = draw(name, load)
            plots.save_figure(figure, name, folder)
            titles.append((name, title_of(figure)))
            plt.close(figure)
    return titles


def render_captions(titles: Sequence[tuple[str, str]]) -> str:
    """figures/CAPTIONS.md of these (name, title): each figure's picture, what was measured, and its runs."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True)
    figures = [{"name": name, "title": title, "runs": GALLERY[name].runs} for name, title in titles]
    return environment.get_template("captions.md.j2").render(figures=figures)


# ------------------------------------------------------------------------------------------------ what figures share


def in_order(frame: pd.DataFrame, models: Sequence[str] = NETS) -> pd.DataFrame:
    """The rows of these models in this order, then those of all others."""
    rank = {model: number for number, model in enumerate(models)}
    return frame.iloc[frame["model"].map(rank).fillna(len(rank)).argsort(kind="stable")].reset_index(drop=True)


def panels(
    title: str, frame: pd.DataFrame, by: str | list[str], *, x: str = "", y: str = "", **options: Any
) -> list[Any]:
    """A slide with panels side by side, one for each value of a column: (axes, value, its rows) of each."""
    groups = list(frame.groupby(by, sort=False))
    axes = slide(title, columns=len(groups), squeeze=False, **{"sharey": True} | options)[1][0]
    for ax, (value, _) in zip(axes, groups, strict=True):
        ax.set(title=TEXTS.get(value, value), xlabel=x)
    axes[0].set_ylabel(y)
    return [(ax, *group) for ax, group in zip(axes, groups, strict=True)]


def log_axes(ax: Axes, **ticks: Sequence[float]) -> None:
    """Make an axis logarithmic with ticks at these values and no others: `log_axes(ax, x=[1, 10], y=[0.1, 1])`."""
    short = mpl.ticker.EngFormatter(places=0, sep="")  # 16384 -> 16k
    for axis, values in ticks.items():
        ax.set(**{f"{axis}scale": "log", f"{axis}ticks": values})
        ax.set(**{f"{axis}ticklabels": [short(value) if value >= 1000 else f"{value:g}" for value in values]})
    ax.minorticks_off()


def plot_spread(ax: Axes, values: pd.Series, x: pd.Series, label: str, style: dict) -> None:
    """A line of medians with whiskers from lowest to highest, of the values at each x."""
    at = values.groupby(x)
    middle = at.median()
    ax.errorbar(middle.index, middle, [middle - at.min(), at.max() - middle], capsize=5, label=label, **style)


def plot_models(ax: Axes, table: pd.DataFrame) -> None:
    """A line for each column of the table, in its model's style."""
    for model, style in model_styles(table.columns).items():
        ax.plot(table.index, table[model], label=model, **style)


def draw_bars(
    ax: Axes, rows: pd.DataFrame, by: list[str], label: str, *, middle: str = "median", ends: Sequence[float] = (0, 1)
) -> None:
    """Groups of bars: `middle` of the column `value` with a label, and whiskers between the quantiles `ends`.

    `by`: the columns that name the group and the bar in it.
    """
    each = rows.groupby(by, sort=False)["value"]
    height, low, high = (table.unstack(sort=False) for table in (each.agg(middle), *map(each.quantile, ends)))
    count, size = len(height.columns), 16 if height.size > 9 else 20
    for number, name in enumerate(height):
        spots = np.arange(len(height)) + 0.84 / count * (number - (count - 1) / 2)
        colour, hatch = BARS[number % len(BARS)]
        style = {"color": colour, "hatch": hatch, "edgecolor": "white", "label": name}
        if each.size().max() > 1:
            style |= {"yerr": [height[name] - low[name], high[name] - height[name]], "capsize": 5}
        bars = ax.bar(spots, height[name], 0.79 / count, **style)
        ax.bar_label(bars, fmt=label, padding=4, weight="bold", fontsize=size)
    ax.set(xticks=range(len(height)), xticklabels=height.index, ylim=(0, 1.25 * high.max(axis=None)))
    ax.legend(loc="upper right", ncols=count)


def draw_stack(ax: Axes, table: pd.DataFrame, styles: Iterable[tuple[str, str]], labels: Any) -> None:
    """A horizontal bar for each row, of its columns one after another, with a label at its end."""
    left = pd.Series(0.0, table.index)
    for part, (colour, hatch) in zip(table.columns, styles, strict=True):
        bars = ax.barh(table.index, table[part], left=left, color=colour, hatch=hatch, edgecolor="white", label=part)
        left = left + table[part]
    ax.bar_label(bars, labels, padding=6, size=17)
    ax.set_ylim(len(table) - 0.5, -0.5)


# ------------------------------------------------------------------------------------------------------ 1 sanity check
@figure_of("sanity_check", "sanity_check_summary")
def sanity_check_loss(history: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """The loss of an LSTM on 3seqs.txt, down to the exact floor."""
    unigram, floor = summary[["unigram", "floor"]].iloc[0]
    levels = LN_V | {f"token frequencies {unigram:.2f}": unigram, f"floor {floor:.4f}": floor}
    ax: Any = plot_loss_curves(history, title="The LSTM falls from ln V to the exact floor of its text", levels=levels)
    log_axes(ax, y=[0.01, 0.1, 1, 10])
    ax.set_ylim(0.006, 30)
    ax.get_legend().remove()
    return ax.figure


# ----------------------------------------------------------------------------------------------------------- 2 designs
@figure_of("kgram_dependency")
def kgram_dependency(moved: pd.DataFrame) -> Figure:
    """Which token moves which logits, with a correct window and with an older one."""
    title, spots = "A correct window reaches the diagonal: it sees the newest token", sorted(moved["t"].unique())
    for ax, _, rows in panels(
        title, moved, "window", x="position t of the logits", y="position j of the changed token"
    ):
        ax.imshow(rows.pivot(index="j", columns="t", values="moved"), cmap="Greys", vmax=1.4, aspect="auto")
        ax.plot(spots, spots, color=COLOURS[4], linestyle=":", linewidth=5, label="newest token")
        ax.set(xticks=spots, yticks=spots)
    ax.legend(loc="lower left")
    return ax.figure


@figure_of("kgram_designs_summary")
def kgram_parameters(summary: pd.DataFrame) -> Figure:
    """The weights of each design: table, body, head."""
    sizes = summary.drop_duplicates("model").set_index("model")
    head, total = (sizes["hidden_size"] + 1) * sizes["vocab_size"] / 1e6, sizes["parameters"] / 1e6
    parts = {"token table": total - sizes["body"] / 1e6 - head, "body": sizes["body"] / 1e6, "head": head}
    figure, ax = slide("Tables hold the weights; the rest is tiny")
    styles = [(COLOURS[0], ""), ("black", "//"), (COLOURS[4], "..")]
    draw_stack(ax, pd.DataFrame(parts), styles, [f"{millions:.1f} M" for millions in total])
    ax.set(xlabel="million parameters", xlim=(0, 1.12 * total.max()))
    ax.legend(loc="lower right")
    return figure


@figure_of("kgram_speed")
def kgram_speed(speed: pd.DataFrame) -> Figure:
    """Targets per second of each design, computed in three ways."""
    factor = findings.speed_factors(speed)["distinct contexts / loop"]
    title = f"Same mathematics, {factor.min():.0f} to {factor.max():.0f} times the loop's tokens per second"
    note = f"medians of {speed['round'].nunique()} rounds, whiskers: lowest to highest; 3seqs.txt"
    figure, ax = slide(title, note=note)
    rate = findings.with_rate(speed).rename(columns={"rate": "value"})
    draw_bars(ax, rate, ["model", "way"], "{:,.0f}")
    ax.set_ylabel("tokens/s")
    ax.yaxis.set_major_formatter("{x:,.0f}")
    return figure


@figure_of("kgram_designs")
def kgram_loss_curves(steps: pd.DataFrame) -> Figure:
    """Training loss of each design, against steps and against seconds."""
    note = f"lines: mean of {steps['seed'].nunique()} seeds, bands: lowest to highest"
    title = "Embedding and convolution learn alike; one-hot hardly starts in 20 steps"
    figure, axes = slide(title, columns=2, sharey=True, note=note)
    for ax, (x, label) in zip(axes, {"step": "training step", "elapsed_s": "training time (s)"}.items(), strict=True):
        plot_loss_curves(steps, x, ax=ax, levels=LN_V).set_xlabel(label)
    axes[1].set_ylabel("")
    axes[1].get_legend().remove()
    return figure


@figure_of("kgram_designs")
def kgram_throughput(steps: pd.DataFrame) -> Figure:
    """Targets per second of each design in training."""
    less = findings.slower(steps, "one-hot", "embedding")
    title = f"Training, one-hot is {less.min():.0%} to {less.max():.0%} slower than embedding, seed by seed"
    return plots.whole(plot_throughput(steps, title=title))


@figure_of("kgram_designs", "kgram_first_scale")
def kgram_first_scale(steps: pd.DataFrame, rescaled: pd.DataFrame) -> Figure:
    """Training loss with the first weights as PyTorch draws them, and rescaled."""
    both = pd.concat([steps, rescaled])
    return plots.whole(
        plot_loss_curves(both, title="First weights move the loss more than the design does", levels=LN_V)
    )


@figure_of("kgram_floors", "kgram_floors_summary")
def kgram_floors(steps: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Training loss of each design for each k, down to the floor of that k."""
    floors, above = summary.groupby("kgram_k")["floor"].first(), findings.above_floor(summary).max()
    title = f"All three designs come within {above:.3f} nats of the exact floor of their k"
    for number, (ax, k, rows) in enumerate(panels(title, steps, "kgram_k", note="one seed")):
        with mpl.rc_context({"lines.linewidth": 2}):
            plot_loss_curves(rows, ax=ax, title=f"k = {k}, floor {floors[k]:.4f}", levels={"": floors[k]})
        log_axes(ax, y=[0.01, 0.1, 1])
        ax.set(ylim=(0.008, 8), xticks=range(0, rows["step"].max(), 50))
        ax.label_outer()
        if number:
            ax.get_legend().remove()
    return ax.figure


@figure_of("kgram_stories", "kgram_stories_summary")
def kgram_stories(steps: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Training loss of each design on the built-in stories."""
    V = summary["vocab_size"].iloc[0]
    title = "On stories the embedding MLP learns fastest, as PyTorch draws the three"
    return plots.whole(plot_loss_curves(steps, title=title, levels={f"ln {V}": math.log(V)}))


# ------------------------------------------------------------------------------------------------------------- 3 top-p
@figure_of("top_p_by_hand")
def top_p_cumulative(steps: pd.DataFrame) -> Figure:
    """Four words by falling probability, one standing on the other, and where p cuts them."""
    figure, ax = slide("The word that crosses p belongs to the nucleus (blue)")
    colours = np.where(steps["kept"], COLOURS[0], "0.8")
    bars = ax.bar(steps["word"], steps["probability"], bottom=steps["before"], color=colours, width=0.85)
    ax.bar_label(bars, [f"{probability:.2f}" for probability in steps["probability"]], padding=5)
    ax.axhline(0.6, color=COLOURS[1], linestyle="--")
    ax.text(3.45, 0.585, "p = 0.6", ha="right", va="top", color=COLOURS[1])
    ax.plot([-0.5, 0.55], [0.72, 0.72], color="0.2", linewidth=2, marker=">", markevery=[1])
    ax.text(-0.45, 0.735, "0.9 · 0.8 = 0.72")
    ax.set(ylabel="cumulative probability", xlim=(-0.5, 3.5), ylim=(0, 1.12))
    ax.set_xlabel("a draw: a uniform number, here 0.9, times the mass kept, 0.8")
    return figure


@figure_of("top_p_3seqs")
def top_p_3seqs(exact: pd.DataFrame) -> Figure:
    """Which share of an LSTM's continuations is exact, and goes on with ' 1', against p at three temperatures."""
    note = f"{exact['draws'].iloc[0]:,} continuations of '0' each; whiskers: 95 % intervals"
    title = "A cut repairs a heated model; a small p removes one side of a fair coin"
    figure, axes = slide(title, columns=2, sharey=True, note=note)
    for ax, column, prefix in zip(axes, ("exact", "' 1'"), ("exact_", ""), strict=True):
        for number, (temperature, rows) in enumerate(exact.groupby("temperature")):
            x = rows["p"].where(rows["p"] > 0, 0.3) + 0.006 * (number - 1)
            spread = [rows[column] - rows[f"{prefix}low"], rows[f"{prefix}high"] - rows[column]]
            spread = [part.clip(0) for part in spread]  # rounding
            ax.errorbar(x, rows[column], spread, capsize=5, label=f"T = {temperature}", **line_style(number))
        ax.set_xticks([0.3, 0.4, 0.5, 0.6, 0.8, 0.9, 1.0], ["greedy", "   .4", ".5", ".6", ".8", ".9", "1"])
        ax.set(xlabel="p", ylim=(-0.03, 1.05))
    axes[0].set(ylabel="share of the continuations", title="Exact lines")
    axes[1].set_title("Those that go on with ' 1'")
    axes[0].legend(loc="lower left")
    axes[1].axhline(0.5, color="0.35", linewidth=1.5, linestyle=(0, (2, 2)))
    return figure


@figure_of("top_p_nucleus_size")
def top_p_nucleus_size(sizes: pd.DataFrame) -> Figure:
    """How many tokens the nucleus holds at each token of a story."""
    sizes = sizes.head(40)
    figure, ax = slide("The nucleus (p = 0.9) holds one token inside a phrase and several where the story has a choice")
    bars = ax.bar(sizes.index, sizes["kept"], color=np.where(sizes["kept"] > 1, COLOURS[1], "0.75"))
    ax.bar_label(bars, [kept if kept > 1 else "" for kept in sizes["kept"]], weight="bold")
    ax.set_xticks(sizes.index, sizes["token"].str.strip(), rotation=90, fontsize=16)
    ax.set(ylabel="tokens in the nucleus", xlim=(-0.7, len(sizes) - 0.3))
    ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    return figure


SHADES = mpl.colors.ListedColormap(mpl.colormaps["Blues"](np.linspace(0.75, 0, 256)))  # dark: improbable


def draw_text(ax: Axes, rows: pd.DataFrame, width: int = 68) -> None:
    """A text token by token: shaded by its probability, framed where the nucleus lacks it, grey where not predicted."""
    x = y = 0
    for token, probability, outside in zip(rows["token"], rows["probability"], rows["outside"], strict=True):
        if token.startswith(" ") and x + len(token) > width:
            x, y = -1, y + 1
        box = {"boxstyle": "square,pad=0.06", "facecolor": "0.85" if math.isnan(probability) else SHADES(probability)}
        box |= {"edgecolor": "black" if outside else "none", "linewidth": 4}
        style: dict[str, Any] = {
            "family": "monospace",
            "fontsize": 18.5,
            "color": "white" if probability < 0.35 else "black",
        }
        for layer in ({"bbox": box}, {"zorder": 4}):  # the boxes, then the words above all boxes
            ax.text(x + len(token) - len(token.lstrip()), -y, token.strip(), **style, **layer)
        x += len(token)
    ax.set(xlim=(-0.5, width + 2), ylim=(-y - 0.7, 0.9))
    ax.axis("off")


@figure_of("top_p_coloured_story")
def top_p_coloured_story(told: pd.DataFrame) -> Figure:
    """A held-out story, each token shaded by the probability that a model gave to it."""
    lacks = findings.outside_nucleus(told)
    title = f"At p = 0.8 the k-gram's nucleus forbids {lacks['k-gram']} tokens of this story, "
    title += f"the LSTM's {lacks['LSTM']}"
    figure, axes = slide(title, rows=2, note="black frame: outside the nucleus; grey: not predicted")
    for ax, (name, rows) in zip(axes, told.groupby("model", sort=False), strict=True):
        draw_text(ax, rows)
        ax.set_title(name)
    scale = plt.cm.ScalarMappable(mpl.colors.Normalize(0, 1), SHADES)
    figure.colorbar(scale, ax=axes, label="probability of the token", pad=0.01, aspect=40)
    return figure


WRITERS = {  # where the numbers beside the points go
    "k-gram": [(14, -24), (12, -26), (6, -34), (-44, 24), (22, -28), (14, 8)],
    "LSTM": [(14, 10), (10, 14), (-66, 22), (-34, 54), (18, 46), (26, 12)],
    "held-out stories": [],
}


@figure_of("top_p_quality")
def top_p_quality_diversity(groups: pd.DataFrame) -> Figure:
    """Diversity and perplexity of stories that two models wrote at six settings."""
    title = "A higher p buys diversity; a better model lowers the whole curve"
    figure, ax = slide(title, note="numbers: p; bars: 95 % intervals over groups of 16 stories")
    same, judged = (intervals(groups, column, by="writer") for column in ("self-BLEU", "perplexity"))
    spread, x, y = (same["high"] - same["mean"], judged["high"] - judged["mean"]), 1 - same["mean"], judged["mean"]
    for name, style in model_styles(WRITERS).items():
        at = [writer for writer in judged.index if writer.startswith(name)]
        style |= {"label": name, "elinewidth": 1.5, "markersize": 12 if WRITERS[name] else 28}
        ax.errorbar(x[at], y[at], spread[1][at], spread[0][at], **style)
        for writer, spot in zip(at, WRITERS[name], strict=False):
            line = {"arrowstyle": "-", "linewidth": 1, "color": "0.4"}
            label, point = writer.split(", ")[1].removeprefix("p = "), (x[writer], y[writer])
            ax.annotate(label, point, spot, textcoords="offset points", fontsize=17, arrowprops=line)
    log_axes(ax, y=[1.25, 1.5, 2, 2.5, 3, 4])
    ax.set(xlabel="diversity: 1 - self-BLEU", ylabel="perplexity under the judge", ylim=(1.15, 4.4))
    ax.legend(loc="center right")
    return figure


def draw_next_tokens(ax: Axes, rows: pd.DataFrame) -> None:
    """Bars of the most probable next tokens, blue where the nucleus keeps them."""
    ax.barh(range(len(rows)), rows["probability"], color=np.where(rows["kept"], COLOURS[0], "0.8"))
    ax.set_yticks(range(len(rows)), rows["token"])
    ax.invert_yaxis()
    ax.locator_params(axis="x", nbins=4)
    p, temperature, kept = rows[["p", "temperature", "nucleus"]].iloc[0]
    ax.set(xlabel="probability", title=f"p = {p:.2f}, T = {temperature:.1f}\n{kept:.0f} kept")


@figure_of("top_p_next_token")
def top_p_next_token(table: pd.DataFrame) -> Figure:
    """The most probable next tokens at three settings."""
    title = "'… there was a child called': p cuts the list, temperature lengthens it (blue: kept)"
    for ax, _, rows in panels(title, table, ["p", "temperature"], sharex=True, sharey=False):
        draw_next_tokens(ax, rows)
    return ax.figure


@figure_of("generation_latency")
def generation_latency(growth: pd.DataFrame) -> Figure:
    """Milliseconds for one more token after texts of several lengths, whole text again or one step."""
    lengths = sorted(growth["length"].unique())
    title = f"One step costs the same after {lengths[0]} tokens and after {lengths[-1]:,}"
    note = f"medians of {growth['round'].nunique()} rounds, whiskers: lowest to highest"
    for ax, _, rows in panels(title, growth, "model", y="ms for the next token", note=note):
        for number, (way, some) in enumerate(rows.groupby("way", sort=False)):
            plot_spread(ax, some["ms"], some["length"], way, line_style(number))
        log_axes(ax, x=lengths, y=[3, 10, 30, 100, 300])
        ax.set_xlabel("tokens in the text so far")
    ax.figure.axes[0].legend(loc="upper left", fontsize=17)
    return ax.figure


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
    rows, title = at_validations(in_order(steps)), title + " (one seed)" * (steps["seed"].nunique() == 1)
    figure, axes = slide(title, columns=3, sharey=True)
    labels = {"step": "training step", "tokens": "targets used", "elapsed_s": "training time (s)"}
    for ax, (x, label) in zip(axes, labels.items(), strict=True):
        curves: Any = plot_loss_curves(rows, x, ax=ax)
        curves.get_legend().remove()
        for name, style in zip(levels, ("-", (0, (6, 3))), strict=False):
            ax.axhline(levels[name], color="0.35", linewidth=1.5, linestyle=style, label=name)
        ticks = [factor * 10**power for power in range(10) for factor in ((1,) if x == "tokens" else (1, 3))]
        ax.margins(y=0.12)
        ax.set(xscale="log", ylabel="", xlabel=label)
        ax.xaxis.set_major_locator(mpl.ticker.FixedLocator(ticks))
        ax.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
        ax.minorticks_off()
    axes[0].set_ylabel("validation loss (nats per token)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=5, fontsize=17)
    return figure


@figure_of("stories_live", "stories_live_summary")
def stories_live_curves(steps: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Validation loss of three models trained live for a few seconds."""
    levels = {f"Kneser-Ney, order {order}": summary[f"kneser_ney_{order}"].iloc[0] for order in (4, 2)}
    return draw_three_curves(steps, levels, "Live, built-in stories: who leads depends on what is counted")


@figure_of("stories_live_positions")
def stories_live_positions(positions: pd.DataFrame) -> Figure:
    """Validation loss by position in the story after the live training."""
    figure, ax = slide("After seconds of training, reading the whole story has not paid off yet", note="one seed")
    plot_models(ax, in_order(positions).groupby(["from", "model"], sort=False)["loss"].mean().unstack(sort=False))
    log_axes(ax, x=positions["from"].unique())
    ax.set(xlabel="position in the story", ylabel="loss (nats per token)")
    ax.set_ylim(top=1.15 * positions["loss"].max())
    ax.legend(loc="upper left", ncols=3)
    return figure


@figure_of("stories_5min", "stories_5min_summary")
def stories_curves(steps: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Validation loss of three models trained for five minutes on TinyStories."""
    counted = summary.loc[summary["model"] == "k-gram", "kneser_ney_loss"].iloc[0]
    title = "TinyStories, five minutes each: the whole story beats its last three tokens"
    return draw_three_curves(steps, {"Kneser-Ney, order 4": counted}, title)


@figure_of("stories_5min_summary")
def stories_mixture(summary: pd.DataFrame) -> Figure:
    """Validation loss of three models, alone and mixed with counts."""
    counted = summary.loc[summary["model"] == "k-gram", "kneser_ney_loss"].iloc[0]
    note = f"bars: mean of {summary['seed'].nunique()} seeds, whiskers: lowest to highest"
    figure, ax = slide("Counts still help every net, the LSTM least", note=note)
    rows = in_order(summary).rename(columns={"validation_loss": "alone", "mixed_loss": "with counts"})
    rows = rows.melt("model", ["alone", "with counts"], "net")
    draw_bars(ax, rows, ["model", "net"], "{:.2f}", middle="mean")
    ax.bar_label(ax.bar([-1], [counted], 0.4, color="0.5"), fmt="%.2f", weight="bold", padding=4)
    ax.set_xticks(range(-1, rows["model"].nunique()), ["Kneser-Ney\norder 4", *rows["model"].unique()])
    ax.set_ylabel("validation loss (nats per token)")
    return figure


@figure_of("stories_5min_positions")
def stories_positions(positions: pd.DataFrame) -> Figure:
    """Validation loss by position in the story, and what it is less than the k-gram's."""
    positions = in_order(positions[positions["targets"] >= 1000])
    loss = positions.groupby(["from", "model"], sort=False)["loss"].mean().unstack(sort=False)
    title = "Reading the whole story is worth most from about the tenth token on"
    note = f"mean of {positions['seed'].nunique()} seeds; the point at 17 is for positions 17 to 32, and so on"
    figure, axes = slide(title, columns=2, note=note, subplot_kw={"xlabel": "position in the story"})
    for ax, table in zip(axes, (loss, findings.same_position_gain(positions)), strict=True):
        plot_models(ax, table)
        log_axes(ax, x=[1, 2, 3, 5, 9, 17, 33, 65, 129, 257])
        ax.tick_params(axis="x", labelsize=17)
    axes[0].set_ylabel("loss (nats per token)")
    axes[1].set(ylabel="nats saved against the k-gram", ylim=0)
    axes[0].legend()
    return figure


@figure_of("stories_k_summary")
def stories_k(summary: pd.DataFrame) -> Figure:
    """Validation loss against k: a k-gram, counts of the same context, and both mixed."""
    columns = {"validation_loss": "k-gram", "kneser_ney_loss": "Kneser-Ney", "mixed_loss": "both mixed"}
    figure, ax = slide("TinyStories, 45 s: counts lead from k = 2 on, the mixture everywhere", note="one seed each")
    plot_models(ax, summary.sort_values("kgram_k").set_index("kgram_k")[list(columns)].rename(columns=columns))
    ax.set(xlabel="k, tokens of context", ylabel="validation loss (nats per token)")
    ax.legend()
    return figure


@figure_of("stories_window_tinystories", "stories_window_builtin")
def stories_window(real: pd.DataFrame, builtin: pd.DataFrame) -> Figure:
    """Validation loss of a k-gram whose window reaches the newest token, and of one that ends before it."""
    costs = sorted(findings.newest_token_cost(rows) for rows in (real, builtin))
    title = f"Not seeing the newest token costs {costs[0]:.1f} to {costs[1]:.1f} nats per token"
    figure, ax = slide(title, note="one seed each")
    rows = pd.concat([real.assign(text="TinyStories"), builtin.assign(text="built-in stories")])
    rows = rows.replace({"model": {"window to t": "reads t-2 … t", "window to t-1": "reads t-3 … t-1"}})
    for column, label in {"budget_seconds": "\n({:g} s of training)", "steps": "\n({:,g} steps of training)"}.items():
        if column in rows:  # whichever budget a training had
            rows["text"] += rows[column].map(label.format, na_action="ignore").fillna("")
    draw_bars(ax, rows.rename(columns={"validation_loss": "value"}), ["text", "model"], "{:.2f}")
    ax.set_ylabel("validation loss (nats per token)")
    return figure


# -------------------------------------------------------------------------------------------------------------- 5 cost
@figure_of("cost_ladder")
def cost_ladder(ladder: pd.DataFrame) -> Figure:
    """Targets per second of one training step in each way, on two texts."""
    gain = findings.ladder_factors(ladder, "loop").median(axis=1).xs("embedding", level="model")
    title = f"The same mathematics {gain['3seqs.txt']:.0f} times as fast, "
    title += f"{gain['stories']:.0f} times on real stories (embedding)"
    ladder = findings.with_rate(ladder[ladder["way"].isin(LADDER)])
    for ax, _, rows in panels(title, ladder, "text", y="targets/s"):
        for model, style in model_styles(ladder["model"]).items():
            some = rows[rows["model"] == model]
            plot_spread(ax, some["rate"], some["way"].map(LADDER.index), model, style | {"markersize": 8})
        ax.axvspan(6.5, len(LADDER) - 0.5, color="0.93", zorder=0)
        ax.text(10.4, 7, "another result, or\nweighted by counts", ha="right", color="0.3", fontsize=16)
        log_axes(ax, y=[10**power for power in range(1, 7)])
        ax.set_xticks(range(len(LADDER)), LADDER, rotation=50, ha="right", rotation_mode="anchor", fontsize=16)
    ax.figure.axes[0].legend(loc="upper left")
    return ax.figure


@figure_of("cost_shares")
def cost_shares(shares: pd.DataFrame) -> Figure:
    """Distinct contexts as a share of the targets, against k and against the batch's size."""
    new = findings.new_context_share(shares)
    low, high = new.drop("3seqs.txt").agg(["min", "max"])
    title = f"In 32 stories {low:.0%} to {high:.0%} of the contexts are new at k = 3; "
    title += f"in 3seqs.txt {new['3seqs.txt']:.0%}"
    figure, axes = slide(title, columns=2, sharey=True)
    for ax, x, fixed in zip(axes, ("kgram_k", "batch_size"), ("batch_size == 32", "kgram_k == 3"), strict=True):
        for number, (text, rows) in enumerate(shares.query(fixed).groupby("text", sort=False)):
            share = rows.groupby(x)["share"].first()
            ax.plot(share.index, 100 * share, label=text, **line_style(number))
    axes[0].set(xlabel="k (32 sequences)", ylabel="distinct contexts (% of targets)", ylim=(0, 105))
    axes[1].set_xlabel("sequences in a batch (k = 3)")
    log_axes(axes[1], x=[1, 4, 16, 64, 256, 1024])
    axes[0].legend(loc="center right")
    return figure


PARTS = {"net": (6, ""), "head": (0, "//"), "loss": (4, ".."), "backward": (1, ""), "optimiser": (2, "xx")}


@figure_of("cost_parts")
def cost_parts(parts: pd.DataFrame) -> Figure:
    """Where the time of a step goes in each way, on two texts."""
    share = findings.head_and_backward_share(parts)
    title = f"With all exact steps head and backward take {share['3seqs.txt']:.0%} of the time, "
    title += f"{share['stories']:.0%} on stories (embedding)"
    parts = parts[parts["model"] == "embedding"].assign(net=parts["net"] + parts["context"])
    styles = [(COLOURS[number], hatch) for number, hatch in PARTS.values()]
    for ax, _, rows in panels(title, parts, "text", x="% of the step; times: one profile"):
        rows = rows.set_index("way")[list(PARTS)].reindex(LADDER).dropna()
        total = rows.sum(axis=1)
        labels = [f"{seconds:,.1f} s" if seconds > 1 else f"{1e3 * seconds:,.1f} ms" for seconds in total]
        draw_stack(ax, 100 * rows.div(total, axis=0), styles, labels)
        ax.set(xlim=(0, 132), xticks=range(0, 101, 25))
    ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return ax.figure


ROOF_SPOTS = {"loop": (14, -6), "one batch": (-16, -6), "distinct contexts": (14, -16), "chunked head": (-16, -6)}
ROOF_SPOTS |= {"fused Adam": (-16, -6), "memory reuse": (16, 4)}  # where the names beside the points go


@figure_of("cost_ladder", "cost_texts", "cost_rates")
def cost_roof(ladder: pd.DataFrame, texts: pd.DataFrame, rates: pd.DataFrame) -> Figure:
    """Operations per second of each exact way against operations per byte, and the machine's limit."""
    roof = findings.roof(ladder, texts, rates).set_index("way")
    share = roof.loc[roof["text"] == "3seqs.txt", "share_of_limit"]
    title = f"The loop reaches {share['loop']:.0%} of the machine's limit, "
    title += f"all exact steps together {share['memory reuse']:.0%}"
    figure, ax = slide(title, note="embedding design, 3seqs.txt; limit of a step: the sum of its parts' limits")
    best, intensity = rates.iloc[0], np.geomspace(0.05, 2000, 200)
    limit = np.minimum(best["float32"], best["memory"] * intensity) / 1e9
    ax.plot(intensity, limit, color="black", label="the machine's limit")
    for number, (text, rows) in enumerate(roof.groupby("text", sort=False)):
        x, y = rows["flop_per_byte"], rows["gflop_per_s"]
        ax.plot(x, y, label=TEXTS[text], **line_style(number) | {"linestyle": "", "markersize": 11})
        for way in ROOF_SPOTS if number == 0 else ["memory reuse"]:
            side = "left" if ROOF_SPOTS[way][0] > 0 else "right"
            ax.annotate(way, (x[way], y[way]), ROOF_SPOTS[way], textcoords="offset points", ha=side, fontsize=17)
    log_axes(ax, x=[0.1, 1, 10, 100, 1000], y=[1, 10, 100])
    ax.set(ylabel="GFLOP/s", ylim=(1, 400), xlabel="operations per byte that must be moved (FLOP/byte)")
    ax.legend(loc="lower right")
    return figure


@figure_of("cost_growth")
def cost_growth(growth: pd.DataFrame) -> Figure:
    """Time and peak memory of a training step when one size grows."""
    title = "N costs in proportion, V and H mostly less, k and E hardly anything; k costs one-hot memory"
    figure, axes = slide(title, rows=2, columns=growth["axis"].nunique(), sharex="col", sharey="row")
    styles = model_styles(growth["model"])
    for (time, memory), (axis, rows) in zip(axes.T, growth.groupby("axis", sort=False), strict=True):
        for model, style in styles.items():
            by_value = rows[rows["model"] == model].groupby("value")
            style = style | {"markersize": 6, "linewidth": 2, "label": model}
            low, middle, high = (1e3 * by_value["step_s"].quantile(share) for share in (0, 0.5, 1))
            time.plot(middle, **style)
            time.fill_between(middle.index, low, high, color=style["color"], alpha=0.2, linewidth=0)
            memory.plot(by_value["peak_mb"].max(), **style)
        values = sorted(rows["value"].unique())
        log_axes(time, x=[values[0], values[len(values) // 2], values[-1]], y=[10, 100, 1000])
        log_axes(memory, y=[10, 100])
        memory.set_xlabel(axis)
    for ax in axes.flat:
        ax.tick_params(labelsize=17)
    axes[0, 0].set_ylabel("step (ms)")
    axes[1, 0].set_ylabel("peak (MB)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


@figure_of("cost_latency")
def cost_latency(latency: pd.DataFrame) -> Figure:
    """Milliseconds for one new token after texts of several lengths, and of the head alone."""
    times, alone = findings.token_times_head(latency), latency["model"] == "the head"
    title = f"A new token costs at most {times.drop('Transformer').max():.1f} times the head, "
    title += f"in the Transformer {times['Transformer']:.1f} times, whatever came before"
    figure, ax = slide(title, note="bars: medians, whiskers: quartiles")
    rows = latency[~alone].sort_values("length", kind="stable").rename(columns={"ms": "value"})
    rows["length"] = rows["length"].map("after {:,} tokens".format)
    draw_bars(ax, rows, ["model", "length"], "{:.1f}", ends=(0.25, 0.75))
    head = latency.loc[alone, "ms"].median()
    ax.axhline(head, color="black", linestyle="--", linewidth=2, label=f"the head alone, {head:.1f} ms")
    ax.set_ylabel("ms for a new token")
    ax.legend(ncols=2, loc="upper left")
    return figure


# --------------------------------------------------------------------------------------------------------- 6 interview
LOOKS = [(COLOURS[0], "-", "white"), ("0.82", "-", "black"), ("white", "-", "black"), ("none", ":", "0.35")]
STANDINGS = dict(zip(findings.STANDINGS, LOOKS, strict=True))  # fill, edge and ink of each
LEFT_OUT = r"in turn|loop, TinyStories|(?:one batch|exact steps|a step), 3seqs|k = |with V"  # criteria like others
EVIDENCE = ["kgram_designs_summary", "kgram_first_scale", "kgram_stories_summary", "kgram_stories_long_summary"]
EVIDENCE += ["kgram_floors_summary", "cost_ladder", "cost_parts", "cost_growth", "cost_latency"]


@figure_of(*EVIDENCE, prepare=findings.evidence)
def interview_decision(evidence: pd.DataFrame) -> Figure:
    """What compares the designs (rows of `findings.evidence`), and how the rule sees each."""
    figure, ax = slide("One-hot and convolution are each behind on a loss, the embedding MLP on none")
    table = evidence[~evidence["criterion"].str.contains(LEFT_OUT)].set_index(["criterion", "model"])
    criteria, models = (table.index.unique(level) for level in table.index.names)
    for (criterion, model), mean, standing in table[["mean", "standing"]].itertuples():
        x, y, (fill, edge, ink) = models.get_loc(model), criteria.get_loc(criterion), STANDINGS[standing]
        ax.add_patch(plt.Rectangle((x, y - 0.43), 0.96, 0.86, fc=fill, ec="0.3", ls=edge))
        value = "not run" if math.isnan(mean) else f"{mean:,.2f}" if mean < 100 else f"{mean:,.0f}"
        ax.text(x + 0.48, y, value, ha="center", va="center", color=ink, weight="bold", fontsize=18)
    ax.set_xticks(np.arange(len(models)) + 0.48, models, weight="bold")
    ax.set_yticks(range(len(criteria)), criteria, fontsize=18)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.set(xlim=(0, len(models)), ylim=(len(criteria) - 0.5, -0.5))
    ax.spines[:].set_visible(False)
    boxes = [plt.Rectangle((0, 0), 1, 1, fc=fill, ec="0.3", ls=edge) for fill, edge, _ in LOOKS]
    figure.legend(boxes, STANDINGS, loc="outside lower center", ncols=4, fontsize=16, columnspacing=1)
    return figure
