"""The learning: the loop, what a checkpoint holds, optimizers and schedules, the moving average, the time of a step.

Batches come from data/, and what is measured between epochs from evaluation/. What keeps a run alive (checkpoint files, the
lock, signals, process groups) is in run/ and distributed/.
"""
