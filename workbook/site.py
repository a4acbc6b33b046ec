"""Slides and pages of the workbook: `python -m workbook site` writes them to out/site, readable without a network.

slides.html is a deck in one file, from the cells of all notebooks that carry a tag: `slide` starts a slide,
`slide-part` continues it, `notes` is for the speaker. Code is not shown, and beside a figure no other output.
Each notebook becomes a page, and so does each file of code that it links to. interview.html has the questions of the
notebooks as cards without code. index.html leads to all of them, and searches their text.
All pictures but those of index.html are taken from the notebooks' cells, so they show what the notebooks' run made.
"""

from __future__ import annotations

import ast
import base64
import html
import importlib.metadata
import itertools
import mimetypes
import posixpath
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
from bs4 import BeautifulSoup
from latex2mathml.converter import convert as latex_to_mathml
from nbconvert import HTMLExporter, SlidesExporter
from nbconvert.filters import markdown2html
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from workbook.files import write_whole
from workbook.notebooks import tags
from workbook.readme import TEMPLATES, fill_template
from workbook.records import RECORD, ROOT, output_folder, read_rows, short

SLIDE_TYPES = {"slide": "slide", "slide-part": "-", "notes": "notes"}  # our tags and nbconvert's words for them
SEARCH = {option: [str(TEMPLATES)] for option in ("extra_template_basedirs", "extra_template_paths")}  # of nbconvert
NOT_ON_SLIDES = r"(?ms)^In Colab:.*?$|^## Exercises.*"
NEXT_SECTION = r"(?ms)(?<=\n)#.*"  # what a cell of notes goes on with
QUESTION = r"(?ms)^### (\d+\. [^\n]+)\n+(.*)"  # a heading with a number, and the answer


class Site:
    """The folder that is written, and the project's files that its pages link to."""

    def __init__(self, output: Path, books: dict[str, str]):
        self.output, self.books = output, books  # notebooks' files, and their pages
        self.pages = {"index.html", "slides.html", "interview.html", "replication.html", *books.values()}
        self.files: list[Path] = []
        self.linked: set[str] = set()  # project files, as paths from the root
        self.dead: set[str] = set()  # links without a target, left as plain text
        self.left_out: list[str] = []  # tagged cells that cannot be a slide, and why

    def write(self, name: str, content: str | bytes) -> None:
        path = self.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else content.encode()
        write_whole(path, lambda partial: partial.write_bytes(data))
        self.files.append(path)

    def rewrite(self, text: str, base: str = "notebooks") -> str:
        """HTML meant as seen from the project's folder `base`, with links to files of the site, and pictures inside."""
        page = BeautifulSoup(text, "html.parser")
        for picture in page.select("img[src]"):
            address = str(picture["src"])
            if path := project_file(address, base):
                data = base64.b64encode((ROOT / path).read_bytes()).decode()
                picture["src"] = f"data:{mimetypes.guess_type(path)[0] or 'image/png'};base64,{data}"
        for link in page.select("a[href]"):
            target = self.target(str(link.attrs.pop("href")), base)
            link.attrs |= {"href": target} if target else {}
        return str(page)

    def target(self, address: str, base: str) -> str | None:
        """Where a link leads in the site: a notebook's page, a name in code, a copy of another file, or nowhere."""
        try:
            parts = urlsplit(address)
        except ValueError:  # half an IPv6 address, for one
            self.dead.add(address)
            return None
        if parts.scheme or parts.netloc or not parts.path or parts.path in self.pages:
            return address
        if page := self.books.get(posixpath.basename(unquote(parts.path))):
            return parts._replace(path=page).geturl()
        if not (path := project_file(address, base)):
            self.dead.add(address)
            return None
        self.linked.add(path)
        return parts._replace(path=f"source/{path}.html" if path.endswith(".py") else f"source/{path}").geturl()


def project_file(address: str, base: str) -> str | None:
    """The project's file that an address means as seen from its folder `base`, as a path from the root, or none."""
    try:
        parts = urlsplit(address)
        path = posixpath.normpath(posixpath.join(base, unquote(parts.path)))
        inside = not (parts.scheme or parts.netloc or path.startswith(("..", "/"))) and (ROOT / path).is_file()
    except (ValueError, OSError):  # no address, or a name that no file can have
        return None
    return path if inside else None


def build(output: Path, folder: Path = ROOT / "notebooks") -> Site:
    """Write the slides, pages and index of the notebooks in `folder` to `output`.

    FileNotFoundError where there is no notebook. A tagged cell that cannot be a slide is left out, and `left_out` of
    what is returned says why.
    """
    books = [read_book(path) for path in sorted(Path(folder).glob("[!.]*.ipynb"))]
    if not books:
        raise FileNotFoundError(f"no notebook in {folder}; expected 01_sanity_check.ipynb and so on")
    for number, book in enumerate(books):
        if book["html"] in [other["html"] for other in books[:number]]:
            book["html"] = f"{number}-{book['html']}"
    site = Site(Path(output), {book["name"]: book["html"] for book in books})
    title, lead = read_readme()
    write_index(site, books, title, lead)
    cells = [cell for book in books for cell in slide_cells(book, site.left_out)]
    site.write("slides.html", site.rewrite(render_slides(title, lead, cells)))
    for before, book, after in zip([None, *books], books, [*books[1:], None], strict=False):
        site.write(book["html"], site.rewrite(render_page(book, before, after)))
    for name in sorted(site.linked):
        if name.endswith(".py"):
            code, up = code_page((ROOT / name).read_text(encoding="utf-8")), "../" * (name.count("/") + 1)
            site.write(f"source/{name}.html", fill_template("page.html.j2", title=name, source=code, up=up))
        else:
            site.write(f"source/{name}", (ROOT / name).read_bytes())
    return site


def write_index(site: Site, books: list[dict], title: str, lead: str) -> None:
    """index.html with its figures, and beside it the interview as cards and the recorded replication."""
    figures, replication = read_figures(ROOT / "figures"), read_replication()
    for figure in figures:
        figure["caption"] = site.rewrite(markdown2html(figure["caption"]), "figures")
        site.write(f"figures/{figure['name']}.png", (ROOT / "figures" / f"{figure['name']}.png").read_bytes())
    questions = [card for book in books for card in question_cards(book)]
    index: dict[str, Any] = {"title": title, "lead": site.rewrite(markdown2html(lead))}
    index |= {"books": books, "figures": figures, "questions": len(questions), "replicated": len(replication)}
    index["sections"] = [section for book in books for section in sections(book)]
    site.write("index.html", fill_template("page.html.j2", **index))
    site.write("interview.html", site.rewrite(fill_template("page.html.j2", title="The interview", cards=questions)))
    if replication:
        page = fill_template("page.html.j2", title="The findings, with new seeds", replication=replication)
        site.write("replication.html", page)


def write_site(output: Path | None = None) -> None:
    """Build the site of the project's notebooks in `output` (default: out/site) and print what was written."""
    output = Path(output or output_folder() / "site")
    site = build(output)
    for path in site.files:
        print(f"{path.stat().st_size / 1e6:7.2f} MB  {short(path)}")
    for address in sorted(site.dead):
        print(f"no such file, so the link to it is plain text: {address}")
    for cell in site.left_out:
        print(f"not among the slides: {cell}")
    print(f"\nOpen {short(output / 'index.html')} in a browser; no network is needed.")
    print("slides.html can be mailed alone: arrow keys, S for the speaker's notes; slides.html?print-pdf prints it.")


def page_name(notebook: Path) -> str:
    """What the page of a notebook is called: no character in it has a meaning in an address."""
    return re.sub(r"[^\w.-]+", "-", notebook.stem) + ".html"


def read_book(path: Path) -> dict:
    """A notebook with what the index says of it, from its first cell: title (or its name), promise (HTML), CPU time."""
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0].source if notebook.cells else ""
    title = re.search(r"^# (.+)", first, re.M)
    promise, time = re.search(r"\*\*(.+?)\*\*", first, re.S), re.search(r"CPU time: ([^.]+)\.", first)
    book = {"notebook": notebook, "name": path.name, "html": page_name(path)}
    book["title"] = title[1].strip() if title else path.stem
    return book | {"promise": markdown2html(promise[1]) if promise else "", "time": time[1] if time else ""}


def read_readme() -> tuple[str, str]:
    """The README's title, and in Markdown its first paragraph, without the bold type."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    heading, *blocks = re.split(r"\n\s*\n", re.split(r"\n## ", text)[0].strip())
    lead = next(block for block in blocks if not re.match(r"[#!<]|\[!", block))
    return heading.lstrip("# "), re.sub(r"\]\((?!\w+:)", "](../", lead.strip("*"))


def read_replication() -> list[dict[str, Any]]:
    """The rows of the recorded replication that were tried again, or none."""
    path = RECORD / "replication.csv"
    rows = read_rows(path) if path.exists() else pd.DataFrame({"tried": []})
    return rows[rows["tried"].astype(bool)].to_dict("records")


def sections(book: dict) -> Iterator[dict[str, str]]:
    """The sections of a notebook's page, to be searched: its address, heading, and text in lower case."""
    found: dict[str, str] = {"address": book["html"], "name": book["title"], "text": ""}
    for cell in book["notebook"].cells:
        if cell.cell_type != "markdown":
            found["text"] += f" {cell.source.lower()}" if "google.colab" not in cell.source else ""
            continue
        text = markdown2html(cell.source.replace("(attachment:", "("))
        for part in re.split(r"(?=<h[23] )", text):
            node = BeautifulSoup(part, "html.parser")
            if heading := node.select_one("h2, h3"):
                yield found
                name = f"{book['title']}: {heading.get_text().rstrip('¶')}"
                found = {"address": f"{book['html']}#{heading['id']}", "name": name, "text": ""}
            found["text"] += f" {node.get_text().lower()}"
    yield found


def question_cards(book: dict) -> Iterator[dict[str, Any]]:
    """The questions of a notebook (headings with a number and a question mark): the answer, and what its cell shows."""
    cells = book["notebook"].cells
    for number, cell in enumerate(cells):
        asked = re.search(QUESTION, cell.source) if cell.cell_type == "markdown" else None
        if not asked or not asked[1].rstrip().endswith("?"):
            continue
        shown = itertools.takewhile(lambda other: other.cell_type == "code", cells[number + 1 :])
        outputs = [part for other in shown for part in card_outputs(other)]
        yield {"question": asked[1], "answer": markdown2html(with_formulas(asked[2])), "outputs": outputs}


def card_outputs(cell: nbformat.NotebookNode) -> Iterator[str]:
    """What a cell has printed and shown, as HTML."""
    name_pictures(cell)
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if output.output_type == "stream" and output.name == "stdout":
            yield f"<pre>{html.escape(output.text.strip())}</pre>"
        elif "text/markdown" in data:
            yield markdown2html(data["text/markdown"])
        elif "image/png" in data:
            alt = html.escape(output.metadata["alt"], quote=True)
            yield f'<img src="data:image/png;base64,{data["image/png"].strip()}" alt="{alt}">'
        elif "text/html" in data:
            yield data["text/html"]


def read_figures(folder: Path) -> list[dict]:
    """Name, title and caption (Markdown) of every PNG of the folder; CAPTIONS.md tells them and their order."""
    text = (folder / "CAPTIONS.md").read_text(encoding="utf-8")
    entry = r"(?ms)^## (?P<name>\S+)\n+\*\*(?P<title>.+?)\*\*\n+(?:!\[.*?\]\(.*?\)\n+)?(?P<caption>.*?)\s*(?=^## |\Z)"
    names = {path.stem for path in folder.glob("*.png")}
    figures = [match.groupdict() for match in re.finditer(entry, text) if match["name"] in names]
    others = sorted(names - {figure["name"] for figure in figures})
    return figures + [{"name": name, "title": name.replace("_", " "), "caption": f"`{name}`"} for name in others]


def reveal(name: str) -> str:
    """A file of reveal.js, as the package sphinx-revealjs bundles it; the package is found and not imported."""
    package = importlib.metadata.distribution("sphinx-revealjs")
    path = Path(str(package.locate_file(f"sphinx_revealjs/_static/revealjs/{name}")))
    text = re.sub(r"^//# sourceMappingURL.*", "", path.read_text(encoding="utf-8"), flags=re.M)
    return text.replace("</script", r"<\/script")


def code_page(source: str) -> str:
    """Python code as HTML with numbered lines, and an anchor for each name that it defines, as in `Model.step`."""
    names = {}
    for node in ast.parse(source).body:
        inside = [(f"{node.name}.", part) for part in node.body] if isinstance(node, ast.ClassDef) else []
        for prefix, part in [("", node), *inside]:
            if isinstance(part, (ast.FunctionDef, ast.ClassDef)):
                names[str(part.lineno)] = prefix + part.name
    code = highlight(source, PythonLexer(stripnl=False), HtmlFormatter(linenos="table", linespans="L", wrapcode=True))
    return re.sub(r' id="L-(\d+)"', lambda line: f' id="{names[line[1]]}"' if line[1] in names else "", code)


def name_pictures(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The pictures among a cell's outputs, each with the name under which the cell saves it as `alt`."""
    kinds = {"image/png", "image/svg+xml"}
    pictures = [output for output in cell.get("outputs", []) if kinds & set(output.get("data", {}))]
    names = re.findall(r'(?ms)\bsave_figure\(.*?"(\w+)",?\s*\)$', cell.source)
    for number, output in enumerate(pictures):
        name = names[number] if len(names) == len(pictures) else f"{number + 1} of this cell"
        output.metadata["alt"] = f"Figure: {name.replace('_', ' ')}"
    return pictures


def formula(found: re.Match) -> str:
    """A $formula$ as MathML, or as it stands where it is none."""
    try:
        return latex_to_mathml(found[1])
    except Exception:  # whatever stands between two dollars
        return found[0]


def with_formulas(text: str) -> str:
    """Markdown with its $formulas$, outside code, as MathML: browsers show it without a network."""
    parts = re.split(r"(```.*?```|`[^`]*`)", text, flags=re.S)
    parts[::2] = [re.sub(r"\$([^$\s](?:[^$\n]*[^$\s])?)\$(?!\d)", formula, part) for part in parts[::2]]
    return "".join(parts)


def render_page(book: dict, before: dict | None, after: dict | None) -> str:
    """A notebook as HTML: without its cell for Colab, with its set-up folded."""
    notebook = deepcopy(book["notebook"])
    notebook.metadata.pop("widgets", None)
    notebook.cells = [cell for cell in notebook.cells if "google.colab" not in cell.source or cell.cell_type != "code"]
    for cell in notebook.cells:
        name_pictures(cell)
        if cell.cell_type == "markdown":
            cell.source = with_formulas(cell.source)
    cells = itertools.takewhile(lambda cell: "parameters" not in tags(cell), notebook.cells[1:])
    if set_up := list(itertools.takewhile(lambda cell: cell.cell_type == "code", cells)):
        set_up[0].metadata["fold_start"] = set_up[-1].metadata["fold_end"] = True
    texts = [cell.source.replace("(attachment:", "(") for cell in notebook.cells if cell.cell_type == "markdown"]
    text = markdown2html("\n\n".join(texts))  # for its headings
    page = {"title": book["title"], "previous": before, "next": after}
    page["contents"] = re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', text)
    return HTMLExporter(template_name="workbook_page", **SEARCH).from_notebook_node(notebook, {"page": page})[0]


def one_figure_a_slide(cells: list[nbformat.NotebookNode]) -> Iterator[list[nbformat.NotebookNode]]:
    """The cells; one with several figures once for each of them, each time with the notes that follow it."""
    for number, cell in enumerate(cells):
        if tags(cell)[-1] != "figures" or len(cell.outputs) < 2:
            yield [cell]
            continue
        rest = itertools.takewhile(lambda other: "notes" in tags(other), cells[number + 1 :])
        notes = list(rest) if "slide" in tags(cell) else []
        for output in cell.outputs[:-1]:
            yield [nbformat.from_dict({**cell, "outputs": [output]}), *map(deepcopy, notes)]
        yield [nbformat.from_dict({**cell, "outputs": cell.outputs[-1:]})]


def slide_cells(book: dict, left_out: list[str]) -> list[nbformat.NotebookNode]:
    """Copies of a notebook's tagged cells, ready for nbconvert: of a cell with a figure only the figure.

    Those before the first slide, and those of code without an output, are named in `left_out`.
    """
    found: list[nbformat.NotebookNode] = []
    every = ((cell, tag) for cell in book["notebook"].cells for tag in tags(cell) if tag in SLIDE_TYPES)
    for cell, kind in ((deepcopy(cell), SLIDE_TYPES[tag]) for cell, tag in every):
        cell.metadata |= {"slideshow": {"slide_type": kind}, "origin": {"html": book["html"], "title": book["title"]}}
        where = f"{book['name']}, a cell tagged {', '.join(tags(cell))} ({cell.source[:40]!r})"
        if not found and kind != "slide":
            left_out.append(f"{where} comes before any cell tagged slide")
            continue
        if cell.cell_type == "markdown":
            cell.source = with_formulas(re.sub(NEXT_SECTION if kind == "notes" else NOT_ON_SLIDES, "", cell.source))
        elif not cell.get("outputs"):
            left_out.append(f"{where} has no output; run the notebook")
            continue
        elif pictures := name_pictures(cell):
            cell.outputs, cell.metadata["tags"] = pictures, [*tags(cell), "figures"]
        found.append(cell)
    return list(itertools.chain.from_iterable(one_figure_a_slide(found)))


def render_slides(title: str, lead: str, cells: list[nbformat.NotebookNode]) -> str:
    """The deck: a title slide, then these cells, with reveal.js in the file."""
    place = {"slideshow": {"slide_type": "slide"}, "origin": {"html": "index.html", "title": "Notebooks and figures"}}
    front = nbformat.v4.new_markdown_cell(f"# {title}\n\n{lead}", metadata={"tags": ["title"]} | place)
    cells = [front, *cells]
    for number, cell in enumerate(cells):
        cell.id = f"slide-cell-{number}"  # two notebooks may use the same ids
    notebook = nbformat.v4.new_notebook(cells=cells)
    page = {"title": title, "reveal": reveal}
    hidden = {name: True for name in ("exclude_input", "exclude_output_prompt", "exclude_anchor_links")}
    exporter = SlidesExporter(template_name="workbook_slides", **SEARCH, **hidden)
    return exporter.from_notebook_node(notebook, {"page": page})[0]
