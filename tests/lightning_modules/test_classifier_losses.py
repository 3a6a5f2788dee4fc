"""The seam of a classifier's loss, by two that are like published ones: attacked images, and weights that are moved."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from datamodules import Digits
from lightning_modules import ClassifierTraining
from lustral.networks import WideResNet
from lustral.noise import NoiseStream
from lustral.training import ClassifierLoss, CleanCrossEntropy, evaluating
from tests.contracts import ToyClassifier, images, randomise, stream


class Divergence(ClassifierLoss):
    """Like TRADES: clean cross-entropy, and the divergence of the answers on images that were attacked in evaluation
    mode. It remembers what it did."""

    def __init__(self, beta: float = 6.0, eps: float = 0.1, num_steps: int = 3) -> None:
        self.beta, self.eps, self.num_steps = beta, eps, num_steps
        self.attacked: list[Tensor] = []

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor, noise: NoiseStream) -> Tensor:
        with evaluating(classifier):
            start = noise.fork("trades").uniform(x.shape[1:], dtype=x.dtype)
            adversarial = (x + self.eps * (2 * start - 1)).clamp(0, 1)
            clean = classifier(x).softmax(1).detach()
            for _ in range(self.num_steps):
                adversarial.requires_grad_()
                loss = F.kl_div(classifier(adversarial).log_softmax(1), clean, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, adversarial)
                moved = adversarial.detach() + self.eps / 2 * gradient.sign()
                adversarial = torch.minimum(torch.maximum(moved, x - self.eps), x + self.eps).clamp(0, 1)
        self.attacked.append(adversarial)
        logits = classifier(x)
        divergence = F.kl_div(classifier(adversarial).log_softmax(1), logits.softmax(1), reduction="none").sum(1)
        return F.cross_entropy(logits, y, reduction="none") + self.beta * divergence


class MovedWeights(ClassifierLoss):
    """Like AWP: the loss where the weights are worse, in the direction of the gradient."""

    def __init__(self, share: float = 0.05) -> None:
        self.share = share
        self.kept: dict[str, Tensor] = {}

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor, noise: NoiseStream) -> Tensor:
        assert not self.kept, "the weights of the call before were not brought back"
        weights = {name: p for name, p in classifier.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(F.cross_entropy(classifier(x), y), list(weights.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                self.kept[name] = weight.clone()
                weight += self.share * weight.norm() * gradient / (gradient.norm() + 1e-12)
        return F.cross_entropy(classifier(x), y, reduction="none")

    def restore(self, classifier: nn.Module) -> None:
        with torch.no_grad():
            for name, weight in self.kept.items():
                classifier.get_parameter(name).copy_(weight)
        self.kept.clear()


class Watching(Callback):
    """The weights and gradients at the moment of the optimiser's step."""

    def __init__(self) -> None:
        self.weights: list[list[Tensor]] = []
        self.gradients: list[list[Tensor]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        parameters = [p for p in pl_module.classifier.parameters() if p.requires_grad]
        self.weights.append([p.detach().clone() for p in parameters])
        self.gradients.append([p.grad.clone() for p in parameters])


def _network(**options: float) -> WideResNet:
    network = WideResNet(10, 1, 10, 1, 8, **options)  # type: ignore[arg-type]
    randomise(network, 0.2)
    return network


def _fit(loss: ClassifierLoss, folder: Path, steps: int = 1, every: int = 1, **options: Any) -> tuple[Any, Watching]:
    module, watching = ClassifierTraining(options.pop("network", None) or _network(), loss, _sgd, **options), Watching()
    trainer = Trainer(
        max_steps=steps,
        accumulate_grad_batches=every,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[watching],
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=Digits(batch_size=32))
    return module, watching


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def test_a_loss_may_attack_the_classifier_that_it_trains(tmp_path: Path) -> None:
    start, loss = _network().state_dict(), Divergence()
    module, watching = _fit(loss, tmp_path)
    assert len(loss.attacked) == 1
    assert all(not torch.equal(tensor, start[name]) for name, tensor in module.classifier.state_dict().items())
    tracked = [int(t) for name, t in module.classifier.state_dict().items() if name.endswith("num_batches_tracked")]
    assert set(tracked) == {2}  # the two calls in training mode; the four of the attack left the statistics alone
    # One gradient, that of the loss: those of the attack went to the images alone.
    network = _network().train()
    x, y, index = next(iter(_first_batch()))
    Divergence()(network, x, y, NoiseStream(0, index).at(iteration=0)).mean().backward()
    for ours, theirs in zip(watching.gradients[0], network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad)


def _first_batch() -> Any:
    data = Digits(batch_size=32)
    data.setup("fit")
    return data.train_dataloader()


def test_the_draws_of_a_loss_are_keyed_by_sample_and_step() -> None:
    toy, x, y, noise = ToyClassifier(), images(6), torch.tensor([0, 1, 2, 1, 0, 2]), stream(6)
    rows = torch.tensor([4, 1])
    whole, part = Divergence(), Divergence()
    several = ClassifierTraining(toy, whole).loss(x, y, noise)
    torch.testing.assert_close(ClassifierTraining(toy, part).loss(x[rows], y[rows], noise.select(rows)), several[rows])
    torch.testing.assert_close(part.attacked[0], whole.attacked[0][rows])
    later = ClassifierTraining(toy, Divergence()).loss(x, y, noise.at(iteration=1))
    assert not torch.isclose(later, several).any()


def test_a_training_hands_each_step_its_own_noise(tmp_path: Path) -> None:
    seen: list[NoiseStream] = []

    class Listening(CleanCrossEntropy):
        def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor, noise: NoiseStream) -> Tensor:
            seen.append(noise)
            return super().__call__(classifier, x, y, noise)

    _fit(Listening(), tmp_path, 2, every=2, seed=7)
    assert [noise.seed for noise in seen] == [7] * 4
    iterations = [noise.iteration for noise in seen]
    assert [set(i.tolist()) for i in iterations if i is not None] == [{0}, {0}, {1}, {1}]
    assert [len(noise) for noise in seen] == [32] * 4


@pytest.mark.parametrize("every", [1, 2])
def test_moved_weights_are_back_before_the_optimisers_step(every: int, tmp_path: Path) -> None:
    """Lightning takes the gradient after the loss has returned, so the loss itself cannot bring them back."""
    start, loss = [p.detach().clone() for p in _network().parameters()], MovedWeights()
    module, watching = _fit(loss, tmp_path, 2, every)
    assert not loss.kept
    assert len(watching.weights) == 2
    for here, before, gradient in zip(watching.weights[0], start, watching.gradients[0], strict=True):
        assert torch.equal(here, before)
        assert gradient.abs().sum() > 0
    for end, before, gradient in zip(
        module.classifier.parameters(), watching.weights[1], watching.gradients[1], strict=True
    ):
        torch.testing.assert_close(end.detach(), before - _last_lr(module) * gradient)


def _last_lr(module: Any) -> float:
    """The schedule has moved on once more after the last step."""
    (config,) = module.trainer.lr_scheduler_configs
    steps = config.scheduler.num_steps
    return 0.1 * config.scheduler.factor(config.scheduler.last_epoch - 1, steps)


def test_the_gradient_is_that_at_the_moved_weights(tmp_path: Path) -> None:
    _, moved = _fit(MovedWeights(), tmp_path)
    _, plain = _fit(CleanCrossEntropy(), tmp_path)
    network, loss = _network().train(), MovedWeights()
    x, y, index = next(iter(_first_batch()))
    loss(network, x, y, NoiseStream(0, index)).mean().backward()
    for ours, theirs, unmoved in zip(moved.gradients[0], network.parameters(), plain.gradients[0], strict=True):
        torch.testing.assert_close(ours, theirs.grad)
        assert not torch.allclose(ours, unmoved)


def test_modes_are_given_back_layer_by_layer(tmp_path: Path) -> None:
    network = _network(dropout=0.5).train()
    network.stages[0].eval()
    before = {name: module.training for name, module in network.named_modules()}
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert {name: module.training for name, module in network.named_modules()} == before
    module, _ = _fit(Divergence(), tmp_path, 2, trainable="head")
    assert not any(part.training for part in module.classifier.modules())
    assert not module.classifier.get_parameter("head.weight").equal(_network().head.weight)


@pytest.mark.parametrize("reduction", ["mean", "matrix"])
def test_a_loss_that_is_not_one_number_an_image_is_refused(reduction: str) -> None:
    class Reduced(ClassifierLoss):
        def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor, noise: NoiseStream) -> Tensor:
            logits = classifier(x)
            return F.cross_entropy(logits, y) if reduction == "mean" else logits

    with pytest.raises(ValueError, match=r"Reduced gives a loss of shape .* for 4 images; it must be one number"):
        ClassifierTraining(ToyClassifier(), Reduced()).loss(images(4), torch.tensor([0, 1, 2, 0]), stream(4))
