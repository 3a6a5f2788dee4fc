"""Consistency losses: on Gaussian data the consistency function and the losses of others are known in closed form."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lustral.diffusion import (
    ConsistencyDistillation,
    ConsistencyLoss,
    ConsistencyTrainingLoss,
    EasyConsistencyTuning,
    EDMSchedule,
    ImprovedConsistencyTraining,
    LinearSchedule,
    Progress,
    PseudoHuber,
    SquaredDistance,
    VPSchedule,
)
from lustral.diffusion.consistency import Pair
from lustral.diffusion.consistency_schedules import FINISHED, karras_sigmas, lognormal_masses
from lustral.networks import ADMDenoiser, SongUNetDenoiser, weights
from tests.closed_form import GaussianDenoiser
from tests.contracts import SmoothDenoiser, generator, stream
from tests.toys.consistency import DEVIATION, GaussianConsistency

COUNT = 4000
HALFWAY = Progress(500, 1000)


def _data(count: int = COUNT) -> Tensor:
    return DEVIATION * torch.randn(count, 1, 2, 2, generator=generator(), dtype=torch.float64)


def _teacher(schedule: Any = None) -> GaussianDenoiser:
    return GaussianDenoiser(schedule or VPSchedule(), np.zeros(4), DEVIATION**2 * np.eye(4))


LOSSES: dict[str, ConsistencyLoss] = {
    "ct": ConsistencyTrainingLoss(end=40),
    "ict": ImprovedConsistencyTraining(end=80),
    "ect": EasyConsistencyTuning(num_stages=4),
    "ect_in_one_stage": EasyConsistencyTuning(256, 1),
    "cd": ConsistencyDistillation(_teacher()),
}


def _pair(
    loss: ConsistencyLoss, denoiser: GaussianConsistency, count: int = COUNT, progress: Progress = HALFWAY
) -> Pair:
    return loss.levels(denoiser.schedule, stream(count).fork("time"), progress)  # type: ignore[arg-type]


@pytest.mark.parametrize("bend", [1.0, 0.7])
@pytest.mark.parametrize("name", ["ct", "ict", "ect"])
def test_the_loss_of_a_linear_function_is_that_of_the_closed_form(name: str, bend: float) -> None:
    """f(x, s) = a(s) x: the squared distance has the mean sd^2 (a(t) - a(r))^2 + (a(t) t - a(r) r)^2."""
    loss, denoiser = LOSSES[name], GaussianConsistency(bend=bend)
    squared = type(loss)(distance=SquaredDistance())  # type: ignore[call-arg]
    early = Progress(100, 1000)
    found = squared(denoiser, _data(), stream(COUNT), early).detach()
    pair = _pair(squared, denoiser, progress=early)
    t, r = pair
    a_t, a_r = (denoiser.factor(s).detach() for s in pair)
    a_r = torch.where(r == 0, 1.0, a_r)  # there the target is the image
    expected = squared.weight(pair) * (DEVIATION**2 * (a_t - a_r).square() + (a_t * t - a_r * r).square())
    error = (found - expected).mean() / ((found - expected).std() / math.sqrt(COUNT))
    assert abs(float(error)) < 4
    assert (r < t).all()
    assert (float((r == 0).double().mean()) > 0.3) == (name == "ect")


@pytest.mark.parametrize("name", ["ct", "ict", "ect_in_one_stage", "cd"])
def test_the_gradient_vanishes_at_the_consistency_function(name: str) -> None:
    """Nearly, for steps have a length; and it leads there from both sides."""
    loss: Any = LOSSES[name]
    options = {"ct": {"end": 400}, "ict": {"start": 640, "end": 640}, "cd": {"teacher": _teacher(), "num_levels": 80}}
    fine = type(loss)(**{**options.get(name, {"q": 256, "num_stages": 1}), "distance": SquaredDistance()})

    def slope(bend: float) -> float:
        denoiser = GaussianConsistency(bend=bend)
        value = fine(denoiser, _data(40_000), stream(40_000), FINISHED).mean()
        return float(torch.autograd.grad(value, denoiser.bend)[0])

    below, at, above = slope(0.8), slope(1.0), slope(1.2)
    assert below < 0 < above
    assert abs(at) < 0.15 * min(-below, above)


@pytest.mark.parametrize("schedule", [VPSchedule(), EDMSchedule()], ids=type)
def test_an_exact_teacher_leaves_the_consistency_function_no_loss(schedule: Any) -> None:
    """Up to the error of a Heun step, whose square falls by 2^6 or so with twice the levels; others have a loss."""

    def value(num_levels: int, bend: float = 1.0) -> float:
        loss = ConsistencyDistillation(_teacher(schedule), num_levels)
        return float(loss(GaussianConsistency(bend=bend), _data(), stream(COUNT)).mean().detach())

    assert value(160) < value(80) / 30 < value(40) / 900
    assert value(160) < 1e-10 < 1e-6 < value(160, bend=0.9)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_keyed_by_its_rows(name: str) -> None:
    denoiser, x_0, rows = GaussianConsistency(), _data(6), torch.tensor([4, 1])
    whole = LOSSES[name](denoiser, x_0, stream(6), HALFWAY)
    assert whole.shape == (6,)
    torch.testing.assert_close(LOSSES[name](denoiser, x_0[rows], stream(6).select(rows), HALFWAY), whole[rows])


@pytest.mark.parametrize("name", LOSSES)
def test_the_target_is_a_constant_and_may_be_another_network(name: str) -> None:
    denoiser, other, x_0 = GaussianConsistency(), GaussianConsistency(bend=0.5), _data(50)
    loss = LOSSES[name](denoiser, x_0, stream(50), HALFWAY, other).sum()
    assert torch.autograd.grad(loss, other.bend, allow_unused=True, retain_graph=True) == (None,)
    assert float(torch.autograd.grad(loss, denoiser.bend)[0]) != 0
    alone = LOSSES[name](denoiser, x_0, stream(50), HALFWAY).sum()
    assert float(loss.detach()) != float(alone.detach())


def test_which_losses_keep_a_target() -> None:
    assert LOSSES["ct"].target_decay(Progress(0, 10)) == pytest.approx(0.81)
    assert [LOSSES[name].target_decay(HALFWAY) for name in ("ict", "ect", "cd")] == [None] * 3
    assert ConsistencyDistillation(_teacher(), 40, mu=0.95).target_decay(HALFWAY) == 0.95


def test_the_levels_of_ict_follow_the_masses() -> None:
    """The share of each interval is within five standard errors of its mass; all lie in the range."""
    denoiser, loss = GaussianConsistency(), ImprovedConsistencyTraining(10, 10)
    pair = _pair(loss, denoiser, 20_000)
    sigmas = karras_sigmas(11, 0.01, 20.0)
    counts = torch.stack([(pair.earlier == sigma).sum() for sigma in sigmas[:-1]]) / 20_000
    masses = lognormal_masses(sigmas)
    assert ((counts - masses).abs() < 5 * (masses / 20_000).sqrt()).all()
    assert float(pair.later.max()) <= 20.0 + 1e-9


def test_ect_takes_levels_above_the_range_at_its_end() -> None:
    pair = _pair(EasyConsistencyTuning(256, 1, mean=3.0), GaussianConsistency(sigma_max=5.0))
    assert float((pair.later == 5.0).double().mean()) > 0.6
    assert ((pair.earlier == 0) | (pair.earlier >= 0.01)).all()


def test_the_pseudo_huber_distance_is_a_norm_over_the_image() -> None:
    one, two = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    two[0, :, :2, 0] = 2.0
    c = 0.00054 * math.sqrt(3 * 32 * 32)
    assert c == pytest.approx(0.03, rel=3e-3)
    assert float(PseudoHuber()(one, two)) == pytest.approx(math.sqrt(24 + c * c) - c)
    assert float(PseudoHuber(c=0.0)(one, two)) == pytest.approx(math.sqrt(24))
    equal = torch.zeros(2, 1, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(PseudoHuber(c=0.0)(equal, torch.zeros(2, 1, 2, 2)).sum(), equal)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("kind", ["song", "adm"])
def test_a_network_is_the_identity_at_the_end_of_its_range(kind: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "song":
            network: Any = SongUNetDenoiser(
                8, 1, 8, (1, 2), 1, (4,), preconditioning="consistency", sigma_data=0.7, sigma_min=0.003, sigma_max=20.0
            )
            assert float(network.schedule.sigma(torch.tensor(1000.0))) == pytest.approx(20.0)
        else:
            network = ADMDenoiser(
                8, 1, 32, (1, 1), 1, (4,), None, 2, "conv", learned_variance=False, preconditioning="consistency"
            )
    x = torch.randn(3, 1, 8, 8, generator=generator())
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x, torch.tensor(1.0, dtype=torch.float64)), x)
        assert (network(x, torch.tensor(500.0)) - x).abs().max() > 0.1


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="is no consistency function: take a network with"):
        LOSSES["ict"].check(SmoothDenoiser(EDMSchedule()))
    elsewhere = GaussianConsistency()
    elsewhere.schedule = VPSchedule()
    with pytest.raises(ValueError, match="is used on another schedule"):
        LOSSES["ct"].check(elsewhere)
    with pytest.raises(ValueError, match="must be a diffusion model in continuous time"):
        ConsistencyDistillation(_teacher(LinearSchedule()))
    with pytest.raises(ValueError, match="must be a diffusion model in continuous time"):
        ConsistencyDistillation(GaussianConsistency())
    with pytest.raises(ValueError, match="teacher's weights are random"):
        ConsistencyDistillation(SongUNetDenoiser(8, 1, 8, (1, 2), 1, (4,), preconditioning="edm"))
    with pytest.raises(ValueError, match=r"teacher knows noise levels up to 5 and the network's go to 20"):
        ConsistencyDistillation(_teacher(EDMSchedule(sigma_max=5.0))).check(GaussianConsistency())
    for loss in (ImprovedConsistencyTraining(mean=30.0, std=0.1), EasyConsistencyTuning(mean=float("nan"))):
        with pytest.raises(ValueError, match=r"of the levels between 0.01 and 20.0, where this consistency function"):
            loss.check(GaussianConsistency())
    with pytest.raises(ValueError, match=r"teacher's images are \(1, 2, 2\)"):
        LOSSES["cd"].check(GaussianConsistency(shape=(1, 4, 4)))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ConsistencyTrainingLoss(start=0), "start = 0"),
        (lambda: ConsistencyTrainingLoss(decay=1.0), "decay is 1"),
        (lambda: ImprovedConsistencyTraining(start=10, end=5), "end = 5"),
        (lambda: ImprovedConsistencyTraining(std=0.0), "std is 0"),
        (lambda: EasyConsistencyTuning(q=1.0), "q = 1"),
        (lambda: EasyConsistencyTuning(num_stages=0), "num_stages = 0"),
        (lambda: ConsistencyDistillation(_teacher(), num_levels=1), "num_levels = 1"),
        (lambda: ConsistencyDistillation(_teacher(), mu=1.0), r"mu = 1\.0"),
        (lambda: PseudoHuber(c=-1.0), "c is -1"),
    ],
)
def test_numbers_out_of_range_are_refused(make: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


def test_a_file_from_before_an_argument_was_there_has_its_default(tmp_path: Path, monkeypatch: Any) -> None:
    """Weights written without sigma_max are those of a network whose range ends at 80, and of no other."""
    options: dict[str, Any] = {"dropout": 0.0, "preconditioning": "edm"}
    arguments = (8, 1, 8, (1, 1), 1, ())
    network = SongUNetDenoiser(*arguments, **options)
    with monkeypatch.context() as patch:
        known = weights.arguments
        patch.setattr(weights, "arguments", lambda n, out: {k: v for k, v in known(n, out).items() if k != "sigma_max"})
        path = weights.save_network(network, tmp_path / "old.safetensors")
    assert "sigma_max" not in weights.read_weights(path)[0]["arguments"]
    SongUNetDenoiser(*arguments, **options, weights=str(path))
    with pytest.raises(ValueError, match=r"sigma_max = 80\.0 there and 20\.0 here"):
        SongUNetDenoiser(*arguments, **options, sigma_max=20.0, weights=str(path))
