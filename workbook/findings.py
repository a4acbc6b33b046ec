"""Each published number and each verdict, computed once: run records in, plain numbers out.

README, captions, titles, slides and notebook 06 format what these functions return and compute nothing. `load` turns
the name of a run into its frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from workbook.records import NO_INTERVAL, ROOT, intervals, load_runs, summarise, verdict

Load = Callable[[str], pd.DataFrame]
Check = Callable[..., None]  # (sentence, holds, shown)
DESIGNS = ["one-hot", "embedding", "convolution"]
KGRAM_K = {"3seqs.txt": 2, "stories": 3}  # in the cost records: the two texts, and the tokens of context
NAMES = {"tinystories": "TinyStories", "builtin": "built-in stories", "small": "small stories"}  # of texts
EXACT = ["loop", "one batch", "distinct contexts", "chunked head", "fused Adam", "memory reuse"]  # one result
PARTS = ["context", "net", "head", "loss", "backward", "optimiser"]
START, OTHERS = ["table_std", "learning_rate"], ["dropout", "blanks"]  # what kgram_search tries, first and then
DECIDES = "loss at best k"  # how the criteria of `evidence` begin of which the rule looks at the first
STANDINGS = ["best", "no difference shown", "worse than another", "measured once, or not run"]


def notes() -> pd.DataFrame:
    """What the notes report of the three designs (data/notes.csv), by model."""
    return pd.read_csv(ROOT / "data" / "notes.csv").set_index("model")


def text_title(text: object, rows: pd.DataFrame) -> object:
    """How a text of the cost records is called: "stories" by what its rows (column `stories`) were read from."""
    if text != "stories" or "stories" not in rows:
        return text
    name = rows.loc[rows["text"] == text, "stories"].iloc[0]
    return NAMES.get(name, name)


def with_rate(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a column `rate`: targets per second."""
    return frame.assign(rate=frame["tokens"] / frame["step_s"])


def ratios(frame: pd.DataFrame, column: str, value: str, above: object, below: object) -> pd.DataFrame:
    """median, min and max over the rounds of `value` at one setting of `column` over that at another, by model."""
    wide = frame.pivot(index=["model", "round"], columns=column, values=value)
    table = (wide[above] / wide[below]).groupby("model").agg(["median", "min", "max"])
    return table.loc[frame["model"].unique()]


def speed_factors(speed: pd.DataFrame) -> pd.DataFrame:
    """Median factors between the three ways of kgram_speed, by model: columns such as "one batch / loop"."""
    pairs = [("one batch", "loop"), ("distinct contexts", "loop"), ("distinct contexts", "one batch")]
    return pd.DataFrame({f"{a} / {b}": ratios(with_rate(speed), "way", "rate", a, b)["median"] for a, b in pairs})


def speed_order(steps: pd.DataFrame) -> str:
    """By how much the slowest model trains slower than the fastest, by the median rate of each seed's timed steps."""
    rate = with_rate(steps[steps["timed"]]).groupby(["seed", "model"])["rate"].median().unstack()
    slowest, fastest = rate.median().idxmin(), rate.median().idxmax()
    share = 1 - rate[slowest] / rate[fastest]
    if slowest == fastest:
        return f"{slowest} trains at {rate[slowest].median():,.0f} tokens/s"
    if share.min() <= 0:
        return "the order of the training speeds changes with the seed"
    if len(share) == 1:
        return f"{slowest} trains {share.iloc[0]:.0%} slower than {fastest} (one seed)"
    ends = [f"{end:.0%}" for end in (share.min(), share.max())]
    return f"{slowest} trains {' to '.join(dict.fromkeys(ends))} slower than {fastest}, seed by seed"


def plain_ladder(ladder: pd.DataFrame) -> pd.DataFrame:
    """The ladder with one-hot's lookup as its "one batch": its literal products of one-hot rows are left out."""
    literal = (ladder["model"] == "one-hot") & ladder["way"].isin(["one batch", "one batch, memory reuse"])
    return ladder[~literal].replace({"way": {"lookup": "one batch"}})


def ladder_factors(ladder: pd.DataFrame, base: str) -> pd.DataFrame:
    """Targets/s of all exact steps ("memory reuse") over those of way `base`: by text and model, a column a round."""
    rate = with_rate(plain_ladder(ladder)).pivot(index=["text", "model", "round"], columns="way", values="rate")
    return (rate["memory reuse"] / rate[base]).unstack("round")


def with_range(factors: pd.DataFrame) -> pd.Series:
    """Median (lowest to highest) over the rounds, which are the columns, as text."""
    spread = zip(factors.median(axis=1), factors.min(axis=1), factors.max(axis=1), strict=True)
    return pd.Series([f"{middle:,.1f} ({low:,.1f} to {high:,.1f})" for middle, low, high in spread], factors.index)


def gains_by_idea(ladder: pd.DataFrame, texts: pd.DataFrame) -> pd.DataFrame:
    """How often contexts repeat, and what each idea gains on the embedding step (medians): a row for each text."""
    step = ladder[ladder["model"] == "embedding"].groupby(["text", "way"])["step_s"].median().unstack()
    rows = {"targets / distinct contexts": targets_per_context(texts)}
    stages = {"loop → one batch": ("loop", "one batch"), "→ distinct contexts": ("one batch", "distinct contexts")}
    stages |= {"→ chunked head": ("distinct contexts", "chunked head"), "→ fused Adam": ("chunked head", "fused Adam")}
    stages |= {"→ memory reuse": ("fused Adam", "memory reuse")}
    rows |= {name: step[before] / step[after] for name, (before, after) in stages.items()}
    every = ladder_factors(ladder, "loop").median(axis=1).xs("embedding", level="model")
    return pd.DataFrame(rows | {"all exact steps": every})


def targets_per_context(texts: pd.DataFrame) -> pd.Series:
    """Targets of a batch for each of its distinct contexts, by text."""
    texts = texts.set_index("text")
    return texts["batch_targets"] / texts["batch_contexts"]


def new_context_share(shares: pd.DataFrame, k: int = 3, batch_size: int = 32) -> pd.Series:
    """Distinct contexts as a share of the targets of a batch, by text."""
    rows = shares[(shares["kgram_k"] == k) & (shares["batch_size"] == batch_size)]
    return rows.drop_duplicates("text").set_index("text")["share"]


def head_and_backward_share(parts: pd.DataFrame) -> pd.Series:
    """The share of a step that head and backward take with all exact steps (embedding), by text."""
    rows = parts[(parts["model"] == "embedding") & (parts["way"] == "memory reuse")].set_index("text")
    return rows[["head", "backward"]].sum(axis=1) / rows[PARTS].sum(axis=1)


def growth_slopes(growth: pd.DataFrame) -> pd.Series:
    """Slope of log(step_s) against log(value) for each axis, model and round: 1 is a time in proportion."""
    groups = growth.groupby(["axis", "model", "round"], sort=False)[["value", "step_s"]]
    return groups.apply(lambda rows: np.polyfit(np.log(rows["value"]), np.log(rows["step_s"]), 1)[0]).rename("slope")


def size_slopes(sizes: pd.DataFrame) -> pd.DataFrame:
    """Slope of log(seconds) and log(peak_mb) against log(tokens) of the text for each stage (and model): 1 is a time,
    or memory, in proportion. NaN where no memory was measured."""

    def slope(rows: pd.DataFrame, column: str) -> float:
        some = rows.dropna(subset=column)
        return np.polyfit(np.log(some["tokens"]), np.log(some[column]), 1)[0] if len(some) > 1 else np.nan

    named = sizes.assign(stage=stage_names(sizes))
    groups = named.groupby("stage", sort=False)[["tokens", "seconds", "peak_mb"]]
    return pd.DataFrame({column: groups.apply(slope, column=column) for column in ("seconds", "peak_mb")})


def losses_by_size(runs: pd.DataFrame) -> pd.DataFrame:
    """Validation loss of each model, and of Kneser-Ney, by the stories of the text that it was trained on."""
    runs = runs[runs["processes"].isna()]  # one process
    by_stories = runs.groupby("max_stories")["kneser_ney_loss"].mean()
    table = runs.pivot_table(index="max_stories", columns="models", values="validation_loss", sort=False)
    return table.assign(**{"Kneser-Ney": by_stories})


def larger_text_sentence(table: pd.DataFrame) -> str:
    """What the largest text changes in the losses, against the smallest."""
    least, most = table.index[[0, -1]]
    changes = ", ".join(f"{name} {change:+.2f}" for name, change in (table.iloc[-1] - table.iloc[0]).items())
    return f"{most / least:,.0f} times as many stories of the same halves change the loss: {changes} nats"


def stage_names(sizes: pd.DataFrame) -> pd.Series:
    """Of each row the stage, with its model where it has one."""
    return (sizes["stage"] + " " + sizes["model"].fillna("")).str.strip()


def token_times_head(latency: pd.DataFrame) -> pd.Series:
    """The median time of a new token, after the length where it is longest, over that of the head alone; by model."""
    ms = latency.groupby(["model", "length"], sort=False)["ms"].median().groupby("model", sort=False).max()
    return ms.drop("the head") / ms["the head"]


def generation_seconds(written: pd.DataFrame) -> pd.DataFrame:
    """Seconds for the whole text, by model and way; those of "one step" include the prompt."""
    seconds = written.groupby(["model", "way"], sort=False)["ms"].sum().unstack() / 1e3
    return seconds.assign(**{"one step": seconds["one step"] + seconds.pop("the prompt")})


def count_costs(
    way: str, text_row: Mapping, k: int, vocab_size: int, embed_size: int = 64, hidden_size: int = 256, layers: int = 2
) -> pd.DataFrame:
    """Floating-point operations (flop) and bytes that each part of an embedding step cannot do without, from shapes.

    `text_row`: a row of cost_texts. The loop goes through all weights for each target; logits that are kept are written
    once and read again; Adam reads four numbers a weight and writes three.
    """
    targets = int(text_row["batch_targets"])
    rows = targets if way in ("loop", "one batch") else int(text_row["batch_contexts"])
    net, head = k * embed_size * hidden_size + layers * hidden_size**2, hidden_size * vocab_size
    weights, times = vocab_size * embed_size + net + head, targets if way == "loop" else 1
    logits = rows * vocab_size if way in ("one batch", "distinct contexts") else 0
    gradients = times * 2 * (head + net) if way == "loop" else weights
    flop = {"net": 2 * rows * net, "head": 2 * rows * head, "loss": 0}
    flop |= {"backward": 4 * rows * (net + head), "optimiser": 0}
    numbers = {"net": times * net, "head": times * head + logits, "loss": 2 * logits}
    numbers |= {"backward": times * (head + net) + logits + gradients, "optimiser": 7 * weights}
    return pd.DataFrame({"flop": flop, "bytes": {part: 4 * number for part, number in numbers.items()}})


def limit_seconds(costs: pd.DataFrame, rates: Mapping) -> pd.Series:
    """The least seconds of each part: operations or bytes at the machine's best rates, whichever takes longer."""
    return np.maximum(costs["flop"] / rates["float32"], costs["bytes"] / rates["memory"])


def roof(ladder: pd.DataFrame, texts: pd.DataFrame, rates: pd.DataFrame, vocab_size: int = 50257) -> pd.DataFrame:
    """Each exact way of the embedding step against the machine's limit, the sum of the limits of its parts."""
    step = ladder[ladder["model"] == "embedding"].groupby(["text", "way"], sort=False)["step_s"].median()
    texts, points = texts.set_index("text"), []
    for text, way in (key for key in step.index if key[1] in EXACT):
        costs, seconds = count_costs(way, texts.loc[text], KGRAM_K[text], vocab_size), step[text, way]
        limit, (flop, moved) = limit_seconds(costs, rates.iloc[0]).sum(), costs[["flop", "bytes"]].sum()
        points.append((text, way, 1e3 * seconds, 1e3 * limit, flop / moved, flop / seconds / 1e9, limit / seconds))
    columns = ["text", "way", "ms", "limit_ms", "flop_per_byte", "gflop_per_s", "share_of_limit"]
    return pd.DataFrame(points, columns=columns)


def above_floor(floors: pd.DataFrame) -> pd.Series:
    """How many nats each row of kgram_floors_summary ends above the floor of its k."""
    return floors["loss"] - floors["floor"]


def newest_token_cost(window: pd.DataFrame) -> float:
    """What a window that lacks the newest token costs, in nats per token."""
    loss = window.set_index("model")["validation_loss"]
    return loss["window to t-1"] - loss["window to t"]


def same_position_gain(positions: pd.DataFrame) -> pd.DataFrame:
    """Nats that each model saves against the k-gram at the same position of a story, mean over seeds."""
    loss = positions.pivot_table(index="from", columns="model", values="loss")[positions["model"].unique()]
    return -loss.drop(columns="k-gram").sub(loss["k-gram"], axis=0)


def outside_nucleus(told: pd.DataFrame) -> pd.Series:
    """How many tokens of a story the nucleus of each model lacks (rows of top_p_coloured_story)."""
    return told.groupby("model", sort=False)["outside"].sum()


def level(table: pd.DataFrame) -> bool:
    """Whether all intervals of a table from `intervals` overlap: two rows at least, each with an interval."""
    has_all = len(table) > 1 and table[["low", "high"]].notna().all(axis=None)
    return bool(has_all and table["low"].max() <= table["high"].min())


def worse(table: pd.DataFrame, higher: bool = False) -> list[str]:
    """The names whose interval lies entirely on the worse side of another's; `higher`: whether higher is better."""
    low, high = (-table["high"], -table["low"]) if higher else (table["low"], table["high"])
    return [name for name in table.index if (high.drop(name) < low[name]).any()]


def join(names: Sequence[str]) -> str:
    """The names as in a sentence: a, b and c."""
    names = list(map(str, names))
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "none"


def comparison(table: pd.DataFrame, what: str, *, higher: bool = False, unit: str = "{:.2f}") -> str:
    """What a table from `intervals` shows of its rows, in one sentence that names no winner it does not have.

    `what` is the quantity, of which more is better where `higher` is true. Rows that are not `worse` than another are
    shown no different from each other. Without an interval the means alone are given.
    """
    order = table.sort_values("mean", ascending=not higher)
    means = ", ".join(f"{name} {unit.format(mean)}" for name, mean in order["mean"].items())
    if len(table) == 1:
        return f"{what}: {means}"
    if table[["low", "high"]].isna().any(axis=None):
        return f"{what}: {means} ({NO_INTERVAL})"
    lost = set(worse(table, higher))
    last, best = ([name for name in order.index if (name in lost) is side] for side in (True, False))
    if not last:
        return f"no difference in {what} is shown between {join(best)}"
    if len(best) == 1:
        return f"{best[0]} has the {'highest' if higher else 'lowest'} {what} ({means})"
    first = table.loc[best, "low"].idxmax() if higher else table.loc[best, "high"].idxmin()
    verb = f"{'have' if len(last) > 1 else 'has'} a {'lower' if higher else 'higher'} {what}"
    return f"{join(last)} {verb} than {first}; no difference between {join(best)} is shown"


# ---------------------------------------------------------------- numbers as text


def spread(values: pd.Series, digits: int = 2) -> str:
    """The median with the lowest and the highest, as text."""
    low, middle, high = (f"{value:,.{digits}f}" for value in values.quantile([0, 0.5, 1]))
    return f"{middle} (lowest to highest {low} to {high}, n = {len(values)})"


def interval(row: pd.Series, digits: int = 2) -> str:
    """A row of `intervals` as text: the mean and its 95 % interval, where it has one."""
    between = f"{row['low']:.{digits}f} to {row['high']:.{digits}f}, n = {row['n']:.0f}"
    return f"{row['mean']:.{digits}f} ({NO_INTERVAL if math.isnan(row['low']) else between})"


def evidence_cell(row: pd.Series) -> str:
    """A row of `evidence`, or of `intervals`, as short text."""
    if math.isnan(row["mean"]):
        return "not run"
    mean, low, high = (f"{row[c]:,.2f}" if row[c] < 100 else f"{row[c]:,.0f}" for c in ("mean", "low", "high"))
    return mean + (f" ({low} to {high})" if row["high"] > row["low"] else "")


def evidence_table(evidence: pd.DataFrame, reuse: pd.DataFrame) -> pd.DataFrame:
    """`evidence` with a row a line and a column a design; below, k-grams that start from another model's table."""
    cells = evidence.assign(cell=evidence.apply(evidence_cell, axis=1))
    wide = cells.pivot(index="criterion", columns="model", values="cell")[list(evidence["model"].unique())]
    each = evidence.groupby("criterion").agg(n=("n", "max"), verdict=("rule", "first")).astype({"n": int})
    table = wide.join(each).loc[evidence["criterion"].unique()]
    starts = intervals(reuse, "validation_loss")
    for start, label in {"fresh": "its own table", "from_lstm": "the LSTM's table"}.items():
        line = pd.Series(
            {"embedding": evidence_cell(starts.loc[start]), "n": starts["n"][start], "verdict": "not compared"}
        )
        table.loc[f"loss after 20 s, {label}"] = line.reindex(table.columns).fillna("not run")
    if "one-hot" in table:
        table.loc[table.index[-1], "one-hot"] = "cannot"
    return table.rename_axis(index="criterion", columns=None)


# ---------------------------------------------------------------- sentences, each as its data has it


def initialisation_effect(steps: pd.DataFrame, rescaled: pd.DataFrame) -> tuple[float, float]:
    """The most that a mean loss moves when its model is rescaled ("name rescaled"), and the range of the rescaled."""
    before, after = (summarise(frame).groupby("model")["mean_loss"].mean() for frame in (steps, rescaled))
    partners = before.reindex(after.index.str.removesuffix(" rescaled")).to_numpy()
    return float((after - partners).abs().max()), float(after.max() - after.min())


def mean_losses(curve: pd.DataFrame) -> pd.DataFrame:
    """The mean loss (nats, weighted by tokens) of each run of kgram_curve."""
    sums = curve.assign(nats=curve["loss"] * curve["tokens"]).groupby(["model", "learning_rate", "seed"], sort=False)
    return (sums["nats"].sum() / sums["tokens"].sum()).rename("mean_loss").reset_index()


def at_all_rates(curve: pd.DataFrame) -> pd.DataFrame:
    """Step rows of kgram_curve of the models that were trained at every learning rate: variants are at one."""
    rates = curve.groupby("model")["learning_rate"].transform("nunique")
    return curve[rates == rates.max()]


def best_rates(curve: pd.DataFrame) -> pd.Series:
    """Of each model in `at_all_rates` the learning rate with the lowest mean loss, the mean over the seeds."""
    rates = mean_losses(at_all_rates(curve)).groupby(["model", "learning_rate"], sort=False)["mean_loss"]
    return rates.mean().unstack().idxmin(axis=1)


def at_best_rates(curve: pd.DataFrame) -> pd.DataFrame:
    """Step rows of kgram_curve, each model at its best rate."""
    return curve[curve["model"].map(best_rates(curve)) == curve["learning_rate"]]


def steps_to_floor(curve: pd.DataFrame, nats: float = 0.1) -> pd.DataFrame:
    """The steps (median over seeds) until the loss is within `nats` of the floor, by learning rate (rows) and model:
    infinite where half of the seeds do not get there."""
    near = curve.assign(steps=curve["step"].where(curve["loss"] < curve["floor"] + nats, np.inf))
    each = near.groupby(["learning_rate", "model", "seed"], sort=False)["steps"].min()
    return each.groupby(["learning_rate", "model"], sort=False).median().unstack()


def step_text(steps: float, most: int) -> str:
    """A number of steps, or that it is more than were made."""
    return f"{steps:.0f}" if math.isfinite(steps) else f"over {most}"


def rate_effect(curve: pd.DataFrame) -> str:
    """How long the fastest and the slowest design take to the floor, as PyTorch draws them, at each learning rate."""
    steps, most = steps_to_floor(at_all_rates(curve[~curve["model"].str.endswith(" rescaled")])), curve["step"].max()
    ends = [(f"{rate:g}", *(step_text(end, most) for end in (row.min(), row.max()))) for rate, row in steps.iterrows()]
    each = [low + (f" to {high}" if high != low else "") + f" at {rate}" for rate, low, high in ends]
    return f"Steps to the floor, by rate: {', '.join(each)}"


def at_their_best(curve: pd.DataFrame) -> pd.DataFrame:
    """Each model at its best rate: the interval of its mean loss over the seeds, the rate, the steps to the floor."""
    best, steps = best_rates(curve), steps_to_floor(curve)
    table = intervals(mean_losses(at_best_rates(curve)), "mean_loss")
    return table.assign(rate=best, steps={name: steps.loc[rate, name] for name, rate in best.items()})


def last_layer(layers: pd.DataFrame) -> pd.DataFrame:
    """The share of the last layer's output that depends on the context, by model and step (rows of kgram_layers)."""
    return layers.groupby(["model", "step"], sort=False)["share"].last().unstack()


def layer_sentence(layers: pd.DataFrame) -> str:
    """The highest and the lowest share of `last_layer` before training."""
    shares = last_layer(layers).iloc[:, 0].sort_values()
    ends = [f"{shares.iloc[place]:.0%} ({shares.index[place]})" for place in (-1, 0)]
    return f"Before training the last layer depends on the context by {' down to '.join(ends[: len(shares)])}"


def wait_correlation(layers: pd.DataFrame, curve: pd.DataFrame) -> float:
    """Spearman's rank correlation, over the models in both, of the last layer's share before training and the steps to
    the floor at the lowest rate."""
    share, steps = last_layer(layers).iloc[:, 0].align(steps_to_floor(curve).iloc[0], join="inner")
    return share.rank().corr(steps.rank())


def cut_effect(exact: pd.DataFrame) -> str:
    """What p does to the share of exact lines at the highest temperature (rows of top_p_3seqs)."""
    drawn = exact[exact["p"] > 0].set_index("p")
    hottest = drawn["temperature"].max()
    share = drawn.loc[drawn["temperature"] == hottest, "exact"]
    return (
        f"Exact lines at T = {hottest}: {share[1.0]:.0%} without truncation, {share.max():.0%} at p = {share.idxmax()}"
    )


def boldness(written: pd.DataFrame) -> str:
    """The least probable token that was drawn at each setting (rows of top_p_written)."""
    least = written.groupby("setting", sort=False)["probability"].min()
    return f"The boldest word: probability {', '.join(f'{value:.2g} at {name}' for name, value in least.items())}"


def table_map_sentence(tables: pd.DataFrame) -> str:
    """In each table, how many names have a name as nearest token (rows of top_p_tables)."""
    count = tables.groupby("table")["name"].sum().iloc[0]
    if not count:
        return "The two tables of a k-gram, each on the plane in which it varies most"
    near = ", ".join(
        f"{table} {beside:.0f}" for table, beside in tables.groupby("table", sort=False)["near"].first().items()
    )
    return f"Names whose nearest token is a name, of {count}: {near}"


def attention_sentence(rows: pd.DataFrame) -> str:
    """How much of its attention each head has on the newest two tokens (rows of stories_live_attention)."""
    near = rows[(rows["position"] - rows["seen"] < 2) & (rows["position"] > 1)].groupby("head")["weight"].sum()
    share = near / rows[rows["position"] > 1].groupby("head")["weight"].sum()
    each = ", ".join(f"head {head} {value:.0%}" for head, value in share.items())
    return f"Attention on the newest two tokens: {each}"


def plus_minus(table: pd.DataFrame) -> pd.Series:
    """Means of a table from `intervals` with half of their 95 % interval, where they have one."""
    half = table["high"] - table["mean"]
    texts = [f"{mean:.3f}" + (f" ± {h:.3f}" if h == h else "") for mean, h in zip(table["mean"], half, strict=True)]
    return pd.Series(texts, table.index)


def diversity_price(groups: pd.DataFrame) -> str:
    """Diversity at the lowest and at the highest p, of each model (rows of top_p_quality)."""
    drawn = groups[groups["p"] > 0].assign(diversity=1 - groups["self-BLEU"])
    table = drawn.groupby(["model", "p"], sort=False)["diversity"].mean().unstack()
    if table.empty:
        return "Greedy alone: one text for each model, no diversity"
    low, high = min(table), max(table)
    each = [f"{row[low]:.2f}" + (f" to {row[high]:.2f}" if low < high else "") for _, row in table.iterrows()]
    where = f"from p = {low} to p = {high}" if low < high else f"at p = {low}"
    return f"Diversity {where}: {', '.join(f'{name} {text}' for name, text in zip(table.index, each, strict=True))}"


def length_factors(growth: pd.DataFrame) -> pd.Series:
    """How many times as long a token takes after the longest text as after the shortest, by way: the largest factor."""
    ms = growth.groupby(["way", "model", "length"])["ms"].median().unstack()
    return (ms.iloc[:, -1] / ms.iloc[:, 0]).groupby("way").max()


def position_sentence(positions: pd.DataFrame) -> str:
    """What the model that saves most against the k-gram at the last positions saves there, and at the first."""
    if "k-gram" not in set(positions["model"]) or positions["model"].nunique() == 1:
        return "Validation loss by position in the text"
    gain = same_position_gain(positions).dropna()
    name = gain.iloc[-1].idxmax()
    early, late = gain[name].iloc[0], gain[name].iloc[-1]
    if late <= 0:
        return f"From position {gain.index[-1]} on no model has a lower loss than the k-gram"
    where = f"{early:.2f} at the first target, {late:.2f} from position {gain.index[-1]} on"
    return f"{name}, nats saved against the k-gram: {where}"


def mixture_gain(summary: pd.DataFrame) -> str:
    """By how much mixing with counts lowers each model's validation loss, least and most."""
    gain = (summary["validation_loss"] - summary["mixed_loss"]).groupby(summary["model"]).mean().sort_values()
    least, most = (f"{gain.iloc[end]:.2f} ({gain.index[end]})" for end in (0, -1))
    verb = "lowers the loss by" if gain.min() > 0 else "changes the loss by a gain of"
    return f"Mixing with counts {verb} {least}" + (f" to {most} nats" if len(gain) > 1 else " nats")


def counts_by_k(summary: pd.DataFrame) -> str:
    """At how many values of k counts have a lower loss than the k-gram, and the mixture the lowest."""
    net, counted, mixed = (summary[name] for name in ("validation_loss", "kneser_ney_loss", "mixed_loss"))
    ahead, best = (counted < net).sum(), ((mixed < net) & (mixed < counted)).sum()
    return f"Counts have a lower loss than the net at {ahead} of {len(net)} k, the mixture has the lowest at {best}"


def deciding(table: pd.DataFrame) -> pd.DataFrame:
    """The line of `evidence` that the rule looks at, by model: the loss on real text after the first budget."""
    lines = table[table["criterion"].str.startswith(DECIDES)]
    return lines[lines["criterion"] == lines["criterion"].iloc[0]].set_index("model")


def decision_sentence(table: pd.DataFrame) -> str:
    """What the line of `evidence` that decides shows of the designs that were measured."""
    losses = deciding(table).dropna(subset="mean")
    compared = losses[losses["standing"] != STANDINGS[3]]
    return comparison(compared if len(compared) else losses, losses["criterion"].iloc[0])


def conclusion(table: pd.DataFrame) -> str:
    """What the rule leaves of the designs, as a slide in Markdown (rows of `evidence`)."""
    sentence, dropped = decision_sentence(table), deciding(table)["standing"] == STANDINGS[2]
    lines = [f"{sentence[0].upper()}{sentence[1:]}.", f"Dropped by the rule: {join(dropped.index[dropped])}."]
    lost = table[table["standing"] == STANDINGS[2]].groupby("model")["criterion"].nunique()
    each = [f"{name} in {lost.get(name, 0)}" for name in table["model"].unique()]
    lines.append(f"Of {table['criterion'].nunique()} measurements another design is better than {join(each)}.")
    return "## Conclusion\n\n" + "\n".join(f"- {line}" for line in lines)


def limits(load: Load = load_runs) -> str:
    """What the comparison of the designs rests on, as a slide in Markdown."""
    trained, stories, real = load("kgram_designs_summary"), load("kgram_stories_summary"), load("kgram_seconds_summary")
    lines = ["3seqs.txt has three distinct lines: it ranks nothing that reads further than them."]
    for rows in (trained, stories):
        row, text = rows.iloc[0], NAMES.get(rows["text"].iloc[0], rows["text"].iloc[0])
        setting = f"k = {row['kgram_k']}, hidden {row['hidden_size']}, Adam at {row['learning_rate']:g}"
        lines.append(
            f"{text}: {rows['seed'].nunique()} seeds, {row['steps']} steps, {setting}, V = {row['vocab_size']:,}."
        )
    row, windows = real.iloc[0], sorted(real["kgram_k"].unique())
    setting = f"k = {join(windows)}, hidden {row['hidden_size']}, {row['optimizer']}, rates searched with one seed"
    name = NAMES.get(row["stories"], row["stories"])
    budget = f"{row['budget_seconds']:g} s of training"
    lines.append(f"{name}: {real['seed'].nunique()} seeds, {budget}, {setting}, V = {row['vocab_size']:,}.")
    processor, threads = trained[["processor", "threads"]].iloc[0]
    lines.append(f"One machine: {processor}, {threads} threads.")
    lines.append("No difference means that none is shown: more seeds may show one.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def evidence_line(criterion: str, frame: pd.DataFrame, column: str, designs: Sequence) -> pd.DataFrame:
    """One line of `evidence`, a row for each design. More is better of rates, less of all else; n = 1: no verdict."""
    higher, table = criterion.startswith("targets/s"), intervals(frame, column).reindex(designs)
    rule, standing, measured = "one measurement", dict.fromkeys(designs, STANDINGS[3]), table.dropna(subset="mean")
    if len(measured) > 1 and measured["n"].min() > 1:
        rule = verdict(measured, higher_is_better=higher)
        standing |= dict.fromkeys(measured.index, STANDINGS[1]) | dict.fromkeys(worse(measured, higher), STANDINGS[2])
        standing |= {rule: STANDINGS[0]} if rule in standing else {}
    table = table.assign(criterion=criterion, higher=higher, rule=rule, standing=pd.Series(standing))
    columns = ["criterion", "higher", "rule", "model", "standing", "n", "mean", "low", "high"]
    return table.rename_axis("model").reset_index()[columns]


def evidence(load: Load = load_runs) -> pd.DataFrame:
    """Every record that compares the designs, each line judged by one rule: best only with the intervals apart."""
    trained, stories, real = load("kgram_designs_summary"), load("kgram_stories_summary"), real_runs(load)
    ladder, parts, growth, latency = (load(f"cost_{name}") for name in ("ladder", "parts", "growth", "latency"))
    rescaled = summarise(load("kgram_first_scale")).replace({"model": " rescaled$"}, "", regex=True)
    floors, ladder, curve = load("kgram_floors_summary"), with_rate(plain_ladder(ladder)), load("kgram_curve")
    tuned = f"loss on {NAMES.get(curve['text'].iloc[0], curve['text'].iloc[0])}, {curve['step'].max()} steps, best rate"
    most = floors.assign(nats=1e3 * above_floor(floors)).groupby("model", as_index=False)["nats"].max()
    text, told = (NAMES.get(rows["text"].iloc[0], rows["text"].iloc[0]) for rows in (trained, stories))
    name = NAMES.get(real["stories"].iloc[0], real["stories"].iloc[0])
    budgets = real.groupby("budget", sort=False)
    lines = [
        (f"loss on {text}, {trained['steps'].iloc[0]} steps", trained, "mean_loss"),
        (f"loss on {text}, equal initialisation", rescaled, "mean_loss"),
        (tuned, mean_losses(at_best_rates(curve)), "mean_loss"),
        (f"loss on {told}, {stories['steps'].iloc[0]} steps", stories, "validation_loss"),
        *((f"{DECIDES} on {name}, {budget}", at_best_k(rows), "validation_loss") for budget, rows in budgets),
        ("most above the lowest loss (nats / 1000)", most, "nats"),
        (f"targets/s, trained in turn, {text}", trained, "tokens_per_s"),
    ]
    for text in KGRAM_K:
        name = text_title(text, ladder)
        for way in ("loop", "one batch", "memory reuse"):
            rows = ladder[(ladder["text"] == text) & (ladder["way"] == way)]
            lines.append((f"targets/s, {way.replace('memory reuse', 'all exact steps')}, {name}", rows, "rate"))
        rows = parts[(parts["text"] == text) & (parts["way"] == "memory reuse")]
        lines.append((f"peak MB of a step, {name}", rows, "peak_mb"))
    by_k, slopes = growth[(growth["axis"] == "k") & growth["peak_mb"].notna()], growth_slopes(growth).reset_index()
    k, length = by_k["value"].max(), latency["length"].max()
    lines += [
        (f"peak MB of a step, k = {k}", by_k[by_k["value"] == k], "peak_mb"),
        *((f"time grows with {axis} to the power", slopes[slopes["axis"] == axis], "slope") for axis in "Vk"),
        (f"ms a new token after {length:,}", latency[latency["length"] == length], "ms"),
        ("million weights", trained.assign(millions=trained["parameters"] / 1e6), "millions"),
    ]
    return pd.concat([evidence_line(*line, trained["model"].unique()) for line in lines], ignore_index=True)


def decision_table(criteria: Mapping[str, tuple[pd.DataFrame, bool]]) -> pd.DataFrame:
    """Means by criterion and model with the verdict of each line; a criterion: (its intervals, higher is better)."""
    table = pd.DataFrame({name: each["mean"] for name, (each, _) in criteria.items()}).T
    return table.assign(verdict=[verdict(each, higher_is_better=higher) for each, higher in criteria.values()])


def require(sentence: str, holds: bool, shown: object = "") -> None:
    """ValueError where the record does not bear out a sentence of RESULTS.md; `shown` are the numbers it stands on."""
    if not holds:
        raise ValueError(
            f"data/runs does not show that {sentence} ({numbers(shown)}): look at the runs, and change the template"
        )


def numbers(shown: object) -> str:
    """A table from `intervals`, a series by name, or a number, as text."""
    if isinstance(shown, pd.DataFrame):
        return ", ".join(f"{name} {evidence_cell(row)}" for name, row in shown.iterrows())
    if isinstance(shown, pd.Series):
        names = [" ".join(map(str, name)) if isinstance(name, tuple) else name for name in shown.index]
        return ", ".join(f"{name} {numbers(value)}" for name, value in zip(names, shown, strict=True))
    return f"{shown:,.3g}" if isinstance(shown, (float, np.floating)) else str(shown)


def sentences(load: Load = load_runs) -> pd.DataFrame:
    """Each sentence that RESULTS.md rests on, by section: whether these runs bear it out (`holds`), and their numbers
    (`shown`)."""
    rows: list[tuple[str, str, bool, str]] = []
    sections = {"Speed": finding, "Three designs": designs, "Three designs on real stories": real_designs}
    sections |= {"Sampling": sampling, "Stories": stories, "What a token costs": cost}
    for section, block in sections.items():

        def check(sentence: str, holds: bool, shown: object = "", section: str = section) -> None:
            rows.append((section, sentence, bool(holds), numbers(shown)))

        block(load, check)
    return pd.DataFrame(rows, columns=["section", "sentence", "holds", "shown"]).set_index(["section", "sentence"])


def finding(load: Load = load_runs, check: Check = require) -> dict:
    """How many times as fast the same mathematics runs, and how much of it is the text."""
    speed, shared = load("kgram_speed"), targets_per_context(load("cost_texts"))
    factors, loop = speed_factors(speed), with_rate(speed[speed["way"] == "loop"]).groupby("model")["rate"].median()
    close = (loop / notes()["tokens_per_s"]).between(0.5, 2).all()
    check("the loop here has the notes' rates to a factor of two", close, loop)
    last = factors["distinct contexts / one batch"]
    check("the last step is mostly the text's repetition", last.max() < 2 * shared["3seqs.txt"], last)
    stories = ladder_factors(load("cost_ladder"), "loop").loc[("stories", "embedding")].median()
    return {"factors": factors, "shared": shared, "stories": stories}


def designs(load: Load = load_runs, check: Check = require) -> dict:
    """Loss, rates and sizes of the three designs, and on which text which is worse."""
    trained, stories = load("kgram_designs_summary"), load("kgram_stories_summary")
    loss, equal = intervals(trained, "mean_loss"), intervals(summarise(load("kgram_first_scale")), "mean_loss")
    short = intervals(stories, "validation_loss")
    check("embedding and convolution are level", level(loss.drop("one-hot")), loss.drop("one-hot"))
    higher = loss.loc["one-hot", "low"] > loss.drop("one-hot")["high"].max()
    check("one-hot has a higher loss than both", higher, loss)
    mixed = equal.drop("convolution rescaled")
    lower = mixed["high"].max() < loss["low"].min()
    check("one-hot and embedding rescaled have a lower loss than all three", lower, equal)
    check("between these two no difference is shown", level(mixed), mixed)
    slower = equal.loc["convolution rescaled", "low"] > mixed["high"].max()
    check("the convolution rescaled has a higher loss than both", slower, equal)
    lowest = verdict(short, higher_is_better=False)
    check("embedding has the lowest loss on stories", lowest == "embedding", short)
    curve = load("kgram_curve")
    steps, most, whole = steps_to_floor(curve), curve["step"].max(), at_their_best(curve)
    tuned = whole["steps"]
    check("at its best rate every design comes to the floor", tuned.max() < np.inf, tuned)
    noted = intervals(mean_losses(curve[curve["learning_rate"] == curve["learning_rate"].min()]), "mean_loss")
    for where, table, there in (("the notes'", noted, steps.iloc[0]), ("its best", whole, tuned)):
        first = verdict(table.loc[list(loss.index)], higher_is_better=False)
        own = there[list(loss.index)]
        check(f"at {where} rate the embedding has the lowest mean loss", first == "embedding", table.loc[own.index])
        check(f"at {where} rate the embedding is there first", own.idxmin() == "embedding", own)
    both = whole.loc[["embedding", "one-hot rescaled"]]
    check("one-hot rescaled is level with it", level(both), both)
    rate, each = with_rate(load("kgram_speed")).groupby(["model", "way"])["rate"], trained.groupby("model")
    values = {"loss": loss, "equal": equal, "short": short, "rate": rate.median().unstack()}
    values |= {
        "steps": steps.iloc[0].map(lambda n: step_text(n, most)),
        "tuned": tuned.map(lambda n: step_text(n, most)),
    }
    values |= {"best": whole["rate"], "rates": join(sorted(curve["learning_rate"].unique()))}
    values |= {"parameters": each["parameters"].first(), "seconds": each["wall_s"].mean().sum()}
    return values | {"inputs": trained["kgram_k"].iloc[0] * trained["vocab_size"].iloc[0]}


def real_designs(load: Load = load_runs, check: Check = require) -> dict:
    """The designs on TinyStories: each at its best k, what a longer window and shared tables do, and smaller tables."""
    every = real_runs(load)
    runs, steps = first_budget(every), every[every["budget_seconds"].isna()]
    best, loss = intervals(at_best_k(runs), "validation_loss").assign(kgram_k=best_k(runs)), by_k(runs)
    check("the rule leaves the convolution alone", verdict(best, higher_is_better=False) == "convolution", best)
    mixed, others = by_k(runs, "mixed_loss"), best["kgram_k"].drop("convolution")
    falls = loss["convolution"].is_monotonic_decreasing
    check("the loss of the convolution falls to the longest window", falls, loss["convolution"])
    check("the loss of the others rises before that", others.max() < loss.dropna().index[-1], others)
    lowest = (loss.index[-1], "convolution")
    least = mixed.stack()
    mixture = "mixed with counts too the convolution with the longest window is lowest"
    check(mixture, least.idxmin() == lowest, mixed.min())
    tables = table_effect(search_trials(load("kgram_search"), load("kgram_search_summary")))
    check("the embedding gains most by smaller tables", (tables.idxmax(axis=1) == "embedding").all(), tables.stack())
    apart = best["mean"].max() - best["mean"].min()
    check("that is more than lies between the designs", tables["embedding"].min() > apart, apart)
    shared = (loss["one-hot"] - loss["embedding"]).dropna()
    helps = (shared.loc[2:] > 0).all() and shared[1] < 0
    check("from k = 2 on one table for all places has the lower loss", helps, shared)
    few, more = (steps[steps["steps"] == number] for number in sorted(steps["steps"].unique()))
    even = intervals(at_best_k(few), "validation_loss").assign(kgram_k=best_k(few), steps=few["steps"].iloc[0])
    left = verdict(even, higher_is_better=False)
    check("after equal steps too it leaves the convolution", left == "convolution", even)
    further = at_best_k(more).set_index("model")[["kgram_k", "steps", "validation_loss"]]
    ahead = further["validation_loss"].idxmin() == "convolution"
    check("with more steps the convolution is ahead", ahead, further["validation_loss"])
    values = {"runs": runs, "best": best, "loss": loss, "mixed": mixed, "tables": tables, "apart": apart}
    return values | {"even": even, "further": further, "shared": shared, "size": by_k(runs, "parameters")}


def sampling(load: Load = load_runs, check: Check = require) -> dict:
    """What p does to a fair coin and to stories, and what a text and the filter cost."""
    coin, quality = load("top_p_3seqs").set_index(["temperature", "p"]), load("top_p_quality")
    fair, small = coin.loc[(1, 0.6)], coin.loc[(1, 0.4)]
    check("the coin is fair at p = 0.6", fair["low"] < 0.5 < fair["high"], fair[["' 1'", "low", "high"]])
    check("only one side is left at p = 0.4", small["' 1'"] in (0, 1), float(small["' 1'"]))
    bleu, judged = (intervals(quality, column, by="writer") for column in ("self-BLEU", "perplexity"))
    for name in ("k-gram", "LSTM"):
        less = bleu.loc[f"{name}, p = 1.0", "high"] < bleu.loc[f"{name}, p = 0.5", "low"]
        check(
            f"the {name} is less diverse at p = 0.5 than at p = 1",
            less,
            bleu.loc[[f"{name}, p = 1.0", f"{name}, p = 0.5"]],
        )
    for p in (writer.removeprefix("LSTM, ") for writer in judged.index if writer.startswith("LSTM, p")):
        better = judged.loc[f"LSTM, {p}", "high"] < judged.loc[f"k-gram, {p}", "low"]
        check(f"the judge is less surprised by the LSTM at {p}", better, judged.loc[[f"LSTM, {p}", f"k-gram, {p}"]])
    return {"fair": fair, "cost": load("top_p_cost").groupby("logits")[["filter / sort", "kept"]].median()}


def stories(load: Load = load_runs, check: Check = require) -> dict:
    """The five-minute runs on TinyStories beside counts, and embeddings that start from another model's."""
    runs, reuse = load("stories_5min_summary"), load("stories_reuse_summary")
    kgram, text = runs[runs["model"] == "k-gram"].iloc[0], load("stories_text_tinystories").set_index("split")
    loss, starts = intervals(runs, "validation_loss"), intervals(reuse, "validation_loss")
    used, seconds = runs.groupby("model")["tokens"].mean(), runs["wall_s"].max()
    both = loss.loc[["LSTM", "Transformer"]]
    check("LSTM and Transformer are level", level(both), both)
    check("the Transformer has used fewer tokens than the LSTM", used["Transformer"] < used["LSTM"], used)
    equal = equal_tokens(load)
    lowest = lowest_by_budget(equal)
    few, many = (lowest.index[lowest == name] for name in ("LSTM", "Transformer"))
    crossed = len(few) + len(many) == len(lowest) and few.max() < many.min()
    check("with few tokens the LSTM has the lower loss, with more the Transformer", crossed, budget_means(equal))
    check("the pooled k-gram lies between k-gram and LSTM", between(loss, "k-gram", "pooled k-gram", "LSTM"), loss)
    check("its text is that of the models", (text["vocab_size"] == kgram["vocab_size"]).all(), kgram["vocab_size"])
    check("the LSTM's embedding helps most", verdict(starts, higher_is_better=False) == "from_lstm", starts)
    nats, bits = kgram["kneser_ney_loss"], kgram["bits_per_byte"] / kgram["validation_loss"]  # bits per byte for a nat
    values = {"kgram": kgram, "counted": {"loss": nats, "perplexity": np.exp(nats), "bits_per_byte": bits * nats}}
    values |= {"loss": loss.sort_values("mean", ascending=False), "mean": runs.groupby("model").mean(numeric_only=True)}
    values |= {"contexts": kgram["steps"] * kgram["batch_size"], "start_seconds": reuse["wall_s"].median()}
    values["cross"] = few.max(), many.min()
    values["equal"] = budget_means(equal).unstack()
    values |= {"starts": starts, "seconds": seconds, "window": window_parts(load("stories_k_summary"), runs)}
    return values | {"text": text, "outside": text.loc["validation", "outside"] / text.loc["validation", "targets"]}


def equal_tokens(load: Load = load_runs) -> pd.DataFrame:
    """Run rows of LSTM and Transformer with each `budget_tokens` that both were trained with; `model` is which."""
    runs = pd.concat([load("stories_5min_summary"), load("stories_tokens_summary")], ignore_index=True)
    runs = runs[runs["models"].isin(["LSTM", "Transformer"])].assign(model=lambda rows: rows["models"])
    return runs[runs.groupby("budget_tokens")["model"].transform("nunique") == 2].sort_values("budget_tokens")


def budget_means(runs: pd.DataFrame) -> pd.Series:
    """The mean loss after each number of tokens, by model (rows of `equal_tokens`)."""
    return runs.groupby(["budget_tokens", "model"])["validation_loss"].mean()


def lowest_by_budget(runs: pd.DataFrame) -> pd.Series:
    """By number of tokens the model with the lowest loss, or that no difference is shown (rows of `equal_tokens`)."""
    tables = {tokens: intervals(rows, "validation_loss") for tokens, rows in runs.groupby("budget_tokens")}
    return pd.Series({tokens: verdict(table, higher_is_better=False) for tokens, table in tables.items()})


def budget_sentence(runs: pd.DataFrame) -> str:
    """Which of the two has the lower loss after each number of tokens."""
    lowest = lowest_by_budget(runs)
    millions = {name: [f"{tokens / 1e6:g}" for tokens in lowest.index[lowest == name]] for name in lowest.unique()}
    each = [f"{name} after {join(tokens)} M tokens" for name, tokens in millions.items()]
    return f"Lower loss: {', '.join(each)}"


def search_trials(steps: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of kgram_search with `loss`: the lowest while training, on stories that are there to choose by; the
    `table_std` of tables as PyTorch draws them is 0."""
    return runs.assign(
        loss=runs["model"].map(steps.groupby("model")["validation_loss"].min()), table_std=runs["table_std"].fillna(0)
    )


def searched(trials: pd.DataFrame) -> pd.DataFrame:
    """What the search found for each design and window: the best tables and rate, all else as in the first trial, then
    with these the best value of each other option (rows of `search_trials`)."""
    found = {}
    for key, rows in trials.groupby(["kgram_net", "kgram_k"], sort=False):
        usual = rows[(rows[OTHERS] == rows[OTHERS].iloc[0]).all(axis=1)]
        best = usual.loc[usual["loss"].idxmin()]
        row = best[START].to_dict()
        for option in OTHERS:
            same = [*START, *(other for other in OTHERS if other != option)]
            near = rows[(rows[same] == best[same]).all(axis=1)]
            row[option] = near.loc[near["loss"].idxmin(), option]
        found[key] = row
    return pd.DataFrame(found).T


def rate_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """The rows of `search_trials` that differ in tables and rate alone, by rate."""
    rows = trials[(trials[OTHERS] == trials[OTHERS].iloc[0]).all(axis=1)]
    return rows.sort_values(["kgram_k", "learning_rate"], kind="stable")


def table_effect(trials: pd.DataFrame) -> pd.DataFrame:
    """By how much (nats) drawing the token tables smaller lowers the loss, each at its best rate: by k and design."""
    best = rate_trials(trials).groupby(["kgram_k", "kgram_net", "table_std"])["loss"].min().unstack()
    return (best[0] - best[trials["table_std"].max()]).unstack()


def table_sentence(trials: pd.DataFrame) -> str:
    """Which design gains most by smaller token tables, and how much."""
    effect = table_effect(trials).stack()
    k, design = effect.idxmax()
    size = trials["table_std"].max()
    if effect.max() <= 0:
        return f"No design gains by token tables from N(0, {size:g}²)"
    return f"Token tables from N(0, {size:g}²) lower the loss of the {design} at k={k} by {effect.max():.2f} nats"


def real_runs(load: Load = load_runs) -> pd.DataFrame:
    """Rows of the designs on TinyStories, equal seconds first: `model` is the design, `budget` what each training had,
    in words. What takes them below takes those of one budget."""
    seconds, steps = load("kgram_seconds_summary"), load("kgram_steps_summary")
    seconds = seconds.assign(budget=seconds["budget_seconds"].map("{:g} s".format))
    runs = pd.concat([seconds, steps.assign(budget=steps["steps"].map("{:,} steps".format))], ignore_index=True)
    return runs.assign(model=runs["kgram_net"])


def first_budget(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of `real_runs` that decide between the designs: those with equal seconds."""
    return runs[runs["budget"] == runs["budget"].iloc[0]]


def by_k(runs: pd.DataFrame, column: str = "validation_loss") -> pd.DataFrame:
    """The mean of a column of `real_runs` by k (rows) and design."""
    return runs.groupby(["kgram_k", "model"])[column].mean().unstack()[runs["model"].unique()]


def at_best_k(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of `real_runs` of each design at the k where its mean loss is lowest."""
    return runs[runs["kgram_k"] == runs["model"].map(by_k(runs).idxmin())]


def best_k(runs: pd.DataFrame) -> pd.Series:
    """That k, by design."""
    return at_best_k(runs).groupby("model", sort=False)["kgram_k"].first()


def best_k_sentence(runs: pd.DataFrame) -> str:
    """Which design has the lowest loss at the k where each is best."""
    return comparison(intervals(at_best_k(runs), "validation_loss"), "loss at best k")


def size_sentence(runs: pd.DataFrame) -> str:
    """How many weights each design holds at its best k."""
    best = at_best_k(runs).drop_duplicates("model")[["model", "parameters", "kgram_k"]].to_numpy()
    each = [f"{name} {weights / 1e6:.1f} (k={k})" for name, weights, k in best]
    return f"Million weights where each design is best: {', '.join(each)}"


def by_window(by_k: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The pooled k-gram with each window, in order of k: the rows of stories_k, and seed 0 of the long runs."""
    longest = runs[(runs["model"] == "pooled k-gram") & (runs["seed"] == 0)]
    return pd.concat([by_k, longest]).sort_values("kgram_k", ignore_index=True)


def between(table: pd.DataFrame, *names: str) -> bool:
    """Whether the intervals of the named rows come one after the other, apart, from the highest to the lowest."""
    rows = table.loc[[*names]]
    return bool((rows["low"].to_numpy()[:-1] > rows["high"].to_numpy()[1:]).all())


def window_parts(by_k: pd.DataFrame, runs: pd.DataFrame) -> dict[str, float]:
    """How the distance in loss from the k-gram to the LSTM (nats) is made up, from mean losses.

    `net`: the pooled net at the k of the k-gram (in stories_k). `window`: its longest window. `rest`: what is left.
    """
    loss, k = runs.groupby("model")["validation_loss"].mean(), runs.loc[runs["model"] == "k-gram", "kgram_k"].iloc[0]
    pooled, ends = by_k.loc[by_k["kgram_k"] == k, "validation_loss"].iloc[0], loss["pooled k-gram"]
    parts = {"net": loss["k-gram"] - pooled, "window": pooled - ends, "rest": ends - loss["LSTM"]}
    return parts | {"whole": sum(parts.values())}


def museum_numbers(rows: pd.DataFrame) -> pd.DataFrame:
    """What a reader of each fault's picture is told at its right end, and what is right (rows of museum_training …)."""
    return rows.groupby(["fault", "who"], sort=False)["y"].last().unstack()[["right", "with the fault"]]


def museum_sentence(rows: pd.DataFrame) -> str:
    """How many of the faults move their number by more than a tenth."""
    numbers = museum_numbers(rows)
    moved = (numbers["with the fault"] - numbers["right"]).abs() > 0.1 * numbers["right"].abs()
    return (
        f"{moved.sum()} of {len(numbers)} faults move their number by more than a tenth: {join(numbers.index[moved])}"
    )


def fallen_sentence(rows: pd.DataFrame) -> str:
    """How many of the curves with a fault fall to less than half of their first loss, and to what."""
    losses = rows[rows["who"] == "with the fault"].groupby("fault", sort=False)["y"].agg(["first", "last"])
    fallen, last = losses["last"] < losses["first"] / 2, losses["last"]
    where = f"they end at {last.min():.2f} to {last.max():.2f} nats"
    return f"{fallen.sum()} of {len(losses)} wrong trainings fall to less than half of their first loss; {where}"


def cost(load: Load = load_runs, check: Check = require) -> dict:
    """One training step, from the loop to all exact steps: rates, memory, growth, and what reused memory is worth."""
    ladder, parts, growth, processes = (load(f"cost_{name}") for name in ("ladder", "parts", "growth", "processes"))
    losses = processes.groupby(["model", "processes"])["loss"].last().unstack()
    check("one and two processes end at the same loss", (losses[1] - losses[2]).abs().max() < 1e-4, losses[1])
    key, reuse = ["text", "model", "way"], ladder_factors(ladder, "one batch, memory reuse").median(axis=1)
    values = {"rate": with_rate(plain_ladder(ladder)).groupby(key)["rate"].median().unstack()}
    values |= {"peak_mb": plain_ladder(parts).set_index(key)["peak_mb"].unstack(), "reuse": reuse.unstack("model")}
    return values | {"slope": growth_slopes(growth).groupby(["axis", "model"]).median().unstack("axis")}
