"""A name server for one name, which has many addresses: all that a headless service is to those who ask."""

import ipaddress
import socket
import struct

from finders import say

PORT = 53
HEADER = struct.Struct(">HHHHHH")
A = 1
ANSWERED, UNKNOWN = 0x8580, 0x8583


def serve(name, addresses):
    """Answers for ever. Begins when the network is there, which the test makes after "ready"."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.bind(("0.0.0.0", PORT))
        say("ready")
        while True:
            question, client = asked.recvfrom(512)
            asked.sendto(answer(question, name, addresses), client)


def answer(question, name, addresses):
    """To one question; the name is known for IPv4 only, and no other is."""
    number, _, _, *_ = HEADER.unpack_from(question)
    labels, at = [], HEADER.size
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode())
        at += 1 + question[at]
    end = at + 5
    (kind,) = struct.unpack_from(">H", question, at + 1)
    known = ".".join(labels).lower() == name
    found = addresses if known and kind == A else []
    head = HEADER.pack(number, ANSWERED if known else UNKNOWN, 1, len(found), 0, 0)
    records = b"".join(
        struct.pack(">HHHIH", 0xC00C, A, 1, 1, 4) + ipaddress.ip_address(its).packed for its in found
    )
    return head + question[HEADER.size : end] + records
