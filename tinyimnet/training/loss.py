"""The training loss: cross-entropy (CE) with the labels and, in distillation, with the soft labels of teachers."""

import torch.nn.functional as F
from torch import Tensor

from tinyimnet.config import AugmentConfig
from tinyimnet.data.augment import Targets, softened


def batch_loss(logits: Tensor, targets: Targets, config: AugmentConfig) -> Tensor:
    """Mean loss of the logits (B, K) of a batch, a float32 scalar.

    With soft labels it is (1 - w) CE(labels) + w T^2 CE(soft labels), with the weight w and the temperature T of
    `config`. The network's logits in the second term are softened as those of the teachers are, which divides its
    gradient by T^2 (Hinton et al., arXiv 1503.02531, section 2).
    """
    of_labels = F.cross_entropy(logits, targets.labels)
    if targets.soft_labels is None:
        return of_labels
    of_soft_labels = F.cross_entropy(softened(logits, config), targets.soft_labels)
    weight, temperature = config.soft_label_weight, config.soft_label_temperature
    return (1 - weight) * of_labels + weight * temperature**2 * of_soft_labels
