# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Pages: what users named is text and never markup, and pictures are in the page."""

import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from pyro_flows.diagnostics import importance_weights, page
from pyro_flows.diagnostics.merit import figures_of_merit
from pyro_flows.diagnostics.page import Html, element
from pyro_flows.diagnostics.style import STYLE
from tests.reading_html import Page

EVIL = "<script>alert('x')</script> & \"more\""


def curve(points=50, ylabel="ELBO"):
    fig = Figure(figsize=(6, 3))
    ax = fig.add_subplot()
    ax.plot(np.arange(points), np.random.default_rng(0).normal(size=points), "o", ms=1)
    ax.set_ylabel(ylabel)
    return fig


def whole(*children, title="A fit"):
    return Page(page.document(title, page.verdict("reliable", ["Good."], ["Use it."]), children))


def test_text_is_escaped_wherever_it_enters():
    table = page.table(pd.DataFrame({EVIL: [EVIL]}, index=[EVIL]), label=EVIL)
    read = Page(
        page.document(
            EVIL,
            page.verdict("not reliable", [EVIL, EVIL], [EVIL, page.bullets(EVIL)]),
            [
                page.section(EVIL, EVIL, page.code(EVIL), page.details(EVIL, EVIL), table),
                page.section("Facts", page.facts({EVIL: (EVIL, EVIL)})),
                page.section("Pictures", page.picture(curve(), alt=EVIL, caption=EVIL)),
            ],
            foot=EVIL,
        )
    )
    assert "script" not in read.tags
    # 2 of the title, 2 reasons, 2 to do, a link, a heading, 4 of text, code and details, 3 of the
    # table, 3 of the facts, caption, foot
    assert read.text.count(EVIL) == 20


def test_markup_is_kept_and_attributes_are_escaped():
    inner = element("b", "<")
    assert element("p", inner, None, "&") == "<p><b>&lt;</b>&amp;</p>"
    assert element("p", class_='a"b', aria_label="<", id=None) == (
        '<p class="a&quot;b" aria-label="&lt;"></p>'
    )
    assert element("br") == "<br>"
    assert isinstance(element("p", "x"), Html)


@pytest.mark.parametrize("status", ["reliable", "corrected", "not reliable"])
def test_the_verdict_comes_first(status):
    top = page.verdict(status, ["First.", "Second."], ["Do it."])
    read = Page(page.document("A fit", top, [page.section("Training", "text")]))
    assert [text.strip() for _, text in read.headings] == [
        "A fit",
        f"Verdict: {status}",
        "What to do",
        "Training",
    ]
    assert read.text.index("Verdict") < read.text.index("Training")


def test_small_pictures_are_drawings_and_large_ones_pixels():
    (kind, small), (other, large) = whole(
        page.section("Two", page.picture(curve(), alt="a"), page.picture(curve(20_000), alt="b"))
    ).pictures
    assert (kind, other) == ("svg+xml", "png")
    assert len(large) < 200_000
    assert len(small) < 50_000


def test_equal_figures_give_equal_pictures():
    assert page.picture(curve(), alt="a") == page.picture(curve(), alt="a")


def test_letters_that_the_font_lacks_are_no_error():
    whole(page.section("One", page.picture(curve(ylabel="温度"), alt="温度")))


def test_drawing_leaves_the_settings_alone():
    before = dict(matplotlib.rcParams)
    page.picture(curve(), alt="a")
    assert dict(matplotlib.rcParams) == before


def test_tables_show_numbers_as_people_read_them():
    numbers = [4.4161, 0.01654, 4.4e-15, -1.5e14, 0.0, np.nan, np.inf]
    read = whole(page.section("Table", page.table(pd.DataFrame({"x": numbers}), label="t")))
    shown = ["4.416", "0.0165", "4.40e-15", "-1.500e+14", "0", "NaN", "inf"]
    assert all(text in read.text.split() for text in shown)
    assert "display: none" not in read.styles.split("@media print")[0]


def test_long_texts_in_tables_are_whole():
    note = "withheld because " * 20
    read = whole(page.section("T", page.table(pd.DataFrame({"n": [note]}), label="t")))
    assert note.strip() in read.text


def test_every_section_is_in_the_list_of_contents():
    read = whole(*(page.section(f"Part {i}", "x") for i in range(4)))
    assert len(read.links) == 4
    assert [text for level, text in read.headings if level == 2][1:] == [
        f"Part {i}" for i in range(4)
    ]


def test_figures_of_merit_in_words():
    rng = np.random.default_rng(0)

    def told(lw, **options):
        weights = importance_weights(lw, np.zeros(len(lw)))
        return {k: " ".join(v) for k, v in figures_of_merit(weights, ess=9.0, **options).items()}

    good = told(0.1 * rng.normal(size=4000))
    assert "reweighting can correct" in good["k-hat"]
    assert "off by 0.1 sd has as much" in good["gap"]  # the square root of 2 times 0.01 / 2
    assert "It compares models" in good["log evidence"]
    flat = told(0.1 * rng.normal(size=4000), remark=" (relative: improper prior on 'MU')")
    assert "Relative: improper prior on 'MU'." in flat["log evidence"]
    bad = told(5.0 * rng.normal(size=4000))
    assert "reweighting can't correct" in bad["k-hat"]
    assert "by how much is unknown" in bad["log evidence"]
    assert " sd " not in bad["gap"]
    assert "n/a" in told(np.zeros(4000))["k-hat"]
    assert "inf" in told(np.full(4000, -np.inf))["ELBO"]


def contrast(one, other):
    """Ratio of relative luminances, WCAG 2."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    light, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_contrast(dark):
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.S)
    colours = dict(re.findall(r"--(\w+): (#\w{6})", blocks[1 if dark else 0]))
    for text in ("text", "quiet", "link", "good", "fair", "bad"):
        for back in ("back", "card"):
            assert contrast(colours[text], colours[back]) >= 4.5, (text, back)
