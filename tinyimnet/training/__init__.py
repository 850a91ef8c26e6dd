"""The training loop and its parts: checkpoint state, optimizers, schedules, weight EMA and step timing.

Batches come from data/ and evaluation from evaluation/. Checkpoint files, the run lock, signals and process groups are
in run/ and distributed/.
"""
