"""Hosts for tests: programs in networks of their own, with a switch between them and real packets on it.

A host's network goes with its program, and with that its links, so nothing is left behind.
"""

import ast
import os
import shutil
import subprocess

import pytest
from helpers import WATCHDOG, until

__all__ = ["NO_MEMORY", "SECRET", "Host", "Puppet", "Switch", "hosts_can_be_made", "hosts_on", "switch"]

SECRET = "correct horse battery"
"""Of nodes on several hosts."""
NO_MEMORY = {"VBUS_SHM": "off"}
"""Hosts of a test are one machine, whose nodes must not meet in its directories."""


@pytest.fixture(scope="module")
def hosts_can_be_made() -> None:
    """Skips where this user may not make them, with what was said."""
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            pytest.skip(f"no hosts: there is no `{tool}`")
    script = (
        "ip link set lo up && ip link add name v0 type veth peer name v1 && ip link add name br0 type bridge"
    )
    tried = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    if os.getuid() != 0 or tried.returncode != 0:
        pytest.skip(f"no hosts: {tried.stderr.strip() or 'only root may make them'}")


class Host:
    """A program in a network of its own. What it says first is "ready", when it has the network."""

    def __init__(self, digit, program):
        self.digit = digit
        self.program = program
        self.program.expect("ready")

    def ip(self, *words):
        """The tool `ip`, on this host."""
        run("nsenter", f"--net=/proc/{self.program.pid}/ns/net", "ip", *words)

    def drop(self, *matches, hook="output"):
        """A firewall: what matches one of these of nftables does not leave, or come in."""
        rules = "\n".join(f"{match} drop" for match in matches)
        chain = f"chain out {{\ntype filter hook {hook} priority 0\n{rules}\n}}"
        self.nft(f"table inet firewall {{\n{chain}\n}}")

    def nft(self, rules):
        """Rules of nftables, on this host."""
        if shutil.which("nft") is None:
            pytest.skip("no firewall: there is no `nft`")
        run("nsenter", f"--net=/proc/{self.program.pid}/ns/net", "nft", rules)

    def sysctl(self, setting):
        """A setting of its network."""
        run("nsenter", f"--net=/proc/{self.program.pid}/ns/net", "sysctl", "-qw", setting)

    def loopback(self):
        self.ip("link", "set", "lo", "up")


class Puppet(Host):
    """A host whose program does what the test says, one Python statement after the other."""

    def __init__(self, start, digit, beside=None, clone=False, **settings):
        neighbour = beside and beside.program.pid
        program = f"import puppet; puppet.obey(beside={neighbour}, clone={clone})"
        super().__init__(digit, start(program, **settings))
        self.loopback()

    def open_node(self, **settings):
        """`node` there, which has its name and the secret; `watch` sees all of it, and `begun` is when."""
        given = {"secret": SECRET, **settings}
        self.do(
            f"begun = time.monotonic(); node = vbus.Node({self.digit!r}, **{given!r}); watch = node.watch()"
        )

    def do(self, statement, seconds=WATCHDOG):
        """Runs it there."""
        self.tell("do", statement)
        self.done(seconds)

    def ask(self, expression, seconds=WATCHDOG):
        """What it is there: anything that `repr` tells in full."""
        self.tell("ask", expression)
        return self.done(seconds)

    def until(self, expression, seconds=WATCHDOG):
        """Looks again and again until it is true there."""
        until(lambda: self.ask(expression), f"{expression} on host {self.digit}", seconds)

    def tell(self, kind, text):
        """Has it begin; `done` waits for the end."""
        self.program.tell(repr((kind, text)))

    def done(self, seconds=WATCHDOG):
        kind, value = ast.literal_eval(self.program.hear(seconds))
        if kind == "raised":
            pytest.fail(f"on host {self.digit}:\n{value}")
        return value


class Switch:
    """A bridge in a namespace of its own, without the cleverness that drops multicast."""

    def __init__(self, start):
        self.program = start("import finders; finders.enter_own_network(); say('ready'); hear()")
        self.program.expect("ready")
        self.net = f"--net=/proc/{self.program.pid}/ns/net"
        self.ip("link", "add", "name", "br0", "type", "bridge", "mcast_snooping", "0", "forward_delay", "0")
        self.ip("link", "set", "br0", "up")

    def ip(self, *words):
        run("nsenter", self.net, "ip", *words)

    def plug(self, host, *addresses, interface="eth0", mtu=1500, up=True):
        """A cable from an interface of a host."""
        port = port_of(host, interface)
        end = ["name", interface, "mtu", str(mtu), "netns", str(host.program.pid)]
        self.ip("link", "add", "name", port, "mtu", str(mtu), "type", "veth", "peer", *end)
        self.ip("link", "set", port, "master", "br0", "up")
        # A new IPv6 address is used at once: nobody has it twice here.
        for address in addresses:
            host.ip("addr", "add", address, "dev", interface, *(["nodad"] if ":" in address else []))
        if up:
            host.ip("link", "set", interface, "up")

    def plug_all(self, hosts, *addresses, **cable):
        """One cable each. Of an address, {} is the number of the host, from 1 on."""
        for number, host in enumerate(hosts, 1):
            self.plug(host, *(address.format(number) for address in addresses), **cable)

    def isolate(self, host, isolated, interface="eth0"):
        """Packets from isolated port to isolated port are dropped; no host notices anything."""
        word = "on" if isolated else "off"
        self.ip("link", "set", port_of(host, interface), "type", "bridge_slave", "isolated", word)


def port_of(host, interface):
    """The switch's end of a cable."""
    return f"to-{host.digit}" if interface == "eth0" else f"to-{host.digit}-{interface}"


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr)


@pytest.fixture
def switch(start):
    return Switch(start)


def hosts_on(switch, start, *names, discovery="mdns,peers"):
    """The first is at 10.0.0.1, and so on; without a switch they have no cable."""
    found = [Puppet(start, name, environment={**NO_MEMORY, "VBUS_DISCOVERY": discovery}) for name in names]
    if switch is not None:
        switch.plug_all(found, "10.0.0.{}/24")
    return found
