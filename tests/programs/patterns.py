"""Payloads in which a tear is seen, for tests and for the programs that they start."""


def pattern(origin: str, sequence: int, nbytes: int) -> bytes:
    """Bytes that only this sample of this publisher has, so that a mixture of two is seen anywhere."""
    unit = int(origin[:16], 16).to_bytes(8, "little") + sequence.to_bytes(8, "little")
    return (unit * (nbytes // 16 + 1))[:nbytes]


def is_whole(sample) -> bool:
    """Whether a sample is what its publisher wrote as this sequence, in every byte."""
    return sample.payload == pattern(sample.publisher, sample.sequence, sample.nbytes)
