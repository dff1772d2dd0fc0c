"""`vbus topics`: what is published, by whom, for whom, how often."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vbus.errors import quote

from .joining import join
from .output import print_line, print_records

if TYPE_CHECKING:
    import argparse

    import vbus

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """After looking for a while; mismatches follow the table."""
    with join(options, "topics") as node:
        time.sleep(options.wait)  # rates are counts over time
        topics = node.topics()
    print_records(
        topics,
        ("TOPIC", "PUBLISHERS", "SUBSCRIBERS", "RATE", "BYTES/S", "TYPE"),
        lambda topic: (
            topic.topic,
            str(len(topic.publishers)),
            str(len(topic.subscribers)),
            f"{topic.rate:.1f}",
            f"{topic.bytes_per_second:.0f}",
            topic.type or "any",
        ),
        as_json=options.json,
        if_none=f"nothing is published in domain {quote(node.domain)}; `vbus nodes` tells who is there, "
        "`vbus explain` who is elsewhere",
    )
    if options.json:
        return 0
    for topic in topics:
        for mismatch in topic.mismatches:
            print_line(_told(topic, mismatch))
    return 0


def _told(topic: vbus.TopicInfo, mismatch: vbus.Mismatch) -> str:
    names = {endpoint.id: endpoint.peer.name for endpoint in (*topic.publishers, *topic.subscribers)}
    offered = f"{mismatch.offered} by {names.get(mismatch.publisher, '?')}"
    asked = f"{mismatch.asked} by {names.get(mismatch.subscriber, '?')}"
    return f"{topic.topic}: {mismatch.field} is offered as {offered} and asked as {asked}"
