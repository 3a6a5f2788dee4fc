"""Pictures of attention and masks: where a classifier looks, which pixels are chosen for it, and what becomes of them.

After figure 5 of Pei et al., "Divide and conquer: heterogeneous noise integration for diffusion-based adversarial
purification", CVPR 2025.
"""

from collections.abc import Sequence

import matplotlib as mpl
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from lustral.defence import Defence
from lustral.noise import NoiseStream
from lustral.reporting.panels import Caption, panel_figure

_INSIDE = (0.835, 0.369, 0.0)
"""The colour that a mask is drawn in, `style.ROBUST` as red, green and blue."""
_STRENGTH = 0.55
_BETWEEN = (1 / 3, 2 / 3)
"""Which states of the reverse process are shown between the noised and the purified image."""


def heat(attention: Tensor) -> Tensor:
    """(B, 3, H, W) colours of maps (B, 1, H, W) in [0, 1], dark at 0 and yellow at 1."""
    colours = mpl.colormaps["inferno"](attention.detach().float().cpu().clamp(0, 1)[:, 0].numpy())
    return torch.from_numpy(colours[..., :3]).float().movedim(-1, 1)


def overlay(images: Tensor, mask: Tensor) -> Tensor:
    """(B, 3, H, W) ``images`` (B, 1 or 3, H, W) in [0, 1] with the inside of a mask (B, 1, H, W) coloured."""
    shown = images.detach().float().cpu().clamp(0, 1).expand(-1, 3, -1, -1)
    weight = _STRENGTH * mask.detach().float().cpu().clamp(0, 1)
    return (1 - weight) * shown + weight * torch.tensor(_INSIDE)[None, :, None, None]


def attention_panel(
    defence: Defence,
    clean: Tensor,
    adversarial: Tensor,
    labels: Sequence[int],
    class_names: Sequence[str],
    noise: NoiseStream,
) -> Figure | None:
    """The adversarial images with the attention and the mask that a purifier makes of them, the clean images' masks,
    and a strip of the reverse process, with the classes predicted in the end.

    None for purifiers without masks. What a purifier does not offer has no row.

    Args:
        defence: the defence.
        clean, adversarial: (B, C, H, W) in [0, 1] each.
        labels: (B,) their true classes.
        class_names: of the data set.
        noise: B rows.
    """
    purifier = defence.purifier
    if "mask" not in purifier.offers:
        return None
    wants = {"mask", "attention", "noised", "path"} & set(purifier.offers)
    with torch.no_grad():
        of_clean = purifier(clean, noise, wants={"mask"}).trace["mask"]
        purified = purifier(adversarial, noise, wants=wants)
        found: list[int] = defence.classifier(purified.images[0]).argmax(1).tolist()
    trace, side = purified.trace, clean.shape[-1]
    rows = {"clean": _coloured(clean), "its mask": overlay(clean, F.interpolate(of_clean, side))}
    rows["adversarial"] = _coloured(adversarial)
    if "attention" in trace:
        rows["attention"] = heat(F.interpolate(trace["attention"], side, mode="bilinear"))
    rows["mask"] = overlay(adversarial, F.interpolate(trace["mask"], side))
    if "noised" in trace:
        rows["noised"] = _coloured(trace["noised"])
    if "path" in trace:
        last = trace["path"].shape[1] - 1
        for share in _BETWEEN:
            number = round(share * last)
            rows[f"call {number}\nof {last}"] = _coloured(trace["path"][:, number])
    rows["purified"] = _coloured(purified.images[0])
    predicted = [Caption(class_names[one], one == label) for one, label in zip(found, labels, strict=True)]
    return panel_figure(rows, [class_names[label] for label in labels], {"purified": predicted}, changes=False)


def _coloured(x: Tensor) -> Tensor:
    return x.float().cpu().clamp(0, 1).expand(-1, 3, -1, -1)
