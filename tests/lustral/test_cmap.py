"""CMAP: its loss and steps from their formulas, no coupling between images, and theorem 1 for Gaussian data."""

import itertools
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from lustral.attacks import Engine
from lustral.defence import Defence
from lustral.diffusion import (
    ConsistencyGenerator,
    Context,
    EDMSchedule,
    Generator,
    Heun,
    LinearSchedule,
    to_diffusion,
)
from lustral.noise import NoiseStream
from lustral.purifiers import (
    CMAP,
    Chain,
    GaussianBlur,
    Identity,
    LatentConstraint,
    LatentMMD,
    LatentMoments,
    LatentWasserstein,
    OneStepConsistency,
    Purified,
    Variant,
)
from lustral.purifiers.implicit import through_minimiser
from lustral.purifiers.similarity import ssim_map
from lustral.rows import Runtime
from tests.closed_form import DIAGONAL, FULL, MEAN, GaussianConsistency, GaussianDenoiser
from tests.closed_form import SHAPE as FLAT
from tests.contracts import NoisyPurifier, SmoothDenoiser, ToyClassifier, generator, images, stream

SHAPE = (1, 4, 4)


def _generator(sigma_max: float = 20.0) -> ConsistencyGenerator:
    return ConsistencyGenerator(SmoothDenoiser(EDMSchedule(), SHAPE), sigma_max)


def _cmap(**options: Any) -> CMAP:
    given: dict[str, Any] = {"num_latents": 3, "num_steps": 6, "lr": 0.5, "latent_weight": 8e-3}
    return CMAP(_generator(), **{**given, **options}).float()


def _run(purifier: CMAP, x: Tensor, noise: NoiseStream, *wants: str) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad():
        purified = purifier(x, noise, wants=wants)
    return purified.images, purified.trace


# The optimisation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.005])
def test_latents_are_those_of_the_papers_loss_under_adam(scale: float) -> None:
    """torch's own Adam on all latents at once, with the loss written down again."""
    purifier = _cmap(scale=scale).double()
    x, noise = images(4, SHAPE, dtype=torch.float64), stream(4)
    found = _run(purifier, x, noise, "latents")[1]["latents"]
    z = purifier.prepare(x, noise)["latents"].requires_grad_()
    optimiser = torch.optim.Adam([z], lr=0.5, betas=(0.9, 0.99))
    for _ in range(6):
        optimiser.zero_grad()
        generated = purifier.generator(z.flatten(0, 1)).view_as(z)
        l1 = (2 * generated - 1 - to_diffusion(x)[:, None]).abs().sum()
        ssim = ssim_map(generated.flatten(0, 1), x.repeat_interleave(3, 0)).sum()
        moments = (z.mean(1).square() + (z.std(1) - 20.0).square()).sum()
        (scale * (l1 - 2.0 * ssim + 8e-3 * 3 * moments)).backward()
        optimiser.step()
    torch.testing.assert_close(found, z.detach(), rtol=1e-9, atol=1e-9)


def test_latents_start_as_noise_of_sigma_max_each_by_its_own_key() -> None:
    x, noise = images(400, SHAPE), stream(400)
    few, many = (_cmap(num_latents=n).prepare(x, noise)["latents"] for n in (2, 5))
    assert torch.equal(many[:, :2], few), "a latent keeps its key, however many there are"
    assert many.std() == pytest.approx(20.0, rel=0.02)
    assert abs(float(torch.corrcoef(many.flatten(2).transpose(0, 1).flatten(1))[0, 1])) < 0.05
    warm = _cmap(start="inversion").prepare(x, noise)["latents"]
    torch.testing.assert_close(
        warm, few[:, :1].new_tensor(0) + _cmap().prepare(x, noise)["latents"] + 2 * x[:, None] - 1
    )


def test_the_last_latents_give_the_views() -> None:
    purifier, x, noise = _cmap(), images(3, SHAPE), stream(3)
    views, trace = _run(purifier, x, noise, "latents")
    assert views.shape == (3, 3, *SHAPE)
    for k in range(3):
        torch.testing.assert_close(views[k], purifier.generator(trace["latents"][:, k]))
    assert views.aminmax().min >= 0
    assert views.aminmax().max <= 1


def test_the_curves_are_the_terms_at_the_latents_of_each_step() -> None:
    x, noise = images(2, SHAPE), stream(2)
    names = ("l1", "ssim", "constraint", "latent_mean", "latent_std")
    _, curves = _run(_cmap(), x, noise, *names)
    shorter = _cmap(num_steps=4)
    views, trace = _run(shorter, x, noise, "latents")
    l1, ssim = shorter.distances(views.flatten(0, 1), x.repeat(3, 1, 1, 1))
    latents = trace["latents"]
    expected = {
        "l1": l1.view(3, 2).sum(0),
        "ssim": ssim.view(3, 2).sum(0),
        "constraint": LatentMoments()(latents, 20.0),
        "latent_mean": latents.flatten(1).mean(1),
        "latent_std": latents.flatten(1).std(1, correction=0),
    }
    for name in names:
        torch.testing.assert_close(curves[name][:, 4], expected[name], rtol=1e-4, atol=1e-4)


def test_an_image_of_the_generator_is_restored() -> None:
    """And a smaller loss is what it is restored by."""
    source = ConsistencyGenerator(GaussianConsistency(EDMSchedule(), MEAN / 4, DIAGONAL / 4), 5.0)
    purifier = CMAP(source, 3, num_steps=150, lr=0.3, latent_weight=1e-4)
    x = source(5.0 * torch.randn(4, *FLAT, generator=generator(3), dtype=torch.float64))
    views, curves = _run(purifier, x, stream(4), "l1")
    assert (views - x).abs().mean() < 0.02
    assert (curves["l1"][:, -1] < 0.1 * curves["l1"][:, 0]).all()


# No image looks at another ----------------------------------------------------------------------------------------


def test_neighbours_change_no_bit() -> None:
    """Others in their place, NaN among them, and another order (the acceptance tests of the method's batch form)."""
    purifier, x, noise = _cmap(num_steps=10), images(8, SHAPE), stream(8)
    alone = _run(purifier, x, noise, "latents")
    others = torch.cat((x[:1], images(7, SHAPE, seed=9)))
    poisoned = torch.cat((x[:1], torch.full_like(x[1:], torch.nan)))
    for batch in (others, poisoned):
        images_, trace = _run(purifier, batch, noise, "latents")
        assert torch.equal(images_[:, 0], alone[0][:, 0])
        assert torch.equal(trace["latents"][0], alone[1]["latents"][0])
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    images_, trace = _run(purifier, x[order], noise.select(order), "latents")
    assert torch.equal(images_, alone[0][:, order])
    assert torch.equal(trace["latents"], alone[1]["latents"][order])


@pytest.mark.parametrize("constraint", [LatentMoments(), LatentWasserstein(), LatentMMD()])
def test_chunks_and_batches_agree_in_float64(constraint: LatentConstraint) -> None:
    purifier = _cmap(num_steps=10, constraint=constraint).double()
    x, noise = images(6, SHAPE, dtype=torch.float64), stream(6)
    together = _run(purifier, x, noise, "latents")[1]["latents"]
    purifier.runtime = Runtime(2)
    torch.testing.assert_close(_run(purifier, x, noise, "latents")[1]["latents"], together, rtol=0, atol=1e-10)
    for b in range(6):
        row = torch.tensor([b])
        one = _run(purifier, x[row], noise.select(row), "latents")[1]["latents"]
        torch.testing.assert_close(one, together[row], rtol=0, atol=1e-10)


def test_an_image_that_stops_rests_and_others_go_on() -> None:
    x, noise = images(5, SHAPE), stream(5)
    whole = _run(_cmap(), x, noise, "latents")[1]["latents"]
    never = _run(_cmap(stop_tolerance=-1e9, stop_window=2), x, noise, "latents")[1]["latents"]
    assert torch.equal(never, whole)
    _, at_once = _run(_cmap(stop_tolerance=1e9, stop_window=2), x, noise, "latents", "l1")
    assert torch.equal(at_once["latents"], _run(_cmap(num_steps=2), x, noise, "latents")[1]["latents"])
    assert torch.equal(at_once["l1"][:, 1:], at_once["l1"][:, 1:2].expand(5, 5))
    _, curves = _run(_cmap(), x, noise, "l1", "ssim", "constraint")
    loss = curves["l1"] - 2 * curves["ssim"] + 8e-3 * curves["constraint"]
    fall = (loss[:, 0] - loss[:, 1]) / (3 * 16)
    between = float(fall.sort().values[1:3].mean())
    some = _run(_cmap(stop_tolerance=between, stop_window=2), x, noise, "latents")[1]["latents"]
    stopped = fall < between
    assert stopped.sum() == 2
    assert torch.equal(some[stopped], at_once["latents"][stopped])
    assert not (some == at_once["latents"]).flatten(1).all(1)[~stopped].any()


# Constraints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constraint", [LatentMoments(), LatentWasserstein(), LatentMMD()])
def test_a_constraint_is_small_for_latents_of_the_generator_and_grows_with_their_distance(
    constraint: LatentConstraint,
) -> None:
    z = 3.0 * torch.randn(2, 64, 1, 2, 2, generator=generator(), dtype=torch.float64)
    own, moved, wide = (constraint(each, 3.0) / (64 * 4 * 9.0) for each in (z, z + 6.0, 3.0 * z))
    assert (own < 0.1).all()
    assert (moved > 3 * own).all()
    assert (wide > 3 * own).all()


def test_moments_are_the_codes() -> None:
    z = 5.0 + torch.randn(3, 4, 1, 2, 2, generator=generator(), dtype=torch.float64)
    expected = [4 * float((each.mean(0) ** 2 + (each.std(0, ddof=1) - 2.0) ** 2).sum()) for each in z.numpy()]
    torch.testing.assert_close(LatentMoments()(z, 2.0), torch.tensor(expected, dtype=torch.float64))
    same = torch.zeros(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(LatentMoments()(same, 2.0).sum(), same)[0].isfinite().all()


def test_wasserstein_is_the_distance_of_quantiles() -> None:
    """By quantiles on a fine grid, without the closed form of the bins."""
    z = 2.0 * torch.randn(2, 5, 3, generator=generator(), dtype=torch.float64) + 0.5
    q = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    normal = 2.0 * 2**0.5 * torch.erfinv(2 * q - 1)
    sorted_values = z.sort(1).values[:, (q * 5).long()]
    expected = 5 * (sorted_values - normal[:, None]).square().mean(1).sum(1)
    torch.testing.assert_close(LatentWasserstein()(z, 2.0), expected, rtol=1e-3, atol=1e-3)


def test_mmd_is_that_of_a_sample_of_the_normal_distribution() -> None:
    z = 2.0 * torch.randn(1, 6, 4, generator=generator(), dtype=torch.float64) + 1.0
    y = 2.0 * torch.randn(1000, 4, generator=generator(1), dtype=torch.float64)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a, b).square() / (2 * 4 * 4.0)).mean()

    expected = 6 * 16.0 * (kernel(z[0], z[0]) - 2 * kernel(z[0], y) + kernel(y, y))
    assert float(LatentMMD()(z, 2.0)) == pytest.approx(float(expected), rel=0.06)


# Gradients --------------------------------------------------------------------------------------------------------


def test_the_implicit_derivative_is_that_of_the_minimum() -> None:
    """Of z' A z / 2 - z' C x, whose minimum is A^-1 C x."""
    size = 5
    factor = torch.randn(size, size, generator=generator(), dtype=torch.float64)
    a, c = factor @ factor.T + torch.eye(size), torch.randn(size, 3, generator=generator(1), dtype=torch.float64)
    x = torch.randn(4, 3, generator=generator(2), dtype=torch.float64, requires_grad=True)
    minimum = torch.linalg.solve(a, c @ x.detach().T).T
    found = through_minimiser(minimum, x, lambda z, x, w: (w @ a, -w @ c), size, 0.0)
    weights = torch.randn(4, size, generator=generator(3), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((found * weights).sum(), x)
    torch.testing.assert_close(gradient, weights @ torch.linalg.solve(a, c))


def test_the_implicit_derivative_of_latents_is_that_of_all_steps_where_these_reach_a_minimum() -> None:
    options: dict[str, Any] = {
        "num_latents": 2,
        "ssim_weight": 0.0,
        "latent_weight": 0.05,
        "constraint": LatentWasserstein(),
        "smoothing": 1.0,
    }
    source = ConsistencyGenerator(GaussianConsistency(EDMSchedule(), MEAN / 4, DIAGONAL / 4), 2.0)
    x = images(2, FLAT, dtype=torch.float64)
    found = []
    for more in ({"derivative": "implicit", "solver_steps": 8, "damping": 0.0}, {}):
        purifier = CMAP(source, num_steps=200, lr=0.05, betas=(0.9, 0.99), **options, **more).double()
        leaf = x.clone().requires_grad_()
        out = purifier(leaf, stream(2)).images
        weights = torch.randn(out.shape, generator=generator(4), dtype=torch.float64)
        found.append(torch.autograd.grad((out * weights).sum(), leaf)[0].flatten(1))
    assert torch.cosine_similarity(*found).min() > 0.9999
    torch.testing.assert_close(*found, rtol=0.01, atol=0.01 * float(found[1].abs().max()))


def test_carried_latents_go_on_where_they_were() -> None:
    """Without memory, two steps and two steps are four."""
    x, noise = images(2, SHAPE), stream(2)
    two, four = (_cmap(optimiser="gradient", num_steps=steps) for steps in (2, 4))
    with torch.no_grad():
        first = two(x, noise, wants=["latents"])
        again = two(x, noise, context=first.trace, wants=["latents"])
    assert torch.equal(again.trace["latents"], _run(four, x, noise, "latents")[1]["latents"])


def test_the_published_loss_has_no_exact_gradient_and_names_the_variants() -> None:
    purifier = _cmap()
    with pytest.raises(ValueError, match=r"no 'exact' gradient.*bpda.*Variant of changes \{smoothing.*implicit"):
        purifier(images(1, SHAPE).requires_grad_(), stream(1))
    variant = Variant({"smoothing": 0.1, "optimiser": "gradient", "num_steps": 2}).of(purifier)
    leaf = images(1, SHAPE).requires_grad_()
    assert torch.autograd.grad(variant(leaf, stream(1)).images.sum(), leaf)[0].abs().max() > 0


# Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_latents": 1}, "LatentMoments compares at least 2 latents"),
        ({"start": "image"}, "start is 'image'; it may be noise, inversion"),
        ({"optimiser": "lbfgs"}, "optimiser is 'lbfgs'"),
        ({"derivative": "exact"}, "derivative is 'exact'"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"stop_tolerance": 0.1, "stop_window": 1}, "at least 2"),
        ({"lr": 0.0}, "must be positive"),
        ({"lr": float("nan")}, "must be positive"),
        ({"latent_weight": float("nan")}, "cannot be negative"),
        ({"stop_tolerance": float("nan")}, "stop_tolerance is nan"),
        ({"smoothing": -1.0}, "cannot be negative"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        _cmap(**options)


def test_one_latent_is_enough_without_the_term() -> None:
    assert _run(_cmap(num_latents=1, latent_weight=0.0), images(2, SHAPE), stream(2))[0].shape[0] == 1


def test_a_generator_is_one_step_from_its_highest_level() -> None:
    denoiser = SmoothDenoiser(EDMSchedule(), SHAPE).float()
    z = torch.randn(2, *SHAPE, generator=generator())
    top = torch.tensor(1000.0, dtype=torch.float64)
    found = ConsistencyGenerator(denoiser)
    assert found.latent_std == pytest.approx(80.0)
    torch.testing.assert_close(found(80 * z), ((denoiser(80 * z, top) + 1) / 2).clamp(0, 1))
    with pytest.raises(ValueError, match=r"sigma_max is 81; it lies in \(0, 80\]"):
        ConsistencyGenerator(denoiser, 81)

    class Bare(Generator):
        def forward(self, z: Tensor) -> Tensor:
            return z

    with pytest.raises(ValueError, match="Bare cannot be inverted: start the latents from noise"):
        Bare().inverted(z, z)


# One step, chains -------------------------------------------------------------------------------------------------

KARRAS = [0.002, 0.0075, 0.0229, 0.0599, 0.1395, 0.2964, 0.5853, 1.088, 1.923, 3.257, 5.315, 8.401, 12.91, 19.35]


def test_the_levels_of_one_step_are_the_papers() -> None:
    denoiser = SmoothDenoiser(EDMSchedule(), SHAPE)
    for level, sigma in enumerate(KARRAS, 1):
        assert OneStepConsistency(denoiser, level).derived()["sigma"] == pytest.approx(sigma, rel=0.01)
    assert OneStepConsistency(denoiser, 18).derived()["sigma"] == pytest.approx(80.0)
    assert OneStepConsistency(denoiser, 18, sigma_max=20.0).derived()["sigma"] == pytest.approx(20.0)
    higher = SmoothDenoiser(EDMSchedule(sigma_min=0.05), SHAPE)
    assert OneStepConsistency(higher, 1).derived()["sigma"] == pytest.approx(0.05), "no level below its range"
    table = SmoothDenoiser(LinearSchedule(), SHAPE)
    assert OneStepConsistency(table, 5, sigma_max=80.0).derived()["sigma"] == pytest.approx(0.1395, abs=0.01)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"level": 0}, "level is 0"),
        ({"level": 5, "num_levels": 4}, "it lies in 1..num_levels = 4"),
        ({"sigma_max": 100.0}, "sigma_max is 100.0; the schedule"),
    ]
    for options, told in refused:
        with pytest.raises(ValueError, match=told):
            OneStepConsistency(denoiser, **options)


def test_one_step_keeps_the_gaussian_and_shrinks_its_deviation() -> None:
    """Of Gaussian data it returns mean + (x + sigma z - mean) sqrt(v / (v + sigma^2)), axis by axis."""
    purifier = OneStepConsistency(GaussianConsistency(EDMSchedule(), MEAN, DIAGONAL), 8)
    x = images(2000, FLAT, dtype=torch.float64)[:1].expand(2000, *FLAT)
    out = to_diffusion(purifier(x, NoiseStream(0, torch.arange(2000))).images[0]).flatten(1)
    sigma = purifier.derived()["sigma"]
    gain = np.sqrt(np.diag(DIAGONAL) / (np.diag(DIAGONAL) + sigma**2))
    expected = MEAN + gain * (to_diffusion(x[0]).flatten().numpy() - MEAN)
    assert np.allclose(out.mean(0).numpy(), expected, atol=4 * sigma / np.sqrt(2000))
    assert np.allclose(out.std(0).numpy(), gain * sigma, rtol=0.08)


def test_parts_of_a_chain_draw_from_streams_of_their_own() -> None:
    x, noise = images(3, SHAPE), stream(3)
    chain = Chain([NoisyPurifier(0.01), NoisyPurifier(0.02)])
    first = NoisyPurifier(0.01)(x, noise.fork("0")).images[0]
    assert torch.equal(chain(x, noise).images[0], NoisyPurifier(0.02)(first, noise.fork("1")).images[0])
    bright = torch.full_like(x, 0.99)
    assert Chain([NoisyPurifier(1.0), Identity()])(bright, noise).images.amax() <= 1, "an input is an image"


def test_a_chain_knows_its_parts_by_number() -> None:
    chain = Chain([GaussianBlur(), _cmap()])
    assert chain.holds == {"1.latents"}
    assert "1.l1" in chain.offers
    assert chain.gradient_modes == ("bpda", "detached")
    assert chain.derived()["network_calls"] == 21
    variant = Variant({"purifiers.1.smoothing": 0.1, "purifiers.1.num_steps": 2, "purifiers.0.sigma": 0.5}).of(chain)
    assert isinstance(variant, Chain)
    assert variant.gradient_modes[0] == "exact"
    assert variant.derived()["network_calls"] == 9
    with pytest.raises(ValueError, match=r"purifiers.1: Through the L1 distance"):
        chain(images(1, SHAPE).requires_grad_(), stream(1))


def test_a_chain_refuses_views_in_its_midst_and_nothing_at_all() -> None:
    with torch.no_grad(), pytest.raises(ValueError, match=r"purifiers.0, a CMAP, gives 3 views .* last of the chain"):
        Chain([_cmap(), Identity()])(images(2, SHAPE), stream(2))
    with pytest.raises(ValueError, match="at least one"):
        Chain([])


def test_a_chain_counts_the_calls_of_every_part_once_or_not_at_all() -> None:
    def one() -> OneStepConsistency:
        return OneStepConsistency(SmoothDenoiser(EDMSchedule(), SHAPE))

    assert Chain([Chain([one(), one()]), one()]).derived()["network_calls"] == 3

    class Silent(OneStepConsistency):
        def derived(self) -> dict[str, float]:
            return {}

    silent = Silent(SmoothDenoiser(EDMSchedule(), SHAPE))
    assert "network_calls" not in Chain([silent, _cmap()]).derived(), "it would be the second part's alone"


class _Grouped(NoisyPurifier):
    """Purifies groups of four, and remembers how many rows it was given."""

    def __init__(self) -> None:
        super().__init__(0.01)
        self.group_size, self.seen = 4, list[int]()

    def run(self, x: Tensor, *rest: Any) -> Purified:
        self.seen.append(len(x))
        return super().run(x, *rest)


def test_a_part_that_purifies_groups_is_given_whole_ones_whatever_stands_beside_it() -> None:
    grouped, x, noise = _Grouped(), images(8, SHAPE), stream(8)
    chain = Chain([NoisyPurifier(0.1), grouped])
    whole = chain(x, noise).images
    chain.runtime = Runtime(3)
    assert chain.group_size == 4
    torch.testing.assert_close(chain(x, noise).images, whole)
    assert grouped.seen == [8, 8]
    other = _Grouped()
    other.group_size = 3
    with pytest.raises(ValueError, match=r"groups of \[3, 4\] images"):
        Chain([grouped, other])


def test_what_a_chain_prepares_is_of_the_rows_of_a_call_too() -> None:
    """A ragged part makes the chain ragged; the others' contexts may not depend on how many images there are."""

    class Watching(GaussianBlur):
        seen: ClassVar[list[int]] = []

        def prepare(self, x: Tensor, noise: NoiseStream) -> Context:
            self.seen.append(len(x))
            return super().prepare(x, noise)

    chain = Chain([Watching(), _cmap(stop_tolerance=0.1)])
    chain.runtime = Runtime(3)
    with torch.no_grad():
        chain.prepared(images(5, SHAPE), stream(5))
    assert set(Watching.seen) == {3}


def test_views_vote_behind_a_defence() -> None:
    purifier, classifier = _cmap(num_latents=5), ToyClassifier()
    defence = Defence(classifier, purifier, "vote").eval().requires_grad_(False)
    x, noise = images(6, SHAPE), stream(6)
    found = Engine(defence, 6).logits(x, noise)[0]
    labels = torch.stack([classifier(view).argmax(1) for view in _run(purifier, x, noise)[0]])
    assert torch.equal(found, torch.stack([(labels == k).sum(0) for k in range(3)], 1).float())


# Theorem 1 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", [0.3 * np.eye(4), DIAGONAL, FULL], ids=["isotropic", "diagonal", "full"])
def test_the_latent_of_an_adversarial_image_is_shifted_as_for_gaussian_data(covariance: np.ndarray) -> None:
    """Theorem 1: along the flow's ODE from the image to sigma_max the latents of x and x + delta part by delta times
    sqrt(1 + sigma_max^2 / v) along each axis of variance v. (For the identity times v this is one number.)"""
    sigma_max = 5.0
    schedule = EDMSchedule(sigma_max=sigma_max)
    denoiser = GaussianDenoiser(schedule, MEAN, covariance)
    x = to_diffusion(images(2, FLAT, dtype=torch.float64))
    delta = 0.1 * torch.randn(2, *FLAT, generator=generator(), dtype=torch.float64).sign()
    times, solver = torch.linspace(1.0, 1000.0, 201, dtype=torch.float64), Heun()

    def latent(start: Tensor) -> Tensor:
        state = start
        for t, s in itertools.pairwise(times):
            state = solver.step(denoiser, state, t, s, torch.zeros_like(state))
        return state

    with torch.no_grad():
        clean, adversarial = latent(x), latent(x + delta)
        generated = ConsistencyGenerator(GaussianConsistency(schedule, MEAN, covariance))
        restored = generated.denoiser(adversarial, torch.tensor(1000.0, dtype=torch.float64))
    variances, axes = np.linalg.eigh(covariance)
    grown = np.sqrt((variances + sigma_max**2) / (variances + schedule.sigma_min**2))
    expected = (delta.flatten(1).numpy() @ axes * grown) @ axes.T
    found = (adversarial - clean).flatten(1).numpy()
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    torch.testing.assert_close(restored, x + delta, rtol=0, atol=2e-3)  # what is followed exactly is restored exactly
