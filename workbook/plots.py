"""How the figures of gallery.py look: slides, readable in grey and from the last row; curves and bars of step rows."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.font_manager
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbook.files import write_whole
from workbook.records import output_folder

MODELS = ["one-hot", "embedding", "convolution", "LSTM", "Transformer", "k-gram"]  # each has a style of its own
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9"]  # Okabe & Ito 2008
DASHES = ["-", "--", "-.", (0, (8, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (3, 3))]
MARKERS = "os^DvP*"
FALLBACKS = ["Noto Sans CJK SC", "Microsoft YaHei", "PingFang SC", "WenQuanYi Zen Hei", "Arial Unicode MS"]
X_LABELS = {"step": "training step", "tokens": "tokens seen", "elapsed_s": "training time (s)"}


def set_style() -> None:
    """A slide's size and large type, Okabe-Ito colours, and SVG files that do not change from run to run.

    What the usual font lacks, Chinese among it, comes from one of FALLBACKS that the machine has.
    """
    plt.style.use(Path(__file__).parent / "templates" / "slides.mplstyle")
    mpl.rc("axes", prop_cycle=plt.cycler(color=COLOURS))
    mpl.rc("font", family=["DejaVu Sans", *(name for name in FALLBACKS if name in mpl.font_manager.get_font_names())])


def line_style(number: int) -> dict:
    """Colour, dash and marker of the n-th line: any one of them tells it from the others."""
    index = number % len(COLOURS)
    return {"color": COLOURS[index], "linestyle": DASHES[index], "marker": MARKERS[index]}


def model_styles(names: Iterable[str]) -> dict[str, dict]:
    """The line style of each model: a known one has the same in all figures, others take what is left in this one.

    "name rescaled" has the colour of its model, with another dash and marker.
    """
    names = list(dict.fromkeys(names))
    base = {name: name.removesuffix(" rescaled") for name in names}
    numbers = {name: MODELS.index(base[name]) for name in names if base[name] in MODELS}
    rest = [len(MODELS), 3, 4, 5, 2, 1, 0]  # those that the designs of the k-gram have come last
    left = (n for n in itertools.chain(rest, itertools.count(7)) if n % len(COLOURS) not in set(numbers.values()))
    styles = {name: line_style(numbers[name] if name in numbers else next(left)) for name in names}
    for name in names:
        if name != base[name] and name in numbers:
            styles[name] |= line_style(numbers[name] + 3) | {"color": COLOURS[numbers[name]]}
    return styles


def shown(name: object) -> str:
    """A name as a label: matplotlib leaves those that begin with _ out of a legend."""
    return f" {name}" if str(name).startswith("_") else str(name)


def slide(title: str, *shape: int, note: str = "", sharex: Any = False, sharey: Any = False, **each: Any) -> Any:
    """The axes of a figure (`shape`: rows, columns), its finding on top, a note below; `each`: xlabel … of them all."""
    figure, axes = plt.subplots(*shape, sharex=sharex, sharey=sharey, subplot_kw=each)
    lines = max(1, math.ceil(len(title) / 57))  # of about the same length
    figure.suptitle(textwrap.fill(title, math.ceil(len(title) / lines) + 6, break_on_hyphens=False), x=0.01, ha="left")
    if note:
        figure.supxlabel(note, x=0.99, ha="right", color="0.3")
    return axes


def _draw_level(ax: Axes, frame: pd.DataFrame, name: str, level: float) -> None:
    """A horizontal line, named at the end that the losses (as logarithms) are farther from."""
    ax.axhline(level, color="0.35", linewidth=1.2, linestyle=(0, (2, 2)))
    distance, part = np.log(frame["loss"] / level).abs(), frame["step"] / frame["step"].max()
    left = distance[part <= 1 / 3].min() > distance[part >= 2 / 3].min()
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "top"}
    place |= {"xytext": (4 if left else 0, -4), "ha": "left" if left else "right"}
    ax.annotate(name, (1 - left, level), color="0.25", **place)


def titled(ax: Any, title: str) -> Any:
    """The axes under their title, or those of a new slide."""
    if ax is None:
        return slide(title)
    ax.set_title(title or ax.get_title("left"))
    return ax


def plot_loss_curves(
    frame: pd.DataFrame, x: str = "step", *, title: str = "", levels: Mapping | None = None, ax: Any = None, legend=True
) -> Axes:
    """Loss against `x` ("step", "tokens" or "elapsed_s"), a line a model: mean over seeds, band min to max.

    `levels` draws horizontal lines (ln V, a floor), named at the end that the curves are farther from. Without `ax` a
    slide is made. Against tokens and seconds, x is the mean over seeds of what a model has used after each step.
    Returns the axes.
    """
    if x not in X_LABELS:
        raise ValueError(f"x is {x!r}; expected one of {', '.join(X_LABELS)}")
    ax = titled(ax, title)
    for model, style in model_styles(frame["model"]).items():
        rows = frame[frame["model"] == model]
        position = rows.groupby("seed")["tokens"].cumsum() if x == "tokens" else rows[x]
        by_step = rows.assign(position=position).groupby("step")
        where, loss = by_step["position"].mean(), by_step["loss"]
        ax.plot(where, loss.mean(), label=shown(model), color=style["color"], linestyle=style["linestyle"])
        ax.fill_between(where, loss.min(), loss.max(), color=style["color"], alpha=0.2, linewidth=0)
    for name, level in (levels or {}).items():
        _draw_level(ax, frame, name, level)
    seeds = frame["seed"].nunique()
    note = f"\n(lines: mean of {seeds} seeds, bands: lowest to highest)" if seeds > 1 else ""
    ax.set(xlabel=X_LABELS[x] + note, ylabel="loss (nats per token)")
    if x == "step":
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    if legend:
        ax.legend()
    return ax


def plot_throughput(frame: pd.DataFrame, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Bars of tokens/s from step rows: the median over the timed rows, whiskers at the quartiles, n below."""
    ax, timed = titled(ax, title), frame[frame["timed"]]
    rate = (timed["tokens"] / timed["step_s"]).groupby(timed["model"], sort=False)
    median, q1, q3 = (rate.quantile(share) for share in (0.5, 0.25, 0.75))
    colours = [style["color"] for style in model_styles(median.index).values()]
    names = [f"{name}\n(n = {n})" for name, n in rate.count().items()]
    bars = ax.bar(names, median, yerr=[median - q1, q3 - median], color=colours, capsize=6)
    ax.bar_label(bars, fmt="{:,.0f}", padding=4, weight="bold")
    ax.set(ylabel="tokens/s", xlabel="bars: median of n timed steps, whiskers: quartiles", ylim=(0, 1.15 * q3.max()))
    ax.yaxis.set_major_formatter("{x:,.0f}")
    return ax


def save_figure(fig: Figure, name: str, folder: Path | None = None) -> list[Path]:
    """Write <name>.png (200 dpi) and .svg into the folder, by default out/figures: the same bytes each time."""
    paths = [(folder or output_folder("figures")) / f"{name}{ending}" for ending in (".png", ".svg")]
    write_whole(paths[0], lambda path: fig.savefig(path, format="png", dpi=200, metadata={"Software": None}))
    write_whole(paths[1], lambda path: fig.savefig(path, format="svg", metadata={"Date": None}))
    return paths
