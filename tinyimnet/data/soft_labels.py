"""Soft labels: what other networks say of each training image, as a target beside its label (data.soft_labels).

Distillation (Hinton et al., arXiv 1503.02531; from a network of the same size: Furlanello et al., arXiv 1805.04770) with
the teachers' answers computed once and kept in a file, so that a step costs what it costs without a teacher and gives the
same bits in every attempt of a run, on whatever device the teachers ran.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tinyimnet.data.dataset import Dataset
from tinyimnet.errors import UserError
from tinyimnet.files import sha256, write_atomically

WAY_OUT = "write it with `python -m tinyimnet soft-labels`"


def write(file: Path, probabilities: np.ndarray, dataset: Dataset, teachers: list[str]) -> None:
    """Write (N, K) probabilities of the classes for the training images of `dataset`, in their order, as float16.

    Raises:
        OSError: the file cannot be written.
    """
    metadata = json.dumps({"data": dataset.digest, "teachers": teachers})
    write_atomically(file, save({"probabilities": probabilities.astype(np.float16)}, {"metadata": metadata}))


def read(file: Path) -> tuple[np.ndarray, str]:
    """(N, K) float16 probabilities, and the digest of the data set that they are about.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    try:
        with safe_open(file, "np") as content:
            return content.get_tensor("probabilities"), json.loads(content.metadata()["metadata"])["data"]
    except FileNotFoundError:
        raise UserError(f"data.soft_labels {file} does not exist; {WAY_OUT}.") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"data.soft_labels {file} is damaged or not one of ours ({error}); {WAY_OUT}.") from None


def add(dataset: Dataset, file: Path) -> Dataset:
    """`dataset` with the soft labels of a file, which are part of its digest from then on.

    Raises:
        UserError: there is no such file, it is damaged, or it is about other images.
    """
    probabilities, digest = read(file)
    if digest != dataset.digest:
        raise UserError(
            f"data.soft_labels {file} is about other images than those of data.root {dataset.root} (sha256 {digest[:12]}, "
            f"not {dataset.digest[:12]}); {WAY_OUT} for these."
        )
    both = hashlib.sha256(f"{dataset.digest} {sha256(file)}".encode()).hexdigest()
    return replace(dataset, soft_labels=probabilities, digest=both)
