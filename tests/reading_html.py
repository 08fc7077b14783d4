# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""A page of HTML read strictly: balanced, legible without pictures, in need of nothing outside."""

import base64
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

VOID = {"br", "hr", "img", "meta"}
# Elements that run code or fetch something.
ACTIVE = {
    "script",
    "link",
    "iframe",
    "object",
    "embed",
    "base",
    "form",
    "video",
    "audio",
    "source",
}
SVG_NAMES = "http://www.w3.org/"


class Page(HTMLParser):
    """Text, tags, pictures and headings of a page; raises AssertionError on what is wrong."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.links, self.headings = [], [], [], [], []
        self.pictures, self.text, self.styles = [], "", ""
        self.feed(text)
        self.close()
        assert self.open == [], f"left open: {self.open}"
        assert text.startswith("<!DOCTYPE html>")
        assert len(set(self.ids)) == len(self.ids)
        assert {link[1:] for link in self.links} <= set(self.ids)
        assert "@import" not in self.styles
        assert all(url.startswith("data:") for url in re.findall(r"url\((.*?)\)", self.styles))
        self._check_headings()

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        assert tag not in ACTIVE, tag
        assert not [name for name in given if name.startswith("on") or name == "srcset"]
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "html":
            assert given["lang"]
        if "id" in given:
            self.ids.append(given["id"])
        if "href" in given:
            assert given["href"].startswith("#"), given["href"]
            self.links.append(given["href"])
        if "style" in given:
            self.styles += given["style"]
        if tag == "img":
            assert given["alt"].strip()
            self.pictures.append(decoded(given["src"]))
        else:
            assert "src" not in given
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append([int(tag[1]), ""])

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            self.styles += data
        else:
            self.text += data
        if self.open and re.fullmatch(r"h[1-6]", self.open[-1]):
            self.headings[-1][1] += data

    def _check_headings(self):
        """One title, and no level left out on the way down."""
        levels = [level for level, _ in self.headings]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False)), levels


def decoded(source):
    """What a picture's address holds: ("png" or "svg+xml", bytes), complete in itself."""
    kind, data = re.fullmatch(r"data:image/(png|svg\+xml);base64,(.+)", source).groups()
    content = base64.b64decode(data, validate=True)
    if kind == "png":
        assert content.startswith(b"\x89PNG")
        return kind, content
    for node in ET.fromstring(content).iter():
        for name, value in node.attrib.items():
            if name.endswith("href"):
                assert value.startswith(("#", "data:image/png;base64,")), value[:80]
            assert "url(" not in value.replace("url(#", ""), value
    assert b"<!DOCTYPE" not in content
    assert set(re.findall(rb'https?://[^/"]*/', content)) <= {SVG_NAMES.encode()}
    return kind, content
