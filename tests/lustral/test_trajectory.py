"""The unrolled trajectory: its gradient is the whole graph's, at constant memory, whatever the budget."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from lustral.diffusion import DDIM, Ancestral, Context, EulerMaruyama, Solver, VPSchedule, unroll
from lustral.evaluation.cost import LiveBytes
from lustral.networks import UNetDenoiser
from lustral.noise import NoiseStream
from lustral.purifiers import DiffPure
from tests.contracts import (
    SmoothDenoiser,
    central_differences,
    generator,
    images,
    randomise,
    relative_error,
    stream,
)

NUM_STEPS = 5
EXACT = 1e-6
"""Relative error that a right gradient has at most, against central differences in float64."""
SOLVERS: dict[str, Solver] = {
    "euler_maruyama": EulerMaruyama(),
    "ddim": DDIM(),
    "ddim_full": DDIM(eta=1.0),
    "ancestral_small": Ancestral("small"),
    "ancestral_large": Ancestral("large"),
    "clipped": Ancestral(clip_denoised=True),
}


def _renoising_step(noise_of: Callable[[int, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A step that adds noise *before* its network call, as resampling and several rounds do.

    Noise added behind the network shifts the next state only, which is stored: replaying other noise would go
    unnoticed there, and rightly so.
    """
    denoiser = SmoothDenoiser(VPSchedule()).requires_grad_(False)

    def step(i: int, x: Tensor, context: Context) -> Tensor:
        time = torch.tensor(100.0 * (NUM_STEPS - i) / NUM_STEPS, dtype=torch.float64)
        noised = x + 0.5 * noise_of(i, x)
        if context:
            noised = noised * (1 + context["other"])
        return denoiser(noised, time)

    return step


def _keyed(i: int, x: Tensor) -> Tensor:
    return stream(len(x)).normal(x.shape[1:], step=i, dtype=x.dtype)


def _loss(out: Tensor) -> Tensor:
    """(B,) a loss with a different weight for each pixel, so that no two errors cancel."""
    weights = torch.linspace(-1, 2, out[0].numel(), dtype=out.dtype).view(out.shape[1:])
    return (weights * torch.sin(2 * out)).flatten(1).sum(1)


def _gradient(function: Callable[..., Tensor], *leaves: Tensor) -> tuple[Tensor, ...]:
    leaves = tuple(leaf.detach().clone().requires_grad_() for leaf in leaves)
    return torch.autograd.grad(_loss(function(*leaves)).sum(), leaves)


def _straight(step: Callable[..., Tensor], x: Tensor, other: Tensor | None = None) -> Tensor:
    for i in range(NUM_STEPS):
        x = step(i, x, {} if other is None else {"other": other})
    return x


def _inputs() -> tuple[Tensor, Tensor]:
    return images(3, dtype=torch.float64), 0.3 * images(3, seed=1, dtype=torch.float64)


def test_the_gradient_is_the_whole_graphs() -> None:
    """For the state and for an input that every step uses; and both are what central differences say."""
    step, (x, other) = _renoising_step(_keyed), _inputs()
    found = _gradient(lambda x, other: unroll(step, NUM_STEPS, x, {"other": other}), x, other)
    expected = _gradient(lambda x, other: _straight(step, x, other), x, other)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert relative_error(found[0], central_differences(lambda x: _loss(_straight(step, x, other)), x)) < EXACT
    assert relative_error(found[1], central_differences(lambda z: _loss(_straight(step, x, z)), other)) < EXACT


BUDGETS = (0.0, 1.0, *(2.0**k for k in range(10, 17)), 1e18)


@pytest.mark.parametrize("budget", BUDGETS[1:])
def test_a_graph_budget_changes_no_bit(budget: float) -> None:
    step, (x, other) = _renoising_step(_keyed), _inputs()
    recomputed = _gradient(lambda x, other: unroll(step, NUM_STEPS, x, {"other": other}), x, other)
    kept = _gradient(lambda x, other: unroll(step, NUM_STEPS, x, {"other": other}, budget), x, other)
    for one, two in zip(recomputed, kept, strict=True):
        assert torch.equal(one, two)


def test_budgets_do_change_how_often_a_step_runs() -> None:
    """0 runs every step twice, plenty once, others in between: the tests above compare modes that differ."""
    runs = {}
    for budget in BUDGETS:
        count = []
        inner = _renoising_step(_keyed)

        def step(i: int, x: Tensor, context: Context, inner=inner, count=count) -> Tensor:
            count.append(i)
            return inner(i, x, context)

        _gradient(lambda x, step=step, budget=budget: unroll(step, NUM_STEPS, x, {}, budget), _inputs()[0])
        runs[budget] = len(count)
    assert runs[0.0] == runs[1.0] == 2 * NUM_STEPS
    assert runs[1e18] == NUM_STEPS
    assert len(set(runs.values())) > 2
    assert list(runs.values()) == sorted(runs.values(), reverse=True)


def test_without_a_gradient_the_loop_is_plain() -> None:
    step, (x, _) = _renoising_step(_keyed), _inputs()
    expected = _straight(step, x)
    assert torch.equal(unroll(step, NUM_STEPS, x), expected)
    assert unroll(step, NUM_STEPS, x).grad_fn is None
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        assert torch.equal(unroll(step, NUM_STEPS, leaf), expected)
    assert torch.equal(unroll(step, NUM_STEPS, leaf).detach(), expected)
    assert unroll(step, NUM_STEPS, leaf).requires_grad


def test_an_input_alone_may_need_the_gradient() -> None:
    step, (x, other) = _renoising_step(_keyed), _inputs()
    (found,) = _gradient(lambda other: unroll(step, NUM_STEPS, x, {"other": other}), other)
    (expected,) = _gradient(lambda other: _straight(step, x, other), other)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_step_that_ignores_its_state_passes_no_gradient_on() -> None:
    """The state's gradient is then zero, not missing, and inputs of later steps still get theirs."""
    x, other = _inputs()
    leaf, given = x.requires_grad_(), other.requires_grad_()
    constant = unroll(lambda i, x, context: context["z"] * (i + 1.0), 3, leaf, {"z": given})
    gradients = torch.autograd.grad(constant.sum(), (leaf, given))
    assert torch.equal(gradients[0], torch.zeros_like(x))
    assert torch.equal(gradients[1], torch.full_like(other, 3.0))


@pytest.mark.parametrize("budget", [0.0, 1e18])
def test_other_noise_in_the_recomputation_is_caught(budget: float) -> None:
    """A mutant whose noise comes from a generator that moves on, as torch's global one does.

    Recomputed, its gradient belongs to another trajectory, and the check of this file says so; with every
    graph kept nothing is recomputed, and the same mutant is right.
    """
    x, _ = _inputs()

    def mutant() -> Callable[..., Tensor]:
        moving = generator(3)
        return _renoising_step(lambda i, x: torch.randn(x.shape, generator=moving, dtype=x.dtype))

    (found,) = _gradient(lambda x: unroll(mutant(), NUM_STEPS, x, {}, budget), x)
    expected = central_differences(lambda x: _loss(_straight(mutant(), x)), x)
    assert (relative_error(found, expected) > 100 * EXACT) == (budget == 0)


def test_a_captured_tensor_loses_its_gradient_and_an_argument_keeps_it() -> None:
    """Why the context exists: a tensor that the step captures would be a constant to the backward pass. It is refused;
    detached, which says that this is meant, its share is lost."""
    step, (x, _) = _renoising_step(_keyed), _inputs()

    def mask(x: Tensor) -> Tensor:
        return 0.5 * torch.sigmoid(3 * x)

    expected = central_differences(lambda x: _loss(_straight(step, x, mask(x))), x)

    def captured(x: Tensor, hide: Callable[[Tensor], Tensor], budget: float = 0.0) -> Tensor:
        hidden = hide(mask(x))  # it has a graph, which the trajectory's own backward pass never enters
        return unroll(lambda i, state, context: step(i, state, {"other": hidden}), NUM_STEPS, x, {}, budget)

    for budget in (0.0, 1e18):
        with pytest.raises(ValueError, match="captured a tensor"):
            _gradient(partial(captured, hide=lambda z: z, budget=budget), x)
    assert relative_error(_gradient(partial(captured, hide=Tensor.detach), x)[0], expected) > 0.01
    assert relative_error(_gradient(lambda x: unroll(step, NUM_STEPS, x, {"other": mask(x)}), x)[0], expected) < EXACT


def _moments(i: int, state: dict[str, Tensor], context: Context) -> dict[str, Tensor]:
    """Momentum on a smooth function, counted, from a start that the context holds."""
    slope = torch.sin(2 * state["x"]) * context["strength"][:, None, None, None] + 0.1 * context["image"]
    moment = 0.9 * state["moment"] + 0.1 * slope
    return {"x": state["x"] - 0.3 * moment, "moment": moment, "count": state["count"] + context["rise"]}


@pytest.mark.parametrize("budget", [0.0, 5000.0, 1e18])
def test_a_state_of_several_tensors_is_differentiated_by_name(budget: float) -> None:
    """Integers pass, in the state and in the context, and the graph budget changes no bit."""
    x, image = _inputs()
    strength = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    count, rise = torch.zeros(3, dtype=torch.int64), torch.tensor([1, 2, 3])

    def start(x: Tensor, image: Tensor) -> tuple[dict[str, Tensor], Context]:
        state = {"x": x, "moment": torch.zeros_like(x), "count": count}
        return state, {"strength": strength * image.flatten(1).mean(1), "image": image, "rise": rise}

    def unrolled(x: Tensor, image: Tensor) -> Tensor:
        state, context = start(x, image)
        found = unroll(_moments, NUM_STEPS, state, context, budget)
        assert torch.equal(found["count"], NUM_STEPS * rise)
        assert not found["count"].requires_grad
        return found["x"] + found["moment"]

    def plain(x: Tensor, image: Tensor) -> Tensor:
        state, context = start(x, image)
        for i in range(NUM_STEPS):
            state = _moments(i, state, context)
        return state["x"] + state["moment"]

    found, expected = _gradient(unrolled, x, image), _gradient(plain, x, image)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert relative_error(found[1], central_differences(lambda z: _loss(plain(x, z)), image)) < EXACT


def test_trainable_parameters_are_refused_with_gradients_on() -> None:
    denoiser, (x, _) = SmoothDenoiser(VPSchedule()).requires_grad_(True), _inputs()

    def step(i: int, x: Tensor, context: Context) -> Tensor:
        return denoiser(x, torch.tensor(100.0, dtype=torch.float64))

    assert unroll(step, 2, x).requires_grad, "without an input gradient it is a plain loop, and trains"
    for budget in (0.0, 1e18):
        with pytest.raises(ValueError, match="freeze the networks"):
            _gradient(lambda x, budget=budget: unroll(step, 2, x, {}, budget), x)


def test_a_step_that_changes_the_names_of_its_state_is_refused() -> None:
    with pytest.raises(ValueError, match="keep its names"):
        unroll(lambda i, state, context: {"y": state["x"]}, 1, {"x": _inputs()[0].requires_grad_()})


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("budget", [0.0, 1e18])
def test_the_gradient_through_diffpure_agrees_with_central_differences(name: str, budget: float) -> None:
    """The whole of it, from the [0, 1] image to the purified one, through a nonlinear network."""
    purifier = DiffPure(SmoothDenoiser(VPSchedule()), SOLVERS[name], t_star=200, num_steps=NUM_STEPS)
    purifier.runtime.graph_budget = budget
    x = images(2, dtype=torch.float64)

    def purify(x: Tensor) -> Tensor:
        return purifier(x, stream(2)).images[0]

    (found,) = _gradient(purify, x)
    assert relative_error(found, central_differences(lambda x: _loss(purify(x)), x)) < EXACT


def test_gradients_flow_under_autocast_as_they_did_forward() -> None:
    """The recomputation happens outside the caller's autocast region, and must enter it again."""
    seen = []

    def step(i: int, x: Tensor, context: Context) -> Tensor:
        product = x.flatten(1) @ torch.eye(x[0].numel())
        seen.append(product.dtype)
        return product.float().view_as(x)

    x = images(2).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = unroll(step, 2, x)
    out.sum().backward()
    assert seen == [torch.bfloat16] * 4


def _peak(purifier: DiffPure, x: Tensor, noise: NoiseStream) -> int:
    with LiveBytes() as live:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(purifier(leaf, noise).images.sum(), leaf)
    return live.peak


def test_memory_does_not_grow_with_the_number_of_steps() -> None:
    denoiser = UNetDenoiser(
        image_size=8,
        channels=1,
        widths=(8, 16),
        blocks=1,
        attention=(False, True),
        norm_groups=8,
        preconditioning="vp",
    )
    randomise(denoiser, 0.1)
    x, noise = images(16, (1, 8, 8)), stream(16)
    peaks = {steps: _peak(DiffPure(denoiser, EulerMaruyama(), 100, steps), x, noise) for steps in (5, 100)}
    assert peaks[100] <= 1.3 * peaks[5], peaks
    kept = DiffPure(denoiser, EulerMaruyama(), 100, 20)
    kept.runtime.graph_budget = 1e18
    assert _peak(kept, x, noise) > 5 * peaks[100], "the measure does not see kept graphs"


def test_a_middling_budget_takes_memory_between_the_extremes() -> None:
    denoiser = SmoothDenoiser(VPSchedule())
    x, noise = images(16, dtype=torch.float64), stream(16)
    peaks = []
    for budget in (0.0, 2e5, 1e18):
        purifier = DiffPure(denoiser, EulerMaruyama(), 100, 50)
        purifier.runtime.graph_budget = budget
        peaks.append(_peak(purifier, x, noise))
    assert peaks[0] < peaks[1] < peaks[2]
    assert peaks[1] < peaks[0] + 1.2 * 2e5


def test_random_weights_of_the_toys_are_keyed() -> None:
    """The toys must be the same in every process, or these numbers would be nobody's."""
    one, two = SmoothDenoiser(VPSchedule()), SmoothDenoiser(VPSchedule())
    randomise(two, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
