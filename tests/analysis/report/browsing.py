"""A headless Chromium without a network, driven as a reader would use it."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SECONDS = 60  # that a page may take on a busy machine
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-prefers-reduced-motion",  # no smooth scrolling: a click would miss what still moves
    "--force-device-scale-factor=1",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


class Page:
    """An open report.

    Args:
        driver: of the browser.
    """

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, path: Path, sample: int = 0) -> None:
        """Open a report and wait until its first sample is drawn."""
        self.driver.get(path.as_uri())
        self.wait_for_sample(sample)

    def wait_for_sample(self, sample: int) -> None:
        """Wait until a sample is drawn."""
        ready = "return document.documentElement.dataset.ready"
        WebDriverWait(self.driver, SECONDS).until(lambda driver: driver.execute_script(ready) == str(sample))
        self.settle()

    def settle(self) -> None:
        """Wait until what has been changed is drawn."""
        script = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()));"
        self.driver.execute_async_script(script)

    def find(self, selector: str) -> WebElement:
        """Return the first element."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        """Return every element."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """Return the text of an element, seen or not."""
        return str(self.find(selector).get_attribute("textContent"))

    def texts(self, selector: str) -> list[str]:
        """Return the texts of all elements, in one call."""
        script = "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)"
        texts: list[str] = self.driver.execute_script(script, selector)
        return texts

    def choose(self, identifier: str, value: object) -> None:
        """Choose an option of a select."""
        Select(self.find(f"#{identifier}")).select_by_value(str(value))
        self.settle()

    def slide(self, key: str, times: int = 1) -> None:
        """Press a key on the slider of events."""
        self.find("#event").send_keys(key * times)
        self.settle()

    def number(self, selector: str) -> float:
        """Return the number that an element shows."""
        return shown_number(self.text(selector))

    def script(self, script: str, *arguments: object) -> Any:
        """Run a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def screenshot(self, path: Path, width: int = 1280) -> None:
        """Take a picture of the whole page at a width."""
        height = min(9000, int(self.script("return document.documentElement.scrollHeight")))
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_async_script("setTimeout(arguments[0], 400)")  # the page draws anew after a short while
        picture = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
        path.write_bytes(base64.b64decode(picture["data"]))
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def complaints(self) -> list[str]:
        """Return what the browser's console has said since the last call."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses that the page has asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [message for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [message["params"]["request"]["url"] for message in sent]


def shown_number(text: str) -> float:
    """Return the number at the beginning of a text: three digits, a narrow space between thousands, a real minus."""
    plain = text.replace("\u202f", "").replace("−", "-").replace("≈", "").strip()
    found = re.match(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", plain)
    if found is None:
        raise ValueError(f"no number in {text!r}")
    return float(found[0])


@contextmanager
def browser(profile: Path, width: int = 1280) -> Iterator[Page]:
    """Start a browser with an empty profile and no network; end it.

    Args:
        profile: an empty folder.
        width: of the window.

    Yields:
        A page that is not open yet.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        driver.set_script_timeout(SECONDS)
        driver.execute_cdp_cmd("Network.enable", {})
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        yield Page(driver)
    finally:
        driver.quit()
