"""A trained network and the data set of its run, for the commands that look at what it says."""

from pathlib import Path

import torch

from tinyimnet.data.dataset import Dataset, open_dataset
from tinyimnet.distributed.cpu import keep_freed_memory
from tinyimnet.errors import UserError
from tinyimnet.evaluation.weights import Trained, load_trained
from tinyimnet.run.folder import read_config


def load_network(run: Path) -> Trained:
    """The averaged weights of a run folder or a .safetensors file, on the GPU where there is one."""
    trained = load_trained(run)
    if torch.cuda.is_available():
        trained.model.to("cuda")
    else:
        keep_freed_memory()
    return trained


def dataset_of(trained: Trained, run: Path, root: Path | None) -> Dataset:
    """The data set of a run, or the one in `root`, where it has the classes that the network knows."""
    root = root or Path(data_config_of(run)["root"])
    dataset = open_dataset(root)
    if dataset.classes != trained.classes:
        raise UserError(f"{root} has other classes than {trained.origin} was trained on; choose --data.")
    return dataset


def data_config_of(run: Path) -> dict:
    """The section `data` of the configuration of a run, or of the run beside a file with its weights."""
    return read_config(run.parent if run.is_file() else run)["data"]
