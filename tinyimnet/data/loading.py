"""Open the data set on every process of a run; rank 0 prepares it first if it is missing."""

import os
import secrets
import time
from contextlib import ExitStack
from pathlib import Path

from tinyimnet.config import DataConfig
from tinyimnet.data import soft_labels, staging
from tinyimnet.data.dataset import Dataset, is_prepared, not_prepared, open_dataset, tuning_split
from tinyimnet.data.prepare import ARCHIVE, prepare_missing
from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.errors import Busy, UserError

PATIENCE = 3600  # seconds that the other processes wait for rank 0 to download and decode
VISIBLE = 10  # seconds within which a network file system shows a new folder on all nodes


def ready_dataset(config: DataConfig, rendezvous: Rendezvous, *, create: bool = True) -> Dataset:
    """Open the data set on every process; if it is missing and `create`, rank 0 prepares it while the others wait.

    Every node verifies its data: one process per node checks the digests, in place or while it copies for data.stage.

    Raises:
        UserError: on every rank, if the data cannot be prepared, is not visible on a node or differs between nodes.
    """
    dataset = _opened_everywhere(config, rendezvous, create)
    if config.soft_labels:
        dataset = rendezvous.on_all_ranks("soft labels", lambda: soft_labels.add(dataset, Path(config.soft_labels)))
    where = f"data.root {config.root}{config.soft_labels and f' or data.soft_labels {config.soft_labels}'}"
    digests = rendezvous.gather("digests", dataset.digest)
    for rank, digest in enumerate(digests):
        if digest != digests[0]:
            rendezvous.leave()
            raise UserError(
                f"node {rendezvous.hosts[rank]} (rank {rank}) has different data at {where} than node "
                f"{rendezvous.hosts[0]} ({digest[:12]}, not {digests[0][:12]}); prepare both from the same source."
            )
    return tuning_split(dataset) if config.tune_split else dataset


def _opened_everywhere(config: DataConfig, rendezvous: Rendezvous, create: bool) -> Dataset:
    root = Path(config.root)

    def prepare_on_main() -> None:
        if rendezvous.is_main:
            _make(root, config.source, create)

    rendezvous.on_all_ranks("prepared", prepare_on_main, PATIENCE)
    rendezvous.on_all_ranks("visible", lambda: _wait_for(root))
    if not config.stage:
        verify = os.environ.get("LOCAL_RANK", "0") == "0"
        return rendezvous.on_all_ranks("data", lambda: open_dataset(root, verify=verify), PATIENCE)
    token = rendezvous.gather("stage", secrets.token_hex(4))[0]  # rank 0's token
    with ExitStack() as stack:
        return rendezvous.on_all_ranks(
            "data",
            lambda: open_dataset(stack.enter_context(staging.staged(root, config.stage, token)), verify=False),
            PATIENCE,
        )


def _make(root: Path, source: str, create: bool) -> None:
    """Prepare the data set unless it exists.

    If several runs start without data, one of them downloads while the others wait. Each run decodes, and all use the
    result of the first to finish. Tiny ImageNet is written only to a folder with the name of the archive, because a
    folder with another name is assumed to be for other data.

    Raises:
        UserError: the data cannot be prepared, `root` has another name, or it must exist (`create` is False).
    """
    other_name = source == "tiny-imagenet" and root.name != Path(ARCHIVE).stem
    if (other_name or not create) and not is_prepared(root):
        raise not_prepared(root, source)
    deadline = time.monotonic() + PATIENCE
    while not is_prepared(root):
        try:
            prepare_missing(root, source)
        except UserError as error:
            if isinstance(error, Busy) and time.monotonic() < deadline:
                time.sleep(1)
            elif not is_prepared(root):  # another run was faster
                raise


def _wait_for(root: Path) -> None:
    deadline = time.monotonic() + VISIBLE
    while not is_prepared(root):
        if time.monotonic() > deadline:
            raise UserError(
                f"data.root {root}, prepared by rank 0, is not visible on this node; "
                "put it on a file system that all nodes share, or prepare it on every node."
            )
        time.sleep(0.2)
