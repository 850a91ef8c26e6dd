"""Data: from a source on disk or the network to the augmented batch of a training step.

`prepare` and `writer` convert every source (tiny_imagenet, npy, synthetic, download) into one prepared format, which
`dataset` reads. `batches` and `augment` turn it into training batches. Soft labels (soft_labels) are data; the networks
that produce them are not part of this package. Reading and writing the prepared format needs no torch.
"""
