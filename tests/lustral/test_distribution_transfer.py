"""Distribution transfer: its steps in closed form on Gaussian data, its guidance, and the attacks on it."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import squeezenet1_1

from lustral.attacks import PGD, CrossEntropy, Engine, MoveReference
from lustral.defence import Defence
from lustral.diffusion import DDIM, CosineSchedule, EDMSchedule, LinearSchedule, RememberedDenoiser, VPSchedule
from lustral.purifiers import (
    JPEG,
    AnswerOfInput,
    AnswerOfTransformed,
    AnswerOfUnguided,
    BitDepth,
    DiffPure,
    DistributionTransfer,
    EntropyGuidance,
    GaussianBlur,
    Guidance,
    JointGuidance,
    LPIPSGuidance,
    MSEGuidance,
    OutputGuidance,
    Step,
    Variant,
)
from lustral.purifiers.divergences import DIVERGENCES, entropy
from lustral.purifiers.guidance import REFERENCE
from lustral.purifiers.output_guidance import ANSWER
from lustral.threat import ThreatModel
from tests.closed_form import FULL, MEAN, GaussianDenoiser, alpha_bar, ancestral_step, posterior_mean
from tests.contracts import SmoothDenoiser, ToyClassifier, VariedDenoiser, cases, generator, images, stream

SHAPE = (1, 4, 4)
WEIGHTS = np.array([[1.0, -2.0, 0.5, 0.3], [-0.7, 1.5, 0.2, -1.0], [0.4, 0.1, -1.2, 0.9]])


class LinearVictim(nn.Module):
    """Logits WEIGHTS x, of images of 2 x 2 pixels in [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ torch.from_numpy(WEIGHTS).T


def _victim() -> ToyClassifier:
    return ToyClassifier(shape=SHAPE).eval().requires_grad_(False)


def _built(guidance: None | Guidance, **options: Any) -> DistributionTransfer:
    given = {"num_steps": 4, "scale": 20.0, "budget": "24/255", **options}
    purifier = DistributionTransfer(SmoothDenoiser(LinearSchedule()).float(), guidance, **given)
    purifier.bind(_victim())
    return purifier


def _softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max())
    return e / e.sum()


# Steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look_at", ["posterior_mean", "x_t"])
def test_guided_steps_are_known_on_gaussian_data(look_at: Any) -> None:
    """The mean of q(x_s | x_t), plus s_t times the variance times the gradient: of the squared distance to the input
    noised with the forward noise, and of KL through a linear victim (p - p_ref) and the affine posterior mean."""
    joint = JointGuidance(
        OutputGuidance(AnswerOfInput(), "kl", look_at, clip=False), MSEGuidance("shared", 1), 0.3, 0.8
    )
    purifier = DistributionTransfer(
        GaussianDenoiser(LinearSchedule()), joint, 60, "denoiser", 3, 30.0, "24/255", clip=False
    )
    purifier.bind(LinearVictim())
    x, noise = images(3, (1, 2, 2), dtype=torch.float64), stream(3)
    z = noise.fork("forward").normal((1, 2, 2), dtype=torch.float64).flatten(1).numpy()
    with torch.no_grad():
        found = purifier(x, noise).images[0].flatten(1).numpy()
    one, slowness = np.eye(4), 2.0 * (24 / 255) / (3.0 * 30.0)
    for row in range(3):
        origin = 2.0 * x[row].flatten().numpy() - 1.0
        p_ref = _softmax(WEIGHTS @ (origin + 1.0) / 2.0)
        abar = alpha_bar("discrete", 60)
        state = np.sqrt(abar) * origin + np.sqrt(1 - abar) * z[row]
        for key, (t, s) in enumerate(itertools.pairwise([60, 40, 20, 0])):
            abar, before = alpha_bar("discrete", t), alpha_bar("discrete", s)
            step = ancestral_step("large")("discrete", MEAN, FULL, t, s)
            variance = 1 - abar / before
            if s == 0:  # beta tilde of the step before
                above = alpha_bar("discrete", 40)
                variance = (1 - above / abar) * (1 - abar) / (1 - above)
            gain, offset = posterior_mean(MEAN, FULL, abar) if look_at == "posterior_mean" else (one, 0 * MEAN)
            p = _softmax(WEIGHTS @ (gain @ state + offset + 1.0) / 2.0)
            output = -gain.T @ WEIGHTS.T @ (p - p_ref) / 2.0
            distance = 2.0 / 4.0 * (np.sqrt(abar) * origin + np.sqrt(1 - abar) * z[row] - state)
            strength = np.sqrt((1 - abar) / abar) / slowness
            drawn = noise.fork("reverse").normal((1, 2, 2), step=key, dtype=torch.float64)[row].flatten().numpy()
            mean = step.matrix @ state + step.offset + variance * strength * (0.3 * output + 0.8 * distance)
            state = mean + step.noises[0] @ drawn
        np.testing.assert_allclose(found[row], (state + 1.0) / 2.0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variance", ["large", "small", "learned"])
def test_guidance_of_no_weight_is_the_unguided_process_bit_for_bit(variance: Any) -> None:
    denoiser, x = VariedDenoiser(LinearSchedule()).float(), images(3)
    nothing = JointGuidance(OutputGuidance(AnswerOfTransformed(GaussianBlur())), MSEGuidance("noised", 1), 0.0, 0.0)
    found = []
    for guidance in (None, nothing):
        purifier = DistributionTransfer(denoiser, guidance, num_steps=4, variance=variance)
        purifier.bind(_victim())
        leaf = x.clone().requires_grad_()
        out = purifier(leaf, stream(3)).images
        found.append((out, torch.autograd.grad(out.square().sum(), leaf)[0]))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], _built(MSEGuidance("noised", 1))(x, stream(3)).images)


def test_470_steps_are_read_on_the_cosine_schedule_of_4000() -> None:
    """Where they are a ninth as much noise as on the linear schedule of 1000."""
    cosine = DistributionTransfer(SmoothDenoiser(CosineSchedule()), None)
    assert (cosine.t_star, cosine.num_steps, cosine.derived()["network_calls"]) == (117.5, 470, 470)
    assert torch.equal(cosine.grids[0], torch.arange(470, -1, -1, dtype=torch.float64) / 4)
    linear = DistributionTransfer(SmoothDenoiser(CosineSchedule()), None, 470, "linear")
    ratios = [float(p.noising.noise_ratio(p.grids[0][0])) for p in (cosine, linear)]
    assert abs(ratios[0] - 0.198) < 1e-3
    assert abs(ratios[1] - 2.928) < 2e-2


@pytest.mark.parametrize("schedule", [VPSchedule, LinearSchedule, EDMSchedule])
@pytest.mark.parametrize(("t_star", "on", "sigma"), [(117.5, "cosine", 0.198), (100, "linear", 0.342)])
def test_the_level_is_the_same_on_every_schedule(schedule: Callable, t_star: float, on: Any, sigma: float) -> None:
    purifier = DistributionTransfer(SmoothDenoiser(schedule()), None, t_star, on, 5)
    assert len(purifier.grids[0]) == 6
    assert abs(float(purifier.noising.noise_ratio(purifier.grids[0][0])) - sigma) < 4e-3


def test_with_shared_noise_the_first_step_has_no_distance() -> None:
    """x_t is then the very reference; with noise of its own it is not."""
    purifier, x = _built(None), images(2)
    schedule, t = purifier.denoiser.schedule, purifier.grids[0][0]
    origin = 2.0 * x - 1.0
    x_t = schedule.perturb(origin, t, stream(2).fork("forward").normal(SHAPE))
    step = Step(x_t, t, purifier.grids[0][1], 0, stream(2).at(step=0), {REFERENCE: origin})
    for reference, same in (("shared", True), ("noised", False)):
        direction = MSEGuidance(reference, 1)(step, RememberedDenoiser(purifier.denoiser))  # type: ignore[arg-type]
        assert bool((direction == 0).all()) is same


class Loud(SmoothDenoiser):
    """Its estimates leave the range of images."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return 3.0 * x_t


def test_clip_keeps_images_in_range() -> None:
    for clip in (True, False):
        found = DistributionTransfer(Loud(LinearSchedule()), None, num_steps=2, clip=clip)(images(4), stream(4)).images
        assert bool(((found >= 0) & (found <= 1)).all()) is clip


# Guidance -----------------------------------------------------------------------------------------------------


def test_divergences_are_torchs_own() -> None:
    logits, reference = (3 * torch.randn(6, 5, generator=generator(seed)) for seed in (0, 1))
    own, other = (torch.distributions.Categorical(logits=each) for each in (logits, reference))
    expected = {
        "kl": torch.distributions.kl_divergence(other, own),
        "cross_entropy": F.nll_loss(F.log_softmax(logits, 1), reference.argmax(1), reduction="none"),
        "cosine": F.cosine_embedding_loss(logits, reference, torch.ones(6), reduction="none"),
    }
    assert DIVERGENCES.keys() == expected.keys()
    for name, of in DIVERGENCES.items():
        torch.testing.assert_close(of(logits, reference), expected[name])
    torch.testing.assert_close(entropy(logits), own.entropy())


@pytest.mark.parametrize("look_at", ["posterior_mean", "x_t"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_output_guidance_leads_to_the_reference(divergence: Any, look_at: Any) -> None:
    """The purified image's answer is nearer to y_ref, here another image's, than without guidance."""
    x, y_ref = images(16), _victim()(images(16, seed=9))
    far = []
    for weight in (0.0, 0.05):
        purifier = _built(
            JointGuidance(OutputGuidance(AnswerOfInput(), divergence, look_at), MSEGuidance(), weight, 0.0)
        )
        with torch.no_grad():
            found = purifier(x, stream(16), context={ANSWER: y_ref}).images[0]
        far.append(DIVERGENCES[divergence](_victim()(found), y_ref).mean())
    assert far[1] < 0.97 * far[0]


def test_entropy_guidance_makes_the_victim_sure() -> None:
    found = [
        entropy(_victim()(_built(guidance)(images(16), stream(16)).images[0])).mean()
        for guidance in (None, JointGuidance(EntropyGuidance(), MSEGuidance(), 0.05, 0.0))
    ]
    assert found[1] < 0.97 * found[0]


@pytest.mark.parametrize(
    ("answer", "of"),
    [
        (AnswerOfInput(), lambda x, unguided: x),
        (AnswerOfTransformed(JPEG(40)), lambda x, unguided: JPEG(40)(x, stream(3), "detached").images[0]),
        (AnswerOfTransformed(BitDepth(1)), lambda x, unguided: (x > 0.5).float()),
        (AnswerOfUnguided(), lambda x, unguided: unguided(x, stream(3).fork("reference")).images[0]),
    ],
    ids=["input", "jpeg", "bit_depth", "unguided"],
)
def test_y_ref_is_the_answer_at_the_chosen_image(answer: Any, of: Callable) -> None:
    purifier, x = _built(OutputGuidance(answer)), images(3)
    with torch.no_grad():
        found = purifier(x, stream(3), wants=[ANSWER]).trace[ANSWER]
        torch.testing.assert_close(found, _victim()(of(x, _built(None))))
        torch.testing.assert_close(found, purifier.prepare(x, stream(3))[ANSWER])


def test_guidance_of_first_order_changes_no_image_and_leaves_out_its_gradient() -> None:
    purifier = _built(JointGuidance(OutputGuidance(AnswerOfInput()), MSEGuidance("shared", 1)))
    first = Variant({"guidance_gradient": "constant"}).of(purifier)
    first.bind(_victim())
    found = []
    for each in (purifier, first):
        leaf = images(3).requires_grad_()
        out = each(leaf, stream(3)).images
        found.append((out, torch.autograd.grad(out.square().sum(), leaf)[0]))
    assert torch.equal(found[0][0], found[1][0])
    assert (found[0][1] - found[1][1]).abs().max() > 1e-3 * found[0][1].abs().max()


def test_guidance_and_solver_share_their_network_call() -> None:
    purifier, calls = _built(JointGuidance(OutputGuidance(AnswerOfInput()), MSEGuidance())), []
    purifier.denoiser.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        purifier(images(3), stream(3))
    assert len(calls) == 4


def test_lpips_takes_weights_that_are_at_hand_and_downloads_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its direction is torchmetrics' gradient, and differentiated; random weights stand for torchvision's."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"needs torchvision's weights at .*squeezenet1_1.*: get them from https"):
        LPIPSGuidance("squeeze")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = squeezenet1_1()
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    guidance = LPIPSGuidance("squeeze")
    measure = LearnedPerceptualImagePatchSimilarity("squeeze")
    x, y = (2.0 * images(1, (3, 32, 32), seed) - 1.0 for seed in (0, 1))
    t = torch.tensor(10.0, dtype=torch.float64)
    purifier = DistributionTransfer(SmoothDenoiser(LinearSchedule(), (3, 32, 32)).float(), guidance, num_steps=1)
    leaf = x.clone().requires_grad_()
    direction = guidance(Step(leaf, t, t, 0, stream(1), {REFERENCE: y}), RememberedDenoiser(purifier.denoiser))
    expected = torch.autograd.grad(-measure(leaf, y), leaf)[0]
    torch.testing.assert_close(direction, expected)
    assert torch.autograd.grad(direction.square().sum(), leaf)[0].abs().max() > 0
    assert any(name.startswith("_parts") for name, _ in purifier.named_parameters())
    with pytest.raises(ValueError, match="images of 32 pixels or more"):
        _built(guidance)(images(2), stream(2))


# Attacks ------------------------------------------------------------------------------------------------------


def _y_ref_wrong(changes: dict[str, Any] | None, objective: Any) -> tuple[float, float]:
    """The mean probability that y_ref gives the true class, before and after an attack."""
    chosen = cases(12)
    guidance = JointGuidance(OutputGuidance(AnswerOfTransformed(JPEG(50))), MSEGuidance("shared", 1), 0.05)
    defence = Defence(_victim(), _built(guidance)).eval().requires_grad_(False)
    attack = PGD(6, eot=2, objective=objective, surrogate=Variant(changes) if changes else None, selection="last")
    result = attack(Engine(defence, 12), chosen, ThreatModel("linf", "24/255"), stream(12))
    found = []
    for x in (chosen.images, result.images):
        answer = defence.purifier(x, stream(12), "detached", wants=[ANSWER]).trace[ANSWER]
        found.append(float(answer.softmax(1).gather(1, chosen.labels[:, None]).mean()))
    return found[0], found[1]


STAND_IN = {"guidance.output.reference.transform.rounding": "straight_through"}


def test_the_attack_on_y_ref_moves_the_answer_of_the_real_codec() -> None:
    before, after = _y_ref_wrong(STAND_IN, MoveReference(CrossEntropy(), 5.0))
    _, without = _y_ref_wrong(STAND_IN, CrossEntropy())
    assert after < before - 0.1
    assert after < without


def test_the_attack_on_y_ref_is_refused_where_it_has_no_gradient() -> None:
    with pytest.raises(ValueError, match=r"MoveReference follows the reference_logits, .* constant"):
        _y_ref_wrong(None, MoveReference(CrossEntropy(), 1.0))


# Refusals -----------------------------------------------------------------------------------------------------


def _unfit() -> None:
    guidance = OutputGuidance(AnswerOfInput())
    DistributionTransfer(SmoothDenoiser(LinearSchedule()), guidance, num_steps=2)(images(2).double(), stream(2))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: _built(None, level_schedule="vp"), "level_schedule is 'vp'; it may be cosine, linear, denoiser"),
        (lambda: _built(None, t_star=2000), "t_star is 2000; it counts noising steps"),
        (lambda: _built(None, guidance_gradient="none"), "guidance_gradient is 'none'"),
        (lambda: _built(None, scale=0.0), "scale = 0.0 and budget = 24/255 must be positive"),
        (lambda: OutputGuidance(AnswerOfInput(), "l2"), "divergence is 'l2'; it may be kl, cross_entropy, cosine"),  # type: ignore[arg-type]
        (lambda: EntropyGuidance("x_0"), "look_at is 'x_0'; it may be posterior_mean, x_t"),  # type: ignore[arg-type]
        (lambda: JointGuidance(EntropyGuidance(), MSEGuidance(), -1.0), "output_weight is -1.0"),
        (
            lambda: JointGuidance(OutputGuidance(AnswerOfInput()), OutputGuidance(AnswerOfUnguided())),
            "Both parts of a guidance prepare reference_logits",
        ),
        (_unfit, "OutputGuidance looks at the classifier"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


def test_y_ref_of_several_views_is_refused() -> None:
    class Two(GaussianBlur):
        def run(self, *given: Any) -> Any:
            views = super().run(*given).images
            return type(super().run(*given))(torch.cat((views, views)))

    with pytest.raises(ValueError, match="Two makes 2 views of an image"):
        _built(OutputGuidance(AnswerOfTransformed(Two())))(images(2), stream(2))


def test_any_purifier_is_a_transformation() -> None:
    inner = DiffPure(SmoothDenoiser(VPSchedule()).float(), DDIM(), 50, 2)
    purifier = _built(OutputGuidance(AnswerOfTransformed(inner)))
    assert purifier(images(2), stream(2), wants=[ANSWER]).trace[ANSWER].shape == (2, 3)
