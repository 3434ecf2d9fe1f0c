"""The fault campaign: damage of every kind between the engine's events, and what has to come of it.

    plan.py      a seed becomes a plan: when which faults strike
    world.py     real weights, an engine, an anchor, requests; and what comes out undisturbed
    log.py       the faulty log of the tests, which says what it was told to append
    inject.py    the damage itself, and whether it is still there
    observe.py   the reader of the events: everything final must be what came undisturbed
    run.py       one run: strike, follow, judge
    campaign.py  many runs: records, counts, what is a miss
    __main__.py  the command; `python -m benchmarks.faults --help`

docs/faults.md says what counts as a fault, what is left out and why.
"""
