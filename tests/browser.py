"""A browser's tab, and what a person does in it."""

import json

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

SECONDS = 30  # after which a test gives up
PHONE = 320  # CSS pixels: the narrowest phones

# Not window.innerWidth: a phone's browser zooms out until everything fits.
TOO_WIDE = """
    const [width] = arguments, beyond = (element) => element.getBoundingClientRect().right > width + 0.5;
    return [...document.querySelectorAll("body *")]
        .filter((element) => beyond(element) && !element.closest(".unseen, .scroll, .json"))
        .map((element) => element.outerHTML.slice(0, 100))
        .concat(document.documentElement.scrollWidth > width ? ["the page"] : []);
"""


class Tab:
    """A browser's tab, and what a person does in it."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, url, width=1000, **media):
        """Args: media, by name, e.g. prefers_color_scheme="dark"."""
        self.url = url
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == PHONE},
        )
        self.driver.get(url)
        return self

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition):
        waiting = WebDriverWait(self.driver, SECONDS, 0.05, ignored_exceptions=(StaleElementReferenceException,))
        return waiting.until(lambda _: condition())

    def text(self, selector):
        return self.one(selector).text

    def texts(self, selector):
        return [found.text for found in self.all(selector)]

    def focused(self):
        return self.driver.switch_to.active_element

    def press(self, *keys):
        for key in keys:
            webdriver.ActionChains(self.driver).send_keys(key).perform()

    def too_wide(self):
        """What reaches beyond the right edge."""
        return self.run(TOO_WIDE, PHONE)

    def complaints(self):
        """What the console says, but for answers of servers."""
        return [entry for entry in self.driver.get_log("browser") if entry["source"] != "network"]

    def requests(self):
        """The addresses that were asked for."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
