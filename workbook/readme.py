"""README.md, RESULTS.md and CLI.md from their templates, the record, findings.py and the options: here a template is
filled and a number written."""

from __future__ import annotations

import functools
import json
import re
import textwrap
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from workbook import config, findings
from workbook.files import write_whole
from workbook.records import ROOT, load_runs

TEMPLATES = Path(__file__).resolve().parent / "templates"
PAGES = ("README.md", "RESULTS.md", "CLI.md")


def number(value: float, digits: int = 0) -> str:
    """1234.5 -> 1,234"""
    return f"{value:,.{digits}f}"


def span(values: pd.Series, digits: int = 0) -> str:
    """Lowest to highest."""
    return f"{number(values.min(), digits)} to {number(values.max(), digits)}"


def notebook_link(name: str) -> str:
    """A link to a notebook, by its number and title: those of its first line."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    title = "".join(cells[0]["source"]).split("\n")[0].removeprefix("# ").replace(" · ", " ", 1)
    return f"[{title}](notebooks/{name}.ipynb)"


FILTERS = {
    "notebook_link": notebook_link,
    "number": number,
    "span": span,
    "millions": lambda value, digits=1: f"{number(value / 1e6, digits)} M",
    "percent": lambda value, digits=0: f"{number(100 * value, digits)} %",
    "spread": lambda values, digits=0: f"{number(values.median(), digits)} ({span(values, digits)})",
    "signed": lambda value, digits=2: f"{value:+.{digits}f}",
    "interval": lambda row, digits=2: f"{number(row['mean'], digits)} ({span(row[['low', 'high']], digits)})",
}


def wrap(text: str) -> str:
    """Paragraphs and list items in lines of at most 120 characters, never inside `code` or before %; the rest as is."""

    def fill(item: str) -> str:
        item = re.sub(r"`[^`]*`| %", lambda match: match[0].replace(" ", "\0"), " ".join(item.split()))
        hanging = "  " if item.startswith("* ") else ""
        lines = textwrap.wrap(item, 120, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False)
        return "\n".join(lines).replace("\0", " ")

    blocks = re.split(r"\n{2,}", text.strip())
    for i, block in enumerate(blocks):
        if not block.startswith(("#", "```", "|", "![", "<")):
            blocks[i] = "\n".join(fill(item) for item in re.split(r"\n(?=\* )", block))
    return "\n\n".join(blocks) + "\n"


def fill_template(name: str, **values: object) -> str:
    """The text of a file of templates/ with these values; a name that has none is an error."""
    folder = FileSystemLoader(TEMPLATES)
    environment = Environment(loader=folder, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= FILTERS
    return environment.get_template(name).render(values)


def render(page: str = "README.md", load: findings.Load = load_runs) -> str:
    """The whole text of one of PAGES. ValueError where the record does not bear out a sentence of its template."""
    return wrap(fill_template(f"{page}.j2", run=load, findings=findings, groups=config.option_tables()))


def write_pages(folder: Path = ROOT) -> list[Path]:
    """Write PAGES from the record and the options, all or none; their paths."""
    texts = {page: render(page) for page in PAGES}
    write = functools.partial(functools.partial, Path.write_text, encoding="utf-8")
    return [write_whole(folder / page, write(data=text)) for page, text in texts.items()]
