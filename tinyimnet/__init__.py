"""Train a convolutional network of at most 1,000,000 parameters on Tiny ImageNet, on one CPU or many GPUs."""
