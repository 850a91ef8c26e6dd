"""A network as one file that runs without this package: ONNX, or a program of torch.export.

Input `images` (N, S, S, 3) uint8 RGB, output `probabilities` (N, K) float32, for any N and the S px of the training
images; resizing to the resolution of the network and normalisation are inside.
The metadata of the file hold two JSON lists in label order: `names`, readable, and `classes`, the ids.
"""

import io
import json
import logging
import warnings
from dataclasses import replace
from importlib import import_module

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyimnet.errors import UserError
from tinyimnet.evaluation import analysis
from tinyimnet.evaluation.weights import Trained

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}  # and the suffix of the file
TOLERANCE = 1e-4  # of a probability; rounding in fp32 gives 1e-6


class Resize(nn.Module):
    """Resize (N, C, S, S) float32 pixels from 0 to 255 to R px with the bits of augment.resize on a CPU.

    ONNX has such a filter too, but with it ONNX Runtime gives 0.5 % of the pixels another value. Here each axis is a
    product with integer weights, rounded and clipped. The sums are below 2**24, so float32 holds them exactly.
    """

    weights: Tensor

    def __init__(self, size: int, resolution: int):
        super().__init__()
        axis = torch.eye(size, dtype=torch.float64)[None, None]
        weights = F.interpolate(axis, size=(resolution, size), mode="bicubic", antialias=True)[0, 0]
        # torch scales the largest weight for uint8 to 15 bits (compute_index_ranges_int16_weights, UpSampleKernel.cpp).
        bits = next(bits for bits in range(22) if int(0.5 + weights.max().item() * 2 ** (bits + 1)) >= 2**15)
        self.one = 2.0**bits
        self.register_buffer("weights", (weights * self.one).round().float())

    def forward(self, images: Tensor) -> Tensor:
        """Resize first the rows, then the columns."""
        for _ in range(2):
            images = (self.weights @ images.transpose(2, 3) / self.one + 0.5).floor().clamp(0, 255)
        return images


class Classifier(nn.Module):
    """Map (N, S, S, 3) uint8 RGB to probabilities (N, K) float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, trained: Trained):
        super().__init__()
        self.network = trained.model
        same = trained.resolution == trained.image_size
        self.resize = nn.Identity() if same else Resize(trained.image_size, trained.resolution)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(trained, name)).mul(255).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Compute the probabilities of `images`."""
        pixels = self.resize(images.movedim(3, 1).float())
        return self.network((pixels - self.mean) / self.std).softmax(1)


def exported(trained: Trained, form: str) -> bytes:
    """The content of the file, in a form of FORMATS, without paths of this machine; `trained` is on the CPU.

    Raises:
        UserError: a package is missing.
    """
    metadata = {"names": json.dumps(trained.names), "classes": json.dumps(trained.classes)}
    size = trained.image_size
    two = torch.zeros(2, size, size, 3, dtype=torch.uint8)  # torch.export fixes a dimension of 0 or 1
    dynamic = {"images": {0: torch.export.Dim("batch")}}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells that torchvision is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from torch, about its own code
        program = torch.export.export(Classifier(trained).eval(), (two,), dynamic_shapes=dynamic)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        return _to_onnx(program, metadata) if form == "onnx" else _to_torch(program, metadata)


def _to_torch(program: torch.export.ExportedProgram, metadata: dict[str, str]) -> bytes:
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=metadata)
    return content.getvalue()


def _to_onnx(program: torch.export.ExportedProgram, metadata: dict[str, str]) -> bytes:
    try:
        for package in ("onnx", "onnxscript", "onnxruntime"):  # the last one for the comparison
            import_module(package)
    except ImportError as error:
        raise UserError(f"--format onnx needs the package {error.name}; install it: pip install '.[onnx]'.") from None
    onnx = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes={"images": {0: "batch"}},  # the name of the dimension in the file
        verbose=False,
    )
    assert onnx
    onnx.model.metadata_props.update(metadata)
    for node in onnx.model.graph:
        node.metadata_props.clear()
    return onnx.model_proto.SerializeToString()


def probabilities(content: bytes, form: str, images: np.ndarray) -> np.ndarray:
    """Run a file that `exported` gave on (N, S, S, 3) uint8 RGB; returns (N, K) float32."""
    if form == "onnx":
        import onnxruntime

        return onnxruntime.InferenceSession(content).run(None, {"images": images})[0]
    with torch.no_grad():
        return torch.export.load(io.BytesIO(content)).module()(torch.from_numpy(images)).numpy()


def largest_difference(trained: Trained, content: bytes, form: str, images: np.ndarray) -> float:
    """The largest difference between a probability by an exported file and by the network in fp32.

    Raises:
        UserError: they disagree about the most probable class of an image, or by more than TOLERANCE.
    """
    own = analysis.log_probabilities(replace(trained, precision="fp32"), images).exp().numpy()
    its = probabilities(content, form, images)
    difference, disagree = float(np.abs(its - own).max()), int((its.argmax(1) != own.argmax(1)).sum())
    if disagree or not difference <= TOLERANCE:  # also catches NaN
        raise UserError(
            f"the exported network differs from {trained.origin} in the top-1 of {disagree} of {len(images)} images "
            f"and by up to {difference:.1e} in a probability; use the versions of constraints.txt, or another --format."
        )
    return difference
