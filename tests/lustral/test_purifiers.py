"""Purifiers: one contract for all, and DiffPure against closed forms on Gaussian data.

A new purifier joins by one row in `PURIFIERS`: a function that builds it small, for images of `SHAPE`.
"""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lustral.attacks import Engine
from lustral.diffusion import (
    DDIM,
    Ancestral,
    EulerMaruyama,
    FlowEuler,
    Heun,
    LinearSchedule,
    Solver,
    VPSchedule,
)
from lustral.diffusion.perturbation import EPS, SingleScore
from lustral.networks import UNetDenoiser
from lustral.purifiers import (
    GDMP,
    GNSP,
    SSNI,
    Context,
    DiffPure,
    FixedLevels,
    Identity,
    LangevinPurifier,
    LevelRule,
    LinearLevels,
    MeanLevels,
    Purified,
    Purifier,
    RoundPurifier,
    ShuffledLevels,
    SigmoidLevels,
)
from tests import closed_form
from tests.closed_form import DIAGONAL, FULL, MEAN, SCHEDULES, Affine, GaussianDenoiser, diffpure_law
from tests.contracts import (
    NoisyPurifier,
    Reveal,
    SmoothDenoiser,
    ToyClassifier,
    central_differences,
    images,
    randomise,
    relative_error,
    stored_scores,
    stream,
)

SHAPE = (1, 4, 4)


def _diffpure(solver: Solver, schedule: str = "vp", forward: str = "denoiser") -> DiffPure:
    return DiffPure(SmoothDenoiser(SCHEDULES[schedule]()), solver, 200, 4, forward)  # type: ignore[arg-type]


def _unet() -> DiffPure:
    denoiser = UNetDenoiser(
        image_size=4,
        channels=1,
        widths=(8, 16),
        blocks=1,
        attention=(False, True),
        norm_groups=4,
        preconditioning="vp",
    )
    randomise(denoiser, 0.2)
    return DiffPure(denoiser, EulerMaruyama(), 100, 3)


def _gdmp(guidance: str = "mse", reference: str = "noised", schedule: str = "discrete") -> GDMP:
    denoiser = SmoothDenoiser(SCHEDULES[schedule](), SHAPE)
    scale = 0.2 if guidance == "ssim" else 20.0
    return GDMP(denoiser, 60, 3, 2, guidance, scale, "24/255", 1, reference, noise_offset=1)  # type: ignore[arg-type]


def _ssni(purifier: RoundPurifier, rule: LevelRule, rounding: bool = True, statistic: str = "eps") -> SSNI:
    """Levels between a third and all of t*, well apart for different images."""
    score = EPS(3, 10.0) if statistic == "eps" else SingleScore()
    known = [280.0, 310.0, 400.0] if statistic == "eps" else [180.0, 210.0, 270.0]
    reference = stored_scores(purifier.denoiser, score, known)
    return SSNI(purifier, rule, reference, score, rounding)


def _gnsp(schedule: str = "discrete", layout: str = "clock") -> GNSP:
    denoiser = SmoothDenoiser(SCHEDULES[schedule](), SHAPE)
    return GNSP(denoiser, [(60, 2), (120, 3)], layout=layout)  # type: ignore[arg-type]


PURIFIERS: dict[str, Callable[[], Purifier]] = {
    "diffpure_flow": lambda: _diffpure(FlowEuler()),
    "diffpure_heun": lambda: _diffpure(Heun()),
    "langevin": lambda: LangevinPurifier(SmoothDenoiser(VPSchedule(), SHAPE), 3, t=50.0),
    "diffpure_resized": lambda: DiffPure(SmoothDenoiser(VPSchedule(), (1, 6, 6)), EulerMaruyama(), 100, 2, resize_to=6),
    "gnsp": _gnsp,
    "gnsp_vp": lambda: _gnsp("vp"),
    "gdmp_mse": _gdmp,
    "gdmp_ssim": lambda: _gdmp("ssim", "clean"),
    "gdmp_unguided": lambda: _gdmp("none"),
    "gdmp_vp": lambda: _gdmp("ssim", "noised", "vp"),
    "ssni_n_diffpure": lambda: _ssni(_diffpure(EulerMaruyama()), SigmoidLevels(5.0, 40.0)),
    "ssni_n_diffpure_unrounded": lambda: _ssni(_diffpure(EulerMaruyama()), SigmoidLevels(5.0, 40.0), rounding=False),
    "ssni_l_gnsp": lambda: _ssni(_gnsp(), LinearLevels(20.0)),
    "ssni_n_gnsp_unrounded": lambda: _ssni(_gnsp("vp"), SigmoidLevels(0.0, 40.0), False, "single"),
    "ssni_n_gnsp_own_grid": lambda: _ssni(_gnsp("vp", "own"), SigmoidLevels(5.0, 40.0), rounding=False),
    "ssni_n_gnsp_own_table": lambda: _ssni(_gnsp("discrete", "own"), SigmoidLevels(5.0, 40.0)),
    "ssni_n_gdmp": lambda: _ssni(_gdmp(), SigmoidLevels(5.0, 40.0)),
    "ssni_n_gdmp_unrounded": lambda: _ssni(_gdmp("ssim", "noised", "vp"), SigmoidLevels(5.0, 40.0), rounding=False),
    "ssni_half": lambda: _ssni(_diffpure(EulerMaruyama()), FixedLevels(0.5)),
    "ssni_mean": lambda: _ssni(_diffpure(EulerMaruyama()), MeanLevels(SigmoidLevels(5.0, 40.0))),
    "ssni_shuffled": lambda: _ssni(_diffpure(EulerMaruyama()), ShuffledLevels(SigmoidLevels(5.0, 40.0))),
    "identity": Identity,
    "diffpure_euler_maruyama": lambda: _diffpure(EulerMaruyama()),
    "diffpure_published_forward": lambda: _diffpure(EulerMaruyama(), forward="discrete"),
    "diffpure_ddim": lambda: _diffpure(DDIM(), "discrete"),
    "diffpure_ddim_random": lambda: _diffpure(DDIM(eta=1.0), "vp"),
    "diffpure_ancestral_small": lambda: _diffpure(Ancestral("small"), "discrete"),
    "diffpure_ancestral_large": lambda: _diffpure(Ancestral("large"), "discrete"),
    "diffpure_ancestral_clipped": lambda: _diffpure(Ancestral(clip_denoised=True), "discrete"),
    "diffpure_unet": _unet,
    "noisy": NoisyPurifier,  # the suite's own toy must keep the contract that it helps to test
}


@pytest.fixture(params=PURIFIERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def purifier(name: str) -> Purifier:
    built = PURIFIERS[name]().float()
    built.bind(ToyClassifier(shape=SHAPE))
    return built


def test_images_and_trace_have_the_promised_shapes(purifier: Purifier) -> None:
    x = images(5, SHAPE)
    purified = purifier(x, stream(5))
    assert purified.images.shape[1:] == x.shape
    assert purified.images.dtype == torch.float32
    assert purified.images.isfinite().all()
    assert all(len(values) == 5 and not values.requires_grad for values in purified.trace.values())


def test_the_same_stream_gives_the_same_image_and_another_gives_another_iff_random(
    purifier: Purifier,
) -> None:
    x = images(5, SHAPE)
    first, again, other = (purifier(x, noise).images for noise in (stream(5), stream(5), stream(5, seed=1)))
    assert torch.equal(first, again)
    for row, other_row in zip(first[0], other[0], strict=True):
        assert torch.equal(row, other_row) != purifier.random


def test_the_global_generator_is_neither_read_nor_moved(purifier: Purifier) -> None:
    x, state = images(3, SHAPE), torch.get_rng_state()
    first = purifier(x, stream(3)).images
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(first, purifier(x, stream(3)).images)


def test_an_image_does_not_look_at_its_neighbours(purifier: Purifier) -> None:
    x, noise, order = images(9, SHAPE), stream(9), torch.tensor([4, 0, 8, 2, 6, 1, 7, 3, 5])
    together = purifier(x, noise).images[0]
    shuffled = purifier(x[order], noise.select(order)).images[0]
    torch.testing.assert_close(shuffled, together[order], rtol=1e-4, atol=1e-5)
    for b in range(9):
        row = torch.tensor([b])
        alone = purifier(x[row], noise.select(row)).images[0]
        torch.testing.assert_close(alone, together[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("draws", [1, 3])
def test_in_padded_chunks_not_a_bit_depends_on_the_batch(purifier: Purifier, draws: int) -> None:
    """Any batch size and order, draws folded into rows: the engine's promise, kept by the purifier."""
    x, noise = images(9, SHAPE), stream(9)
    engine = Engine(Reveal(purifier), rows=4)
    together = engine.logits(x, noise, draws)
    for order in (torch.tensor([4, 0, 8, 2, 6, 1, 7, 3, 5]), torch.tensor([7, 2]), torch.tensor([5])):
        assert torch.equal(engine.logits(x[order], noise.select(order), draws), together[:, order])


def _loss(out: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, out[0].numel(), dtype=out.dtype).view(out.shape[1:])
    return (weights * torch.sin(2 * out)).flatten(1).sum(1)


def test_the_exact_gradient_agrees_with_central_differences(name: str, purifier: Purifier) -> None:
    purifier, x = copy.deepcopy(purifier).double(), images(2, SHAPE, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return _loss(purifier(x, stream(2)).images.mean(0))

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).abs().amax(1).min() > 1e-3
    assert relative_error(gradient, central_differences(loss, x)) < 1e-6


def test_the_gradient_does_not_depend_on_the_budget(purifier: Purifier) -> None:
    found = []
    for budget in (0.0, 1e4, 1e18):
        purifier.graph_budget = budget
        leaf = images(3, SHAPE).requires_grad_()
        found.append(torch.autograd.grad(_loss(purifier(leaf, stream(3)).images[0]).sum(), leaf)[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_gradient_modes(purifier: Purifier) -> None:
    """Every offered mode sees the very same image; bpda's Jacobian is the identity bit for bit."""
    x, expected = images(3, SHAPE), purifier(images(3, SHAPE), stream(3)).images
    weights = images(3, SHAPE, seed=5)
    for mode in purifier.gradient_modes:
        leaf = x.clone().requires_grad_()
        out = purifier(leaf, stream(3), mode, x).images
        # Smooth levels are not rounded: the one mode whose image is another.
        assert torch.equal(out.detach(), expected) or (mode == "smooth" and isinstance(purifier, SSNI)), mode
        assert out.requires_grad == (mode != "detached")
        if mode == "bpda":
            (gradient,) = torch.autograd.grad((out * weights / len(out)).sum(), leaf)
            torch.testing.assert_close(gradient, weights, rtol=0, atol=0 if len(out) == 1 else 1e-6)


def test_an_unknown_gradient_mode_is_refused(purifier: Purifier) -> None:
    with pytest.raises(ValueError, match=f"{type(purifier).__name__} has no 'adjoint' gradient; it offers"):
        purifier(images(2, SHAPE), stream(2), "adjoint")  # type: ignore[arg-type]


def test_a_mode_that_the_method_does_not_offer_is_refused() -> None:
    purifier = NoisyPurifier()
    purifier.gradient_modes = ("bpda",)
    with pytest.raises(ValueError, match="no 'exact' gradient; it offers bpda"):
        purifier(images(2, SHAPE), stream(2))


def test_a_stream_of_another_length_is_refused(purifier: Purifier) -> None:
    with pytest.raises(ValueError, match="a noise stream of B rows"):
        purifier(images(3, SHAPE), stream(2))
    with pytest.raises(ValueError, match=r"takes images \(B, C, H, W\)"):
        purifier(images(3, SHAPE)[0], stream(1))


def test_networks_are_frozen_and_collect_no_gradient(purifier: Purifier) -> None:
    leaf = images(2, SHAPE).requires_grad_()
    purifier(leaf, stream(2)).images.sum().backward()
    assert leaf.grad is not None
    for parameter in purifier.parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
    assert not any(module.training for module in purifier.modules() if module is not purifier and _has_weights(module))


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def test_views_share_the_straight_through_gradient() -> None:
    """With V views, each has the identity as its Jacobian, so their gradients add up."""

    class TwoViews(Purifier):
        def run(self, x: Tensor, context: Context, noise) -> Purified:
            return Purified(torch.stack((x * 0, x + 1)))

    leaf = images(2, SHAPE).requires_grad_()
    out = TwoViews()(leaf, stream(2), "bpda").images
    assert torch.equal(out[1].detach(), leaf.detach() + 1)
    (gradient,) = torch.autograd.grad((out * torch.tensor([2.0, 3.0]).view(2, 1, 1, 1, 1)).sum(), leaf)
    assert torch.equal(gradient, torch.full_like(leaf, 5.0))


# DiffPure against closed forms ------------------------------------------------------------

VP_TIMES = [100.0, 75.0, 50.0, 25.0, 0.01]
CLOSED_FORMS: dict[str, tuple[Solver, str, Callable[..., Affine], list[float], str]] = {
    "euler_maruyama": (EulerMaruyama(), "vp", closed_form.euler_maruyama_step, VP_TIMES, "denoiser"),
    "published": (EulerMaruyama(), "vp", closed_form.euler_maruyama_step, VP_TIMES, "discrete"),
    "ddim": (DDIM(), "discrete", closed_form.ddim_step(0.0), [100, 75, 50, 25, 0], "denoiser"),
    "ddim_vp": (DDIM(), "vp", closed_form.ddim_step(0.0), VP_TIMES, "denoiser"),
    "ddim_half": (DDIM(0.5), "discrete", closed_form.ddim_step(0.5), [100, 75, 50, 25, 0], "denoiser"),
    "small": (
        Ancestral("small"),
        "discrete",
        closed_form.ancestral_step("small"),
        [100, 75, 50, 25, 0],
        "denoiser",
    ),
    "large": (
        Ancestral("large"),
        "discrete",
        closed_form.ancestral_step("large"),
        [100, 75, 50, 25, 0],
        "denoiser",
    ),
    "large_vp": (Ancestral("large"), "vp", closed_form.ancestral_step("large"), VP_TIMES, "denoiser"),
}


@pytest.fixture(params=CLOSED_FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


def _gaussian(form: str, covariance: np.ndarray = FULL) -> tuple[DiffPure, Affine]:
    solver, schedule, step, times, forward = CLOSED_FORMS[form]
    denoiser = GaussianDenoiser(SCHEDULES[schedule](), MEAN, covariance)
    law = diffpure_law(step, schedule, times, MEAN, covariance, None if forward == "denoiser" else forward)
    return DiffPure(denoiser, solver, 100, 4, forward), law  # type: ignore[arg-type]


@pytest.mark.parametrize("covariance", [FULL, DIAGONAL], ids=["full", "diagonal"])
def test_diffpure_is_its_affine_map_draw_by_draw(form: str, covariance: np.ndarray) -> None:
    """Every pixel of every draw, from the forward noise and each step's own, in the order of the steps."""
    purifier, law = _gaussian(form, covariance)
    x, noise = images(6, closed_form.SHAPE, dtype=torch.float64), stream(6)
    draws = [noise.fork("forward").normal((4,), dtype=torch.float64)]
    draws += [noise.fork("reverse").normal((4,), step=i, dtype=torch.float64) for i in range(4)]
    expected = x.flatten(1).numpy() @ law.matrix.T + law.offset
    for matrix, draw in zip(law.noises, draws[: len(law.noises)], strict=True):
        expected = expected + draw.numpy() @ matrix.T
    found = purifier(x, noise).images[0].flatten(1).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_the_purified_mean_and_covariance_are_the_analytic_ones(form: str) -> None:
    purifier, law = _gaussian(form)
    n, x = 4000, images(1, closed_form.SHAPE, dtype=torch.float64)
    found = purifier(x.expand(n, -1, -1, -1), stream(1).repeat(n)).images[0].flatten(1).numpy()
    mean = law.matrix @ x.flatten().numpy() + law.offset
    error = np.sqrt(np.diag(law.covariance) / n)
    assert (np.abs(found.mean(0) - mean) < 4.5 * error).all()
    scale = np.sqrt(np.outer(np.diag(law.covariance), np.diag(law.covariance)))
    assert (np.abs(np.cov(found.T) - law.covariance) < 4.5 * scale * np.sqrt(2 / n)).all()


@pytest.mark.parametrize("budget", [0.0, 1e18])
def test_the_input_gradient_is_the_analytic_jacobian_whatever_the_noise(form: str, budget: float) -> None:
    purifier, law = _gaussian(form)
    purifier.graph_budget = budget
    leaf = images(5, closed_form.SHAPE, dtype=torch.float64).requires_grad_()
    for k in range(4):
        out = purifier(leaf, stream(5, seed=k)).images[0].flatten(1)
        (row,) = torch.autograd.grad(out[:, k].sum(), leaf)
        np.testing.assert_allclose(row.flatten(1).numpy(), np.tile(law.matrix[k], (5, 1)), rtol=1e-11, atol=1e-13)


def test_the_trace_shows_the_noised_image() -> None:
    purifier, _ = _gaussian("small")
    x, noise = images(3, closed_form.SHAPE, dtype=torch.float64), stream(3)
    abar = closed_form.alpha_bar("discrete", 100)
    drawn = noise.fork("forward").normal(closed_form.SHAPE, dtype=torch.float64)
    expected = (abar**0.5 * (2 * x - 1) + (1 - abar) ** 0.5 * drawn + 1) / 2
    torch.testing.assert_close(purifier(x, noise).trace["noised"], expected)
    assert purifier.derived()["sigma"] == pytest.approx(0.3209, abs=5e-5)


def test_the_published_forward_noise_is_the_discrete_tables() -> None:
    assert (
        _diffpure(EulerMaruyama()).derived()["sigma"]
        != _diffpure(EulerMaruyama(), forward="discrete").derived()["sigma"]
    )
    purifier = DiffPure(SmoothDenoiser(VPSchedule()), EulerMaruyama(), 100, 4, "discrete")
    assert purifier.derived()["sigma"] == pytest.approx(0.3209, abs=5e-5)
    assert DiffPure(SmoothDenoiser(VPSchedule()), EulerMaruyama(), 100, 4).derived()["sigma"] == pytest.approx(
        0.3221, abs=5e-5
    )


def test_the_default_is_one_network_call_a_noising_step() -> None:
    """One less than the reference implementation, whose SDE library asks once more for the shape."""
    denoiser, calls = SmoothDenoiser(VPSchedule()).float(), []
    denoiser.register_forward_hook(lambda module, inputs, output: calls.append(float(inputs[1])))
    DiffPure(denoiser, EulerMaruyama())(images(1, SHAPE), stream(1))
    assert calls == [float(t) for t in range(100, 0, -1)]


def test_nothing_is_clamped() -> None:
    purifier, _ = _gaussian("euler_maruyama")
    x = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64).view(1, 1, 2, 2).expand(200, -1, -1, -1)
    out = purifier(x, stream(200)).images
    assert out.min() < 0
    assert out.max() > 1


@pytest.mark.parametrize(("t_star", "num_steps"), [(0, 1), (1001, 10), (100, 101), (100, 0)])
def test_impossible_grids_are_refused_at_construction(t_star: int, num_steps: int) -> None:
    with pytest.raises(ValueError, match=r"lies in 1\.\."):
        DiffPure(SmoothDenoiser(VPSchedule()), EulerMaruyama(), t_star, num_steps)


def test_a_solver_that_cannot_follow_the_schedule_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="choose the Ancestral or DDIM solver"):
        DiffPure(SmoothDenoiser(LinearSchedule()), EulerMaruyama())
