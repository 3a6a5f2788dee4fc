"""The sheet of noise levels shows what the purifier really does at each of them."""

import numpy as np
import pytest
import torch

from callbacks.levels_panel import at_level, levels_panel
from lustral.diffusion import EulerMaruyama, LinearSchedule, VPSchedule
from lustral.diffusion.perturbation import EPS
from lustral.evaluation import Defence
from lustral.purifiers import GNSP, SSNI, DiffPure, Identity, Purifier, SigmoidLevels
from tests.contracts import SmoothDenoiser, ToyClassifier, images, stored_scores, stream

NAMES = ["cat", "dog", "frog"]


def _diffpure(t_star: int = 100, num_steps: int = 8) -> DiffPure:
    return DiffPure(SmoothDenoiser(VPSchedule()).float(), EulerMaruyama(), t_star, num_steps)


def _ssni() -> SSNI:
    base, score = _diffpure(), EPS(2, 10.0)
    return SSNI(base, SigmoidLevels(5.0, 40.0), stored_scores(base.denoiser, score, [280.0, 310.0, 400.0]), score)


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0, 2.0])
def test_a_purifier_at_another_level_is_one_built_for_it(factor: float) -> None:
    base, x, noise = _diffpure(), images(3), stream(3)
    found = at_level(base, factor)
    assert found is not None
    expected = _diffpure(int(100 * factor), int(8 * factor))
    assert torch.equal(found(x, noise).images, expected(x, noise).images)
    assert base.rounds == ((100.0, 8),), "the recipe's own purifier is as it was"


def test_every_round_is_scaled_and_none_leaves_the_schedule() -> None:
    base = GNSP(SmoothDenoiser(LinearSchedule()).float(), [(30, 30), (125, 125)])
    quarter = at_level(base, 0.25)
    assert quarter is not None
    assert quarter.rounds == ((8.0, 7), (31.0, 31))
    assert at_level(base, 8.0) is not None
    assert at_level(base, 8.1) is None
    assert at_level(base, 0.01) is None


def test_rows_and_captions_are_the_purified_images_and_their_classes() -> None:
    ssni, x, noise = _ssni(), images(3), stream(3)
    defence = Defence(ToyClassifier(), ssni)
    own = ssni(x, noise, wants=["noised", "levels"])
    half = _diffpure(50, 4)(x, noise, wants=["noised"])
    classes = [defence.classifier(each.images[0]).argmax(1).tolist() for each in (half, own)]
    labels = [classes[0][0], (classes[0][1] + 1) % 3, classes[0][2]]
    figure = levels_panel(defence, x, labels, NAMES, noise, (0.5,))
    assert figure is not None
    grid = [figure.axes[3 * row : 3 * row + 3] for row in range(5)]
    assert [row[0].get_ylabel().replace("\n", " ") for row in grid] == [
        "adversarial",
        "noised t* = 50",
        "purified t* = 50",
        "noised own t",
        "purified own t",
    ]
    shown = (x, half.trace["noised"], half.images[0], own.trace["noised"], own.images[0])
    for row, expected in zip(grid, shown, strict=True):
        for axes, image in zip(row, expected, strict=True):
            np.testing.assert_allclose(np.asarray(axes.get_images()[0].get_array()), image[0].clamp(0, 1).numpy())
    assert [axes.get_title() for axes in grid[0]] == [NAMES[label] for label in labels]
    assert [axes.texts[0].get_text() for axes in grid[2]] == [NAMES[one] for one in classes[0]]
    levels = own.trace["levels"][:, 0].tolist()
    words = [f"t = {level:.0f}\n{NAMES[one]}" for level, one in zip(levels, classes[1], strict=True)]
    assert [axes.texts[0].get_text() for axes in grid[4]] == words
    colours = [axes.texts[0].get_bbox_patch().get_facecolor() for axes in grid[2]]
    assert colours[0] == colours[2] != colours[1]  # the second is wrong
    assert not grid[1][0].texts


@pytest.mark.parametrize(("build", "rows"), [(_diffpure, 3), (Identity, 0)])
def test_other_purifiers_have_no_row_of_their_own(build: type[Purifier], rows: int) -> None:
    figure = levels_panel(Defence(ToyClassifier(), build()), images(2), [0, 1], NAMES, stream(2), (0.5, 20.0))
    assert (0 if figure is None else len(figure.axes) // 2) == rows
