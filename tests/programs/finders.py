"""A node's discovery without the node: what would be told to the core is said, line by line."""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from vbus.discovery import Discovery

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x20000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG = 1


def enter_own_network():
    """A network namespace of this process's own; before any thread is started."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def enter_network_of(pid):
    """The network of another process."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/proc/{pid}/ns/net").open() as net:
        if libc.setns(net.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def become_a_clone():
    """The first process of a machine like any other: its name and files, but for where neighbours meet."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWPID | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if child := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for place in ("/", os.environ["VBUS_SHM"]):
        kind = MS_REC | MS_PRIVATE if place == "/" else 0
        if libc.mount(b"tmpfs", place.encode(), b"tmpfs", kind, None):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def use_hosts_file(path):
    """Names are looked up there, by threads that begin from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"/", b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if libc.mount(os.fsencode(path), b"/etc/hosts", None, MS_BIND, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Core:
    def __init__(self, digit, port):
        self.id, self.port = digit * 32, port

    def add_peer(self, name, addresses, source):
        say("add", name[:1], *sorted(f"{host.partition('%')[0]}|{port}" for host, port in addresses))

    def remove_peer(self, name, source):
        say("remove", name[:1])

    def network_port(self):
        return self.port

    def peer_tuples(self):
        return []


class Settings:
    domain, discovery, peers, listen, interfaces = "home", ("mdns",), (), "[::]:0", ()


def find(digit="a", port=7000, **settings):
    """Discovery of a node whose id is this digit."""
    wanted = Settings()
    vars(wanted).update(settings)
    return Discovery(Core(digit, port), wanted)


def status(discovery):
    """Of mDNS, as JSON can have it."""
    way = discovery.status()[0]
    names = ("on", "reason", "error", "interfaces", "deaf", "addresses", "ignored")
    return {name: getattr(way, name) for name in names} | {"candidates": len(way.candidates)}


def open_files(*kinds):
    """What this process has open of these kinds: "socket", "eventpoll"."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(str(Path(f"/proc/self/fd/{number}").readlink()))
        except OSError:
            continue  # the listing itself
    return sorted(name for name in found if any(kind in name for kind in kinds))


def serve(digit="a", port=7000, **settings):
    """What the test says: `begin`, `status`, `stop`, until its end."""
    discovery = None
    say("ready")
    for line in sys.stdin:
        match line.split():
            case ["begin"]:
                discovery = find(digit, port, **settings)
            case ["status"]:
                say(json.dumps(status(discovery)))
            case ["stop"]:
                discovery.stop()
                discovery.join()
                say("stopped")
