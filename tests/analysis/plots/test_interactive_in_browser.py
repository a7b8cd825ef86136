"""The interactive page in a real browser without a network: menus and slider choose layer, head and step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvcompress.analysis.plots.attention_map import attention_map
from kvcompress.analysis.plots.interactive import interactive_attention
from kvcompress.analysis.plots.saving import save_html
from kvcompress.analysis.summary.reader import Sample
from tests.analysis.plots.conftest import GENERATED
from tests.analysis.plots.test_attention_views import assert_shown

pytest.importorskip("selenium", reason="needs selenium")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.ui import WebDriverWait

from tests.analysis.report.browsing import SECONDS, Page, browser

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

SHOWN = """
const trace = document.getElementById("attention")._fullData.find(
    (trace) => trace.visible === true && trace.opacity > 0 && trace.hoverinfo !== "skip");
return {name: trace.name, values: Array.from(trace.customdata, (row) => Array.from(row)),
        blank: Array.from(trace.z, (row) => Array.from(row, Number.isNaN))};
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def load(page: Page, path: Path) -> None:
    """Open a page of plotly and wait until it is drawn."""
    page.complaints()
    page.requests()  # of the browser's own first page
    page.driver.get(path.as_uri())
    drawn = "return document.querySelector('#attention .main-svg') !== null"
    WebDriverWait(page.driver, SECONDS).until(lambda driver: driver.execute_script(drawn))
    page.settle()


def pick(page: Page, menu: int, option: int) -> None:
    """Choose from a menu as a reader does."""
    page.all(".updatemenu-header")[menu].click()
    page.settle()
    page.all(".updatemenu-dropdown-button")[option].click()
    page.settle()


def shown(page: Page) -> dict[str, Any]:
    page.settle()
    found: dict[str, Any] = page.script(SHOWN)
    found["values"] = np.array(found["values"], dtype=np.float64)  # null becomes NaN
    return found


def test_menus_and_slider(page: Page, compressed: Sample, tmp_path: Path) -> None:
    load(page, save_html(interactive_attention(compressed, 0), tmp_path / "page.html"))
    assert shown(page)["name"] == "layer 0, mean over heads"
    pick(page, 1, 4)
    pick(page, 0, 2)
    found = shown(page)
    assert found["name"] == "layer 2, head 3"
    wanted = attention_map(compressed, 2, 0, 3).values
    np.testing.assert_allclose(found["values"], wanted, rtol=1e-6)
    assert_shown(np.where(found["blank"], np.nan, found["values"]), wanted, largest=1.0)
    rail = page.find(".slider-rail-touch-rect")
    ActionChains(page.driver).move_to_element_with_offset(rail, rail.rect["width"] / 2 - 3, 0).click().perform()
    WebDriverWait(page.driver, SECONDS).until(lambda _: len(shown(page)["values"]) == 1)
    found = shown(page)
    assert found["name"] == "layer 2, head 3"  # the step changed and nothing else
    np.testing.assert_allclose(found["values"], attention_map(compressed, 2, GENERATED, 3).values, rtol=1e-6)
    pick(page, 1, 0)
    np.testing.assert_allclose(shown(page)["values"], attention_map(compressed, 2, GENERATED).values, rtol=1e-6)
    assert page.complaints() == []
    assert {address.split(":", 1)[0] for address in page.requests()} <= {"file", "data", "blob"}
