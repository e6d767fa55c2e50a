"""Prompts as published, by reference to open_clip: the 80 templates and the 1,000 names of ImageNet's classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from infra.torchvision_here import make_importable


def openai_templates() -> Sequence[str]:
    """80 sentences with {} where the class's name goes. Source: openai/CLIP, Prompt_Engineering_for_ImageNet."""
    make_importable()
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]


def imagenet_classes() -> Sequence[str]:
    """1,000 names in the order of ImageNet's labels; "missile" and "sunglasses" stand there twice."""
    make_importable()
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES)


PROMPTS: Mapping[str, Callable[[], Sequence[str]]] = {"openai": openai_templates, "imagenet": imagenet_classes}
