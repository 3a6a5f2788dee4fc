"""The pictures of one quality evaluation: features, ways of purification, noise patterns, attention."""

from collections.abc import Callable, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lustral.defence import Defence
from lustral.evaluation.plane import Plane, fitted_plane
from lustral.evaluation.quality import ADVERSARIAL, ALIGNMENT, CLEAN, KINDS, QualityRecord
from lustral.noise import NoiseStream
from lustral.reporting.attention import attention_panel
from lustral.reporting.feature_figures import Trajectory, joint_distribution, trajectory_figure
from lustral.reporting.patterns import noise_patterns

SHOWN = 8
"""Samples on a sheet of images: the first ones."""
LOOKED_AT, WAYS = 32, 6
"""The first samples among which those are looked for whose way is drawn, and how many of these there are."""


def quality_sheets(
    defence: Defence,
    records: Sequence[QualityRecord],
    seed: int,
    images: Callable[[list[int]], Tensor],
    class_names: Sequence[str],
    device: torch.device,
) -> dict[str, Figure]:
    """Figures by file stem: "joint_distribution", "trajectories" (of purifiers whose trace offers the path),
    "noise_patterns", and "attention" (of those that make a mask). Images that are purified in groups have the first
    only.

    Args:
        defence: the defence.
        records: of the evaluation; failed ones are left out.
        seed: the run's seed: the images of the sheets are those of the first draw.
        images: the clean images at given positions of the data set, (n, C, H, W).
        class_names: of the data set.
        device: where images are purified.
    """
    healthy = [record for record in records if not record.failed]
    if len(healthy) < 2:
        return {}
    features = torch.stack([record.features for record in healthy])
    plane = fitted_plane(features[:, KINDS.index(CLEAN)])
    points = {kind: plane(features[:, number]) for number, kind in enumerate(KINDS)}
    figures = {"joint_distribution": joint_distribution(points, CLEAN, plane.shares)}
    if defence.group_size > 1:
        return figures
    defence = defence.to(device)
    few = healthy[:LOOKED_AT]
    index, labels = [record.index for record in few], [record.label for record in few]
    clean, attacked = images(index).to(device), torch.stack([record.image for record in few]).to(device)
    noise = NoiseStream(seed, torch.tensor(index, device=device)).fork("verdict", ADVERSARIAL)
    first = torch.arange(min(SHOWN, len(few)), device=device)
    given = (clean[first], attacked[first])
    with torch.no_grad():
        purified = defence.purifier(given[1], noise.select(first)).images[0].cpu()
    names = [class_names[label] for label in labels[:SHOWN]]
    cosines = [record.values[ALIGNMENT] for record in few[:SHOWN]]
    figures["noise_patterns"] = noise_patterns(given[0].cpu(), given[1].cpu(), purified, names, cosines)
    attention = attention_panel(defence, *given, labels[:SHOWN], class_names, noise.select(first))
    if attention is not None:
        figures["attention"] = attention
    if "path" in defence.purifier.offers:
        figures["trajectories"] = _trajectories(defence, healthy, attacked, noise, plane, class_names)
    return figures


def _trajectories(
    defence: Defence,
    records: Sequence[QualityRecord],
    attacked: Tensor,
    noise: NoiseStream,
    plane: Plane,
    class_names: Sequence[str],
) -> Figure:
    """The ways of the first images that the attack makes the victim misjudge; without enough of them, of others."""
    with torch.no_grad():
        taken: list[int] = defence.classifier(attacked).argmax(1).tolist()
        fooled = sorted(range(len(attacked)), key=lambda i: taken[i] == records[i].label)[:WAYS]
        rows = torch.tensor(fooled, device=attacked.device)
        purified = defence.purifier(attacked[rows], noise.select(rows), wants={"path"})
        ways = torch.cat((purified.trace["path"], purified.images[0][:, None]), 1)
        seen = [defence.classifier.features_and_logits(way) for way in ways]
    clean = {label: [r.features[0] for r in records if r.label == label] for label in range(len(class_names))}

    def of_class(label: int) -> Tensor:
        found = clean[label]
        return plane(torch.stack(found)) if found else torch.zeros(0, 2)

    drawn = []
    for i, (features, logits) in zip(fooled, seen, strict=True):
        own, reached, end = records[i].label, taken[i], int(logits[-1].argmax())
        names = (class_names[own], class_names[reached] if reached != own else "")
        drawn.append(
            Trajectory(
                title=f"{class_names[own]} → {class_names[reached]} → {class_names[end]}",
                clean=plane(records[i].features[KINDS.index(CLEAN)]),
                adversarial=plane(records[i].features[KINDS.index(ADVERSARIAL)]),
                path=plane(features.cpu()),
                own=of_class(own),
                other=of_class(reached) if reached != own else torch.zeros(0, 2),
                names=names,
            )
        )
    return trajectory_figure(drawn)
