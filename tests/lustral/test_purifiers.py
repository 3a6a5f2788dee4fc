"""Purifiers: one contract for all, held by every row of `tests/purifier_rows.py`."""

import copy
from collections.abc import Callable, Collection, Iterator

import pytest
import torch
from torch import Tensor, nn

from lustral.attacks import Engine
from lustral.noise import NoiseStream
from lustral.purifiers import (
    Context,
    GradientMode,
    Purified,
    Purifier,
)
from tests.contracts import (
    NoisyPurifier,
    Reveal,
    SeenClassifier,
    differences_at_once,
    images,
    relative_error,
    stream,
)
from tests.purifier_rows import APPROXIMATE, PURIFIERS, SHAPE


@pytest.fixture(params=PURIFIERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def purifier(name: str) -> Iterator[Purifier]:
    """Where a method has no exact gradient, none is taken but by the tests that ask for one."""
    built = PURIFIERS[name]().float()
    built.bind(SeenClassifier(shape=SHAPE).eval().requires_grad_(False))
    with torch.set_grad_enabled("exact" in built.gradient_modes):
        yield built


def test_images_and_trace_have_the_promised_shapes(purifier: Purifier) -> None:
    x = images(5, SHAPE)
    with torch.no_grad():
        purified = purifier(x, stream(5), wants=purifier.offers)
    assert purified.images.shape[1:] == x.shape
    assert purified.images.dtype == torch.float32
    assert purified.images.isfinite().all()
    assert purified.trace.keys() == purifier.offers.keys()
    assert all(len(values) == 5 and not values.requires_grad for values in purified.trace.values())
    assert not purifier(x, stream(5)).trace, "what nobody wants is not made"
    assert torch.equal(purifier(x, stream(5)).images, purified.images)


def test_what_is_not_offered_or_held_is_refused(purifier: Purifier) -> None:
    with pytest.raises(ValueError, match="has no luck; it offers"):
        purifier(images(2, SHAPE), stream(2), wants=["luck"])
    with pytest.raises(ValueError, match="has no luck that an attack could hand over; it holds"):
        purifier(images(2, SHAPE), stream(2), context={"luck": torch.zeros(2)})


def test_a_context_that_is_handed_over_takes_the_place_of_the_images(purifier: Purifier) -> None:
    """The image's own context changes no bit; another image's is really used, and has no graph."""
    x, other = images(3, SHAPE), images(3, SHAPE, seed=7)
    own, others = (purifier.prepare(each, stream(3)) for each in (x, other))
    assert own.keys() == purifier.holds
    assert torch.equal(purifier(x, stream(3), context=own).images, purifier(x, stream(3)).images)
    if any(not torch.equal(own[name], others[name]) for name in own if name != "score"):
        assert not torch.equal(purifier(x, stream(3), context=others).images, purifier(x, stream(3)).images)


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
    x, noise, order = images(5, SHAPE), stream(5), torch.tensor([4, 0, 2, 1, 3])
    together = purifier(x, noise).images[0]
    shuffled = purifier(x[order], noise.select(order)).images[0]
    torch.testing.assert_close(shuffled, together[order], rtol=1e-4, atol=1e-5)
    for b in range(5):
        row = torch.tensor([b])
        alone = purifier(x[row], noise.select(row)).images[0]
        torch.testing.assert_close(alone, together[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("draws", [1, 3])
def test_in_padded_chunks_not_a_bit_depends_on_the_batch(purifier: Purifier, draws: int) -> None:
    """Any batch size and order, draws folded into rows: the engine's promise, kept by the purifier."""
    x, noise = images(5, SHAPE), stream(5)
    engine = Engine(Reveal(purifier), rows=4)
    together = engine.logits(x, noise, draws)
    for order in ([4, 0, 2, 1, 3], [3, 2], [1])[: 3 if draws == 1 else 2]:
        assert torch.equal(engine.logits(x[order], noise.select(order), draws), together[:, order])


def _loss(out: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, out[0].numel(), dtype=out.dtype).view(out.shape[1:])
    return (weights * torch.sin(2 * out)).flatten(1).sum(1)


def test_the_exact_gradient_agrees_with_central_differences(name: str, purifier: Purifier) -> None:
    purifier, x = copy.deepcopy(purifier).double(), images(2, SHAPE, dtype=torch.float64)
    if name in APPROXIMATE:
        return
    purifier.bind(SeenClassifier(shape=SHAPE).eval().requires_grad_(False).double())
    if "exact" not in purifier.gradient_modes:
        with torch.enable_grad(), pytest.raises(ValueError, match=r"no 'exact' gradient.*Variant of changes"):
            purifier(x, stream(2))
        return

    def loss(x: Tensor, rows: Tensor) -> Tensor:
        return _loss(purifier(x, stream(2).select(rows)).images.mean(0))

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, torch.arange(2)).sum(), leaf)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).abs().amax(1).min() > 1e-3
    h = 1e-6 if name == "jpeg_soft" else 1e-5  # whose third derivative is 6 * 255^3
    assert relative_error(gradient, differences_at_once(loss, x, h)) < 1e-6


def test_the_gradient_does_not_depend_on_the_budget(purifier: Purifier) -> None:
    if "exact" not in purifier.gradient_modes:
        return
    found = []
    for budget in (0.0, 1e4, 1e18):
        purifier.runtime.graph_budget = budget
        leaf = images(3, SHAPE).requires_grad_()
        found.append(torch.autograd.grad(_loss(purifier(leaf, stream(3)).images[0]).sum(), leaf)[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@torch.enable_grad()
def test_gradient_modes(purifier: Purifier) -> None:
    """Every offered mode sees the very same image; bpda's Jacobian is the identity bit for bit."""
    x, expected = images(3, SHAPE), purifier(images(3, SHAPE), stream(3), "detached").images
    weights = images(3, SHAPE, seed=5)
    for mode in purifier.gradient_modes:
        leaf = x.clone().requires_grad_()
        out = purifier(leaf, stream(3), mode).images
        assert torch.equal(out.detach(), expected), mode
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


@torch.enable_grad()
def test_networks_are_frozen_and_collect_no_gradient(purifier: Purifier) -> None:
    leaf = images(2, SHAPE).requires_grad_()
    purifier(leaf, stream(2), purifier.gradient_modes[0]).images.sum().backward()
    assert leaf.grad is not None
    for parameter in purifier.parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
    assert not any(module.training for module in purifier.modules() if module is not purifier and _has_weights(module))


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


@pytest.mark.parametrize("gradient", ["exact", "bpda"])
@pytest.mark.parametrize(
    ("run", "told"),
    [
        (lambda x: None, "returned nothing; it must return Purified"),
        (lambda x: x, "returned a Tensor; it must return Purified"),
        (Purified, "made images of shape"),
        (lambda x: Purified(x[None, ..., :2]), "made images of shape"),
        (lambda x: Purified(x[None].double()), "made images of .* type torch.float64"),
    ],
)
def test_what_run_returns_is_checked(run: Callable[[Tensor], Purified], told: str, gradient: GradientMode) -> None:
    class Wrong(Purifier):
        def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
            return run(x)

    x = torch.zeros(2, *SHAPE)
    with pytest.raises(ValueError, match=f"^Wrong.run {told}"):
        Wrong()(x, NoiseStream(0, torch.arange(2)), gradient)


def test_views_share_the_straight_through_gradient() -> None:
    """With V views, each has the identity as its Jacobian, so their gradients add up."""

    class TwoViews(Purifier):
        def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
            return Purified(torch.stack((x * 0, x + 1)))

    leaf = images(2, SHAPE).requires_grad_()
    out = TwoViews()(leaf, stream(2), "bpda").images
    assert torch.equal(out[1].detach(), leaf.detach() + 1)
    (gradient,) = torch.autograd.grad((out * torch.tensor([2.0, 3.0]).view(2, 1, 1, 1, 1)).sum(), leaf)
    assert torch.equal(gradient, torch.full_like(leaf, 5.0))
