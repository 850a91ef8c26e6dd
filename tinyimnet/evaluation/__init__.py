"""What trained weights are worth: accuracy on a split, confusions, calibration, their files, the model card and pictures.

The training uses it between epochs and at its end, the commands evaluate, predict and soft-labels on their own. It trains
nothing.
"""
