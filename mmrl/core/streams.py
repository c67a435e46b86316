"""Random streams: one per (seed, step, record, sample), so results do not depend on ranks, refills or finished rows."""

from __future__ import annotations

import hashlib

import torch


def stream_seed(*parts: object) -> int:
    """63-bit seed from any printable parts; equal parts give equal seeds on every machine."""
    text = "\x1f".join(str(p) for p in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


class Streams:
    """Generators of one training step.

    `purpose` separates uses ("train", "eval", ...) that must not share numbers.
    """

    def __init__(self, seed: int, step: int, purpose: str = "train") -> None:
        self.seed, self.step, self.purpose = seed, step, purpose

    def generator(self, record: str, sample: int, use: str = "sample") -> torch.Generator:
        """CPU generator for one sample of one record."""
        seed = stream_seed(self.seed, self.step, self.purpose, use, record, sample)
        return torch.Generator().manual_seed(seed)
