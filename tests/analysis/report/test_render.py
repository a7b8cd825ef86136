"""The page: one file, no way out of it, and text that stays text."""

import base64
import hashlib
import json
import re

import pytest

from kvcompress.analysis.report.render import PAGE_FOLDER, SCRIPTS, STYLES, as_json, render

NASTY = "</script><script>alert(1)</script><!-- & \u2028 \u2029 \ud800 {{script}}"


@pytest.fixture(scope="module")
def page() -> str:
    sample = {"index": 0, "tokens": [NASTY], "arrays": {}}
    return render([sample], {"note": NASTY}, title=f"<b>{NASTY[:-15]}")


def test_text_cannot_leave_its_block(page: str) -> None:
    scripts = re.findall(r"<script[^>]*>", page)
    assert scripts == [
        '<script type="application/json" id="documents">',
        '<script type="application/json" id="sample-0">',
        "<script>",
    ]
    block = re.search(r'id="sample-0">(.*?)</script>', page, re.DOTALL)
    assert block is not None
    assert json.loads(block[1])["tokens"] == [NASTY]
    assert "<!--" not in block[1]


def test_title_is_escaped(page: str) -> None:
    assert "<title>&lt;b&gt;" in page


def test_policy_allows_only_the_pages_own_script_and_style(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    rules = policy[1].replace("&#x27;", "'")
    assert "default-src 'none'" in rules
    assert "unsafe" not in rules
    assert "http" not in rules
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert content is not None
        digest = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in rules


def test_page_asks_for_nothing_outside(page: str) -> None:
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']*["']|@import|url\(""", page)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_make_no_markup_of_text_and_ask_no_network(name: str) -> None:
    source = (PAGE_FOLDER / name).read_text(encoding="utf-8")
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
    network = r"fetch\(|XMLHttpRequest|WebSocket|EventSource|sendBeacon|\bimport\("
    assert not re.findall(f"{markup}|{network}", source)
    assert "</script" not in source


def test_every_file_of_the_page_is_used() -> None:
    there = {path.name for path in PAGE_FOLDER.iterdir()}
    assert there == {*SCRIPTS, *STYLES, "template.html"}


@pytest.mark.parametrize("text", ["<", ">", "&", "\u2028", "\u2029", "\ud83d", "é", '"', "\\"])
def test_json_is_ascii_without_markup_and_comes_back(text: str) -> None:
    written = as_json({"text": text})
    assert written.isascii()
    assert not set(written) & set("<>&")
    assert json.loads(written) == {"text": text}


def test_numbers_that_json_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        as_json(float("nan"))
