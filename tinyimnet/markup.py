"""The HTML of a report: one document that loads nothing, with tables, pictures and folded parts."""

import base64
import hashlib
import html
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--text:#1b1f24;--soft:#5b6470;--line:#d9dee5;--grid:#e8ebef;
--good:#12734a;--bad:#b42318;--c0:#1f5fc4;--c1:#c2500a;--c2:#0f7f5f;--c3:#8a35a8;--c4:#a06a00;--c5:#0b7285;--c6:#c0266b;--c7:#5a6b00}
@media(prefers-color-scheme:dark){:root{--page:#101317;--card:#181c22;--text:#e7eaee;--soft:#9aa4b1;--line:#313843;
--grid:#272d36;--good:#5fd39b;--bad:#ff8a7a;--c0:#74a9ff;--c1:#ff9d5c;--c2:#4fd0a4;--c3:#d69cf2;--c4:#e6bd4a;--c5:#5cc9de;
--c6:#ff86b6;--c7:#b7cf55}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:15px/1.5 system-ui,sans-serif}
main{max-width:1360px;margin:auto;padding:20px 16px 48px}
h1{margin:0;font-size:26px;line-height:1.25;overflow-wrap:anywhere}h2{margin:36px 0 12px;font-size:20px}
h3{margin:0;font-size:15px}h1+p{margin:4px 0 0}a{color:var(--c0)}
p{max-width:80ch}.soft,.note{color:var(--soft)}.good{color:var(--good)}.bad{color:var(--bad)}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin-top:12px}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(136px,1fr));gap:10px;margin:20px 0 14px}
.tiles div,figure,details,.card{background:var(--card);border:1px solid var(--line);border-radius:8px}
.tiles div{padding:10px 12px;min-width:0;overflow-wrap:anywhere}.tiles dt{color:var(--soft);font-size:13px}.tiles dd{margin:0;font-size:13px;color:var(--soft)}
.tiles dd:nth-of-type(1){font-size:22px;font-weight:600;line-height:1.3;color:var(--text);font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:14px}
figure{margin:0;padding:12px;min-width:0}
.chart{display:grid;grid-row:span 3;grid-template-rows:subgrid;gap:6px}
figcaption{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 12px;align-items:baseline}
.at{color:var(--soft);font-size:13px;font-variant-numeric:tabular-nums}
.legend{display:flex;flex-wrap:wrap;gap:0 16px;margin:0;padding:0;list-style:none;font-size:13px;align-content:start}
.legend li{overflow-wrap:anywhere}.legend b{display:inline-block;min-width:5ch;font-variant-numeric:tabular-nums}
i{display:inline-block;width:18px;margin-right:6px;border-top:3px solid var(--c);vertical-align:middle}
i.d1{border-top-style:dashed}i.d2{border-top-style:dotted}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}.c5{--c:var(--c5)}.c6{--c:var(--c6)}
.c7{--c:var(--c7)}
svg{display:block;overflow:visible;width:100%;touch-action:pan-y}svg text{fill:var(--soft);font-size:12px;text-anchor:middle}
svg .left text{text-anchor:end}svg path,polyline{fill:none;stroke-linejoin:round}
polyline{stroke:var(--c);stroke-width:1.6}polyline.d1{stroke-dasharray:6 3}polyline.d2{stroke-dasharray:2 3}
.dots{stroke:var(--c);stroke-width:5;stroke-linecap:round}.band{fill:var(--c);opacity:.18}
.part{fill:color-mix(in srgb,var(--c) 55%,var(--card))}
.grid{stroke:var(--grid)}.axis{stroke:var(--soft)}path.life{stroke:var(--c,var(--soft));stroke-dasharray:4 3;opacity:.7}
.cursor{stroke:var(--text);visibility:hidden}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:4px 18px 4px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--grid)}
th{color:var(--soft);font-weight:500}.r{text-align:right}th,.r{white-space:nowrap}td:not(.r){min-width:11ch}
th:first-child,td:first-child{position:sticky;left:0;background:var(--card)}
.charts .card{grid-row:span 3;min-width:0}@media(min-width:760px){.charts .card{grid-column:span 2}}
.pictures{columns:3 400px;column-gap:14px}.pictures figure{break-inside:avoid;margin-bottom:14px}
.card{padding:12px}.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:14px;align-items:start}
details{padding:0 12px;margin:10px 0}summary{padding:10px 0;cursor:pointer;font-weight:600}details .scroll{padding-bottom:12px}.card details{border:0;padding:0;margin:0}
img{display:block;max-width:100%;height:auto;margin-top:8px;border-radius:4px;background:#fff}
@media(max-width:600px){svg text{font-size:14px}h1{font-size:22px}.tiles{grid-template-columns:1fr 1fr}
img.wide{max-width:none;width:max(100%,620px)}}
"""
# The pointer moves over a chart: its legend shows the values there, each the newest of its curve up to that step.
SCRIPT = """
for (const figure of document.querySelectorAll(".chart")) {
  const svg = figure.querySelector("svg"), cursor = svg.querySelector(".cursor"), at = figure.querySelector(".at");
  const left = +svg.dataset.left, right = +svg.dataset.right, last = +svg.dataset.last, epoch = +svg.dataset.epoch;
  const cells = [...figure.querySelectorAll("b")], before = [at, ...cells].map(cell => cell.textContent);
  const curves = cells.map((_, i) => svg.querySelector(`[data-curve="${i}"]`).dataset).map(data =>
    ({steps: data.steps.split(" ").map(Number), values: data.values.split(" ")}));
  const finest = curves.reduce((a, b) => b.steps.length > a.steps.length ? b : a);
  const distance = (a, step) => Math.abs(a - step);
  const show = event => {
    const box = svg.getBoundingClientRect(), place = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const aim = (place - left) / (right - left) * last;
    const step = finest.steps.reduce((a, b) => distance(b, aim) < distance(a, aim) ? b : a);
    cursor.setAttribute("transform", `translate(${left + step / last * (right - left)} 0)`);
    cursor.style.visibility = "visible";
    at.textContent = `step ${step.toLocaleString("en")}` + (epoch ? `, epoch ${+(step / epoch).toPrecision(4)}` : "");
    curves.forEach((curve, i) => cells[i].textContent = curve.values[curve.steps.findLastIndex(s => s <= step)] ?? "-");
  };
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerleave", () => {
    cursor.style.visibility = "hidden";
    [at, ...cells].forEach((cell, i) => cell.textContent = before[i]);
  });
}
"""


class Html(str):
    """Text that is HTML already and is not escaped again."""


def escaped(value: Any) -> str:
    """A value as HTML text, also inside quotes."""
    return value if isinstance(value, Html) else html.escape(str(value))


def number(value: float) -> str:
    """1,000 / 34.2 / 0.001234: four digits that count; whole numbers in full."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def document(title: str, head: str, sections: Mapping[str, str]) -> str:
    """The page. Its policy forbids a browser to load anything and to run any script but this one.

    Args:
        title: of the window.
        head: above the first section.
        sections: by name; an empty one is left out.
    """
    shown = {name: body for name, body in sections.items() if body}
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in shown)
    parts = "\n".join(f'<h2 id="{name.lower()}">{name}</h2>\n{body}' for name, body in shown.items())
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>{head}<nav>{links}</nav>\n{parts}</main><script>{SCRIPT}</script></body></html>\n"
    )


def tiles(figures: Iterable[tuple[str, str, str]]) -> str:
    """Key figures: what, how much, and a word on it."""
    cells = (
        f"<div><dt>{escaped(what)}</dt><dd>{escaped(value)}</dd><dd>{escaped(word)}</dd></div>"
        for what, value, word in figures
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], align: str) -> str:
    """A table that scrolls by itself where it is wider than the page; `align` has l or r for each column."""
    sides = ["" if side == "l" else ' class="r"' for side in align]

    def line(tag: str, cells: Sequence[Any]) -> str:
        inside = "".join(
            f"<{tag}{side}>{escaped(cell)}</{tag}>" for side, cell in zip(sides, cells, strict=True)
        )
        return f"<tr>{inside}</tr>"

    body = "".join(line("td", row) for row in rows)
    return (
        f'<div class="scroll"><table><thead>{line("th", header)}</thead><tbody>{body}</tbody></table></div>'
    )


def card(title: str, body: str) -> str:
    """A part with a frame and a title."""
    return f'<div class="card"><h3>{escaped(title)}</h3>{body}</div>'


def columns(parts: str) -> str:
    """Parts side by side where there is room."""
    return f'<div class="pair">{parts}</div>'


def folded(title: str, body: str) -> str:
    """A part that is opened by its title."""
    return f"<details><summary>{escaped(title)}</summary>{body}</details>"


def picture(file: Path, caption: str, *, wide: bool = False) -> str:
    """A PNG inside the page; empty where there is none. `wide`: it scrolls on a phone, because it holds small text."""
    if not file.exists():
        return ""
    content = file.read_bytes()
    width, height = struct.unpack(">II", content[16:24])  # of the IHDR chunk, which comes first
    data = base64.b64encode(content).decode()
    kind = ' class="wide"' if wide else ""
    return (
        f'<figure><figcaption><h3>{escaped(caption)}</h3></figcaption><div class="scroll"><img{kind} '
        f'alt="{escaped(caption)}" width="{width}" height="{height}" src="data:image/png;base64,{data}"></div></figure>'
    )
