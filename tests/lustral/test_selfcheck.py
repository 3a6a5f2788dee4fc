"""The check before an evaluation: what would make a record depend on its batch is refused, by name; sound runs pass."""

import random
from collections.abc import Callable, Collection

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.attacks import PGD, APGDTargeted, Attack, Engine, Ensemble, MeanLogitMargin, Square
from lustral.diffusion import EulerMaruyama, VPSchedule
from lustral.diffusion.perturbation import EPS
from lustral.evaluation import Defence, operations, self_check
from lustral.networks import Classifier
from lustral.noise import NoiseStream
from lustral.purifiers import GNSP, SSNI, Context, DiffPure, Identity, Purified, Purifier, SigmoidLevels
from tests.contracts import NoisyPurifier, SmoothDenoiser, ToyClassifier, cases, stored_scores
from tests.lustral import unkeyed


def _check(
    purifier: Purifier | None = None,
    classifier: Classifier | None = None,
    rows: int = 32,
    attack: Attack | None = None,
    count: int = 3,
) -> list[str]:
    engine = Engine(Defence(classifier or ToyClassifier(), purifier or Identity()).eval(), rows)
    chosen, states = cases(count), (torch.get_rng_state(), random.getstate())
    remarks = self_check(engine, attack or PGD(1), chosen, seed=0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    return remarks


def _diffpure() -> DiffPure:
    return DiffPure(SmoothDenoiser(VPSchedule()).float(), EulerMaruyama(), 100, 2)


def _ssni() -> SSNI:
    purifier, statistic = _diffpure(), EPS(num_times=2)
    reference = stored_scores(purifier.denoiser, statistic, [1.0, 2.0, 5.0, 40.0])
    return SSNI(purifier, SigmoidLevels(1.0), reference, statistic)


MEMBERS = [PGD(1, eot=3), PGD(1, objective=MeanLogitMargin()), PGD(1, gradient="bpda"), Square(3)]
SOUND: dict[str, Callable[[], list[str]]] = {
    "undefended": lambda: _check(),
    "one row a call": lambda: _check(NoisyPurifier(), rows=1),
    "two rows a call": lambda: _check(_diffpure(), rows=2),
    "one image": lambda: _check(_diffpure(), count=1),
    "instance norm": lambda: _check(classifier=unkeyed.PerImageNorm()),
    "rows of uneven cost": lambda: _check(_ssni(), rows=4),
    "rounds": lambda: _check(GNSP(SmoothDenoiser(VPSchedule()).float(), [(30, 1), (50, 1)])),
    "ensemble": lambda: _check(NoisyPurifier(), attack=Ensemble(MEMBERS)),
    "surrogate": lambda: _check(_diffpure(), attack=PGD(1, surrogate=NoisyPurifier())),
    "targets": lambda: _check(classifier=ToyClassifier(5), attack=APGDTargeted(1, num_targets=2)),
    "no gradient": lambda: _check(NoisyPurifier(), attack=Square(3)),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_runs_pass_and_no_generator_is_touched(name: str) -> None:
    assert SOUND[name]() == []


REFUSED = [
    (unkeyed.GlobalNoise, r"GlobalNoise .* draws from the global generator of torch \(randn_like\)"),
    (unkeyed.NoiseBySlot, r"purified pixels of image 13 have other bits in another slot of a call"),
    (unkeyed.NoiseByCall, r"purified pixels .* have other bits each time .* the same noise stream: draw"),
    (unkeyed.NoiseOfTheFirst, r"purified pixels .* have other bits (beside other images|in another order)"),
    (unkeyed.OneDraw, r"noise of OneDraw is the same for every draw"),
    (unkeyed.SaysItIsDeterministic, r"SaysItIsDeterministic says random = False"),
    (unkeyed.Hidden, r"normalises with the statistics of the batch"),
    (unkeyed.ForgottenDropout, r"before ForgottenDropout draws from the global generator of torch \(bernoulli\)"),
    (unkeyed.BatchStatistics, r"classifier.norm \(BatchNorm2d\) normalises with the statistics of the batch"),
    (unkeyed.TrainMode, r"classifier.norm \(BatchNorm2d\) is in train mode"),
    (unkeyed.MeanOfTheBatch, r"logits of image 13 have other bits .* \(first in classifier.conv \(Conv2d\)\)"),
    (unkeyed.Counts, r"classifier.seen changed while images were judged"),
    (unkeyed.SlotMatters, r"logits of image 13 have other bits in another slot .* multiple of 32; .* MKL_CBWR"),
    (unkeyed.SlotMattersInTheGradient, r"gradients of image 13 have other bits in another slot"),
]


@pytest.mark.parametrize(("kind", "told"), REFUSED, ids=[kind.__name__ for kind, _ in REFUSED])
def test_what_would_depend_on_the_batch_is_refused_by_name(kind: type, told: str) -> None:
    part = kind()
    with pytest.raises(ValueError, match=told), torch.random.fork_rng():
        _check(part) if isinstance(part, Purifier) else _check(classifier=part)


def test_other_global_generators_are_told_apart() -> None:
    class Drawing(NoisyPurifier):
        def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
            return super().run(x + 0 * random.random(), context, noise, wants)

    state = random.getstate()
    try:
        with pytest.raises(ValueError, match="global generator of Python"):
            _check(Drawing())
    finally:
        random.setstate(state)


def test_a_surrogate_is_held_to_the_same() -> None:
    with pytest.raises(ValueError, match=r"purified pixels .* in another slot"):
        _check(_diffpure(), attack=Ensemble([PGD(1), PGD(1, surrogate=unkeyed.NoiseBySlot())]))


def test_randomness_that_shows_nothing_is_remarked_on() -> None:
    (remark,) = _check(unkeyed.SaysItIsRandom())
    assert "SaysItIsRandom says random = True, but other noise changed nothing" in remark


# Tails and products ------------------------------------------------------------


class _Activated(ToyClassifier):
    """The toy classifier after a function of each pixel, of 16 an image."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(self.function(x))


def _rounds_tails_otherwise(x: Tensor) -> Tensor:
    """As a vectorised loop does to the last elements, here for one value in fifty."""
    flat = (-x).flatten()
    found, tail = torch.nextafter(flat, flat + 1), flat.numel() // 32 * 32
    rare = torch.arange(len(flat)) < tail
    return torch.where(rare | (flat.abs() % 0.01 > 2e-4), flat, found).view_as(x)


def test_a_tail_is_found_where_a_few_images_miss_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another processor's negation is put in the place of this one's where it is tried, and nowhere else."""
    monkeypatch.setattr(operations, "_known", {})
    engine = Engine(Defence(_Activated(torch.Tensor.neg), Identity()).eval(), 5)
    original = operations._moves

    def moves(func: object, args: object, kwargs: object, size: int) -> bool:
        swapped = (lambda x: _rounds_tails_otherwise(x)) if "neg" in str(func) else func
        return original(swapped, args, kwargs, size)

    monkeypatch.setattr(operations, "_moves", moves)
    with pytest.raises(ValueError, match=r"neg treats the last elements .*rows 5 x 16 .* choose --model.rows 4 or 6\."):
        self_check(engine, PGD(1), cases(3), seed=0)
    engine = Engine(Defence(_Activated(torch.Tensor.neg), Identity()).eval(), 6)
    assert self_check(engine, PGD(1), cases(3), seed=0) == []


def test_a_processor_that_takes_16_elements_at_once_has_no_tail_where_that_divides() -> None:
    def by_sixteen(x: Tensor) -> Tensor:
        found, tail = x.clone(), len(x) // 16 * 16
        found[tail:] *= 1 + 2**-20
        return found

    sizes = [16, 40, 48, 49, 240, 336]
    assert [operations._has_tail(by_sixteen, (torch.zeros(n),), {}, n) for n in sizes] == [n % 16 > 0 for n in sizes]


@pytest.mark.parametrize(
    "function", [F.silu, torch.sigmoid, F.softplus, F.mish, F.elu, F.gelu], ids=lambda f: f.__name__
)
def test_a_multiple_of_32_rows_always_passes(function: Callable[[Tensor], Tensor]) -> None:
    """Whatever this processor does to tails; and where it is refused at 9 rows, the remedy is legal."""
    classifier = _Activated(lambda x: function(x[:, :, :3, :3].contiguous()).sum((1, 2, 3), keepdim=True) + x)
    assert _check(classifier=classifier, rows=32) == []
    try:
        _check(classifier=classifier, rows=9)
    except ValueError as error:
        assert "choose --model.rows 32." in str(error)  # noqa: PT017


def test_the_nearest_rows_that_fit() -> None:
    assert operations._fitting(5, [16]) == [4, 6]
    assert operations._fitting(12, [16, 3]) == [32]
    assert operations._fitting(70, [1]) == [64, 96]
    assert operations._fitting(9, [64]) == [9, 10]


def test_a_product_that_sums_by_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As MKL's do on some processors; here one is put in their place while products are tried."""
    monkeypatch.setattr(operations, "_known", {})
    original = operations._mixes

    def mixes(func: Callable[..., Tensor], *rest: object) -> bool:
        def by_row(*args: Tensor) -> Tensor:
            out = func(*args)
            return out * (1 + 2**-23 * (torch.arange(len(out)) % 4 == 3))[:, None]

        return original(by_row, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(operations, "_mixes", mixes)
    with pytest.raises(ValueError, match=r"product of 8 x 128 by 128 x 3 numbers gives equal rows unequal .* MKL_CBWR"):
        _check(rows=8)
