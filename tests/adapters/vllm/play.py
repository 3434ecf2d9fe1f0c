"""A program: one engine of vLLM, with Fieldprint or without, plays prompts; `play.py JOB.json OUT.json`.

    {"model": "...", "options": {...}, "prompts": [[1, 2, ...], ...], "max_tokens": 24, "rounds": 2, "settings": {...} or null,
     "connector": ["ExactConnector", "tests.adapters.vllm.exact"], "anchors": ["main", ...]}

Anchors are the prompts', by name; without them all have the engine's default. Rounds play the same prompts again, so that the second finds the first's blocks in the prefix cache.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.adapters.vllm.world import ENVIRONMENT, vllm_engine


def main(job: dict[str, Any]) -> dict[str, Any]:
    options = dict(job["options"])
    if job["settings"] is not None:
        name, module = job["connector"]
        options |= {
            "kv_transfer_config": {
                "kv_connector": name,
                "kv_connector_module_path": module,
                "kv_role": "kv_both",
                "kv_connector_extra_config": job["settings"],
            },
            "scheduler_cls": "fieldprint.adapters.vllm.scheduler.FieldprintScheduler",
        }
    engine = vllm_engine(Path(job["model"]), **options)
    from vllm import SamplingParams

    scheduler = engine.llm_engine.engine_core.engine_core.scheduler
    preempted = []
    before = scheduler._preempt_request

    def preempt(request: Any, *args: Any, **kwargs: Any) -> None:
        preempted.append(request.request_id)
        before(request, *args, **kwargs)

    scheduler._preempt_request = preempt
    parameters = [
        SamplingParams(
            temperature=0,
            max_tokens=job["max_tokens"],
            ignore_eos=True,
            extra_args=None if name is None else {"fieldprint_anchor": name},
        )
        for name in job.get("anchors", [None] * len(job["prompts"]))
    ]
    prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
    rounds, cached = [], 0
    for _ in range(job["rounds"]):
        outputs = engine.generate(prompts, parameters, use_tqdm=False)
        rounds.append([list(output.outputs[0].token_ids) for output in outputs])
        cached = sum(output.num_cached_tokens or 0 for output in outputs)
    state = None if job["settings"] is None else scheduler.supervisor.state()
    return {"tokens": rounds, "preemptions": len(preempted), "cached": cached, "state": state}


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    asked = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(main(asked)))
