"""torchvision beside a torch without CUDA: its compiled part cannot load, so its import needs two schemas declared.

open_clip, timm and transformers import torchvision. Call `make_importable()` before them.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache  # which also keeps the library: its schemas go when it does
def make_importable() -> object | None:
    """Declare what torchvision's import looks up, where its compiled part does not load; otherwise do nothing.

    What is declared has no kernel: `torchvision.ops.nms` and decoding by torchvision stay unusable.
    Returns the library that holds the schemas, or None where none is needed.
    """
    found = find_spec("torchvision")
    if found is None or found.origin is None:
        return None
    import torch

    if hasattr(torch.ops.torchvision, "nms") or _compiled_part_loads(Path(found.origin).parent):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


def _compiled_part_loads(folder: Path) -> bool:
    """Load it as torchvision itself will."""
    import torch

    try:
        for path in folder.glob("_C.*"):
            torch.ops.load_library(path)
            return True
    except OSError:  # it links CUDA libraries that are not here
        pass
    return False
