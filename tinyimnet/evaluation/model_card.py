"""MODEL_CARD.md: what the weights of a run are, how they were trained, how accurate they are and how to use them.

The sections are those of Mitchell et al. 2019, Model Cards for Model Reporting, arXiv 1810.03993.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyimnet.config import NO_RECIPE, Config, flatten
from tinyimnet.console import counted

CARD = "MODEL_CARD.md"
SQUARE = {"crop": "ImageOps.fit", "pad": "ImageOps.pad", "stretch": "Image.Image.resize"}  # as images.FITS


def model_card(config: dict[str, Any], info: dict[str, Any], results: dict[str, Any]) -> str:
    """The model card as Markdown.

    Args:
        config: the configuration, as nested dictionaries.
        info: the contents of run_info.json.
        results: the contents of DONE.
    """
    recipe, default = flatten(config), flatten(asdict(Config()))
    rows = [_row(key, value, default[key]) for key, value in recipe.items() if not key.startswith(NO_RECIPE)]
    size, devices = info["image_size"], ", ".join(sorted(set(info["gpus"]))) or "CPU"
    step, percent = f"{results['steps']:,}", {key: f"{value:.2f} %" for key, value in results.items() if "top" in key}
    code = f"{info['git_commit'] or 'unknown'}{' with uncommitted changes' if info['git_modified'] else ''}"
    judges = "training images held out by data.tune_split" if recipe["data.tune_split"] else "validation images"
    return f"""# A CNN with {info["parameters"]:,} parameters for {info["dataset"]}

A convolutional network for {info["classes"]} classes of {size} x {size} images, trained {origin(recipe)}.
It has {info["parameters"]:,} parameters and needs {info["macs"] / 1e6:.1f} million multiply-accumulates per image.
{upsampling(size, info["resolution"])}
## Results

Measured on {info["val_images"]:,} {judges} that were not used for training:

| weights | step | top-1 | top-5 |
|---|---|---|---|
| final.safetensors, EMA weights | {step} | {percent["val/ema_top1"]} | {percent["val/ema_top5"]} |
| the same with flip averaging | {step} | {percent["val/ema_top1_flip"]} | |
{_best(results)}| raw weights (not kept) | {step} | {percent["val/top1"]} | {percent["val/top5"]} |

Expected calibration error of final.safetensors (15 bins): {results["ece"]:.2f} %.
One run with seed {recipe["run.seed"]}.

## Data

{info["dataset"]}: {info["train_images"]:,} training images of {info["classes"]} classes.

## How to load

Use the code of commit {code}:

```python
from pathlib import Path
from tinyimnet.evaluation.weights import load_trained

trained = load_trained(Path("final.safetensors"))  # .model in eval mode, .resolution, .classes, .names, .mean, .std
```

`tinyimnet predict final.safetensors --images FOLDER --out labels.csv` classifies a folder of images.

{elsewhere("final.safetensors", size, info.get("fit"))}
## Recipe

{counted(results["epochs"], "epoch")}, {step} steps of {recipe["train.global_batch_size"]} images.
Settings that differ from their defaults are in bold.

| setting | value |
|---|---|
{chr(10).join(rows)}

The last attempt used {info["world_size"]} process(es) on {len(info["nodes"])} node(s) ({devices}) and
torch {info["versions"]["torch"]}.

{limits(info["classes"], size)}"""


def elsewhere(weights: str, size: int, fit: str | None = None) -> str:
    """How to use a weights file without this program, on pictures scaled to `size` px as `fit` says (default: crop)."""
    return f"""`tinyimnet export {weights} --out model.onnx` writes a file that needs neither this program nor torch:

```python
import json
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

network = onnxruntime.InferenceSession("model.onnx")
square = {SQUARE[fit or "crop"]}(Image.open("picture.jpg").convert("RGB"), ({size}, {size}))
(probabilities,) = network.run(None, {{"images": np.asarray(square)[None]}})
names = json.loads(network.get_modelmeta().custom_metadata_map["names"])
print(names[probabilities[0].argmax()], probabilities[0].max())
```
"""


def upsampling(size: int, resolution: int) -> str:
    """The sentence about a network that sees images of `size` px enlarged to `resolution`; empty if they are equal."""
    sees = f"It sees images enlarged to {resolution} x {resolution}; the commands and exported files below do that.\n"
    return sees if resolution != size else ""


def limits(n_classes: int, size: int) -> str:
    """What a network is not meant for."""
    return f"""## Limits

This model is meant for comparing training methods. It was trained on {size} x {size} images of its {n_classes} classes
only, and assigns every other image to one of them.
"""


def _best(results: dict[str, Any]) -> str:
    row = "| best.safetensors, EMA weights of the best epoch, selected on these images "
    row += "| {best_step:,} | {best_ema_top1:.2f} % | |\n"
    return row.format(**results) if "best_step" in results else ""


def origin(recipe: dict[str, Any]) -> str:
    """From which weights and on which targets a network was trained; `recipe` is a flat configuration."""
    begun, soft_labels = Path(recipe["train.init_from"]).name, Path(recipe["data.soft_labels"]).name
    targets = f"with their labels and with soft labels of other networks ({soft_labels})"
    besides = targets if soft_labels else "and no other data"
    return f"from {begun or 'random weights'} on the images described\nbelow {besides}"


def _row(key: str, value: Any, default: Any) -> str:
    same = value == (list(default) if isinstance(default, tuple) else default)
    return f"| {key} | {value} |" if same else f"| **{key}** | **{value}** |"
