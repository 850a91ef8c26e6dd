"""Soft labels: the logits of teachers for each training image, the second target of its training (data.soft_labels).

Distillation (Hinton et al., arXiv 1503.02531; from a network of the same size: Furlanello et al., arXiv 1805.04770).
The logits are computed once and stored in a file, so a step runs no teacher. They are the logarithm of the mean
probability, in which float16 keeps probabilities to 1 % down to 1e-14; on its own it would lose those below 6e-5. The
targets are bit-identical in every attempt of a run, whatever device the teachers ran on.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tinyimnet.console import command
from tinyimnet.data.dataset import Dataset
from tinyimnet.errors import UserError
from tinyimnet.files import check_readable, sha256, write_atomically


def write(file: Path, logits: np.ndarray, dataset: Dataset, teachers: list[str]) -> None:
    """Write logits (N, K) for the training images of `dataset`, in their order, as float16.

    Raises:
        OSError: the file cannot be written.
    """
    metadata = json.dumps({"data": dataset.digest, "teachers": teachers})
    write_atomically(file, save({"logits": logits.astype(np.float16)}, {"metadata": metadata}))


def read(file: Path) -> tuple[np.ndarray, str]:
    """Read the logits (N, K) float16 and the digest of the data set they were computed for.

    Raises:
        UserError: the file does not exist, is damaged, or has the probabilities that an earlier version wrote.
    """
    try:
        check_readable(file)
        with safe_open(file, "np") as content:
            if "probabilities" in content.keys():  # noqa: SIM118 (not a dict)
                raise UserError(
                    f"data.soft_labels {file} holds probabilities, from an earlier version, and must hold logits; "
                    f"{_way_out(file)} again."
                )
            return content.get_tensor("logits"), json.loads(content.metadata()["metadata"])["data"]
    except FileNotFoundError:
        raise UserError(f"data.soft_labels {file} does not exist; {_way_out(file)}.") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"data.soft_labels {file} is damaged or not a soft-label file ({error}); {_way_out(file)}."
        ) from None


def add(dataset: Dataset, file: Path) -> Dataset:
    """Add the soft labels in `file` to `dataset`, and include them in its digest.

    Raises:
        UserError: the file does not exist, is damaged, or was computed for a different data set.
    """
    logits, digest = read(file)
    if digest != dataset.digest:
        raise UserError(
            f"data.soft_labels {file} was computed for different data than data.root {dataset.root} (sha256 "
            f"{digest[:12]}, not {dataset.digest[:12]}); {_way_out(file)} for this data."
        )
    both = hashlib.sha256(f"{dataset.digest} {sha256(file)}".encode()).hexdigest()
    return replace(dataset, soft_labels=logits, digest=both)


def _way_out(file: Path) -> str:
    return f"write it with `{command('soft-labels', 'RUN', '--out', file)}`"
