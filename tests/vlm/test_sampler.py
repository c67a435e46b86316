"""The token sampler: what is drawn, from which distribution, and with which neighbours."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.rollouts import Request
from mmrl.vlm import tiny
from mmrl.vlm.sampler import allowed_tokens, pick


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    logits = torch.tensor([[0.5, 0.1, 0.3, 0.1]]).log()

    def kept(p: float, k: int) -> list[int]:
        return allowed_tokens(logits, torch.tensor([p]), torch.tensor([k]))[0].nonzero()[:, 0].tolist()

    assert kept(0.4, 0) == [0]
    assert kept(0.6, 0) == [0, 2]
    assert kept(0.85, 0) == [0, 1, 2]  # a tie goes to the smaller id
    assert kept(1.0, 0) == [0, 1, 2, 3]
    assert kept(1.0, 2) == [0, 2]
    assert kept(0.7, 2) == [0, 2]  # the share is that of the two that are left: 0.625 < 0.7
    assert kept(0.6, 2) == [0]
    assert kept(1e-9, 0) == [0]


def test_suppressed_tokens_are_never_kept() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 0.0]])
    assert allowed_tokens(logits, torch.tensor([1.0]), torch.tensor([3])).tolist() == [[True, False, True]]


def test_inverse_distribution_by_hand() -> None:
    logits = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).log()

    def drawn(u: float, greedy: bool = False) -> int:
        return int(pick(logits, torch.tensor([u], dtype=torch.float64), torch.tensor([greedy])))

    assert [drawn(u) for u in (0.0, 0.19, 0.21, 0.69, 0.71, 1.0)] == [0, 0, 2, 2, 3, 3]
    assert drawn(0.99, greedy=True) == 2


def test_the_last_possible_token_bounds_the_draw() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    assert int(pick(logits, torch.tensor([1.0], dtype=torch.float64), torch.tensor([False]))) == 1


def test_frequencies_follow_the_distribution() -> None:
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = pick(p.log().expand(len(u), -1), u, torch.zeros(len(u), dtype=torch.bool))
    assert (tokens.bincount() / len(u) - p).abs().max() < 0.01


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize(
    "sampling", [{}, {"top_p": 0.7}, {"top_k": 5}, {"temperature": 0.6, "top_p": 0.9, "top_k": 30}]
)
def test_sampler_and_update_agree(
    kind: str,
    sampling: dict[str, Any],
    make: Callable[..., Any],
    ragged: list[Request],
    streams: Streams,
    backward: Callable[..., Any],
) -> None:
    policy = make(kind, sampling=sampling)
    rollouts = policy.rollout(ragged, streams)
    table = rollouts.tables["tokens"]
    tables, _ = backward(policy, rollouts)
    assert (tables["logp_nt"] - table["sampler_logp_nt"])[table["mask_nt"]].abs().max() < 1e-5
    assert all((row.kept is not None) == ("top_p" in sampling or "top_k" in sampling) for row in rollouts.rows)


def test_rows_do_not_depend_on_their_neighbours(
    make: Callable[..., Any], records: list[Record], float64_everywhere: Callable[..., Any]
) -> None:
    """Same tokens alone, in a crowd, in small batches, with longer neighbours, and numbered by first_sample."""
    streams = Streams(seed=4, step=2)
    crowd = [Request(records[0], 4), Request(records[1], 3), Request(records[2], 2, sampling={"max_new_tokens": 25})]
    policy = make("qwen3_vl", double=True)
    narrow = make("qwen3_vl", double=True, sampling={"batch_rows": 2})
    apart = make("qwen3_vl", double=True, piece_tokens=1)
    with float64_everywhere():
        together = policy.rollout(crowd, streams)
        alone = policy.rollout([Request(records[0], 1, first_sample=2)], streams)
        small = narrow.rollout(crowd, streams)
        one_by_one = apart.rollout(crowd, streams)
    assert torch.equal(alone.rows[0].ids, together.rows[2].ids)
    assert alone.info[0]["sample"] == 2
    for other in (small, one_by_one):
        for a, b in zip(together.rows, other.rows, strict=True):
            assert torch.equal(a.ids, b.ids)
    assert one_by_one.stats["forwards"] == together.stats["forwards"] + 2, "three prompts run apart, then together"
    assert together.info == small.info
    assert len({tuple(r.ids.tolist()) for r in together.rows[:4]}) == 4, "the samples of one record differ"


def test_steps_and_purposes_have_their_own_numbers(make: Callable[..., Any], records: list[Record]) -> None:
    policy = make("qwen3_vl")
    request = [Request(records[1], 1)]
    texts = [policy.rollout(request, s).outputs[0] for s in (Streams(0, 0), Streams(0, 1), Streams(0, 0, "eval"))]
    assert len(set(texts)) == 3
    assert policy.rollout(request, Streams(0, 0)).outputs[0] == texts[0]


def test_finished_rows_leave(make: Callable[..., Any], records: list[Record], streams: Streams) -> None:
    """With an end token that is likely, far fewer rows go through the model than rows x steps."""
    policy = make("qwen3_vl", sampling={"max_new_tokens": 40, "stop": [str(d) for d in range(10)] + list("abcdefgh")})
    rollouts = policy.rollout([Request(records[1], 16)], streams)
    lengths = [i["length"] for i in rollouts.info]
    assert min(lengths) < max(lengths) and all(i["finished"] for i in rollouts.info)
    assert sum(lengths) - 16 <= rollouts.stats["row_steps"] <= sum(lengths) * 1.2
    assert rollouts.stats["row_steps"] < 0.6 * 16 * (max(lengths) - 1)
    assert rollouts.stats["tokens"] == sum(lengths) and rollouts.stats["forwards"] == max(lengths)


def test_end_tokens_are_part_of_the_row_and_not_of_the_text(
    make: Callable[..., Any], records: list[Record], streams: Streams
) -> None:
    policy = make("qwen3_vl", sampling={"max_new_tokens": 60, "stop": list("aeiou")})
    rollouts = policy.rollout([Request(records[1], 12)], streams)
    ends = {policy.processor.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", *"aeiou")}
    assert policy.ends == ends
    for row, text, info in zip(rollouts.rows, rollouts.outputs, rollouts.info, strict=True):
        assert not ends & set(row.ids[:-1].tolist())
        assert info["finished"] == (int(row.ids[-1]) in ends)
        assert not any(c in re.sub(r"<\|\w+\|>", "", text) for c in "aeiou")
        assert info["length"] == len(row)


def test_suppressed_tokens_never_appear(make: Callable[..., Any], records: list[Record], streams: Streams) -> None:
    policy = make("qwen2_vl", sampling={"max_new_tokens": 50, "suppress": list("0123456789"), "temperature": 3.0})
    rollouts = policy.rollout([Request(r, 6) for r in records], streams)
    drawn = set(torch.cat([r.ids for r in rollouts.rows]).tolist())
    assert len(drawn) > 50
    assert not drawn & policy.suppressed
    tokenizer = policy.processor.tokenizer
    assert policy.suppressed >= {tokenizer.convert_tokens_to_ids(t) for t in ("<|image_pad|>", "<|vision_start|>", "7")}
    assert policy.suppressed >= set(range(len(tokenizer), 120)), "rows of the head that no token names"


def test_greedy_is_the_most_likely_token(make: Callable[..., Any], records: list[Record], streams: Streams) -> None:
    policy = make("qwen3_vl", sampling={"top_p": 0.5})
    first = policy.rollout([Request(records[0], 2)], streams, greedy=True)
    again = policy.rollout([Request(records[0], 1)], Streams(9, 9), greedy=True)
    assert torch.equal(first.rows[0].ids, first.rows[1].ids) and torch.equal(first.rows[0].ids, again.rows[0].ids)
    row = first.rows[0]
    logits = policy.model(
        input_ids=torch.cat([row.prompt.ids, row.ids])[None],
        mm_token_type_ids=policy.shape.token_types(torch.cat([row.prompt.ids, row.ids])[None]),
        **row.prompt.media,
    ).logits[0, len(row.prompt) - 1 : -1]
    logits[:, sorted(policy.suppressed)] = -torch.inf
    assert torch.equal(logits.argmax(-1), row.ids)


def test_overrides_of_a_request(make: Callable[..., Any], records: list[Record], streams: Streams) -> None:
    policy = make("qwen3_vl")
    requests = [Request(records[1], 2, sampling={"max_new_tokens": 3, "temperature": 0.5}), Request(records[1], 1)]
    rollouts = policy.rollout(requests, streams)
    assert [i["length"] for i in rollouts.info[:2]] == [3, 3] and rollouts.info[2]["length"] > 3
    assert [r.temperature for r in rollouts.rows] == [0.5, 0.5, 1.0]
    with pytest.raises(UserError, match="unknown option 'temprature'; did you mean 'temperature'"):
        policy.rollout([Request(records[1], 1, sampling={"temprature": 1.0})], streams)


@pytest.mark.parametrize("truncated", ["keep", "mask", "penalise"])
def test_truncated_completions(
    truncated: str, make: Callable[..., Any], records: list[Record], streams: Streams
) -> None:
    policy = make("qwen3_vl", sampling={"max_new_tokens": 8, "stop": list("abcdefghijklm"), "truncated": truncated})
    rollouts = policy.rollout([Request(records[1], 12)], streams)
    finished = [i["finished"] for i in rollouts.info]
    assert 0 < sum(finished) < 12
    mask = rollouts.tables["tokens"]["mask_nt"].any(1).tolist()
    assert mask == (finished if truncated == "mask" else [True] * 12)
