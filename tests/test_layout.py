"""The layout: where code may stand, what imports what, who may print, and how long a function may be."""

import ast
import graphlib

import nbformat
import pytest
from oracles import ROOT

LIBRARY = [ROOT / "helpers.py", *sorted((ROOT / "workbook").rglob("*.py"))]
CODE = [*LIBRARY, ROOT / "pico-llm.py"]
TESTS = sorted((ROOT / "tests").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def sources():
    """Name and text of each file of Python and of each code cell."""
    for path in [*CODE, *TESTS, ROOT / "notebooks" / "conftest.py"]:
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.cell_type == "code":
                yield f"{path.name}, cell {number}", cell.source


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree, prefix=""):
    """Each function with its dotted name, those within classes and functions too."""
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, (*FUNCTIONS, ast.ClassDef))
        name = f"{prefix}{node.name}" if named else prefix
        if isinstance(node, FUNCTIONS):
            yield name, node
        yield from functions(node, f"{name}." if named else prefix)


def called(tree, name):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", None) == name]


def imports(tree):
    """Every module that is imported, wherever in the file; `from package import name` counts as package.name too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# ---------------------------------------------------------------- files


def test_code_stands_in_the_house_of_code_alone():
    for folder in ("data", "figures"):
        assert not [path.name for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in (ROOT / "notebooks").rglob("*.py") if ".ipynb_checkpoints" not in path.parts] == [
        "conftest.py"
    ]
    assert sorted(path.name for path in ROOT.glob("*.py")) == ["helpers.py", "pico-llm.py"]


def test_the_record_holds_no_code_and_the_house_no_record():
    assert {path.suffix for path in (ROOT / "data" / "runs").iterdir()} == {".csv"}
    assert not [path for path in (ROOT / "workbook").rglob("*.csv")]


# ---------------------------------------------------------------- imports


def test_every_name_is_imported_by_name():
    for name, source in sources():
        stars = [
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
        ]
        assert not stars, name


MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in CODE}


def needed_by(module):
    """The modules of the project that one imports, itself apart."""
    return {other for other in imports(parse(MODULES[module])) if other in MODULES} - {module}


def test_imports_point_downwards():
    graph = {module: needed_by(module) for module in MODULES}
    assert tuple(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the modules of a circle
    assert graph["helpers"] == {"workbook.fast", "workbook.text"}
    assert graph["workbook.text"] == {"workbook.files", "workbook.sequences", "workbook.store"}
    assert graph["workbook.config"] == {"workbook.files", "workbook.text"}  # the separators and grammars
    assert not [module for module, needs in graph.items() if needs & {"pico-llm", "workbook.__main__"}]


def test_no_module_speaks_of_a_place_that_is_gone():
    for name, source in sources():
        tops = {module.partition(".")[0] for module in imports(ast.parse(source))}
        assert not tops & {"data", "figures", "notebooks", "tests"}, name


# ---------------------------------------------------------------- what a library leaves alone

PRINTING = {"pico-llm.py": None, "workbook/__main__.py": None, "workbook/config.py": None, "workbook/record.py": None}
PRINTING |= {"workbook/replicate.py": {"replicate"}}
PRINTING |= {
    "workbook/generation.py": {"draw_samples"},
    "workbook/records.py": {"claim"},
    "workbook/site.py": {"write_site"},
}  # None: anywhere in it
PRINTING |= {"workbook/colab.py": {"install"}, "workbook/benchmark.py": {"serve"}}


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.name)
def test_only_the_commands_and_claims_print(path):
    name, tree = str(path.relative_to(ROOT)), parse(path)
    if name not in PRINTING:
        assert not called(tree, "print")
    elif PRINTING[name]:
        inside = [
            call for function, node in functions(tree) if function in PRINTING[name] for call in called(node, "print")
        ]
        assert len(inside) == len(called(tree, "print")) > 0


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.name)
def test_only_the_commands_read_the_command_line(path):
    if str(path.relative_to(ROOT)) not in ("workbook/__main__.py", "workbook/config.py"):
        source = path.read_text(encoding="utf-8")
        assert "argparse" not in set(imports(ast.parse(source))) and "sys.argv" not in source


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.name)
def test_nothing_is_global_and_nothing_is_executed_but_a_notebooks_definitions(path):
    tree = parse(path)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)]
    assert len(called(tree, "exec")) == (path.name == "notebooks.py") and not called(tree, "eval")


def test_no_cell_executes_text_among_the_names_of_its_notebook():
    for name, source in sources():
        for call in called(ast.parse(source), "exec"):
            assert len(call.args) > 1 and not called(call, "globals"), name


# ---------------------------------------------------------------- length and complexity


def own_nodes(function):
    """The nodes of a function without those of the functions inside it."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, FUNCTIONS):
            yield node
            yield from own_nodes(node)


def complexity(function):
    """McCabe's: one, and one for each place where the way through forks."""
    forks = (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.comprehension, ast.match_case)
    return 1 + sum(isinstance(node, forks) for node in own_nodes(function))


def code_lines(function):
    """The lines of a function, its docstring apart."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str)
    docstring = first.end_lineno - first.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - docstring


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.name)
def test_functions_are_short_and_simple(path):
    measured = {name: (code_lines(node), complexity(node)) for name, node in functions(parse(path))}
    assert {name: pair for name, pair in measured.items() if pair[0] > 50 or pair[1] > 15} == {}
