"""Figures show the rows that their labels name, and can be read."""

import itertools
import re
import warnings

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import pandas as pd  # noqa: E402
import pytest  # noqa: E402
from oracles import ROOT  # noqa: E402

from workbook import findings, gallery, plots  # noqa: E402
from workbook.gallery import GALLERY, title_of  # noqa: E402
from workbook.plots import plot_loss_curves, plot_throughput, save_figure, set_style  # noqa: E402
from workbook.records import load_runs  # noqa: E402


@pytest.fixture
def frame():
    rows = [
        {"run": "r", "model": model, "seed": seed, "step": step, "tokens": 10, "loss": base + seed - 0.1 * step}
        | {"step_s": 0.1 * speed, "elapsed_s": 0.1 * speed * step, "timed": step > 1}
        for model, base, speed in (("one", 9.0, 1), ("two", 7.0, 2))
        for seed in range(3)
        for step in range(1, 5)
    ]
    yield pd.DataFrame(rows)
    plt.close("all")


@pytest.mark.parametrize("x, end", [("step", 4), ("tokens", 40), ("elapsed_s", None)])
def test_each_line_shows_the_rows_of_its_label(frame, x, end):
    ax = plot_loss_curves(frame, x, title="A finding", levels={"ln V": 10.8})
    lines = {line.get_label(): line for line in ax.get_lines()}
    for model in ("one", "two"):
        rows = frame[frame["model"] == model]
        assert lines[model].get_ydata() == pytest.approx(rows.groupby("step")["loss"].mean().to_numpy())
        assert lines[model].get_xdata()[-1] == pytest.approx(end or rows["elapsed_s"].max())
    bands = [band.get_paths()[0].vertices[:, 1] for band in ax.collections]
    for band, model in zip(bands, ("one", "two"), strict=True):
        rows = frame[frame["model"] == model]
        assert (band.min(), band.max()) == pytest.approx((rows["loss"].min(), rows["loss"].max()))
    assert 10.8 in [line.get_ydata()[0] for line in ax.get_lines()] and "ln V" in [t.get_text() for t in ax.texts]
    assert lines["one"]._unscaled_dash_pattern != lines["two"]._unscaled_dash_pattern
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]
    assert ax.figure.get_suptitle() == "A finding" and "nats" in ax.get_ylabel()
    assert "3 seeds" in ax.get_xlabel()


def test_bars_start_at_zero_and_carry_n_and_spread(frame):
    frame.loc[frame["step"] == 2, "step_s"] *= 2  # some spread
    ax = plot_throughput(frame)
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([100, 50])
    assert ax.get_ylim()[0] == 0 and {bar.get_y() for bar in ax.patches} == {0}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["one\n(n = 9)", "two\n(n = 9)"]
    (whiskers,) = (container for container in ax.containers if hasattr(container, "has_yerr"))
    assert whiskers.has_yerr
    ends = [end for segment in whiskers[2][0].get_segments() for end in segment[:, 1]]
    assert ends == pytest.approx([50, 100, 25, 50])  # of 3 halved rates and 6 whole ones
    assert {text.get_text(): text.xy[1] for text in ax.texts} == pytest.approx({"100": 100, "50": 50})


@pytest.mark.parametrize(
    "name", ["$$", "$^$", r"\frac{$", "_name", "100 %s %", "<b>&amp;", "中文", "a\nb", "{x}", "#1"]
)
def test_odd_names_are_drawn_as_they_are(frame, name, tmp_path):
    set_style()
    rows = frame.replace({"model": {"one": name}})
    for ax in (plot_loss_curves(rows, title=f"{name} is lower", levels={name: 9.5}), plot_throughput(rows, title=name)):
        shown = [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else []
        shown = shown or [label.get_text().split("\n(n")[0] for label in ax.get_xticklabels()]
        assert name in [text.strip() for text in shown]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # where no font has Chinese
            plots.save_figure(ax.figure, "odd", tmp_path)


def test_unknown_axes_say_so(frame):
    with pytest.raises(ValueError, match="expected one of step, tokens, elapsed_s"):
        plot_loss_curves(frame, "hours")


def test_a_model_has_one_style_and_every_line_its_own():
    styles = plots.model_styles(["mine", "LSTM", "one-hot", "mine too", "another"])
    assert styles["LSTM"] == plots.model_styles(["LSTM"])["LSTM"] == plots.line_style(plots.MODELS.index("LSTM"))
    for key in ("color", "linestyle", "marker"):
        assert len({str(style[key]) for style in styles.values()}) == len(styles)


def test_data_is_no_mathematics(frame):
    set_style()
    ax = plot_loss_curves(frame.replace({"model": {"one": "$a_1$", "two": "$5 to $6_"}}), title="$x$ costs $5")
    ax.figure.canvas.draw()
    texts = [text for text in ax.figure.findobj(matplotlib.text.Text) if "$" in text.get_text()]
    assert len(texts) == 3 and not any(text.get_parse_math() for text in texts)


def test_a_figure_drawn_twice_has_the_same_bytes(frame, workbook_out):
    def draw():
        set_style()
        ax = plot_loss_curves(frame)
        paths = save_figure(ax.figure, "twice")
        plt.close("all")
        return [path.read_bytes() for path in paths]

    assert draw() == draw()
    assert {path.name for path in (workbook_out / "figures").iterdir()} == {"twice.png", "twice.svg"}


# ------------------------------------------------------------------------------------------------ the gallery

CAPTIONS = (ROOT / "figures" / "CAPTIONS.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=GALLERY)
def drawn(request):
    set_style()
    figure = gallery.draw(request.param, load_runs)
    figure.set_dpi(200)  # as the files are
    figure.canvas.draw()
    yield request.param, figure
    plt.close(figure)


def shown_texts(figure):
    """(text, box in pixels) of all that is written, upright, in the figure."""
    hidden = set()
    for ax in figure.axes:
        for axis, limits in ((ax.xaxis, sorted(ax.get_xlim())), (ax.yaxis, sorted(ax.get_ylim()))):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not (ax.axison and limits[0] <= tick.get_loc() <= limits[1]):
                    hidden |= {tick.label1, tick.label2}
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_visible() and text.get_text().strip()]
    upright = [text for text in texts if text not in hidden and text.get_rotation() in (0, 90)]
    return [(text, text.get_window_extent()) for text in upright]


def test_a_figure_is_a_slide_that_can_be_read_from_the_last_row(drawn):
    name, figure = drawn
    assert figure.get_size_inches().tolist() == pytest.approx([40 / 3, 7.5])
    width, height = figure.bbox.size
    for text, box in shown_texts(figure):
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, f"{name} clips {text.get_text()!r}"
        assert text.get_fontsize() >= 16, text.get_text()  # points on a slide 13 inches wide
        assert "\\math" not in text.get_text(), f"{name}: {text.get_text()!r} is not set as mathematics"


def test_no_two_texts_of_a_figure_overlap(drawn):
    name, figure = drawn
    for (one, a), (other, b) in itertools.combinations(shown_texts(figure), 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        same = one.get_text() == other.get_text()  # a word drawn above its own box
        assert min(overlap) <= 2 or same, f"{name}: {one.get_text()!r} and {other.get_text()!r} overlap"


def test_lines_differ_without_their_colour(drawn):
    _, figure = drawn
    for ax in figure.axes:
        lines = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
        looks = [(str(line._unscaled_dash_pattern), str(line.get_marker())) for line in lines]
        assert len(set(looks)) == len(looks)


def test_the_captions_are_those_of_the_figures(drawn):
    name, figure = drawn
    assert len(title_of(figure)) > 20  # a finding, not a label
    assert gallery.render_captions([(name, title_of(figure))]).split("\n\n", 2)[2] in CAPTIONS
    assert all((ROOT / "data" / "runs" / f"{run}.csv").exists() for run in GALLERY[name].runs)


def test_the_gallery_is_what_lies_in_the_folder():
    assert CAPTIONS.startswith(gallery.render_captions([]))
    assert len(GALLERY) >= 10 and re.findall(r"^## (\w+)$", CAPTIONS, re.M) == list(GALLERY)
    for ending in ("png", "svg"):
        assert {path.stem for path in (ROOT / "figures").glob(f"*.{ending}")} == set(GALLERY)


def test_every_figure_is_drawn_by_a_notebook():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert {name for name in GALLERY if f"gallery.{name}(" in sources} == set(GALLERY)


def test_figures_are_drawn_into_the_folder_that_is_named(tmp_path):
    before, figures = dict(matplotlib.rcParams), plt.get_fignums()
    ((name, title),) = gallery.draw_figures(["kgram_parameters"], load_runs, folder=tmp_path)
    assert name == "kgram_parameters" and f"**{title}**" in gallery.render_captions([(name, title)])
    assert {path.name for path in tmp_path.iterdir()} == {"kgram_parameters.png", "kgram_parameters.svg"}
    assert plt.imread(tmp_path / "kgram_parameters.png").shape[:2] == (1500, 2666)  # 16:9
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == figures
    with pytest.raises(ValueError, match="no figure is called kgram_sped; there are sanity_check_loss"):
        gallery.draw_figures(["kgram_parameters", "kgram_sped"], load_runs, folder=tmp_path / "not made")
    with pytest.raises(ValueError, match="no figure is called kgram_sped"):
        gallery.draw("kgram_sped", load_runs)


# ---------------------------------------------------------------- titles say what their data shows

LOSSES = ["loss", "validation_loss", "mean_loss", "mixed_loss", "kneser_ney_loss"]
OF_SEEDS = ["kgram_side_by_side", "kgram_stories", "kgram_by_k", "stories_curves"]
OF_SEEDS += ["interview_decision"]
OF_MODELS = [*OF_SEEDS, "kgram_by_cost", "kgram_first_scale", "kgram_floors", "stories_mixture", "stories_live_curves"]
OF_MODELS += ["top_p_coloured_story", "top_p_quality_diversity"]


def title_with(name, change):
    """The title of a figure that is drawn from changed records."""
    set_style()
    figure = gallery.draw(name, lambda run: change(load_runs(run)))
    title = title_of(figure)
    plt.close(figure)
    return title


def exchange(text, one, other):
    return text.replace(one, "\0").replace(other, one).replace("\0", other)


@pytest.mark.parametrize("name", OF_MODELS)
def test_a_title_follows_the_names_of_its_rows(name):
    pair = ("k-gram", "LSTM") if name.startswith(("stories", "top_p")) else ("one-hot", "embedding")

    def change(frame):
        columns = [column for column in ("model", "writer", "kgram_net") if column in frame]
        return frame.assign(**{column: frame[column].map(lambda text: exchange(text, *pair)) for column in columns})

    def words(title):  # in any order: "a and b" may have become "b and a"
        return sorted(re.findall(r"[^ ,;()]+", title))

    before, after = title_with(name, lambda frame: frame), title_with(name, change)
    assert words(after) == words(exchange(before, *pair))
    assert ("k-gram" in before) == ("LSTM" in after) if pair[0] == "k-gram" else True


@pytest.mark.parametrize("name", OF_SEEDS)
def test_a_title_of_one_seed_shows_no_difference_and_no_winner(name):
    title = title_with(name, lambda frame: frame[frame["seed"] == 0] if "seed" in frame else frame)
    assert "one seed" in title
    assert not re.search("difference|higher|lowest|highest|seed by seed|none such", title)


@pytest.mark.parametrize(
    "name", ["kgram_side_by_side", "kgram_stories", "kgram_by_k", "stories_curves", "interview_decision"]
)
def test_a_title_of_equal_losses_names_no_winner(name):
    title = title_with(name, lambda frame: frame.assign(**{column: 2.0 for column in LOSSES if column in frame}))
    assert "o difference in" in title and not re.search("higher|lowest|highest|one seed", title)


@pytest.mark.parametrize("factor", [0.5, 2])
@pytest.mark.parametrize("name", ["kgram_side_by_side", "kgram_stories", "stories_curves"])
def test_a_title_names_a_fourth_model_where_it_differs(name, factor):
    def change(frame):
        if "model" not in frame:
            return frame
        rows = frame[frame["model"] == frame["model"].iloc[0]]
        columns = [column for column in LOSSES if column in frame]
        level = frame[columns].min() if factor < 1 else frame[columns].max()
        mine = rows.assign(model="mine", **{column: factor * level[column] for column in columns})
        return pd.concat([frame, mine])

    title = title_with(name, change)
    quantity = "mean loss" if name == "kgram_side_by_side" else "validation loss"
    if factor < 1:
        assert f"mine has the lowest {quantity}" in title
    else:
        assert "mine" in title and f"mine has the lowest {quantity}" not in title


def test_a_title_of_speed_names_the_slowest_and_none_where_seeds_disagree():
    def slow(frame):
        mine = frame[frame["model"] == "embedding"].assign(model="mine", step_s=lambda rows: 100 * rows["step_s"])
        return pd.concat([frame, mine])

    def title(change):
        set_style()
        figure = gallery.draw("kgram_side_by_side", lambda run: change(load_runs(run)))
        words = " ".join(figure.axes[1].get_title("left").split())
        plt.close(figure)
        return words

    assert title(slow).startswith("Mine trains 99%")
    flip = {0: 1.0, 1: 1.0, 2: 0.01}  # with the last seed one-hot is the fastest

    def disagree(frame):
        factor = frame["seed"].map(flip).where(frame["model"] == "one-hot", 1.0)
        return frame.assign(step_s=frame["step_s"] * factor)

    assert title(disagree) == "The order of the training speeds changes with the seed"


def test_no_model_is_said_to_save_where_none_does():
    rows = [("k-gram", 1, 2.0), ("k-gram", 9, 2.0), ("LSTM", 1, 2.5), ("LSTM", 9, 2.2)]
    positions = pd.DataFrame(rows, columns=["model", "from", "loss"]).assign(seed=0)
    assert findings.position_sentence(positions) == "From position 9 on no model has a lower loss than the k-gram"
    positions.loc[3, "loss"] = 1.5
    assert findings.position_sentence(positions).endswith("-0.50 at the first target, 0.50 from position 9 on")


def test_a_rescaled_model_has_the_colour_of_its_model():
    styles = plots.model_styles(["one-hot", "embedding", "one-hot rescaled", "embedding rescaled"])
    for name in ("one-hot", "embedding"):
        assert styles[name]["color"] == styles[f"{name} rescaled"]["color"]
    assert len({(style["linestyle"], style["marker"]) for style in styles.values()}) == 4
