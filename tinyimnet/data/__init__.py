"""Data: from a source on disk or the network to the augmented batch of a step.

Sources (tiny_imagenet, npy, synthetic, download) go through `prepare` and `writer` into one prepared form, which `dataset`
reads; `batches` and `augment` cut it into the batches of a step. What another network says of the images belongs here
(soft_labels); the networks themselves do not. Reading and writing the prepared form needs no torch.
"""
