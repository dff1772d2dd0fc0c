"""`vbus doctor`: whether this machine is fit for vbus, and what is wrong between the nodes around."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vbus.doctor import Check, of_machine, of_node
from vbus.errors import Error

from .joining import join
from .output import for_json, print_json, print_line

if TYPE_CHECKING:
    import argparse

    from vbus.records import Finding

__all__ = ["run"]

MARGIN = "    "


def run(options: argparse.Namespace) -> int:
    """Checks first, then findings; failed if one of them is."""
    checks = of_machine()
    findings: list[Finding] = []
    try:
        with join(options, "doctor") as node:
            time.sleep(options.wait)  # who is there answers, or does not
            checks += of_node(node)
            findings = _worth_telling(node.explain(), node.id)
            checks.append(_peers([peer.path for peer in node.peers()], node.domain))
    except Error as error:
        what, _, remedy = str(error).rpartition("; ")
        checks.append(Check("node", "failed", what, remedy))
    told: list[Check | Finding] = [*checks, *findings]
    for its in told:
        _tell(its, as_json=options.json)
    marks = [_mark(its) for its in told]
    failed, notes = marks.count("failed"), marks.count("note")
    if not options.json:
        print_line(f"{failed} failed, {notes} could be better" if failed or notes else "all is well")
    return 1 if failed else 0


def _worth_telling(findings: list[Finding], own: str) -> list[Finding]:
    """Those that ask for something; what is wrong with this node's own ways is a check."""
    return [its for its in findings if its.remedy and not _is_own(its, own)]


def _is_own(finding: Finding, own: str) -> bool:
    return getattr(finding.peer, "id", None) == own and finding.topic is None


def _peers(paths: list[str | None], domain: str) -> Check:
    """Who was met, in sum."""
    if not paths:
        looked = f"nobody else is here in domain {domain!r}"
        return Check("nodes", "ok", looked)
    ways = ", ".join(f"{paths.count(path)} by {path}" for path in ("shm", "udp") if path in paths)
    return Check("nodes", "ok", f"{ways}, in domain {domain!r}")


def _mark(its: Check | Finding) -> str:
    if isinstance(its, Check):
        return its.verdict
    return "failed" if its.verdict in ("failed", "refused") else "note"


def _tell(its: Check | Finding, *, as_json: bool) -> None:
    if as_json:
        print_json(for_json(its))
        return
    if isinstance(its, Check):
        print_line(f"{_mark(its):<6}  {its.check}: {its.looked}")
        for line in its.remedy.splitlines():
            print_line(f"{MARGIN}{line}")
    else:
        print_line(f"{_mark(its):<6}  {its}")
