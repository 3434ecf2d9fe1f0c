"""What a memory may be, and its id."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldprint.errors import FormatError
from fieldprint.memory.memory import union
from tests.memory.stores import TIME, memory

WHOLE = memory("A falcon.", "untrusted", parents=["ab" * 32])


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"text": ""}, "must not be empty"),
        ({"text": "a\x00b"}, "invisible character"),
        ({"text": "a\u202eb"}, "invisible character"),
        ({"text": "a\u2028b"}, "line end"),
        ({"text": "a\u2029b"}, "line end"),
        ({"text": "a\rb"}, "invisible character"),
        ({"text": "e\u0301"}, "normal form C"),
        ({"text": "a" * 65537}, "more than 65536"),
        ({"kind": "identity"}, "kind must be one of"),
        ({"kind": "policy"}, "kind must be one of"),
        ({"source": "Two words"}, "source must match"),
        ({"source": ""}, "source must match"),
        ({"source": "cli\n2. memory"}, "source must match"),
        ({"time": datetime(2026, 1, 1)}, "in UTC"),
        ({"time": TIME + timedelta(microseconds=1)}, "whole seconds"),
        ({"taint": ("b", "a")}, "sorted"),
        ({"taint": ("a", "a")}, "sorted"),
        ({"taint": ("not a label",)}, "label must match"),
        ({"parents": ("xy",)}, "parent must be a digest"),
    ],
)
def test_refused(changed: dict[str, object], what: str) -> None:
    with pytest.raises(FormatError, match=what):
        replace(WHOLE, **changed)  # type: ignore[arg-type]


def test_id_is_of_everything_but_the_taint() -> None:
    assert replace(WHOLE, taint=()).id == WHOLE.id
    for changed in (
        {"text": "Another."},
        {"kind": "memory"},
        {"source": "web"},
        {"time": TIME - timedelta(seconds=1)},
        {"parents": ()},
    ):
        assert replace(WHOLE, **changed).id != WHOLE.id  # type: ignore[arg-type]


def test_id_stays_what_it_is() -> None:
    assert WHOLE.id == "c51c65b94ec0259109179641dc932de0c9e9f9e29524cc6e49f2ebd691450c15"


@given(st.lists(st.sets(st.sampled_from("abcdef"))))
def test_union_is_the_join_of_label_sets(sets: list[set[str]]) -> None:
    assert union(*sets) == tuple(sorted(frozenset().union(*sets)))
    assert union(*reversed(sets)) == union(*sets) == union(*sets, *sets)
