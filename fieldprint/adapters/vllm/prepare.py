"""What is made sure before vLLM is loaded: each anchor verified, its fieldprint at hand and the signed one."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fieldprint.adapters.model_folder import user_cache
from fieldprint.adapters.vllm.settings import AnchorFiles
from fieldprint.errors import CapacityError, FieldprintError, FormatError, IntegrityError
from fieldprint.verify import VerifiedAnchor, verify_anchor

if TYPE_CHECKING:
    from fieldprint.adapters.transformers import LoadedModel
    from fieldprint.anchor import FieldprintRecord, Policy
    from fieldprint.registry import Registry

Say = Callable[[str], object]


def verified_anchors(
    artifacts: Mapping[str, bytes], policy: "Policy", registry: "Registry", model: str
) -> dict[str, VerifiedAnchor]:
    """The anchors by name, each verified for an engine that puts it in front of position 0.

    Raises:
        VerificationError: the first that is not what the policy asks for; its name is in the text.
    """
    now = datetime.now(UTC)
    verified = {}
    for name, signed in artifacts.items():
        try:
            verified[name] = verify_anchor(
                signed, policy, now=now, registry=registry, model=model, before=True
            )
        except FieldprintError as error:
            error.what = f"the anchor {name}: {error.what}"
            raise
    return verified


class FieldprintFiles:
    """Finds or makes the file of each anchor's fieldprint.

    Args:
        model: the model's folder.
        say: told what takes long.
        cache: where files that are made are kept, by their root; None is a folder in Fieldprint's cache.
    """

    def __init__(self, model: Path, say: Say, cache: Path | None = None) -> None:
        self._model, self._say = model, say
        self._cache = user_cache() / "fieldprints" if cache is None else cache
        self._loaded: LoadedModel | None = None

    def file_of(self, name: str, verified: VerifiedAnchor, given: Path | None) -> Path:
        """The file that holds the signed fieldprint: the given one, one from before, or a new one.

        Raises:
            IntegrityError: the given file, or what this machine computes, is another than the signed one.
            FormatError: the given file is no fieldprint.
        """
        record = verified.record
        if record is None:
            raise FormatError(
                f"the anchor {name} has no fieldprint for vLLM", remedy="Sign it with --engine vllm"
            )
        if given is not None:
            self._check(given, record.root, name)
            return given.absolute()
        path = self._cache / f"{record.root}.fieldprint"
        if path.exists():
            try:
                self._check(path, record.root, name)
            except (FormatError, IntegrityError):
                self._say(f"{path} is damaged and is made again")
            else:
                return path
        self._make(path, name, verified, record)
        return path

    def _check(self, path: Path, root: str, name: str) -> None:
        from fieldprint.promote import Fieldprint

        if Fieldprint.load(path).root() != root:
            raise IntegrityError(
                f"{path} holds another fieldprint than the one signed for the anchor {name}",
                remedy="Leave --fieldprint out, and it is computed",
            )

    def _make(self, path: Path, name: str, verified: VerifiedAnchor, record: "FieldprintRecord") -> None:
        from fieldprint.adapters.transformers import load_model
        from fieldprint.pipeline import fieldprint_of

        self._say(f"computing the fieldprint of the anchor {name}, {record.num_tokens} tokens, once")
        if self._loaded is None:
            self._loaded = load_model(self._model)
        fieldprint, computed = fieldprint_of(self._loaded, verified.artifact.text, record.form)
        if computed.root != record.root:
            raise IntegrityError(
                f"the fieldprint of the anchor {name} that this machine computes is not the signed one",
                remedy="Give the signer's file with --fieldprint, or sign the anchor anew",
            )
        try:
            self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CapacityError(
                f"{self._cache} cannot be made: {error.strerror}", remedy="Set XDG_CACHE_HOME"
            ) from error
        fieldprint.save(path)


def anchor_files(
    artifacts: Mapping[str, Path],
    given: Mapping[str, Path],
    verified: Mapping[str, VerifiedAnchor],
    files: FieldprintFiles,
) -> dict[str, AnchorFiles]:
    """The files of each anchor, as an engine is told them."""
    return {
        name: AnchorFiles(str(path.absolute()), str(files.file_of(name, verified[name], given.get(name))))
        for name, path in artifacts.items()
    }
