"""Reasons: the stable words for why a row fell, each with a sentence for people. One table; `explain()` reads it."""

from __future__ import annotations

import re
from http import HTTPStatus

REASONS: dict[str, str] = {
    # The way to the server.
    "dns": "The host name could not be resolved: it is gone, misspelt, or its name server did not answer.",
    "connect": "The server refused the connection or could not be reached.",
    "tls": "The encrypted connection failed: a bad certificate or no common protocol.",
    "timeout": "The answer took longer than the deadline of the request.",
    "reset": "The server broke the connection off before the answer was complete.",
    "proxy": "The proxy on the way to the server failed.",
    "rate_limited": "The server asked to wait longer than we are willing to.",
    "too_many_redirects": "More redirects than allowed, or a circle of them.",
    "bad_redirect": "The server redirected to something that is not an address.",
    "blocked_address": "The name leads to a private, loopback or link-local address, which is never fetched.",
    "blocked_scheme": "The address is neither http nor https.",
    "blocked_port": "The address names a port that is never asked.",
    # The answer.
    "bad_response": "The server's answer is not valid HTTP.",
    "headers_too_large": "The answer's headers exceed the cap on their size.",
    "too_large": "The body exceeds the cap on bytes, before or after decompression.",
    "wrong_length": "Fewer or more bytes came than the server announced.",
    "bad_encoding": "The body's compression is unknown or broken.",
    "empty": "The answer has no body.",
    "failed_to_download": "The download failed; the table holds no finer reason.",
    # The image.
    "not_image": "What came is not an image, mostly a web page in its place.",
    "unsupported_format": "An image, but of a format that is not decoded here (SVG, for example).",
    "decode_error": "The image is damaged: its bytes could not be decoded.",
    "too_many_pixels": "The image claims more pixels than the cap; it was not decoded.",
    "too_small": "The image is smaller than the minimum size.",
    "too_large_area": "The image has more area than the maximum.",
    "too_elongated": "The image's sides are further apart in length than the maximum aspect ratio.",
    "hash_mismatch": "The bytes are not those that the table promised: the image has changed since.",
    "no_archive": "The archive that holds the image is not where the table says.",
    "no_offset": "The image shares one compressed piece of the archive with other records, so it cannot be read alone.",
    "engine_error": "The img2dataset engine failed in words that have no reason here; its message says more.",
    "bad_boxes": "The boxes to be blurred are missing or malformed, so the image was not stored.",
    "encode_error": "The resized image could not be written in the chosen format.",
    "failed_to_resize": "Decoding or resizing failed; the table holds no finer reason.",
    # Consent.
    "denied": "On the deny list: asked for removal.",
    "denied_url": "The url is on the deny list: asked for removal.",
    "denied_domain": "The domain is on the deny list: asked for removal.",
    "denied_sha256": "The image is on the deny list by its SHA-256: asked for removal.",
    "denied_phash": "The image looks like one on the deny list (perceptual hash).",
    "denied_uid": "The row is on the deny list by its uid: asked for removal.",
    "removed": "Taken out on request; only its uid is kept, so that it does not come back.",
    "opt_out": "The server or page opts out of such use (noai, noimageai, noindex, noimageindex or a TDM reservation).",
    "robots": "The site's robots.txt does not allow our agent to fetch it.",
    "robots_unreachable": "The site's robots.txt could not be read, so nothing there was fetched.",
    # Pages.
    "not_html": "The page is not HTML.",
    "not_response": "A record of the archive that holds no answer of a server (a request or metadata).",
    "redirect": "The page only leads to another, which is asked for in its own right.",
    "sitemap": "A sitemap: its links were taken, and it holds no pairs.",
    "image": "A record that holds an image: kept for the pairs that name it.",
    "later": "Put off to a later round of the crawl: its host's share of this round was spent.",
    "repeated_link": "A link to a page that was already found.",
    "over_budget": "The budget of pages was spent before its turn came.",
    "too_deep": "Further from the seeds than the allowed depth.",
    "out_of_scope": "Outside the hosts or paths that the crawl was given.",
    "duplicate_page": "The same page was already seen in this crawl.",
    "parse_error": "The page could not be parsed.",
    "revisit": "The archive only notes that the page had not changed; the page itself lies elsewhere.",
    "clipped": "The archive holds the record cut short.",
    "bad_record": "The archive's record is damaged.",
    # Pairs and rows.
    "no_caption": "The image has no text beside it: no alt, figcaption or title.",
    "empty_caption": "The text beside the image is empty.",
    "no_url": "The row or tag names no image.",
    "no_src": "The tag names no image.",
    "bad_url": "The address is not a valid url.",
    "data_url": "The image is written into the page itself, not behind an address.",
    "duplicate_pair": "The same image address with the same caption was already found.",
    "duplicate_row": "A row with the same uid came earlier in the tables; one row, one fate.",
    "bad_row": "The table's row could not be read.",
    # Captions that a model writes.
    "unreadable_image": "No caption was written: the stored image could not be read.",
    "no_tokens": "No image tokens were made: there is no image, or it could not be read.",
    "no_words": "What the model wrote has no words.",
    "does_not_match": "The model that compares an image and a text says that they do not belong together (CapFilt).",
    # Resharding.
    "missing_image": "The selection keeps the row, but the source's shard holds no image of it.",
    "further_caption": "Kept beside another caption of the same image, which is stored once; it lies in captions/.",
    # The report's own word for rows between two steps.
    "waiting": "Not yet begun, or in a job that was given up; a rerun goes on with it.",
}

_STATUS = re.compile(r"^http_(\d{3}|[1-5]xx)$")
_CLASSES = {
    "1": "an interim answer",
    "2": "success, but not with a body we can use",
    "3": "a redirect that leads nowhere",
    "4": "a refusal: gone, forbidden or malformed",
    "5": "an error of its own",
}


def explain(word: str) -> str:
    """One sentence for a reason word; knows the `http_404` and `http_5xx` families. Never raises."""
    if sentence := REASONS.get(word):
        return sentence
    if match := _STATUS.match(word):
        return _explain_status(match[1])
    return "A reason of another version or tool; no sentence is kept for it here."


def _explain_status(code: str) -> str:
    meaning = _CLASSES.get(code[0])
    try:
        return f"The server answered {code}, {HTTPStatus(int(code)).phrase}."
    except ValueError:
        return (
            f"The server answered {code}: {meaning}." if meaning else f"The server answered {code}, no status of HTTP."
        )
