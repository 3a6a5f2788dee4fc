"""The on-manifold attack: images of CMAP's generator, within the budget, of another class."""

import pytest
import torch

from lustral.attacks import Cases, Engine, OnManifold
from lustral.attacks.objectives import margin
from lustral.attacks.on_manifold import excess
from lustral.defence import Defence
from lustral.diffusion import ConsistencyGenerator, EDMSchedule, Generator
from lustral.networks import GANGenerator
from lustral.purifiers import CMAP, Identity
from lustral.threat import ThreatModel
from tests.contracts import SmoothDenoiser, ToyClassifier, images, randomise, stream

LINF, L2 = ThreatModel("linf", "32/255"), ThreatModel("l2", 0.5)


def _generator(kind: str) -> Generator:
    if kind == "consistency":
        return ConsistencyGenerator(SmoothDenoiser(EDMSchedule()).float(), 0.7)
    made = GANGenerator(4, 1, 6, [4])
    randomise(made, 0.6)
    return made


def _defence(kind: str) -> Defence:
    purifier = CMAP(_generator(kind), 2, num_steps=3, lr=0.05, latent_weight=0.1)
    return Defence(ToyClassifier(), purifier, "vote").eval().requires_grad_(False)


def _cases(batch: int = 5) -> Cases:
    x = images(batch)
    return Cases(x, ToyClassifier()(x).argmax(1), stream(batch).index)


def test_the_excess_is_what_stands_out_of_the_ball() -> None:
    x = torch.full((2, 1, 4, 4), 0.5)
    moved = x.clone()
    moved[0, 0, 0, :2] += torch.tensor([0.3, -0.25])
    moved[1, 0] += 0.05
    linf = ThreatModel("linf", 0.1)
    torch.testing.assert_close(excess(moved, x, linf), torch.tensor([0.2 + 0.15, 0.0]))
    torch.testing.assert_close(excess(moved, x, ThreatModel("l2", 0.15)), torch.tensor([0.1525**0.5 - 0.15, 0.05]))
    torch.testing.assert_close(excess(x, x, linf), torch.zeros(2))


def test_at_the_image_itself_the_excess_has_a_gradient() -> None:
    for threat in (LINF, L2):
        x = images(2)
        at = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(excess(at, x, threat).sum(), at)
        assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("threat", [LINF, L2])
@pytest.mark.parametrize("kind", ["consistency", "gan"])
def test_an_image_within_the_budget_comes_back_whose_bits_do_not_depend_on_others(
    kind: str, threat: ThreatModel
) -> None:
    attack, cases, noise = OnManifold(num_steps=3, selection_draws=1), _cases(), stream(5)
    engine = Engine(_defence(kind), 4)
    result = attack(engine, cases, threat, noise)
    assert not result.failed.any()
    assert (result.distance > 0).all()
    assert result.distance.max() <= threat.budget + 1e-6
    rows = torch.tensor([4, 1])
    again = attack(engine, cases.select(rows), threat, noise.select(rows))
    assert torch.equal(again.images, result.images[rows])
    assert torch.equal(again.statistics["loss_last"], result.statistics["loss_last"][rows])


def test_generated_images_leave_their_class_and_the_weight_holds_them_near() -> None:
    cases, found = _cases(), {}
    for weight in (0.0, 100.0):
        attack = OnManifold(weight, 2.0, 60, 1)
        result = attack(Engine(_defence("consistency"), 5), cases, LINF, stream(5))
        first, last = result.statistics["loss_first"], result.statistics["loss_last"]
        found[weight] = (last - first).mean()
        if not weight:
            assert (last > 0).all(), "without a bound every image leaves its class"
            won = margin(ToyClassifier()(result.images), cases.labels)
            assert won.mean() > margin(ToyClassifier()(cases.images), cases.labels).mean() + 0.3
    assert found[0.0] > found[100.0] + 0.5


@torch.no_grad()
def test_beyond_the_confidence_only_the_distance_counts() -> None:
    defence, x = _defence("consistency"), images(4)
    z = stream(4).fork("z").normal((1, 4, 4))
    purifier: CMAP = defence.purifier  # type: ignore[assignment]
    drawn = purifier.generator(z)
    wrong = ToyClassifier()(drawn).argmin(1)
    won, far = margin(ToyClassifier()(drawn), wrong), excess(drawn, x, LINF)
    attack = OnManifold(3.0, float(won.median()))
    loss, watched = attack.pull(Engine(defence, 4), purifier, LINF, z, x, wrong)
    torch.testing.assert_close(watched, won)
    torch.testing.assert_close(loss, 3.0 * far - won.clamp(max=attack.confidence))
    assert 0 < int((won > attack.confidence).sum()) < 4


def test_what_cannot_be_attacked_is_refused() -> None:
    with pytest.raises(ValueError, match="OnManifold searches the latents of CMAP, but the defence has Identity"):
        OnManifold()(Engine(Defence(ToyClassifier(), Identity()), 4), _cases(), LINF, stream(5))
    for options in ({"weight": -1.0}, {"confidence": -1.0}, {"num_steps": 0}, {"selection_draws": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} = {next(iter(options.values()))}"):
            OnManifold(**options)  # type: ignore[arg-type]
