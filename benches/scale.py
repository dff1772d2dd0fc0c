"""How a bus grows: N nodes of one host, and N hosts on one switch, until everybody knows everybody.

    python benches/scale.py                     the whole table, in Markdown
    python benches/scale.py --write             the same into docs/scale.md
    python benches/scale.py --kind hosts 2 5    only these

Needs root, `ip` and network namespaces; nothing of the machine's own network is touched. Each node is a
process. All are started and wait; the clock begins when they are told to open their nodes, and ends when each
has N - 1 peers. Packets of mDNS are counted on the switch, or on the one host's interface.
"""

# ruff: noqa: T201 (it prints)

import argparse
import ctypes
import datetime
import os
import platform
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

KINDS = {
    "memory": "nodes of one host, by default: over shared memory",
    "host": "nodes of one host without shared memory: mDNS and loopback",
    "hosts": "hosts, each with one node, on one switch: mDNS and UDP",
}
COUNTS = {"memory": (2, 5, 10, 20, 50), "host": (2, 5, 10, 20, 50), "hosts": (2, 5, 10, 20, 30)}
SETTLE_SECONDS, IDLE_SECONDS = 3.0, 5.0
CLONE_NEWNET = 0x40000000
MDNS = 5353
SO_RCVBUFFORCE = 33

NODE = """
import os, sys, time
import vbus
open(1, "wb", 0, closefd=False).write(b"ready\\n")
sys.stdin.readline()
begun = time.monotonic()
node = vbus.Node("scale", **eval(sys.argv[2]))
opened = time.monotonic() - begun
assert node.wait_for_peers(int(sys.argv[1]) - 1, 120), len(node.peers())
full = time.monotonic()
print(opened, full, flush=True)
sys.stdin.readline()
print(len(node.peers()), flush=True)
sys.stdin.readline()
os._exit(0)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/scale.md")
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("counts", type=int, nargs="*")
    options = parser.parse_args()
    kinds = [options.kind] if options.kind else list(COUNTS)
    tables = []
    for kind in kinds:
        rows = []
        for count in options.counts or COUNTS[kind]:
            rows.append(measure(kind, count))
            print(kind, rows[-1], file=sys.stderr, flush=True)
        tables.append(table(kind, rows))
    text = "\n".join([HEAD.format(when=datetime.date.today(), where=where()), *tables])
    if options.write:
        (Path(__file__).parent.parent / "docs" / "scale.md").write_text(text)
    else:
        print(text)


HEAD = f"""# How a bus grows

Written by `benches/scale.py` on {{when}}, on {{where}}.

There are as many processes as nodes, all begun at once on that one machine, so the time to a full bus
is mostly the work of all of them on these cores. *Full* is when each node has all others as peers;
*opened* is the longest that `Node()` took. Processor time is that of all nodes together: until
{SETTLE_SECONDS:.0f} s after that, with the imports of what each needs, and in the {IDLE_SECONDS:.0f} s
afterwards, in which nobody publishes. Packets are those of mDNS in these two times. Threads and memory
are those of the process that has most: all its threads, and what is resident, shared parts counted in each.
"""


def where():
    return f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


def table(kind, rows):
    head = (
        "| N | full, s | opened, ms | processor, s | per pair, ms | idle, ms/s per node | mDNS packets | KiB"
    )
    head += " | idle, packets | threads of a node | resident, MiB |"
    lines = [f"\n## {KINDS[kind][0].upper()}{KINDS[kind][1:]}\n", head, "|" + "---|" * 11]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


class Host:
    """A network of its own, held by a process."""

    def __init__(self):
        self.holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.holder.stdout.readline() == b"ready\n"
        self.net = f"--net=/proc/{self.holder.pid}/ns/net"

    def ip(self, *words):
        subprocess.run(["nsenter", self.net, "ip", *words], check=True)

    def close(self):
        self.holder.kill()
        self.holder.wait()


class Ear:
    """Counts packets of mDNS at an interface of a host."""

    def __init__(self, host, interface):
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/proc/{host.holder.pid}/ns/net", os.O_RDONLY)
        libc = ctypes.CDLL(None)
        assert libc.setns(there, CLONE_NEWNET) == 0
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self.socket.bind((interface, 0x0003))
        assert libc.setns(here, CLONE_NEWNET) == 0
        os.close(here)
        os.close(there)

    def count(self):
        """Packets and bytes since the last time."""
        packets = total = 0
        while select.select([self.socket], [], [], 0)[0]:
            data, (_, protocol, kind, _, _) = self.socket.recvfrom(65536)
            if is_mdns(data, protocol) and kind != socket.PACKET_LOOPBACK:
                packets, total = packets + 1, total + len(data)
        return packets, total


def is_mdns(data, protocol):
    if protocol == 0x0800 and len(data) >= 24 and data[9] == socket.IPPROTO_UDP:
        return struct.unpack_from("!H", data, 4 * (data[0] & 15) + 2)[0] == MDNS
    if protocol == 0x86DD and len(data) >= 44 and data[6] == socket.IPPROTO_UDP:
        return struct.unpack_from("!H", data, 42)[0] == MDNS
    return False


def measure(kind, count):
    hosts = [Host() for _ in range(count + 1 if kind == "hosts" else 1)]
    try:
        return run(kind, count, hosts)
    finally:
        for host in hosts:
            host.close()


def run(kind, count, hosts):
    settings = {"secret": "a secret for a bench", "domain": f"scale-{os.getpid()}"}
    directory = f"/tmp/vbus-scale-{os.getpid()}"
    settings["shm"] = directory if kind == "memory" else False
    settings["discovery"] = ["shm", "mdns"]
    switch, *others = hosts
    if others:
        switch.ip(
            "link", "add", "name", "net0", "type", "bridge", "mcast_snooping", "0", "forward_delay", "0"
        )
    else:
        # A cable whose other end is in nobody's hands.
        switch.ip("link", "add", "name", "net0", "type", "veth", "peer", "name", "net1")
        switch.ip("link", "set", "net1", "up")
        switch.ip("addr", "add", "10.0.0.1/16", "dev", "net0")
    switch.ip("link", "set", "net0", "up")
    for number, host in enumerate(others, 1):
        pid = str(host.holder.pid)
        switch.ip("link", "add", "name", f"to{number}", "type", "veth", "peer", "name", "eth0", "netns", pid)
        switch.ip("link", "set", f"to{number}", "master", "net0", "up")
        host.ip("addr", "add", f"10.0.1.{number}/16", "dev", "eth0")
        host.ip("link", "set", "eth0", "up")
    ear = Ear(switch, "net0")
    nodes = [
        subprocess.Popen(
            [
                *("nsenter", (others[number] if others else switch).net),
                *(sys.executable, "-c", NODE, str(count), repr(settings)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    try:
        for node in nodes:
            assert node.stdout.readline() == "ready\n"
        return figures(count, nodes, ear)
    finally:
        for node in nodes:
            node.kill()
            node.wait()


def figures(count, nodes, ear):
    ear.count()
    before = sum(processor(node.pid) for node in nodes)
    begun = time.monotonic()
    for node in nodes:
        say(node)
    said = [tuple(map(float, node.stdout.readline().split())) for node in nodes]
    full = max(it[1] for it in said) - begun
    packets, size = ear.count()
    time.sleep(SETTLE_SECONDS)
    more, rest = ear.count()
    used = sum(processor(node.pid) for node in nodes)
    time.sleep(IDLE_SECONDS)
    idle = sum(processor(node.pid) for node in nodes)
    idle_packets, _ = ear.count()
    threads = max(int(status(node.pid, "Threads")) for node in nodes)
    resident = max(int(status(node.pid, "VmRSS").split()[0]) for node in nodes)
    for node in nodes:
        say(node)
        assert node.stdout.readline() == f"{count - 1}\n"
    pairs = count * (count - 1) / 2
    return (
        str(count),
        f"{full:.2f}",
        f"{1e3 * max(it[0] for it in said):.0f}",
        f"{used - before:.2f}",
        f"{1e3 * (used - before) / pairs:.1f}",
        f"{1e3 * (idle - used) / IDLE_SECONDS / count:.2f}",
        str(packets + more),
        f"{(size + rest) / 1024:.0f}",
        str(idle_packets),
        str(threads),
        f"{resident / 1024:.0f}",
    )


def say(node):
    node.stdin.write("\n")
    node.stdin.flush()


def processor(pid):
    """Seconds that a process used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def status(pid, name):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
