"""The rendering of house-number scenes: `paint` and its steps, from the wall to the camera."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter
from sklearn.datasets import load_digits

from datamodules.keyed import keyed_generator

NEIGHBOURS = 0.65
"""Probability of a neighbouring digit, on each side."""

SIZE = 32
MARGIN = 3  # zeros around a shape of 8 x 8, as far as a cubic spline and a stroke's soft edge extend beyond it
LEVELS = (0.42, 0.58)  # ink level at the edge of a stroke: lower ones close the holes, higher ones break the strokes
LUMINANCE = np.array([0.299, 0.587, 0.114])
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2  # of the pixels, from the middle of the image


class Shapes:
    """Some of scikit-learn's digits, ready to be placed.

    Args:
        positions: positions among the 1,797 digits.

    Attributes:
        positions: as given.
        stored: (n, 8, 8) uint8 in 0..16.
        labels: (n,) int64.
        splines: (n, 14, 14) float64: coefficients of a cubic B-spline whose values, about 0 to 1, are the ink
            between and at the stored pixels, with a margin of zeros around them.
        boxes: (n, 4) row and column of the middle, height and width, in pixels of ``splines``, of the part
            that is painted.
        members: for each label, the shapes that have it.
    """

    def __init__(self, positions: Sequence[int]) -> None:
        stored, labels = load_digits(return_X_y=True)
        self.positions = list(positions)
        self.stored = stored.reshape(-1, 8, 8)[self.positions].astype(np.uint8)
        self.labels = labels[self.positions].astype(np.int64)
        padded = np.pad(self.stored / 16, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))
        self.splines = np.stack([_spline(image) for image in padded])
        self.boxes = np.stack([_box(spline) for spline in self.splines])
        self.members = [np.flatnonzero(self.labels == label) for label in range(10)]


class Draws:
    """The random numbers of one scene, in a fixed order.

    They are computed from the raw bits of the Philox generator, the only output of NumPy's new generators that
    later versions are guaranteed not to change.

    Args:
        purpose, index: the key, see :func:`keyed_generator`.
    """

    SCALARS = 48

    def __init__(self, purpose: str, index: int) -> None:
        self._bits = keyed_generator(purpose, 0, 0, index).bit_generator
        raw = self._bits.random_raw(self.SCALARS)
        self._uniforms = iter(((raw >> np.uint64(11)) * 2.0**-53).tolist())  # 53 bits, in [0, 1)

    def uniform(self, low: float, high: float) -> float:
        """The next number in [low, high)."""
        return low + (high - low) * next(self._uniforms)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return next(self._uniforms) < probability

    def choice(self, options: np.ndarray) -> int:
        """One of ``options``, (n,) integers, with equal probability."""
        return int(options[int(next(self._uniforms) * len(options))])

    def noise(self, *shape: int) -> np.ndarray:
        """Float64 of mean 0 and variance 1: sums of four uniform numbers, nearly normal and exactly the same
        on all machines."""
        parts = self._bits.random_raw(math.prod(shape)).view(np.uint16).reshape(*shape, 4)
        return (parts.sum(-1, dtype=np.int64) - 2 * 65535) * (math.sqrt(3) / 65536)


# A scene --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """The position and shape of the digits in a scene.

    Attributes:
        rows, columns: (32, 32) coordinates of each pixel in the number's own upright frame, in pixels from
            the middle of the central digit.
        height: height of a digit in pixels.
        aspect: factor by which a digit is wider than written.
        level: ink in [0, 1] at which a stroke begins; a lower one makes bolder strokes.
        softness: change of ink over the edge of a stroke, > 0.
    """

    rows: np.ndarray
    columns: np.ndarray
    height: float
    aspect: float
    level: float
    softness: float


def paint(shapes: Shapes, label: int, draws: Draws) -> np.ndarray:
    """A scene (3, 32, 32) float32, whole numbers in 0..255, with a digit of class ``label`` in its middle.

    The order in which ``draws`` is used is part of the recipe.
    """
    frame = _frame(draws)
    mask = _number(shapes, label, frame, draws)
    wall, paint_colour = _colours(draws)
    scene = wall[:, None, None] + _wall(frame, draws)
    scene = scene * (1 - _shadow(mask, draws))
    scene += draws.uniform(0.85, 1.0) * mask * (paint_colour[:, None, None] - scene)
    scene = _light(scene, draws)
    blur = _blur(draws.uniform(0.3, 1.0), 0.0)
    scene = _camera(blur @ scene @ blur.T, draws)
    return np.rint(scene.clip(0, 1) * 255).astype(np.float32)


def _frame(draws: Draws) -> Frame:
    angle, shear = draws.uniform(-0.16, 0.16), draws.uniform(-0.25, 0.25)
    rows = ROWS - draws.uniform(-1.5, 1.5)
    columns = COLUMNS - draws.uniform(-1.5, 1.5)
    sine, cosine = math.sin(angle), math.cos(angle)
    upright = cosine * rows - sine * columns
    return Frame(
        rows=upright,
        columns=sine * rows + cosine * columns + shear * upright,
        height=draws.uniform(20, 27),
        aspect=draws.uniform(0.75, 1.1),
        level=draws.uniform(*LEVELS),
        softness=draws.uniform(0.15, 0.3),
    )


def _number(shapes: Shapes, label: int, frame: Frame, draws: Draws) -> np.ndarray:
    """(32, 32) in [0, 1]: how much of each pixel is painted, by the digit in the middle and its neighbours."""
    centre = draws.choice(shapes.members[label])
    mask = _digit(shapes, centre, frame, 0.0)
    for side in (-1, 1):
        present = draws.chance(NEIGHBOURS)
        neighbour = draws.choice(np.arange(len(shapes.labels)))
        gap = draws.uniform(1.5, 4.5)
        apart = gap + (_width(shapes, centre, frame) + _width(shapes, neighbour, frame)) / 2
        if present:
            # At least half an image away, so that the border cuts it and the label is clearly the middle digit.
            mask = np.maximum(mask, _digit(shapes, neighbour, frame, side * max(apart, SIZE / 2)))
    return mask


def _digit(shapes: Shapes, number: int, frame: Frame, offset: float) -> np.ndarray:
    """(32, 32) in [0, 1]: shape ``number`` with its middle ``offset`` pixels right of the frame's."""
    row, column, height, width = shapes.boxes[number]
    rows = row + frame.rows * (height / frame.height)
    columns = column + (frame.columns - offset) * (width / _width(shapes, number, frame))
    ink = _ink(shapes.splines[number], np.stack([rows, columns]))
    return ((ink - frame.level) / frame.softness + 0.5).clip(0, 1)


def _width(shapes: Shapes, number: int, frame: Frame) -> float:
    """Width in pixels of shape ``number``, limited so that its neighbours have room."""
    _, _, height, width = shapes.boxes[number]
    return min(frame.height * frame.aspect * width / height, 21.0)


def _colours(draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Colours (3,) in [0, 1] of wall and paint, whose luminances differ by enough to be told apart."""
    contrast = draws.uniform(0.28, 0.7)
    dark = draws.uniform(0.05, 0.95 - contrast)
    tones = (dark, dark + contrast)
    colours = []
    for tone in tones if draws.chance(0.5) else tones[::-1]:
        tint = np.array([draws.uniform(-1, 1) for _ in range(3)]) * draws.uniform(0.0, 0.28)
        colours.append((tone + tint - tint @ LUMINANCE).clip(0, 1))
    return colours[0], colours[1]


def _wall(frame: Frame, draws: Draws) -> np.ndarray:
    """(32, 32) around 0: stains, grain, and the joints of boards or bricks on some walls."""
    stains = _STRETCH @ draws.noise(7, 7) @ _STRETCH.T * draws.uniform(0.0, 0.12)
    grain = draws.noise(SIZE, SIZE) * draws.uniform(0.0, 0.04)
    jointed, upright = draws.chance(0.4), draws.chance(0.4)
    along = frame.columns if upright else frame.rows
    period, phase = draws.uniform(6, 14), draws.uniform(0, 14)
    depth = draws.uniform(-0.2, 0.1)
    if not jointed:
        return stains + grain
    from_joint = np.abs((along + phase) % period - period / 2)
    return stains + grain + depth * (1.2 - from_joint).clip(0, 1)


def _shadow(mask: np.ndarray, draws: Draws) -> np.ndarray:
    """(32, 32) in [0, 1): the part of the light that the digits keep from the wall; 0 for half of the scenes."""
    cast = draws.chance(0.5)
    down, right = draws.uniform(0.5, 2.2), draws.uniform(-2.2, 2.2)
    softness, strength = draws.uniform(0.5, 1.2), draws.uniform(0.2, 0.6)
    if not cast:
        return np.zeros_like(mask)
    return strength * (_blur(softness, down) @ mask @ _blur(softness, right).T)


def _light(scene: np.ndarray, draws: Draws) -> np.ndarray:
    """``scene`` (3, 32, 32), lit more on one side than on the other."""
    angle, amount = draws.uniform(0, 2 * math.pi), draws.uniform(0.0, 0.3)
    return scene * (1 + amount * (math.cos(angle) * COLUMNS + math.sin(angle) * ROWS) / (SIZE / 2))


def _camera(scene: np.ndarray, draws: Draws) -> np.ndarray:
    """``scene`` (3, 32, 32) with the exposure, contrast and noise of a camera."""
    contrast, brightness = draws.uniform(0.65, 1.1), draws.uniform(-0.12, 0.12)
    noise = draws.noise(3, SIZE, SIZE) * draws.uniform(0.004, 0.03)
    return 0.5 + contrast * (scene - 0.5) + brightness + noise


def _blur(sigma: float, shift: float) -> np.ndarray:
    """(32, 32) matrix that blurs a column by ``sigma`` > 0 pixels and moves it by ``shift``; rows sum to 1."""
    places = np.arange(SIZE)
    weights = np.exp(-0.5 * ((places[:, None] - shift - places) / sigma) ** 2) + 1e-12
    return weights / weights.sum(1, keepdims=True)


def _spline(image: np.ndarray) -> np.ndarray:
    """Coefficients of a cubic B-spline near ``image``, of the same shape.

    An interpolating spline would ring; with the pixels as coefficients, blur would close the holes of an 8.
    """
    return 0.3 * image + 0.7 * spline_filter(image, order=3, output=np.float64)


def _ink(spline: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values of a B-spline at ``places`` (2, h, w), rows and columns; (h, w)."""
    return map_coordinates(spline, places, order=3, mode="grid-constant", prefilter=False)


def _box(spline: np.ndarray) -> np.ndarray:
    """Middle row and column, height and width of the painted part of a shape, in its pixels."""
    steps = 6
    end = (len(spline) - 1) * steps + 1
    painted = _ink(spline, np.mgrid[:end, :end] / steps) > sum(LEVELS) / 2
    (top, bottom), (left, right) = (np.flatnonzero(painted.any(axis))[[0, -1]] / steps for axis in (1, 0))
    return np.array([(top + bottom) / 2, (left + right) / 2, bottom - top, right - left])


def _stretch(points: int) -> np.ndarray:
    """(32, points) matrix that makes a smooth curve of 32 pixels out of ``points`` values, >= 4."""
    places = np.linspace(1, points - 2, SIZE)[None]
    return np.stack([map_coordinates(row, places, order=3, prefilter=False) for row in np.eye(points)], axis=1)


_STRETCH = _stretch(7)
