"""Ratios as papers write them."""

import pytest

from lustral.ratio import parse_ratio


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("8/255", 8 / 255),
        ("0.5", 0.5),
        (0.007, 0.007),
        (1, 1.0),
        (" 4 / 255 ", 4 / 255),
        ("1e-3", 1e-3),
        ("-1/4", -0.25),
    ],
)
def test_numbers_and_quotients_are_read(given: float | str, value: float) -> None:
    assert parse_ratio(given) == value


@pytest.mark.parametrize(
    "given",
    [
        "",
        "eight",
        "8/0",
        "8/255/2",
        "8\\255",
        "nan",
        "inf",
        "1/nan",
        "/255",
        float("nan"),
        float("inf"),
        None,
    ],
)
def test_anything_else_is_refused_by_name(given: object) -> None:
    with pytest.raises(ValueError, match=r"^threat\.eps is .* neither a number nor a quotient such as 8/255"):
        parse_ratio(given, "threat.eps")  # type: ignore[arg-type]


def test_a_quotient_that_forgets_its_denominator_is_refused() -> None:
    with pytest.raises(ValueError, match="neither a number nor a quotient"):
        parse_ratio("8/")
