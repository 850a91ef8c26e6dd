"""Run folders with curves, and the HTML report of them."""

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
    """Write a run folder with 100 steps and one evaluation per epoch; `more` is added to every line."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config or Config())))))
    always = {"perf/step_ms": 20.0, "perf/eval_s": 1.0, **more}
    lines = [
        {STEP: 100 * i, "epoch": i, "train/loss": 5 / i, "val/ema_top1": value, **always}
        for i, value in enumerate(top1, 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def begin(run: Path, *steps: int) -> None:
    """Write attempts that start at these steps."""
    attempt = {"started": 0, "job": "", "restart": 0, "nodes": ["a"], "processes": 1, "total_steps": 300}
    lines = [json.dumps(attempt | {"step": step}) + "\n" for step in steps]
    (run / "attempts.jsonl").write_text("".join(lines))


def page(*arguments: object) -> str:
    """Return the HTML that `tinyimnet report ARGUMENTS` writes."""
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    args = parser.parse_args(list(map(str, arguments)))
    assert report.main(args) == 0
    return (args.out or args.runs[0] / "report.html").read_text()


def titles(text: str) -> list[str]:
    """Return the chart titles of a page."""
    found = re.findall(r'<figure class="chart">\s*<figcaption><h3>(.*?)</h3>', text)
    return [html.unescape(title) for title in found]


def chart(text: str, title: str) -> str:
    """Return the figure with this title."""
    return next(part for part in text.split('<figure class="chart">') if f"<h3>{title}</h3>" in part)
