"""Slides and pages of the workbook: `python -m notebooks` writes them to the folder site, readable without a network.

slides.html is a deck in one file, from the cells of all notebooks that carry a tag: `slide` starts a slide,
`slide-part` continues it, `notes` is for the speaker. Code is not shown, and beside a figure no other output.
Each notebook becomes a page, and so does each file of code that it links to. index.html leads to all of them.
"""

from __future__ import annotations

import argparse
import ast
import base64
import functools
import html
import importlib.util
import itertools
import mimetypes
import os
import posixpath
import re
from copy import deepcopy
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from jinja2 import Environment, FileSystemLoader
from nbconvert import HTMLExporter, SlidesExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = ROOT / "notebooks" / "templates"
SLIDE_TYPES = {"slide": "slide", "slide-part": "-", "notes": "notes"}  # our tags and nbconvert's words for them
NOT_ON_SLIDES = r"(?ms)^In Colab:.*?$|^## Exercises.*"
NEXT_SECTION = r"(?ms)(?<=\n)#.*"  # what a cell of notes goes on with


class Site:
    """The folder that is written, and the project's files that its pages link to."""

    def __init__(self, output: Path, pages: list[str]):
        self.output, self.pages = output, pages
        self.files: list[Path] = []
        self.linked: set[str] = set()  # project files, as paths from the root
        self.dead: set[str] = set()  # links without a target, left as plain text

    def write(self, name: str, content: str | bytes) -> None:
        path = self.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.files.append(path)

    def rewrite(self, text: str, base: str = "notebooks") -> str:
        """HTML whose links and pictures, meant as seen from the project's folder `base`, lead to files of the site."""

        def redirect(match: re.Match) -> str:
            if match["name"] is None:  # a script
                return match[0]
            address = html.unescape(match["address"])
            target = self.picture(address, base) if match["name"] == "src" else self.target(address, base)
            return match["before"] + (f'{match["name"]}="{html.escape(target)}"' if target else "")

        link = r'(?P<before><(?:a|img)\b[^>]*?\s)(?P<name>href|src)="(?P<address>[^"]*)"'
        return re.sub(rf"<script\b.*?</script>|{link}", redirect, text, flags=re.S)

    def target(self, address: str, base: str) -> str | None:
        """Where a link leads in the site: a notebook's page, a line of code, a copy of another file, or nowhere."""
        parts = urlsplit(address)
        if parts.scheme or parts.netloc or not parts.path or parts.path in self.pages:
            return address
        path = posixpath.normpath(posixpath.join(base, unquote(parts.path)))
        page = Path(path).stem + ".html"
        if path.endswith(".ipynb") and page in self.pages:
            return page + (f"#{parts.fragment}" if parts.fragment else "")
        if path.startswith("..") or not (ROOT / path).is_file():
            self.dead.add(address)
            return None
        self.linked.add(path)
        if not path.endswith(".py"):
            return f"source/{path}"
        line = re.match(r"L(\d+)", parts.fragment)
        return f"source/{path}.html" + (f"#L-{line[1]}" if line else "")

    def picture(self, address: str, base: str) -> str:
        """A picture of the project as a data address."""
        path = ROOT / base / unquote(address)
        if urlsplit(address).scheme or not path.is_file():
            return address
        return f"data:{mimetypes.guess_type(path)[0]};base64,{base64.b64encode(path.read_bytes()).decode()}"

    def write_linked(self) -> None:
        """The files that pages link to: code with numbered lines, others as they are."""
        formatter = HtmlFormatter(linenos="table", linespans="L", wrapcode=True)
        for path in sorted(self.linked):
            if path.endswith(".py"):
                code = highlight((ROOT / path).read_text(encoding="utf-8"), PythonLexer(), formatter)
                up = "../" * (path.count("/") + 1)
                self.write(f"source/{path}.html", own_page(title=path, source=code, up=up))
            else:
                self.write(f"source/{path}", (ROOT / path).read_bytes())


def build(output: Path, folder: Path = ROOT / "notebooks") -> Site:
    """Write the slides, pages and index of the notebooks in `folder` to `output`.

    FileNotFoundError where there is no notebook; ValueError where one has no title, or a slide no start or no output.
    """
    books = [read_book(path) for path in sorted(Path(folder).glob("[!.]*.ipynb"))]
    if not books:
        raise FileNotFoundError(f"no notebook in {folder}; expected 01_sanity_check.ipynb and so on")
    site = Site(Path(output), ["index.html", "slides.html", *(book["html"] for book in books)])
    figures = read_figures(ROOT / "figures")
    title, lead = read_readme()
    site.write("index.html", render_index(site, title, lead, books, figures))
    site.write("slides.html", site.rewrite(render_slides(title, lead, books, figures)))
    for before, book, after in zip([None, *books], books, [*books[1:], None], strict=False):
        site.write(book["html"], site.rewrite(render_page(book, before, after, figures)))
    for name in figures:
        site.write(f"figures/{name}.png", (ROOT / "figures" / f"{name}.png").read_bytes())
    site.write_linked()
    return site


# ---------------------------------------------------------------- what is read


def read_book(path: Path) -> dict:
    """A notebook with what the index says of it, from its first cell: title, promise (HTML), CPU time."""
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0].source if notebook.cells else ""
    title = re.search(r"^# (.+)", first, re.M)
    if not title:
        raise ValueError(f"{path.name} has no title; expected a first cell that begins with '# …'")
    promise, time = re.search(r"\*\*(.+?)\*\*", first, re.S), re.search(r"CPU time: ([^.]+)\.", first)
    return {
        "notebook": notebook,
        "name": path.name,
        "html": f"{path.stem}.html",
        "title": title[1].strip(),
        "promise": markdown2html(promise[1]) if promise else "",
        "time": time[1] if time else "",
    }


def read_readme() -> tuple[str, str]:
    """The README's title, and what it says first: a paragraph, the finding in bold. In Markdown, as for a notebook."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = text.split("\n\n")
    lead = next(block for block in blocks[1:] if block.strip()[:1] not in "#![<")
    finding = re.search(r"<!-- begin finding.*?(\*\*.+?\*\*)", text, re.S)
    first = f"{lead}\n\n{finding[1] if finding else ''}"
    return blocks[0].lstrip("# ").strip(), re.sub(r"\]\((?!\w+:)", "](../", first)


def read_figures(folder: Path) -> dict[str, dict]:
    """Name, title and caption (Markdown) of every PNG of the folder; CAPTIONS.md tells them and their order."""
    figures = {}
    captions = folder / "CAPTIONS.md"
    text = captions.read_text(encoding="utf-8") if captions.exists() else ""
    for name, body in re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.M | re.S):
        title = re.search(r"\*\*(.+?)\*\*", body, re.S)
        caption = re.sub(r"\*\*.+?\*\*|!\[.*?\]\(.*?\)", "", body, count=2, flags=re.S).strip()
        figures[name] = {"title": " ".join(title[1].replace("`", "").split()) if title else name, "caption": caption}
    names = sorted(path.stem for path in folder.glob("*.png"))
    others = {name: {"title": name.replace("_", " "), "caption": f"`{name}`"} for name in names if name not in figures}
    return {name: figure | {"name": name} for name, figure in (figures | others).items() if name in names}


def reveal(name: str) -> str:
    """A file of reveal.js, as the package sphinx-revealjs bundles it; the package is found and not imported."""
    package = importlib.util.find_spec("sphinx_revealjs")
    if package is None:
        raise ModuleNotFoundError("sphinx-revealjs is not installed; run: pip install -r requirements.txt")
    path = Path(package.submodule_search_locations[0], "_static", "revealjs", name)
    text = path.read_text(encoding="utf-8")
    return re.sub(r"^//# sourceMappingURL.*", "", text, flags=re.M).replace("</script", r"<\/script")


# ---------------------------------------------------------------- what is written


def template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def own_page(**values) -> str:
    environment = Environment(loader=FileSystemLoader(TEMPLATES))
    return environment.get_template("page.html.j2").render(css=template("page.css"), **values)


def render_index(site: Site, title: str, lead: str, books: list[dict], figures: dict[str, dict]) -> str:
    pictures = [f | {"caption": site.rewrite(markdown2html(f["caption"]), "figures")} for f in figures.values()]
    return own_page(title=title, lead=site.rewrite(markdown2html(lead)), books=books, figures=pictures)


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def saved_figures(source: str) -> list[str]:
    """The names under which a cell saves its figures, in order."""
    calls = ast.walk(ast.parse(source)) if "save_figure(" in source else ()
    found = [call for call in calls if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "save_figure"]
    return [getattr(call.args[-1], "value", "") for call in sorted(found, key=lambda call: call.lineno)]


def name_figures(cell: NotebookNode, figures: dict[str, dict], sharp: bool = False) -> list[NotebookNode]:
    """The cell's pictures, each with its title as `alt`; `sharp` adds the SVG file that the cell saved."""
    names = iter(saved_figures(cell.source))
    pictures = [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    for output in pictures:
        name = next(names, None)
        output.metadata["alt"] = figures[name]["title"] if name in figures else "Figure"
        path = ROOT / "figures" / f"{name}.svg"
        if sharp and path.exists():
            output.data["image/svg+xml"] = path.read_text(encoding="utf-8")
    return pictures


@functools.cache
def page_exporter() -> HTMLExporter:
    return HTMLExporter(template_name="workbook_page", extra_template_basedirs=[str(TEMPLATES)])


def render_page(book: dict, before: dict | None, after: dict | None, figures: dict[str, dict]) -> str:
    """A notebook as HTML: without its cell for Colab, with its set-up folded."""
    notebook = deepcopy(book["notebook"])
    notebook.metadata.pop("widgets", None)
    notebook.cells = [cell for cell in notebook.cells if "google.colab" not in cell.source or cell.cell_type != "code"]
    for cell in notebook.cells:
        name_figures(cell, figures)
    cells = itertools.takewhile(lambda cell: "parameters" not in tags(cell), notebook.cells[1:])
    if set_up := list(itertools.takewhile(lambda cell: cell.cell_type == "code", cells)):
        set_up[0].metadata["fold_start"] = set_up[-1].metadata["fold_end"] = True
    text = markdown2html("\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown"))
    page = {"title": book["title"], "previous": before, "next": after, "css": template("page.css")}
    page["contents"] = re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', text)
    return page_exporter().from_notebook_node(notebook, {"page": page})[0]


def slide_cell(original: NotebookNode, kind: str, book: dict, figures: dict[str, dict]) -> NotebookNode:
    """A copy of a tagged cell, ready for nbconvert: of a cell with a figure only the figure."""
    cell = deepcopy(original)
    cell.metadata |= {"slideshow": {"slide_type": kind}, "origin": {"html": book["html"], "title": book["title"]}}
    if cell.cell_type == "markdown":
        cell.source = re.sub(NEXT_SECTION if kind == "notes" else NOT_ON_SLIDES, "", cell.source)
    elif not cell.outputs:
        start = cell.source[:80]
        raise ValueError(f"{book['name']}: a cell tagged {tags(cell)} has no output; run the notebook: {start!r}")
    elif pictures := name_figures(cell, figures, sharp=True):
        cell.outputs, cell.metadata["tags"] = pictures, [*tags(cell), "figures"]
    return cell


def slide_cells(books: list[dict], figures: dict[str, dict]) -> list[NotebookNode]:
    """The tagged cells of all notebooks, with ids of their own."""
    cells = []
    for book in books:
        started = False
        for cell in book["notebook"].cells:
            kind = next((SLIDE_TYPES[tag] for tag in tags(cell) if tag in SLIDE_TYPES), None)
            started = started or kind == "slide"
            if kind and not started:
                raise ValueError(f"{book['name']}: a cell tagged {tags(cell)} comes before any cell tagged 'slide'")
            if kind:
                cells.append(slide_cell(cell, kind, book, figures))
                cells[-1].id = f"slide-cell-{len(cells)}"
    return cells


def render_slides(title: str, lead: str, books: list[dict], figures: dict[str, dict]) -> str:
    """The deck: a title slide, then the tagged cells, with reveal.js in the file."""
    front = nbformat.v4.new_markdown_cell(f"# {title}\n\n{lead}")
    front.metadata |= {"slideshow": {"slide_type": "slide"}, "tags": ["title"]}
    front.metadata["origin"] = {"html": "index.html", "title": "Notebooks and figures"}
    notebook = nbformat.v4.new_notebook(cells=[front, *slide_cells(books, figures)])
    scripts = [reveal("dist/reveal.js"), reveal("plugin/notes/notes.js"), template("slides.js")]
    page = {"title": title, "css": reveal("dist/reveal.css") + template("slides.css"), "scripts": scripts}
    hidden = {name: True for name in ("exclude_input", "exclude_output_prompt", "exclude_anchor_links")}
    exporter = SlidesExporter(template_name="workbook_slides", extra_template_basedirs=[str(TEMPLATES)], **hidden)
    return exporter.from_notebook_node(notebook, {"page": page})[0]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m notebooks", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="default: site, or $WORKBOOK_OUT/site where that is set")
    output = parser.parse_args(arguments).output or Path(os.environ.get("WORKBOOK_OUT", ""), "site")
    try:
        site = build(output)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        raise SystemExit(f"python -m notebooks: {error}") from None
    for path in site.files:
        print(f"{path.stat().st_size / 1e6:7.2f} MB  {path}")
    for address in sorted(site.dead):
        print(f"no such file, so the link to it is plain text: {address}")
    print(f"\nOpen {output / 'index.html'} in a browser; no network is needed, and slides.html can be mailed alone.")
    print("In the slides: arrow keys, S for the speaker's notes; slides.html?print-pdf prints them.")


if __name__ == "__main__":
    main()
