"""Trained weights with the metadata to rebuild and use the network, from .safetensors files or checkpoints."""

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tinyimnet.config import Config, ModelConfig
from tinyimnet.console import console
from tinyimnet.data.dataset import IMAGE_SIZE, Dataset
from tinyimnet.data.resolution import run_resolutions
from tinyimnet.errors import UserError
from tinyimnet.files import check_readable, exists, no_such, write_atomically
from tinyimnet.model.batchnorm import float_buffers, unflatten
from tinyimnet.model.network import build_model, resolve_width
from tinyimnet.run import checkpoint

FINAL = "final.safetensors"
BEST = "best.safetensors"
NO_SHAPE = ("drop_path", "max_parameters", "whiten_stem")  # keys of a network that change no shape


@dataclass(frozen=True)
class Trained:
    """A network in eval mode and the metadata to use it; on the CPU, except in a run that exports it.

    Attributes:
        model: the network.
        origin: the file or checkpoint folder that the weights are from.
        step: optimizer steps that the weights were trained for.
        classes: class ids in label order.
        names: readable class names.
        mean, std: normalisation of the input, in [0, 1].
        precision: train.precision.
        architecture: its ModelConfig as a dictionary, with the resolved width.
        fit: how images of other sizes were scaled, one of images.FITS, or None.
        image_size: width and height in px of the images that the network was trained on.
        resolution: width and height in px to which they are resized before the network sees them.
    """

    model: nn.Module
    origin: Path
    step: int
    classes: tuple[str, ...]
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    precision: str
    architecture: dict[str, Any]
    fit: str | None = None
    image_size: int = IMAGE_SIZE
    resolution: int = IMAGE_SIZE


def metadata_of(config: Config, dataset: Dataset) -> dict:
    """Metadata stored with weights, except the step.

    A network is used at the resolution of its last training step, but at least at that of the images.
    """
    resolutions = run_resolutions(config, dataset)
    resolution = max(dataset.image_size, int(resolutions[-1]))
    return {
        # Stores the resolved width: a later width search may find a different one.
        "model": asdict(resolve_width(config.model, len(dataset.classes))),
        "precision": config.train.precision,
        "classes": dataset.classes,
        "names": dataset.names,
        "mean": dataset.mean,
        "std": dataset.std,
        "fit": dataset.fit,
        "image_size": dataset.image_size,
        "resolution": resolution,
        "resolution_after": int((resolutions < resolution).sum()),  # steps at lower resolutions
        "data": dataset.digest,
    }


def save_weights(file: Path, model: nn.Module, step: int, metadata: dict) -> None:
    """Write a .safetensors file: the weights, and `metadata` with the step as JSON in its header.

    The same run gives the same bytes: the header has one key, because safetensors writes several in random order.
    """
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    header = {"metadata": json.dumps({**metadata, "step": step})}
    write_atomically(file, save(tensors, header))


def save_best(run_dir: Path) -> int:
    """Write best.safetensors, the averaged weights of checkpoints/best.pt; returns their step.

    Raises:
        UserError: the checkpoint is damaged.
    """
    state = checkpoint.load(run_dir / "checkpoints" / "best.pt")
    best = _from_checkpoint(run_dir / "checkpoints", state)
    save_weights(run_dir / BEST, best.model, best.step, json.loads(state["metadata"]))
    return best.step


def load_trained(run: Path) -> Trained:
    """Load the averaged weights of a run folder or of a .safetensors file.

    A finished run is loaded from final.safetensors, an unfinished one from its newest intact checkpoint.

    Raises:
        UserError: there are no weights, or the file is damaged.
    """
    file = run if run.suffix == ".safetensors" else run / FINAL
    if exists(file) and (file == run or exists(run / "DONE")):
        return _from_safetensors(file)
    if not exists(run):
        raise UserError(no_such(run))
    if not exists(run / "config.yaml"):
        raise UserError(f"{run} is not a run folder: it has neither {FINAL} nor config.yaml.")
    state = checkpoint.load_newest(run / "checkpoints")
    if state is None:
        raise UserError(f"{run} has no checkpoint yet; wait for its first evaluation.")
    return _from_checkpoint(run / "checkpoints", state)


def initial_weights(run: Path, model: nn.Module, metadata: dict) -> dict[str, Tensor]:
    """Load the weights that `model` starts from (train.init_from), using `load_trained`.

    For other classes, or the same in another order, `model` keeps its own classifier; one line says so.

    Args:
        run: a run folder or a .safetensors file.
        model: the network to initialise.
        metadata: the metadata of its run (`metadata_of`).

    Raises:
        UserError: no weights were found, or they are for a different network.
    """
    try:
        found = load_trained(run)
    except UserError as error:
        raise UserError(f"train.init_from cannot be used: {error}") from None
    weights, own = found.model.state_dict(), model.state_dict()
    if other_classes := list(found.classes) != list(metadata["classes"]):
        weights |= {name: tensor for name, tensor in own.items() if name.startswith("classifier.")}
    shapes, own_shapes = ({name: tuple(t.shape) for name, t in each.items()} for each in (weights, own))
    if unlike := sorted(name for name, _ in shapes.items() ^ own_shapes.items()):
        raise UserError(
            f"train.init_from {run} is a different network ({unlike[0]}: {shapes.get(unlike[0], 'none')}, here "
            f"{own_shapes.get(unlike[0], 'none')}); add {_options(found.architecture, metadata['model'])}."
        )
    if other_classes:
        there, here = len(found.classes), len(metadata["classes"])
        console.print(
            f"train.init_from {run} does not have the classes of data.root in the same order ({there} there, {here} "
            "here); the classifier starts anew"
        )
    return weights


def _options(wanted: dict[str, Any], own: dict[str, Any]) -> str:
    """The options that give a network the shapes of another, as for a shell.

    The width is always among them: `auto` would spend what other options leave of the budget.
    """
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in wanted.items()}
    same = {key for key in own if key != "width" and json.dumps(own[key]) == json.dumps(wanted.get(key))}
    return " ".join(
        shlex.quote(f"--model.{key}={text}") for key, text in texts.items() if key not in {*same, *NO_SHAPE}
    )


def _from_checkpoint(origin: Path, state: dict[str, Any]) -> Trained:
    found = _rebuild(origin, state["step"], json.loads(state["metadata"]), state["ema"])
    # Averaged over ranks, as in the evaluations of the run itself.
    unflatten(state["by_rank"]["ema"].mean(0), float_buffers(found.model))
    return found


def _from_safetensors(file: Path) -> Trained:
    check_readable(file)
    try:
        with safe_open(file, "pt") as content:
            metadata = json.loads(content.metadata()["metadata"])
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a dict)
        return _rebuild(file, metadata["step"], metadata, tensors)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is damaged or was not written by this program ({error}); give another file or a run folder."
        ) from None


def _rebuild(origin: Path, step: int, metadata: dict, tensors: dict[str, Tensor]) -> Trained:
    shape: dict[str, Any] = metadata["model"]
    config = ModelConfig(**{**shape, "widths": tuple(shape["widths"]), "depths": tuple(shape["depths"])})
    model = build_model(config, len(metadata["classes"]))
    model.load_state_dict(tensors)
    return as_trained(model.eval().requires_grad_(False), origin, step, metadata)


def as_trained(model: nn.Module, origin: Path, step: int, metadata: dict) -> Trained:
    """Combine a network with its metadata.

    Weights from before the run reached its last resolution, as the best ones may be, are for the images as they are.
    """
    size = metadata.get("image_size", IMAGE_SIZE)  # absent from older files, as the resolution and the fit are
    reached = step > metadata.get("resolution_after", 0)
    return Trained(
        model=model,
        origin=origin,
        step=step,
        classes=tuple(metadata["classes"]),
        names=tuple(metadata["names"]),
        mean=tuple(metadata["mean"]),
        std=tuple(metadata["std"]),
        precision=metadata["precision"],
        architecture=metadata["model"],
        fit=metadata.get("fit"),
        image_size=size,
        resolution=metadata.get("resolution", size) if reached else size,
    )
