"""Intervals: known values, coverage, and the three words of a comparison."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from lustral.evaluation import Rate, bootstrap, compare, wilson


@pytest.mark.parametrize("successes", [0, 1, 5, 13, 19, 20])
def test_wilson_is_scipys(successes: int) -> None:
    found = wilson(successes, 20)
    expected = stats.binomtest(successes, 20).proportion_ci(0.95, method="wilson")
    assert found.value == successes / 20
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)


def test_wilson_of_a_published_example() -> None:
    """Newcombe 1998, table I: 81 of 263."""
    found = wilson(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize("n", [1, 2, 7, 500])
def test_wilson_at_the_ends_is_honest(n: int) -> None:
    assert wilson(0, n).low == 0.0
    assert 0 < wilson(0, n).high < 1
    assert wilson(n, n).high == 1.0
    assert 0 < wilson(n, n).low < 1


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="a rate needs at least one sample"):
        wilson(successes, n)


def _coverage(
    interval: Callable[[np.ndarray], Rate], draw: Callable[[np.random.Generator], np.ndarray], true: float
) -> float:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        found = interval(draw(generator))
        covered += found.low <= true <= found.high
    return covered / 300


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_wilson_covers(p: float) -> None:
    covered = _coverage(lambda s: wilson(int(s.sum()), len(s)), lambda g: g.random(100) < p, p)
    assert 0.92 <= covered <= 0.985


def test_the_bootstrap_covers_shares_of_draws() -> None:
    """Images of very different difficulty, eight draws each: what `expected` is made of."""

    def draw(g: np.random.Generator) -> np.ndarray:
        return g.binomial(8, g.beta(0.5, 0.5, size=100)) / 8

    assert 0.91 <= _coverage(bootstrap, draw, 0.5) <= 0.985


def test_the_bootstrap_is_close_to_the_standard_error() -> None:
    values = np.random.default_rng(1).random(200)
    found = bootstrap(values)
    half = 1.96 * values.std() / 200**0.5
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_bootstrap_repeats_itself_and_ignores_the_order() -> None:
    values = list(np.random.default_rng(1).integers(0, 9, 50) / 8)
    assert bootstrap(values) == bootstrap(values)
    shuffled = bootstrap(values[::-1])
    assert (shuffled.low, shuffled.high) == (bootstrap(values).low, bootstrap(values).high)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_bootstrap_never_claims_certainty(value: float) -> None:
    found = bootstrap([value] * 20)
    assert (found.low, found.high) == (wilson(20 * value, 20).low, wilson(20 * value, 20).high)
    assert found.low < found.high


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([0.0] * 100, [1.0] * 30 + [0.0] * 70, "better"),
        ([1.0] * 30 + [0.0] * 70, [0.0] * 100, "worse"),
        ([0.5] * 100, [0.5] * 100, "undecided"),
        ([0.0] * 100, [0.01] * 100, "undecided"),  # certain, but within the margin of 2 points
        ([0.0] * 10, [1.0] + [0.0] * 9, "undecided"),  # 10 points, but one image
        ([1.0, 0.0] * 50, [0.0, 1.0] * 50, "undecided"),
    ],
)
def test_the_three_words(first: list[float], second: list[float], verdict: str) -> None:
    found = compare(first, second)
    assert found.verdict == verdict
    assert found.low - 1e-12 <= found.difference <= found.high + 1e-12
    assert found.difference == pytest.approx(np.mean(second) - np.mean(first))
    assert compare(second, first).verdict == {"better": "worse", "worse": "better"}.get(verdict, verdict)


def test_pairing_sharpens_a_comparison() -> None:
    """The same rates decide when images agree, and do not when they are other images' rates."""
    first = np.array([1.0] * 50 + [0.0] * 50)
    second = first.copy()
    second[50:58] = 1.0
    assert compare(first, second).verdict == "better"
    assert compare(first, np.random.default_rng(0).permutation(second)).verdict == "undecided"


@pytest.mark.parametrize(("first", "second"), [([], []), ([1.0], [1.0, 0.0])])
def test_unpaired_values_are_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(ValueError, match="takes the same images"):
        compare(first, second)


def test_a_rate_reads_as_papers_write_it() -> None:
    assert str(Rate(0.5, 0.4321, 0.5679)) == "50.0 % [43.2, 56.8]"


# Images that depend on each other ------------------------------------------------------------


def _grouped(rng: np.random.Generator, groups: int, size: int) -> tuple[np.ndarray, list[int]]:
    """Verdicts that agree within a group."""
    shares = rng.choice([0.2, 0.8], size=groups)
    return (rng.random((groups, size)) < shares[:, None]).astype(float).ravel(), np.repeat(range(groups), size).tolist()


def test_the_bootstrap_over_groups_covers_where_that_over_images_does_not() -> None:
    rng, covered = np.random.default_rng(0), np.zeros(2)
    for _ in range(100):
        values, labels = _grouped(rng, 40, 10)
        for i, rate in enumerate((bootstrap(values.tolist()), bootstrap(values.tolist(), [labels]))):
            covered[i] += rate.low <= 0.5 <= rate.high
    assert covered[0] / 100 < 0.8
    assert covered[1] / 100 > 0.9


def test_groups_of_one_are_images() -> None:
    values = np.random.default_rng(1).random(60).tolist()
    alone, grouped = bootstrap(values), bootstrap(values, [list(range(60))])
    assert grouped.value == alone.value
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.05)


def test_replicates_of_the_same_images_do_not_narrow_an_interval_to_nothing() -> None:
    """A hundred partitions of 50 images: many groups, but still only 50 images."""
    rng = np.random.default_rng(2)
    image = np.tile(np.arange(50), 100)
    values = (rng.random(50) < 0.5)[image].astype(float)
    groups = np.concatenate([r * 10 + rng.permutation(50) // 5 for r in range(100)])
    both = bootstrap(values.tolist(), [groups.tolist(), image.tolist()])
    assert both.high - both.low > 0.2


def test_no_certainty_beyond_the_number_of_groups() -> None:
    rate = bootstrap([1.0] * 40, [np.repeat(range(4), 10).tolist()])
    assert (rate.low, rate.high) == (wilson(4, 4).low, 1.0)


def test_a_comparison_resamples_groups_too() -> None:
    values, labels = _grouped(np.random.default_rng(3), 40, 10)
    plain, grouped = (compare([0.5] * 400, values.tolist(), clusters=each) for each in ((), [labels]))
    assert grouped.difference == plain.difference
    assert grouped.high - grouped.low > 1.5 * (plain.high - plain.low)
