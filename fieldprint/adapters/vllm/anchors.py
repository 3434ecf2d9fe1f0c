"""The anchors of one engine: verified before vLLM starts to serve, each with the gate that can end it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fieldprint.adapters.vllm.messages import Install
from fieldprint.adapters.vllm.settings import ServeSettings
from fieldprint.anchor import Policy
from fieldprint.errors import FieldprintError, FormatError
from fieldprint.pipeline import gate_of
from fieldprint.registry.gate import AnchorGate, Ruling, Unwatched, Watched
from fieldprint.registry.orders import OrdersFile
from fieldprint.registry.state import Registry
from fieldprint.verify import VerifiedAnchor, verify_anchor


@dataclass(slots=True, eq=False)
class ServedAnchor:
    """An anchor of this engine, or with index 0 none: what stands in leaves and receipts, and the gate's last word.

    blocks: of vLLM's, pinned; none until they are taken. acknowledged: ranks that have it in their blocks.
    """

    index: int
    name: str
    gate: AnchorGate
    signed: bytes | None = None
    verified: VerifiedAnchor | None = None
    root: str | None = None
    file: str = ""
    tokens: int = 0
    blocks: tuple[int, ...] = ()
    acknowledged: frozenset[int] = frozenset()
    ruling: Ruling | None = None

    @property
    def digest(self) -> str | None:
        """Hex digest of the anchor's artifact."""
        return None if self.verified is None else self.verified.digest

    def salt(self, own: str | None) -> str:
        """A prefix cache's salt: blocks that were computed under another anchor are never found. `own` is the client's."""
        return f"fieldprint/{self.digest or 'none'}/{self.root or 'none'}|{own or ''}"

    def install(self) -> Install:
        """The order to put it into its blocks."""
        return Install(self.index, self.file, self.root or "", self.blocks)


class ServedAnchors:
    """Every anchor that a request of this engine may ask for.

    Args:
        settings: which files.
        policy: whose signatures count.
        model: digest of the model's folder.
        known: the registry as the log tells it.
        watched: a registry that may change, or None.
        orders: the file of orders, or None.

    Raises:
        VerificationError: an anchor is not what the policy asks for; nothing is served.
    """

    def __init__(
        self,
        settings: ServeSettings,
        policy: Policy,
        *,
        model: str,
        known: Registry,
        watched: Watched | None,
        orders: OrdersFile | None,
    ) -> None:
        registry = watched or Unwatched(known)

        def gate(verified: VerifiedAnchor | None) -> AnchorGate:
            artifact = None if verified is None else verified.artifact
            return gate_of(policy, artifact, name=settings.engine, registry=registry, orders=orders)

        self.none = ServedAnchor(0, "", gate(None))
        self.all = [self.none]
        for name, files in settings.anchors.items():
            signed = read_file(files.artifact)
            verified = verify_anchor(
                signed, policy, now=datetime.now(UTC), registry=known, model=model, before=True
            )
            if verified.record is None:
                raise FormatError(f"{files.artifact} has no fieldprint for this engine")
            self.all.append(
                ServedAnchor(
                    len(self.all),
                    name,
                    gate(verified),
                    signed,
                    verified,
                    verified.record.root,
                    files.fieldprint,
                    verified.record.num_tokens,
                )
            )
        self._by_name = {anchor.name: anchor for anchor in self.all[1:]}
        self.default = self.none if settings.default is None else self._by_name[settings.default]

    def named(self, name: object) -> ServedAnchor:
        """The anchor that a request asks for: by its name; None is the engine's default.

        Raises:
            FormatError: there is none of this name.
        """
        if name is None:
            return self.default
        found = self._by_name.get(name) if isinstance(name, str) else None
        if found is None:
            raise FormatError(
                f"there is no anchor {name!r} here",
                remedy=f"Ask for one of: {', '.join(self._by_name) or 'none'}",
            )
        return found

    def ask_gates(self) -> None:
        """Take the gates' word, before a step is started."""
        for anchor in self.all:
            anchor.ruling = anchor.gate.ruling()


def read_file(path: str) -> bytes:
    """The bytes of a file.

    Raises:
        FieldprintError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FieldprintError(f"{path} cannot be read: {error.strerror}", remedy="Check the path") from error
