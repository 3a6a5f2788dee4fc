"""The U-Net of Ho et al. (2020), through diffusers."""

from collections.abc import Sequence
from typing import Literal

from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lustral.diffusion.schedules import ScheduleName, make_schedule
from lustral.networks.builders import announced
from lustral.networks.denoisers import PreconditionedDenoiser
from lustral.networks.preconditioners import make_preconditioner
from lustral.networks.weights import load_into


@announced
class UNetDenoiser(PreconditionedDenoiser):
    """diffusers' UNet2DModel as DDPM's U-Net: 35,746,307 parameters with the defaults, the CIFAR-10 and SVHN model.

    Args:
        image_size: height and width in pixels.
        channels: of the image, 1 or 3.
        widths: channels of each resolution; each further one halves the height and width.
        blocks: residual blocks per resolution.
        attention: for each resolution, whether its blocks have attention.
        head_width: channels of an attention head; None is a single head, as in Ho et al.
        norm_groups: groups of every group normalisation.
        dropout: probability inside each block while training.
        preconditioning: that of its training: "linear" (on the table of 1000 levels) or "vp" (in continuous time).
        schedule_type: the diffusion process on which the denoiser is used; None is the one it was trained on.
        weights: a file written by `save_network`; None leaves the weights random.
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
        preconditioning: Literal["linear", "vp"] = "linear",
        schedule_type: None | ScheduleName = None,
        weights: None | str = None,
    ) -> None:
        super().__init__()
        if preconditioning not in ("linear", "vp"):
            raise ValueError(f"preconditioning is {preconditioning!r}; a UNetDenoiser's may be linear or vp.")
        if len(attention) != len(widths):
            raise ValueError(f"attention has {len(attention)} entries for {len(widths)} widths; give one each.")
        if blocks < 1:
            raise ValueError(f"blocks is {blocks}; a resolution has at least 1.")
        if uneven := [width for width in widths if width % norm_groups]:
            raise ValueError(f"norm_groups is {norm_groups}; it must divide every width, {uneven[0]} among them.")
        attending = [*(width for width, attends in zip(widths, attention, strict=True) if attends), widths[-1]]
        if head_width is not None and (uneven := [width for width in attending if width % head_width]):
            raise ValueError(
                f"head_width is {head_width}; it must divide the {uneven[0]} channels of a block that attends."
            )
        if image_size % 2 ** (len(widths) - 1):
            raise ValueError(f"image_size {image_size} cannot be halved {len(widths) - 1} times: use fewer widths.")
        self.image_size, self.channels, self.widths = image_size, channels, list(widths)
        self.blocks, self.attention, self.head_width = blocks, list(attention), head_width
        self.norm_groups, self.dropout, self.weights = norm_groups, dropout, weights
        self.preconditioning, self.preconditioner = preconditioning, make_preconditioner(preconditioning)
        self.schedule_type, self.schedule = schedule_type, make_schedule(schedule_type or preconditioning)
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

    def evaluate(self, x: Tensor, label: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            return self.network(x, label, return_dict=False)[0]
