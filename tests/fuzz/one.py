"""One target under atheris: `python -m tests.fuzz.one NAME CORPUS [libFuzzer's options]`; see `tests.fuzz`."""

import sys

import atheris

with atheris.instrument_imports(include=["fieldprint"]):
    from tests.fuzz.targets import TARGETS, judge

name = sys.argv.pop(1)
target = next(target for target in TARGETS if target.name == name)
if name == "fieldprint_file":
    with atheris.instrument_imports(include=["fieldprint"]):
        import fieldprint.promote.fieldprint  # noqa: F401


def test_one_input(data: bytes) -> None:
    judge(target, data)


atheris.Setup(sys.argv, test_one_input)
atheris.Fuzz()
