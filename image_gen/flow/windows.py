"""Which denoising steps are stochastic, and which of those are trained, at one step of training.

Pure functions of the training step, the options and the seed: nothing is remembered, so nothing is checkpointed, and
every rank and every image of a group gets the same answer. Steps are numbered 0 .. S-1 in sampling order. The last one
(to sigma 0) is never stochastic by default: its density is too sharp to be trained on.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.core.streams import stream_seed
from mmrl.errors import UserError, nearest


@dataclass(frozen=True)
class Window:
    """stochastic: steps drawn with noise, the others follow the ODE. trained: those of them that enter the loss."""

    steps: int
    stochastic: tuple[int, ...]
    trained: tuple[int, ...]

    @property
    def start(self) -> int:
        """The first stochastic step."""
        return self.stochastic[0]

    def mask(self) -> Tensor:
        """Trained steps; bool [S]."""
        mask_s = torch.zeros(self.steps, dtype=torch.bool)
        mask_s[list(self.trained)] = True
        return mask_s


def _span(steps: int, start: int, stop: int) -> Window:
    chosen = tuple(range(start, stop))
    return Window(steps, chosen, chosen)


def _end(steps: int, end: int | None) -> int:
    """One past the last step that may be stochastic: all but the last unless told."""
    if steps < 2:
        raise UserError(f"window: at least 2 sampling steps are needed (the last one is not trained), got {steps}")
    end = steps - 1 if end is None else end
    if not 1 <= end <= steps:
        raise UserError(f"window: end must be between 1 and the {steps} sampling steps, got {end}")
    return end


def _chosen_width(width: int, end: int, start: int = 0) -> int:
    if not 1 <= width <= end - start:
        raise UserError(f"window: width must be between 1 and {end - start} (steps {start} to {end - 1}), got {width}")
    return width


def all_steps(*, steps: int, end: int | None = None, fraction: float = 1.0, step: int = 0, seed: int = 0) -> Window:
    """Steps 0 .. end-1 (all but the last) are stochastic: Flow-GRPO.

    fraction below 1 trains a random part of them, drawn anew at every training step (DanceGRPO: 0.6).
    """
    end = _end(steps, end)
    if not 0 < fraction <= 1:
        raise UserError(f"window: fraction must be above 0 and at most 1, got {fraction}")
    whole = range(end)
    count = max(1, int(fraction * end + 1e-9))  # 0.29 * 100 is 29, not 28.999...
    picked = random.Random(stream_seed(seed, step, "window")).sample(whole, count) if count < end else whole
    return Window(steps, tuple(whole), tuple(sorted(picked)))


def first(*, steps: int, n: int, end: int | None = None) -> Window:
    """Steps 0 .. n-1, where the noise is high."""
    return _span(steps, 0, _chosen_width(n, _end(steps, end)))


def sliding(
    *,
    step: int,
    steps: int,
    width: int = 4,
    iters_per_group: int = 25,
    stride: int = 1,
    overlap: bool = True,
    roll_back: bool = True,
    end: int | None = None,
    exp_decay: float | None = None,
    decay_after: int = 0,
) -> Window:
    """MixGRPO (arXiv 2507.21802): a window that moves towards the low noise. Steps l .. min(l + width, end) - 1.

    l starts at 0 and moves by `stride` every `iters_per_group` training steps (by `width` without overlap). Past the
    last position it returns to 0, or stays there with roll_back off. With exp_decay k, position l lasts
    ceil(iters_per_group * exp(-k max(0, l - decay_after))) training steps. The published script's end is steps - 2.
    """
    end = _end(steps, end)
    _chosen_width(width, end)
    if iters_per_group < 1 or stride < 1 or step < 0:
        raise UserError(
            f"window: iters_per_group {iters_per_group}, stride {stride} must be 1 or more, step {step} not < 0"
        )
    if not overlap and stride not in (1, width):
        raise UserError(f"window: without overlap the window moves by its width {width}; leave stride {stride} out")
    if exp_decay is not None and exp_decay < 0:
        raise UserError(f"window: exp_decay must be at least 0, got {exp_decay}")
    if decay_after and exp_decay is None:
        raise UserError("window: decay_after has no effect without exp_decay; set both or neither")
    starts = range(0, end, stride if overlap else width)

    rate = exp_decay or 0.0
    stays = [max(1, math.ceil(iters_per_group * math.exp(-rate * max(0, at - decay_after)))) for at in starts]
    left = step % sum(stays) if roll_back else step
    for start, lasts in zip(starts, stays):
        if left < lasts:
            return _span(steps, start, min(start + width, end))
        left -= lasts
    return _span(steps, starts[-1], min(starts[-1] + width, end))


def drawn(*, step: int, seed: int, steps: int, width: int, low: int = 0, end: int | None = None) -> Window:
    """l uniform over low .. end - width, anew at every training step: Flow-GRPO-Fast and MixGRPO's random window.

    Flow-GRPO-Fast's range (0, S/2) is low 0, end S // 2.
    """
    end = _end(steps, end)
    if not 0 <= low < end:
        raise UserError(f"window: low must be between 0 and {end - 1}, got {low}")
    _chosen_width(width, end, low)
    start = low + stream_seed(seed, step, "window") % (end - width - low + 1)
    return _span(steps, start, start + width)


#: The windows by the name a recipe gives them.
WINDOWS: dict[str, Callable[..., Window]] = {"all": all_steps, "first": first, "sliding": sliding, "random": drawn}
_GIVEN = ("step", "steps", "seed")  # by the run, not by the recipe


def choose(*, name: str, steps: int, step: int, seed: int, options: Mapping[str, Any] | None = None) -> Window:
    """The window `name` of training step `step`. Raises UserError for a name or an option that does not exist."""
    if name not in WINDOWS:
        raise UserError(f"window: unknown window {name!r}{nearest(name, WINDOWS)}")
    function, options = WINDOWS[name], options or {}
    known = inspect.signature(function).parameters
    free = [option for option in known if option not in _GIVEN]
    for option in options:
        if option not in free:
            raise UserError(f"window {name!r} has no option {option!r}{nearest(option, free)}")
    for option in free:
        if known[option].default is inspect.Parameter.empty and option not in options:
            raise UserError(f"window {name!r} needs the option {option!r}")
    given = {"steps": steps, "step": step, "seed": seed}
    return function(**{one: value for one, value in given.items() if one in known}, **options)


def check(*, rule: str, steps: int, name: str, options: Mapping[str, Any]) -> None:
    """What no sampling would survive, before any: wrong names, options and types, and cps at the last step, where its
    deviation is 0. Raises UserError."""
    for option, value in options.items():
        whole = option not in ("fraction", "exp_decay", "overlap", "roll_back")
        if value is not None and whole and (isinstance(value, bool) or not isinstance(value, int)):
            raise UserError(f"window {name!r}: {option} must be a whole number, got {value!r}")
    try:
        choose(name=name, steps=steps, step=0, seed=0, options=options)
    except TypeError as error:
        raise UserError(f"window {name!r}: an option has the wrong type: {error}") from None
    if rule == "cps" and options.get("end") is not None and options["end"] >= steps:
        raise UserError(
            f"window: end {options['end']} makes the last of {steps} steps stochastic, where cps has no deviation; set "
            f"end to {steps - 1} or less"
        )
