"""`python -m workbook site`: slides and pages lead nowhere dead, load nothing from the net, and fit."""

import base64
import contextlib
import copy
import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from oracles import ROOT
from PIL import Image

import workbook.site
from workbook.__main__ import main
from workbook.records import short
from workbook.site import build, code_page, read_figures, read_readme

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

SVG = "<svg xmlns='http://www.w3.org/2000/svg'/>"

# Walks through the deck and writes down what lies outside its slide, in the page that --dump-dom then shows.
PROBE = """<pre id="report"></pre><script>
addEventListener("load", () => setTimeout(async () => {
  const number = document.querySelector(".slide-number").innerText;
  const report = {started: Reveal.getIndices().h, number, slides: []};
  for (let i = 0; i < Reveal.getTotalSlides(); i++) {
    Reveal.slide(i);
    const frame = Reveal.getCurrentSlide().querySelector(".frame"), box = frame.getBoundingClientRect();
    const boxes = [...frame.querySelectorAll("*")].map(e => e.getBoundingClientRect()).filter(b => b.width > 0);
    report.slides.push({
      shown: box.width > 0 && box.left >= 0 && box.top >= 0 && box.right <= innerWidth && box.bottom <= innerHeight,
      outside: boxes.filter(b => b.left < box.left - 1 || b.top < box.top - 1 || b.right > box.right + 1
        || b.bottom > box.bottom + 1).length,
      fontSize: parseFloat(getComputedStyle(frame).fontSize),
      images: [...frame.querySelectorAll("img")].map(e => [e.naturalWidth, e.clientWidth, e.clientHeight]),
    });
  }
  await new Promise(done => setTimeout(done, 2000));  // reveal.js writes the address with a delay
  report.hash = location.hash;
  report.loaded = performance.getEntriesByType("resource").map(e => e.name).filter(name => !name.startsWith("data:"));
  document.getElementById("report").innerText = JSON.stringify(report);
}, 500));
</script></body>"""
LONG = f'<section><div class="frame"><p>{"A text too long for a slide. " * 60}</p></div></section>'


@dataclass
class Built:
    folder: Path
    printed: str
    pages: dict = field(repr=False)  # path -> parsed HTML


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The command's output for the real notebooks: its folder, what it printed, and every page, parsed."""
    folder, printed = tmp_path_factory.mktemp("out"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("WORKBOOK_OUT", str(folder))
        main(["site"])
    folder /= "site"
    pages = {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in folder.rglob("*.html")}
    return Built(folder, printed.getvalue(), pages)


@pytest.fixture
def two_notebooks(tmp_path):
    """Two small notebooks with every kind of cell that slides and pages treat in their own way."""
    stream = new_output("stream", name="stdout", text="printed beside the figure")
    figure = new_output("display_data", {"image/png": PIXEL, "text/plain": "a figure"})
    table = new_output("execute_result", {"text/html": "<table><tr><td>7</td></tr></table>", "text/plain": "7"})
    opening = "# 1 · One\n\n**A promise.**\n\nIn Colab: run it. Next: [two](02_two.ipynb#The-end)\n\nCPU time: 3 s."
    links = (
        "[loss](../helpers.py#next_token_loss) [data](../data/3seqs.txt) [gone](../gone.py) [web](https://example.org)"
    )
    drawing = 'save_figure(draw(load("x")), "kgram_speed")'
    first = [
        new_markdown_cell(opening, metadata={"tags": ["slide"]}),
        new_code_cell('import sys\n\n"google.colab" in sys.modules', metadata={"tags": ["nbval-skip"]}),
        new_code_cell("import helpers"),
        new_code_cell("K = 1", metadata={"tags": ["parameters"]}),
        new_markdown_cell(f"## The rule\n\n{links}\n\n![a picture](../figures/kgram_speed.png)"),
        new_markdown_cell("### Fast", metadata={"tags": ["slide"]}),
        new_code_cell(drawing, outputs=[stream, figure], metadata={"tags": ["slide-part"]}),
        new_markdown_cell("Say this aloud.\n\n### And then", metadata={"tags": ["notes"]}),
        new_code_cell("secret_of_the_table()", outputs=[table], metadata={"tags": ["slide"]}),
        new_code_cell("slider()", metadata={"tags": ["nbval-skip"]}),
    ]
    second = [new_markdown_cell("# 2 · Two"), new_markdown_cell("## The end\n\n[one](01_one.ipynb)\n\n## Exercises")]
    for name, cells in (("01_one", first), ("02_two", second)):
        nbformat.write(new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    return tmp_path


def test_formulas_are_mathml_but_not_in_code():
    page = workbook.site.with_formulas("A loss $L = -\\ln p$ and `$x$` for 5 $ or 6 $.\n\n```\n$ python\n```")
    assert page.count("<math") == 1 and "<mi>L</mi>" in page and "`$x$`" in page and "5 $ or 6 $" in page
    assert page.endswith("```\n$ python\n```")


def test_a_cell_with_two_figures_is_two_slides_with_the_same_notes():
    pictures = [new_output("display_data", {"image/png": "AAAA"}) for _ in range(2)]
    cells = [
        new_code_cell("draw()", outputs=pictures, metadata={"tags": ["slide", "figures"]}),
        new_markdown_cell("aloud", metadata={"tags": ["notes"]}),
        new_markdown_cell("next", metadata={"tags": ["slide"]}),
    ]
    parts = [cell for group in workbook.site.one_figure_a_slide(cells) for cell in group]
    assert [cell.cell_type for cell in parts] == ["code", "markdown", "code", "markdown", "markdown"]
    assert [len(cell.outputs) for cell in parts[::2][:2]] == [1, 1] and parts[1].source == parts[3].source == "aloud"


def test_tagged_cells_become_slides(two_notebooks, tmp_path):
    build(tmp_path / "site", two_notebooks)
    deck = BeautifulSoup((tmp_path / "site" / "slides.html").read_text(encoding="utf-8"), "html.parser")
    title, opening, figure, table = deck.select("section")
    assert title.h1.text == "The pico-llm workbook"
    assert "A promise." in opening.text and "Colab" not in opening.text
    assert figure.h3.text == "Fast" and "printed" not in figure.text and "save_figure" not in figure.text
    assert [picture["src"] for picture in figure.select("img")] == [f"data:image/png;base64,{PIXEL}"]
    assert figure.select_one("aside.notes").text.strip() == "Say this aloud."
    assert figure.footer.a["href"] == "01_one.html"
    assert table.td.text == "7" and "secret" not in table.text


def test_a_page_has_its_links_led_and_its_set_up_folded(two_notebooks, tmp_path):
    dead = build(tmp_path / "site", two_notebooks).dead
    page = BeautifulSoup((tmp_path / "site" / "01_one.html").read_text(encoding="utf-8"), "html.parser")
    links = {a.text: a.get("href") for a in page.select("main a:not(.anchor-link)")}
    assert links["two"] == "02_two.html#The-end"
    assert links["loss"] == "source/helpers.py.html#next_token_loss" and links["data"] == "source/data/3seqs.txt"
    assert links["gone"] is None and "../gone.py" in dead and links["web"] == "https://example.org"
    assert page.select_one("img[alt='a picture']")["src"].startswith("data:image/png")
    assert page.title.text == "1 · One" and [a.text for a in page.select(".contents a")] == ["The rule"]
    assert [a["href"] for a in page.select(".bar a")] == ["index.html", "02_two.html", "slides.html"]
    assert "import helpers" in page.select_one("details.fold").text and "K = 1" not in page.select_one("details").text
    assert "google.colab" not in page.text and page.text.count("needs a running kernel") == 1


def test_a_picture_is_that_of_the_cell_and_of_no_other_run(two_notebooks, tmp_path, workbook_out):
    other = workbook_out / "figures"  # another run's; the record, figures/kgram_speed, is there too
    other.mkdir(parents=True)
    (other / "kgram_speed.png").write_bytes((ROOT / "figures" / "kgram_speed.png").read_bytes())
    (other / "kgram_speed.svg").write_text(SVG, encoding="utf-8")
    drawn = new_output("display_data", {"image/svg+xml": SVG, "text/plain": "a figure"})
    cell = new_code_cell('save_figure(draw(load("x")), "kgram_speed")', outputs=[drawn], metadata={"tags": ["slide"]})
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 3 · Three"), cell]), two_notebooks / "03_three.ipynb")
    build(tmp_path / "site", two_notebooks)
    for name, numbers in (("slides", (1, 1)), ("01_one", (1, 0)), ("03_three", (0, 1))):
        page = BeautifulSoup((tmp_path / "site" / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
        pictures = page.select("img:not([alt='a picture'])")  # this one is the text's own
        shown = [base64.b64decode(picture["src"].split("base64,")[1]) for picture in pictures]
        assert (shown.count(base64.b64decode(PIXEL)), shown.count(SVG.encode())) == numbers
        assert len(shown) == sum(numbers)
        assert {picture["alt"] for picture in pictures} == {"Figure: kgram speed"}  # and no title that tells a finding


def test_code_has_an_anchor_for_each_name():
    for path in (ROOT / "helpers.py", *(ROOT / "workbook").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        page = BeautifulSoup(code_page(source), "html.parser")
        anchors = {tag["id"]: tag.text.strip() for tag in page.select("[id]")}
        owner, names = "", {}
        for line in source.splitlines():
            if found := re.match(r"(class|def) (\w+)", line):
                owner, names[found[2]] = found[2] if found[1] == "class" else "", line.strip()
            elif owner and (found := re.match(r"    def (\w+)", line)):
                names[f"{owner}.{found[1]}"] = line.strip()
        assert anchors.items() >= names.items(), path.name
        assert path.name != "helpers.py" or {"next_token_loss", "KGramMLPSeqModel.hidden_rows"} <= set(anchors)


def test_notebooks_link_to_names_that_are_there():
    linked = set()
    for path in (ROOT / "notebooks").glob("[!.]*.ipynb"):
        linked |= set(re.findall(r"\.\./([\w/.-]+\.py)#([\w.-]+)", path.read_text(encoding="utf-8")))
    assert linked
    for path, name in linked:
        assert f'id="{name}"' in code_page((ROOT / path).read_text(encoding="utf-8")), (path, name)


def test_the_readme_opens_index_and_slides(tmp_path, monkeypatch):
    monkeypatch.setattr(workbook.site, "ROOT", tmp_path)
    promise = "What it is:\n[figures](data/notes.csv), [web](https://example.org)."
    for first in (promise, f"**{promise}**"):
        text = f"# The book\n\n<p>A picture</p>\n\n{first}\n\nMore.\n\n## Start\n\n**Not this.**\n"
        (tmp_path / "README.md").write_text(text, encoding="utf-8")
        lead = "What it is:\n[figures](../data/notes.csv), [web](https://example.org)."
        assert read_readme() == ("The book", lead)


def test_each_question_is_a_card_with_its_number_and_its_line_of_code(site):
    cards = site.pages[site.folder / "interview.html"].select("details.question")
    assert [int(card.summary.text.split(".")[0]) for card in cards] == list(range(1, 27))
    for card in cards:
        assert card.summary.text.rstrip().endswith("?") and not card.has_attr("open")
        assert card.p and card.select("pre, table, img"), card.summary.text
        assert any(link.get("href", "").startswith(("source/", "0")) for link in card.select("a")), card.summary.text
        assert not card.select(".highlight"), "code"


def test_a_recorded_replication_is_a_page(two_notebooks, tmp_path, monkeypatch):
    monkeypatch.setattr(workbook.site, "RECORD", tmp_path)
    head = "section,sentence,holds_record,shown_record,holds_new,shown_new,tried\n"
    row = "Stories,A is lower <b>,True,A 1.0 (0.9 to 1.1),{},A 2.0,{}\n"
    rows = [row.format(*pair) for pair in ((True, True), (False, True), (True, False))]
    (tmp_path / "replication.csv").write_text(head + "".join(rows), encoding="utf-8")
    build(tmp_path / "site", two_notebooks)
    page = BeautifulSoup((tmp_path / "site" / "replication.html").read_text(encoding="utf-8"), "html.parser")
    assert [line.select("td")[1].text for line in page.select("tbody tr")] == ["yes", "no"]
    assert "A is lower <b>" in page.tbody.text and "A 1.0 (0.9 to 1.1)" in page.tbody.text
    index = BeautifulSoup((tmp_path / "site" / "index.html").read_text(encoding="utf-8"), "html.parser")
    assert index.select_one("a[href='replication.html']")


def test_every_section_can_be_searched(site):
    script = next(tag.text for tag in site.pages[site.folder / "index.html"].select("script") if "sections" in tag.text)
    entries = json.JSONDecoder().raw_decode(script[script.index("[{") :])[0]
    for path in sorted((ROOT / "notebooks").glob("[!.]*.ipynb")):
        own = [entry for entry in entries if entry["address"].startswith(f"{path.stem}.html")]
        page = site.pages[site.folder / f"{path.stem}.html"]
        assert {entry["address"].partition("#")[2] for entry in own} == {
            "",
            *(h["id"] for h in page.select(".jp-MarkdownCell :is(h2, h3)")),
        }
    hits = [entry["address"] for entry in entries if "crosses p" in entry["text"]]
    assert any(address.startswith("03_") for address in hits)


def test_captions_title_and_order_the_gallery(tmp_path):
    for name in ("a_first", "b_second"):
        (tmp_path / f"{name}.png").touch()
    entry = "## b_second\n\n**The finding, `k=2`**\n\n![The finding](b_second.png)\n\nMore **here**.\n\nRuns: x\n"
    (tmp_path / "CAPTIONS.md").write_text(f"# Captions\n\n{entry}\n## gone\n\n**No picture**\n", encoding="utf-8")
    figures = read_figures(tmp_path)
    titles = [(figure["name"], figure["title"]) for figure in figures]
    assert titles == [("b_second", "The finding, `k=2`"), ("a_first", "a first")]
    assert figures[0]["caption"] == "More **here**.\n\nRuns: x"


def test_no_notebook_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no notebook in"):
        build(tmp_path / "site", tmp_path)


def test_odd_cells_do_not_stop_the_site(tmp_path):
    """What people put into cells: magics, commands, pasted pictures, half a formula, tags without a slide."""
    pasted = new_markdown_cell(
        "![x](attachment:x.png) costs $5 or \\(, $\\frac{$ and $x_{$ <b>&", metadata={"tags": ["slide"]}
    )
    pasted.attachments = {"x.png": {"image/png": PIXEL}}
    first = [
        new_markdown_cell("no heading", metadata={"tags": ["slide-part"]}),
        new_code_cell("%matplotlib inline\n!ls *.py\n%%time?", metadata={"tags": ["slide"]}),
        pasted,
        new_code_cell(
            "%%bash\necho $HOME", outputs=[new_output("stream", name="stdout", text="<i>$^$ 中文 \x1b[31m%")]
        ),
    ]
    nbformat.write(new_notebook(cells=first), tmp_path / "01 #1 & 100%.ipynb")
    link = "[one](<01 #1 & 100%.ipynb>) [again](01%20%231%20%26%20100%25.ipynb)"
    nbformat.write(new_notebook(cells=[new_markdown_cell(f"# Two $$ _x_\n\n{link}")]), tmp_path / "02.ipynb")
    odd = new_markdown_cell(
        f"# Three\n\n<a href='http://[x'>a</a> [b]({'x' * 300}) [c](/etc/passwd)\n\n<img src='http://[y'>"
    )
    nbformat.write(new_notebook(cells=[odd]), tmp_path / "01-1-100-.ipynb")  # whose page would have the same name
    site = build(tmp_path / "site", tmp_path)
    assert site.dead == {"01%20#1%20&%20100%.ipynb", "http://[x", "x" * 300, "/etc/passwd"}
    assert [said.split(" (")[0] for said in site.left_out] == [
        "01 #1 & 100%.ipynb, a cell tagged slide-part",
        "01 #1 & 100%.ipynb, a cell tagged slide",
    ]
    one, two = (
        BeautifulSoup((tmp_path / "site" / name).read_text(encoding="utf-8"), "html.parser")
        for name in ("01-1-100-.html", "02.html")
    )
    assert one.title.text == "01 #1 & 100%" and one.select_one("img")["src"] == f"data:image/png;base64,{PIXEL}"
    assert "<i>$^$ 中文" in one.text and "!ls *.py" in one.text and "$5 or" in one.text
    assert two.find("a", string="again")["href"] == "01-1-100-.html"
    cards = BeautifulSoup((tmp_path / "site" / "index.html").read_text(encoding="utf-8"), "html.parser").select(".card")
    assert [card["href"] for card in cards] == ["01-1-100-.html", "1-01-1-100-.html", "02.html"]


def test_the_command_writes_where_it_is_told_and_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    outputs = []
    monkeypatch.setattr(workbook.site, "write_site", outputs.append)
    main(["site"])
    main(["site", "--output", str(tmp_path)])
    assert outputs == [None, tmp_path]
    monkeypatch.undo()
    monkeypatch.setattr(workbook.site, "build", lambda output: build(output, tmp_path))
    with pytest.raises(SystemExit, match="[^0]"):
        main(["site", "--output", str(tmp_path)])
    assert "no notebook in" in capsys.readouterr().err


def test_the_command_says_what_it_made(site):
    books = sorted(path.stem + ".html" for path in (ROOT / "notebooks").glob("[!.]*.ipynb"))
    names = ["index.html", "slides.html", "interview.html", *books]
    for name in names:
        assert short(site.folder / name) in site.printed and (site.folder / name) in site.pages
    assert "no such file" not in site.printed  # a link of a notebook that leads nowhere
    cards = site.pages[site.folder / "index.html"].select(".card")
    assert [card["href"] for card in cards] == books
    assert all(card.h3.text and card.p.text and "CPU time: " in card.text for card in cards)
    shown = {figure.img["src"] for figure in site.pages[site.folder / "index.html"].select("figure")}
    assert shown == {f"figures/{path.name}" for path in (ROOT / "figures").glob("*.png")}


def test_a_dozen_slides_without_code(site):
    slides = site.pages[site.folder / "slides.html"].select("section")
    assert 10 <= len(slides) <= 16
    for slide in map(copy.copy, slides):
        for aside in slide.select("aside, footer"):
            aside.extract()
        assert slide.select("img") or slide.text.strip()
        assert not slide.select(".jp-InputArea-editor, .highlight")


def test_pictures_are_those_of_the_cells(site):
    drawn = set()
    for path in (ROOT / "notebooks").glob("[!.]*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            drawn |= {output.get("data", {}).get("image/png", "").strip() for output in cell.get("outputs", [])}
    for path, page in site.pages.items():
        for picture in page.select("section img, .jp-OutputArea img"):
            assert picture["src"].removeprefix("data:image/png;base64,").strip() in drawn, path


def test_nothing_comes_from_the_net(site):
    for path, page in site.pages.items():
        styles, wanted = [], []
        for tag in page.find_all(True):
            assert tag.name not in ("link", "iframe", "object", "embed") and "srcset" not in tag.attrs, (path, tag.name)
            assert tag.name != "script" or "src" not in tag.attrs, (path, tag["src"])
            assert tag.name != "img" or tag.get("alt"), path
            styles += [tag.text] if tag.name == "style" else [tag["style"]] if "style" in tag.attrs else []
            wanted += [tag["src"]] if "src" in tag.attrs else []
        style = "\n".join(styles)
        assert "@import" not in style, path
        for address in wanted + re.findall(r"url\(['\"]?([^)'\"]+)", style):
            assert address.startswith("data:") or (path.parent / address).is_file(), (path, address[:80])


def test_every_link_leads_somewhere(site):
    ids = {path: {tag["id"] for tag in page.select("[id]")} for path, page in site.pages.items()}
    for path, page in site.pages.items():
        for link in page.select("a[href]"):
            address = urlsplit(link["href"])
            if address.scheme in ("http", "https"):
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            assert target.is_file(), (path, link["href"])
            if address.fragment:
                assert {address.fragment, unquote(address.fragment)} & ids[target], (path, link["href"])


def open_in_chromium(path, tmp_path, fragment=""):
    """The page's DOM as it stands after its scripts, without a network; nothing may have gone to the console."""
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((found for name in names if (found := shutil.which(name))), None)
    if chromium is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    picture = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    options += ["--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += ["--virtual-time-budget=5000", "--window-size=1280,720"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"--screenshot={picture}"]
    done = subprocess.run([chromium, *options, path.as_uri() + fragment], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    grey = Image.open(picture).convert("L").histogram()
    assert sum(grey[:200]) > 0.005 * sum(grey), "the page is blank"
    return done.stdout


def test_slides_run_and_fit_in_chromium(site, tmp_path):
    deck = (site.folder / "slides.html").read_text(encoding="utf-8")
    before, after = deck.replace("<section>", LONG + "<section>", 1).rsplit("</body>", 1)
    (tmp_path / "slides.html").write_text(before + PROBE + after, encoding="utf-8")
    dom = open_in_chromium(tmp_path / "slides.html", tmp_path, "#/2")
    assert re.search(r'<div class="reveal[^"]* ready', dom) and re.search(r'<section[^>]* class="present"', dom)
    report = json.loads(html.unescape(re.search(r'<pre id="report">(.+?)</pre>', dom)[1]))
    slides = report["slides"]
    assert len(slides) == 1 + len(site.pages[site.folder / "slides.html"].select("section"))
    assert report["started"] == 2 and report["number"].split() == ["3", "/", str(len(slides))]
    assert report["hash"] == f"#/{len(slides) - 1}" and report["loaded"] == []
    for number, slide in enumerate(slides):
        assert slide["shown"] and slide["outside"] == 0 and slide["fontSize"] >= 18, (number, slide)
        assert all(natural > 0 and min(width, height) >= 250 for natural, width, height in slide["images"]), number
    assert slides[0]["fontSize"] < slides[2]["fontSize"] == 30  # the long text was set smaller


@pytest.mark.parametrize("name", ["index.html", "interview.html", "02_kgram_architectures.html"])
def test_pages_open_in_chromium(site, tmp_path, name):
    dom = open_in_chromium(site.folder / name, tmp_path)
    assert "<h1" in dom and "<main" in dom
