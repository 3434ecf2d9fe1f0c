"""Statements: they come back from their bytes, and what is not well formed is refused by both ways in."""

import json
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from fieldprint.anchor import (
    KINDS,
    Endorsement,
    Lift,
    Override,
    Registration,
    Revocation,
    Statement,
    StatusRoot,
    Supersession,
)
from fieldprint.anchor.artifact import format_time, parse_time
from fieldprint.errors import FormatError

A, B = "aa" * 32, "bb" * 32
TIME = datetime(2026, 11, 24, tzinfo=UTC)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
names = st.from_regex(r"[a-z0-9._-]{1,12}", fullmatch=True)
times = st.datetimes(datetime(1000, 1, 1), datetime(9998, 1, 1)).map(
    lambda t: t.replace(tzinfo=UTC, microsecond=0)
)
reasons = st.text(
    st.characters(categories=["L", "N", "P"], max_codepoint=0x17F), min_size=1, max_size=20
).filter(lambda text: unicodedata.is_normalized("NFC", text))
sorted_sets: Callable[[Any], Any] = lambda items: st.sets(items, max_size=3).map(lambda s: tuple(sorted(s)))  # noqa: E731
numbers = st.integers(1, 2**53 - 1)


def without(item: str, items: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(other for other in items if other != item)


overrides = st.one_of(
    st.tuples(st.just("anchor"), digests),
    st.tuples(st.just("kind"), st.sampled_from(KINDS)),
    st.tuples(st.just("engine"), names),
    st.just(("all", "*")),
)
statements: st.SearchStrategy[Statement] = st.one_of(
    st.builds(
        lambda a, n, k, x, t, parents, labels, older: Registration(
            a, n, k, x, t, t + timedelta(days=1), without(a, parents), labels, without(a, older)
        ),
        digests,
        names,
        st.sampled_from(KINDS),
        digests,
        times,
        sorted_sets(digests),
        sorted_sets(names),
        sorted_sets(digests),
    ),
    st.builds(Revocation, digests, reasons, times),
    st.builds(Supersession, st.just(A), digests.filter(lambda d: d != A), reasons, times),
    st.builds(Endorsement, digests, sorted_sets(names).filter(bool), reasons, times),
    st.builds(
        lambda a, o, n, r, t, e: Override(a, *o, n, r, t, t + timedelta(days=1) if e else None),
        st.sampled_from(["bypass", "freeze"]),
        overrides,
        numbers,
        reasons,
        times,
        st.booleans(),
    ),
    st.builds(Lift, numbers, reasons, times),
    st.builds(
        lambda r, c, t, m: StatusRoot(r, c, c + 5, t, m),
        digests,
        st.integers(0, 2**52),
        times,
        st.integers(1, 86400),
    ),
)


@given(statements)
def test_a_statement_comes_back_from_its_bytes(made: Statement) -> None:
    assert type(made).from_bytes(made.to_bytes()) == made
    for other in (Registration, Revocation, Supersession, Endorsement, Override, Lift, StatusRoot):
        if not isinstance(made, other):
            with pytest.raises(FormatError):
                other.from_bytes(made.to_bytes())


FREEZE = Override("freeze", "kind", "identity", 1, "an alarm", TIME)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Revocation("short", "lost", TIME),
        lambda: Revocation(A, "", TIME),
        lambda: Revocation(A, "x" * 4097, TIME),
        lambda: Revocation(A, "lost", TIME.replace(tzinfo=None)),
        lambda: Revocation(A, "lost", TIME.replace(microsecond=1)),
        lambda: Supersession(A, A, "better", TIME),
        lambda: Supersession(A, "short", "better", TIME),
        lambda: Endorsement(A, (), "read", TIME),
        lambda: Endorsement(A, ("b", "a"), "read", TIME),
        lambda: Endorsement(A, ("A",), "read", TIME),
        lambda: Endorsement(A, tuple(f"{i:02}" for i in range(17)), "read", TIME),
        lambda: replace(FREEZE, action="stop"),
        lambda: replace(FREEZE, scope="world"),
        lambda: replace(FREEZE, target="king"),
        lambda: replace(FREEZE, scope="anchor"),
        lambda: replace(FREEZE, scope="all"),
        lambda: replace(FREEZE, scope="engine", target="GPU 1"),
        lambda: replace(FREEZE, number=0),
        lambda: replace(FREEZE, number=2**53),
        lambda: replace(FREEZE, number=True),
        lambda: replace(FREEZE, expires=TIME),
        lambda: Lift(0, "a false alarm", TIME),
        lambda: StatusRoot("short", 0, 0, TIME, 60),
        lambda: StatusRoot(A, 2, 1, TIME, 60),
        lambda: StatusRoot(A, -1, 1, TIME, 60),
        lambda: StatusRoot(A, 0, 1, TIME, 0),
        lambda: Registration(A, "a", "memory", B, TIME, TIME + timedelta(1), parents=(A,)),
        lambda: Registration(A, "a", "memory", B, TIME, TIME + timedelta(1), supersedes=(A,)),
        lambda: Registration(A, "a", "memory", "short", TIME, TIME + timedelta(1)),
        lambda: Registration(A, "a", "memory", B, TIME, TIME),
    ],
)
def test_what_is_not_well_formed_is_refused(build: Callable[[], object]) -> None:
    with pytest.raises(FormatError):
        build()


@pytest.mark.parametrize(
    ("made", "part", "value"),
    [
        (FREEZE, "subject", [{"digest": {"sha256": A}, "name": "kind"}]),
        (replace(FREEZE, scope="anchor", target=A), "subject", [{"digest": {"sha256": B}, "name": "anchor"}]),
        (FREEZE, "subject", [{"digest": {"sha256": A}, "name": "anchor"}]),
        (Lift(7, "a false alarm", TIME), "subject", [{"digest": {"sha256": A}, "name": "override"}]),
        (StatusRoot(A, 0, 0, TIME, 60), "subject", [{"digest": {"sha256": A}, "name": "anchor"}]),
    ],
)
def test_a_subject_that_is_not_the_statement_s_is_refused(made: Statement, part: str, value: object) -> None:
    fields = json.loads(made.to_bytes())
    assert fields[part] != value
    with pytest.raises(FormatError, match="subject"):
        type(made).from_bytes(rfc8785.dumps(fields | {part: value}))


def slow_parse_time(text: str) -> datetime | None:
    """The twin: what strptime reads and strftime writes again."""
    try:
        time = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None
    return time if format_time(time) == text else None


near_times = st.one_of(
    times.map(format_time),
    st.from_regex(r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9]Z?\n?", fullmatch=True),
    st.builds(
        lambda time, at, letter: format_time(time)[:at] + letter + format_time(time)[at + 1 :],
        times,
        st.integers(0, 20),
        st.characters(),
    ),
)


@given(near_times)
def test_a_time_is_read_like_by_the_slow_twin(text: str) -> None:
    expected = slow_parse_time(text)
    if expected is None:
        with pytest.raises(FormatError):
            parse_time(text)
    else:
        assert parse_time(text) == expected


def test_a_time_of_another_zone_is_written_in_utc() -> None:
    there = TIME.astimezone(timezone(timedelta(hours=5)))
    assert Revocation(A, "lost", there).to_bytes() == Revocation(A, "lost", TIME).to_bytes()
