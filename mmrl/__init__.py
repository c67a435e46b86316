"""mmrl: group-relative policy optimisation for generative models of every kind.

Importing the package loads no torch; `mmrl.core`, `mmrl.training` and the families do.
"""

__version__ = "0.1.0"
