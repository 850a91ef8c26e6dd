"""Train a CNN of at most 1,000,000 parameters on Tiny ImageNet, on one CPU or many GPUs."""

__version__ = "0.1.0"
