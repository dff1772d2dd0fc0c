"""The first process of a virtual machine of the tests: it makes a system of the files it finds, and obeys.

The console is the first serial line; the test speaks over the second.
"""

import ctypes
import os
import socket
import subprocess
import sys
import tty
from pathlib import Path

SYS_FINIT_MODULE = 313
FILE_SYSTEMS = (
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/dev/shm"),
)
LINE = "/dev/ttyS1"


def mount_all():
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, place in FILE_SYSTEMS:
        Path(place).mkdir(exist_ok=True)
        if libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None):
            raise OSError(ctypes.get_errno(), place)


def load_drivers():
    libc = ctypes.CDLL(None, use_errno=True)
    for driver in sorted(Path("/drivers").iterdir()):
        with driver.open("rb") as file:
            if libc.syscall(SYS_FINIT_MODULE, file.fileno(), b"", 0):
                raise OSError(ctypes.get_errno(), driver.name)


def take_line():
    """From now on input and output are the test's."""
    line = os.open(LINE, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(line)
    for number in (0, 1):
        os.dup2(line, number)
    sys.stdin = os.fdopen(0)


if __name__ == "__main__":
    mount_all()
    load_drivers()
    socket.sethostname("machine")
    os.environ.update(HOME="/root", PATH="/bin", LANG="C.UTF-8")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    take_line()
    sys.path[:0] = ["/site", "/programs"]
    import puppet

    puppet.obey(own_network=False)
