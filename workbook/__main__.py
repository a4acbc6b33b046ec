"""python -m workbook COMMAND: what is made from runs, weights or texts."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch

from workbook import gallery, plots, readme, record, replicate, site
from workbook.config import Parser, SampleConfig, add_options, read_config
from workbook.experiment import load_trained
from workbook.generation import draw_samples
from workbook.records import load_runs, output_folder, save_run, short
from workbook.text import write_stories

COMMANDS = ("figures", "site", "readme", "sample", "stories", "record", "replicate")


def draw_figures(args: argparse.Namespace) -> None:
    """Draw figures to out/figures, each from your own runs in out/runs where all that it needs are there, else from
    the record."""
    for name in args.names or gallery.GALLERY:
        gallery.check_names([name])
        runs = gallery.GALLERY[name].runs
        own = all((output_folder("runs") / f"{run}.csv").exists() for run in runs)
        gallery.draw_figures([name], functools.partial(load_runs, own=own), folder=output_folder("figures"))
        print(f"{name}: {'your own run' if own else 'the record'}")
    print(f"in {short(output_folder('figures'))}")


def write_site(args: argparse.Namespace) -> None:
    """Write slides.html, a page for each notebook and an index to out/site, readable without a network."""
    site.write_site(args.output)


def write_readme(args: argparse.Namespace) -> None:
    """Write README.md, RESULTS.md and CLI.md from their templates, data/runs and the options."""
    readme.write_pages()


def sample(args: argparse.Namespace) -> None:
    """Draw samples from the weights that a training with --output_dir has saved."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # samples may hold bytes that a terminal cannot show
    model, tokenizer, opening = load_trained(args.weights)
    config = read_config(SampleConfig, args)
    config = dataclasses.replace(config, prompt=config.prompt or opening)
    draw_samples(model, tokenizer, config, torch.Generator().manual_seed(args.seed))


def make_stories(args: argparse.Namespace) -> None:
    """Write a text of any size, made of the halves of a small one's stories: train.txt, and valid.txt with those held
    out of it."""
    made = write_stories(args.folder, args.max_stories, args.stories)
    if made < args.max_stories:
        print(f"note: the halves of {args.stories} make {made:,} stories, and no more", file=sys.stderr)
    print(f"{made:,} stories in {short(args.folder / 'train.txt')}")


def make_record(args: argparse.Namespace) -> None:
    """Make files of data/runs again, then figures/, captions and README. Without a NAME all of them."""
    if args.list:
        print(record.table())
    else:
        record.record(args.names, args.stories, args.resume)


def make_replica(args: argparse.Namespace) -> None:
    """Run the experiments behind the published findings again with new seeds, and judge each sentence once more.

    Without a NAME all of them: designs, sampling, and where --stories is given kgram_seconds, stories_tokens and
    stories_5min. Their runs go to out/replicate, the table to out/runs/replication.csv.
    """
    table = replicate.replicate(args.names, args.seeds, args.minutes, args.stories, args.resume)
    print(replicate.report(table))
    path = replicate.keep(table) if args.keep else save_run(table, "replication")
    print(f"in {short(path)}")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m workbook", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar=" | ".join(COMMANDS))

    def add(name: str, function: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, description=function.__doc__)
        command.set_defaults(function=function)
        return command

    add("figures", draw_figures).add_argument("names", nargs="*", metavar="NAME", help="default: all")
    add("site", write_site).add_argument("--output", type=Path, metavar="FOLDER", help="default: out/site")
    add("readme", write_readme)
    command = add("sample", sample)
    command.add_argument("weights", type=Path, metavar="FILE", help="a .safetensors file of --output_dir")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (0)")
    add_options(command, SampleConfig)
    command = add("stories", make_stories)
    command.add_argument("folder", type=Path, metavar="FOLDER", help="where they go")
    command.add_argument("--max_stories", type=int, default=2_119_719, metavar="N", help="how many (2,119,719)")
    command.add_argument(
        "--stories", default="builtin", metavar="TEXT", help="builtin, small, hub, a file, or a folder"
    )
    command = add("record", make_record)
    command.add_argument("names", nargs="*", metavar="NAME", help="see --list; default: all")
    command.add_argument("--list", action="store_true", help="print what makes which files, and in how many minutes")
    command.add_argument("--stories", metavar="FOLDER", help="TinyStories: a folder with train.txt and valid.txt")
    command.add_argument("--resume", action="store_true", help="leave out command lines that ran before it was stopped")
    command = add("replicate", make_replica)
    command.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    command.add_argument("--seeds", type=int, default=3, metavar="N", help="new seeds, 2 or more (3)")
    command.add_argument("--minutes", type=float, metavar="M", help="begin nothing that would take longer (no)")
    command.add_argument("--stories", metavar="FOLDER", help="TinyStories: a folder with train.txt and valid.txt")
    command.add_argument("--resume", action="store_true", help="leave out command lines that ran before it was stopped")
    command.add_argument("--keep", action="store_true", help="make the table part of the record")
    return parser


def main(argv: list[str] | None = None) -> None:
    matplotlib.use("Agg")
    plots.set_style()
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        args.function(args)
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        parser.error(str(error).splitlines()[0])
    except KeyboardInterrupt:
        parser.exit(130, "stopped\n")


if __name__ == "__main__":
    main()
