"""Errors go from one process to another as they are."""

import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import pytest

import fieldprint
from fieldprint.commit.follower import InconsistentLogError
from fieldprint.errors import FieldprintError, VerificationError
from fieldprint.registry import EventError
from fieldprint.tlog.audit import AuditError
from fieldprint.tlog.witness import RefusalError

PACKAGE = Path(fieldprint.__file__).parent
OTHERWISE: dict[type[FieldprintError], Callable[[], FieldprintError]] = {
    VerificationError: lambda: VerificationError(12, "tainted", remedy="Endorse it"),
    EventError: lambda: EventError("label", "it has no such label", remedy="Nothing was signed"),
    InconsistentLogError: lambda: InconsistentLogError("forked", verified=b"one", presented=b"two"),
    RefusalError: lambda: RefusalError(409, "too old", body="7\n"),
    AuditError: lambda: AuditError(5, "not the one", place="entry 511", remedy="Keep both"),
}  # classes that are made otherwise than `FieldprintError`


def below(kind: type[FieldprintError]) -> Iterator[type[FieldprintError]]:
    yield kind
    for other in kind.__subclasses__():
        yield from below(other)


def every_class() -> list[type[FieldprintError]]:
    """Of the package, wherever it stands: the modules that define one are found by their text, and imported."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if "Error)" in path.read_text():
            module = ".".join(("fieldprint", *path.relative_to(PACKAGE).with_suffix("").parts))
            if not module.endswith(("__main__", "__init__")):
                try:
                    import_module(module)
                except ModuleNotFoundError as error:
                    if str(error.name).startswith("fieldprint"):  # else an extra that is not installed
                        raise
    ours = (kind for kind in below(FieldprintError) if kind.__module__.startswith("fieldprint."))
    return sorted(set(ours), key=lambda kind: kind.__qualname__)


CLASSES = every_class()


def made(kind: type[FieldprintError]) -> FieldprintError:
    return OTHERWISE[kind]() if kind in OTHERWISE else kind("it happened", remedy="Do this")


def test_the_classes_are_found() -> None:
    names = {kind.__name__ for kind in CLASSES}
    assert {"FieldprintError", "EventError", "LogLockedError", "RefusalError", "AuditError"} <= names
    assert {kind for kind in CLASSES if "__init__" in vars(kind)} - {FieldprintError} == set(OTHERWISE)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickle_and_copy(kind: type[FieldprintError]) -> None:
    error = made(kind)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is kind
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
    assert vars(copy.copy(error)) == vars(error)


def raise_it(kind: type[FieldprintError]) -> None:
    raise made(kind)


def test_a_worker_process_raises_the_same_error_here() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for kind in OTHERWISE:
            with pytest.raises(kind) as caught:
                pool.submit(raise_it, kind).result(timeout=60)
            assert (str(caught.value), vars(caught.value).keys()) == (
                str(made(kind)),
                vars(made(kind)).keys(),
            )
