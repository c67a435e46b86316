"""Configuration sections of the toy family with two channels."""

from mmrl.config import Section


class Model(Section):
    path: str = "toy-two"
    cut: str = "steps"
    every: int = 2  # updates of the schedule until its deviation falls


class Sampling(Section):
    explore: bool = False
    steps: int = 3


class Inputs(Section):
    pass
