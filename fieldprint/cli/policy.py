"""`fieldprint policy`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fieldprint.cli.inputs import open_policy, write_new
from fieldprint.cli.options import Json
from fieldprint.cli.output import print_result

if TYPE_CHECKING:
    from fieldprint.anchor.policy import SignerRule

app = typer.Typer(help="Who may sign what.", no_args_is_help=True)
LABEL = "untrusted"  # that no kind of a new policy may have


@app.command("new")
def policy_new(
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    signer: Annotated[
        list[Path], typer.Option("--signer", help="Public key that may sign anchors and revocations.")
    ],
    log_pub: Annotated[Path, typer.Option("--log-pub", help="Public key of the log.")],
    origin: Annotated[str, typer.Option("--origin", help="Name of the log.")] = "fieldprint.local/log",
    threshold: Annotated[int, typer.Option("--threshold", help="Signatures that an anchor needs.")] = 1,
    witness: Annotated[
        list[str] | None, typer.Option("--witness", help="Verifier key of a witness; may be repeated.")
    ] = None,
    minimum: Annotated[
        int | None, typer.Option("--min-witnesses", help="Witnesses that a receipt needs; all, if not given.")
    ] = None,
    override_signer: Annotated[
        list[Path] | None,
        typer.Option("--override-signer", help="Public key that may override; it must sign no anchors."),
    ] = None,
    status_signer: Annotated[
        list[Path] | None, typer.Option("--status-signer", help="Public key that may sign status roots.")
    ] = None,
    endorser: Annotated[
        list[Path] | None,
        typer.Option("--endorser", help="Public key that may endorse away the label; may sign anchors too."),
    ] = None,
    endorser_threshold: Annotated[
        int | None,
        typer.Option("--endorser-threshold", min=1, help="Endorsers who must sign; all, if not given."),
    ] = None,
) -> None:
    """Write a policy: these keys sign anchors of every kind, the label untrusted is refused, anchors live a year.

    With --endorser, an anchor with that label may be used once they have endorsed it away (`anchor endorse`).
    """
    from fieldprint.anchor import KINDS, KindRule, Policy, load_public_key
    from fieldprint.anchor.policy import StatusRule
    from fieldprint.note import COSIGNATURES, VerifierKey

    if endorser_threshold is not None and not endorser:
        raise typer.BadParameter("--endorser-threshold belongs to --endorser")
    keys = _keys([*signer, *(override_signer or []), *(status_signer or []), *(endorser or [])])
    names = tuple(dict.fromkeys(path.stem for path in signer))
    verifier = VerifierKey(origin, load_public_key(log_pub).public_bytes_raw())
    known = tuple(witness or ())
    witnesses = {VerifierKey.parse(text, COSIGNATURES).name for text in known}
    endorsers = _role(endorser, endorser_threshold)
    policy = Policy(
        keys,
        dict.fromkeys(KINDS, KindRule(names, threshold, 512, 366, (LABEL,))),
        names,
        threshold,
        str(verifier),
        known,
        len(witnesses) if minimum is None else minimum,
        endorsement={} if endorsers is None else {LABEL: endorsers},
        override=_role(override_signer, 1),
        status=None if not status_signer else StatusRule(tuple(p.stem for p in status_signer)),
    )
    Policy.from_bytes(policy.to_bytes())  # refuses what nobody could read
    write_new(out, policy.to_bytes())
    typer.echo(f"wrote {out}")


@app.command("show")
def policy_show(
    file: Annotated[Path, typer.Argument(help="The policy.")],
    as_json: Json = False,
) -> None:
    """Check a policy and show who may do what."""
    policy = open_policy(file)
    kinds = {
        kind: {
            "max_tokens": rule.max_tokens,
            "max_age_days": rule.max_age_days,
            "forbidden_taint": list(rule.forbidden_taint),
            "adds_taint": list(rule.adds_taint),
            "models": list(rule.models),
            "on_revoke": rule.on_revoke,
        }
        for kind, rule in policy.kinds.items()
    }
    if as_json:
        purposes = {
            purpose: {"signers": list(who.signers), "threshold": who.threshold}
            for purpose, who in policy.signer_rules.items()
        }
        shown = {"log": policy.log, "purposes": purposes, "kinds": kinds, "witnesses": policy.quorum_text}
        print_result(shown, True, "")
        return
    table = Table("what", "who signs", "how many", "limits", box=None)
    for purpose, who in policy.signer_rules.items():
        rule = policy.kinds.get(purpose.removeprefix("kind "))
        limits = ""
        if rule is not None:
            limits = f"{rule.max_tokens} tokens, {rule.max_age_days} days, on revocation: {rule.on_revoke}"
            limits += f"; never {', '.join(rule.forbidden_taint)}" if rule.forbidden_taint else ""
            limits += f"; adds {', '.join(rule.adds_taint)}" if rule.adds_taint else ""
        table.add_row(purpose, ", ".join(who.signers), str(who.threshold), limits)
    Console().print(table)
    typer.echo(f"log {policy.log_key.name}; witnesses: {policy.quorum_text}")


def _keys(paths: list[Path]) -> dict[str, bytes]:
    """The public keys by the names of their files; one file may stand for several purposes."""
    from fieldprint.anchor import load_public_key

    keys: dict[str, bytes] = {}
    for path in paths:
        raw = load_public_key(path).public_bytes_raw()
        if keys.setdefault(path.stem, raw) != raw:
            raise ValueError("two key files have the same name, and a policy names keys by it; rename one")
    return keys


def _role(paths: list[Path] | None, threshold: int | None) -> "SignerRule | None":
    """These keys, as many as the threshold, or all of them."""
    from fieldprint.anchor.policy import SignerRule

    names = tuple(dict.fromkeys(path.stem for path in paths or ()))
    return SignerRule(names, threshold or len(names)) if names else None
