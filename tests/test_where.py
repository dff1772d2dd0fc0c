"""docs/where-it-works.md: the page changes when what it says does, and not otherwise."""

import json

from where import renewed


def seen(*rows: tuple[str, float | None]) -> str:
    keys = ("name", "found_by", "path", "first_sample_s", "remedy")
    return "\n".join(json.dumps(dict(zip(keys, (name, "mdns", "udp", took, "")))) for name, took in rows)


def rows(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith(("| a", "| two"))]


def test_rows_of_tests_that_did_not_run_are_kept_and_the_order_is_always_the_same():
    page = renewed("", seen(("two hosts", 0.1), ("a container", 0.1)))
    later = renewed(page, seen(("two processes", 0.1), ("a container", 0.2)))
    assert rows(later) == [
        "| two processes | mDNS | udp | < 0.5 s |  |",
        "| a container | mDNS | udp | < 0.5 s |  |",
        "| two hosts | mDNS | udp | < 0.5 s |  |",
    ]
    assert renewed(later, seen(("two hosts", 0.1), ("two processes", 0.1))) == later
    assert len(rows(renewed(later, seen(("two hosts", 0.1)), keep=False))) == 1


def test_a_time_that_differs_by_noise_is_told_as_before():
    page = renewed("", seen(("two hosts", 1.9)))
    assert renewed(page, seen(("two hosts", 2.1))) == page
    assert "< 5 s" in renewed(page, seen(("two hosts", 4)))
    assert "< 0.5 s" in renewed(page, seen(("two hosts", 0.1)))


def test_what_markdown_would_swallow_is_read_as_it_was_written():
    page = renewed("", seen(("two hosts | <address>", None)))
    assert rows(page) == [r"| two hosts \| \<address> | mDNS | udp |  |  |"]
    assert renewed(page, seen(("two hosts | <address>", None))) == page
