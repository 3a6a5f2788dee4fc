"""Every purifier, small: the rows of their contract suite, `tests/lustral/test_purifiers.py`.

A new purifier joins by one row in `PURIFIERS`: a function that builds it, for images of `SHAPE`.
"""

from collections.abc import Callable
from typing import Any

from lustral.diffusion import (
    DDIM,
    Ancestral,
    ConsistencyGenerator,
    EDMSchedule,
    EulerMaruyama,
    FlowEuler,
    Heun,
    LinearSchedule,
    Solver,
    VPSchedule,
)
from lustral.diffusion.perturbation import EPS, SingleScore
from lustral.networks import GANGenerator, UNetDenoiser
from lustral.purifiers import (
    CMAP,
    GDMP,
    GNSP,
    JPEG,
    SSNI,
    AnswerOfInput,
    AnswerOfTransformed,
    AnswerOfUnguided,
    AttentionMask,
    BitDepth,
    Chain,
    ConstantMask,
    DADPerSample,
    Denoise,
    DiffPure,
    DistributionTransfer,
    EntropyGuidance,
    FixedLevels,
    GaussianBlur,
    Guidance,
    HeterogeneousNoise,
    Identity,
    InvertedMask,
    JointGuidance,
    LangevinPurifier,
    LatentMMD,
    LatentWasserstein,
    LevelRule,
    LinearLevels,
    Mask,
    MeanLevels,
    MSEGuidance,
    OneStepConsistency,
    OutputGuidance,
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
    SmoothDenoiser,
    VariedDenoiser,
    randomise,
    stored_scores,
)
from tests.toys.detection import SmoothNetwork, sample_mmd

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


def _cmap(**options: Any) -> CMAP:
    """Three latents at a level at which the toy's images stay within [0, 1]."""
    generator = ConsistencyGenerator(SmoothDenoiser(EDMSchedule(), SHAPE), sigma_max=0.7)
    given: dict[str, Any] = {"num_latents": 3, "num_steps": 4, "lr": 0.05, "ssim_weight": 0.5, "latent_weight": 0.5}
    return CMAP(generator, **{**given, **options})


def _cmap_gan(**options: Any) -> CMAP:
    """The same with a generator whose latents are vectors."""
    generator = GANGenerator(4, 1, 6, [4]).double()
    randomise(generator, 0.6)
    return CMAP(generator, 3, num_steps=3, lr=0.05, ssim_weight=0.5, latent_weight=0.1, **options)


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
    "cmap": _cmap,
    "cmap_stopped": lambda: _cmap(start="inversion", stop_tolerance=0.03, stop_window=2),
    "cmap_unrolled": lambda: _cmap(smoothing=0.1, constraint=LatentWasserstein(), start="inversion"),
    "cmap_unrolled_gradient": lambda: _cmap(smoothing=0.1, optimiser="gradient", stop_tolerance=0.02, stop_window=2),
    "cmap_gan_unrolled": lambda: _cmap_gan(smoothing=0.1, optimiser="gradient"),
    "cmap_implicit": lambda: _cmap(smoothing=0.1, constraint=LatentMMD(), derivative="implicit"),
    "one_step": lambda: OneStepConsistency(SmoothDenoiser(EDMSchedule(), SHAPE), 6),
    "chain": lambda: Chain([_diffpure(EulerMaruyama()), _cmap(smoothing=0.1, optimiser="gradient")]),
    "chain_published": lambda: Chain([_gnsp(), Chain([GaussianBlur(), _cmap()])]),
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
    "denoise": lambda: Denoise(SmoothNetwork()),
    "denoise_symmetric": lambda: Denoise(SmoothNetwork(), 0.1, "symmetric"),
    "dad_per_sample": lambda: DADPerSample(Denoise(SmoothNetwork()), sample_mmd(), 0.01),
    "dad_per_sample_raw": lambda: DADPerSample(Denoise(SmoothNetwork()), sample_mmd(), 0.01, "raw"),
    "noisy": NoisyPurifier,  # the suite's own toy must keep the contract that it helps to test
}


APPROXIMATE = (
    "cmap_implicit",
    "ssni_straight_through",
    "heterogeneous_straight_through",
    "transfer_constant",
    "jpeg_straight_through",
    "bit_depth_straight_through",
)
"""Made to be differentiated by attacks: their exact gradient is, on purpose, not the derivative of what is computed."""
