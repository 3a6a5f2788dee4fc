"""Consistency disruption: it raises the cross-entropy within the threat set, and its two forms differ as named."""

import pytest
import torch
import torch.nn.functional as F

from lustral.attacks import Cases, ConsistencyDisruption, Engine
from lustral.defence import Defence
from lustral.diffusion import ConsistencyGenerator, EDMSchedule
from lustral.purifiers import CMAP, Identity
from lustral.threat import ThreatModel
from tests.contracts import SmoothDenoiser, ToyClassifier, images, stream

LINF, L2 = ThreatModel("linf", "32/255"), ThreatModel("l2", 0.5)


def _defence(merge: str = "vote") -> Defence:
    generator = ConsistencyGenerator(SmoothDenoiser(EDMSchedule()).float(), 0.7)
    purifier = CMAP(generator, 2, num_steps=3, lr=0.05, latent_weight=0.1)
    return Defence(ToyClassifier(), purifier, merge).eval().requires_grad_(False)  # type: ignore[arg-type]


def _cases(batch: int = 5) -> Cases:
    x = images(batch)
    return Cases(x, ToyClassifier()(x).argmax(1), stream(batch).index)


@pytest.mark.parametrize("threat", [LINF, L2])
@pytest.mark.parametrize("form", ["corrected", "published"])
def test_an_image_within_the_budget_comes_back_whose_bits_do_not_depend_on_others(
    form: str, threat: ThreatModel
) -> None:
    attack = ConsistencyDisruption(num_steps=3, form=form, selection_draws=1)  # type: ignore[arg-type]
    cases, engine, noise = _cases(), Engine(_defence(), 4), stream(5)
    result = attack(engine, cases, threat, noise)
    assert not result.failed.any()
    assert (result.distance > 0).all()
    assert result.distance.max() <= threat.budget + 1e-6
    assert result.statistics.keys() == set(attack.measures)
    rows = torch.tensor([4, 1])
    again = attack(engine, cases.select(rows), threat, noise.select(rows))
    assert torch.equal(again.images, result.images[rows])
    assert torch.equal(again.statistics["loss_last"], result.statistics["loss_last"][rows])


def test_the_corrected_form_raises_the_cross_entropy_more() -> None:
    found = {}
    for form in ("corrected", "published"):
        attack = ConsistencyDisruption(100.0, 25, form, 1)  # type: ignore[arg-type]
        result = attack(Engine(_defence("mean"), 5), cases := _cases(), LINF, stream(5))
        first, last = result.statistics["loss_first"], result.statistics["loss_last"]
        found[form] = F.cross_entropy(ToyClassifier()(result.images), cases.labels, reduction="none").mean()
        assert (last > first).float().mean() > 0.8
    clean = F.cross_entropy(ToyClassifier()(_cases().images), _cases().labels)
    assert found["corrected"] > clean + 0.3
    assert found["corrected"] > found["published"]


def test_it_is_refused_where_there_are_no_latents() -> None:
    with pytest.raises(ValueError, match="searches the latents of CMAP, but the defence has Identity"):
        ConsistencyDisruption()(Engine(Defence(ToyClassifier(), Identity()), 4), _cases(), LINF, stream(5))
    with pytest.raises(ValueError, match="form is 'exact'; it may be corrected, published"):
        ConsistencyDisruption(form="exact")  # type: ignore[arg-type]
    for strength in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"strength = {strength} cannot be negative or infinite"):
            ConsistencyDisruption(strength)
