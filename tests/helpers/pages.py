"""Run folders with curves, and the page that the report command makes of them."""

import argparse
import html
import json
import re
from dataclasses import asdict
from pathlib import Path

import yaml

from tinyimnet.commands import report
from tinyimnet.config import Config
from tinyimnet.run.metrics import STEP


def folder(path: Path, top1: tuple[float, ...] = (10.0, 20.0), *, config: Config | None = None, **more: float) -> Path:
    """A run folder with 100 steps and an evaluation in each epoch; `more` is added to every line."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config or Config())))))
    lines = [
        {STEP: 100 * i, "epoch": i, "train/loss": 5 / i, "perf/step_ms": 20.0, "perf/eval_s": 1.0, "val/ema_top1": value, **more}
        for i, value in enumerate(top1, 1)
    ]  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def begin(run: Path, *steps: int) -> None:
    """Attempts that began at these steps."""
    attempt = {"started": 0, "job": "", "restart": 0, "nodes": ["a"], "processes": 1, "total_steps": 300}
    lines = [json.dumps(attempt | {"step": step}) + "\n" for step in steps]
    (run / "attempts.jsonl").write_text("".join(lines))


def page(*arguments: object) -> str:
    """The page of `python -m tinyimnet report ARGUMENTS`."""
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    args = parser.parse_args(list(map(str, arguments)))
    assert report.main(args) == 0
    return (args.out or args.runs[0] / "report.html").read_text()


def titles(text: str) -> list[str]:
    """Those of the charts of a page."""
    return [html.unescape(title) for title in re.findall(r'<figure class="chart">\s*<figcaption><h3>(.*?)</h3>', text)]  # fmt: skip


def chart(text: str, title: str) -> str:
    """The figure with a title."""
    return next(part for part in text.split('<figure class="chart">') if f"<h3>{title}</h3>" in part)
