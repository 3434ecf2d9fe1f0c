"""Asking witnesses for a log's writer, and telling what the readers of its checkpoint will miss."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fieldprint.cli.inputs import read_input
from fieldprint.cli.output import printable

if TYPE_CHECKING:
    from fieldprint.anchor import Policy
    from fieldprint.tlog import Cosigned
    from fieldprint.tlog.witness_client import Answers, WitnessQuorum


class Cosigner:
    """What a log's writer calls before it publishes a checkpoint; `shortfall` says what the last one lacks, or is empty.

    Args:
        ask: asks the witnesses; None asks nobody.
        policy: of the readers.
        report: is told the shortfall of the first checkpoint that has one, and again after one that had none.
    """

    def __init__(
        self,
        ask: "WitnessQuorum | None",
        policy: "Policy",
        report: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._ask = ask
        self._policy = policy
        self._report = report
        self.shortfall = ""

    def __call__(self, signed: bytes, prove: Callable[[int], list[bytes]]) -> "Cosigned":
        """The witnesses' answers; without any to ask, none."""
        from fieldprint.tlog.witness_client import Answers

        none = Answers(b"", self._policy.quorum_met(()), (), (), {})
        found = none if self._ask is None else self._ask(signed, prove)
        before, self.shortfall = self.shortfall, self._missing(found)
        if self.shortfall and not before:
            self._report(self.shortfall)
        return found

    def _missing(self, found: "Answers") -> str:
        enough = self._policy.quorum_met({signature.key for signature in found.signatures})
        if found.quorum and enough:
            return ""
        asks = "the quorum asks for" if enough else f"the policy asks for ({self._policy.quorum_text})"
        why = "; ".join(found.failures.values()) or "the quorum has other ones"
        if self._ask is None:
            why = "nobody was asked: give --quorum"
        return printable(
            f"the checkpoint is published without the witnesses that {asks}: {why}. "
            "Ask again with: fieldprint log cosign --publish"
        )


@contextmanager
def open_cosigner(
    quorum: Path | None, policy: "Policy", report: Callable[[str], None] = lambda _text: None
) -> Iterator[Cosigner]:
    """What asks the witnesses of a trust policy, if one is given; see `Cosigner`."""
    from fieldprint.tlog import TrustPolicy
    from fieldprint.tlog.witness_client import WitnessQuorum

    if quorum is None:
        yield Cosigner(None, policy, report)
        return
    with closing(WitnessQuorum(TrustPolicy.from_bytes(read_input(quorum)))) as ask:
        yield Cosigner(ask, policy, report)


def warn(text: str) -> None:
    """Print a warning on stderr; nothing if there is none."""
    if text:
        typer.echo(f"warning: {text}", err=True)
