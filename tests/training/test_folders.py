# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Folders written whole or not at all, with nothing touched beside them."""

import re
from pathlib import Path

import pytest

from pyro_flows.errors import SavedDensityError
from pyro_flows.training import folders
from pyro_flows.training.folders import free_name, write_folder

REFUSAL = SavedDensityError("something else")


def writer(text):
    def write(folder):
        (folder / "marker").write_text(text)

    return write


def fails(folder):
    (folder / "marker").write_text("half")
    raise KeyboardInterrupt


def save(path, text):
    write_folder(path, "marker", writer(text), REFUSAL)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_one_and_one_in_its_place(tmp_path):
    path = tmp_path / "a" / "fit"
    for text in ("first", "second"):
        save(path, text)
        assert (path / "marker").read_text() == text
        assert names(path.parent) == ["fit"]


def test_what_was_in_the_older_one_is_gone(tmp_path):
    save(tmp_path / "fit", "first")
    (tmp_path / "fit" / "extra").write_text("1")
    save(tmp_path / "fit", "second")
    assert names(tmp_path / "fit") == ["marker"]


def test_names_beside_it_are_the_users(tmp_path):
    for end in (".partial", ".older", ".partial0", ".older0", ".older1"):
        (tmp_path / f"fit{end}").mkdir()
        (tmp_path / f"fit{end}" / "mine").write_text("1")
    (tmp_path / "fit.partial1").symlink_to(tmp_path / "nowhere")
    before = names(tmp_path)
    for text in ("first", "second"):
        save(tmp_path / "fit", text)
        assert names(tmp_path) == ["fit", *before]
    assert len(list(tmp_path.glob("*/mine"))) == 5


@pytest.mark.parametrize("older", [False, True])
def test_one_that_fails_leaves_what_was_there(tmp_path, older):
    path = tmp_path / "fit"
    if older:
        save(path, "first")
    with pytest.raises(KeyboardInterrupt):
        write_folder(path, "marker", fails, REFUSAL)
    assert names(tmp_path) == ["fit"] * older
    assert not older or (path / "marker").read_text() == "first"


def test_a_move_that_fails_puts_the_older_one_back(tmp_path, monkeypatch):
    path = tmp_path / "fit"
    save(path, "first")
    rename = Path.rename

    def interrupted(self, target):
        if ".partial" in self.name:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(folders.Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(path, "second")
    assert names(tmp_path) == ["fit"]
    assert (path / "marker").read_text() == "first"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_something_else_is_refused(tmp_path, kind):
    path = tmp_path / "thesis"
    if kind == "folder":
        path.mkdir()
        (path / "chapter").write_text("1")
    else:
        path.write_text("1")
    with pytest.raises(SavedDensityError, match=re.escape("something else")):
        save(path, "first")
    assert names(tmp_path) == ["thesis"]
    assert path.is_file() if kind == "file" else names(path) == ["chapter"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "fit"
    link.symlink_to(tmp_path / "disk" / "fit")
    for text in ("first", "second"):
        save(link, text)
        assert link.is_symlink()
        assert (tmp_path / "disk" / "fit" / "marker").read_text() == text
    assert (names(tmp_path), names(tmp_path / "disk")) == (["disk", "fit"], ["fit"])


def test_free_name(tmp_path):
    assert free_name(tmp_path / "fit", ".older").name == "fit.older0"
    (tmp_path / "fit.older0").write_text("")
    assert free_name(tmp_path / "fit", ".older").name == "fit.older1"
