"""Every figure of the workbook as a function of its runs; the notebooks draw their own runs with them.

`python -m workbook figures` draws them. A title says the finding, its numbers come from findings.py;
templates/captions.md.j2 says what was measured.
"""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from workbook import findings, plots
from workbook.findings import Load
from workbook.plots import COLOURS, X_LABELS, line_style, model_styles, plot_loss_curves, plot_throughput, shown, slide
from workbook.readme import fill_template
from workbook.records import intervals, load_runs, summarise
from workbook.text import VOCAB_SIZE

BARS = [("#14527A", ""), ("#56B4E9", "//"), ("#A9D6F2", ""), ("0.6", "xx")]  # of no model: colour, hatch
SHADES = mpl.colors.ListedColormap(mpl.colormaps["Blues"](np.linspace(0.75, 0, 256)))  # dark: improbable
LN_V = {"ln V": math.log(VOCAB_SIZE)}
LADDER = ["loop", "one batch", "lookup", "distinct contexts", "chunked head", "fused Adam", "memory reuse"]
LADDER += ["corpus contexts", "≈ compact", "≈ bfloat16", "≈ compiled"]


class Entry(NamedTuple):
    draw: Callable[..., Figure]
    runs: tuple[str, ...]  # names of runs, in the order of the function's arguments …
    prepare: Callable[[Load], pd.DataFrame] | None  # … or what makes its one argument from them


GALLERY: dict[str, Entry] = {}


def figure_of(*runs: str, prepare: Callable[[Load], pd.DataFrame] | None = None) -> Callable:
    """Put a drawing function into the gallery, with the runs that it is drawn from; it returns the figure it drew."""

    def enter(function: Callable[..., None]) -> Callable[..., Figure]:
        @functools.wraps(function)
        def drawn(*frames: pd.DataFrame) -> Figure:
            function(*frames)
            return plt.gcf()

        GALLERY[function.__name__] = Entry(drawn, runs, prepare)
        return drawn

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


def render_captions(titles: Sequence[tuple[str, str]], load: Load = load_runs) -> str:
    """figures/CAPTIONS.md of these (name, title): each figure's picture, what was measured, and its runs."""
    figures = [{"name": name, "title": title, "runs": GALLERY[name].runs} for name, title in titles]
    return fill_template("captions.md.j2", figures=figures, run=load)


# ------------------------------------------------------------------------------------------------ what figures share


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of k-gram, pooled k-gram, LSTM and Transformer in this order, then those of all others."""
    rank = {"k-gram": 0, "pooled k-gram": 1, "LSTM": 2, "Transformer": 3}
    return frame.sort_values("model", key=lambda names: names.map(rank), kind="stable", ignore_index=True)


def panels(
    title: str, frame: pd.DataFrame, by: str | list[str], *, x: str = "", y: str = "", **options: Any
) -> Iterator[tuple[Axes, Any, pd.DataFrame]]:
    """A slide with panels side by side, one for each value of a column: (axes, value, its rows) of each."""
    groups = frame.groupby(by, sort=False)
    axes = np.atleast_1d(slide(title, 1, len(groups), **{"sharey": True} | options))
    axes[0].set_ylabel(y)
    for ax, (value, rows) in zip(axes, groups, strict=True):
        ax.set(title=findings.text_title(value, rows), xlabel=x)
        yield ax, value, rows


def short_number(value: float, _: int = 0) -> str:
    """A number at a tick: 0.5, 16, 16k for 16384."""
    return mpl.ticker.EngFormatter(places=0, sep="")(value) if value >= 1000 else f"{value:g}"


def log_axes(ax: Axes, **ticks: Sequence[float]) -> None:
    """Make an axis logarithmic with ticks at these values and no others: `log_axes(ax, x=[1, 10], y=[0.1, 1])`."""
    for axis, values in ticks.items():
        ax.set(**{f"{axis}scale": "log", f"{axis}ticks": values})
        ax.set(**{f"{axis}ticklabels": list(map(short_number, values))})
    ax.minorticks_off()


def plot_spread(ax: Axes, values: pd.Series, x: pd.Series, label: str, style: dict) -> None:
    """A line of medians with whiskers from lowest to highest, of the values at each x."""
    at = values.groupby(x)
    middle = at.median()
    ax.errorbar(middle.index, middle, [middle - at.min(), at.max() - middle], capsize=5, label=shown(label), **style)


def plot_models(ax: Axes, table: pd.DataFrame) -> None:
    """A line for each column of the table, in its model's style."""
    for model, style in model_styles(table.columns).items():
        ax.plot(table.index, table[model], label=shown(model), **style)


def draw_bars(
    ax: Axes, rows: pd.DataFrame, value: str, by: list[str], label: str, *, middle: str = "median", ends: tuple = (0, 1)
) -> None:
    """Bars in groups, named by the columns `by`: `middle` of a column, whiskers between the quantiles `ends`."""
    each = rows.groupby(by, sort=False)[value]
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
    starts = table.cumsum(axis=1).shift(axis=1, fill_value=0.0)
    for (part, left), (colour, hatch) in zip(starts.items(), styles, strict=True):
        bars = ax.barh(table.index, table[part], left=left, color=colour, hatch=hatch, edgecolor="white", label=part)
    ax.bar_label(bars, labels, padding=6, size=17)
    ax.set_ylim(len(table) - 0.5, -0.5)


# ------------------------------------------------------------------------------------------------------ 1 sanity check
@figure_of("sanity_check", "sanity_check_summary")
def sanity_check_loss(history: pd.DataFrame, summary: pd.DataFrame) -> None:
    """The loss of an LSTM on 3seqs.txt, down to the exact floor."""
    unigram, floor = summary[["unigram", "floor"]].iloc[0]
    levels = LN_V | {f"token frequencies {unigram:.2f}": unigram, f"floor {floor:.4f}": floor}
    first, last = history["loss"].iloc[0], history["loss"].iloc[-1]
    title = f"The loss goes from {first:.1f} to {last:.3f} nats; the lowest possible is {floor:.3f}"
    ax = plot_loss_curves(history, title=title, levels=levels)
    log_axes(ax, y=[0.01, 0.1, 1, 10])
    ax.set_ylim(0.006, 30)
    ax.legend().remove()  # of one line


# ----------------------------------------------------------------------------------------------------------- 2 designs
@figure_of("kgram_dependency")
def kgram_dependency(moved: pd.DataFrame) -> None:
    """Which token moves which logits, with a correct window and with an older one."""
    title, spots = "A correct window reaches the diagonal: it sees the newest token", sorted(moved["t"].unique())
    labels = {"x": "position t of the logits", "y": "position j of the changed token"}
    for ax, _, rows in panels(title, moved, "window", **labels):
        ax.imshow(rows.pivot(index="j", columns="t", values="moved"), cmap="Greys", vmax=1.4, aspect="auto")
        ax.plot(spots, spots, color=COLOURS[4], linestyle=":", linewidth=5, label="newest token")
        ax.set(xticks=spots, yticks=spots)
    ax.legend(loc="lower left")


def stages(design: str, size: pd.Series) -> list[tuple[str, int]]:
    """What a design does to k ids, step by step: words, and how many numbers come out for a context."""
    k, E, H, V = size[["kgram_k", "embed_size", "hidden_size", "vocab_size"]].astype(int)
    layers = f"{size['num_inner_mlp_layers']} inner layers"
    known = {
        "one-hot": [("one-hot rows", k * V), ("Linear, SiLU", H), (layers, H)],
        "embedding": [("embed", k * E), ("Linear, SiLU", H), (layers, H)],
        "convolution": [("embed", k * E), ("depthwise, SiLU", E), (f"Linear, {layers}", H)],
    }
    return [("ids", k), *known.get(design, [("its own way", H)]), ("head", V)]


@figure_of("kgram_designs_summary")
def kgram_architectures(summary: pd.DataFrame) -> None:
    """Each design from k ids to V logits: a box a step, its height the logarithm of how many numbers come out."""
    sizes = summary.drop_duplicates("model").set_index("model")
    k, H = sizes[["kgram_k", "hidden_size"]].iloc[0]
    ax = slide(f"{len(sizes)} ways from {k} tokens to {H} numbers; the head on top is the same")
    for row, (design, size) in enumerate(sizes.iterrows()):
        colour, steps, before = model_styles(sizes.index)[design]["color"], stages(str(design), size), 0
        ax.text(-0.26, row - 0.3, f"{design}: {size['parameters'] / 1e6:.1f} M weights", weight="bold", color=colour)
        for number, (words, width) in enumerate(steps):
            x, height = number if number < len(steps) - 1 else 4, 0.16 + 0.07 * math.log10(width)
            ax.add_patch(plt.Rectangle((x - 0.26, row - height / 2), 0.52, height, color=colour))
            ax.text(x, row, f"{width:,}", ha="center", va="center", color="white", weight="bold")
            ax.text(x, row + 0.3, words, ha="center", va="top", fontsize=18)
            if number:
                ax.annotate("", (x - 0.28, row), (before + 0.28, row), arrowprops={"arrowstyle": "->", "linewidth": 2})
            before = x
    ax.set(xlim=(-0.4, 4.4), ylim=(len(sizes) - 0.4, -0.6))
    ax.axis("off")


@figure_of("kgram_designs_summary")
def kgram_parameters(summary: pd.DataFrame) -> None:
    """The weights of each design: table, body, head."""
    sizes = summary.drop_duplicates("model").set_index("model")
    total, body = sizes["parameters"] / 1e6, sizes["body"] / 1e6
    head = (sizes["hidden_size"] + 1) * sizes["vocab_size"] / 1e6
    parts = pd.DataFrame({"token table": total - body - head, "body": body, "head": head})
    title = f"Token table and head hold {1 - (body / total).max():.1%} of the weights or more in each design"
    ax = slide(title, xlabel="million parameters", xlim=(0, 1.12 * total.max()))
    styles = [(COLOURS[0], ""), ("black", "//"), (COLOURS[4], "..")]
    draw_stack(ax, parts, styles, total.map("{:.1f} M".format))
    ax.legend(loc="lower right")


@figure_of("kgram_speed")
def kgram_speed(speed: pd.DataFrame) -> None:
    """Targets per second of each design, computed in three ways."""
    factor = findings.speed_factors(speed)["distinct contexts / loop"]
    low, high = (float(f"{end:.1g}") for end in (factor.min(), factor.max()))  # the whiskers allow one digit
    times = f"{low:,.0f}" + (f" to {high:,.0f}" if low < high else "")
    title = f"Same mathematics, about {times} times the loop's tokens per second"
    note = f"medians of {speed['round'].nunique()} rounds, whiskers: lowest to highest"
    ax = slide(title, note=note, ylabel="tokens/s")
    rows = findings.with_rate(speed)
    draw_bars(ax, rows, "rate", ["model", "way"], "{:,.0f}")
    ax.set_ylim(1, 20 * rows["rate"].max())
    log_axes(ax, y=[10**power for power in range(7) if 10**power < 20 * rows["rate"].max()])


@figure_of("kgram_designs")
def kgram_side_by_side(steps: pd.DataFrame) -> None:
    """Training loss of each design against steps, and its targets per second."""
    note = (
        f"lines: mean of {steps['seed'].nunique()} seeds, bands: lowest to highest; bars: median of n steps, quartiles"
    )
    runs = summarise(steps)
    loss = findings.comparison(intervals(runs, "mean_loss"), "mean loss")
    axes = slide(f"First {runs['steps'].max()} steps: {loss}", 1, 2, note=note)
    plot_loss_curves(steps, ax=axes[0], levels=LN_V).set_xlabel(X_LABELS["step"])
    speed = findings.speed_order(steps)
    plot_throughput(steps, title=textwrap.fill(speed[0].upper() + speed[1:], 25), ax=axes[1]).set_xlabel("")


@figure_of("kgram_designs", "kgram_first_scale")
def kgram_first_scale(steps: pd.DataFrame, rescaled: pd.DataFrame) -> None:
    """Training loss with the initialisation of PyTorch, and rescaled."""
    moved, apart = findings.initialisation_effect(steps, rescaled)
    title = f"Initialisation moves the mean loss by {moved:.1f} nats; where it is equal, designs differ by {apart:.1f}"
    plot_loss_curves(pd.concat([steps, rescaled]), title=title, levels=LN_V)


@figure_of("kgram_curve")
def kgram_curve(curve: pd.DataFrame) -> None:
    """Training loss of each design at several learning rates, with the initialisation of PyTorch and rescaled."""
    rows = findings.at_all_rates(curve)
    for ax, rate, part in panels(findings.rate_effect(curve), rows, "learning_rate", note=curve_note(rows)):
        plot_loss_curves(part, ax=ax, levels=curve_levels(rows), legend=False)
        log_axes(ax, y=[0.1, 1, 10])
        ax.set(title=f"rate {rate:g}", xlabel="training step", ylim=(0.02, 200), xticks=[0, rows["step"].max()])
        ax.label_outer()
    two_legends(plt.gcf().axes[-2:], rows["model"].unique(), loc="upper right")


def two_legends(axes: Sequence[Axes], models: Iterable[str], **options: Any) -> None:
    """In the first panel the names of the models as PyTorch draws them, in the second those of the rescaled ones."""
    for ax, ending in zip(axes, ("", " rescaled"), strict=True):
        chosen = [name for name in models if name.endswith(" rescaled") is bool(ending)]
        lines = [line for name in chosen for line in ax.lines if line.get_label() == name]
        labels = [name.removesuffix(ending) for name in chosen]
        ax.legend(lines, labels, title=ending.strip() or "as PyTorch draws", fontsize=16, title_fontsize=16, **options)


@figure_of("kgram_curve")
def kgram_stall(curve: pd.DataFrame) -> None:
    """Training loss of the convolution and of its variants at the lowest learning rate, beside the embedding."""
    rows = curve[curve["learning_rate"] == curve["learning_rate"].min()]
    chosen = rows["model"].str.startswith("convolution") | (rows["model"] == "embedding")
    rows = rows[chosen] if chosen.any() else rows  # a reader may have designs of other names alone
    steps, most = findings.steps_to_floor(rows).iloc[0].sort_values(), rows["step"].max()
    short = steps.index.str.replace(r"^convolution,? (?=.)", "", regex=True)
    each = ", ".join(f"{name} {findings.step_text(value, most)}" for name, value in zip(short, steps, strict=True))
    ax = slide(f"Steps to the floor: {each}", note=curve_note(rows))
    log_axes(plot_loss_curves(rows, ax=ax, levels=curve_levels(rows)), y=[0.1, 1, 10])
    ax.set_xlabel("training step")


def curve_levels(curve: pd.DataFrame) -> dict[str, float]:
    """Two horizontal lines without a name at their end, as curves run there: `curve_note` names them."""
    return dict(zip(("", " "), curve[["unigram", "floor"]].iloc[0], strict=True))


def curve_note(curve: pd.DataFrame) -> str:
    """What lines, bands and the lines of `curve_levels` are."""
    unigram, floor = curve[["unigram", "floor"]].iloc[0]
    seeds = f"lines: mean of {curve['seed'].nunique()} seeds, bands: lowest to highest"
    return f"{seeds}; dotted: unigram entropy {unigram:.2f} and floor {floor:.2f}"


@figure_of("kgram_layers")
def kgram_layers(layers: pd.DataFrame) -> None:
    """What share of each layer's output depends on the context, before training and after some steps."""
    title = findings.layer_sentence(layers)
    for ax, step, rows in panels(title, layers, "step", y="share of the context", note="one seed"):
        for model, style in model_styles(rows["model"]).items():
            part = rows[rows["model"] == model]
            ax.plot(part["layer"], part["share"], label=shown(model), **style)
        ax.set(title=f"after {step} steps" if step else "before training", xlabel="layer", ylim=(-0.05, 1.05))
        ax.set(xlim=(0.5, layers["layer"].max() + 4.5), xticks=range(1, layers["layer"].max() + 1))
    two_legends(plt.gcf().axes, layers["model"].unique(), loc="upper right")


@figure_of("kgram_floors", "kgram_floors_summary")
def kgram_floors(steps: pd.DataFrame, summary: pd.DataFrame) -> None:
    """Training loss of each design for each k, down to the floor of that k."""
    floors, above = summary.groupby("kgram_k")["floor"].first(), findings.above_floor(summary).max()
    title = f"{findings.join(summary['model'].unique())} end within {above:.3f} nats of the lowest loss of their k"
    for ax, k, rows in panels(title, steps, "kgram_k", note="one seed"):
        with mpl.rc_context({"lines.linewidth": 2}):
            plot_loss_curves(rows, ax=ax, levels={"": floors[k]}, legend=False)
        log_axes(ax, y=[0.01, 0.1, 1])
        ax.set(title=f"k = {k}, floor {floors[k]:.4f}", ylim=(0.008, 8), xticks=range(0, rows["step"].max(), 50))
        ax.label_outer()
    plt.gcf().axes[0].legend()


@figure_of("kgram_stories", "kgram_stories_summary")
def kgram_stories(steps: pd.DataFrame, summary: pd.DataFrame) -> None:
    """Training loss of each design on the built-in stories."""
    V = summary["vocab_size"].iloc[0]
    loss = findings.comparison(intervals(summary, "validation_loss"), "validation loss")
    title = f"After {summary['steps'].max()} steps: {loss}"
    plot_loss_curves(steps, title=title, levels={f"ln {V}": math.log(V)})


@figure_of("kgram_search", "kgram_search_summary")
def kgram_search(steps: pd.DataFrame, summary: pd.DataFrame) -> None:
    """Loss of each design on TinyStories against the learning rate, with two initialisations of its token tables."""
    trials = findings.search_trials(steps, summary)
    rows, labels = findings.rate_trials(trials), {"x": "learning rate", "y": "loss to choose by (nats per token)"}
    styles = model_styles(trials["kgram_net"])
    dashed: dict[str, Any] = {"linestyle": (0, (2, 2)), "markerfacecolor": "white"}
    for ax, k, part in panels(findings.table_sentence(trials), rows, "kgram_k", note="one seed", **labels):
        for model, style in styles.items():
            for table, some in part[part["kgram_net"] == model].groupby("table_std"):
                line = {"linestyle": "-", "label": model} if table else dashed
                ax.plot(some["learning_rate"], some["loss"], **style | line)
        ax.plot([], [], color="0.4", marker="o", label="as PyTorch draws", **dashed)
        ax.set(title=f"k = {k}")
        log_axes(ax, x=sorted(rows["learning_rate"].unique())[::2])
    plt.gcf().axes[0].legend()


@figure_of("kgram_seconds_summary", "kgram_steps_summary", prepare=findings.real_runs)
def kgram_by_k(runs: pd.DataFrame) -> None:
    """Validation loss of each design on TinyStories against k, alone and mixed with the counts of the same context."""
    dashes: dict[str, Any] = {"linestyle": (0, (2, 2)), "linewidth": 2}
    labels = {"x": "k, tokens of context", "y": "validation loss (nats per token)"}
    first = findings.first_budget(runs)
    title = f"{first['budget'].iloc[0]}: {findings.best_k_sentence(first)}"
    for ax, budget, rows in panels(title, runs, "budget", **labels):
        alone, mixed = (findings.by_k(rows, column) for column in ("validation_loss", "mixed_loss"))
        for model, style in model_styles(rows["model"]).items():
            ax.plot(alone[model].dropna(), label=shown(model), **style | {"linestyle": "-"})
            ax.plot(mixed[model].dropna(), color=style["color"], **dashes)
        ax.plot([], [], color="0.4", label="mixed with counts", **dashes)
        ax.plot(rows.groupby("kgram_k")["kneser_ney_loss"].first(), color="black", linewidth=2, label="Kneser-Ney")
        log_axes(ax, x=sorted(rows["kgram_k"].unique()))
        seeds = rows["seed"].nunique()
        ax.set_title(f"{budget}, {seeds} seed{'s' * (seeds > 1)}")
    plt.figlegend(*ax.get_legend_handles_labels(), loc="outside lower left", ncols=5, fontsize=17)


@figure_of("kgram_seconds", "kgram_seconds_summary")
def kgram_by_cost(curves: pd.DataFrame, summary: pd.DataFrame) -> None:
    """Validation loss on TinyStories against parameters, for each k, and against seconds, for each design's best k."""
    runs = summary.assign(model=summary["kgram_net"])
    loss, size = findings.by_k(runs), findings.by_k(runs, "parameters") / 1e6
    axes = slide(
        findings.size_sentence(runs),
        1,
        2,
        note=f"{runs['budget_seconds'].iloc[0]:g} s each, mean of {runs['seed'].nunique()} seeds",
    )
    for model, style in model_styles(runs["model"]).items():
        axes[0].plot(size[model], loss[model], label=shown(model), **style)
    labels = {f"{model} k={k}": model for model, k in findings.best_k(runs).items()}
    rows = at_validations(curves[curves["model"].isin(labels)].replace({"model": labels}))
    plot_loss_curves(rows, "elapsed_s", ax=axes[1], legend=False)
    log_axes(axes[0], x=[tick for tick in (2, 5, 10, 20, 50, 100) if tick < 1.2 * size.max(axis=None)])
    axes[0].set(xlabel="million parameters (log scale)", ylabel="validation loss (nats per token)", title="each k")
    axes[1].set(xlabel="training time (s)", ylabel="", title="the best k of each design")
    axes[1].legend(*axes[0].get_legend_handles_labels(), loc="upper right")


# ------------------------------------------------------------------------------------------------------------- 3 top-p
@figure_of("top_p_by_hand")
def top_p_cumulative(steps: pd.DataFrame) -> None:
    """Four words by falling probability, one standing on the other, and where p cuts them."""
    ax = slide("The word that crosses p belongs to the nucleus (blue)", ylabel="cumulative probability")
    colours = np.where(steps["kept"], COLOURS[0], "0.8")
    bars = ax.bar(steps["word"], steps["probability"], bottom=steps["before"], color=colours, width=0.85)
    ax.bar_label(bars, steps["probability"].map("{:.2f}".format), padding=5)
    ax.axhline(0.6, color=COLOURS[1], linestyle="--")
    ax.text(3.45, 0.585, "p = 0.6", ha="right", va="top", color=COLOURS[1])
    ax.plot([-0.5, 0.55], [0.72, 0.72], color="0.2", linewidth=2, marker=">", markevery=[1])
    ax.text(-0.45, 0.735, "0.9 · 0.8 = 0.72")
    ax.set(xlabel="a draw: a uniform number, here 0.9, times the mass kept, 0.8", xlim=(-0.5, 3.5), ylim=(0, 1.12))


@figure_of("top_p_3seqs")
def top_p_3seqs(exact: pd.DataFrame) -> None:
    """Which share of an LSTM's continuations is exact, and goes on with ' 1', against p at three temperatures."""
    note = f"{exact['draws'].iloc[0]:,} continuations of '0' each; whiskers: 95 % intervals"
    title = findings.cut_effect(exact)
    axes = slide(title, 1, 2, sharey=True, note=note, xlabel="p", ylim=(-0.03, 1.05))
    columns = (("Exact lines", "exact", "exact_"), ("Those that go on with ' 1'", "' 1'", ""))
    for ax, (heading, column, prefix) in zip(axes, columns, strict=True):
        for number, (temperature, rows) in enumerate(exact.groupby("temperature")):
            x, share = rows["p"].where(rows["p"] > 0, 0.2) + 0.006 * (number - 1), rows[column]
            spread = np.clip([share - rows[f"{prefix}low"], rows[f"{prefix}high"] - share], 0, None)  # rounding
            ax.errorbar(x, share, spread, capsize=5, label=f"T = {temperature}", **line_style(number))
        ax.set_xticks([0.2, 0.4, 0.5, 0.6, 0.8, 0.9, 1.0], ["greedy", "0.4", "0.5", "0.6", "0.8", "0.9", "1"])
        ax.set_title(heading)
    axes[0].set_ylabel("share of the continuations")
    axes[0].legend(loc="lower left")
    axes[1].axhline(0.5, color="0.35", linewidth=1.5, linestyle=(0, (2, 2)))


@figure_of("top_p_nucleus_size")
def top_p_nucleus_size(sizes: pd.DataFrame) -> None:
    """How many tokens the nucleus holds at each token of a story."""
    sizes = sizes.head(40)
    title = "The nucleus holds one token at {:.0%} of these positions, and up to {} where the story has a choice"
    title = title.format((sizes["kept"] == 1).mean(), sizes["kept"].max())
    ax = slide(title, ylabel="tokens in the nucleus", xlim=(-0.7, len(sizes) - 0.3))
    bars = ax.bar(sizes.index, sizes["kept"], color=np.where(sizes["kept"] > 1, COLOURS[1], "0.75"))
    ax.bar_label(bars, [kept if kept > 1 else "" for kept in sizes["kept"]], weight="bold")
    ax.set_xticks(sizes.index, sizes["token"].str.strip(), rotation=90, fontsize=16)
    ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))


def draw_text(ax: Axes, rows: pd.DataFrame, width: int = 68) -> None:
    """A text token by token: shaded by its probability, framed where the nucleus lacks it, grey where not predicted."""
    x = y = 0
    for token, probability, outside in rows[["token", "probability", "outside"]].itertuples(index=False):
        if token.startswith(" ") and x + len(token) > width:
            x, y = -1, y + 1
        box = {"boxstyle": "square,pad=0.06", "facecolor": "0.85" if math.isnan(probability) else SHADES(probability)}
        box |= {"edgecolor": "black" if outside else "none", "linewidth": 4}
        at, ink = (x + len(token) - len(token.lstrip()), -y), "white" if probability < 0.35 else "black"
        for layer in ({"bbox": box}, {"zorder": 4}):  # the boxes, then the words above all boxes
            ax.text(*at, token.strip(), family="monospace", fontsize=18.5, color=ink, **layer)
        x += len(token)
    ax.set(xlim=(-0.5, width + 2), ylim=(-y - 0.7, 0.9))
    ax.axis("off")


@figure_of("top_p_coloured_story")
def top_p_coloured_story(told: pd.DataFrame) -> None:
    """A held-out story, each token shaded by the probability that a model gave to it."""
    outside = [f"{name} {count}" for name, count in findings.outside_nucleus(told).items()]
    title = f"Tokens of this story that the nucleus lacks: {', '.join(outside)}"
    axes = slide(title, 2, note="black frame: outside the nucleus; grey: not predicted")
    for ax, (name, rows) in zip(axes, told.groupby("model", sort=False), strict=True):
        draw_text(ax, rows)
        ax.set_title(name)
    plt.colorbar(plt.cm.ScalarMappable(cmap=SHADES), ax=axes, label="probability of the token", pad=0.01, aspect=40)


@figure_of("top_p_written")
def top_p_written(written: pd.DataFrame) -> None:
    """What a model writes at two settings, each token shaded by the probability that it was drawn with."""
    axes = np.atleast_1d(slide(findings.boldness(written), written["setting"].nunique()))
    for ax, (setting, rows) in zip(axes, written.groupby("setting", sort=False), strict=True):
        draw_text(ax, rows.assign(outside=False))
        ax.set_title(f"{rows['model'].iloc[0]}, {setting}")
    plt.colorbar(plt.cm.ScalarMappable(cmap=SHADES), ax=axes, label="probability of the token", pad=0.01, aspect=40)


@figure_of("top_p_tables")
def top_p_tables(tables: pd.DataFrame) -> None:
    """The tokens of a model's two tables on the plane in which each varies most, names apart from all others."""
    title = findings.table_map_sentence(tables)
    for ax, _, rows in panels(title, tables, "table", x="first direction", y="second direction", sharey=False):
        for chosen, label, style in ((False, "all other tokens", "o"), (True, "names", "D")):
            some = rows[rows["name"].astype(bool) == chosen]
            ax.plot(some["x"], some["y"], style, color=COLOURS[chosen], alpha=1 if chosen else 0.45, label=label)
    ax.legend()


@figure_of("top_p_quality")
def top_p_quality_diversity(groups: pd.DataFrame) -> None:
    """Diversity and perplexity of texts that two models wrote at several settings."""
    note = f"numbers: p; bars: 95 % intervals over groups of {groups['group_size'].iloc[0]} texts"
    ax = slide(findings.diversity_price(groups), note=note)
    spots = {  # where the numbers beside six points go
        "k-gram": [(14, -24), (12, -26), (6, -34), (-44, 24), (22, -28), (14, 8)],
        "LSTM": [(14, 10), (10, 14), (-66, 22), (-34, 54), (18, 46), (26, 12)],
    }
    p = groups.groupby("writer", sort=False)[["model", "p"]].first()
    same, judged = (intervals(groups, column, by="writer") for column in ("self-BLEU", "perplexity"))
    spread, x, y = (same["high"] - same["mean"], judged["high"] - judged["mean"]), 1 - same["mean"], judged["mean"]
    for name, style in model_styles(p["model"]).items():
        at = p.index[p["model"] == name]
        written = name in spots
        style |= {"label": name, "elinewidth": 1.5, "markersize": 12 if written else 28}
        ax.errorbar(x[at], y[at], spread[1][at].fillna(0), spread[0][at].fillna(0), **style)
        places = spots[name] if written and len(at) == 6 else [(12, 10)] * len(at)
        line = {"arrowstyle": "-", "linewidth": 1, "color": "0.4"}
        for writer, spot in zip(at if written else [], places, strict=False):
            label = "greedy" if math.isnan(p.loc[writer, "p"]) else f"{p.loc[writer, 'p']:g}"
            ax.annotate(label, (x[writer], y[writer]), spot, textcoords="offset points", fontsize=17, arrowprops=line)
    low, high = 0.93 * (y - spread[1].fillna(0)).min(), 1.15 * (y + spread[1].fillna(0)).max()
    ticks = [tick for tick in (1, 1.25, 1.5, 2, 2.5, 3, 4, 6, 10, 20, 50, 100, 200, 500, 1000) if low < tick < high]
    log_axes(ax, y=ticks)
    ax.set(xlabel="diversity: 1 - self-BLEU", ylabel="perplexity under the judge", ylim=(max(low, 0.95), high))
    ax.legend(loc="center right")


def draw_next_tokens(ax: Axes, rows: pd.DataFrame) -> None:
    """Bars of the most probable next tokens, blue where the nucleus keeps them."""
    ax.barh(range(len(rows)), rows["probability"], color=np.where(rows["kept"], COLOURS[0], "0.8"))
    ax.set_yticks(range(len(rows)), rows["token"])
    ax.invert_yaxis()
    ax.locator_params(axis="x", nbins=4)
    p, temperature, kept = rows[["p", "temperature", "nucleus"]].iloc[0]
    ax.set(xlabel="probability", title=f"p = {p:.2f}, T = {temperature:.1f}\n{kept:.0f} kept")


@figure_of("top_p_next_token")
def top_p_next_token(table: pd.DataFrame) -> None:
    """The most probable next tokens at three settings."""
    kept = table.drop_duplicates(["p", "temperature"])["nucleus"].map("{:,.0f}".format)
    title = f"The most probable next tokens; the nucleus (blue) holds {findings.join(kept)} tokens"
    for ax, _, rows in panels(title, table, ["p", "temperature"], sharex=True, sharey=False):
        draw_next_tokens(ax, rows)


@figure_of("generation_latency")
def generation_latency(growth: pd.DataFrame) -> None:
    """Milliseconds for one more token after texts of several lengths, whole text again or one step."""
    lengths = sorted(growth["length"].unique())
    times = findings.length_factors(growth)
    title = (
        f"From {lengths[0]} to {lengths[-1]:,} tokens of text one step takes {times['one step']:.1f} times as long, "
    )
    title += f"all logits again {times['whole text, all logits']:,.0f} times"
    note = f"medians of {growth['round'].nunique()} rounds, whiskers: lowest to highest"
    labels = {"x": "tokens in the text so far", "y": "ms for the next token"}
    for ax, _, rows in panels(title, growth, "model", note=note, **labels):
        for number, (way, some) in enumerate(rows.groupby("way", sort=False)):
            plot_spread(ax, some["ms"], some["length"], way, line_style(number))
        log_axes(ax, x=lengths, y=[3, 10, 30, 100, 300])
    plt.gcf().axes[0].legend(loc="upper left", fontsize=17)


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


def draw_three_curves(steps: pd.DataFrame, levels: dict[str, float], title: str) -> None:
    """Validation loss against steps, tokens and seconds."""
    rows = at_validations(in_order(steps))
    axes = slide(title, 1, 3, sharey=True)
    for ax, (x, label) in zip(axes, (X_LABELS | {"tokens": "targets used"}).items(), strict=True):
        plot_loss_curves(rows, x, ax=ax, legend=False)
        for name, style in zip(levels, ("-", (0, (6, 3))), strict=False):
            ax.axhline(levels[name], color="0.35", linewidth=1.5, linestyle=style, label=name)
        ax.margins(y=0.12)
        ax.set(xscale="log", ylabel="", xlabel=label)
        ax.xaxis.set_major_locator(mpl.ticker.LogLocator(subs={"tokens": (1,), "step": (1, 3)}.get(x, (1, 2, 5))))
        ax.xaxis.set_major_formatter(short_number)
        ax.minorticks_off()
    axes[0].set_ylabel("validation loss (nats)")
    handles, labels = axes[0].get_legend_handles_labels()
    columns = 5 if len(labels) <= 5 else 3
    plt.figlegend(handles, labels, loc="outside lower left", ncols=columns, fontsize=17)


@figure_of("stories_live", "stories_live_summary")
def stories_live_curves(steps: pd.DataFrame, summary: pd.DataFrame) -> None:
    """Validation loss of models trained live for a few seconds."""
    row = summary.iloc[0]
    levels = {f"Kneser-Ney, order {row['kneser_ney_order']}": row["kneser_ney_loss"]}
    levels |= {"Kneser-Ney, order 2": row["kneser_ney_2"]}
    loss = findings.comparison(intervals(summary, "validation_loss"), "validation loss")
    draw_three_curves(steps, levels, f"A few seconds each: {loss}")


@figure_of("stories_live_positions")
def stories_live_positions(positions: pd.DataFrame) -> None:
    """Validation loss by position in the story after the live training."""
    ax = slide(
        findings.position_sentence(positions),
        note="one seed",
        xlabel="position in the story",
        ylabel="loss (nats per token)",
    )
    plot_models(ax, in_order(positions).pivot_table("loss", "from", "model", sort=False))
    log_axes(ax, x=positions["from"].unique())
    ax.set_ylim(top=1.15 * positions["loss"].max())
    ax.legend(loc="upper left", ncols=3)


@figure_of("stories_5min", "stories_5min_summary")
def stories_curves(steps: pd.DataFrame, summary: pd.DataFrame) -> None:
    """Validation loss of four models trained for about five minutes on TinyStories."""
    levels = {"Kneser-Ney, order 4": summary.loc[summary["model"] == "k-gram", "kneser_ney_loss"].iloc[0]}
    loss = findings.comparison(intervals(summary, "validation_loss"), "validation loss")
    draw_three_curves(steps, levels, f"Up to {summary['wall_s'].max():,.0f} s each: {loss}")


@figure_of("stories_5min_summary", "stories_tokens_summary", prepare=findings.equal_tokens)
def stories_tokens(runs: pd.DataFrame) -> None:
    """Validation loss of LSTM and Transformer after equal numbers of tokens."""
    note = "each point a training of its own, with its own schedule; whiskers: lowest to highest seed"
    labels = {"xlabel": "million tokens of training", "ylabel": "validation loss (nats per token)"}
    ax = slide(findings.budget_sentence(runs), note=note, **labels)
    for model, style in model_styles(runs["model"]).items():
        rows = runs[runs["model"] == model]
        plot_spread(ax, rows["validation_loss"], rows["budget_tokens"] / 1e6, model, style)
    log_axes(ax, x=sorted(runs["budget_tokens"].unique() / 1e6))
    ax.legend()


@figure_of("stories_size_summary")
def stories_size(runs: pd.DataFrame) -> None:
    """Validation loss of each model and of counts against the number of stories, after equally many targets."""
    table = findings.losses_by_size(runs)
    labels = {"xlabel": "stories, made of the same halves", "ylabel": "validation loss (nats per token)"}
    tokens, steps = runs["budget_tokens"].max(), runs.loc[runs["models"] == "k-gram", "steps"].max()
    note = f"{tokens / 1e6:.1f} M targets each, {steps:,} steps of the k-gram; one seed"
    ax = slide(findings.larger_text_sentence(table), note=note, **labels)
    plot_models(ax, table)
    log_axes(ax, x=table.index)
    ax.legend()


@figure_of("stories_live_attention")
def stories_live_attention(rows: pd.DataFrame) -> None:
    """Where each head of the last block of a Transformer looks in the opening of a text."""
    for ax, head, own in panels(findings.attention_sentence(rows), rows, "head", x="attends to"):
        table = own.pivot(index="position", columns="seen", values="weight")
        ax.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        names = own.drop_duplicates("position")["token"].str.strip()
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=16)
        ax.set_yticks(range(len(names)), names, fontsize=16)
        ax.set_title(f"head {head}")


@figure_of("stories_5min_summary")
def stories_mixture(summary: pd.DataFrame) -> None:
    """Validation loss of each model, alone and mixed with counts."""
    note = f"bars: mean of {summary['seed'].nunique()} seeds, whiskers: lowest to highest"
    ax = slide(findings.mixture_gain(summary), note=note, ylabel="validation loss (nats per token)")
    rows = in_order(summary).rename(columns={"validation_loss": "alone", "mixed_loss": "with counts"})
    draw_bars(ax, rows.melt("model", ["alone", "with counts"]), "value", ["model", "variable"], "{:.2f}", middle="mean")
    counted = summary.loc[summary["model"] == "k-gram", "kneser_ney_loss"]
    counts = ax.bar([-1], counted.iloc[:1], 0.4, color="0.5")
    ax.bar_label(counts, fmt="%.2f", weight="bold", padding=4)
    ax.set_xticks(range(-1, rows["model"].nunique()), ["Kneser-Ney\norder 4", *rows["model"].unique()])


@figure_of("stories_5min_positions")
def stories_positions(positions: pd.DataFrame) -> None:
    """Validation loss by position in the story, and what it is less than the k-gram's."""
    positions = in_order(positions[positions["targets"] >= 500])
    title = findings.position_sentence(positions)
    note = f"mean of {positions['seed'].nunique()} seeds; the point at 17 is for positions 17 to 32, and so on"
    axes = slide(title, 1, 2, note=note, xlabel="position in the story")
    loss = positions.pivot_table("loss", "from", "model", sort=False)
    for ax, table in zip(axes, (loss, findings.same_position_gain(positions)), strict=True):
        plot_models(ax, table)
        log_axes(ax, x=[1, 2, 3, 5, 9, 17, 33, 65, 129, 257])
        ax.tick_params(axis="x", labelsize=17)
    axes[0].set_ylabel("loss (nats per token)")
    axes[1].set(ylabel="nats saved against the k-gram", ylim=0)
    axes[0].legend()


@figure_of("stories_k_summary", "stories_5min_summary")
def stories_k(by_k: pd.DataFrame, runs: pd.DataFrame) -> None:
    """Validation loss against k: the pooled k-gram, counts of the same context, and both mixed."""
    columns = {"validation_loss": "pooled k-gram", "kneser_ney_loss": "Kneser-Ney", "mixed_loss": "both mixed"}
    summary = findings.by_window(by_k, runs)
    ax = slide(
        findings.counts_by_k(summary),
        note="one seed each",
        xlabel="k, tokens of context",
        ylabel="validation loss (nats per token)",
    )
    plot_models(ax, summary.set_index("kgram_k")[list(columns)].rename(columns=columns))
    log_axes(ax, x=summary["kgram_k"].unique())
    ax.legend()


@figure_of("stories_window_tinystories", "stories_window_builtin")
def stories_window(real: pd.DataFrame, builtin: pd.DataFrame) -> None:
    """Validation loss of a k-gram whose window reaches the newest token, and of one that ends before it."""
    costs = sorted(map(findings.newest_token_cost, (real, builtin)))
    title = f"Not seeing the newest token costs {costs[0]:.1f} to {costs[1]:.1f} nats per token"
    ax = slide(title, note="one seed each", ylabel="validation loss (nats per token)")
    rows = pd.concat([real, builtin]).replace(
        {"stories": {"tinystories": "TinyStories", "builtin": "built-in stories"}}
    )
    rows = rows.replace({"model": {"window to t": "with the newest token", "window to t-1": "without it"}})
    rows["text"] = rows["stories"] + rows["steps"].map("\n({:,g} steps of training)".format)
    draw_bars(ax, rows, "validation_loss", ["text", "model"], "{:.2f}")


# -------------------------------------------------------------------------------------------------------------- 5 cost
@figure_of("cost_ladder")
def cost_ladder(ladder: pd.DataFrame) -> None:
    """Targets per second of one training step in each way, on two texts."""
    gain = findings.ladder_factors(ladder, "loop").median(axis=1).xs("embedding", level="model")
    title = f"The same mathematics {gain['3seqs.txt']:.0f} times as fast, {gain['stories']:.0f} times on "
    title += f"{findings.text_title('stories', ladder)} (embedding)"
    ladder, styles = findings.with_rate(ladder[ladder["way"].isin(LADDER)]), model_styles(ladder["model"])
    for ax, _, rows in panels(title, ladder, "text", y="targets/s"):
        for model, some in rows.groupby("model", sort=False):
            plot_spread(ax, some["rate"], some["way"].map(LADDER.index), model, styles[model] | {"markersize": 8})
        ax.axvspan(6.5, len(LADDER) - 0.5, color="0.93", zorder=0)
        ax.text(10.4, 7, "another result, or\nweighted by counts", ha="right", color="0.3", fontsize=16)
        log_axes(ax, y=[10**power for power in range(1, 7)])
        ax.set_xticks(range(len(LADDER)), LADDER, rotation=50, ha="right", rotation_mode="anchor", fontsize=16)
    plt.gcf().axes[0].legend(loc="upper left")


@figure_of("cost_shares")
def cost_shares(shares: pd.DataFrame) -> None:
    """Distinct contexts as a share of the targets, against k and against the batch's size."""
    new = findings.new_context_share(shares)
    each = [f"{share:.0%} in {text}" for text, share in new.items()]
    axes = slide(f"Distinct contexts in a batch of 32 at k = 3: {findings.join(each)}", 1, 2, sharey=True)
    for ax, x, fixed in zip(axes, ("kgram_k", "batch_size"), ("batch_size == 32", "kgram_k == 3"), strict=True):
        for number, (text, rows) in enumerate(shares.query(fixed).groupby("text", sort=False)):
            share = rows.groupby(x)["share"].first()
            ax.plot(share.index, 100 * share, label=shown(text), **line_style(number))
    axes[0].set(xlabel="k (32 sequences)", ylabel="distinct contexts (% of targets)", ylim=(0, 105))
    axes[1].set_xlabel("sequences in a batch (k = 3)")
    log_axes(axes[1], x=[1, 4, 16, 64, 256, 1024])
    axes[0].legend(loc="center right")


@figure_of("cost_parts")
def cost_parts(parts: pd.DataFrame) -> None:
    """Where the time of a step goes in four of the ways, on two texts."""
    title = "With all exact steps head and backward take {:.0%} of the time, on {} {:.0%} (embedding)"
    share = findings.head_and_backward_share(parts)
    title = title.format(share["3seqs.txt"], findings.text_title("stories", parts), share["stories"])
    styles = [(COLOURS[6], ""), (COLOURS[0], "//"), (COLOURS[4], ".."), (COLOURS[1], ""), (COLOURS[2], "xx")]
    parts = parts[parts["model"] == "embedding"].assign(net=parts["net"] + parts["context"])
    shown = {"loop": "loop", "one batch": "one batch", "distinct contexts": "distinct\ncontexts"}
    shown |= {"memory reuse": "all exact\nsteps"}
    for ax, _, rows in panels(title, parts, "text", x="% of the step"):
        rows = rows.set_index("way")[findings.PARTS[1:]].reindex(list(shown)).dropna().rename(shown)
        total = rows.sum(axis=1)
        labels = [f"{seconds:,.0f} s" if seconds > 10 else f"{1e3 * seconds:,.0f} ms" for seconds in total]
        draw_stack(ax, 100 * rows.div(total, axis=0), styles, labels)
        ax.set(xlim=(0, 138), xticks=range(0, 101, 25))
    plt.figlegend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5)


@figure_of("cost_ladder", "cost_texts", "cost_rates")
def cost_roof(ladder: pd.DataFrame, texts: pd.DataFrame, rates: pd.DataFrame) -> None:
    """The time of each exact way beside what its step must cost at the machine's best rates."""
    roof = findings.roof(ladder, texts, rates)
    share = roof[roof["text"] == "3seqs.txt"].set_index("way")["share_of_limit"]
    title = "The loop reaches {:.0%} of the machine's limit, all exact steps together {:.0%}"
    roof = roof.merge(texts[["text", "stories"]], on="text")
    order = findings.EXACT[::-1]
    note = "embedding design; limit: the sum of the limits of a step's parts; %: limit / measured"
    for ax, _, rows in panels(title.format(share["loop"], share["memory reuse"]), roof, "text", note=note):
        y = rows["way"].map(order.index)
        ax.hlines(y, rows["limit_ms"], rows["ms"], color="0.6", linewidth=6)
        ax.plot(rows["limit_ms"], y, "|", color="black", markersize=26, markeredgewidth=4, label="limit")
        ax.plot(rows["ms"], y, "o", color=COLOURS[1], markersize=13, label="measured")
        for at, where, reached in zip(y, rows["ms"], rows["share_of_limit"], strict=True):
            ax.annotate(f"{reached:.0%}", (where, at), (14, 0), textcoords="offset points", va="center", weight="bold")
        log_axes(ax, x=[10, 100, 1000, 10_000, 100_000])
        ax.set(yticks=range(len(order)), ylim=(-0.6, len(order) - 0.4), xlabel="ms a step", xlim=(10, 700_000))
        ax.set_yticklabels(["all exact steps" if way == "memory reuse" else way for way in order])
    plt.gcf().axes[0].legend(loc="lower right")


def draw_growth(growth: pd.DataFrame, title: str, label: str, values: str, axes: Sequence[str]) -> None:
    """A column of the growth records against some of the sizes: medians, bands from lowest to highest."""
    styles = model_styles(growth["model"])
    for ax, _, rows in panels(title, growth[growth["axis"].isin(axes)], "axis", y=label):
        for model, some in rows.groupby("model", sort=False):
            by_value = some.dropna(subset=values).groupby("value")[values]
            low, middle, high = (by_value.quantile(share) for share in (0, 0.5, 1))
            ax.plot(middle, **styles[model] | {"label": model})
            ax.fill_between(middle.index, low, high, color=styles[model]["color"], alpha=0.2, linewidth=0)
        sizes = sorted(rows["value"].unique())
        powers = [10**power for power in range(6) if growth[values].min() / 2 < 10**power < growth[values].max() * 2]
        log_axes(ax, x=[sizes[0], sizes[len(sizes) // 2], sizes[-1]], y=powers)
    plt.figlegend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)


@figure_of("cost_growth")
def cost_growth(growth: pd.DataFrame) -> None:
    """Time of a training step when one size grows."""
    slopes = findings.growth_slopes(growth).groupby("axis", sort=False).median()
    powers = ", ".join(f"{axis}^{slope:.1f}" for axis, slope in slopes.items())
    ms = growth.assign(ms=1e3 * growth["step_s"])
    draw_growth(ms, f"The time of a step grows as {powers} (medians)", "ms a step", "ms", ["V", "N", "H"])


@figure_of("cost_growth")
def cost_memory(growth: pd.DataFrame) -> None:
    """Peak memory of a training step when one size grows."""
    largest = growth[(growth["axis"] == "k") & growth["peak_mb"].notna()]
    k = largest["value"].max()
    peak = largest[largest["value"] == k].groupby("model", sort=False)["peak_mb"].max().sort_values(ascending=False)
    each = ", ".join(f"{name} {mb:.0f}" for name, mb in peak.items())
    draw_growth(growth, f"Peak MB of a step at k = {k}: {each}", "peak (MB)", "peak_mb", ["k", "V", "N"])


@figure_of("cost_sizes")
def cost_sizes(sizes: pd.DataFrame) -> None:
    """Seconds and memory of each stage from a text to a trained model against the size of the text."""
    slopes, each = findings.size_slopes(sizes)["seconds"], sizes.assign(name=findings.stage_names(sizes))
    most, peak = sizes["tokens"].max() / 1e6, sizes["peak_mb"].max() / 1e3
    title = f"Up to {most:,.3g} million tokens take {peak:.1f} GB at most"
    if slopes.notna().any():  # there are two sizes
        title += f"; the time of {slopes.idxmax()} grows fastest, as size^{slopes.max():.2f}"
    long = each.rename(columns={"peak_mb": "peak MB"}).melt(["stories", "name"], ["seconds", "peak MB"], "measure")
    for ax, _, rows in panels(title, long, "measure", x="stories", sharey=False):
        plot_models(ax, rows.pivot(index="stories", columns="name", values="value")[each["name"].unique()])
        powers = [10**n for n in range(-3, 6) if rows["value"].min() / 2 < 10**n < rows["value"].max() * 2]
        log_axes(ax, x=sorted(sizes["stories"].unique())[::2], y=powers)
    plt.figlegend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)


@figure_of("cost_latency")
def cost_latency(latency: pd.DataFrame) -> None:
    """Milliseconds for one new token after texts of several lengths, and of the head alone."""
    times, alone = findings.token_times_head(latency), latency["model"] == "the head"
    title = "A new token costs at most {:.1f} times the head, in the Transformer {:.1f} times, whatever came before"
    title = title.format(times.drop("Transformer").max(), times["Transformer"])
    ax = slide(title, note="bars: medians, whiskers: quartiles", ylabel="ms for a new token")
    rows = latency[~alone].sort_values("length", kind="stable")
    rows["length"] = rows["length"].map("after {:,} tokens".format)
    draw_bars(ax, rows, "ms", ["model", "length"], "{:.1f}", ends=(0.25, 0.75))
    head = latency.loc[alone, "ms"].median()
    ax.axhline(head, color="black", linestyle="--", linewidth=2, label=f"the head alone, {head:.1f} ms")
    ax.legend(ncols=2, loc="upper left")


# --------------------------------------------------------------------------------------------------------- 6 interview
EVIDENCE = ["kgram_designs_summary", "kgram_first_scale", "kgram_curve", "kgram_stories_summary"]
EVIDENCE += [
    "kgram_seconds_summary",
    "kgram_steps_summary",
    "kgram_floors_summary",
    "cost_ladder",
    "cost_parts",
    "cost_growth",
    "cost_latency",
]


@figure_of(*EVIDENCE, prepare=findings.evidence)
def interview_decision(evidence: pd.DataFrame) -> None:
    """What compares the designs (rows of `findings.evidence`), each value against the best mean of its line."""
    left_out = r"in turn|loop, |one batch|exact steps, 3seqs|a step, 3seqs|k = |power|above the"  # lines like others
    table = evidence[~evidence["criterion"].str.contains(left_out)].dropna(subset="mean")
    note = "each line: times its best mean; less is better; bars: 95 % intervals, hollow: one measurement"
    ax = slide(findings.decision_sentence(evidence), note=note)
    criteria, styles = table["criterion"].unique(), model_styles(table["model"])
    for number, criterion in enumerate(criteria):
        rows = table[table["criterion"] == criterion].set_index("model")[["mean", "low", "high", "higher"]]
        rows[["mean", "low", "high"]] = rows[["mean", "low", "high"]] ** np.where(rows["higher"].iloc[0], -1.0, 1.0)
        rows[["mean", "low", "high"]] /= rows["mean"].min()
        for place, (model, style) in enumerate(styles.items()):
            if model in rows.index:
                mean, low, high = rows.loc[model, ["mean", "low", "high"]].astype(float)
                y, alone = number + 0.22 * (place - (len(styles) - 1) / 2), math.isnan(low)
                style = style | {
                    "linestyle": "",
                    "markersize": 11,
                    "markerfacecolor": "white" if alone else style["color"],
                }
                ax.hlines(y, *sorted([low, high]), color=style["color"], linewidth=3)
                ax.plot(mean, y, **style, label=shown(model) if number == 0 else None)
        ax.axhspan(number - 0.5, number + 0.5, color="0.95" if number % 2 else "white", zorder=0)
    log_axes(ax, x=[1, 1.5, 2, 3, 4, 5])
    ax.set_yticks(range(len(criteria)), criteria, fontsize=18)
    ax.set(ylim=(len(criteria) - 0.5, -0.5), xlim=(0.9, 6))
    ax.legend(loc="lower right")


# ------------------------------------------------------------------------------------------------------ 7 bug museum
WHO = {"right": ("#0072B2", "-", ""), "with the fault": ("#D55E00", "--", "//")}  # colour, dash, hatch
ROOMS = {  # what a fault's picture shows: y, x; of bars there is no x
    "window": ("loss (nats)", "step"),
    "mask": ("loss (nats)", "step"),
    "padding": ("loss (nats)", "step"),
    "token 0": ("loss (nats)", "step"),
    "tied head": ("loss (nats)", "step"),
    "nucleus": ("mass kept", "p"),
    "ties": ("nuclei cut (%)", "p, in bfloat16"),
    "float32 sum": ("tokens kept", "1 − p"),
    "cache": ("error of the logits", "position"),
    "split": ("validation loss", "step"),
    "batch means": ("validation loss", "texts in a batch"),
    "training mode": ("validation loss", "evaluation"),
    "clock": ("tokens/s", ""),
    "best seed": ("validation loss", ""),
    "one side tuned": ("validation loss", ""),
}
LOGARITHMIC = {"mask", "padding", "token 0", "window", "tied head", "cache", "clock"}  # y


def decades(values: pd.Series, every: Sequence[float] = (1, 3)) -> list[float]:
    """Ticks of a logarithmic axis: 1 and 3 times the powers of ten between the lowest and the highest value."""
    ticks = [step * 10.0**power for power in range(-9, 12) for step in every]
    return [tick for tick in ticks if 0.8 * values.min() <= tick <= 1.2 * values.max()]


def draw_room(ax: Axes, fault: str, rows: pd.DataFrame) -> None:
    """A fault's picture beside the right one: lines, or bars where x are names."""
    y, x = ROOMS[fault]
    for number, (who, own) in enumerate(rows.groupby("who", sort=False)):
        colour, dash, hatch = WHO[who]
        if x:
            where = own["x"].astype(float)
            ax.plot(1 - where if x == "1 − p" else where, own["y"], dash, color=colour, linewidth=3, label=who)
        else:
            spots = np.arange(len(own)) + 0.4 * (number - 0.5)
            ax.bar(spots, own["y"], 0.38, color=colour, hatch=hatch, edgecolor="white", label=who)
            ax.set_xticks(range(len(own)), own["x"])
    if fault in LOGARITHMIC:
        log_axes(ax, y=decades(rows["y"], (1,) if rows["y"].max() > 1000 * rows["y"].min() else (1, 3)))
    if fault in ("float32 sum", "batch means"):
        where = rows["x"].astype(float)
        log_axes(ax, x=where.unique() if fault == "batch means" else [0.1, 0.001, 1e-5])
    if x == "1 − p":
        ax.invert_xaxis()
    told = findings.museum_numbers(rows).iloc[0]
    right, wrong = (short_number(value) if value >= 1000 else f"{value:.2f}" for value in told)
    ax.set_title(f"{fault}\n{wrong}, not {right}", fontsize=17)
    ax.set_xlabel(x, fontsize=16)
    ax.set_ylabel(y, fontsize=16)
    ax.tick_params(labelsize=16)


def draw_wing(title: str, rows: pd.DataFrame, *shape: int) -> None:
    """The pictures of several faults, with one legend."""
    axes = np.ravel(slide(title, *shape, note="below each name: the last number of both"))
    for ax, (fault, own) in zip(axes, rows.groupby("fault", sort=False), strict=False):
        draw_room(ax, fault, own)
    for ax in axes[rows["fault"].nunique() :]:
        ax.axis("off")
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="lower left", ncols=2, fontsize=16)


@figure_of("museum_training")
def museum_training(rows: pd.DataFrame) -> None:
    """Loss curves of trainings with a fault, each beside the right one."""
    draw_wing(findings.fallen_sentence(rows), rows, 2, 3)


@figure_of("museum_sampling")
def museum_sampling(rows: pd.DataFrame) -> None:
    """What faults of sampling change, each beside the right one."""
    draw_wing(f"Sampling: {findings.museum_sentence(rows)}", rows, 2, 2)


@figure_of("museum_reporting")
def museum_reporting(rows: pd.DataFrame) -> None:
    """What faults of reporting make of one and the same model."""
    draw_wing(f"Reporting: {findings.museum_sentence(rows)}", rows, 2, 3)
