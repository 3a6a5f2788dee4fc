"""Networks that predict noise, behind the Denoiser convention."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from lustral.diffusion import Denoiser, DiscreteSchedule, NoiseSchedule, VPSchedule
from lustral.diffusion.schedules import MAX_TIME, coefficient
from lustral.networks.weights import load_into

SCHEDULES: dict[str, type[NoiseSchedule]] = {"discrete": DiscreteSchedule, "vp": VPSchedule}


class NoisePredictor(Denoiser):
    """A network eps(x_t, label) as a denoiser: E[x_0 | x_t] = (x_t - sigma eps) / alpha.

    The label is in the network's own unit: the noise index t - 1 (0 ... 999) on the discrete schedule, 999 t/1000
    on the continuous one, as Score-SDE trains it.
    """

    @abstractmethod
    def predict_noise(self, x_t: Tensor, label: Tensor) -> Tensor:
        """(B, C, H, W) from ``x_t`` (B, C, H, W) in diffusion space and the network's own ``label`` (B,)."""

    def label(self, t: Tensor) -> Tensor:
        """The network's time label at ``t``, in float64."""
        if isinstance(self.schedule, DiscreteSchedule):
            return t.double() - 1.0
        return t.double() * ((MAX_TIME - 1) / MAX_TIME)

    def predict_noise_at(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's noise at ``t``, () or (B,)."""
        label = self.label(t).to(x_t.dtype)
        return self.predict_noise(x_t, label.to(x_t.device, non_blocking=True).expand(len(x_t)))

    def noise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's own output: by way of x_0 it would be subtracted at a sigma of 0.01 and lose digits."""
        return self.predict_noise_at(x_t, t)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        noise = self.predict_noise_at(x_t, t)
        return (x_t - coefficient(sigma, x_t) * noise) / coefficient(alpha, x_t)


class UNetDenoiser(NoisePredictor):
    """diffusers' UNet2DModel: the U-Net of Ho et al. (2020) and its descendants.

    Args:
        image_size: height and width in pixels.
        channels: of the image, 1 or 3.
        widths: channels of each resolution; each further one halves the height and width.
        blocks: residual blocks a resolution.
        attention: for each resolution, whether its blocks attend.
        head_width: channels of an attention head; None is a single head, as in Ho et al.
        norm_groups: groups of every group normalisation.
        dropout: probability inside each block while training.
        schedule_type: "vp" (continuous time) or "discrete" (linear-1000).
        weights: a file written by `save_network`; None leaves them random.
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        widths: Sequence[int] = (128, 256, 256, 256),
        blocks: int = 2,
        attention: Sequence[bool] = (False, True, False, False),
        head_width: int | None = None,
        norm_groups: int = 32,
        dropout: float = 0.1,
        schedule_type: Literal["vp", "discrete"] = "discrete",
        weights: None | str = None,
    ) -> None:
        super().__init__()
        if schedule_type not in SCHEDULES:
            raise ValueError(f"schedule_type is {schedule_type!r}; it may be {' or '.join(SCHEDULES)}.")
        if len(attention) != len(widths):
            raise ValueError(f"attention has {len(attention)} entries for {len(widths)} widths; give one each.")
        if image_size % 2 ** (len(widths) - 1):
            raise ValueError(f"image_size {image_size} cannot be halved {len(widths) - 1} times: use fewer widths.")
        self.image_size, self.channels, self.widths = image_size, channels, list(widths)
        self.blocks, self.attention, self.head_width = blocks, list(attention), head_width
        self.norm_groups, self.dropout, self.weights = norm_groups, dropout, weights
        self.schedule_type, self.schedule = schedule_type, SCHEDULES[schedule_type]()
        self.image_shape = (channels, image_size, image_size)
        self.network = UNet2DModel(
            sample_size=image_size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(widths),
            layers_per_block=blocks,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            attention_head_dim=head_width,  # type: ignore[arg-type]
            norm_num_groups=norm_groups,
            dropout=dropout,
            downsample_padding=0,
            norm_eps=1e-6,
            flip_sin_to_cos=False,
            freq_shift=1,
        )
        load_into(self, weights)

    def predict_noise(self, x_t: Tensor, label: Tensor) -> Tensor:
        return self.network(x_t, label, return_dict=False)[0]
