"""The U-Net of improved diffusion and "ADM" (Nichol and Dhariwal 2021; Dhariwal and Nichol 2021), through diffusers."""

from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Literal, get_args

from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lustral.diffusion.schedules import ScheduleName, make_schedule
from lustral.networks.builders import announced
from lustral.networks.denoisers import PreconditionedDenoiser
from lustral.networks.preconditioners import EDM, Consistency, FloorVP, Preconditioner, make_preconditioner
from lustral.networks.weights import load_into

Preconditioning = Literal["linear", "cosine", "edm", "consistency"]

_GROUPS = 32


class _EDMInThousandths(EDM):
    """EDM with the label 1000 ln(sigma) / 4, which the EDM and consistency models on this U-Net embed."""

    def label(self, sigma: Tensor) -> Tensor:
        return 1000.0 * super().label(sigma)


class _ConsistencyInThousandths(Consistency):
    """Consistency with the label 1000 ln(sigma) / 4."""

    def label(self, sigma: Tensor) -> Tensor:
        return 1000.0 * super().label(sigma)


def _make_preconditioner(name: str) -> Preconditioner:
    in_thousandths = {"edm": _EDMInThousandths, "consistency": _ConsistencyInThousandths}
    return in_thousandths[name]() if name in in_thousandths else make_preconditioner(name)


def _check_heads(widths: Iterable[int], head_width: int | None, num_heads: int | None) -> None:
    if (head_width is None) == (num_heads is None):
        raise ValueError(f"head_width is {head_width} and num_heads is {num_heads}; give exactly one of them.")
    name, divisor = ("num_heads", num_heads) if head_width is None else ("head_width", head_width)
    uneven = [width for width in sorted(widths) if not divisor or width % divisor]
    if uneven:
        raise ValueError(f"{name} is {divisor}; it must divide the {uneven[0]} channels of a block that attends.")


@announced
class ADMDenoiser(PreconditionedDenoiser):
    """diffusers' UNet2DModel as ADM: scale-shift normalisation, several heads, and a learned variance.

    The defaults are guided-diffusion's unconditional ImageNet model of 256 pixels: 552,814,086 parameters.
    Improved diffusion's CIFAR-10 model (L_hybrid) is ``image_size: 32, base_channels: 128, multipliers: [1, 2, 2, 2],
    blocks: 3, attention_sizes: [16, 8], head_width: null, num_heads: 4, resample: conv, dropout: 0.3,
    preconditioning: cosine``: 52,546,438 parameters. There is no class embedding, since an image's label is unknown in
    purification: a class-conditional network is imported with one class for all images, or with none.

    Args:
        image_size: height and width in pixels.
        channels: of the image, 1 or 3.
        base_channels: channels of the stem, a multiple of 32; the time embedding has four times as many.
        multipliers: channels of each resolution, as multiples of ``base_channels``, the first 1; each further one
            halves the size.
        blocks: residual blocks per resolution in the encoder; the decoder has one more.
        attention_sizes: resolutions in pixels whose blocks have attention; the middle block always has it.
        head_width: channels of an attention head; None if ``num_heads`` is given.
        num_heads: attention heads of every block; None if ``head_width`` is given.
        resample: whether the size is halved and doubled by "residual" blocks or by a plain "conv".
        learned_variance: whether the network has C more outputs, the variance of a reverse step (see
            `mean_and_variance`).
        dropout: probability inside each block while training.
        preconditioning: that of its training: "linear" (on the table of 1000 levels), "cosine" (on that of 4000, with
            labels in 0 ... 1000), "edm" (Karras et al. 2022) or "consistency" (Song et al. 2023), the latter two as in
            OpenAI's consistency_models.
        schedule_type: the diffusion process on which the denoiser is used; None is the one it was trained on.
        labels: "nearest" gives the network the index of the nearest level of its table; "floor" the number of noising
            steps out of 1000, rounded down, as for DiffPure's published ImageNet numbers (with schedule_type vp).
        weights: a file written by `save_network`; None leaves the weights random.
    """

    def __init__(
        self,
        image_size: int = 256,
        channels: int = 3,
        base_channels: int = 256,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4, 4),
        blocks: int = 2,
        attention_sizes: Sequence[int] = (32, 16, 8),
        head_width: int | None = 64,
        num_heads: int | None = None,
        resample: Literal["residual", "conv"] = "residual",
        learned_variance: bool = True,
        dropout: float = 0.0,
        preconditioning: Preconditioning = "linear",
        schedule_type: None | ScheduleName = None,
        labels: Literal["nearest", "floor"] = "nearest",
        weights: None | str = None,
    ) -> None:
        super().__init__()
        if preconditioning not in get_args(Preconditioning):
            raise ValueError(
                f"preconditioning is {preconditioning!r}; an ADM's may be {', '.join(get_args(Preconditioning))}."
            )
        if resample not in ("residual", "conv"):
            raise ValueError(f"resample is {resample!r}; it may be residual or conv.")
        if not multipliers or multipliers[0] != 1:
            raise ValueError(f"multipliers are {list(multipliers)}; the first must be 1.")
        if base_channels % _GROUPS:
            raise ValueError(f"base_channels is {base_channels}; it must be a multiple of {_GROUPS}.")
        if image_size % 2 ** (len(multipliers) - 1):
            raise ValueError(f"image_size {image_size} cannot be halved {len(multipliers) - 1} times: use fewer.")
        sizes = [image_size >> level for level in range(len(multipliers))]
        if strange := sorted(set(attention_sizes) - set(sizes)):
            raise ValueError(f"attention_sizes has {strange}, but the resolutions of this network are {sizes}.")
        widths = [base_channels * multiplier for multiplier in multipliers]
        attends = [size in attention_sizes for size in sizes]
        _check_heads({widths[-1], *compress(widths, attends)}, head_width, num_heads)
        self.image_size, self.channels, self.base_channels = image_size, channels, base_channels
        self.multipliers, self.blocks, self.attention_sizes = list(multipliers), blocks, list(attention_sizes)
        self.head_width, self.num_heads, self.resample = head_width, num_heads, resample
        self.learned_variance, self.dropout, self.weights = learned_variance, dropout, weights
        self.learns_variance = learned_variance
        self.preconditioning = preconditioning
        self.preconditioner: Preconditioner = _make_preconditioner(preconditioning)
        if labels not in ("nearest", "floor") or (labels == "floor" and preconditioning != "linear"):
            raise ValueError(f"labels is {labels!r}; it may be nearest, or floor where preconditioning is linear.")
        self.labels = labels
        if labels == "floor":
            self.preconditioner = FloorVP()
        self.is_consistency_function = preconditioning == "consistency"
        own: ScheduleName = "edm" if preconditioning == "consistency" else preconditioning
        self.schedule_type, self.schedule = schedule_type, make_schedule(schedule_type or own)
        self.image_shape = (channels, image_size, image_size)
        residual = resample == "residual"
        down, up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if residual else ("DownBlock2D", "UpBlock2D")
        self.network = UNet2DModel(
            sample_size=image_size,
            in_channels=channels,
            out_channels=2 * channels if learned_variance else channels,
            block_out_channels=tuple(widths),
            layers_per_block=blocks,
            down_block_types=tuple("AttnDownBlock2D" if a else down for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else up for a in reversed(attends)),
            downsample_type="resnet" if residual else "conv",
            upsample_type="resnet" if residual else "conv",
            attention_head_dim=head_width,  # type: ignore[arg-type]
            resnet_time_scale_shift="scale_shift",
            norm_num_groups=_GROUPS,
            attn_norm_num_groups=_GROUPS,
            norm_eps=1e-5,
            dropout=dropout,
            flip_sin_to_cos=True,
            freq_shift=0,
        )
        if num_heads is not None:  # diffusers takes a single head width, and here it differs between resolutions
            for module in self.network.modules():
                if isinstance(module, Attention):
                    module.heads = num_heads
        load_into(self, weights)

    def evaluate(self, x: Tensor, label: Tensor) -> Tensor:
        return self._outputs(x, label)[:, : self.channels]

    def mean_and_variance(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if not self.learned_variance:
            return super().mean_and_variance(x_t, t)
        asked = self.question(x_t, t)
        answer, variance = self._outputs(asked.x, asked.label).chunk(2, dim=1)
        # Under autocast the output is in half precision, which is too coarse for the logarithms of variances.
        return self.mean(x_t, asked, answer), (variance.to(x_t.dtype) + 1.0) / 2.0

    def _outputs(self, x: Tensor, label: Tensor) -> Tensor:
        # Guided purifiers need a second derivative, which fused attention does not have. The math form is used always,
        # since a step must give the same bits with a graph as without.
        with sdpa_kernel(SDPBackend.MATH):
            return self.network(x, label, return_dict=False)[0]
