"""Load a trained network and the data set of its run, for evaluate, predict and soft-labels."""

from pathlib import Path

import torch

from tinyimnet.data.dataset import Dataset, open_dataset
from tinyimnet.distributed.cpu import keep_freed_memory
from tinyimnet.errors import UserError
from tinyimnet.evaluation.weights import Trained, load_trained
from tinyimnet.run.folder import read_config


def load_network(run: Path) -> Trained:
    """The EMA weights of a run folder or .safetensors file, on the GPU if there is one."""
    trained = load_trained(run)
    if torch.cuda.is_available():
        trained.model.to("cuda")
    else:
        keep_freed_memory()
    return trained


def dataset_of(trained: Trained, run: Path, root: Path | None) -> Dataset:
    """The data set in `root`, default: that of the run.

    Raises:
        UserError: it does not have the classes of the network, or its images have another size.
    """
    root = root or Path(data_config_of(run)["root"])
    dataset = open_dataset(root)
    if dataset.classes != trained.classes:
        raise UserError(
            f"{root} does not have the classes that {trained.origin} was trained on; give the right folder with --data."
        )
    if dataset.image_size != trained.image_size:
        raise UserError(
            f"{root} has images of {dataset.image_size} px, and {trained.origin} was trained on those of "
            f"{trained.image_size} px; give data of that size with --data (`prepare --size {trained.image_size}`)."
        )
    return dataset


def data_config_of(run: Path) -> dict:
    """The section `data` of the configuration of a run, given by its folder or by a weights file in it."""
    folder = run.parent if run.is_file() else run
    if run.is_file() and not (folder / "config.yaml").exists():
        raise UserError(
            f"{run} is not in a run folder, whose config.yaml would name its data; "
            "give its prepared data set with --data FOLDER."
        )
    return read_config(folder)["data"]
