"""Training: `train_network` makes one arm of the table with one seed, and picks up exactly where it was cut off."""

from d4lens.train.loop import fingerprint, train_network

__all__ = ["fingerprint", "train_network"]
