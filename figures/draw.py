"""Slide-sized figures from run records, readable in grey and from the last row.

helpers.py hands all of this on; import it from there. The figures themselves are in gallery.py.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from data.records import output_folder

# fmt: off
__all__ = [
    "COLOURS", "DASHES", "MARKERS", "HATCHES", "set_style", "slide", "plot_loss_curves", "plot_throughput",
    "save_figure",
]
# fmt: on

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe & Ito 2008
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2))]
MARKERS = "os^Dv*P"
HATCHES = ["", "//", "..", "xx", "--", "\\\\", "++"]


def set_style() -> None:
    """A slide's size (16:9) and large type, Okabe-Ito colours, and SVG files that do not change from run to run."""
    mpl.rcParams.update(
        {
            "figure.figsize": (40 / 3, 7.5),
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.h_pad": 0.12,
            "figure.constrained_layout.w_pad": 0.12,
            "figure.dpi": 60,
            "font.size": 20,
            "axes.titlesize": 22,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "figure.titlesize": 27,
            "figure.titleweight": "bold",
            "figure.labelsize": 16,
            "legend.fontsize": 19,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": mpl.cycler(color=COLOURS),
            "legend.frameon": False,
            "lines.linewidth": 3,
            "lines.markersize": 10,
            "hatch.linewidth": 2,
            "svg.hashsalt": "pico-llm workbook",
        }
    )


def slide(title: str, rows: int = 1, columns: int = 1, *, note: str = "", **options):
    """A figure with its finding on top and a note on what was measured below; the figure and its axes.

    `options` go to `plt.subplots`.
    """
    figure, axes = plt.subplots(rows, columns, **options)
    lines = max(1, math.ceil(len(title) / 57))  # of about the same length
    figure.suptitle(textwrap.fill(title, math.ceil(len(title) / lines) + 6), x=0.01, ha="left")
    if note:
        figure.supxlabel(note, x=0.99, ha="right", color="0.3")
    return figure, axes


def _titled(ax, title: str):
    """The axes with their title, or those of a new slide."""
    if ax is None:
        return slide(title)[1]
    ax.set_title(title)
    return ax


def _distance(frame: pd.DataFrame, level: float, begin: float, end: float) -> float:
    """How near the losses come to a level in a part of the training, as a difference of logarithms."""
    part = frame["step"].between(begin * frame["step"].max(), end * frame["step"].max())
    return np.log(frame.loc[part, "loss"] / level).abs().min()


def plot_loss_curves(
    frame: pd.DataFrame, x: str = "step", *, title: str = "", levels: Mapping[str, float] | None = None, ax=None
):
    """Loss against `x` ("step", "tokens" or "elapsed_s"), a line a model: mean over seeds, band min to max.

    `levels` draws horizontal lines (ln V, a floor), named at the end that the curves are farther from.
    Against tokens and seconds, x is the mean over seeds of what a model has used after each step. Returns the axes.
    """
    labels = {"step": "training step", "tokens": "tokens seen", "elapsed_s": "training time (s)"}
    if x not in labels:
        raise ValueError(f"x is {x!r}; expected one of {', '.join(labels)}")
    ax = _titled(ax, title)
    for number, (model, rows) in enumerate(frame.groupby("model", sort=False)):
        position = rows.groupby("seed")["tokens"].cumsum() if x == "tokens" else rows[x]
        at = rows.assign(position=position).groupby("step")
        where, loss = at["position"].mean(), at["loss"]
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
        ax.plot(where, loss.mean(), label=model, **style)
        ax.fill_between(where, loss.min(), loss.max(), color=style["color"], alpha=0.2, linewidth=0)
    for name, level in (levels or {}).items():
        ax.axhline(level, color="0.35", linewidth=1.2, linestyle=(0, (2, 2)))
        left = _distance(frame, level, 0, 1 / 3) > _distance(frame, level, 2 / 3, 1)
        spot = {"xycoords": ("axes fraction", "data"), "xytext": (4 if left else 0, -4), "textcoords": "offset points"}
        ax.annotate(name, (1 - left, level), **spot, ha="left" if left else "right", va="top", color="0.25")
    seeds = frame["seed"].nunique()
    note = f"{labels[x]}\n(lines: mean of {seeds} seeds, bands: lowest to highest)" if seeds > 1 else labels[x]
    ax.set(xlabel=note, ylabel="loss (nats per token)")
    if x == "step":
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    ax.legend()
    return ax


def plot_throughput(frame: pd.DataFrame, *, title: str = "", ax=None):
    """Bars of tokens/s from step rows: the median over timed steps, whiskers at the quartiles, n below.

    Warm-up steps are left out. Returns the axes.
    """
    ax = _titled(ax, title)
    timed = frame[~frame["warm_up"]]
    rate = (timed["tokens"] / timed["step_s"]).groupby(timed["model"], sort=False)
    median, q1, q3 = rate.median(), rate.quantile(0.25), rate.quantile(0.75)
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(median))]
    names = [f"{name}\n(n = {n})" for name, n in rate.count().items()]
    bars = ax.bar(names, median, yerr=[median - q1, q3 - median], color=colours, capsize=6)
    for bar, value, top in zip(bars, median, q3, strict=True):
        spot = (bar.get_x() + bar.get_width() / 2, top)
        ax.annotate(f"{value:,.0f}", spot, (0, 4), textcoords="offset points", ha="center", weight="bold")
    ax.set(ylabel="tokens/s", xlabel="bars: median of n timed steps, whiskers: quartiles")
    ax.set_ylim(0, 1.15 * q3.max())
    ax.yaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))
    return ax


def save_figure(fig, name: str) -> list[Path]:
    """Write figures/<name>.png (200 dpi) and .svg, or under WORKBOOK_OUT; the same figure gives the same bytes."""
    paths = [output_folder("figures") / f"{name}{ending}" for ending in (".png", ".svg")]
    fig.savefig(paths[0], dpi=200, metadata={"Software": None})
    fig.savefig(paths[1], metadata={"Date": None})
    return paths
