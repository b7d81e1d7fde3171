"""Which tests `--fast` runs."""

from __future__ import annotations

import pytest

from tests.support.fast import fast

pytest_plugins = ["pytester"]

TESTS = """
import pytest

class Value:
    def __init__(self, kind):
        self.kind = kind

@pytest.mark.parametrize("a", [1, 2, 3])
def test_first(a): pass

@pytest.mark.parametrize("a", [pytest.param(1, marks=pytest.mark.slow), 2, 3])
def test_slow_case(a): pass

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.each("a")
@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("a", [1, 2])
def test_each(a, b): pass

@pytest.mark.each("value.kind")
@pytest.mark.parametrize("value", [Value("x"), Value("x"), Value("y")], ids=["x1", "x2", "y1"])
def test_each_attribute(value): pass
"""


def test_first_cases_and_marks(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nmarkers =\n    slow: slow\n    each(name): each")
    items = pytester.getitems(TESTS)
    assert [item.name for item in fast(items)] == [
        "test_first[1]",
        "test_slow_case[2]",
        "test_each[1-1]",
        "test_each[2-1]",
        "test_each_attribute[x1]",
        "test_each_attribute[y1]",
    ]


def test_a_mark_that_names_no_parameter_is_an_error(pytester: pytest.Pytester) -> None:
    items = pytester.getitems(
        "import pytest\n@pytest.mark.each('b')\n@pytest.mark.parametrize('a', [1])\ndef test_it(a): pass"
    )
    with pytest.raises(pytest.UsageError, match=r"each\('b'\) names no parameter of the test; it has a"):
        fast(items)
