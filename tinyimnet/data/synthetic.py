"""A synthetic data set that needs no download: 20 shapes x 10 fill patterns, generated from a seed.

Only shape and pattern determine the class. Colours, position, size, tilt, background, clutter and noise have the same
distributions for every class, so neither a single pixel nor a mean colour reveals it.

Shapes and patterns are functions of object coordinates, x to the right and y up, (n, 64, 64) float32, in units of the
object's radius. All masks are in [0, 1], with edges about one pixel wide.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from math import cos, hypot, pi, sin
from pathlib import Path

import numpy as np

from tinyimnet.data import writer
from tinyimnet.data.dataset import IMAGE_SIZE
from tinyimnet.errors import UserError

CHUNK = 32  # images drawn at once; one plane of them is 0.5 MB, which stays in the cache
CLUTTER = 4  # maximum number of pieces; two are always present
RADIUS = 20.0, 26.0  # of the object, in pixels
TILT = pi / 12  # maximum tilt of the object; keeps upright and diagonal stripes 15 degrees apart
NOISE = 10.0  # uniform in [-NOISE, NOISE], on a scale of 0 to 255

Plane = np.ndarray  # (n, 64, 64) float32
Shape = Callable[[Plane, Plane], Plane]  # (x, y) -> approximate distance to the edge, positive inside
Pattern = Callable[[Plane, Plane, Plane], Plane]  # (x, y, phase) -> wave; second colour where positive


def _boxes(*boxes: tuple[float, float, float, float]) -> Shape:
    """Union of boxes (left, right, low, high)."""
    inside = np.minimum.reduce
    return lambda x, y: np.maximum.reduce([inside([x - a, b - x, y - c, d - y]) for a, b, c, d in boxes])


def _length(x: Plane, y: Plane) -> Plane:
    return np.sqrt(x * x + y * y)  # several times as fast as np.hypot


def _disc(x: Plane, y: Plane, radius: float = 1.0) -> Plane:
    return radius - _length(x, y)


def _star(x: Plane, y: Plane, tips: int, notch: float) -> Plane:
    """A star with one tip up and notches at radius `notch`; a regular polygon if notch = cos(pi / tips)."""
    half = pi / tips
    r, angle = _length(x, y), np.arctan2(x, y)
    angle = np.abs(angle - 2 * half * np.rint(angle / (2 * half)))  # fold: 0 at a tip, `half` at a notch
    across, along = notch * sin(half), 1 - notch * cos(half)  # the edge runs from the tip to the notch
    return (across * (1 - r * np.cos(angle)) - along * r * np.sin(angle)) / hypot(across, along)


def _flower(x: Plane, y: Plane, petals: int) -> Plane:
    return 0.66 + 0.34 * np.cos(petals * np.arctan2(x, y)) - _length(x, y)


_SHAFT = _boxes((-0.28, 0.28, -1.0, 0.2))
SHAPES: dict[str, Shape] = {
    "disc": _disc,
    "ring": lambda x, y: 0.3 - np.abs(_disc(x, y, 0.7)),
    "triangle": partial(_star, tips=3, notch=0.5),
    "square": _boxes((-0.8, 0.8, -0.8, 0.8)),
    "pentagon": partial(_star, tips=5, notch=cos(pi / 5)),
    "4-pointed star": partial(_star, tips=4, notch=0.4),
    "5-pointed star": partial(_star, tips=5, notch=0.45),
    "clover": partial(_flower, petals=3),
    "flower": partial(_flower, petals=6),
    "crescent": lambda x, y: np.minimum(_disc(x + 0.2, y), -_disc(x - 0.35, y, 0.8)),
    "cross": _boxes((-0.3, 0.3, -1.0, 1.0), (-1.0, 1.0, -0.3, 0.3)),
    "letter L": _boxes((-0.75, -0.15, -1.0, 1.0), (-0.75, 0.75, -1.0, -0.4)),
    "letter T": _boxes((-0.3, 0.3, -1.0, 1.0), (-0.95, 0.95, 0.4, 1.0)),
    "letter U": _boxes((-0.9, -0.35, -0.9, 0.9), (0.35, 0.9, -0.9, 0.9), (-0.9, 0.9, -0.9, -0.35)),
    "letter H": _boxes((-0.9, -0.35, -0.9, 0.9), (0.35, 0.9, -0.9, 0.9), (-0.9, 0.9, -0.28, 0.28)),
    "heart": lambda x, y: _disc(x, 1.1 * y + 0.2 - 0.75 * np.sqrt(np.abs(x)), 0.9),
    "hourglass": lambda x, y: np.minimum(0.12 + 0.7 * np.abs(y) - 0.9 * np.abs(x), 0.95 - np.abs(y)),
    "half disc": lambda x, y: np.minimum(_disc(x, y + 0.45), y + 0.45),
    "pie": lambda x, y: np.minimum(_disc(x, y), 0.8 * np.abs(y) - 0.6 * x),
    "arrow": lambda x, y: np.maximum(np.minimum(y, 0.7 * (1 - y - abs(x))), _SHAFT(x, y)),
}

WAVE = 2 * pi / 0.55  # radians per unit; one wavelength is 8 to 14 pixels

PATTERNS: dict[str, Pattern] = {
    "solid": lambda x, y, phase: np.full_like(x, -1),
    "outline": lambda x, y, phase: np.full_like(x, -1),  # hollowed out by `_object`
    "gradient": lambda x, y, phase: y / 3,
    "horizontal stripes": lambda x, y, phase: np.sin(WAVE * y + phase),
    "vertical stripes": lambda x, y, phase: np.sin(WAVE * x + phase),
    "diagonal stripes": lambda x, y, phase: np.sin(WAVE * 0.7 * (x + y) + phase),
    "checker": lambda x, y, phase: 2 * np.sin(WAVE * 0.75 * x + phase) * np.sin(WAVE * 0.75 * y + phase),
    "dots": lambda x, y, phase: np.sin(WAVE * x + phase) + np.sin(WAVE * y + phase) - 0.7,
    "rings": lambda x, y, phase: np.sin(WAVE * _length(x, y) + phase),
    "spokes": lambda x, y, phase: np.sin(8 * np.arctan2(x, y) + phase),
}

CLASSES: list[tuple[str, str]] = [
    (f"s{i:03d}", f"{shape}, {pattern}") for i, (shape, pattern) in enumerate(product(SHAPES, PATTERNS))
]

# Number of uniform random numbers in [0, 1) that each part of an image uses.
UNIFORMS = {"place": 2, "radius": 1, "tilt": 1, "phase": 1, "levels": 3, "tints": 9}
UNIFORMS |= {"light": 4, "clutter": 9 * CLUTTER}


def draw(labels: np.ndarray, seed: int) -> np.ndarray:
    """Draw one image per label.

    Args:
        labels: (N,) integers in [0, 200).
        seed: non-negative. Image i depends only on (seed, i, labels[i]), not on N.

    Returns:
        (N, 64, 64, 3) uint8.
    """
    uniforms = np.random.default_rng((seed, 0)).random((len(labels), sum(UNIFORMS.values())), np.float32)
    images = np.empty((len(labels), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for start in range(0, len(labels), CHUNK):
        rows = slice(start, start + CHUNK)
        canvas = 255 * _render(labels[rows], uniforms[rows])
        noise = np.random.default_rng((seed, 1 + start))  # stream 0 draws the uniforms
        canvas += 2 * NOISE * (noise.random(canvas.shape, np.float32) - 0.5)
        images[rows] = np.rint(canvas.clip(0, 255, out=canvas), out=canvas).transpose(0, 2, 3, 1)
    return images


def _render(labels: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Render the images without noise, (n, 3, 64, 64) float32 in about [0, 1], from labels (n,) and uniforms (n, U)."""
    parts = np.split(uniforms, np.cumsum(list(UNIFORMS.values()))[:-1], axis=1)
    u = dict(zip(UNIFORMS, parts, strict=True))
    # A dark, a medium and a light colour in random order ensure contrast, and no mean reveals the class.
    levels = np.array([0.2, 0.5, 0.8], np.float32)[u["levels"].argsort(axis=1)]
    tints = u["tints"].reshape(-1, 3, 3) - 0.5
    colours = levels[:, :, None] + 0.6 * (tints - tints.mean(axis=2, keepdims=True))
    ground, first, second = colours.transpose(1, 0, 2)

    canvas = np.repeat(ground, IMAGE_SIZE**2, axis=1).reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)
    x, _ = _axes(np.full_like(u["place"], IMAGE_SIZE / 2), 2 * pi * u["light"][:, 0])
    _paint(canvas, x / IMAGE_SIZE + 0.5, ground + 0.4 * (u["light"][:, 1:] - 0.5))
    for i, piece in enumerate(np.split(u["clutter"], CLUTTER, axis=1)):
        _paint(canvas, _clutter(piece, always=i < 2), 0.1 + 0.8 * piece[:, 6:])

    mask, fill = _object(labels, u)
    _paint(canvas, mask, first)
    _paint(canvas, mask * fill, second)
    return canvas


def _axes(centre: np.ndarray, angle: np.ndarray) -> tuple[Plane, Plane]:
    """Coordinates x and y (up) in pixels from `centre` (n, 2), in axes rotated by `angle` (n,) radians."""
    pixels = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5
    x, y = pixels[None, None, :] - centre[:, 0, None, None], centre[:, 1, None, None] - pixels[None, :, None]
    c, s = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    return c * x + s * y, c * y - s * x


def _paint(canvas: np.ndarray, mask: Plane, colour: np.ndarray) -> None:
    """Blend `colour` (n, 3) into `canvas` (n, 3, 64, 64) in place, with `mask` as the opacity."""
    layer = colour[:, :, None, None] - canvas
    layer *= mask[:, None]
    canvas += layer


def _clutter(piece: np.ndarray, always: bool) -> Plane:
    """Mask of a disc or round-ended bar, from (n, 9) uniforms; present in all images if `always`, else in half."""
    there = always | (piece[:, 5] < 0.5)
    x, y = _axes(IMAGE_SIZE * piece[:, :2], 2 * pi * piece[:, 2])
    length = 20 * np.maximum(piece[:, 3] - 0.5, 0)  # half of the pieces are discs
    radius = np.where(there, 1.5 + 3 * piece[:, 4], -1)
    distance = _length(np.maximum(np.abs(x) - length[:, None, None], 0), y)
    return (0.5 + radius[:, None, None] - distance).clip(0, 1)


def _object(labels: np.ndarray, u: dict[str, np.ndarray]) -> tuple[Plane, Plane]:
    """Mask of the object, and share of the second colour at each pixel."""
    radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * u["radius"]
    centre = IMAGE_SIZE / 2 + (2 * u["place"] - 1) * (IMAGE_SIZE / 2 - 0.9 * radius)
    x, y = _axes(centre, TILT * (2 * u["tilt"][:, 0] - 1))
    radius, phase = radius[:, :, None], 2 * pi * u["phase"][:, :, None]
    x, y = x / radius, y / radius
    distance, wave = np.empty_like(x), np.empty_like(x)
    shapes, patterns = np.divmod(labels, len(PATTERNS))  # the order of CLASSES
    for i, shape in enumerate(SHAPES.values()):
        at = np.flatnonzero(shapes == i)
        distance[at] = shape(x[at], y[at])
    for i, (name, pattern) in enumerate(PATTERNS.items()):
        at = np.flatnonzero(patterns == i)
        wave[at] = pattern(x[at], y[at], phase[at])
        if name == "outline":
            distance[at] = 0.09 - np.abs(distance[at] - 0.09)
    return (0.5 + radius * distance).clip(0, 1), (0.5 + 1.5 * wave).clip(0, 1)


def prepare_synthetic(
    out: Path, *, train_per_class: int = 40, val_per_class: int = 5, test_per_class: int = 5, seed: int = 0
) -> dict:
    """Draw all splits, write them to `out` in the prepared format and return the manifest.

    The counts are images per class, for 200 classes. Each split has its own random stream, (seed, split).
    """
    per_class = {"train": train_per_class, "val": val_per_class, "test": test_per_class}
    for name, count in per_class.items():
        if count < 1:
            raise UserError(f"{name}_per_class is {count} and must be at least 1.")
    n_bytes = len(CLASSES) * sum(per_class.values()) * 3 * IMAGE_SIZE**2
    with writer.new_folder(out, n_bytes) as folder:
        for split, (name, count) in enumerate(per_class.items()):
            rng = np.random.default_rng((seed, split))
            labels = rng.permutation(np.repeat(np.arange(len(CLASSES), dtype=np.int64), count))
            writer.save_array(folder, f"{name}_images", draw(labels, seed=int(rng.integers(2**63))))
            if name != "test":
                writer.save_array(folder, f"{name}_labels", labels)
        files = [f"test_{i}.png" for i in range(len(labels))]  # `labels` are those of test, the last split
        origin = f"tinyimnet.data.synthetic, seed {seed}"
        return writer.finish(folder, classes=CLASSES, test_files=files, origin=origin)
