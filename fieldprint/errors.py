"""Every error that Fieldprint raises on purpose.

    FieldprintError
    ├── VerificationError      a numbered check failed; nothing was trusted
    ├── FormatError            bytes from outside are not the format that they claim to be
    ├── IntegrityError         bytes that are there are not the bytes that were committed
    ├── LogError               the log could not be read or written
    │   ├── LogLockedError     another process writes this log
    │   └── InconsistentLogError   the log contradicts itself (in commit/follower.py, with both checkpoints)
    ├── RefusalError           a witness does not cosign (in tlog/witness.py, with the HTTP status)
    ├── CompatibilityError     an engine does what is not covered
    ├── ModelError             a model folder is missing, incomplete or of a family that is not supported
    └── CapacityError          no room: the page pool, the anchor limit or the disk

Wrong arguments of a Python call raise `ValueError` or `TypeError` and name the argument.
"""


class FieldprintError(Exception):
    """Root of the tree: `what` happened, and `remedy`, what the reader can do about it."""

    def __init__(self, what: str, *, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}. {self.remedy}" if self.remedy else self.what

    def __reduce__(self) -> tuple[object, ...]:
        """As it is, across processes: Python's own way calls the class with `args`, which some take otherwise."""
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[FieldprintError], args: tuple[object, ...]) -> FieldprintError:
    """An error of this class before it has its fields."""
    return kind.__new__(kind, *args)


class VerificationError(FieldprintError):
    """A check of `verify_anchor`, `verify_receipt` or a signed note failed.

    `check` is the number of the check in the docstring of the function that raised it.
    """

    def __init__(self, check: int, what: str, *, remedy: str = "") -> None:
        super().__init__(what, remedy=remedy)
        self.check = check

    def __str__(self) -> str:
        return f"check {self.check} failed: {super().__str__()}"


class FormatError(FieldprintError):
    """Bytes from outside are not the format that they claim to be."""


class IntegrityError(FieldprintError):
    """Bytes that are there are not the bytes that were committed."""


class LogError(FieldprintError):
    """The log could not be read or written."""


class LogLockedError(LogError):
    """Another process writes this log."""


class ModelError(FieldprintError):
    """A model folder is missing, incomplete or of a family that is not supported."""


class CapacityError(FieldprintError):
    """No room: the page pool, the anchor limit or the disk."""


class CompatibilityError(FieldprintError):
    """An engine, or its version, does something that Fieldprint does not cover; nothing was started."""
