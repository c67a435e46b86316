"""Which positions count, under which distribution, and that every update meets the masks of its own old pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_policy import RECORDS, policy, sampled
from tiny_runs import config, lines

from dlm.policy import ElboPolicy
from mmrl.core.streams import Streams
from mmrl.errors import UserError
from mmrl.training.run import train
from mmrl.training.update import evaluate


def with_ends(one: Any) -> Any:
    """Rollouts of a policy that ends its answers with a common token, so that ends stand anywhere."""
    return sampled(one, n=4)


STOPS = list(range(0, 256, 5))


def test_region_to_eos_scores_up_to_the_first_end_token_and_the_canvas_everything(folders: dict[str, Path]) -> None:
    found = {}
    for region in ("canvas", "to_eos"):
        one = policy(folders["llada"], ElboPolicy, likelihood={"name": "sdmc", "region": region}, stop=STOPS)
        rollouts = with_ends(one)
        found[region] = rollouts.tables["tokens"]["mask_nt"].sum(1)
        lengths = torch.tensor([row.length for row in rollouts.rows])
        assert int(lengths.min()) < 11  # some answer does end
        assert torch.equal(found[region], lengths if region == "to_eos" else torch.full_like(lengths, 11))
        # the length of the exponent is the scored one: nothing beyond it has a value
        logp = evaluate(one, rollouts, {"logp_nt"}, channel="tokens")["logp_nt"]
        assert bool((logp[~rollouts.tables["tokens"]["mask_nt"]] == 0).all())


def test_truncated_rows_leave_the_loss_when_asked(folders: dict[str, Path]) -> None:
    for truncated in ("keep", "mask", "penalise"):
        rollouts = with_ends(policy(folders["llada"], stop=STOPS[::4], truncated=truncated))
        ended = torch.tensor([bool(row["finished"]) for row in rollouts.info])
        assert bool(ended.any()) and not bool(ended.all())
        scored = rollouts.tables["tokens"]["mask_nt"].any(1)
        assert torch.equal(scored, ended if truncated == "mask" else torch.ones_like(ended))
        penalties = [row.get("penalty") for row in rollouts.info]
        assert penalties == ([0.0 if e else -1.0 for e in ended.tolist()] if truncated == "penalise" else [None] * 12)


@pytest.mark.parametrize("model", ["llada", "sdar"])
def test_end_tokens_that_are_never_drawn_are_left_out_of_the_likelihood_too(
    folders: dict[str, Path], model: str
) -> None:
    one = policy(folders[model], eos="never", stop=STOPS)
    rollouts = with_ends(one)
    assert not any(row["finished"] for row in rollouts.info)
    table = rollouts.tables["tokens"]
    logp = evaluate(one, rollouts, {"logp_nt"}, channel="tokens")["logp_nt"]
    assert torch.allclose(logp[table["mask_nt"]], table["sampler_logp_nt"][table["mask_nt"]].double(), atol=1e-8)


@pytest.mark.parametrize("change", [{}, {"model": {"piece_tokens": 40}}], ids=["whole", "in shares"])
def test_every_update_meets_the_masks_of_its_own_old_pass(
    tmp_path: Path, folders: dict[str, Path], change: dict[str, Any]
) -> None:
    """Weights that do not move: the ratio of every update is 1. With masks of another update it is not."""
    raw = {"optimiser": {"lr": 1e-30}, "recipe_options": {"bounds.low": 1e-4, "bounds.high": 1e-4}, **change}
    run = train(
        config(tmp_path / "run", folders["llada"], train={"steps": 2, "epochs": 3, "minibatches": 2}, **raw),
        progress=False,
    )
    steps = [row for row in lines(run) if row["step"]]
    assert all(row["updates"] == 6 and row["reward_std"] > 0 for row in steps)
    for row in steps:
        assert row["ratio"] == pytest.approx(1.0, abs=1e-6)
        assert row["clip_low"] == row["clip_high"] == 0.0


def test_imitation_is_not_guided(folders: dict[str, Path]) -> None:
    found = []
    for guidance in (0.0, 2.0):
        one = policy(folders["llada"], guidance=guidance)
        rows = one.demonstrations(RECORDS, Streams(0, 0))
        found.append(evaluate(one, rows, {"supervised_nt"}, channel="tokens")["supervised_nt"])
    assert float(found[0].abs().max()) > 0 and torch.equal(*found)


REFUSED = {
    "a cache that is not the samplers": (
        {"sampling": {"cache": "dual"}, "recipe": "lightningrl", "train": {"minibatches": 1}},
        "sampling.cache: dual is approximate",
    ),
    "more steps than positions": ({"sampling": {"steps": 9}}, "sampling.steps: 9 steps for 8 positions"),
    "no temperature": ({"sampling": {"temperature": 0}}, "sampling.temperature: 0 makes all samples of a group alike"),
    "a refresh of nothing": ({"sampling": {"refresh": 2}}, "sampling.refresh: only prefix and dual caches"),
    "speed on a schedule": (
        {"rewards": {"components": [{"name": "dlm-some-digits"}, {"name": "tpf"}]}},
        "tpf beside sampling.rule: steps",
    ),
    "shards": ({"distributed": {"mode": "fsdp2"}}, "distributed.mode: fsdp2 is not available for family 'dlm'"),
    "no such rule": ({"sampling": {"likelihood": {"name": "sdmc", "options": {"rule": "gaus-3"}}}}, "gauss-3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_cannot_work_together_are_refused_before_weights_load(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dlm.family

    change, message = REFUSED[name]
    monkeypatch.setattr(dlm.family, "load_policy", lambda config: pytest.fail("weights were loaded"))
    with pytest.raises(UserError, match=message):
        train(config(tmp_path / "run", Path("nobody/nothing"), **change), progress=False)


@pytest.mark.parametrize("value", [2.0, -1, "x"])
def test_thresholds_outside_zero_and_one_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UserError, match="inputs.eval_thresholds"):
        config(tmp_path / "run", Path("x"), inputs={"eval_thresholds": [value]})
