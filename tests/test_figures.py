"""Figures show the rows that their labels name."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import pandas as pd  # noqa: E402
import pytest  # noqa: E402

import helpers  # noqa: E402


@pytest.fixture
def frame():
    rows = [
        {"run": "r", "model": model, "seed": seed, "step": step, "tokens": 10, "loss": base + seed - 0.1 * step}
        | {"step_s": 0.1 * speed, "elapsed_s": 0.1 * speed * step, "warm_up": step == 1}
        for model, base, speed in (("one", 9.0, 1), ("two", 7.0, 2))
        for seed in range(3)
        for step in range(1, 5)
    ]
    yield pd.DataFrame(rows)
    plt.close("all")


@pytest.mark.parametrize("x, end", [("step", 4), ("tokens", 40), ("elapsed_s", None)])
def test_each_line_shows_the_rows_of_its_label(frame, x, end):  # TRAPS 25
    ax = helpers.plot_loss_curves(frame, x, title="A finding", levels={"ln V": 10.8})
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
    assert lines["one"].get_linestyle() != lines["two"].get_linestyle()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]
    assert ax.get_title(loc="left") + ax.get_title() == "A finding" and "nats" in ax.get_ylabel()
    assert "3 seeds" in ax.get_xlabel()


def test_bars_start_at_zero_and_carry_n_and_spread(frame):  # TRAPS 25
    frame.loc[frame["step"] == 2, "step_s"] *= 2  # some spread
    ax = helpers.plot_throughput(frame)
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([100, 50])
    assert ax.get_ylim()[0] == 0 and {bar.get_y() for bar in ax.patches} == {0}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["one\n(n = 9)", "two\n(n = 9)"]
    (whiskers,) = (container for container in ax.containers if hasattr(container, "has_yerr"))
    assert whiskers.has_yerr
    ends = [end for segment in whiskers[2][0].get_segments() for end in segment[:, 1]]
    assert ends == pytest.approx([50, 100, 25, 50])  # of 3 halved rates and 6 whole ones
    assert {text.get_text(): text.xy[1] for text in ax.texts} == pytest.approx({"100": 100, "50": 50})


def test_unknown_axes_say_so(frame):
    with pytest.raises(ValueError, match="expected one of step, tokens, elapsed_s"):
        helpers.plot_loss_curves(frame, "hours")


def test_a_figure_drawn_twice_has_the_same_bytes(frame, workbook_out):
    def draw():
        helpers.set_style()
        ax = helpers.plot_loss_curves(frame)
        paths = helpers.save_figure(ax.figure, "twice")
        plt.close("all")
        return [path.read_bytes() for path in paths]

    assert draw() == draw()
    assert {path.name for path in (workbook_out / "figures").iterdir()} == {"twice.png", "twice.svg"}
