"""Random streams: one number sequence a (seed, step, record, sample, use), the same on every machine."""

from __future__ import annotations

import itertools

import torch

from mmrl.core.streams import Streams, stream_seed

SEED = 1602384402445881087


def draw(streams: Streams, record: str = "r", sample: int = 0, use: str = "sample") -> list[float]:
    return torch.rand(3, generator=streams.generator(record, sample, use)).tolist()


def test_the_same_place_gives_the_same_numbers() -> None:
    assert draw(Streams(0, 5), "a", 2) == draw(Streams(0, 5), "a", 2)
    streams = Streams(0, 5)
    first = draw(streams, "a", 2)
    draw(streams, "b", 0)
    assert draw(streams, "a", 2) == first  # order and number of other samples do not matter


def test_every_part_of_the_place_matters() -> None:
    places = [
        draw(Streams(seed, step, purpose), record, sample, use)
        for seed, step, purpose, record, sample, use in itertools.product(
            (0, 1), (0, 1), ("train", "eval"), ("a", "b"), (0, 1), ("sample", "mask")
        )
    ]
    assert len({tuple(p) for p in places}) == len(places) == 64


def test_seeds_are_fixed_and_parts_do_not_run_together() -> None:
    """A literal value: a change of the scheme would change every published run."""
    assert stream_seed(0, 1, "train", "sample", "r1", 2) == SEED
    assert stream_seed("a", "bc") != stream_seed("ab", "c")
    assert 0 <= stream_seed("x") < 2**63
