"""Purifiers: one contract for all.

A new purifier joins by one row in `PURIFIERS`: a function that builds it small, for images of `SHAPE`.
"""

import copy
from collections.abc import Callable, Collection, Iterator
from typing import Any

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
from lustral.noise import NoiseStream
from lustral.purifiers import (
    GDMP,
    GNSP,
    JPEG,
    SSNI,
    AnswerOfInput,
    AnswerOfTransformed,
    AnswerOfUnguided,
    AttentionMask,
    BitDepth,
    ConstantMask,
    Context,
    DiffPure,
    DistributionTransfer,
    EntropyGuidance,
    FixedLevels,
    GaussianBlur,
    GradientMode,
    Guidance,
    HeterogeneousNoise,
    Identity,
    InvertedMask,
    JointGuidance,
    LangevinPurifier,
    LevelRule,
    LinearLevels,
    Mask,
    MeanLevels,
    MSEGuidance,
    OutputGuidance,
    Purified,
    Purifier,
    RandomMask,
    RoundPurifier,
    ShuffledLevels,
    SigmoidLevels,
    SSIMGuidance,
)
from tests.closed_form import SCHEDULES
from tests.contracts import (
    NoisyPurifier,
    Reveal,
    SeenClassifier,
    SmoothDenoiser,
    VariedDenoiser,
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
    made = {"mse": MSEGuidance, "ssim": SSIMGuidance, "none": lambda *_: None}[guidance](reference, 1)
    return GDMP(denoiser, made, 60, 3, 2, scale, "24/255", noise_offset=1)


def _gdmp_learned() -> GDMP:
    denoiser = VariedDenoiser(LinearSchedule(), SHAPE)
    return GDMP(denoiser, MSEGuidance("clean", 1), 60, 3, 2, 20.0, "24/255", respacing=30, variance="learned")


def _ssni(purifier: RoundPurifier, rule: LevelRule, rounding: Any = True, statistic: str = "eps") -> SSNI:
    """Levels between a third and all of t*, well apart for different images."""
    score = EPS(3, 10.0) if statistic == "eps" else SingleScore()
    known = [280.0, 310.0, 400.0] if statistic == "eps" else [180.0, 210.0, 270.0]
    reference = stored_scores(purifier.denoiser, score, known)
    return SSNI(purifier, rule, reference, score, rounding)


def _gnsp(schedule: str = "discrete", layout: str = "clock") -> GNSP:
    denoiser = SmoothDenoiser(SCHEDULES[schedule](), SHAPE)
    return GNSP(denoiser, [(60, 2), (120, 3)], layout=layout)  # type: ignore[arg-type]


def _seen(**options: Any) -> AttentionMask:
    """A quarter to three quarters of the pixels; none is so close to the threshold that a difference crosses it."""
    return AttentionMask(["linear", "conv"], **{"tau": 0.6, **options})


def _heterogeneous(mask: Mask, schedule: str = "vp", **options: Any) -> HeterogeneousNoise:
    denoiser = SmoothDenoiser(SCHEDULES[schedule](), (1, 6, 6) if "resize_to" in options else SHAPE)
    given: dict[str, Any] = {"num_steps": (4, 2), "num_resamples": 2, "eta": 0.5, **options}
    return HeterogeneousNoise(denoiser, mask, 200, 60, **given)


def _transfer(
    output: Guidance, distance: Guidance | None = None, schedule: str = "discrete", **options: Any
) -> DistributionTransfer:
    """Three steps, guided strongly enough to be seen."""
    denoiser = VariedDenoiser(SCHEDULES[schedule](), SHAPE)
    joint = JointGuidance(output, distance or MSEGuidance("shared", 1), 0.2, 1.0)
    return DistributionTransfer(denoiser, joint, num_steps=3, scale=20.0, budget="24/255", **options)


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
    "gdmp_learned": _gdmp_learned,
    "gdmp_vp": lambda: _gdmp("ssim", "noised", "vp"),
    "ssni_n_diffpure": lambda: _ssni(_diffpure(EulerMaruyama()), SigmoidLevels(5.0, 40.0)),
    "ssni_n_diffpure_unrounded": lambda: _ssni(_diffpure(EulerMaruyama()), SigmoidLevels(5.0, 40.0), rounding=False),
    "ssni_l_gnsp": lambda: _ssni(_gnsp(), LinearLevels(20.0)),
    "ssni_n_gnsp_unrounded": lambda: _ssni(_gnsp("vp"), SigmoidLevels(0.0, 40.0), False, "single"),
    "ssni_n_gnsp_own_grid": lambda: _ssni(_gnsp("vp", "own"), SigmoidLevels(5.0, 40.0), rounding=False),
    "ssni_n_gnsp_own_table": lambda: _ssni(_gnsp("discrete", "own"), SigmoidLevels(5.0, 40.0)),
    "ssni_n_gdmp": lambda: _ssni(_gdmp(), SigmoidLevels(5.0, 40.0)),
    "ssni_n_gdmp_learned": lambda: _ssni(_gdmp_learned(), SigmoidLevels(5.0, 40.0)),
    "ssni_n_gdmp_unrounded": lambda: _ssni(_gdmp("ssim", "noised", "vp"), SigmoidLevels(5.0, 40.0), rounding=False),
    "ssni_straight_through": lambda: _ssni(_diffpure(EulerMaruyama()), SigmoidLevels(5.0, 40.0), "straight_through"),
    "ssni_half": lambda: _ssni(_diffpure(EulerMaruyama()), FixedLevels(0.5)),
    "ssni_mean": lambda: _ssni(_diffpure(EulerMaruyama()), MeanLevels(SigmoidLevels(5.0, 40.0))),
    "ssni_shuffled": lambda: _ssni(_diffpure(EulerMaruyama()), ShuffledLevels(SigmoidLevels(5.0, 40.0))),
    "heterogeneous": lambda: _heterogeneous(_seen()),
    "heterogeneous_fused": lambda: _heterogeneous(_seen(), "discrete", compose="before", resample="fused", eta=0.0),
    "heterogeneous_multi_step": lambda: _heterogeneous(_seen(area=0.3, tau=None), "discrete", resample="multi_step"),
    "heterogeneous_relaxed": lambda: _heterogeneous(_seen(rounding=False, root=True), compose="before"),
    "heterogeneous_relaxed_area": lambda: _heterogeneous(
        _seen(rounding=False, area=0.3, tau=None, normaliser="softmax", power=1.0)
    ),
    "heterogeneous_straight_through": lambda: _heterogeneous(_seen(rounding="straight_through")),
    "heterogeneous_resized": lambda: _heterogeneous(_seen(), resize_to=6),
    "heterogeneous_random_mask": lambda: _heterogeneous(RandomMask(_seen(rounding=False))),
    "heterogeneous_moved_mask": lambda: _heterogeneous(RandomMask(_seen(), keep_shape=True)),
    "heterogeneous_inverted_mask": lambda: _heterogeneous(InvertedMask(_seen())),
    "heterogeneous_no_mask": lambda: _heterogeneous(ConstantMask(False), num_resamples=0),
    "identity": Identity,
    "diffpure_euler_maruyama": lambda: _diffpure(EulerMaruyama()),
    "diffpure_published_forward": lambda: _diffpure(EulerMaruyama(), forward="discrete"),
    "diffpure_ddim": lambda: _diffpure(DDIM(), "discrete"),
    "diffpure_ddim_random": lambda: _diffpure(DDIM(eta=1.0), "vp"),
    "diffpure_ancestral_small": lambda: _diffpure(Ancestral("small"), "discrete"),
    "diffpure_ancestral_large": lambda: _diffpure(Ancestral("large"), "discrete"),
    "diffpure_ancestral_clipped": lambda: _diffpure(Ancestral(clip_denoised=True), "discrete"),
    "diffpure_unet": _unet,
    "transfer_blurred": lambda: _transfer(OutputGuidance(AnswerOfTransformed(GaussianBlur(1.0)))),
    "transfer_x_t": lambda: _transfer(OutputGuidance(AnswerOfTransformed(GaussianBlur(1.0)), "cosine", "x_t", False)),
    "transfer_jpeg": lambda: _transfer(OutputGuidance(AnswerOfTransformed(JPEG(30))), variance="learned"),
    "transfer_jpeg_soft": lambda: _transfer(OutputGuidance(AnswerOfTransformed(JPEG(30, "soft"))), clip=False),
    "transfer_literal": lambda: _transfer(OutputGuidance(AnswerOfInput(), "cross_entropy"), SSIMGuidance("clean", 99)),
    "transfer_unguided": lambda: _transfer(OutputGuidance(AnswerOfUnguided()), schedule="vp", variance="small"),
    "transfer_entropy": lambda: _transfer(EntropyGuidance(), MSEGuidance("noised", 1)),
    "transfer_constant": lambda: _transfer(OutputGuidance(AnswerOfInput()), guidance_gradient="constant"),
    "transfer_resized": lambda: DistributionTransfer(
        SmoothDenoiser(LinearSchedule(), (1, 6, 6)),
        OutputGuidance(AnswerOfInput()),
        num_steps=2,
        scale=5.0,
        resize_to=6,
    ),
    "gdmp_answered": lambda: GDMP(SmoothDenoiser(LinearSchedule()), OutputGuidance(AnswerOfInput()), 60, 3, 2, 0.5),
    "ssni_n_transfer": lambda: _ssni(_transfer(OutputGuidance(AnswerOfInput()), t_star=200), SigmoidLevels(5.0, 40.0)),
    "jpeg": JPEG,
    "jpeg_straight_through": lambda: JPEG(30, "straight_through"),
    "jpeg_soft": lambda: JPEG(30, "soft"),
    "bit_depth": BitDepth,
    "bit_depth_straight_through": lambda: BitDepth(3, "straight_through"),
    "bit_depth_soft": lambda: BitDepth(3, "soft"),
    "blur": GaussianBlur,
    "noisy": NoisyPurifier,  # the suite's own toy must keep the contract that it helps to test
}


APPROXIMATE = (
    "ssni_straight_through",
    "heterogeneous_straight_through",
    "transfer_constant",
    "jpeg_straight_through",
    "bit_depth_straight_through",
)
"""Made to be differentiated by attacks: their exact gradient is, on purpose, not the derivative of what is computed."""


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
    if name in APPROXIMATE:
        return
    purifier.bind(SeenClassifier(shape=SHAPE).eval().requires_grad_(False).double())
    if "exact" not in purifier.gradient_modes:
        with torch.enable_grad(), pytest.raises(ValueError, match=r"no 'exact' gradient.*Variant of changes"):
            purifier(x, stream(2))
        return

    def loss(x: Tensor) -> Tensor:
        return _loss(purifier(x, stream(2)).images.mean(0))

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).abs().amax(1).min() > 1e-3
    h = 1e-6 if name == "jpeg_soft" else 1e-5  # whose third derivative is 6 * 255^3
    assert relative_error(gradient, central_differences(loss, x, h)) < 1e-6


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
