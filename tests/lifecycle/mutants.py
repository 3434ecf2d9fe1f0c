"""The implementation with one check removed: each refusal of the registry and of `verify_anchor` in turn, and worse."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from fieldprint import verify
from fieldprint.anchor import Endorsement, Override, Policy
from fieldprint.registry import events, state
from fieldprint.registry.lineage import NONE, Lineage

SOURCES: tuple[tuple[ModuleType, str | None, tuple[str, ...]], ...] = (
    (events, None, ("_check_rule",)),
    (
        state,
        "Registry",
        ("_believe", "_register", "_usable", "_promote", "_supersede", "_revoke", "_endorse", "_override", "_status"),
    ),
    (
        verify,
        None,
        (
            "verify_anchor", "_check_policy", "_check_own_taint", "_check_time", "_check_not_replaced", "_check_registered",
            "_check_no_override", "_check_status",
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """What is changed, and how."""

    name: str
    install: Callable[[pytest.MonkeyPatch], None]


class _Raises(ast.NodeVisitor):
    """Every `raise` in the order of the source."""

    def __init__(self, tree: ast.AST) -> None:
        self.found: list[ast.Raise] = []
        self.visit(tree)

    def visit_Raise(self, node: ast.Raise) -> None:
        assert isinstance(node.exc, ast.Call)
        mistake = ast.unparse(node.exc.func) == "ValueError"  # a caller's, not an attack
        if not mistake and node.cause is None:  # what another function refused is refused there
            self.found.append(node)


class _Remove(ast.NodeTransformer):
    """Puts `pass` where one `raise` stood."""

    def __init__(self, gone: ast.Raise) -> None:
        self.gone = gone

    def visit_Raise(self, node: ast.Raise) -> ast.stmt:
        return ast.copy_location(ast.Pass(), node) if node is self.gone else node


def _without(module: ModuleType, owner: str | None, function: str, number: int) -> Mutant:
    """The function without its n-th `raise`."""
    home = module if owner is None else getattr(module, owner)
    tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(home, function))))
    found = _Raises(tree).found
    gone = found[number]
    assert isinstance(gone.exc, ast.Call)
    said = str(ast.literal_eval(gone.exc.args[0]))
    before = [one.exc.args[0] for one in found[:number] if isinstance(one.exc, ast.Call)]
    times = sum(ast.unparse(one) == ast.unparse(gone.exc.args[0]) for one in before)
    what = f"check {said}" if said.isdecimal() else said
    code = compile(ast.fix_missing_locations(_Remove(gone).visit(tree)), f"<{function}>", "exec")

    def install(monkeypatch: pytest.MonkeyPatch) -> None:
        scope: dict[str, Any] = {}
        exec(code, vars(module), scope)
        monkeypatch.setattr(home, function, scope[function])

    return Mutant(f"{function}: {what}" + " again" * times, install)


def removed_checks() -> Iterator[Mutant]:
    """One mutant for each `raise` in the functions above."""
    for module, owner, functions in SOURCES:
        home = module if owner is None else getattr(module, owner)
        for function in functions:
            tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(home, function))))
            for number in range(len(_Raises(tree).found)):
                yield _without(module, owner, function, number)


def _set(name: str, home: Any, attribute: str, value: Any) -> Mutant:
    return Mutant(name, lambda monkeypatch: monkeypatch.setattr(home, attribute, value))


def _both(name: str, *mutants: Mutant) -> Mutant:
    def install(monkeypatch: pytest.MonkeyPatch) -> None:
        for mutant in mutants:
            mutant.install(monkeypatch)

    return Mutant(name, install)


_TAINT, _ENDORSE, _PURPOSES = Lineage._taint, Lineage.endorse, events._purposes
_CHECK_OWN = verify._check_own_taint


def _taint_without_parents(self: Lineage, made: Any, before: str | None) -> frozenset[str]:
    own = frozenset(made.taint) | self.added.get(made.kind, NONE) | self._carried(before)
    return own - self._endorsed.get(made.anchor, NONE)


def _taint_without_own(self: Lineage, made: Any, before: str | None) -> frozenset[str]:
    return _TAINT(self, made, before) - (frozenset(made.taint) - self._carried(before))


def _taint_endorsed_by_anybody(self: Lineage, made: Any, before: str | None) -> frozenset[str]:
    return _TAINT(self, made, before).difference(*self._endorsed.values())


def _endorse_everything(self: Lineage, anchor: str, labels: Iterable[str]) -> list[str]:
    return _ENDORSE(self, anchor, ("untrusted", "web", "wild"))


def _revoked_without_descendants(self: Lineage, anchor: str) -> list[str]:
    return []


def _first_label_only(content: Any) -> tuple[str, ...]:
    purposes = _PURPOSES(content)
    return purposes[:1] if isinstance(content, Endorsement) else purposes


def _no_endorsement_of_own(artifact: Any, policy: Any, standing: Any) -> None:
    _CHECK_OWN(artifact, policy, None)


def _known_key_ids(envelope: Any, trusted: Any) -> frozenset[str]:
    return frozenset(identifier for identifier, _ in envelope.signatures if identifier in trusted)


def _trusted_whoever(self: Policy, names: Any = None) -> Any:
    return dict(self._loaded[name] for name in self.keys)


def _any_signers(event: Any, policy: Policy, purpose: str) -> None:
    rule = policy.signer_rules.get(purpose)
    if rule is None or len(event.signers) < rule.threshold:
        raise events.EventError("signatures", "too few")


def _one_signer(event: Any, policy: Policy, purpose: str) -> None:
    rule = policy.signer_rules.get(purpose)
    if rule is None or not event.signers.intersection(rule.signers):
        raise events.EventError("signatures", "none")


def _unforgeable_both() -> Mutant:
    return _both(
        "valid_signers: key ids without signatures",
        _set("", events, "valid_signers", _known_key_ids),
        _set("", verify, "valid_signers", _known_key_ids),
    )


def weakened() -> dict[str, Mutant]:
    """Mutants that no removed `raise` gives, by name: the rules of taint and descent, and whose signatures count."""
    made = (
        _set("taint: not of parents", Lineage, "_taint", _taint_without_parents),
        _set("taint: not of the same text", Lineage, "_carried", lambda self, before: NONE),
        _set("taint: not its own labels", Lineage, "_taint", _taint_without_own),
        Mutant("taint: not what the kind adds", _nothing_added),
        _set("endorsement: of any anchor", Lineage, "_taint", _taint_endorsed_by_anybody),
        _set("endorsement: of every label", Lineage, "endorse", _endorse_everything),
        _set("endorsement: signed for the first label", events, "_purposes", _first_label_only),
        _set("revocation: descendants go on", Lineage, "revoked", _revoked_without_descendants),
        _set("verify: own labels, endorsed or not", verify, "_check_own_taint", _no_endorsement_of_own),
        _unforgeable_both(),
        _set("signers: of any role", events, "_check_rule", _any_signers),
        _set("signers: one is enough", events, "_check_rule", _one_signer),
        _set("verify: signers of any kind", Policy, "trusted", _trusted_whoever),
        _set("override: no kind", Override, "concerns", lambda self, **of: self.target in ("*", of.get("anchor"))),
        _set("override: never holds", Override, "holds", lambda self, now: False),
        _set("override: holds for ever", Override, "holds", lambda self, now: True),
    )  # fmt: skip
    return {mutant.name: mutant for mutant in made}


def _nothing_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state.Registry, "__post_init__", lambda self: None)


def gates_and_taint() -> Mutant:
    """Both gates against forbidden taint removed: at registration, and check 12."""
    gates = ("_register: forbidden-taint", "_check_registered: check 12")
    return _both("both gates against taint", *(mutant for mutant in removed_checks() if mutant.name in gates))
