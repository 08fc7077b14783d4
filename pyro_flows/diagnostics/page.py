# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""One page of HTML that needs nothing but itself: text escaped, pictures inside, no scripts.

A page is put together from pieces of markup (:class:`Html`). Every other text is escaped where it
enters one, so that a site may be called ``<script>`` and an error may say ``a < b``::

    document("My fit", verdict("reliable", ...), [section("Training", picture(fig, alt="..."))])
"""

from __future__ import annotations

import base64
import html
import io
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .style import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Html",
    "Section",
    "bullets",
    "code",
    "details",
    "document",
    "element",
    "facts",
    "picture",
    "section",
    "table",
    "verdict",
]

VOID = frozenset({"br", "hr", "img", "meta"})
# A picture whose drawing takes more bytes than this is stored as pixels, unless that takes more.
LARGEST_SVG, DPI = 100_000, 160
# A picture is never shown narrower than this, or than itself: letters must stay legible.
NARROW = 544
# What tells apart three verdicts besides their colours.
SIGNS = {"reliable": "✓", "corrected": "≈", "not reliable": "✕"}


class Html(str):
    """Text that is markup already, and isn't escaped again."""

    __slots__ = ()


class Section(NamedTuple):
    """A part of a page under a heading; the list of contents leads to it."""

    title: str
    body: Html


def element(tag: str, *children: str | None, **attributes: str | int | None) -> Html:
    """An element of a page.

    Args:
        tag: its name.
        *children: what is in it, in order: markup, text (escaped here), or None, which is skipped.
        **attributes: their values, escaped here; None for none. ``class_`` is "class",
            ``aria_label`` is "aria-label".

    Returns:
        The markup.

    Example:
        >>> element("p", "sd < ", element("b", "0.1"), class_="note")
        '<p class="note">sd &lt; <b>0.1</b></p>'
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in VOID:
        return Html(f"<{tag}{given}>")
    return Html(f"<{tag}{given}>{_join(children)}</{tag}>")


def _join(children: Iterable[str | None]) -> str:
    return "".join(
        child if isinstance(child, Html) else html.escape(child)
        for child in children
        if child is not None
    )


def section(title: str, *children: str | None) -> Section:
    """A section from its title and what is in it.

    Args:
        title: the heading.
        *children: as for ``element``.

    Returns:
        The section.

    Example:
        >>> section("Cost", element("p", "3 s")).body
        '<p>3 s</p>'
    """
    return Section(title, Html(_join(children)))


def bullets(*items: str, ordered: bool = False) -> Html:
    """A list.

    Args:
        *items: markup or text.
        ordered: whether the items are numbered.

    Returns:
        The markup.

    Example:
        >>> bullets("one", "two")
        '<ul><li>one</li><li>two</li></ul>'
    """
    return element("ol" if ordered else "ul", *(element("li", item) for item in items))


def code(text: str) -> Html:
    """Lines of code as they are.

    Args:
        text: the code.

    Returns:
        The markup.

    Example:
        >>> code("x < 1")
        '<pre tabindex="0"><code>x &lt; 1</code></pre>'
    """
    return element("pre", element("code", text), tabindex=0)


def details(summary: str, *children: str | None) -> Html:
    """What is shown on request.

    Args:
        summary: the line that is always there.
        *children: as for ``element``.

    Returns:
        The markup.

    Example:
        >>> details("more", element("p", "text"))
        '<details><summary>more</summary><p>text</p></details>'
    """
    return element("details", element("summary", summary), *children)


def facts(entries: Mapping[str, tuple[str, str]]) -> Html:
    """Key figures as cards.

    Args:
        entries: what it is, to its value (markup or text) and a sentence about it.

    Returns:
        The markup.

    Example:
        >>> facts({"k-hat": ("0.40", "low")}).startswith('<dl class="facts">')
        True
    """
    cards = (
        element(
            "div",
            element("dt", name),
            element("dd", value, class_="value"),
            element("dd", text) if text else None,
        )
        for name, (value, text) in entries.items()
    )
    return element("dl", *cards, class_="facts")


def picture(figure: Figure, *, alt: str, caption: str | None = None) -> Html:
    """A picture inside the page: a drawing where that is small, else pixels.

    Args:
        figure: a matplotlib figure.
        alt: what it shows, in words, for those who can't see it.
        caption: a text under it.

    Returns:
        The markup.

    Cost: the figure is drawn once or twice, some tenths of a second each.

    Example:
        >>> from matplotlib.figure import Figure
        >>> picture(Figure(), alt="nothing").startswith('<figure><div class="scroll"')
        True
    """
    kind, data = _drawn(figure)
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    wide = "wide" if width > NARROW else None
    image = element("img", src=source, alt=alt, width=width, height=height, class_=wide)
    return element(
        "figure",
        element("div", image, class_="scroll", tabindex=0, role="group", aria_label="Picture"),
        element("figcaption", caption) if caption else None,
    )


def _drawn(figure: Figure) -> tuple[str, bytes]:
    import matplotlib

    buffer = io.BytesIO()
    # Letters as outlines, since readers may lack the font; equal fits give equal files. No
    # background, since the page has a light and a dark one.
    settings: dict[Any, Any] = {"svg.fonttype": "path", "svg.hashsalt": "pyro_flows"}
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings(), matplotlib.rc_context(settings):
        # A site may be named in letters that the font lacks; boxes stand for them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
        drawing = buffer.getvalue()
        drawing = drawing[drawing.index(b"<svg") :]
        if len(drawing) <= LARGEST_SVG:
            return "svg+xml", drawing
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, transparent=True)
    pixels = buffer.getvalue()
    return ("png", pixels) if len(pixels) < len(drawing) else ("svg+xml", drawing)


def table(frame: Any, *, label: str) -> Html:
    """A table that scrolls by itself where the window is narrow.

    Args:
        frame: a pandas DataFrame; names and texts in it are escaped.
        label: what it holds, for those who can't see it.

    Returns:
        The markup.

    Example:
        >>> import pandas as pd
        >>> "&lt;b&gt;" in table(pd.DataFrame({"mean": [1.0]}, index=["<b>"]), label="means")
        True
    """
    import pandas as pd

    with pd.option_context("display.max_colwidth", None):
        markup = frame.to_html(border=0, na_rep="NaN", float_format=_number)
    markup = re.sub(r' style="[^"]*"', "", markup)
    return element(
        "div", Html(markup), class_="scroll", tabindex=0, role="region", aria_label=label
    )


def _number(x: float) -> str:
    """Three decimals, or three digits of what is small, or as a power of ten."""
    size = abs(x)
    if size == 0 or not math.isfinite(x):
        return f"{x:g}"
    return f"{x:.3e}" if size >= 1e6 else f"{x:.3f}" if size >= 0.1 else f"{x:#.3g}"


def verdict(status: str, reasons: Iterable[str], todo: Iterable[str]) -> Html:
    """What comes first: the verdict in colour and words, its reasons, and what to do.

    Args:
        status: "reliable", "corrected" or "not reliable".
        reasons: sentences, the most important first.
        todo: markup or sentences on what to do.

    Returns:
        The markup.

    Example:
        >>> "Verdict: corrected" in verdict("corrected", ["It is close."], ["Use it."])
        True
    """
    first, *rest = reasons
    return element(
        "section",
        element("h2", element("span", SIGNS[status], aria_hidden="true"), f" Verdict: {status}"),
        element("p", first, class_="lead"),
        bullets(*rest) if rest else None,
        element("h3", "What to do"),
        *(one if isinstance(one, Html) else element("p", one) for one in todo),
        class_=f"verdict {status.replace(' ', '-')}",
        aria_label="Verdict",
    )


def document(title: str, top: Html, sections: Iterable[Section], *, foot: str = "") -> str:
    """The whole page.

    Args:
        title: of the page.
        top: what stands above the list of contents.
        sections: in order; each gets an anchor.
        foot: a line at the end.

    Returns:
        An HTML document in UTF-8.

    Example:
        >>> page = document("A fit", element("p", "good"), [section("Cost", "3 s")])
        >>> page.startswith("<!DOCTYPE html>"), page.count("<h2")
        (True, 1)
    """
    parts, links = [], []
    for number, one in enumerate(sections, start=1):
        anchor = f"section-{number}"
        links.append(element("li", element("a", one.title, href=f"#{anchor}")))
        heading = element("h2", one.title, id=f"{anchor}-title")
        parts.append(
            element("section", heading, one.body, id=anchor, aria_labelledby=f"{anchor}-title")
        )
    contents = element("nav", element("ul", *links), aria_label="Contents") if links else None
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        Html(f"<style>{STYLE}</style>"),
    )
    body = element(
        "body",
        element("header", element("h1", title)),
        element("main", top, contents, *parts),
        element("footer", element("p", foot)) if foot else None,
    )
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n"
