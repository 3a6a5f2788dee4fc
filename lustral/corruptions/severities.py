"""The constants of the 15 corruptions by severity, as published with CIFAR-10-C and ImageNet-C.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
2019 (arXiv 1903.12261), and the scripts that its authors made the two data sets with. Lengths are in pixels of the
image as it is, whatever its size; those of `elastic_transform` are shares of the image's side, as they are there.
"""

from typing import Any, Literal, get_args

Table = Literal["small", "large"]
Constants = tuple[float, ...]

TYPES = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The corruptions by the names of CIFAR-10-C's files, in the order of the paper's tables."""
SEVERITIES = (1, 2, 3, 4, 5)
LARGEST_SMALL = 64
"""Images of up to so many pixels a side take the constants of CIFAR-10-C where nobody chooses."""

_LARGE_ELASTIC = 244 / 224  # the authors' script writes 244 for the 224 pixels of the side


def _each(*values: float) -> tuple[Constants, ...]:
    return tuple((value,) for value in values)


def _elastic(scale: float, *rows: Constants) -> tuple[Constants, ...]:
    return tuple(tuple(scale * value for value in row) for row in rows)


CONSTANTS: dict[Table, dict[str, tuple[Constants, ...]]] = {
    "small": {
        "gaussian_noise": _each(0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
        "shot_noise": _each(500, 250, 100, 75, 50),  # photons of a white pixel
        "impulse_noise": _each(0.01, 0.02, 0.03, 0.05, 0.07),  # share of the values
        "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),  # radius, sigma of its edge
        "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),  # sigma, reach, times
        "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),  # radius, sigma
        "zoom_blur": ((7, 0.01), (12, 0.01), (16, 0.01), (21, 0.01), (26, 0.01)),  # enlargements, step
        "snow": (  # mean, standard deviation, zoom, threshold, radius, sigma, share of the image
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),  # shares of the image and of the frost
        "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),  # thickness, decay of the fractal
        "brightness": _each(0.05, 0.1, 0.15, 0.2, 0.3),  # added to the value
        "contrast": _each(0.75, 0.5, 0.4, 0.3, 0.15),  # of the distance from the mean
        "elastic_transform": _elastic(  # displacement, sigma of its smoothing, affine displacement; shares of the side
            1.0, (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)
        ),
        "pixelate": _each(0.95, 0.9, 0.85, 0.75, 0.65),  # of the side
        "jpeg_compression": _each(80, 65, 58, 50, 40),  # quality
    },
    "large": {
        "gaussian_noise": _each(0.08, 0.12, 0.18, 0.26, 0.38),
        "shot_noise": _each(60, 25, 12, 5, 3),
        "impulse_noise": _each(0.03, 0.06, 0.09, 0.17, 0.27),
        "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "zoom_blur": ((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03)),
        "snow": (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        "brightness": _each(0.1, 0.2, 0.3, 0.4, 0.5),
        "contrast": _each(0.4, 0.3, 0.2, 0.1, 0.05),
        "elastic_transform": _elastic(
            _LARGE_ELASTIC, (2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)
        ),
        "pixelate": _each(0.6, 0.5, 0.4, 0.3, 0.25),
        "jpeg_compression": _each(25, 18, 15, 10, 7),
    },
}


def check_types(types: Any, option: str) -> tuple[str, ...]:
    """Names of corruptions, in the order of `TYPES`; all of them for None.

    Raises:
        ValueError: if there is none, or one that does not exist; the message says ``option``.
    """
    if types is None:
        return TYPES
    given = [types] if isinstance(types, str) else list(types)
    unknown = [name for name in given if name not in TYPES]
    if unknown or not given:
        named = f"{unknown[0]!r}" if unknown else "no corruption at all"
        raise ValueError(f"{option} has {named}; it may name some of {', '.join(TYPES)}, or be null for all of them.")
    return tuple(name for name in TYPES if name in given)


def check_severities(severities: Any, option: str) -> tuple[int, ...]:
    """Severities in ascending order; all of them for None.

    Raises:
        ValueError: if there is none, or one that is not in 1..5; the message says ``option``.
    """
    if severities is None:
        return SEVERITIES
    given = [severities] if isinstance(severities, int) else list(severities)
    if not given or any(severity not in SEVERITIES for severity in given):
        raise ValueError(f"{option} is {given}; severities are 1 to 5, or null for all of them.")
    return tuple(severity for severity in SEVERITIES if severity in given)


def check_table(table: str) -> None:
    """Raises ValueError for a word that is neither a table nor "auto"."""
    if table not in ("auto", *get_args(Table)):
        raise ValueError(f"table is {table!r}; it may be auto, {', '.join(get_args(Table))}.")


def table_of(table: str, height: int, width: int) -> Table:
    """The table for images of a size: the one that is named, or for "auto" the one of images about as large."""
    if table == "auto":
        return "small" if max(height, width) <= LARGEST_SMALL else "large"
    return "small" if table == "small" else "large"
