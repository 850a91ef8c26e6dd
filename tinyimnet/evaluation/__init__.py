"""Evaluation of trained weights: accuracy, confusions, calibration, weight files, model card and figures.

Training uses this package between epochs and at the end of a run; the commands evaluate, predict and soft-labels use it
directly. Nothing is trained here.
"""
