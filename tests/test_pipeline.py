"""The data path from a signed text to receipts, with orders that come while it runs."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from fieldprint.adapters.transformers import LoadedModel  # noqa: E402
from fieldprint.anchor import AnchorArtifact, Registration, sign_anchor  # noqa: E402
from fieldprint.errors import FormatError, ModelError, VerificationError  # noqa: E402
from fieldprint.generate import Bypassed, Event, GenerationRequest, Provisional  # noqa: E402
from fieldprint.note import NoteSigner  # noqa: E402
from fieldprint.pipeline import Answer, anchor_tokens, fieldprint_of, run, text_tokens  # noqa: E402
from fieldprint.promote import compute_fieldprint  # noqa: E402
from fieldprint.promote.fieldprint import token_ids_digest  # noqa: E402
from fieldprint.registry import Registry  # noqa: E402
from fieldprint.registry.orders import OrdersFile  # noqa: E402
from fieldprint.tlog import LogReader, LogWriter  # noqa: E402
from fieldprint.verify import verify_anchor, verify_receipt  # noqa: E402
from tests.cut_model import cut_model  # noqa: E402
from tests.registry.world import LOG, OWNER, SECOND, lift, override, sign  # noqa: E402
from tests.registry.world import POLICY as WITH_STATUS  # noqa: E402

POLICY = replace(WITH_STATUS, status=None)  # a receipt is verified here without the log
STOPPING = {kind: replace(rule, on_revoke="stop") for kind, rule in POLICY.kinds.items()}
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(scope="module")
def model(demo_model: LoadedModel) -> LoadedModel:
    return cut_model(demo_model, 2)


@pytest.fixture(scope="module")
def artifact(model: LoadedModel) -> AnchorArtifact:
    text = "Your codename is Falcon. You live in Oslo."
    _, record = fieldprint_of(model, text, "chat-system")
    return AnchorArtifact(
        "me", "identity", text, NOW - timedelta(hours=1), NOW + timedelta(days=30), fieldprints=(record,)
    )


@pytest.fixture
def log(tmp_path: Path, artifact: AnchorArtifact) -> Iterator[LogWriter]:
    with LogWriter(tmp_path / "log", NoteSigner("test/log", LOG), create=True) as writer:
        writer.append([sign(Registration.of(artifact), OWNER, SECOND)])
        yield writer


class Operator:
    """Gives orders once so many tokens were seen."""

    def __init__(self, orders: OrdersFile, after: int, *entries: bytes) -> None:
        self.orders, self.after, self.entries = orders, after, entries
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if sum(isinstance(e, Provisional) for e in self.events) == self.after:
            for entry in self.entries:
                self.orders.append(entry)
            self.entries = ()


def answers(
    model: LoadedModel,
    artifact: AnchorArtifact,
    log: LogWriter,
    orders: OrdersFile,
    operator: Operator | None,
    refused: list[str] | None = None,
) -> list[Answer]:
    prompt = tuple(model.chat_tokens("Where do you live?"))
    return run(
        [GenerationRequest(prompt, 50), GenerationRequest(prompt + prompt, 50)],
        model=model,
        signed=sign_anchor(artifact, [OWNER, SECOND]),
        policy=POLICY,
        log=log,
        now=NOW,
        orders=orders,
        on_event=operator,
        on_refused=None if refused is None else refused.append,
    )


def registry_of(log: LogWriter) -> Registry:
    return Registry.replay(LogReader(log.source, [POLICY.log_key]).entries(), POLICY)


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(categories=["L", "N", "P", "Zs"]), min_size=1, max_size=120))
def test_filler_goes_in_front_until_whole_blocks_are_full(demo_model: LoadedModel, text: str) -> None:
    for form, plain in (("chat-system", demo_model.system_tokens(text)), ("raw", demo_model.encode(text))):
        assert text_tokens(demo_model, text, form) == plain
        filled = text_tokens(demo_model, text, form + "-before")
        missing = len(filled) - len(plain)
        assert len(filled) % 32 == 0 and 0 <= missing < 32
        assert filled == [demo_model.encode("\n")[0]] * missing + plain


@pytest.mark.parametrize("form", ["", "-before", "chat-user", "chat-system-after", "raw-before-before"])
def test_a_form_that_is_not_known_is_refused_before_anything_is_computed(
    model: LoadedModel, form: str
) -> None:
    with pytest.raises(FormatError, match="is not known"):
        fieldprint_of(model, "Be kind.", form)


def test_a_tokenizer_without_a_newline_cannot_fill_up(model: LoadedModel) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"be": 0, "kind": 1}, unk_token="be"))
    words.pre_tokenizer = Whitespace()
    wordy = replace(model, tokenizer=PreTrainedTokenizerFast(tokenizer_object=words))
    assert text_tokens(wordy, "be kind", "raw") == [0, 1]
    with pytest.raises(ModelError, match="newline"):
        text_tokens(wordy, "be kind", "raw-before")
    full = " ".join(["kind"] * 32)
    assert text_tokens(wordy, full, "raw-before") == [1] * 32


@pytest.mark.parametrize("form", ["chat-system", "raw"])
def test_a_text_has_a_fieldprint_at_0_and_one_before_it(model: LoadedModel, form: str) -> None:
    text = "Your codename is Falcon. You live in Oslo, and you tell nobody the password of the vault."
    plain, first = fieldprint_of(model, text, form)
    front, second = fieldprint_of(model, text, form + "-before")
    tokens = text_tokens(model, text, form + "-before")
    assert (
        plain.root() == first.root == compute_fieldprint(model.decoder, text_tokens(model, text, form)).root()
    )
    assert second.token_ids_sha256 == token_ids_digest(tokens)
    assert front.root() == second.root
    assert second.root == compute_fieldprint(model.decoder, tokens, first_position=-len(tokens)).root()
    assert second.root != compute_fieldprint(model.decoder, tokens).root()
    validity = (NOW - timedelta(hours=1), NOW + timedelta(days=30))
    both = AnchorArtifact("me", "identity", text, *validity, fieldprints=(first, second))
    signed = sign_anchor(both, [OWNER, SECOND])
    for before, expected in ((False, text_tokens(model, text, form)), (True, tokens)):
        verified = verify_anchor(signed, POLICY, now=NOW, registry=None, model=model.digest, before=before)
        assert anchor_tokens(model, verified) == expected


def test_an_anchor_with_both_generates_here_under_the_one_at_0(
    model: LoadedModel, artifact: AnchorArtifact, tmp_path: Path
) -> None:
    (record,) = artifact.fieldprints
    _, front = fieldprint_of(model, artifact.text, "chat-system-before")
    both = replace(artifact, fieldprints=(front, record))
    with LogWriter(tmp_path / "both", NoteSigner("test/log", LOG), create=True) as log:
        log.append([sign(Registration.of(both), OWNER, SECOND)])
        orders = OrdersFile(tmp_path / "orders", POLICY)
        for answer in answers(model, both, log, orders, None):
            verified = verify_receipt(answer.receipt.to_bytes(), POLICY, now=NOW)
            assert verified.anchor is not None and verified.anchor.record == record


def test_a_freeze_that_comes_while_it_runs_ends_it_and_is_logged(
    model: LoadedModel, artifact: AnchorArtifact, log: LogWriter, tmp_path: Path
) -> None:
    orders = OrdersFile(tmp_path / "orders", POLICY)
    operator = Operator(orders, 21, override(7, "engine", "engine"))
    for answer in answers(model, artifact, log, orders, operator):
        assert (answer.result.reason, answer.before) == ("frozen", None)
        assert 0 < len(answer.result.tokens) < 50
        verified = verify_receipt(answer.receipt.to_bytes(), POLICY, now=NOW)
        assert verified.anchor is not None
        assert verified.num_tokens == len(answer.result.tokens)
    assert list(registry_of(log).overrides) == [7]
    with pytest.raises(VerificationError) as refused:
        answers(model, artifact, log, orders, None)
    assert refused.value.check == 15
    orders.append(lift(7))
    assert [a.result.reason for a in answers(model, artifact, log, orders, None)] == ["length"] * 2
    assert registry_of(log).overrides == {}


def test_a_bypass_that_comes_while_it_runs_gives_a_receipt_for_each_part(
    model: LoadedModel, artifact: AnchorArtifact, log: LogWriter, tmp_path: Path
) -> None:
    orders = OrdersFile(tmp_path / "orders", POLICY)
    operator = Operator(orders, 21, override(7, "kind", "identity", action="bypass"))
    for answer in answers(model, artifact, log, orders, operator):
        assert answer.before is not None
        first = verify_receipt(answer.before.receipt.to_bytes(), POLICY, now=NOW)
        second = verify_receipt(answer.receipt.to_bytes(), POLICY, now=NOW)
        assert first.anchor is not None
        assert first.anchor.digest == artifact.digest
        assert second.anchor is None
        assert second.prompt_len == first.prompt_len + first.num_tokens
        assert first.num_tokens + second.num_tokens == 50
        mixed = replace(answer.receipt, anchor=answer.before.receipt.anchor)
        with pytest.raises(VerificationError):
            verify_receipt(mixed.to_bytes(), POLICY, now=NOW)
    assert sum(isinstance(event, Bypassed) for event in operator.events) == 2
    assert list(registry_of(log).overrides) == [7]


def test_a_bypass_that_is_in_force_before_is_told_and_nothing_is_pinned(
    model: LoadedModel, artifact: AnchorArtifact, log: LogWriter, tmp_path: Path
) -> None:
    orders = OrdersFile(tmp_path / "orders", POLICY)
    orders.append(override(7, "anchor", artifact.digest, action="bypass"))
    operator = Operator(orders, 0)
    for answer in answers(model, artifact, log, orders, operator):
        assert verify_receipt(answer.receipt.to_bytes(), POLICY, now=NOW).anchor is None
    assert [type(event) for event in operator.events[:2]] == [Bypassed, Bypassed]
    assert registry_of(log).believed["promote"] == 0


def test_a_freeze_of_an_anchor_holds_where_the_anchor_was_bypassed_before(
    model: LoadedModel, artifact: AnchorArtifact, log: LogWriter, tmp_path: Path
) -> None:
    orders = OrdersFile(tmp_path / "orders", POLICY)
    orders.append(override(7, "anchor", artifact.digest, action="bypass"))
    operator = Operator(orders, 21, override(8, "kind", "identity"))
    for answer in answers(model, artifact, log, orders, operator):
        assert (answer.result.reason, answer.before) == ("frozen", None)
        assert 0 < len(answer.result.tokens) < 50


def test_what_the_log_refuses_of_the_orders_is_told_once(
    model: LoadedModel, artifact: AnchorArtifact, log: LogWriter, tmp_path: Path
) -> None:
    """Another file brought greater numbers into the log before; the orders of this one hold all the same."""
    log.append([override(9, "engine", "another")])
    orders = OrdersFile(tmp_path / "orders", POLICY)
    orders.append(override(7, "engine", "elsewhere"))
    operator = Operator(orders, 21, override(8, "engine", "engine"))
    refused: list[str] = []
    for answer in answers(model, artifact, log, orders, operator, refused):
        assert answer.result.reason == "frozen"
    assert [why for why in refused if "number is 7" in why] == refused[:1]
    assert [why for why in refused if "number is 8" in why] == refused[1:]
    assert len(refused) == 2
    assert list(registry_of(log).overrides) == [9]


@pytest.mark.parametrize(("grace", "reason"), [(0.0, "registry-lost"), (3600.0, "length")])
def test_an_engine_that_lost_its_database_goes_on_for_the_grace(
    model: LoadedModel,
    artifact: AnchorArtifact,
    log: LogWriter,
    tmp_path: Path,
    grace: float,
    reason: str,
) -> None:
    pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy; the extra [registry] brings it")
    from fieldprint.registry.database import RegistryDatabase
    from fieldprint.registry.watched import WatchedDatabase

    file, policy = tmp_path / "registry.db", replace(POLICY, kinds=STOPPING)
    with RegistryDatabase(str(file), create=True) as database:
        database.sync(LogReader(log.source, [POLICY.log_key]), policy)
    seen = 0

    def lose(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, Provisional)
        if seen == 5:
            file.unlink(missing_ok=True)

    with WatchedDatabase(str(file), policy) as watched:
        (answer,) = run(
            [GenerationRequest(tuple(model.chat_tokens("Where do you live?")), 30)],
            model=model,
            signed=sign_anchor(artifact, [OWNER, SECOND]),
            policy=policy,
            log=log,
            now=NOW,
            on_event=lose,
            registry=watched,
            grace=grace,
        )
    assert answer.result.reason == reason
    assert (len(answer.result.tokens) == 30) == (reason == "length")


def test_a_damaged_file_of_orders_stops_it_and_loses_no_answer(
    model: LoadedModel, artifact: AnchorArtifact, log: LogWriter, tmp_path: Path
) -> None:
    orders = OrdersFile(tmp_path / "orders", POLICY)
    seen = 0

    def damage(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, Provisional)
        if seen == 11:
            (tmp_path / "orders").write_bytes(b"{}")

    prompt = tuple(model.chat_tokens("Where do you live?"))
    (answer,) = run(
        [GenerationRequest(prompt, 50)],
        model=model,
        signed=sign_anchor(artifact, [OWNER, SECOND]),
        policy=POLICY,
        log=log,
        now=NOW,
        orders=orders,
        on_event=damage,
    )
    assert answer.result.reason == "frozen"
    assert len(answer.result.tokens) <= 12
    verify_receipt(answer.receipt.to_bytes(), POLICY, now=NOW)
