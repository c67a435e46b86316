"""What of a configuration of image models can be refused before any weight is read."""

from __future__ import annotations

from image_gen import memory
from image_gen.flow import windows
from image_gen.flow.memory import shape_of
from mmrl.config import Config


def check(config: Config) -> None:
    """Raises UserError for a window that does not fit the steps, and for a picture size that the pipeline cannot take
    (of the shapes that `--dry-run` knows; loading looks at every one)."""
    own = config.sampling.window
    windows.check(rule=config.sampling.rule, steps=config.sampling.steps, name=own.name, options=own.options)
    if config.model.path.startswith("embedded:"):
        return
    shape = shape_of(config.model.path, config.model.base)
    if shape is None:
        return
    memory.whole_steps(config, shape.factor * shape.transformer.patch)
