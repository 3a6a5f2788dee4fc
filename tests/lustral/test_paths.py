"""The path of a reverse process: from the noised image to the purified one, and what it costs."""

import pytest
import torch

from lustral.diffusion import EulerMaruyama, LinearSchedule, VPSchedule
from lustral.purifiers import GDMP, ConstantMask, DiffPure, HeterogeneousNoise, MSEGuidance, Purifier
from tests.contracts import SmoothDenoiser, images, stream


def _diffpure() -> DiffPure:
    return DiffPure(SmoothDenoiser(VPSchedule()).float(), EulerMaruyama(), 100, 4)


def _gdmp() -> GDMP:
    return GDMP(SmoothDenoiser(LinearSchedule()).float(), MSEGuidance("noised", 1), 60, 6, 2, 20.0, "24/255")


def _heterogeneous() -> HeterogeneousNoise:
    return HeterogeneousNoise(SmoothDenoiser(VPSchedule()).float(), ConstantMask(), 200, 50, (4, 2))


@pytest.mark.parametrize(
    ("purifier", "states"),
    [(_diffpure(), 5), (_gdmp(), 14), (_heterogeneous(), 11)],
    ids=lambda each: type(each).__name__,
)
def test_a_path_leads_from_the_noised_image_to_the_purified_one(purifier: Purifier, states: int) -> None:
    with torch.no_grad():
        found = purifier(images(3), stream(3), wants=["path", "noised"])
    path = found.trace["path"]
    assert path.shape == (3, states, 1, 4, 4)
    assert torch.equal(path[:, 0], found.trace["noised"])
    assert torch.equal(path[:, -1], found.images[0])
    assert (path[:, 1:] != path[:, :-1]).flatten(1).any(1).all()


def test_a_path_has_no_graph_and_leaves_that_of_the_image() -> None:
    x = images(2).requires_grad_()
    found = _diffpure()(x, stream(2), wants=["path"])
    assert not found.trace["path"].requires_grad
    assert torch.autograd.grad(found.images.sum(), x)[0].abs().max() > 0
