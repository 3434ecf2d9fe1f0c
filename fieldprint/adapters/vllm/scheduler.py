"""vLLM's scheduler with a commit window in front of the client: outputs leave when what they depend on is committed.

A request that has ended stays, without being scheduled, until its last leaf is in the log and its receipt is written; one with
as many uncommitted tokens as it may have waits; at a fault it goes back to its last committed token, and nobody else does.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import RequestStatus

from fieldprint.adapters.vllm.connector import FieldprintConnector
from fieldprint.adapters.vllm.row import Ending, Row
from fieldprint.adapters.vllm.sampler import sampler_terms
from fieldprint.adapters.vllm.versions import cut_block_hashes, fewer_running, preempt
from fieldprint.commit.committer import CommitResult
from fieldprint.errors import CompatibilityError, FieldprintError, FormatError

logger = init_logger("vllm.fieldprint")  # vLLM shows what is logged under its own name

MAX_FAULTS = 8  # in a row, without a page committed in between; then what is affected ends in an error
IDLE = 0.002  # seconds that a step without work waits


class FieldprintScheduler(Scheduler):  # type: ignore[misc]
    """`scheduler_cls` of an engine whose connector is `FieldprintConnector`.

    Raises:
        CompatibilityError: the connector is another.
    """

    running: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.connector, FieldprintConnector):
            raise CompatibilityError(
                "FieldprintScheduler needs FieldprintConnector", remedy="Start with fieldprint serve"
            )
        self.supervisor = self.connector.supervisor
        self.supervisor.follow(self.kv_cache_manager)
        self.ledger = self.supervisor.ledger
        self._outputs: dict[int, list[EngineCoreOutput]] = defaultdict(list)
        self._faults = 0

    # Requests come and go

    def add_request(self, request: Any) -> None:
        """Take a request under the anchor that it asks for, or answer it with an error."""
        try:
            anchor = self.supervisor.anchors.named(self._asked(request))
            self.supervisor.anchors.ask_gates()
            if anchor.ruling is not None:
                if anchor.ruling.action == "stop":
                    raise FormatError(
                        f"the anchor {anchor.name or 'none'} is not served: {anchor.ruling.why}"
                    )
                anchor = self.supervisor.anchors.none
        except FormatError as error:
            logger.warning("request %s refused: %s", request.request_id, error)
            self._outputs[request.client_index].append(
                EngineCoreOutput(
                    request.request_id, [], finish_reason=FinishReason.ERROR, stop_reason=error.what
                )
            )
            return
        row = self.ledger.open(request, anchor, sampler_terms(request.sampling_params))
        row.client_salt = request.cache_salt
        self._salt(request, anchor.salt(row.client_salt))
        super().add_request(request)

    def _asked(self, request: Any) -> object:
        """The name of the anchor that a request asks for, in `extra_args`.

        Raises:
            FormatError: the request is of a kind that is not covered.
        """
        parameters = request.sampling_params
        if (
            parameters is None
            or request.resumable
            or request.prompt_token_ids is None
            or request.lora_request
            or request.mm_features
        ):
            raise FormatError(
                "Fieldprint covers generation from tokens: no pooling, sessions, embeddings, images or LoRA"
            )
        if request.request_id in self.requests or self.ledger.receipts.holds(request.request_id):
            raise FormatError(
                "there is a request, or a receipt, of this id already",
                remedy="Give each request an id of its own, and each engine that counts from 0 a folder of its own",
            )
        return (parameters.extra_args or {}).get("fieldprint_anchor")

    @staticmethod
    def _salt(request: Any, salt: str) -> None:
        request.cache_salt = salt
        request.block_hashes.clear()
        request.update_block_hashes()

    def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
        """End requests from outside; what of them was generated is still committed, with a receipt."""
        if request_ids is None:
            request_ids = list(self.requests)
        ids = {request_ids} if isinstance(request_ids, str) else set(request_ids)
        for request_id in list(ids):
            row = self.ledger.rows.get(request_id)
            if row is None or len(row.tokens) == row.prompt_len:
                continue
            ids.discard(request_id)
            ends = row.ending is not None and not row.ending.goes_on
            row.ending = Ending(row.ending.status if row.ending and ends else finished_status, heard=False)
        return super().finish_requests(ids, finished_status)

    # A step

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """The plan of a step, without requests that wait for the log."""
        self.supervisor.take_new_anchors()
        self.supervisor.anchors.ask_gates()
        self._rule()
        self._settle()
        waits = {row.request.request_id for row in self.ledger.rows.values() if self._must_wait(row)}
        parked = [request for request in self.running if request.request_id in waits]
        with fewer_running(self, parked):
            output = super().schedule(*args, **kwargs)
        if not output.total_num_scheduled_tokens and self.ledger.busy:
            time.sleep(IDLE)
        return output

    def _must_wait(self, row: Row) -> bool:
        if row.ending is not None:  # one whose blocks were taken away is computed again, for its last leaf
            computed: int = row.request.num_computed_tokens
            return computed >= len(row.tokens) - 1
        return row.provisional(self.ledger.size) >= self.supervisor.settings.provisional_cap

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        row = self.ledger.rows.get(request.request_id)
        if row is not None:
            self.supervisor.distrust(row)
        super()._preempt_request(request, *args, **kwargs)
        if row is not None:
            row.lose_blocks()

    def _update_request_with_output(
        self, request: Any, new_token_ids: list[int], *args: Any, **kwargs: Any
    ) -> tuple[list[int], bool]:
        """As vLLM's; a request that stops is kept until it is committed, and what comes after its end is dropped."""
        row = self.ledger.rows.get(request.request_id)
        if row is not None and row.ending is not None:
            return [], False  # its blocks were taken away, and it was computed again
        tokens, stopped = super()._update_request_with_output(request, new_token_ids, *args, **kwargs)
        if stopped and row is not None:
            row.ending = Ending(request.status, request.stop_reason)
            request.status, request.stop_reason = RequestStatus.RUNNING, None
            stopped = False
        return tokens, stopped

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """The outputs that may leave: of tokens that are final."""
        produced = super().update_from_output(scheduler_output, model_runner_output)
        for outputs in produced.values():
            passed = []
            for output in outputs.outputs:
                row = self.ledger.rows.get(output.request_id)
                if row is None:  # vLLM has ended it itself: nothing of this step is final
                    output.new_token_ids, output.new_logprobs = [], None
                    passed.append(output)
                else:
                    row.held.append(output)
            outputs.outputs = passed
        self._settle()
        for client, ready in self._outputs.items():
            produced.setdefault(client, EngineCoreOutputs()).outputs += ready
        self._outputs.clear()
        return produced

    def has_requests(self) -> bool:
        """Also while an answer waits to be sent."""
        return bool(self._outputs) or super().has_requests()

    # What became of it

    def _rule(self) -> None:
        """Carry out what gates have ruled: requests end, or go on without their anchor, with the tokens that they have."""
        for row in list(self.ledger.rows.values()):
            ruling = row.anchor.ruling
            if ruling is None or (row.ending is not None and not row.ending.goes_on):
                continue
            goes_on = ruling.action == "bypass"
            if (goes_on and row.anchor.index == 0) or self._is_computed_again(row):
                continue
            if row.ending is not None and goes_on:
                continue
            logger.warning("request %s: %s", row.request.request_id, ruling.why)
            if row.request.status == RequestStatus.RUNNING and len(row.tokens) > row.prompt_len:
                row.ending = Ending(
                    RequestStatus.FINISHED_STOPPED, ruling.reason, goes_on=goes_on, ruled=True
                )
            elif goes_on:
                self._leave_anchor(row)
            else:
                self._fail(row, ruling.reason)  # vLLM sends no end of an empty stream but an error

    @staticmethod
    def _is_computed_again(row: Row) -> bool:
        """Whether an answer has begun whose blocks were taken away: its receipt needs a last leaf, which comes when they are back."""
        request = row.request
        computed = request.num_computed_tokens if request.status == RequestStatus.RUNNING else 0
        return len(row.tokens) > row.prompt_len and computed < len(row.tokens) - 1

    def _settle(self) -> None:
        """Take results of the log, go back where something was found, let out what is final, end what is complete."""
        damaged = frozenset(self.supervisor.damaged_anchors)
        result = self.ledger.poll(wait=bool(damaged))
        if result is not None:
            self._take(result)
        if damaged:
            self._repair(damaged)
        for row in list(self.ledger.rows.values()):
            self._release(row)
            try:
                complete = self.ledger.is_complete(row)
            except FieldprintError as error:
                logger.error("request %s: %s", row.request.request_id, error)
                self._fail(row, error.what)
                continue
            if complete:
                self._finish(row)

    def _take(self, result: CommitResult) -> None:
        counters = self.supervisor.counters
        counters["commits"] += 1
        counters["commit_seconds"] += result.seconds
        counters["committed_tokens"] = self.ledger.committed_tokens
        if result.clean:
            self._faults = 0 if result.committed else self._faults
            return
        if not result.damaged_pinned:  # those `_repair` counts
            self._faults += 1
            counters["faults"] += 1
        if result.log_error is not None:
            for job in result.job.requests:
                row = self.ledger.row_of(job.key)
                if row is not None:
                    row.failed = "the log did not commit the pages from here on"
                    self._roll_back(row, f"the log refused: {result.log_error.what}")
        damaged: set[int] = set()
        for key, numbers in result.damaged.items():
            row = self.ledger.row_of(key)
            if row is not None:
                damaged.update(row.blocks[number] for number in numbers if number < len(row.blocks))
                self._roll_back(row, "a context block was damaged")
        if damaged:
            self._go_back(lambda row: bool(damaged.intersection(row.blocks)), "a context block was damaged")

    def _repair(self, anchors: frozenset[int]) -> None:
        """An anchor was damaged: whoever is under it goes back, and it is written again from its codes."""
        self._faults += 1
        self.supervisor.counters["faults"] += 1
        self.ledger.abort_all_of(anchors)
        self.supervisor.rewrite(anchors)
        self._go_back(lambda row: row.anchor.index in anchors, "a pinned block was damaged")

    def _go_back(self, has_read: Callable[[Row], bool], reason: str) -> None:
        """Who has read the damage goes back; nobody finds in the prefix cache what was computed from it, by whomever.

        A block that was computed from damage has a digest of its own that is right, so no check would ever find it, and those
        whose blocks were taken away meanwhile cannot be asked: the cache forgets everything.
        """
        pool = self.kv_cache_manager.block_pool
        pool.evict_blocks(set(range(len(pool.blocks))))
        for row in list(self.ledger.rows.values()):
            if has_read(row):
                self._roll_back(row, reason)

    def _roll_back(self, row: Row, reason: str) -> None:
        request = row.request
        self._release(row)  # what is final goes out first
        if self.ledger.is_committed(row):
            return
        if self._faults > MAX_FAULTS:
            self._fail(row, f"{reason}, {self._faults} times without progress")
            return
        had = len(row.tokens)
        self.supervisor.counters["rolled_back"] += 1
        if request.status == RequestStatus.RUNNING:
            self.running.remove(request)
            preempt(self, request)
        if row.ending is not None and not row.ending.heard:  # nobody waits for it to be generated again
            super().finish_requests(request.request_id, row.ending.status)
            return
        keep = self.ledger.roll_back(row)
        del request._all_token_ids[keep:]
        del request._output_token_ids[max(0, keep - request.num_prompt_tokens) :]
        cut_block_hashes(self, request, keep)
        structured = request.structured_output_request
        if structured is not None and structured.grammar is not None:
            structured.grammar.reset()
            structured.grammar.accept_tokens(request.request_id, list(request._output_token_ids))
        logger.warning("request %s: back from token %d to %d: %s", request.request_id, had, keep, reason)

    def _release(self, row: Row) -> None:
        """Send what is final; the last of an ending row goes with its end."""
        final = row.committed(self.ledger.size)
        position = len(row.tokens) - sum(len(output.new_token_ids) for output in row.held)
        kept = 1 if row.ending is not None and not row.ending.goes_on else 0
        while len(row.held) > kept and position + len(row.held[0].new_token_ids) <= final:
            output = row.held.pop(0)
            position += len(output.new_token_ids)
            self._outputs[row.request.client_index].append(output)

    def _finish(self, row: Row) -> None:
        """Everything is committed: the end that the request came to, or what comes after its anchor."""
        ending, request = row.ending, row.request
        if ending is None:
            return
        if ending.goes_on:
            self._leave_anchor(row)
            return
        request.status, request.stop_reason = ending.status, ending.stop_reason
        self.running.remove(request)
        held = row.held
        if ending.ruled or not held:
            held = [*held, EngineCoreOutput(request.request_id, [])]
        held[-1].finish_reason, held[-1].stop_reason = request.get_finished_reason(), ending.stop_reason
        self._free_request(request)
        if ending.heard:
            self._outputs[request.client_index] += held

    def _leave_anchor(self, row: Row) -> None:
        """Go on without the anchor: the same tokens, computed anew."""
        request = row.request
        if request.status == RequestStatus.RUNNING:
            self.running.remove(request)
            preempt(self, request)
        self.ledger.go_on_without(row, self.supervisor.anchors.none)
        self._salt(request, row.anchor.salt(row.client_salt))

    def _fail(self, row: Row, what: str) -> None:
        request = row.request
        self._outputs[request.client_index].append(
            EngineCoreOutput(request.request_id, [], finish_reason=FinishReason.ERROR, stop_reason=what)
        )
        super().finish_requests(request.request_id, RequestStatus.FINISHED_ERROR)
