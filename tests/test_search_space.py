"""What is varied: texts of the command line, points, and what Optuna draws from them."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline import search_space
from pipeline.config_file import yaml
from pipeline.errors import ConfigError
from pipeline.search_space import Choices, Range, parse

# What YAML's text may hold, line breaks as escapes.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"]) | st.sampled_from("\n\t: #'\"{}[],-&*!|>%@`"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXT, below, max_size=3),
    max_leaves=5,
)


def test_lists_and_ranges():
    assert parse(
        [
            "head.hidden_units=[[], [64], [256, 64]]",
            "phases.0.unfreeze=[head, {blocks: 2}]",
            "phases.0.learning_rate=1e-4..1e-2",
            "phases.0.epochs=5..20",
            "head.dropout=0..0.5",
            "phases.0.weight_decay=0.01..0.09",
        ]
    ) == [
        Choices("head.hidden_units", ("[]", "[64]", "[256, 64]")),
        Choices("phases.0.unfreeze", ("head", "{blocks: 2}")),
        Range("phases.0.learning_rate", 1e-4, 1e-2, log=True),
        Range("phases.0.epochs", 5, 20, log=False),
        Range("head.dropout", 0.0, 0.5, log=False),
        Range("phases.0.weight_decay", 0.01, 0.09, log=False),
    ]


def test_a_range_is_of_whole_numbers_where_both_ends_are():
    whole, not_whole = parse(["head.dropout=0..1", "phases.0.epochs=1..2.0"])
    assert (whole.whole, not_whole.whole) == (True, False)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ([], "at least one --over"),
        (["head.dropout"], "--over takes KEY"),
        (["head.dropout=0.2"], "a list such as .* Received: 0.2"),
        (["head.dropout=[]"], "a list such as"),
        (["head.dropout=0.5..0.1"], "first end must be below"),
        (["head.dropout=[0.1"], "not valid YAML"),
        (["seed=[1, 2]"], "What another seed changes, --seeds measures"),
        (["name=[a, b]"], "a sweep varies what is learned"),
        (["head.dropout=[0.1]", "head.dropout=0.1..0.2"], "has the key head.dropout twice"),
    ],
)
def test_mistakes_are_named(over, words):
    with pytest.raises(ConfigError, match=words):
        parse(over)


def test_a_grid_is_every_combination_of_lists():
    axes = parse(["head.dropout=[0.0, 0.2]", "head.pooling=[avg, max]"])
    assert search_space.grid(axes) == [
        {"head.dropout": "0.0", "head.pooling": "avg"},
        {"head.dropout": "0.0", "head.pooling": "max"},
        {"head.dropout": "0.2", "head.pooling": "avg"},
        {"head.dropout": "0.2", "head.pooling": "max"},
    ]


def test_a_grid_has_no_range_and_an_end():
    with pytest.raises(ConfigError, match=r"head\.dropout has a range"):
        search_space.grid(parse(["head.dropout=0.0..0.5"]))
    many = "[" + ", ".join(f"{n}" for n in range(1, 34)) + "]"
    with pytest.raises(ConfigError, match="1,089 combinations"):
        search_space.grid(parse([f"phases.0.epochs={many}", f"data.batch_size={many}"]))


def test_both_ends_of_a_range_are_checked_before_anything_is_trained():
    axes = parse(["head.pooling=[avg]", "head.dropout=0.0..0.5"])
    assert [point["head.dropout"] for point in search_space.corners(axes)] == ["0.0", "0.5"]


@given(VALUES)
def test_a_value_is_written_so_that_it_is_read_back(value):
    text = search_space.written(value)
    assert yaml(text, "") == value
    assert "\n" not in text


@given(low=st.floats(1e-9, 1e6), factor=st.floats(10, 1e9), drawn=st.floats(0, 1))
def test_what_is_drawn_of_a_logarithmic_range_has_three_digits(low, factor, drawn):
    (axis,) = parse([f"head.l2={low!r}..{low * factor!r}"])
    assume(axis.log)
    value = min(max(axis.low * (axis.high / axis.low) ** drawn, axis.low), axis.high)
    point = search_space.point([axis], {"head.l2": value})
    number = float(point["head.l2"])
    assert axis.low <= number <= axis.high
    assert math.isclose(number, value, rel_tol=5.1e-3)
    assert number in (axis.low, axis.high, float(f"{number:.3g}"))
    assert search_space.params([axis], point) == {"head.l2": number}


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-4, 1e6), drawn=st.floats(0, 1))
def test_what_is_drawn_of_a_linear_range_is_as_near_as_the_range_is_narrow(low, width, drawn):
    (axis,) = parse([f"head.l2={low!r}..{low + width!r}"])
    assume(not axis.log)
    width = axis.high - axis.low
    value = min(axis.low + drawn * width, axis.high)
    point = search_space.point([axis], {"head.l2": value})
    number = float(point["head.l2"])
    assert axis.low <= number <= axis.high
    assert abs(number - value) <= 0.0051 * width
    steps = number * 10 ** math.ceil(2 - math.log10(width))
    assert number in (axis.low, axis.high) or math.isclose(steps, round(steps), abs_tol=1e-3)
    assert search_space.params([axis], point) == {"head.l2": number}


@pytest.mark.parametrize(
    ("over", "drawn", "trained"),
    [
        ("0.99..0.9999", 0.9996123, "0.99961"),
        ("1000.0..1010.0", 1003.4567, "1003.5"),
        ("0.0..0.5", 0.1234567, "0.123"),
        ("1e-4..1e-2", 0.00123456, "0.00123"),
        ("5..2000", 1234, "1234"),
    ],
)
def test_numbers_are_trained_with_as_they_would_be_typed(over, drawn, trained):
    axes = parse([f"head.l2={over}"])
    assert search_space.point(axes, {"head.l2": drawn}) == {"head.l2": trained}
    assert search_space.params(axes, {"head.l2": trained}) == {"head.l2": yaml(trained, "")}


def test_optuna_knows_the_axes():
    axes = parse(["head.l2=1e-6..1e-2", "phases.0.epochs=5..20", "head.pooling=[avg, max]"])
    of = search_space.distributions(axes)
    assert (of["head.l2"].log, of["head.l2"].low, of["head.l2"].high) == (True, 1e-6, 1e-2)
    assert (of["phases.0.epochs"].log, of["phases.0.epochs"].high) == (False, 20)
    assert of["head.pooling"].choices == ("avg", "max")
