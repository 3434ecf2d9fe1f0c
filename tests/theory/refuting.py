"""A claim is tried on many cases; a mutant of it must not survive the same cases."""

from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

Case = TypeVar("Case")
Test = Callable[..., None]
SEARCH = settings(
    max_examples=2000,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def for_all(*cases: st.SearchStrategy[object], examples: int = 100) -> Callable[[Test], Test]:
    """`given`, without a limit of time for one case: exact rationals take what they take on a busy machine."""
    return lambda test: settings(max_examples=examples, deadline=None)(given(*cases)(test))


def refuted(cases: st.SearchStrategy[Case], holds: Callable[[Case], bool]) -> bool:
    """Whether some case is found for which `holds` is false. The search is the same on every run."""
    try:
        find(cases, lambda case: not holds(case), settings=SEARCH)
    except NoSuchExample:
        return False
    return True
