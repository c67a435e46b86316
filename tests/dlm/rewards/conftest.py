"""One call of one reward."""

import pytest

import dlm.rewards.catalogue  # noqa: F401
from mmrl.data.records import Record
from mmrl.rewards.registry import bind_options, find


@pytest.fixture
def one():
    """one(reward name, completion, answer, task=..., style=..., info=..., **options) -> value."""

    def call(name, output, answer="12", *, task="gsm8k", style=None, meta=None, info=None, **options):
        told = dict(meta or {}) | ({"style": style} if style else {})
        record = Record("r", task, "p", answer=answer, meta=told)
        definition = find(name)
        (value,) = definition.function([output], [record], [info or {}], **bind_options(definition, options))
        return value

    return call
