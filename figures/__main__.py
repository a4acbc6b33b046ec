"""`python -m figures [name …]`: draw all figures of the gallery, or those named, from data/runs, and their captions."""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from tqdm.auto import tqdm  # noqa: E402

from data.records import output_folder  # noqa: E402
from figures.draw import save_figure, set_style  # noqa: E402
from figures.gallery import GALLERY, draw_recorded, title_of  # noqa: E402


def caption(name: str, title: str) -> str:
    """The entry of one figure in CAPTIONS.md."""
    entry = GALLERY[name]
    runs = ", ".join(f"[{run}.csv](../data/runs/{run}.csv)" for run in entry.runs)
    return f"## {name}\n\n**{title}**\n\n![{title}]({name}.png)\n\n{entry.caption}\n\nRuns: {runs}\n"


def main(names: list[str]) -> None:
    """Write figures/<name>.png and .svg, and CAPTIONS.md where all are drawn."""
    if unknown := set(names) - set(GALLERY):
        sys.exit(f"no figure is called {', '.join(sorted(unknown))}; there are {', '.join(GALLERY)}")
    set_style()
    captions = []
    for name in tqdm(names or list(GALLERY), unit="figure"):
        figure = draw_recorded(name)
        save_figure(figure, name)
        captions.append(caption(name, title_of(figure)))
        plt.close(figure)
    if not names:
        head = "# Captions\n\nWhat each figure shows and the run that it comes from. Made by `python -m figures`.\n\n"
        path = output_folder("figures") / "CAPTIONS.md"
        path.write_text(head + "\n".join(captions), encoding="utf-8")
    print(f"{len(captions)} figures in {output_folder('figures')}")


if __name__ == "__main__":
    main(sys.argv[1:])
