"""A fault campaign against a running `fieldprint serve`, through its HTTP API and under load.

    plugin.py    in the server's processes: a thread that does the damage it is told to do
    strike.py    the damage: memory of the cache, the committer's thread, the log
    server.py    the real server as a process of its own, and the folder by which its plugin is told
    wave.py      concurrent requests, and what must be so of each answer
    orders.py    anchors that come at run time, and are revoked or overridden in mid-stream
    campaign.py  waves until enough faults were made, and rows of the results
    __main__.py  the command; `python -m benchmarks.vllm_faults --help`

docs/vllm.md says what came of it.
"""
