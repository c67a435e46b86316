"""Stages by name: needs read from signatures, options checked, mistakes named with the nearest valid word."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from core_world import world
from torch import Tensor

from mmrl.core import registry
from mmrl.core.channels import CHANNELS, Channel, add_channel, axes_of, carries_gradient, split_pass
from mmrl.core.registry import bind, find, stage, stages
from mmrl.core.table import Table
from mmrl.errors import UserError


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations of a test vanish with it."""
    monkeypatch.setattr(registry, "_STAGES", dict(registry._STAGES))
    monkeypatch.setattr("mmrl.core.channels.CHANNELS", dict(CHANNELS))


def test_catalogue() -> None:
    assert set(stages("advantage")) >= {
        *("grpo", "dr-grpo", "batch-std", "rloo", "reinforce-pp", "reinforce-pp-baseline", "raw", "constant")
    }
    assert set(stages("gate")) >= {"ppo-clip", "gspo", "cispo", "reinforce", "supervised"}
    assert set(stages("reduce")) >= {
        *("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "token-mean-local")
    }


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        (
            "gate",
            {"name": "ppo-clip", "dual_clp": 3.0},
            "gate 'ppo-clip' has no option 'dual_clp'; did you mean 'dual_clip'?",
        ),
        ("advantage", {"name": "grpo", "dof": 0}, "advantage 'grpo' has no option 'dof'; did you mean 'ddof'?"),
        ("advantage", "grop", "unknown advantage 'grop'; did you mean 'grpo'?"),
        ("reduce", "sequence-mean-token-mean", "did you mean 'seq-mean-token-mean'?"),
        ("penalty", {"name": "kl", "beta": 0.1}, "penalty 'kl' has no option 'beta'"),
        ("gate", {"name": "ppo-clip", "logp_nt": 1}, "no option 'logp_nt'"),
        ("weight", {"name": "zzzz"}, "unknown weight 'zzzz'; valid: tis"),
        ("gate", {}, "unknown gate ''"),
    ],
)
def test_mistakes_name_the_nearest(kind: str, spec: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        bind(kind, spec)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stage_imported_alone_knows_its_channels() -> None:
    """Not the options that these names would be without the reducer that fills them."""
    code = "import mmrl.core.weights.tw; from mmrl.core.registry import find; print(*find('weight', 'tw').optional)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["divergence_nt", "divergence_active_nt", "js_nt", "js_active_nt"]


def test_needs_are_read_from_the_signature() -> None:
    ppo = find("gate", "ppo-clip")
    assert set(ppo.required) == {"logp_nt", "old_logp_nt", "adv_nt", "mask_nt"}
    assert set(ppo.optional) == {"segments", "eps_low_nt", "eps_high_nt"}
    caps = {"cap_low": -20.0, "cap_high": 20.0}
    assert dict(ppo.options) == {"dual_clip": None, "delta": None, "adv_clip": None, "level": "decision", **caps}
    assert bind("gate", "ppo-clip").needs() == {"logp_nt", "old_logp_nt", "adv_nt", "mask_nt"}
    assert bind("advantage", "grpo").needs() == {"reward_n"}  # keys are a container, not a channel


@pytest.mark.parametrize("name", ["reinforce", "supervised"])
def test_gates_without_a_ratio_need_no_old_pass(name: str) -> None:
    assert not [c for c in bind("gate", name).needs() if split_pass(c)[0]]


@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "batch-std", "rloo", "raw", "constant"])
def test_advantages_of_rewards_alone_need_no_pass(name: str) -> None:
    assert bind("advantage", name).needs() == {"reward_n"}


def test_when_and_instead() -> None:
    plain, paid = bind("advantage", "reinforce-pp"), bind("advantage", {"name": "reinforce-pp", "beta_kl": 0.1})
    assert plain.needs() == {"reward_n", "mask_nt"}
    assert paid.needs() == {"reward_n", "mask_nt", "old_logp_nt", "ref_logp_nt"}
    kl, corrected = bind("penalty", "kl"), bind("penalty", {"name": "kl", "off_policy": True})
    assert kl.needs() == {"logp_nt", "ref_logp_nt", "mask_nt"}
    assert corrected.needs() == kl.needs() | {"old_logp_nt"}
    closed = kl.needs(frozenset({"kl_nt"}))
    assert closed == {"logp_nt", "kl_nt", "mask_nt"}
    table = Table({k: world()[k] for k in ("logp_nt", "kl_nt", "mask_nt")})
    assert kl.ready(table, frozenset({"kl_nt"})) and not kl.ready(table)
    assert torch.equal(kl(table)[table["mask_nt"]], table["kl_nt"][table["mask_nt"]])
    with pytest.raises(KeyError, match="penalty 'kl' needs ref_logp_nt"):
        kl(Table({k: world()[k] for k in ("logp_nt", "mask_nt")}))


def test_a_missing_channel_is_named() -> None:
    table = Table({k: v for k, v in world().channels.items() if k != "old_logp_nt"})
    with pytest.raises(KeyError, match="gate 'ppo-clip' needs old_logp_nt"):
        bind("gate", "ppo-clip")(table)


def test_scope_widens_with_the_ratio_level() -> None:
    assert bind("gate", "ppo-clip").scope == "decision"
    assert bind("gate", {"name": "ppo-clip", "level": "row"}).scope == "row"
    assert bind("gate", {"name": "ppo-clip", "level": "row-sum"}).scope == "row"
    for level in ("segment:step", "segment-sum:step"):
        one = bind("gate", {"name": "cispo", "level": level})
        assert one.scope == "segment" and one.segments == {"step"}
        assert bind("gate", {"name": "gspo", "level": level}).scope == "row"  # its own scope is wider
    assert bind("gate", "gspo").scope == "row" and bind("gate", "gspo").segments == frozenset()
    assert bind("reduce", {"name": "seq-mean-segment-mean", "segment": "turn"}).segments == {"turn"}


@pytest.mark.usefixtures("sandbox")
def test_registering() -> None:
    @stage("weight", "halve", scope="row")
    def halve(*, mask_nt: Tensor, by: float = 2.0) -> Tensor:
        return mask_nt / by

    bound = bind("weight", {"name": "halve", "by": 4.0})
    assert bound(world())[0, 0] == 0.25 and bound.stage.scope == "row"
    assert halve(mask_nt=torch.ones(1, 1)).item() == 0.5  # the function stays a plain function
    with pytest.raises(TypeError, match="keyword-only"):
        stage("weight", "bad")(lambda mask_nt: mask_nt)

    def unknown_channel(*, logits_ntv: Tensor) -> Tensor:
        return logits_ntv

    with pytest.raises(TypeError, match="'logits_ntv' needs a default \\(or is not in the channel table\\)"):
        stage("weight", "bad")(unknown_channel)
    with pytest.raises(TypeError, match="unknown kind"):
        stage("gates", "bad")
    halve.__module__ = "elsewhere"
    with pytest.raises(TypeError, match="registered already"):
        stage("weight", "tis")(halve)


@pytest.mark.usefixtures("sandbox")
def test_channels_of_plug_ins() -> None:
    from mmrl.core import channels

    add_channel(Channel("novelty_n", "n", False, "rewards", "how new the row is"))
    assert channels.is_channel("novelty_n") and not channels.is_channel("old_novelty_n")
    with pytest.raises(ValueError, match="exists already"):
        add_channel(Channel("logp_nt", "nt", True, "policy", ""))
    with pytest.raises(ValueError, match="must end in its axes"):
        add_channel(Channel("novelty", "n", False, "rewards", ""))


def test_channel_names() -> None:
    assert split_pass("old_logp_nt") == ("old", "logp_nt")
    assert split_pass("logp_nt") == ("", "logp_nt")
    assert split_pass("sampler_logp_nt") == ("sampler", "logp_nt")
    assert split_pass("old_reward_n") == ("", "old_reward_n")  # only the policy has passes
    assert carries_gradient("logp_nt") and not carries_gradient("ref_logp_nt") and not carries_gradient("adv_nt")
    assert [axes_of(n) for n in ("logp_nt", "weight0_nt", "reward_ntk", "part_n", "clip", "x_fraction")] == [
        *("nt", "nt", "ntk", "n", "", "")
    ]
    assert all(c.name == n and n.endswith("_" + c.axes) for n, c in CHANNELS.items())


def test_a_table_is_cut_along_rows_and_decisions_together() -> None:
    table = world()
    piece = table.piece(torch.tensor([3, 7]), torch.tensor([1, 4]))
    assert torch.equal(piece["logp_nt"], table["logp_nt"][[3, 7]][:, [1, 4]])
    assert torch.equal(piece["reward_nk"], table["reward_nk"][[3, 7]])
    assert piece["weight_k"] is table["weight_k"] and piece.keys["prompt"].tolist() == [11, 5]
    assert piece.segments["step"].tolist() == [[0, 2], [0, 2]]
    number = table.updated({"eps_high_nt": 0.2}).rows(torch.tensor([0]))
    assert number["eps_high_nt"] == 0.2
