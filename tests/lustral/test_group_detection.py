"""Detection of groups: a threshold is judged on images that did not calibrate it."""

from torch import Tensor

from lustral.detectors import GroupDetector
from lustral.evaluation.group_detection import group_section
from lustral.noise import NoiseStream
from tests.contracts import images, stream


class _Spy(GroupDetector):
    """Remembers which images a group has."""

    def __init__(self) -> None:
        super().__init__(None)
        self.groups: list[set[float]] = []

    def embed(self, x: Tensor, noise: NoiseStream) -> dict[str, Tensor]:
        return {"pixel": x[:, 0, 0, 0].double()}

    def of_group(self, embedded: dict[str, Tensor]) -> Tensor:
        self.groups.append(set(embedded["pixel"].tolist()))
        return embedded["pixel"].mean()


def test_calibration_and_false_alarms_share_no_image() -> None:
    spy, x = _Spy(), images(24)
    views = {"clean": x, "adversarial": x + 1.0, "random": x}
    found = group_section(spy, views, dict.fromkeys(views, stream(24)), [5], 40, 0)["5"]
    clean = spy.groups[:40]
    assert {len(group) for group in clean} == {5}
    assert not set.union(*clean[:20]) & set.union(*clean[20:])
    assert found["threshold"]["detected"]["value"] == 1.0
    assert found["statistic"]["adversarial"]["auroc"]["value"] == 1.0
