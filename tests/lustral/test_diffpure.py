"""DiffPure against closed forms on Gaussian data."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lustral.diffusion import DDIM, Ancestral, EulerMaruyama, LinearSchedule, Solver, VPSchedule
from lustral.purifiers import DiffPure
from tests import closed_form
from tests.closed_form import DIAGONAL, FULL, MEAN, SCHEDULES, Affine, GaussianDenoiser, diffpure_law
from tests.contracts import SmoothDenoiser, images, stream

SHAPE = (1, 4, 4)


def _diffpure(solver: Solver, schedule: str = "vp", forward: str = "denoiser") -> DiffPure:
    return DiffPure(SmoothDenoiser(SCHEDULES[schedule]()), solver, 200, 4, forward)  # type: ignore[arg-type]


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
    torch.testing.assert_close(purifier(x, noise, wants=["noised"]).trace["noised"], expected)
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
