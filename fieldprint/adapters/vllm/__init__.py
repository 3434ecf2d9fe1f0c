"""Fieldprint inside vLLM: verified anchors in every attention, commitments, roll-back, receipts; no patch of vLLM.

Two settings put it there, `kv_transfer_config` with `FieldprintConnector` and `scheduler_cls` with `FieldprintScheduler`;
`fieldprint serve` sets both. docs/vllm.md tells how the parts fit together:

    plugin       the entry point that vLLM calls in each of its processes
    versions     all that differs between vLLM's versions, and what is refused at the start
    settings     what an engine is told: anchors, policy, log, keys
    backend      metadata builders that put the anchor's blocks in front of each request's
    layout       where a token's K and V lie in a block, whatever the backend's packing
    residency    the worker's part: install, hash, check
    messages     what scheduler and workers tell each other at each step
    ledger       the scheduler's part: what is bound, committed, final; receipts
    connector    both parts as vLLM's KV connector
    scheduler    vLLM's scheduler with a commit window in front of the client
"""
