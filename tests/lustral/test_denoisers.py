"""The contract of a Denoiser. A new network joins by one row."""

from collections.abc import Callable

import pytest
import torch

from lustral.diffusion import Denoiser, LinearSchedule, VPSchedule
from lustral.networks import ADMDenoiser, SongUNetDenoiser, UNetDenoiser
from tests.closed_form import GaussianDenoiser
from tests.contracts import central_differences, generator, randomise, relative_error


def _unet(schedule: str) -> Denoiser:
    unet = UNetDenoiser(4, 1, (8, 16), 1, (False, True), norm_groups=4, dropout=0.0, preconditioning=schedule)  # type: ignore[arg-type]
    randomise(unet, 0.2)
    return unet.double().eval().requires_grad_(False)


def _song_unet() -> Denoiser:
    unet = SongUNetDenoiser(4, 1, 8, (1, 2), 1, (4,), dropout=0.0)
    randomise(unet, 0.2)
    return unet.double().eval().requires_grad_(False)


def _adm(preconditioning: str, resample: str) -> Denoiser:
    adm = ADMDenoiser(4, 1, 32, (1, 2), 1, (2,), 32, None, resample, True, 0.0, preconditioning)  # type: ignore[arg-type]
    randomise(adm, 0.2)
    return adm.double().eval().requires_grad_(False)


DENOISERS: dict[str, Callable[[], Denoiser]] = {
    "gaussian, vp": lambda: GaussianDenoiser(VPSchedule()).requires_grad_(False),
    "gaussian, discrete": lambda: GaussianDenoiser(LinearSchedule()).requires_grad_(False),
    "unet, vp": lambda: _unet("vp"),
    "unet, discrete": lambda: _unet("linear"),
    "song unet": _song_unet,
    "adm, linear": lambda: _adm("linear", "residual"),
    "adm, cosine": lambda: _adm("cosine", "conv"),
    "adm, consistency": lambda: _adm("consistency", "residual"),
}
TIMES = torch.tensor([1.0, 100.0, 400.0, 999.0, 1000.0], dtype=torch.float64)


@pytest.fixture(params=DENOISERS.values(), ids=DENOISERS.keys())
def denoiser(request: pytest.FixtureRequest) -> Denoiser:
    return request.param()


def _states(denoiser: Denoiser, batch: int) -> torch.Tensor:
    return torch.randn(batch, *denoiser.image_shape, generator=generator(), dtype=torch.float64)


def test_shape_type_and_finiteness(denoiser: Denoiser) -> None:
    x = _states(denoiser, len(TIMES))
    out = denoiser(x, TIMES)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert out.isfinite().all()


def test_a_shared_time_is_the_same_time_in_every_row(denoiser: Denoiser) -> None:
    x = _states(denoiser, 3)
    for t in TIMES:
        torch.testing.assert_close(denoiser(x, t), denoiser(x, t.expand(3)), rtol=1e-12, atol=1e-12)


def test_rows_do_not_look_at_each_other(denoiser: Denoiser) -> None:
    x = _states(denoiser, len(TIMES))
    whole = denoiser(x, TIMES)
    alone = torch.cat([denoiser(x[i : i + 1], TIMES[i : i + 1]) for i in range(len(TIMES))])
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(alone, whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(denoiser(x[order], TIMES[order]), whole[order], rtol=1e-10, atol=1e-10)


def test_noise_and_score_are_the_mean_seen_from_elsewhere(denoiser: Denoiser) -> None:
    """x_t = alpha x_0 + sigma noise, and Tweedie's formula: score = (alpha x_0 - x_t) / sigma**2."""
    x, t = _states(denoiser, 2), torch.tensor(250.0, dtype=torch.float64)
    alpha, sigma = denoiser.schedule.alpha(t), denoiser.schedule.sigma(t)
    x_0 = denoiser(x, t)
    torch.testing.assert_close(alpha * x_0 + sigma * denoiser.noise(x, t), x)
    torch.testing.assert_close(denoiser.score(x, t), (alpha * x_0 - x) / sigma**2)


def test_input_gradients_flow_through_frozen_weights_and_are_right(denoiser: Denoiser) -> None:
    x, t = _states(denoiser, 1).requires_grad_(), torch.tensor(300.0, dtype=torch.float64)
    weight = _states(denoiser, 1).flip(-1)
    (found,) = torch.autograd.grad((denoiser(x, t) * weight).sum(), x)
    expected = central_differences(lambda z: (denoiser(z, t) * weight).sum(), x.detach())
    assert relative_error(found, expected) < 1e-6


def test_nothing_is_drawn_and_nothing_changes(denoiser: Denoiser) -> None:
    x, state = _states(denoiser, 2), torch.random.get_rng_state()
    first, second = denoiser(x, TIMES[:2]), denoiser(x, TIMES[:2])
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), state)
