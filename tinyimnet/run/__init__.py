"""The run folder: file layout, attempts, lock, checkpoint files, metric definitions, and a reader for all of it.

The training writes the folder; everything else reads it through `record`. training/state.py defines what a checkpoint
contains; `checkpoint` writes it atomically and verifies it on load.
"""
