"""Everything public says what it does: at run time, in the stubs, and on the page that is made of them."""

import ast
import inspect
import re

import pytest
from reference import INTERNAL, PACKAGE, entries, members_of

import vbus

ENTRIES = {entry.name: entry for entry in entries()}
EXTENSION = ("Publisher", "Subscriber", "Sample", "Loan")


def test_the_page_has_every_public_name():
    assert set(ENTRIES) == set(vbus.__all__) - {"__version__"}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_public_name_and_member_says_what_it_is(name):
    if issubclass(type(getattr(vbus, name)), type) and issubclass(getattr(vbus, name), vbus.Error):
        assert inspect.getdoc(getattr(vbus, name)), "born in the extension"
        return
    entry = ENTRIES[name]
    assert entry.doc, f"{name} has no docstring"
    missing = [member.name for member in entry.members if len(member.doc) < len("Its name.")]
    assert missing == []


@pytest.mark.parametrize("name", [name for name in ENTRIES if ENTRIES[name].members])
def test_the_page_has_every_member_that_there_is(name):
    public = {it for it in dir(getattr(vbus, name)) if not it.startswith("_")}
    documented = {member.name for member in ENTRIES[name].members}
    assert public - documented <= INTERNAL
    assert documented <= public


@pytest.mark.parametrize("name", ENTRIES)
def test_who_waits_says_in_which_unit_and_what_comes_of_it(name):
    for member in ENTRIES[name].members:
        if re.search(r"\b(timeout|linger|spin):", member.signature):
            words = r"seconds|for asyncio"
            assert re.search(words, member.doc), f"{name}.{member.name}: {member.doc}"


@pytest.mark.parametrize("name", EXTENSION)
def test_help_says_what_the_stub_says(name):
    stub = ast.parse((PACKAGE / "_vbus.pyi").read_text())
    declared = next(it for it in stub.body if isinstance(it, ast.ClassDef) and it.name == name)
    for member in members_of(declared):
        found = inspect.getattr_static(getattr(vbus, name), member.name).__doc__
        assert inspect.cleandoc(found or "") == member.doc, f"{name}.{member.name}"
