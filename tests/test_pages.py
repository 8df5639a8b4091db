"""What every page keeps to, in headless Chromium: a row a page."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import lr_range, report, screen, sweep_page
from pipeline.audit import audit
from tests import comparing, deciding, defects, ranging, screening, sweeping
from tests.browser import PHONE, Tab
from tests.networks import QUIET
from tests.reports import config, ended, seen, small_network

pytestmark = pytest.mark.slow

LARGEST = 15_000_000  # bytes


def report_page(folder):
    return report.write(ended(folder, n=1000, skill=1.0), small_network(), seen)[-1]


def data_page(folder):
    defects.plant(folder / "data", each=30)
    return audit(defects.config(folder / "data", folder / "runs"), QUIET).page


def compare_page(folder):
    data = comparing.pictures(folder / "data", 200)
    runs = [comparing.a_run(folder / "ants" / f"{i}", data, wrong=range(i, i + 30)) for i in range(3)]
    return comparing.written(folder, *runs)


def gate_page(folder):
    decision, flips = deciding.decided(["ants", "bees", "wasps"])
    (folder / "gate").mkdir()
    deciding.written(folder / "gate", decision, flips)
    return folder / "gate" / "gate.html"


def sweep_page_(folder):
    rows = [sweeping.training(number, 0.5 - 0.05 * number, 0.8) for number in range(1, 5)]
    failed = sweeping.training(5, None, None, status="failed", reason="diverged")
    seeds = sweeping.seeds([0.6, 0.4, 0.52], [0.7, 0.9, 0.8], "seed of base", 0)
    found = sweeping.outcome(folder, sweeping.base(), *seeds, *rows, failed)
    sweep_page.write(folder / "sweep.html", found, "graft run winner.yaml", {"Command": "graft sweep"})
    return folder / "sweep.html"


def lr_page(folder):
    tests = [ranging.of_curve(ranging.valley()), ranging.of_curve(np.ones(lr_range.STEPS))]
    lr_range.write_page(folder / "lr.html", config(), tests)
    return folder / "lr.html"


def screen_page(folder):
    rows = [screening.row(0.5, 0.6), screening.row(0.8, 0.7, name="alexnet"), screening.row(kernels="imagenet")]
    screen.write_page(folder / "screen.html", config(), rows)
    return folder / "screen.html"


PAGES: dict[str, Callable[[Path], Path]] = {
    "report": report_page,
    "data": data_page,
    "compare": compare_page,
    "gate": gate_page,
    "sweep": sweep_page_,
    "lr": lr_page,
    "screen": screen_page,
}


@pytest.fixture(scope="module", params=PAGES)
def page(request, tmp_path_factory):
    """A page's file."""
    return PAGES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture
def tab(driver):
    """Afterwards nothing may have been complained about, nor asked of any server."""
    tab = Tab(driver)
    tab.requests()
    yield tab
    assert tab.complaints() == []
    assert [url for url in tab.requests() if not url.startswith(("file:", "data:", "about:", "blob:"))] == []
    driver.get("about:blank")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, 1400])
def test_it_opens_offline_and_fits(tab, page, width, scheme):
    tab.open(page.as_uri(), width, prefers_color_scheme=scheme)
    assert page.stat().st_size < LARGEST
    assert tab.one("h1").text
    assert tab.run("return document.documentElement.scrollWidth") <= width
    background = tab.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 24, 30)") == (scheme == "dark")
    # Text is told from what is behind it: charts too follow the scheme.
    for selector in ("h1", "figcaption", "svg.chart text"):
        for color in tab.run(
            "return [...document.querySelectorAll(arguments[0])].slice(0, 40).map(e => {"
            " const style = getComputedStyle(e); return style[e.ownerSVGElement ? 'fill' : 'color']; })",
            selector,
        ):
            level = sum(map(float, color[color.index("(") + 1 : -1].split(",")[:3])) / 3
            assert (level > 130) == (scheme == "dark"), (selector, color)


@pytest.mark.parametrize(("width", "least"), [(PHONE, 6.5), (400, 8), (1400, 8)])
def test_charts_are_read_without_scrolling_sideways(tab, page, width, least):
    tab.open(page.as_uri(), width)
    charts = tab.run("""
        return [...document.querySelectorAll("svg.chart")].filter(s => s.checkVisibility()).map(s => {
            const scale = s.getBoundingClientRect().width / s.viewBox.baseVal.width;
            const sizes = [...s.querySelectorAll("text")].map(t => scale * parseFloat(getComputedStyle(t).fontSize));
            return [s.ariaLabel, s.parentElement.scrollWidth - s.parentElement.clientWidth, Math.min(...sizes)];
        });
    """)
    assert len(charts) == tab.run("return document.querySelectorAll('figure > div > svg.chart:first-child').length")
    assert [name for name, hidden, _ in charts if hidden > 0] == []
    assert [name for name, _, size in charts if size < least] == []


def test_every_picture_is_described(tab, page):
    tab.open(page.as_uri())
    assert tab.run("return [...document.images].filter(i => !i.alt.trim()).length") == 0
    assert tab.run("return [...document.images].filter(i => !i.src.startsWith('data:image/')).length") == 0
    assert tab.run("return [...document.querySelectorAll('svg.chart')].filter(s => !s.ariaLabel).length") == 0


def test_links_lead_somewhere(tab, page):
    tab.open(page.as_uri())
    assert (
        tab.run("""
        return [...document.querySelectorAll("a[href^='#']")].map(a => a.getAttribute("href").slice(1))
            .filter(id => !document.getElementById(id));
    """)
        == []
    )


def test_names_are_unique(tab, page):
    tab.open(page.as_uri())
    assert (
        tab.run("""
        const seen = [...document.querySelectorAll("[id]")].map(e => e.id);
        return seen.filter((id, place) => seen.indexOf(id) !== place);
    """)
        == []
    )


def test_tables_sort_by_any_column(tab, page):
    tab.open(page.as_uri())
    tables = tab.all("table.sortable")
    assert tables
    for table in tables:
        result = tab.run(
            """
            const [table] = arguments, cells = column => [...table.tBodies[0].rows].map(row =>
                (row.cells[column].dataset.value ?? row.cells[column].textContent.trim()).replaceAll(",", ""));
            const number = text => text !== "" && isFinite(text);
            const wrong = [];
            [...table.tHead.rows[0].cells].forEach((head, column) => {
                if (!head.querySelector("button")) return;
                const before = cells(column).slice().sort();
                for (const order of ["ascending", "descending"]) {
                    head.querySelector("button").click();
                    const sorted = cells(column);
                    if (head.getAttribute("aria-sort") !== order) wrong.push([head.textContent, "aria-sort"]);
                    const kept = sorted.slice().sort().join("\\n") === before.join("\\n");
                    if (!kept) wrong.push([head.textContent, "rows"]);
                    const numbers = sorted.filter(number).map(Number);
                    const sign = order === "ascending" ? 1 : -1;
                    const falls = numbers.some((n, i) => i && sign * (n - numbers[i - 1]) < 0);
                    if (falls) wrong.push([head.textContent, order]);
                }
            });
            return wrong;
            """,
            table,
        )
        assert result == []


def test_a_click_on_the_matrix_shows_its_pictures(tab, tmp_path):
    run = ended(tmp_path, n=60, skill=1.0)
    *_, path = report.write(run, small_network(), seen)
    tab.open(path.as_uri())
    shown = lambda: tab.run("return [...document.querySelectorAll('#gallery figure')].filter(f => !f.hidden).length")  # noqa: E731
    (a, wrong_a), (wrong_b, b) = run.scores.confusion
    assert shown() == wrong_a + wrong_b
    tab.one(".matrix td button[data-true='0'][data-predicted='0']").click()
    assert shown() == a
    assert tab.text("#shown") == f"{a} pictures: of ants, given ants"
    tab.one(".matrix th button[data-true='1']").click()
    assert shown() == wrong_b + b
    tab.one(".matrix th button[data-predicted='1']").click()
    assert shown() == wrong_a + b
    tab.one("#all").click()
    assert shown() == 60
