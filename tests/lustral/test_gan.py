"""The GAN: its generator fills the seam, and the gradient of each loss reaches its own network alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lustral.diffusion import generated
from lustral.networks import (
    GANDiscriminator,
    GANGenerator,
    UNetDenoiser,
    load_denoiser,
    load_generator,
    load_network,
    save_network,
)
from lustral.purifiers import CMAP
from lustral.training import gan_losses, gradient_penalty
from tests.contracts import images, randomise, stream


def _generator(size: int = 8, scale: float = 0.3) -> GANGenerator:
    made = GANGenerator(size, 1, 5, [4] * (size // 4).bit_length())
    randomise(made, scale)
    return made.eval()


def _discriminator() -> GANDiscriminator:
    made = GANDiscriminator(8, 1, [4, 4])
    randomise(made, 0.3)
    return made


@pytest.mark.parametrize("size", [4, 8, 16])
def test_a_latent_gives_an_image_that_looks_at_no_other(size: int) -> None:
    generator, noise = _generator(size), stream(5)
    drawn = generated(generator, noise, rows=5)
    assert drawn.shape == (5, *generator.image_shape) == (5, 1, size, size)
    assert 0 < drawn.min() < drawn.max() < 1
    assert drawn.std(0).max() > 0.01
    rows = torch.tensor([3, 0])
    torch.testing.assert_close(generated(generator, noise.select(rows), rows=1), drawn[rows], atol=1e-6, rtol=0)
    z = noise.normal(generator.latent_shape)
    z[1:] = torch.nan
    assert torch.equal(generator(z)[0], generator(torch.cat((z[:1], torch.randn(4, 5))))[0])


def test_a_weights_file_rebuilds_it(tmp_path: Path) -> None:
    generator = _generator()
    path = save_network(generator, tmp_path / "gan.safetensors")
    again = load_generator(str(path))
    z = stream(3).normal((5,))
    assert torch.equal(again.eval()(z), generator(z))
    assert again.weights == str(path)
    assert isinstance(load_network(path), GANGenerator)
    with pytest.raises(ValueError, match="holds a GANGenerator, which is no Denoiser"):
        load_denoiser(str(path))
    other = save_network(UNetDenoiser(8, 1, (8, 8), 1, (False, False), norm_groups=4), tmp_path / "unet.safetensors")
    with pytest.raises(ValueError, match="holds a UNetDenoiser, which is no GANGenerator"):
        load_generator(str(other))


def test_it_gives_the_same_images_in_training_and_in_evaluation_mode() -> None:
    """Torch's layers, and the same written out."""
    generator, z = GANGenerator(8, 1, 5, [16, 4]), stream(3).normal((5,))
    randomise(generator, 0.3)
    torch.testing.assert_close(generator.train()(z), generator.eval()(z))
    kinds = {type(layer).__mro__[1] for layer in generator.stages[0]}  # type: ignore[arg-type]
    assert {nn.GroupNorm, nn.SiLU} < kinds


def test_what_cannot_be_built_is_refused() -> None:
    for widths, size in (([8], 8), ([8, 8, 8], 8), ([], 4), ([8, 8], 12), ([0, 8], 8)):
        with pytest.raises(ValueError, match=f"image_size is {size}.*one width for each size 4, 8, 16"):
            GANGenerator(size, 1, 5, widths)
        with pytest.raises(ValueError, match=f"image_size is {size}.*one width for each size 4, 8, 16"):
            GANDiscriminator(size, 1, widths)
    with pytest.raises(ValueError, match="latent_size is 0; it must be at least 1"):
        GANGenerator(latent_size=0)
    with pytest.raises(ValueError, match="rows is 0"):
        generated(_generator(), stream(2), rows=0)


def _gradients(loss: Tensor, module: nn.Module) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss.sum(), list(module.parameters()), allow_unused=True, retain_graph=True))


def test_each_loss_is_its_networks_own() -> None:
    generator, discriminator = _generator().double(), _discriminator().double()
    x, z = images(6, (1, 8, 8), dtype=torch.float64), stream(6).normal((5,), dtype=torch.float64)
    fooling, telling = gan_losses(generator, discriminator, x, z)
    real, drawn = discriminator(x), discriminator(generator(z))
    torch.testing.assert_close(fooling, torch.log1p(torch.exp(-drawn)))
    torch.testing.assert_close(telling, torch.log1p(torch.exp(-real)) + torch.log1p(torch.exp(drawn)))
    assert all(g is None for g in _gradients(telling, generator))
    assert all(g is None for g in _gradients(fooling, discriminator))
    expected = _gradients(torch.log1p(torch.exp(-drawn)), generator)
    for found, wanted in zip(_gradients(fooling, generator), expected, strict=True):
        assert found is not None
        torch.testing.assert_close(found, wanted)


class _Linear(nn.Module):
    """Its gradient is its weight at every image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 16, dtype=torch.float64).view(1, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).flatten(1).sum(1)


def test_the_penalty_of_a_linear_discriminator_is_half_its_squared_weight() -> None:
    linear, x = _Linear(), images(3, dtype=torch.float64)
    penalty = gradient_penalty(linear, x, 4.0)
    torch.testing.assert_close(penalty, 2.0 * linear.weight.detach().square().sum().expand(3))
    (slope,) = _gradients(penalty, linear)
    torch.testing.assert_close(slope, 3 * 4.0 * linear.weight.detach())


def test_cmap_explains_an_image_of_the_generator_by_its_latents() -> None:
    generator = _generator(scale=0.6)
    x = generated(generator, stream(2).fork("truth"))
    purifier = CMAP(generator, 3, num_steps=40, lr=0.1, latent_weight=0.0)
    found = purifier(x, stream(2), gradient="detached", wants=["l1", "latents"])
    assert found.images.shape == (3, 2, 1, 8, 8)
    assert found.trace["latents"].shape == (2, 3, 5)
    assert (found.trace["l1"][:, -1] < 0.3 * found.trace["l1"][:, 0]).all()
    assert purifier.derived()["sigma_max"] == 1.0
    alone = purifier(x[1:], stream(2).select(torch.tensor([1])), gradient="detached")
    torch.testing.assert_close(alone.images[:, 0], found.images[:, 1], atol=1e-3, rtol=0)


def test_it_has_no_inversion() -> None:
    purifier = CMAP(_generator(), 2, num_steps=1, start="inversion")
    with pytest.raises(ValueError, match="GANGenerator cannot be inverted: start the latents from noise"):
        purifier(images(2, (1, 8, 8)), stream(2), gradient="detached")
