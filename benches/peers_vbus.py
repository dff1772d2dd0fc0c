"""The vbus adapter of the peer benchmark: laid beside the other libraries' adapters as `vbus.py`.

Small messages go out with `publish`, which copies once into the bus; larger ones are built in place in
a loan. Both block on back-pressure. What is received is a view of the publisher's memory.
"""

from . import Peer, Pub, Sub, write_into

# Up to here one copy costs less than a loan.
COPIED_UP_TO = 4096


def depth(size):
    return 64 if size <= 65536 else 8


class VPub(Pub):
    def __init__(self, node, topic, size):
        self.size = size
        self.pub = node.publisher(topic, bytes, depth=depth(size))
        self.send = self.copier() if size <= COPIED_UP_TO else self.lender()

    def wait_subs(self, n):
        self.pub.wait_for_subscribers(n)

    def copier(self):
        publish, body, buffer = self.pub.publish, bytes(self.size - 16), bytearray(self.size)

        def copy(hdr, src):
            if src is None:
                publish(hdr + body)
            else:
                write_into(buffer, hdr, src)
                publish(buffer)

        return copy

    def lender(self):
        loan, size = self.pub.loan, self.size

        def lend(hdr, src):
            borrowed = loan(size)
            if src is None:
                borrowed.buffer[:16] = hdr
            else:
                write_into(borrowed.buffer, hdr, src)
            borrowed.publish()

        return lend

    def close(self):
        self.pub.flush(5)
        self.pub.close()


class VSub(Sub):
    def __init__(self, node, topic, size, wait):
        # A program that polls with receive_nowait() never sleeps; `spin` is for those that wait.
        self.sub = node.subscriber(topic, bytes, depth=depth(size), spin=0 if wait == "poll" else None)
        self.look = self.sub.receive_nowait
        self.recv = self.taker()

    # A view keeps its sample; the memory goes back when the caller lets go of the view.

    def taker(self):
        receive = self.sub.receive
        return lambda: receive().payload

    def poll(self):
        sample = self.look()
        return None if sample is None else sample.payload

    def release(self):
        pass

    def close(self):
        self.sub.close()


class VBus(Peer):
    dist = "vbus"
    transport = "shm"
    zero_copy = True

    def open(self, cell, primary, rank):
        super().open(cell, primary, rank)
        import vbus

        self.node = vbus.Node(domain=cell.id, listen="off", discovery=("shm",))

    def pub(self, chan):
        return VPub(self.node, self.cell.topic(chan), self.cell.size)

    def sub(self, chan):
        return VSub(self.node, self.cell.topic(chan), self.cell.size, self.wait)

    def close(self):
        self.node.close()


class VBusUdp(VBus):
    """Encrypted UDP over loopback: the first program listens where all others know it."""

    transport = "udp"
    zero_copy = False

    def open(self, cell, primary, rank):
        Peer.open(self, cell, primary, rank)
        import vbus

        meeting = f"127.0.0.1:{cell.port('a')}"
        ways = {"listen": meeting} if primary else {"listen": "127.0.0.1:0", "peers": [meeting]}
        self.node = vbus.Node(domain=cell.id, shm=False, discovery=("peers",), **ways)


def peers():
    return {"shm": VBus(), "shm-poll": VBus(wait="poll"), "udp": VBusUdp()}
