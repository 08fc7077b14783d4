# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The documentation holds together: links, anchors, the places that warnings name, the README.

That its pages run is for ``make docs`` to show: it runs them.
"""

import ast
import contextlib
import inspect
import io
import re
from functools import cache
from pathlib import Path

import pytest

import pyro_flows
from pyro_flows.diagnostics.anchors import WARNINGS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
TEXTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
PACKAGE = ROOT / "pyro_flows"


def relative(path):
    return str(path.relative_to(ROOT))


@cache
def prose(path):
    """A page without its blocks of code, directives kept."""
    return re.sub(r"^(`{3,})(?!\{)[^\n]*\n.*?^\1$", "", path.read_text(), flags=re.M | re.S)


def slug(heading):
    """The anchor that sites for code make of a heading."""
    words = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return words.replace(" ", "-")


@cache
def anchors(path):
    """All anchors of a page: headings', and explicit ones."""
    text = prose(path)
    found = {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.M)}
    return found | set(re.findall(r"^\(([\w-]+)\)=$", text, re.M))


def page_of(name, origin):
    """The file that a link in ``origin`` leads to; "/x" is from the documentation's root."""
    return (DOCS / name[1:] if name.startswith("/") else origin.parent / name).resolve()


# --- pages and links ---------------------------------------------------------------------------


def test_every_page_is_in_a_table_of_contents():
    listed = {DOCS / "index.md"}
    for page in PAGES:
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(), re.M | re.S):
            names = [line for line in block.split("\n") if line and not line.startswith(":")]
            listed |= {page_of(f"{name}.md", page) for name in names}
    assert sorted(map(relative, listed)) == sorted(map(relative, PAGES))


@pytest.mark.parametrize("text", TEXTS, ids=relative)
def test_links_lead_somewhere(text):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"https?://|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        page = page_of(name, text) if name else text
        assert page.exists(), link
        assert not anchor or anchor in anchors(page), link


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_references_lead_somewhere(page):
    targets = set().union(*(re.findall(r"^\(([\w-]+)\)=$", p.read_text(), re.M) for p in PAGES))
    for role, name in re.findall(r"\{(doc|ref)\}`([^`]+)`", prose(page)):
        name = re.sub(r".*<(.*)>", r"\1", name, flags=re.S)
        there = page_of(f"{name}.md", page).exists() if role == "doc" else name in targets
        assert there, f"{role} {name}"


def test_explicit_anchors_are_unique():
    every = [a for page in PAGES for a in re.findall(r"^\(([\w-]+)\)=$", page.read_text(), re.M)]
    assert len(every) == len(set(every))


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_code_that_is_shown_is_run(page):
    text = page.read_text()
    run = "```{code-cell}" in text
    assert run == text.startswith("---\nfile_format: mystnb\n")
    if page.parent.name in ("tutorials", "how-to"):
        assert run
        assert not re.search(r"^```(python|pycon)", text, re.M)
    shown = re.findall(r"^```\{glue\} (\w+)\n:doc: (\S+)$", text, re.M)
    for name, home in shown:
        assert f'glue("{name}"' in (page.parent / home).read_text(), name


def test_a_how_to_is_a_question():
    for page in (DOCS / "how-to").glob("*.md"):
        heading = re.search(r"^# (.*)$", page.read_text(), re.M)[1]
        assert heading.endswith("?"), f"{page.name}: {heading}"


def test_the_first_names_are_listed():
    page = (DOCS / "reference" / "pyro_flows.md").read_text()
    assert [n for n in pyro_flows.__all__ if f"`{n}`" not in page and n != "__version__"] == []


# --- the places that warnings name -------------------------------------------------------------


@cache
def places_in_code():
    """Anchors that the package prints: of remarks, of ``more(...)``, and written out."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text()
        tree = ast.parse(source)
        names = {}
        for node in tree.body:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    pairs = (
                        zip(target.elts, node.value.elts, strict=True)
                        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                        else [(target, node.value)]
                    )
                    for left, right in pairs:
                        if isinstance(left, ast.Name) and isinstance(right, ast.Constant):
                            names[left.id] = right.value
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            given = []
            if node.func.id == "Remark":
                given = node.args[2:3] + [k.value for k in node.keywords if k.arg == "anchor"]
            elif node.func.id == "more":
                given = node.args
            for value in given:
                name = names.get(value.id) if isinstance(value, ast.Name) else None
                anchor = value.value if isinstance(value, ast.Constant) else name
                if anchor:
                    found.setdefault(anchor, relative(path))
        text = "\n".join(
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
            if "\n" not in node.value  # no docstrings
        )
        found |= dict.fromkeys(
            re.findall(rf"{re.escape(WARNINGS)}#([\w-]+)", text), relative(path)
        )
    return found


def sections():
    """Explicit anchors of the page of warnings, with the headings below them."""
    return re.findall(r"^\(([\w-]+)\)=\n#+ (.*)$", (ROOT / WARNINGS).read_text(), re.M)


def test_every_place_that_is_printed_has_a_section():
    known = {anchor for anchor, _ in sections()}
    assert {k: v for k, v in places_in_code().items() if k not in known} == {}


def test_every_section_is_printed_somewhere():
    assert sorted(a for a, _ in sections() if a not in places_in_code()) == []


def test_anchors_are_also_those_of_headings():
    # So that a place also opens on sites that know headings only.
    assert [(a, h) for a, h in sections() if slug(h) != a] == []


def in_two(text, printed):
    """Whether it is there, or its beginning and its end are, with something put in between."""
    cuts = [match.start() for match in re.finditer(" ", text)] + [len(text)]
    return any(text[:cut] in printed and text[cut:].strip() in printed for cut in cuts)


def test_what_is_quoted_is_what_is_printed():
    strings = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else "\0" for part in parts]
            strings.add("".join(text for text in texts if isinstance(text, str)))
    printed = "\n".join(strings)
    quotes = re.findall(r"(?:^> .*\n)+", (ROOT / WARNINGS).read_text(), re.M)
    assert len(quotes) > 20
    for quote in quotes:
        text = " ".join(line[2:] for line in quote.split("\n"))
        # Between numbers, names and what is left out.
        fixed = re.split(r"'[\w-]+'(?!\w)|-?\d[\d.,%/x]*|\.\.\.|[(),:;]", text)
        long = [part.strip() for part in fixed if len(part.split()) > 3]
        assert [part for part in long if not in_two(part, printed)] == [], quote


def test_each_section_says_what_to_do():
    text = (ROOT / WARNINGS).read_text()
    parts = re.split(r"^\([\w-]+\)=$", text, flags=re.M)[1:]
    assert len(parts) == len(sections())
    assert [part for part in parts if len(part.split()) < 25] == []


# --- the front pages ---------------------------------------------------------------------------


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.M | re.S)


def test_targets_of_make_exist():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    for text in TEXTS:
        named = re.findall(r"`make ([a-z0-9-]+)", text.read_text())
        assert set(named) <= targets, relative(text)


def run_readme(folder, monkeypatch, **options):
    """Run the README's blocks of Python in one namespace; what they print, and the names."""
    original = pyro_flows.FlowVI.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **{**kwargs, "progress": False, **options})

    init.__signature__ = inspect.signature(original)
    monkeypatch.setattr(pyro_flows.FlowVI, "__init__", init)
    monkeypatch.chdir(folder)
    space, out = {}, io.StringIO()
    with contextlib.redirect_stdout(out):
        for block in blocks(ROOT / "README.md", "python"):
            exec(block, space)
    return out.getvalue(), space


def test_the_readme_runs(tmp_path, monkeypatch):
    printed, _ = run_readme(tmp_path, monkeypatch, num_steps=2)
    assert printed.startswith("Verdict: ")


@pytest.mark.slow
def test_the_readme_shows_what_is_printed(tmp_path, monkeypatch):
    import torch

    torch.set_default_dtype(torch.float32)  # as in a user's session
    printed, _ = run_readme(tmp_path, monkeypatch)
    shown = blocks(ROOT / "README.md", "text")[0]
    number = re.compile(r"-?\d[\d,]*\.?\d*")
    same = [line for line in shown.split("\n") if not line.startswith("Cost")]
    for line in same:
        words = number.sub("#", line).split()
        matches = [p for p in printed.split("\n") if number.sub("#", p).split() == words]
        figures = [float(f.replace(",", "")) for f in number.findall(line)]
        assert any(
            [float(f.replace(",", "")) for f in number.findall(match)]
            == pytest.approx(figures, rel=0.03, abs=0.15)
            for match in matches
        ), line
