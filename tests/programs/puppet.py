"""A program that does what a test says, statement by statement; in a network of its own, if it has none."""

import ast
import logging
import os
import sys
import time
import traceback

import finders

import vbus

logged: list[str] = []
"""What the logger "vbus" said, from warnings on."""


class Ear(logging.Handler):
    def emit(self, record):
        logged.append(record.getMessage())


def everything(watch):
    """What a watch holds."""
    return [str(event) for event in iter(watch.receive_nowait, None)]


def changes(watch):
    """The changes of paths that a watch holds."""
    return [event for event in iter(watch.receive_nowait, None) if isinstance(event, vbus.PathChanged)]


def findings(node, verdict):
    """Whom they are about, why and what to do, without those who are used."""
    found = [its for its in node.explain() if its.verdict == verdict]
    return [(getattr(its.peer, "name", its.peer), its.reason, its.remedy) for its in found]


def conserved(*endpoints):
    """Counts in which samples came or went by themselves: there are none."""
    stats = [endpoint.stats() for endpoint in endpoints]
    counts = [link for its in stats for link in its.links]
    counts += [its for its in stats if hasattr(its, "callback_errors")]
    return [it for it in counts if it.sent != it.delivered + it.waiting + sum(it.dropped.values()) + it.lost]


def obey(own_network=True, beside=None, clone=False):
    """In a network of its own, in that of process `beside`, or in the one it has; as a clone, or not."""
    if beside is not None:
        finders.enter_network_of(beside)
    elif own_network:
        finders.enter_own_network()
    if clone:
        finders.become_a_clone()
    logging.getLogger("vbus").addHandler(Ear(logging.WARNING))
    scope = {"vbus": vbus, "os": os, "time": time, "logged": logged}
    scope |= {its.__name__: its for its in (findings, everything, changes, conserved)}
    os.write(1, b"ready\n")
    for line in sys.stdin:
        kind, text = ast.literal_eval(line)
        try:
            if kind == "do":
                exec(text, scope)
                answer = ("did", None)
            else:
                answer = ("is", eval(text, scope))  # noqa: S307 (the test says it)
        except Exception:
            answer = ("raised", traceback.format_exc())
        os.write(1, (repr(answer) + "\n").encode())
    os._exit(3)  # the test is gone
