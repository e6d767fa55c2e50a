"""Boilerplate: captions that a camera, a shop or a page's template wrote, and that say nothing of the picture.

A caption is boilerplate only as a whole: "IMG_1234.jpg" is, "a heron, IMG_1234.jpg" is not. Kinds are known by their
form (names of files, addresses, prices, credits, calls to click); the rest are the phrases of stock_phrases.txt.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from infra.storage import digest_bytes

MAX_RUNS = 10
MAX_CHARACTERS = 120
MAX_CREDIT_RUNS = 7  # a longer one goes on to say what is to be seen

_ENDING = r"\.(jpe?g|jfif|png|gif|webp|avif|bmp|tiff?|svg|hei[cf]|ico|psd|raw|cr2|nef|dng|mp4|mov|pdf)"
# What cameras, phones and programs begin a name with; a number follows.
_CAMERA = (
    r"img|img_e|imgp|imag|images?|dsc[ndf]?|sdc|cimg|hpim|pict(ure)?|pic|photo|fotos?|bild|scan|kif|m[vo]v|mv[ci]|vid|"
    r"sam|gopr|gp|dji|pxl|lrm|wp|p|snapchat|screen[ _-]?shot|screencap|bildschirmfoto|captura\sde\spantalla|"
    r"capture\sd.écran|capture|snapshot|whatsapp\simage|fb_img|unnamed|untitled|unbenannt|sans\stitre|sin\stítulo|slide|"
    r"folie|page|fig(ure)?"
)
_FILE = re.compile(
    rf"""(file:|image:|datei:|fichier:|archivo:)?
    (?: \S+{_ENDING}(\W*\d{{1,3}}\)?)?                          # 2019-red-rose.jpg, photo.png (1)
      | _?({_CAMERA})[\W_]*\d[\d\W_]*                           # DSC00042, IMG-20200101-WA0001, P1010012
        ((at|um|à|am|pm|hdr|edit(ed)?|copy|kopie|wa\d+|[a-z])[\d\W_]*(am|pm)?)?({_ENDING})?
      | [0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}       # a UUID
      | (?=(?:[a-z_-]*\d){{3}})[0-9a-f_-]{{12,}}                # a hash: 64834657ee604b8797bf
      | (https?:|www\.)\S+
      | ([a-z0-9-]+\.)+(com|net|org|info|biz|eu|de|fr|es|it|nl|pl|ru|jp|cn|br|uk)
    )""",
    re.VERBOSE,
)
_CURRENCY = r"(usd?|eur|euros?|gbp|cad|aud|chf|jpy|cny|rmb|inr|rs|kr|sek|nok|dkk|pln|zł|kč|руб|грн|tl|円|元|원)"
_PRICE = re.compile(rf"\W*((from|only|now|ab|nur|dès|desde|da|od|от)\b)?\W*{_CURRENCY}?\W*\d[\d\W]*{_CURRENCY}?\W*")
# Before the case is folded: "Photo by Ann Lee" is a credit, "photo by the sea" is not.
_PICTURE = r"(photo(s|graph|graphs|graphy)?|images?|pictures?|illustration|foto(s|grafie)?|bild|imagen)"
_CREDIT = re.compile(
    rf"(?i:({_PICTURE}\W*)?(©|\(c\)\s|copyright\b|cr[ée]dit(s|o)?\W+(by|to|photo|images?|foto)\b|courtesy\b))"
    rf"|(?i:{_PICTURE}\W*(cr[ée]dit(s|o)?|source|courtesy)\b|bild(nachweis|quelle|rechte)\b)"
    rf"|(?i:{_PICTURE}\s+by)\s+[A-Z@]"
)
_CLICK_WORDS = """
    click tap clic clicca cliccare cliquez cliquer clique pulse pinche klicken anklicken klick klicka klik klikk klikkaa
    kliknij kliknutím klikněte kattintson нажмите кликните щелкните натисніть tıkla tıklayın انقر اضغط
"""
_CLICK = frozenset(_CLICK_WORDS.split())
_TO_SEE = re.compile(
    r"enlarg|\blarge|bigger|zoom|full.?(size|screen)|expand|\bview|\bopen|\bplay\b|\bsee\b|\bhere\b|details|\bmore\b|"
    r"magnif|vergröss|vergrot|gröss|grot|agrandi|ampli|agrand|aument|ingrand|powięk|увелич|збільш|büyü|förstor|forstør|"
    r"større|större|suure|zvět|nagyít|تكبير|\bhier\b|\bici\b|\baquí\b|\bqui\b|\baqui\b"
)
_RUN = re.compile(r"[^\W_]+")
_DIGIT = re.compile(r"\d")
_LEGAL_SIGNS = "©®™°"


def runs_of(text: str) -> list[str]:
    """A text's runs of letters and digits, of any script."""
    return _RUN.findall(text)


def is_boilerplate(text: str, runs: Sequence[str]) -> bool:
    """Is the whole text a file name, address, price, credit, call to click or stock phrase? Empty text is not.

    runs: what `runs_of` says of it.
    """
    if len(runs) > MAX_RUNS or len(text) > MAX_CHARACTERS:
        return False
    text = text.strip()
    plain = _plain(runs)
    if not plain:  # digits and signs; but a pictograph says what is to be seen
        return bool(text) and not any(unicodedata.category(sign) == "So" for sign in text if sign not in _LEGAL_SIGNS)
    if plain in _STOCK or _is_call_to_click(plain) or (len(runs) <= MAX_CREDIT_RUNS and _CREDIT.match(text)):
        return True
    # Most captions have neither a full stop nor a digit, and need not be looked at any closer.
    if "." not in text and _DIGIT.search(text) is None:
        return False
    folded = text.casefold()
    return bool(_FILE.fullmatch(folded) or _PRICE.fullmatch(folded))


def _plain(runs: Sequence[str]) -> str:
    """Words without case, signs and numbers: "[Image 3]" is "image"."""
    return " ".join([run for run in runs if not run.isdigit()]).casefold()


def _is_call_to_click(plain: str) -> bool:
    return not _CLICK.isdisjoint(plain.split()) and _TO_SEE.search(plain) is not None


def _phrases(text: str) -> frozenset[str]:
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return frozenset(_plain(runs_of(phrase)) for line in lines for phrase in line.split(";")) - {""}


_STOCK_BYTES = Path(__file__).with_name("stock_phrases.txt").read_bytes()
_STOCK = _phrases(_STOCK_BYTES.decode("utf-8"))
STOCK_DIGEST = digest_bytes(_STOCK_BYTES)
