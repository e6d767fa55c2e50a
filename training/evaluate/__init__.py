"""Evaluation of a model on images that it was not trained on. TASKS names the ways; from outside, "my.module:task".

samples.py → embed.py → zero_shot.py | retrieval.py, matching.py | caption.py → confidence.py → run.py, sheets
"""

from __future__ import annotations

from infra.registry import Registry

TASKS = Registry(
    "task",
    {
        "zero_shot": "training.evaluate.tasks:zero_shot",
        "retrieval": "training.evaluate.tasks:retrieval",
        "caption": "training.evaluate.caption:caption",
    },
)
WRITES = ("caption",)  # tasks that ask a captioner; the others ask an encoder
