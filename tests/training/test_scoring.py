"""Rewards of whole rows, of single decisions, of rows that cannot be used; in one go and beside the sampling."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch

from mmrl.config import Rewards, RewardSpec
from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.rewards.registry import reward
from mmrl.rewards.score import Scorer
from mmrl.selection.request import Request
from mmrl.training.batch import Scored, shuffle_inside_groups, table_of
from mmrl.training.rollouts import Rollouts
from mmrl.training.scoring import Scoring, joined, score


@reward("scoring-length", tasks=("t",))
def length(outputs: Any, records: Any, info: Any) -> list[float]:
    return [float(len(o)) for o in outputs]


@reward("scoring-thread", tasks=("t",))
def thread(outputs: Any, records: Any, info: Any) -> list[float]:
    return [float(threading.current_thread() is threading.main_thread()) for _ in outputs]


def rollouts(outputs: list[str], *, steps: list[list[Any]] | None = None, prompts: list[int] | None = None) -> Rollouts:
    n = len(outputs)
    return Rollouts(
        rows=list(range(n)),
        records=[Record(f"r{i}", "t", "p") for i in range(n)],
        outputs=outputs,
        info=[{"length": 3, "finished": True, "sample": i} for i in range(n)],
        keys={"prompt": torch.tensor(prompts or [0] * n)},
        tables={"steps": {"mask_nt": torch.ones(n, 3, dtype=torch.bool)}},
        segments={"steps": {}},
        steps=steps,
    )


def scorer(name: str = "scoring-length") -> Scorer:
    return Scorer(Rewards(components=[RewardSpec(name=name, weight=2.0)]))


def test_outputs_of_decisions_are_scored_where_there_are_some_and_then_forgotten() -> None:
    rows = rollouts(["aaa", "b"], steps=[["a", None, "aaa"], [None, "", "b"]])
    scored, lines = score(scorer(), rows)
    assert lines == [] and rows.steps is None
    assert scored.reward_nk.tolist() == [[3.0], [1.0]]
    assert scored.reward_ntk is not None and scored.reward_ntk.shape == (2, 3, 1)
    values = scored.reward_ntk[..., 0]
    assert values[0, 0] == 1 and values[0, 2] == 3 and values[1, 1] == 0 and values[1, 2] == 1
    assert math.isnan(values[0, 1]) and math.isnan(values[1, 0])
    assert table_of(scored, "steps")["reward_ntk"] is scored.reward_ntk
    picked = scored.select(torch.tensor([1]))
    assert picked.reward_ntk is not None and picked.reward_ntk[0, 2, 0] == 1


def test_the_last_decision_is_not_scored_twice() -> None:
    calls: list[str] = []

    class Counting:
        names, weight_k = ["x"], torch.ones(1).double()

        def score(self, outputs: Any, records: Any, info: Any) -> Any:
            calls.extend(outputs)
            return type(
                "S",
                (),
                {
                    "reward_nk": torch.tensor([[float(len(o))] for o in outputs]).double().reshape(-1, 1),
                    "names": ["x"],
                    "weight_k": torch.ones(1).double(),
                    "failures": [],
                },
            )()

    final = "aaa!"
    scored, _ = score(Counting(), rollouts([final], steps=[["a", "aa", final]]))  # type: ignore[arg-type]
    assert sorted(calls) == ["a", "aa", final]
    assert scored.reward_ntk is not None and scored.reward_ntk[0, :, 0].tolist() == [1.0, 2.0, 4.0]


def test_an_unusable_row_is_not_shown_to_rewards_and_is_told() -> None:
    rows = rollouts(["aaa", "b"], steps=[["a", "b", "c"], ["a", "b", "c"]])
    rows.info[1]["unusable"] = "its latents are not finite"
    scored, lines = score(scorer(), rows)
    assert lines == ["record 'r1', sample 1: its latents are not finite"]
    assert scored.reward_nk[0, 0] == 3 and math.isnan(scored.reward_nk[1, 0])
    assert scored.reward_ntk is not None and bool(scored.reward_ntk[1].isnan().all())


def test_the_control_moves_rows_of_decisions_as_a_whole() -> None:
    dense = torch.arange(12.0).reshape(4, 3, 1)
    before = Scored(rollouts(["a"] * 4), torch.arange(4.0)[:, None], torch.ones(1), ["x"], dense)
    after = shuffle_inside_groups(before, Streams(0, 1))
    assert after.reward_ntk is not None
    order = after.reward_nk[:, 0].long()
    assert sorted(order.tolist()) == [0, 1, 2, 3] and order.tolist() != [0, 1, 2, 3]
    assert torch.equal(after.reward_ntk, dense[order])


@pytest.mark.parametrize(("parts", "beside"), [(1, False), (3, True)])
def test_parts_are_scored_in_a_thread_beside_the_sampling(parts: int, beside: bool) -> None:
    scoring = Scoring(scorer("scoring-thread"), parts=parts, imitation=False)
    told = scoring.begin(rollouts(["a"]))
    assert told()[0].reward_nk.tolist() == [[0.0 if beside else 1.0]]
    scoring.close()


def test_parts_cover_the_requests_in_order_with_a_prompt_for_every_rank() -> None:
    requests = [Request(Record(str(i), "t", "p"), 1) for i in range(7)]
    scoring = Scoring(scorer(), parts=3, imitation=False)
    assert [[r.record.id for r in part] for part in scoring.cut(requests, 1)] == [
        ["0", "1"],
        ["2", "3", "4"],
        ["5", "6"],
    ]
    assert all(len(part) >= 3 for part in scoring.cut(requests, 3))
    assert len(scoring.cut(requests, 4)) == 1


def test_joined_parts_number_their_prompts_on() -> None:
    parts = [
        Scored(rollouts(["a"] * 3, prompts=p), torch.zeros(3, 1), torch.ones(1), ["x"]) for p in ([0, 0, 1], [0, 1, 1])
    ]
    assert joined(parts).rollouts.keys["prompt"].tolist() == [0, 0, 1, 2, 3, 3]


def test_demonstrations_count_alike() -> None:
    scored, lines = Scoring(scorer(), parts=4, imitation=True).begin(rollouts(["", ""]))()
    assert scored.reward_nk.tolist() == [[1.0], [1.0]] and scored.names == ["imitation"] and lines == []
