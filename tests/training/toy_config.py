"""Configuration sections of the toy family."""

from mmrl.config import Section


class Model(Section):
    path: str = "toy"
    cut: str = "rows"


class Sampling(Section):
    pass


class Inputs(Section):
    pass
