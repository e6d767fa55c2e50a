"""The models: one file a paper. MODELS names them; from outside, "my_package.my_module:SPEC"."""

from __future__ import annotations

from infra.registry import Registry

MODELS = Registry(
    "model",
    {
        "clip": "training.models.clip_spec:SPEC",
        "blip": "training.models.blip_spec:SPEC",
        "blip.caption": "training.models.blip_spec:CAPTION",
        "blip.retrieval": "training.models.blip_spec:RETRIEVAL",
        "dalle.vae": "training.models.dalle_vae_spec:SPEC",
        "dalle": "training.models.dalle_spec:SPEC",
    },
)
