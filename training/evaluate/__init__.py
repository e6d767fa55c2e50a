"""Evaluation of a model on images that it was not trained on. TASKS names the ways; from outside, "my.module:task".

samples.py → embed.py → zero_shot.py | retrieval.py, matching.py | caption.py | generation.py, distances.py
→ confidence.py → run.py, sheets
"""

from __future__ import annotations

from infra.registry import Registry

TASKS = Registry(
    "task",
    {
        "zero_shot": "training.evaluate.tasks:zero_shot",
        "retrieval": "training.evaluate.tasks:retrieval",
        "caption": "training.evaluate.caption:caption",
        "generation": "training.evaluate.generation:generation",
    },
)
WRITES = ("caption",)  # tasks that ask a captioner
DRAWS = ("generation",)  # tasks that ask a painter and who judges its pictures; the others ask an encoder
