"""Filters: scorers that write columns, rules that judge them. SCORERS and RULES are the tables of both."""

from infra.registry import Registry

SCORERS = Registry(
    "scorer",
    {
        "text": "filters.text:Text",
        "language": "filters.language:Language",
        "image": "filters.image:Image",
        "duplicates": "filters.duplicates:Duplicates",
        "recurrence": "filters.recurrence:Recurrence",
        "clip_score": "filters.clip_score:ClipScore",
        "caption": "filters.capfilt:Captions",
        "itm": "filters.capfilt:Itm",
    },
)

RULES = Registry(
    "rule",
    {
        "where": "filters.rules:Where",
        "top": "filters.rules:Top",
        "unique": "filters.rules:Unique",
        "best_caption": "filters.rules:BestCaption",
        "not_in": "filters.rules:NotIn",
        "in": "filters.rules:In",
    },
)
