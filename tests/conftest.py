"""What every test begins with: no settings from outside, and a bus of its own."""

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator

import pytest

import vbus

# A shell that runs the tests in the background has them ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("VBUS_") and name != "VBUS_SOAK":
            monkeypatch.delenv(name)


@pytest.fixture
def domain() -> str:
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture
def meeting() -> Iterator[str]:
    """A meeting directory of this test alone, with a short name: socket paths are short."""
    directory = tempfile.mkdtemp(prefix="vbus-", dir="/tmp")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def join(domain: str, meeting: str) -> Iterator[Callable[..., vbus.Node]]:
    """Opens nodes of this test's own domain; they are closed at the end."""
    nodes: list[vbus.Node] = []

    def open_node(name: str = "tester", **settings: object) -> vbus.Node:
        node = vbus.Node(name, **{"domain": domain, "shm": meeting, **settings})
        nodes.append(node)
        return node

    yield open_node
    for node in reversed(nodes):
        node.close(linger=0)


@pytest.fixture
def node(join: Callable[..., vbus.Node]) -> vbus.Node:
    return join()
