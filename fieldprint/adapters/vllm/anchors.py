"""The anchors of one engine: verified before vLLM starts to serve, each with the gate that can end it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fieldprint.adapters.vllm.messages import Install
from fieldprint.adapters.vllm.settings import ServeSettings
from fieldprint.adapters.vllm.watching import WatchedOnce
from fieldprint.anchor import Policy
from fieldprint.errors import FieldprintError, FormatError
from fieldprint.pipeline import gate_of
from fieldprint.promote import Fieldprint
from fieldprint.registry.gate import AnchorGate, Ruling
from fieldprint.registry.orders import OrdersFile
from fieldprint.registry.state import RegistryView
from fieldprint.verify import VerifiedAnchor, verify_anchor


@dataclass(slots=True, eq=False)
class ServedAnchor:
    """An anchor of this engine, or with index 0 none: what stands in leaves and receipts, and the gate's last word.

    blocks: of vLLM's, pinned; none until they are taken. acknowledged: ranks that have it in their blocks; ready: all of them.
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
    ready: bool = False
    ruling: Ruling | None = None

    @property
    def digest(self) -> str | None:
        """Hex digest of the anchor's artifact."""
        return None if self.verified is None else self.verified.digest

    def salt(self, own: str | None) -> str:
        """A prefix cache's salt: blocks that were computed under another anchor are never found. `own` is the client's."""
        return f"fieldprint/{self.index}/{self.digest or 'none'}/{self.root or 'none'}|{own or ''}"

    def install(self) -> Install:
        """The order to put it into its blocks."""
        return Install(self.index, self.file, self.root or "", self.blocks)


class ServedAnchors:
    """Every anchor that a request of this engine may ask for.

    Args:
        settings: which files.
        policy: whose signatures count.
        model: digest of the model's folder.
        view: the registry that anchors are verified by.
        watched: a registry that may change.
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
        view: RegistryView,
        watched: WatchedOnce,
        orders: OrdersFile | None,
    ) -> None:
        self._policy, self._model, self._view = policy, model, view
        self._watched, self._orders, self._engine = watched, orders, settings.engine
        self.none = ServedAnchor(0, "", self._gate(None), ready=True)
        self.all = [self.none]
        self._by_name: dict[str, ServedAnchor] = {}
        for name, files in settings.anchors.items():
            self.admit(self.make(name, read_file(files.artifact), files.fieldprint))
        self.default = self.none if settings.default is None else self._by_name[settings.default]

    def _gate(self, verified: VerifiedAnchor | None) -> AnchorGate:
        artifact = None if verified is None else verified.artifact
        return gate_of(
            self._policy, artifact, name=self._engine, registry=self._watched.view(), orders=self._orders
        )

    def make(self, name: str, signed: bytes, file: str) -> ServedAnchor:
        """One more anchor, verified; it is still to be promoted, and admitted.

        Args:
            name: that requests ask for.
            signed: the signed artifact.
            file: of its fieldprint, which each worker reads.

        Raises:
            FormatError: there is one of this name. VerificationError: it is not what the policy asks for.
        """
        if name in self._by_name or not name:
            raise FormatError(f"there is an anchor {name!r} already" if name else "an anchor needs a name")
        verified = verify_anchor(
            signed, self._policy, now=datetime.now(UTC), registry=self._view, model=self._model, before=True
        )
        if verified.record is None:
            raise FormatError(f"the anchor {name} has no fieldprint for this engine")
        if Fieldprint.load(Path(file)).root() != verified.record.root:
            raise FormatError(f"{file} is not the fieldprint that {name} was signed with")
        return ServedAnchor(
            len(self.all),
            name,
            self._gate(verified),
            signed,
            verified,
            verified.record.root,
            file,
            verified.record.num_tokens,
        )

    def admit(self, anchor: ServedAnchor) -> None:
        """Let requests ask for an anchor that was made, and whose promotion is in the log."""
        self.all.append(anchor)
        self._by_name[anchor.name] = anchor

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
        self._watched.look()
        for anchor in tuple(self.all):
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
