"""Pairs of [clean | noisy] that share their clean copies give what separate pairs give, gradients included."""

from dataclasses import replace

import pytest
import torch

from dlm import forward
from dlm.models.loading import load_model
from dlm.models.tiny import write_tiny
from dlm.rows import Row


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(write_tiny(tmp_path_factory.mktemp("m") / "sdar", "sdar", block=4)))[0].double()


def some_rows():
    """Prompts and completions of different length, so that pads, prompt tails and excess columns occur."""
    generator = torch.Generator().manual_seed(0)

    def ids(n):
        return torch.randint(0, 200, (n,), generator=generator)

    sizes = [(3, 6), (9, 4), (5, 9)]
    return [Row(ids(p), ids(n), torch.zeros(n, dtype=torch.long), n) for p, n in sizes]


def read(model, rows, masked):
    model.zero_grad()
    hidden = forward.completion_hidden(model, rows, masked_nl=masked, prompt_masked_np=None)
    hidden.square().sum().backward()
    return hidden.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_shared_clean_copies_change_nothing(model, monkeypatch):
    one, two, three = some_rows()
    rows = [one, two, one, three, two, one]
    masked = torch.rand(6, 9, generator=torch.Generator().manual_seed(1)) < 0.5
    calls = []
    original = forward.shared_hidden
    monkeypatch.setattr(forward, "shared_hidden", lambda *a: calls.append(1) or original(*a))
    shared, shared_grads = read(model, rows, masked)
    assert calls == [1]
    apart, grads = read(model, [replace(row) for row in rows], masked)  # equal rows, none the same object
    assert calls == [1]
    torch.testing.assert_close(shared, apart, rtol=0, atol=1e-10)
    for ours, theirs in zip(shared_grads, grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_what_a_prompt_mask_or_recomputation_needs_is_not_shared(model, monkeypatch):
    one, two, _ = some_rows()
    masked = torch.ones(3, 6, dtype=torch.bool)
    monkeypatch.setattr(forward, "shared_hidden", lambda *a: pytest.fail("shared"))
    hidden = torch.zeros(3, 9, dtype=torch.bool)
    forward.completion_hidden(model, [one, two, one], masked_nl=masked, prompt_masked_np=hidden)
    model.checkpoint_gradients()
    try:
        forward.completion_hidden(model, [one, two, one], masked_nl=masked, prompt_masked_np=None)
    finally:
        model.checkpoint_gradients(on=False)
