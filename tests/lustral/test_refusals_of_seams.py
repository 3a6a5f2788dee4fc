"""What the seams once let through in silence: gradients lost, rows mixed up, groups torn apart, draws that collide."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lustral.attacks import APGD, FAB, PGD, Attack, Cases, CrossEntropy, Engine, Objective
from lustral.attacks.first_order import State
from lustral.defence import Defence
from lustral.diffusion import LinearSchedule, RememberedDenoiser, VPSchedule, unroll
from lustral.diffusion.inner import inner_gradient
from lustral.noise import NoiseStream
from lustral.purifiers import GDMP, Guidance, Purified, Purifier, Variant
from lustral.rows import Runtime
from lustral.threat import ThreatModel
from tests.contracts import THREAT, NoisyPurifier, SmoothDenoiser, ToyClassifier, cases, images, right_cases, stream


@pytest.mark.parametrize("budget", [0.0, 1e9])
def test_unroll_refuses_integers_that_become_numbers(budget):
    x = torch.rand(2, requires_grad=True)

    def step(i, state, context):
        return {"image": state["image"] * 2, "sum": state["sum"] + state["image"]}

    state = {"image": x, "sum": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(ValueError, match="keep the types"):
        unroll(step, 3, state, None, budget)


@pytest.mark.parametrize("budget", [0.0, 1e9])
def test_unroll_finds_what_only_the_first_step_captured(budget):
    x = torch.rand(2, requires_grad=True)
    captured = 2 * x
    with pytest.raises(ValueError, match="captured"):
        unroll(lambda i, s, c: s * (captured if i == 0 else 2), 3, 1 * x, None, budget).sum().backward()


def test_a_remembered_answer_without_a_graph_is_none_where_one_is_wanted():
    network = SmoothDenoiser(VPSchedule()).requires_grad_(False)
    denoise, x, t = RememberedDenoiser(network), images(2, dtype=torch.float64).requires_grad_(), torch.tensor(100.0)
    with torch.no_grad():
        denoise(x, t)
    found = torch.autograd.grad(denoise(x, t).sum(), x)[0]
    assert torch.equal(found, torch.autograd.grad(network(x, t).sum(), x)[0])
    with pytest.raises(ValueError, match="learned no variance"):
        denoise.mean_and_variance(x, t)


def test_rows_of_a_list_are_those_of_a_tensor_and_none_are_fine():
    runtime, x = Runtime(4), torch.arange(10.0)
    assert torch.equal(runtime.call(lambda parts: [2 * parts[0]], [x])[0], 2 * x)
    assert runtime.call(lambda x: 2 * x, x[:0]).shape == (0,)


def test_rows_refuse_other_numbers_of_rows():
    runtime, x = Runtime(4), torch.arange(10.0)
    with pytest.raises(ValueError, match="as many everywhere"):
        runtime.call(lambda x, y: x, x, x[:8])
    with pytest.raises(ValueError, match="a row for each"):
        runtime.call(lambda x: x.mean(0, keepdim=True), x)


def test_draws_of_draws_end_where_a_stream_does():
    noise = NoiseStream(0, torch.arange(1)).repeat(70_000).select(torch.tensor([69_999]))
    assert int(noise.repeat(200).draw.max()) == 70_000 * 200 - 1  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="within each of 70000"):
        noise.repeat(300)


class _Roughness(Objective):
    """Looks at the trace alone, and at all draws together."""

    separable, needs = False, ("mean",)

    @property
    def plain(self) -> Objective:
        return CrossEntropy()

    def __call__(self, logits, y, trace, given) -> Tensor:  # type: ignore[override]
        return trace["mean"].mean(0)


class _Traced(NoisyPurifier):
    offers: ClassVar = {"mean": "of the pixels"}

    def run(self, x, context, noise, wants) -> Purified:
        return Purified(super().run(x, context, noise, wants).images, {"mean": x.flatten(1).sum(1)})


def test_an_objective_of_the_trace_alone_has_a_gradient():
    chosen = cases(5)
    found = Engine(Defence(ToyClassifier(), _Traced()), 4).answer(
        chosen.images, chosen.labels, stream(5), _Roughness(), draws=3
    )
    torch.testing.assert_close(found.gradient, torch.ones_like(chosen.images))


@pytest.mark.parametrize("changes", [{1: 2}, {"std.x": 1}, {"std": None, "std.x": 1}])
def test_variants_of_what_cannot_be_changed_are_refused_in_a_sentence(changes):
    with pytest.raises(ValueError, match=r"no name of|is plain|as a whole"):
        Defence(ToyClassifier(), NoisyPurifier()).with_purifier(Variant(changes))


class _Pairs(Purifier):
    """Every image is drawn to the mean of its pair."""

    group_size, random = 2, False

    def run(self, x, context, noise, wants) -> Purified:
        mean = x.unflatten(0, (-1, 2)).mean(1).repeat_interleave(2, 0)
        return Purified((0.3 * x + 0.7 * mean)[None])


class _FailsOnce(Attack):
    def run(self, engine, cases, threat, noise):
        images = cases.images + 0.01
        images[0] = torch.nan
        return images, {}


def test_a_group_with_a_failed_image_is_given_back_whole():
    chosen = cases(4)
    found = _FailsOnce()(Engine(Defence(ToyClassifier(), _Pairs()), 4), chosen, THREAT, stream(4))
    assert found.failed.tolist() == [True, True, False, False]
    assert torch.equal(found.images[:2], chosen.images[:2])
    assert not torch.equal(found.images[2:], chosen.images[2:])


class _Told(APGD):
    def __init__(self, num_steps: int) -> None:
        super().__init__(num_steps, random_start=False)
        self.losses: list[Tensor] = []

    def update(self, state, answer):
        self.losses.append(answer.loss)
        return super().update(state, answer)


def test_an_attack_that_compares_losses_compares_those_of_groups():
    some = cases(4)
    y = ToyClassifier()(some.images).argmax(1)
    free, aim = torch.tensor([False, True, False, True]), torch.tensor([True, False, True, False])
    attack = _Told(3)
    attack(
        Engine(Defence(ToyClassifier(), _Pairs()), 4), Cases(some.images, y, some.index, free, aim), THREAT, stream(4)
    )
    for loss in attack.losses:
        assert torch.equal(loss[0::2], loss[1::2])


class _Gain(Purifier):
    random, holds = False, frozenset({"gain"})

    def prepare(self, x, noise):
        return {"gain": x.flatten(1).mean(1)}

    def run(self, x, context, noise, wants) -> Purified:
        return Purified((x * context["gain"][:, None, None, None])[None])


class _HandsOver(PGD):
    """Hands a context over from the start, which every image is wrong with."""

    def start(self, x, y, threat, noise) -> State:
        return replace(super().start(x, y, threat, noise), context={"gain": torch.full((len(x), 1), -5.0)})


def test_nobody_leaves_by_what_a_handed_context_answers():
    steps: list[int] = []
    defence = Defence(ToyClassifier(), _Gain())
    engine = Engine(defence, 8, lambda task, step, of: steps.append(step) if task == "_HandsOver" else None)
    chosen = right_cases(8)
    answers = defence.classifier(-5.0 * chosen.images).argmax(1)
    chosen = replace(chosen, labels=(answers + 1) % 3)  # all wrong at once, by the context that is handed over
    _HandsOver(12)(engine, chosen, ThreatModel("linf", 0.1), stream(8))
    assert steps[-1] == 12


class _Attending(SmoothDenoiser):
    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        rows = x_t.flatten(2).transpose(1, 2)[:, None].expand(-1, -1, -1, 8).contiguous()
        seen = F.scaled_dot_product_attention(rows, 0.7 * rows, rows)[..., 0]
        return 0.6 * x_t + 0.4 * seen.reshape(x_t.shape)


class _Estimate(Guidance):
    def __call__(self, step, denoise):
        return inner_gradient(lambda x: -(denoise(x, step.t) - 0.1).square().flatten(1).sum(1), step.x_t)


def test_guidance_by_the_denoiser_has_a_second_derivative_where_there_is_attention():
    denoiser = _Attending(LinearSchedule(), (1, 8, 8)).float()
    x = images(4, (1, 8, 8))
    purifier = GDMP(denoiser, _Estimate(), 36, 3, 1, scale=1.0)
    leaf = x.clone().requires_grad_()
    found = purifier(leaf, stream(4)).images
    assert torch.autograd.grad(found.sum(), leaf)[0].isfinite().all()
    with torch.no_grad():
        assert torch.equal(purifier(x, stream(4)).images, found.detach())


class _Views(NoisyPurifier):
    """Eight views of each image, handed over many calls' worth at a time."""

    ragged = True

    def run(self, x, context, noise, wants) -> Purified:
        drawn = noise.normal((8, *x.shape[1:])).transpose(0, 1)
        return Purified(x + 0.1 * drawn)


def test_merged_views_do_not_depend_on_their_neighbours():
    engine, x, noise = Engine(Defence(ToyClassifier(10), _Views()), 4), images(33), stream(33)
    together = engine.logits(x, noise)
    for size in (1, 3, 17):
        rows = torch.arange(size)
        assert torch.equal(engine.logits(x[rows], noise.select(rows)), together[:, rows])


@pytest.mark.parametrize("prepared", [None, {"gain": 3.0}, {"gain": torch.ones(())}, {"gain": torch.ones(2)}])
@pytest.mark.parametrize("context", ["own", "clean"])
def test_what_is_prepared_badly_is_refused_in_a_sentence(prepared, context):
    purifier, chosen = _Gain(), cases(4)
    purifier.prepare = lambda x, noise: prepared  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"a row for each|must return tensors by name"):
        PGD(2, context=context)(Engine(Defence(ToyClassifier(), purifier), 4), chosen, THREAT, stream(4))


@pytest.mark.parametrize("carry", [None, [3]])
def test_what_is_carried_has_names(carry):
    with pytest.raises(ValueError, match="list of names"):
        PGD(2, carry=carry)


def test_who_looks_at_a_victim_must_have_been_shown_one():
    with pytest.raises(ValueError, match="was shown none"):
        _Gain().victim  # noqa: B018


def test_fab_refuses_images_that_are_judged_together() -> None:
    class Pairs(NoisyPurifier):
        group_size = 2

    engine = Engine(Defence(ToyClassifier(), Pairs()), 8)
    with pytest.raises(ValueError, match="FAB looks for the nearest point of each image by itself"):
        FAB(1, num_targets=1)(engine, cases(4), THREAT, stream(4))
