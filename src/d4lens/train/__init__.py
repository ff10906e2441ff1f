"""Training: `train` makes one arm of the table with one seed, and picks up exactly where it was cut off."""

from d4lens.train.loop import fingerprint, train

__all__ = ["fingerprint", "train"]
