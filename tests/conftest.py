"""What every test begins with: no settings from outside, and a bus of its own."""

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from inspect import signature

import pytest
from programs.loopback import meet_over_udp

import vbus

# A shell that runs the tests in the background has them ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("VBUS_") and name != "VBUS_SOAK":
            monkeypatch.delenv(name)
    # Nodes of tests meet in a directory; mDNS, which shouts into the network around, has tests of its own.
    monkeypatch.setenv("VBUS_DISCOVERY", "shm,peers")


@pytest.fixture
def domain() -> str:
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture
def meeting() -> Iterator[str]:
    """A meeting directory of this test alone, with a short name: socket paths are short."""
    directory = tempfile.mkdtemp(prefix="vbus-", dir="/tmp")
    yield directory
    shutil.rmtree(directory)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A story that holds on several paths is told on each of them, but one of a node alone."""
    mark = metafunc.definition.get_closest_marker("paths")
    if mark is not None and not {"join", "start", "two"}.isdisjoint(signature(metafunc.function).parameters):
        metafunc.parametrize("path", mark.args)


@pytest.fixture
def path() -> str:
    """The way samples take between the nodes of this test: "shm" or "udp"."""
    return "shm"


@pytest.fixture(autouse=True)
def meet_on_path(path: str, meeting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over UDP, the nodes and programs of a test meet at a loopback address that nobody else has."""
    if path == "udp":
        first, second, third = secrets.randbelow(253) + 2, secrets.randbelow(256), secrets.randbelow(254) + 1
        address = f"127.{first}.{second}.{third}"
        monkeypatch.setenv("LOOPBACK_OF_TEST", address)
        monkeypatch.setattr(vbus.Node, "__init__", meet_over_udp(meeting, address))


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
