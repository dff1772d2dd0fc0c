"""What is logged, to whom, and how often."""

import logging
import subprocess
import sys

import pytest
from helpers import WATCHDOG, until


def told(caplog, words: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if words in record.getMessage()]


@pytest.mark.contract('Logger `"vbus"`; each cause warns once; no handler is installed')
def test_each_cause_warns_once_through_the_logger_vbus(join, caplog):
    node = join()
    publisher = node.publisher("some/topic", depth=1)
    for _ in range(3):  # each is a cause of its own
        with node.subscriber("some/topic", depth=2):
            pass
    with node.subscriber("some/topic", depth=2) as subscriber:
        for _ in range(20):
            publisher.publish(1)
            subscriber.receive(WATCHDOG)
    node.close()
    assert len(told(caplog, "differ in depth")) == 4
    assert {record.name for record in caplog.records} == {"vbus"}
    assert logging.getLogger("vbus").handlers == []
    assert logging.getLogger("vbus").level == logging.NOTSET


@pytest.mark.contract('Logger `"vbus"`; each cause warns once; no handler is installed')
def test_a_stranger_that_knocks_again_and_again_is_told_of_once(join, caplog):
    node = join("guarded", secret="correct horse battery staple")
    for _ in range(5):
        with join("stranger", secret="another long enough secret"):
            pass
    node.close()
    warned = [it for it in told(caplog, "secret") if '"stranger"' in it.getMessage()]
    assert len(warned) == 1


@pytest.mark.contract('Logger `"vbus"`; each cause warns once; no handler is installed')
def test_a_program_that_configures_nothing_sees_warnings_as_python_shows_them(meeting, domain):
    program = """
        import vbus
        with vbus.Node(domain=DOMAIN, shm=MEETING) as node:
            with node.publisher("t", depth=1), node.subscriber("t", depth=2):
                pass
    """.replace("DOMAIN", repr(domain)).replace("MEETING", repr(meeting))
    source = "\n".join(line[8:] for line in program.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=WATCHDOG, check=True
    )
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert 'differ in depth of "t": offered 1, asked 2; they are connected with what is offered' in line


def test_a_warning_names_its_remedy(join, caplog):
    node = join()
    with node.publisher("t", int), node.subscriber("t", str):
        until(lambda: caplog.records, "it is logged")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert ";" in record.getMessage()


@pytest.mark.contract('Logger `"vbus"`; each cause warns once; no handler is installed')
@pytest.mark.parametrize(
    "before", ["", "import threading\n", "import logging\n"], ids=["bare", "threads", "log"]
)
def test_a_program_that_was_warned_and_closes_nothing_ends(meeting, domain, before):
    source = (
        f"{before}import vbus\n"
        f"node = vbus.Node(domain={domain!r}, shm={meeting!r})\n"
        "publisher, subscriber = node.publisher('t', depth=1), node.subscriber('t', depth=2)\n"
        # The warning is out when the other end of the pipe says so.
        "input()\n"
        "import threading\n"
        "print(threading.current_thread() is threading.main_thread())\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "differ in depth" in program.stderr.readline()
        out, err = program.communicate("\n", timeout=WATCHDOG)
    finally:
        program.kill()
    assert (out, err, program.returncode) == ("True\n", "", 0)
