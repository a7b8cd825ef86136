"""The report of a real capture in a real browser without a network: its numbers are those of the tensors."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvcompress import Cake, CompressedCache
from kvcompress.analysis.capture.recorder import Recorder
from kvcompress.analysis.report.write import write_report
from kvcompress.analysis.summary.reader import Sample, read_sample
from kvcompress.bench.testbed.location import load_testbed
from kvcompress.bench.testbed.tasks import make_example
from kvcompress.engine.cache_argument import cache_argument
from tests.analysis.samples import write_sample

if importlib.util.find_spec("selenium") is None:
    pytest.skip("needs selenium", allow_module_level=True)

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.analysis.report.browsing import BROWSER, DRIVER, Page, browser, shown_number

pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="needs chromium and chromedriver on the path"),
]

NEW_TOKENS = 12
STEP = {"cache_size": 20, "expected_ratio": 0.6, "kl": 0.02, "top1": 0.95, "kv_bytes": 400, "full_bytes": 1000}
RECOMMENDATIONS = {
    "schema": "kvcompress.recommendations/1",
    "measured": True,
    "why_not_measured": None,
    "pattern": {"name": "recency", "note": "<b>one note</b>"},
    "tolerance": {"kl": 0.1, "top1": 0.9},
    "context": 40,
    "steps": 8,
    "strategies": [
        {
            "strategy": "topk",
            "policy": "snapkv",
            "ladder": [STEP | {"within_tolerance": True}, STEP | {"within_tolerance": None}],
        },
        {"strategy": "policy", "policy": "cake", "ladder": [STEP | {"cache_size": 10, "within_tolerance": True}]},
    ],
    "recommendation": {"policy": "cake", "cache_size": 10, "bytes_ratio": 0.6, "kl": 0.02, "top1": 0.95, "speed": None},
}
THREE_DIGITS = 5.1e-3  # half a unit of the third digit, relative to the least number of three digits
SCRIPT = "<script>window.injected = true</script>"


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Return a capture of the embedded model under CAKE; a script stands in its prompt."""
    model, tokenizer = load_testbed()
    ids = tokenizer(make_example("needle_8", 256).prompt + f" {SCRIPT} é", return_tensors="pt")["input_ids"]
    folder = tmp_path_factory.mktemp("capture")
    cache = CompressedCache(model, Cake(cache_size=48, window_size=8))
    with Recorder(model, folder, tokenizer=tokenizer, name="embedded"), torch.inference_mode():
        model.generate(
            ids, **cache_argument(cache), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
        )
    write_report(folder)
    return read_sample(folder)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of three made-up samples: hostile and long, without compression, of one event."""
    folder = tmp_path_factory.mktemp("made_up")
    strange = [
        SCRIPT,
        " hello",
        "\n",
        "مرحبا",
        "日本語",
        "\u202eevil",
        "",
        "&amp;",
        "</script>",
        "😀",
        "\x00",
        "\u2028",
    ]
    write_sample(folder, 0, tokens=[strange[i % len(strange)] for i in range(1510)], prompt=1500, generated=10)
    write_sample(folder, 1, compressed=False)
    write_sample(folder, 2, generated=0)
    (folder / "reports").mkdir()
    (folder / "compression_recommendations.json").write_text(json.dumps(RECOMMENDATIONS))
    analysis = {"attention": {"layers": [{"layer": 0, "entropy": 1.5}, {"layer": 1, "entropy": None}]}, "words": SCRIPT}
    (folder / "reports" / "analysis_report_sample_0.json").write_text(json.dumps(analysis))
    return write_report(folder)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def report(chromium: Page, capture: Sample) -> Iterator[Page]:
    """Return the report of the real capture; fail on a complaint or a request that leaves the file."""
    yield from opened(chromium, capture.folder / "report.html")


@pytest.fixture
def strange_report(chromium: Page, made_up: Path) -> Iterator[Page]:
    """Return the report of the made-up samples, under the same watch."""
    yield from opened(chromium, made_up)


def opened(page: Page, path: Path) -> Iterator[Page]:
    page.complaints()
    page.requests()
    page.open(path)
    yield page
    assert page.complaints() == []
    assert {url.split(":", 1)[0] for url in page.requests()} <= {"file", "data"}
    assert page.script("return window.injected") is None


def close(shown: float, wanted: float) -> bool:
    return shown == pytest.approx(wanted, rel=THREE_DIGITS, abs=1e-9)


def hover(page: Page, token: int) -> None:
    ActionChains(page.driver).move_to_element(page.find(f'.token-text [data-token="{token}"]')).perform()
    page.settle()


def gone(page: Page) -> list[int]:
    """Return the tokens that are struck out."""
    nodes = '[...document.querySelectorAll(".token-text .token.gone")]'
    tokens: list[int] = page.script(f"return {nodes}.map((node) => Number(node.dataset.token))")
    return tokens


@pytest.mark.parametrize(("layer", "head", "event"), [(0, 0, 0), (2, 3, 5), (5, 1, NEW_TOKENS - 1)])
def test_layer_head_and_step_show_the_tensors_numbers(
    report: Page, capture: Sample, layer: int, head: int, event: int
) -> None:
    report.choose("layer", layer)
    report.choose("head", head)
    report.slide(Keys.ARROW_RIGHT, event)
    for name in ("entropy", "entropy_normalised", "maximum", "sink_mass", "recent_mass", "density"):
        wanted = float(capture.tensor(f"attention.{name}")[event, layer, head])
        assert close(report.number(f'[data-metric="{name}"]'), wanted), name
    for index, percent in enumerate((50, 80, 90, 95, 99)):
        wanted = float(capture.tensor("attention.coverage")[event, layer, head, index])
        assert close(report.number(f'[data-metric="coverage_{percent}"]'), wanted)
    told = report.text("#told")
    assert f"Event {event} " in told
    held = capture.held(event)[layer].double().sum(-1).mean()
    assert close(shown_number(told.split("holds ")[1]), float(held))


@pytest.mark.parametrize(("layer", "kv_head", "event"), [(0, 0, 0), (3, 1, 4)])
def test_struck_tokens_are_those_that_the_head_has_evicted(
    report: Page, capture: Sample, layer: int, kv_head: int, event: int
) -> None:
    model = capture.summary.model
    report.choose("layer", layer)
    report.choose("head", kv_head * model.query_heads // model.kv_heads)
    report.slide(Keys.ARROW_RIGHT, event)
    seen = int(capture.tensor("event.tokens")[event])
    evicted = ~capture.held(event)[layer, kv_head, :seen]
    assert gone(report) == evicted.nonzero().flatten().tolist()
    report.find(".toolbar input[type=checkbox]").click()
    report.settle()
    assert gone(report) == []
    report.find(".toolbar input[type=checkbox]").click()


def test_hovering_tells_mass_score_and_why_a_token_was_dropped(report: Page, capture: Sample) -> None:
    layer, kv_head = 4, 1
    score = capture.tensor("compression.score")[layer, kv_head]
    stage = capture.tensor("compression.evicted_stage")[layer, kv_head]
    report.choose("layer", layer)
    report.choose("head", 2)
    for code, words in ((1, "in its layer's prefill"), (2, "by the cascade")):
        token = int((stage == code).nonzero()[0])
        lowest = score[(stage == 0) | (stage == 3) | ((stage == 2) & (code == 1))].nan_to_num(torch.inf).min()
        hover(report, token)
        assert report.number('[data-number="position"]') == token
        assert close(report.number('[data-number="mass"]'), float(capture.token_mass(0)[layer, token]))
        cells = report.texts(".head-table tr.chosen td")
        assert close(shown_number(cells[1]), float(score[token]))
        assert close(shown_number(cells[2]), float(lowest))
        assert close(shown_number(cells[3]), float(capture.tensor("kv.key_norm")[layer, kv_head, token]))
        why = report.text(".reasons")
        assert words in why
        assert "head's cut" in why
        assert close(shown_number(why.split("score ")[1]), float(score[token]))


def test_token_evicted_while_decoding_is_explained_once_it_is_gone(report: Page, capture: Sample) -> None:
    layer, kv_head = 0, 0
    stage = capture.tensor("compression.evicted_stage")[layer, kv_head]
    token = int((stage == 3).nonzero()[0])
    event = int(capture.tensor("compression.evicted_event")[layer, kv_head, token])
    report.choose("head", 0)
    report.slide(Keys.ARROW_RIGHT, event - 1)
    hover(report, token)
    assert "Held" in report.text(".reasons")
    report.slide(Keys.ARROW_RIGHT)
    hover(report, token)
    assert f"At event {event}, while decoding" in report.text(".reasons")


def test_script_of_the_prompt_is_text(report: Page) -> None:
    text = "".join(report.texts(".token-text .token")).replace("␣", "")
    assert SCRIPT.replace(" ", "") in text.replace(" ", "")
    assert len(report.all("script:not([type])")) == 1


def test_strange_texts_stay_text_and_long_ones_are_paged(strange_report: Page) -> None:
    shown = strange_report.texts(".token-text .token")
    assert len(shown) == 1200
    assert {SCRIPT, "مرحبا", "日本語", "</script>", "∅", "⏎", "◌evil", "&amp;"} <= set(shown)
    strange_report.find(".pager button:last-child").click()
    strange_report.settle()
    assert "of 1\u202f510" in strange_report.text(".pager")
    assert strange_report.find('.token-text [data-token="1200"]').is_displayed()
    assert len(strange_report.texts(".token-text .token")) == 310


def test_keys_move_through_tokens_layers_and_events(report: Page) -> None:
    report.find('.token-text [data-token="3"]').click()
    ActionChains(report.driver).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT).perform()
    report.settle()
    assert report.number('[data-number="position"]') == 5
    ActionChains(report.driver).send_keys(Keys.ARROW_DOWN).perform()
    report.settle()
    assert report.number('[data-number="position"]') > 5
    ActionChains(report.driver).send_keys("]", "]", ".", "=").perform()
    report.settle()
    assert report.script("return [State.values.layer, State.values.event, State.values.head]") == [2, 1, 0]
    ActionChains(report.driver).send_keys("[", ",", "-").perform()
    report.settle()
    assert report.script("return [State.values.layer, State.values.event, State.values.head]") == [1, 0, -1]


def test_click_on_the_grid_chooses_layer_and_head(report: Page) -> None:
    canvas = report.find("#heads canvas")
    report.script("arguments[0].focus()", canvas)
    ActionChains(report.driver).send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ENTER).perform()
    report.settle()
    assert report.find("#layer").get_attribute("value") == "1"
    assert report.find("#head").get_attribute("value") == "1"


def test_playing_goes_through_the_events_and_ends(report: Page) -> None:
    report.slide(Keys.END)
    report.slide(Keys.ARROW_LEFT, 2)
    report.find("#play").click()
    last = f"Event {NEW_TOKENS - 1} "
    deadline = "const [text, done] = arguments; const look = () => document.getElementById('told').textContent"
    report.driver.execute_async_script(f"{deadline}.includes(text) ? done() : setTimeout(look, 50); look();", last)
    report.script("clearTimeout(0)")
    assert last in report.text("#told")


def test_headings_sort_the_table(report: Page, capture: Sample) -> None:
    report.find("#tab-heads").click()
    report.settle()
    heading = report.find('#panel-heads th[data-key="entropy"]')
    wanted = capture.tensor("attention.entropy")[0].flatten().sort(descending=True).values
    for descending in (True, False):
        heading.find_element("tag name", "button").click()
        report.settle()
        rows = report.script(
            "return [...document.querySelectorAll('#panel-heads tbody tr')].map((r) => r.cells[3].textContent)"
        )
        order = wanted if descending else wanted.flip(0)
        assert len(rows) == len(order)
        for shown, value in zip(rows, order.tolist(), strict=True):
            assert close(shown_number(shown), value)
        assert heading.get_attribute("aria-sort") == ("descending" if descending else "ascending")


@pytest.mark.parametrize(("sample", "message"), [(1, "Nothing is evicted"), (2, "one event")])
def test_samples_without_compression_or_of_one_event_are_shown(strange_report: Page, sample: int, message: str) -> None:
    strange_report.choose("sample", sample)
    strange_report.wait_for_sample(sample)
    assert message in strange_report.text("#main")
    assert f"sample {sample}" in strange_report.text("#subtitle")


def test_model_without_vocabulary_shows_positions_and_steps(chromium: Page, tmp_path: Path) -> None:
    layer = torch.nn.TransformerEncoderLayer(16, 2, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    with Recorder(model, tmp_path) as recorder, torch.inference_mode():
        for step in range(3):
            recorder.set_generation_context(step=step, block=step)
            model(torch.randn(1, 12, 16))
    for page in opened(chromium, write_report(tmp_path)):
        page.slide(Keys.ARROW_RIGHT, 2)
        assert page.texts(".token-text .token") == [f"#{position}" for position in range(12)]
        assert "step 2, block 2" in page.text("#told")
        wanted = float(read_sample(tmp_path).token_mass(2)[0, 0])
        assert close(page.number('[data-number="mass"]'), wanted)


def test_recommendations_and_analysis_of_the_folder_are_told(strange_report: Page) -> None:
    verdict = strange_report.text(".verdict").replace("\u202f", "")
    assert "cake, 10 tokens per layer" in verdict
    assert "40.0% of the full cache's bytes" in verdict
    assert "<b>one note</b>" in strange_report.text("#recommendations")
    cells = strange_report.texts("#recommendations tbody tr:first-child td")
    assert cells[1] == "cake"
    assert len(strange_report.texts("#recommendations tbody tr.chosen")) == 1
    assert SCRIPT in strange_report.text("#analysis")
    for fold in ("#analysis details", "#analysis details details"):
        strange_report.find(f"{fold} summary").click()
        strange_report.settle()
    assert strange_report.texts("#analysis tbody tr:first-child td") == ["0", "1.50"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800])
def test_page_fits_its_width(report: Page, tmp_path: Path, theme: str, width: int) -> None:
    report.choose("theme", theme)
    report.screenshot(tmp_path / f"{theme}_{width}.png", width)
    assert (tmp_path / f"{theme}_{width}.png").stat().st_size > 50_000
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    report.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    report.settle()
    assert report.script("return document.documentElement.scrollWidth") <= width
    report.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
