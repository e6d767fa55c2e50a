"""The plan of the web: the same from the same seed, complete, and conserved."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from infra.miniweb.illpages import ILLS
from infra.miniweb.kinds import COPIES, KINDS
from infra.miniweb.pages import MARKUPS
from infra.miniweb.pictures import Picture
from infra.miniweb.plan import plan_site
from infra.miniweb.site import MAX_ASPECT, MIN_SIDE, Page, Site
from infra.miniweb.truth import truth_table


@pytest.fixture(scope="module")
def site() -> Site:
    return plan_site(60, 0, 8970)


def page_bytes(site: Site, page: Page) -> bytes:
    body = site.answers[page.url.removeprefix("http://").replace(f":{site.port}", "", 1)].body
    assert isinstance(body, bytes)
    return body


def test_the_same_values_give_the_same_plan_and_others_another(site):
    again = plan_site(60, 0, 8970)
    assert again.answers == site.answers
    assert again.pages == site.pages
    assert again.seeds == site.seeds
    assert plan_site(60, 1, 8970).answers != site.answers


def test_more_pages_leave_the_scenes_of_the_first_as_they_are(site):
    more = plan_site(90, 0, 8970)
    facts = [[c.scene for c in page.candidates] for page in site.pages if "trusted" in page.url and page.candidates]
    assert (
        facts
        == [[c.scene for c in p.candidates] for p in more.pages if "trusted" in p.url and p.candidates][: len(facts)]
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_ills_are_there_from_sixty_pages_on(seed):
    planned = plan_site(60, seed, 8970)
    candidates = [c for page in planned.pages for c in page.candidates]
    assert {c.image_kind for c in candidates} >= {*KINDS, *COPIES, "plain"}
    assert {c.markup for c in candidates} == set(MARKUPS)
    assert {page.kind for page in planned.pages} >= {*ILLS, "content", "home", "duplicate_page", "dead_name", "outside"}
    assert {c.caption_kind for c in candidates} == {"true", "wrong_random", "wrong_attribute", "boilerplate", "missing"}
    assert {c.fate for c in candidates} == {
        "pair",
        "no_caption",
        "no_url",
        "bad_url",
        "data_url",
        "opt_out",
        "duplicate",
    }
    assert {page.charset for page in planned.pages} >= {"utf-16", "windows-1252", "shift_jis", "gb18030", "utf-8-sig"}
    assert {c.lang for c in candidates} == {"en", "de", "fr", "es", "it", "ja", "zh"}
    paired = {c.image_kind for c in candidates if c.fate == "pair"}
    assert paired >= set(KINDS)  # each ill is met by a download


def test_slow_answers_are_few():
    for pages, most in ((60, 4), (300, 4), (600, 8)):
        slow = [a for a in plan_site(pages, 0, 8970).answers.values() if a.manner in ("drip", "stall", "stall_body")]
        assert 4 <= len(slow) <= most


def test_the_trusted_host_has_true_captions_and_sound_images_alone(site):
    pages = [page for page in site.pages if page.url.startswith("http://trusted.")]
    candidates = [c for page in pages for c in page.candidates]
    assert len(candidates) >= 40
    assert {(c.fate, c.outcome, c.caption_kind, c.image_kind) for c in candidates} == {
        ("pair", "success", "true", "plain")
    }


def test_every_pair_is_distinct_and_every_copy_names_its_original(site):
    candidates = [c for page in site.pages for c in page.candidates]
    pairs = [(c.url, c.caption) for c in candidates if c.fate == "pair"]
    assert len(pairs) == len(set(pairs))
    for candidate in candidates:
        if candidate.fate == "duplicate":
            assert (candidate.url, candidate.caption) in set(pairs)
        if candidate.duplicate_of:
            assert candidate.duplicate_of in {url for url, _ in pairs}


def test_images_keep_far_from_the_size_limits_unless_they_are_meant_to_fail(site):
    for candidate in (c for page in site.pages for c in page.candidates if c.picture):
        assert isinstance(candidate.picture, Picture)
        width, height = candidate.picture.shown_size()
        short, long = sorted((width, height))
        assert (short < MIN_SIDE) == (
            candidate.outcome == "too_small" or candidate.image_kind in ("icon", "tracking_pixel")
        )
        assert (long / short > MAX_ASPECT) == (candidate.image_kind in ("banner", "skyscraper"))


class _Imgs(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.found.append(dict(attrs))

    def handle_data(self, data):
        self.text += data


def test_pages_hold_their_imgs_and_captions_in_their_own_charset(site):
    for page in site.pages:
        if page.kind not in ("content", "duplicate_page"):
            continue
        charset = "windows-1252" if page.charset == "iso-8859-1" else page.charset
        parser = _Imgs()
        parser.feed(page_bytes(site, page).decode(charset))
        assert len(parser.found) == len(page.candidates)
        for img, candidate in zip(parser.found, page.candidates, strict=True):
            if candidate.caption_from in ("alt", "title"):
                assert img[candidate.caption_from] == candidate.caption
            elif candidate.caption is not None:
                assert candidate.caption in parser.text


def test_the_truth_table_conserves_pages_and_imgs(site):
    rows = truth_table(site).to_pylist()
    kinds = Counter(row["row"] for row in rows)
    assert kinds["page"] == len(site.pages) == len({row["page_url"] for row in rows if row["row"] == "page"})
    candidates = [row for row in rows if row["row"] == "candidate"]
    assert kinds["candidate"] == len(candidates) == sum(len(page.candidates) for page in site.pages)
    fates = Counter(row["fate"] for row in candidates)
    outcomes = Counter(row["outcome"] for row in candidates if row["fate"] == "pair")
    assert fates["pair"] == sum(outcomes.values())
    assert None not in outcomes
    assert all(row["outcome"] is None for row in candidates if row["fate"] != "pair")
    assert all((row["caption"] is None) == (row["caption_kind"] == "missing") for row in candidates)
    assert all((row["wrong_attribute"] is not None) == (row["caption_kind"] == "wrong_attribute") for row in candidates)


def test_every_page_can_be_reached_from_the_seeds_or_a_sitemap(site):
    text = b"".join(page_bytes(site, page) for page in site.pages if page.kind in ("home", "list"))
    for page in site.pages:
        linked = page.url.encode() + b'"' in text
        if page.via == "link" and page.kind != "private":
            assert linked, page.url
        elif page.via == "sitemap":
            assert page.kind in ("content", "sitemap")
            assert not linked
        elif page.via == "seed":
            assert page.url in site.seeds


def test_an_answer_is_never_placed_twice():
    fresh = Site(1)
    answer = next(iter(plan_site(1, 0, 1).answers.values()))
    fresh.serve("garden", "/x", replace(answer))
    with pytest.raises(AssertionError):
        fresh.serve("garden", "/x", answer)
