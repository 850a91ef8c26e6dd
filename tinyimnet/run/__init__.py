"""The run folder: its names, attempts, lock and checkpoint files, the table of metrics, and the one reader of it all.

It is the whole truth about a run; who trains writes it, everything else reads it through `record`. What is in a checkpoint is
in training/state.py; how it gets to disk and back whole is here.
"""
