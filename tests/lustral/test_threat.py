"""Threat models: projections stay in the set, draws are uniform, what cannot be meant is refused."""

import math

import pytest
import torch
from scipy import stats

from lustral.threat import ThreatModel
from tests.contracts import generator, images, stream

SHAPE = (3, 4, 4)
THREATS = {
    "linf": ThreatModel("linf", "8/255"),
    "linf_large": ThreatModel("linf", 0.7),
    "l2": ThreatModel("l2", 0.5),
    "l2_large": ThreatModel("l2", 3.0),
    "zero": ThreatModel("linf", 0),
    "zero_l2": ThreatModel("l2", 0.0),
}


@pytest.fixture(params=THREATS)
def threat(request: pytest.FixtureRequest) -> ThreatModel:
    return THREATS[request.param]


def _far(batch: int = 20, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return 2 * torch.randn(batch, *SHAPE, generator=generator(4), dtype=dtype)


def test_projections_lie_in_the_set(threat: ThreatModel) -> None:
    x = images(20, SHAPE)
    projected = threat.project(_far(), x)
    assert projected.min() >= 0
    assert projected.max() <= 1
    assert threat.distance(projected, x).max() <= threat.budget + 1e-6
    if threat.budget == 0:
        assert torch.equal(projected, x)


def test_projecting_twice_changes_nothing_more(threat: ThreatModel) -> None:
    x = images(20, SHAPE)
    once = threat.project(_far(), x)
    torch.testing.assert_close(threat.project(once, x), once, rtol=0, atol=2e-7)


def test_points_of_the_set_stay_where_they_are(threat: ThreatModel) -> None:
    x = images(20, SHAPE, dtype=torch.float64)
    inside = threat.project(x + 0.9 * (threat.project(_far(dtype=torch.float64), x) - x), x)
    torch.testing.assert_close(threat.project(inside, x), inside, rtol=0, atol=1e-12)
    assert torch.equal(threat.project(x, x), x)


def test_a_linf_projection_is_the_nearest_point_of_the_set() -> None:
    x, far, threat = images(5, SHAPE), _far(5), THREATS["linf"]
    expected = torch.maximum(torch.minimum(far, (x + 8 / 255).clamp(max=1.0)), (x - 8 / 255).clamp(min=0.0))
    torch.testing.assert_close(threat.project(far, x), expected, rtol=0, atol=1e-7)


def test_an_l2_projection_keeps_the_direction() -> None:
    threat, x = ThreatModel("l2", 0.1), torch.full((5, *SHAPE), 0.5)  # far from the box
    delta = threat.project(x + _far(5), x) - x
    torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.full((5,), 0.1))
    similarity = torch.cosine_similarity(delta.flatten(1), _far(5).flatten(1))
    torch.testing.assert_close(similarity, torch.ones(5))


def test_the_ascent_direction_has_unit_norm_and_rises(threat: ThreatModel) -> None:
    gradient = torch.randn(6, *SHAPE, generator=generator())
    direction = threat.ascent_direction(gradient)
    torch.testing.assert_close(threat.distance(direction, torch.zeros_like(direction)), torch.ones(6))
    # No other direction of unit norm rises faster: the dual norm of the gradient is reached.
    dual = gradient.abs().flatten(1).sum(1) if threat.norm == "linf" else gradient.flatten(1).norm(dim=1)
    torch.testing.assert_close((direction * gradient).flatten(1).sum(1), dual)


@pytest.mark.parametrize("scale", [0.0, 1e-30])
def test_tiny_gradients_give_no_nan(threat: ThreatModel, scale: float) -> None:
    direction = threat.ascent_direction(scale * torch.ones(2, *SHAPE))
    assert direction.isfinite().all()
    assert (direction == 0).all() == (scale == 0)


@pytest.mark.parametrize("drawn", ["random_point", "random_boundary_point"])
def test_random_points_lie_in_the_set_and_are_the_rows_own(threat: ThreatModel, drawn: str) -> None:
    """Bit for bit in any batch: an attack that starts at one must not depend on the neighbours."""
    x, noise = images(33, SHAPE), stream(33)
    points = getattr(threat, drawn)(x, noise)
    assert points.min() >= 0
    assert points.max() <= 1
    assert threat.distance(points, x).max() <= threat.budget + 1e-6
    order = torch.randperm(33, generator=generator())
    assert torch.equal(getattr(threat, drawn)(x[order], noise.select(order)), points[order])
    for size in (1, 3, 7):
        for first in range(0, 33, size):
            rows = torch.arange(first, min(first + size, 33))
            assert torch.equal(getattr(threat, drawn)(x[rows], noise.select(rows)), points[rows])


def test_random_linf_points_are_uniform_in_the_cube() -> None:
    threat, x = ThreatModel("linf", 0.1), torch.full((500, *SHAPE), 0.5, dtype=torch.float64)
    delta = (threat.random_point(x, stream(500)) - x) / 0.1
    assert stats.kstest(delta.flatten().numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_random_l2_points_are_uniform_in_the_ball() -> None:
    """The share within radius r is r^n, and the direction favours nothing."""
    threat, x = ThreatModel("l2", 0.1), torch.full((4000, *SHAPE), 0.5, dtype=torch.float64)
    delta = (threat.random_point(x, stream(4000)) - x).flatten(1) / 0.1
    radius = delta.norm(dim=1)
    n = delta.shape[1]
    assert stats.kstest((radius**n).numpy(), "uniform").pvalue > 1e-3
    mean = (delta / radius[:, None]).mean(0) * math.sqrt(n * 4000)  # each entry is standard normal
    assert stats.kstest(mean.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("threat", [ThreatModel("linf", 0.05), ThreatModel("l2", 0.3)], ids=["linf", "l2"])
def test_random_boundary_points_use_the_whole_budget(threat: ThreatModel) -> None:
    x = torch.full((10, *SHAPE), 0.5)
    points = threat.random_boundary_point(x, stream(10))
    torch.testing.assert_close(threat.distance(points, x), torch.full((10,), threat.budget), rtol=1e-5, atol=0)
    if threat.norm == "linf":
        torch.testing.assert_close((points - x).abs(), torch.full_like(x, 0.05), rtol=1e-5, atol=0)


def test_distances_are_the_norms() -> None:
    delta = torch.zeros(1, 1, 2, 2)
    delta[0, 0, 0] = torch.tensor([0.3, -0.4])
    assert float(THREATS["linf"].distance(delta, torch.zeros_like(delta))) == pytest.approx(0.4)
    assert float(THREATS["l2"].distance(delta, torch.zeros_like(delta))) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("norm", "eps", "message"),
    [
        ("linf", 8, r"threat\.eps is 8, but images lie in \[0, 1\]: write 8/255"),
        ("linf", "8", r"write 8/255"),
        ("linf", -0.1, "a budget cannot be negative"),
        ("l2", "-1/255", "a budget cannot be negative"),
        ("l1", 0.1, r"threat\.norm is 'l1'; it may be linf or l2"),
        ("linf", "8|255", "neither a number nor a quotient"),
    ],
)
def test_budgets_that_cannot_be_meant_are_refused(norm: str, eps: float | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ThreatModel(norm, eps)  # type: ignore[arg-type]


def test_an_l2_budget_beyond_any_two_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 6\.928 apart in l2: write 8/255"):
        ThreatModel("l2", 8).check(SHAPE)
    ThreatModel("l2", 6.9).check(SHAPE)
    ThreatModel("linf", 1.0).check(SHAPE)


def test_quotients_and_decimals_make_the_same_budget() -> None:
    assert ThreatModel("linf", "8/255").budget == ThreatModel("linf", 8 / 255).budget == 8 / 255
