"""The page of a look at the data, in headless Chromium."""

import shutil

import pytest
from selenium import webdriver

from pipeline.audit import audit
from tests.browser import PHONE, Tab
from tests.defects import plant
from tests.networks import QUIET
from tests.test_audit import config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    plant(root, each=30)
    return audit(config(root, tmp_path_factory.mktemp("runs")), QUIET).page.as_uri()


@pytest.fixture(scope="module")
def tab():
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("there is no chromium with chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield Tab(browser)
    browser.quit()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, PHONE])
def test_it_opens_offline_without_a_complaint(tab, page, width, scheme):
    tab.open(page, width=width, prefers_color_scheme=scheme)
    assert tab.complaints() == []
    assert [url for url in tab.requests() if not url.startswith(("file:", "data:"))] == []


def test_nothing_is_wider_than_a_phone(tab, page):
    tab.open(page, width=PHONE)
    assert tab.run("return document.documentElement.scrollWidth") <= PHONE


def test_each_picture_and_chart_is_told_in_words(tab, page):
    tab.open(page)
    assert tab.run("return [...document.images].filter(image => image.alt.trim().length < 5).length") == 0
    assert tab.run("return document.images.length") > 50
    charts = tab.all("svg.chart")
    assert len(charts) == 5
    assert all(len(chart.get_attribute("aria-label")) > 20 for chart in charts)


def test_tables_sort_by_their_headings(tab, page):
    tab.open(page)
    heading = tab.one("#classes ~ .scroll table thead th:last-child button")
    column = (
        "return [...document.querySelectorAll('#classes ~ .scroll table tbody td:last-child')].map(c => +c.innerText)"
    )
    heading.click()
    counts = tab.run(column)[:3]
    assert counts == sorted(counts)
    heading.click()
    assert tab.run(column)[:3] == counts[::-1]
    assert tab.run("return document.querySelectorAll('table:not(.sortable)').length") == 0


def test_links_lead_to_the_findings(tab, page):
    tab.open(page)
    targets = tab.run(
        "return [...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href').slice(1))"
    )
    assert len(targets) >= 15
    assert tab.run("return arguments[0].filter(id => !document.getElementById(id))", targets) == []
