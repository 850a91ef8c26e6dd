"""MODEL_CARD.md: what the weights of a run are, how they came about, how good they are and how to use them.

The sections are those of Mitchell et al. 2019, Model Cards for Model Reporting, arXiv 1810.03993.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyimnet.config import NO_RECIPE, Config, flatten

CARD = "MODEL_CARD.md"


def model_card(config: dict[str, Any], info: dict[str, Any], results: dict[str, Any]) -> str:
    """The card as Markdown.

    Args:
        config: the configuration, as nested dictionaries.
        info: run_info.json.
        results: DONE.
    """
    recipe, default = flatten(config), flatten(asdict(Config()))
    rows = [_row(key, value, default[key]) for key, value in recipe.items() if not key.startswith(NO_RECIPE)]
    devices = ", ".join(sorted(set(info["gpus"]))) or "CPU"
    best = "| best.safetensors, the best epoch; these images chose it | {best_step:,} | {best_ema_top1:.2f} % | |\n"
    best = best.format(**results) if "best_step" in results else ""
    code = f"{info['git_commit'] or 'unknown'}{' with changes' if info['git_modified'] else ''}"
    judges = "training images that data.tune_split held out" if recipe["data.tune_split"] else "validation images"
    return f"""# {info["parameters"]:,} parameters on {info["dataset"]}

A convolutional network for {info["classes"]} classes of 64 x 64 pixels, trained {_origin(recipe)}. It has {info["parameters"]:,} parameters and takes {info["macs"] / 1e6:.1f} million
multiply-accumulates an image.

## Results

On the {info["val_images"]:,} {judges}, which the training never saw:

| weights | step | top-1 | top-5 |
|---|---|---|---|
| final.safetensors, moving average of the weights | {results["steps"]:,} | {results["val/ema_top1"]:.2f} % | {results["val/ema_top5"]:.2f} % |
| the same, averaged with the mirrored image | {results["steps"]:,} | {results["val/ema_top1_flip"]:.2f} % | |
{best}| without the moving average (not kept) | {results["steps"]:,} | {results["val/top1"]:.2f} % | {results["val/top5"]:.2f} % |

Expected calibration error of final.safetensors (15 bins): {results["ece"]:.2f} %. One run with seed {recipe["run.seed"]}.

## Data

{info["dataset"]}: {info["train_images"]:,} training images of {info["classes"]} classes.

## How to load

With the code of commit {code}:

```python
from pathlib import Path
from tinyimnet.evaluation.weights import load_trained

trained = load_trained(Path("final.safetensors"))  # .model in eval mode, .classes, .names, .mean, .std
```

`python -m tinyimnet predict final.safetensors --images FOLDER --out labels.csv` does it for a folder of images.

## Recipe

{results["epochs"]} epochs, {results["steps"]:,} steps of {recipe["train.global_batch_size"]} images. What differs from the default is in bold.

| setting | value |
|---|---|
{chr(10).join(rows)}

Its last start had {info["world_size"]} process(es) on {len(info["nodes"])} node(s) ({devices}) and torch {info["versions"]["torch"]}.

## Limits

Made to compare training methods. It knows 64 x 64 pixels and its own classes alone, and takes anything else for one of them.
"""


def _origin(recipe: dict[str, Any]) -> str:
    begun, soft_labels = Path(recipe["train.init_from"]).name, Path(recipe["data.soft_labels"]).name
    besides = f"and, beside their labels, on what other networks say of them ({soft_labels})"
    return (
        f"from {begun or 'random weights'} on the images named\nbelow {besides if soft_labels else 'and nothing else'}"
    )


def _row(key: str, value: Any, default: Any) -> str:
    same = value == (list(default) if isinstance(default, tuple) else default)
    return f"| {key} | {value} |" if same else f"| **{key}** | **{value}** |"
