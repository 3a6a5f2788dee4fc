"""GNSP: gradual noise scheduling (Lee and Kim, "Robust evaluation of diffusion-based adversarial purification", ICCV
2023). docs/gnsp.md."""

from collections.abc import Sequence

from lustral.diffusion import DDIM, Denoiser
from lustral.purifiers.rounds import RoundPurifier
from lustral.purifiers.slots import Layout


class GNSP(RoundPurifier):
    """Several rounds of growing noise, each with the strided DDPM or DDIM update. Nothing is clamped.

    The paper predicts by majority vote over ten runs, which is a verdict rule here. Its attacks differentiate a process
    of the same class with fewer steps (rounds (30, 1), (50, 1), (125, 5)) in place of the defence: use it as the
    attack's ``surrogate``.

    Args:
        denoiser: the diffusion model; the paper's is on the table of 1000 levels.
        rounds: (t_star, num_steps) each; for CIFAR-10 four of (30, 30), two of (50, 50), two of (125, 125).
        eta: 1 adds the noise of DDPM, 0 none (DDIM).
        layout: how rows of different noise levels share steps (`SSNI`): "clock" or "own" (see `slots`).
        resize_to: resize images to this side in pixels, the denoiser's (256 for ImageNet images of 224), and back
            after purification; None keeps their size.

    Raises:
        ValueError: if eta, or a round's t_star or num_steps, is out of range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        rounds: Sequence[tuple[int, int]],
        eta: float = 1.0,
        layout: Layout = "clock",
        resize_to: None | int = None,
    ) -> None:
        super().__init__()
        self.prepare_rounds(denoiser, DDIM(eta), rounds, resize_to)
        self.eta, self.layout = eta, layout
