"""A study as its YAML file says: which arms (runs that are compared), which seeds, which metrics.

An arm is a configuration with overrides. One arm, the first, is what the study is about. An arm with `budget` trains
for as many seconds as the arm it names took with the same seed, whatever number of steps that is.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mmrl import config_errors, yaml_io
from mmrl.errors import UserError

HERE = Path(__file__).resolve().parent
#: Steps of an arm that ends by its seconds: more than any budget allows.
UNREACHED = 100_000


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Arm(Section):
    label: str = Field(description="what the tables call it")
    note: str = Field("", description="one line below the tables")
    overrides: list[str] = Field(default_factory=list, description="key=value, as for mmrl train")
    budget: str | None = Field(None, description="arm whose training seconds this one gets")
    most_gain: float | None = Field(None, description="the mean gain of the first metric may not be larger")
    least_gain: dict[str, float] = Field(default_factory=dict, description="metric: its mean gain may not be smaller")


class Study(Section):
    title: str
    config: str = Field(description="name or path, as for mmrl train")
    metrics: list[str] = Field(min_length=1, description="of the evaluation; the first one decides")
    seeds: list[int] = Field(min_length=1)
    common: list[str] = Field(default_factory=list, description="overrides of every arm")
    arms: dict[str, Arm] = Field(min_length=2)

    @property
    def main(self) -> str:
        """The arm that the study is about."""
        return next(iter(self.arms))

    @property
    def order(self) -> list[str]:
        """Arms so that each one comes after the arm whose seconds it gets."""
        return sorted(self.arms, key=lambda name: self.arms[name].budget is not None)

    @model_validator(mode="after")
    def _budgets(self) -> Study:
        for name, arm in self.arms.items():
            for metric in arm.least_gain:
                if metric not in self.metrics:
                    raise ValueError(f"arms.{name}.least_gain: {metric!r} is not one of the study's metrics")
            if arm.budget is None:
                continue
            if arm.budget not in self.arms:
                raise ValueError(f"arms.{name}.budget: no arm {arm.budget!r}")
            if self.arms[arm.budget].budget is not None:
                raise ValueError(f"arms.{name}.budget: {arm.budget!r} has a budget itself; name an arm with steps")
        return self


def read(name: str) -> tuple[str, Study]:
    """(slug, study) of `studies/NAME.yaml` or of a YAML file. Raises UserError."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else HERE / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in HERE.glob("*.yaml")))
        raise UserError(f"--study {name}: no file {path}; there are: {known}")
    try:
        return path.stem, Study.model_validate(yaml_io.read(path))
    except ValidationError as error:
        raise UserError(f"{path}: {config_errors.join(config_errors.lines(error, Study))}") from error


def overrides(study: Study, name: str, *, seed: int, steps: int | None, seconds: float | None) -> list[str]:
    """All overrides of one run but its folder.

    steps     of the arms that have no budget; None = as configured
    seconds   the budget, for an arm that has one
    """
    arm = study.arms[name]
    out = [*study.common, *arm.overrides, f"seed={seed}"]
    if arm.budget is not None:
        assert seconds is not None
        out += [f"train.steps={UNREACHED}", f"train.max_seconds={seconds:.3f}"]
    elif steps is not None:
        out.append(f"train.steps={steps}")
    return out
