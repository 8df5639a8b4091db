"""The page and the API reference in headless Chromium, against a real `graft serve`."""

import base64
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from serving.openapi import document
from tests.browser import PHONE, Tab
from tests.serving import CLASSES, CLASSIFY, encoded, gated, serving, tiny

pytestmark = pytest.mark.slow

TOKEN = "a-token-for-tests"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


SHARE = "const [bar] = arguments; return bar.offsetWidth / bar.parentElement.offsetWidth"


class Page(Tab):
    """The endpoint's page."""

    def choose(self, *paths):
        """As if these files were chosen in the file dialogue."""
        self.one("#files").send_keys("\n".join(map(str, paths)))

    def items(self):
        return self.texts(".picture")

    def settled(self, count):
        """Waits until so many pictures are shown and none is under way; the text of each."""
        self.wait(lambda: len(self.items()) == count and "in progress" not in self.text("#summary"))
        return self.items()

    def classes(self, number):
        """What is shown of a picture, the first is 1: (label, percentage, the bar's part of its width)."""
        return [
            (*row.text.splitlines(), self.run(SHARE, bar))
            for row in self.all(f".picture:nth-child({number}) .scores li")
            for bar in row.find_elements(By.CSS_SELECTOR, ".bar i")
        ]


@pytest.fixture
def page(driver):
    """Afterwards nothing may have been complained about, nor asked of another server."""
    page = Page(driver)
    yield page
    assert page.complaints() == []
    origin = "/".join(page.url.split("/")[:3])
    for url in page.requests():
        assert url.startswith((origin, f"blob:{origin}", "about:"))
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    driver.get("about:blank")


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A model m with two versions, and a model "red & green" with one."""
    folder = tmp_path_factory.mktemp("export")
    tiny(folder, seed=1)
    tiny(folder, seed=2)
    tiny(folder, name="red & green", seed=3, classes=("red", "green"))
    return folder


@pytest.fixture(scope="module")
def server(export):
    """With both versions of m, the older labelled, and the other model."""
    config = export / "models.config"
    config.write_text(
        f"""
        model_config_list {{
          config {{ name: "m" base_path: "{export}/m" model_version_policy {{ all {{}} }}
            version_labels {{ key: "stable" value: 1 }} }}
          config {{ name: "red & green" base_path: "{export}/red & green" }}
        }}
        """
    )
    with serving("--models-config", config) as server:
        yield server.ready()


@contextmanager
def blocked(export, folder, *arguments):
    """A server that computes nothing while a file `shut` is in the folder."""
    (folder / "shut").touch()
    (folder / "models" / "m").mkdir(parents=True)
    shutil.copytree(export / "m" / "1", folder / "models" / "m" / "1")
    with serving(folder / "models", *arguments, first=gated(folder)) as server:
        try:
            (folder / "shut").unlink()
            server.ready()
            (folder / "shut").touch()
            yield server
        finally:
            (folder / "shut").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Paths of pictures that can be used."""
    folder = tmp_path_factory.mktemp("pictures")
    found = []
    names = {"ant.png": "PNG", "bee.jpg": "JPEG", f"{'a_name_of_two_lines_or_three_' * 3}.webp": "WEBP"}
    for number, (name, kind) in enumerate(names.items()):
        path = folder / name
        path.write_bytes(encoded(kind, (160, 120), seed=number))
        found.append(path)
    return found


def answered(server, path, picture):
    """What the server says of a picture by itself."""
    return server.post(path, picture.read_bytes()).json()["predictions"][0]["classes"]


def test_a_picture_gets_its_classes(page, server, pictures):
    page.open(server.url).choose(pictures[0])
    (text,) = page.settled(1)
    expected = answered(server, CLASSIFY, pictures[0])
    shown = page.classes(1)
    assert [label for label, _, _ in shown] == [each["label"] for each in expected]
    for (_, percentage, bar), each in zip(shown, expected, strict=True):
        assert percentage == f"{each['probability'] * 100:.1f}%"
        assert abs(bar - each["probability"]) < 0.01
    assert "ant.png" in text
    assert "m, version 2" in text
    assert all(word in text for word in (" ms in all", "in the server: decode ", "queue ", "inference "))
    assert page.run("return document.querySelector('img.thumbnail').naturalWidth") == 160
    assert page.run("return document.querySelector('#log').textContent").startswith(
        f"ant.png: {expected[0]['label']}, "
    )
    assert f"m knows 3 classes: {', '.join(CLASSES)}." in page.text("#app")
    assert "JPEG, PNG or WebP, up to 10 MB, 50 megapixels" in page.text("#limits")


def test_several_pictures_are_shown_in_their_order_the_newest_first(page, server, pictures):
    page.open(server.url).choose(*pictures[:2])
    page.settled(2)
    page.choose(pictures[2])
    page.settled(3)
    assert page.texts(".picture h3") == [pictures[2].name, "ant.png", "bee.jpg"]
    for number, picture in enumerate((pictures[2], *pictures[:2]), start=1):
        assert [row[0] for row in page.classes(number)] == [c["label"] for c in answered(server, CLASSIFY, picture)]
    assert page.text("#summary") == "3 pictures"


def test_pictures_are_removed_and_let_go(page, server, pictures):
    page.open(server.url)
    page.run("window.gone = []; URL.revokeObjectURL = (url) => gone.push(url);")
    page.choose(*pictures)
    page.settled(3)
    urls = [image.get_attribute("src") for image in page.all("img.thumbnail")]
    page.one("[aria-label='Remove bee.jpg']").click()
    assert page.texts(".picture h3") == ["ant.png", pictures[2].name]
    page.one("#clear").click()
    assert page.items() == []
    assert not page.one("#results").is_displayed()
    assert sorted(page.run("return gone")) == sorted(urls)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("animation.gif", b"GIF89a" + bytes(50), ["GIF", "Save it as PNG", "not a JPEG, PNG or WebP picture"]),
        ("notes.jpg", b"these are only notes", ["Its content counts, not its name", "not a JPEG, PNG or WebP picture"]),
        ("photo.heic", b"\0\0\0\x18ftypheic" + bytes(50), ["HEIC", "Most Compatible", "not a JPEG"]),
        ("broken.png", encoded()[:60], ["cannot use this picture", "damaged or truncated"]),
        ("empty.png", b"", ["This file is empty"]),
        ("large.png", bytes(10_000_001), ["too large", "10 MB is the most"]),
    ],
)
def test_a_file_that_cannot_be_used_says_why(page, server, pictures, tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    page.open(server.url).choose(path, pictures[0])
    wrong, right = page.settled(2)
    for word in words:
        assert word in wrong
    assert "Try again" not in wrong
    assert "m, version 2" in right
    assert page.text("#summary") == "2 pictures, 1 failed"


def test_too_many_pixels_are_said_in_words(page, server, tmp_path):
    Image.fromarray(np.zeros((6000, 9000), np.uint8)).save(tmp_path / "wide.png")
    page.open(server.url).choose(tmp_path / "wide.png")
    (text,) = page.settled(1)
    assert "This is too large for the server." in text
    assert "The server said: The picture cannot be used: " in text


@pytest.mark.parametrize(("event", "data"), [("DragEvent", "dataTransfer"), ("ClipboardEvent", "clipboardData")])
def test_pictures_are_dropped_and_pasted(page, server, pictures, event, data):
    page.open(server.url)
    kind = "drop" if event == "DragEvent" else "paste"
    script = """
        const [content, event, kind, data] = arguments, held = new DataTransfer();
        if (content) {
            const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
            held.items.add(new File([bytes], "given.png", { type: "image/png" }));
        } else held.setData("text/plain", "words");
        document.body.dispatchEvent(new window[event](kind, { [data]: held, bubbles: true, cancelable: true }));
    """
    # Again, should the page not listen yet.
    page.wait(lambda: page.run(script, "", event, kind, data) or "no picture in that" in page.text("#refused"))
    page.run(script, base64.b64encode(pictures[0].read_bytes()).decode(), event, kind, data)
    (text,) = page.settled(1)
    assert "given.png" in text
    assert "m, version 2" in text
    assert page.text("#refused") == ""


def test_model_version_and_number_of_classes_are_chosen(page, server, pictures):
    page.open(server.url).choose(pictures[0])
    page.settled(1)
    options = page.texts("#version option")
    assert options == ["latest (version 2)", "stable (version 1)", "version 2", "version 1"]

    Select(page.one("#version")).select_by_visible_text("stable (version 1)")
    page.wait(lambda: "m, version 1" in page.items()[0])
    assert [row[0] for row in page.classes(1)] == [
        each["label"] for each in answered(server, "/v1/models/m/labels/stable:classify-image", pictures[0])
    ]
    assert "/v1/models/m/labels/stable:classify-image" in page.text("#curl pre")

    page.one("#top-k").send_keys(Keys.BACKSPACE, "2", Keys.TAB)
    page.wait(lambda: len(page.classes(1)) == 2)

    Select(page.one("#model")).select_by_visible_text("red & green")
    page.wait(lambda: "red & green, version 1" in page.items()[0])
    assert {row[0] for row in page.classes(1)} == {"red", "green"}
    assert not page.one("#version").is_displayed()
    assert page.text("#curl pre").endswith(f'"{server.url}/v1/models/red%20%26%20green:classify-image?top_k=2"')


def test_the_command_is_copied(page, server):
    page.open(server.url)
    page.wait(lambda: page.text("#curl pre") != "")
    page.driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"origin": server.url, "permissions": ["clipboardReadWrite"]}
    )
    page.one("#curl button").click()
    page.wait(lambda: page.text("#curl button") == "Copied")
    copied = page.driver.execute_async_script("const [done] = arguments; navigator.clipboard.readText().then(done)")
    assert copied == f'curl --data-binary "@picture.jpg" "{server.url}/v1/models/m:classify-image?top_k=3"'


def test_the_keyboard_is_enough(page, server, pictures):
    page.open(server.url)
    page.wait(lambda: page.text("#limits") != "JPEG, PNG or WebP")
    # The dialogue is the browser's own: what counts is that it would open.
    page.run(
        "document.querySelector('#files').addEventListener('click', (e) => { e.preventDefault(); window.asked = 1; })"
    )
    passed = []
    while "choose" not in passed:
        page.press(Keys.TAB)
        focused = page.focused()
        passed.append(focused.get_attribute("id") or focused.text)
        outline = page.run("const s = getComputedStyle(arguments[0]); return [s.outlineStyle, s.outlineWidth]", focused)
        assert outline == ["solid", "3px"], passed
    assert passed == ["Graft", "API reference", "model", "version", "top-k", "choose"]
    page.press(Keys.ENTER)
    assert page.run("return window.asked") == 1
    page.choose(*pictures[:2])
    page.settled(2)
    page.run("document.querySelector('#choose').focus()")
    page.press(Keys.TAB, Keys.TAB)
    assert page.focused().get_attribute("aria-label") == "Remove ant.png"
    page.press(Keys.ENTER)
    assert page.texts(".picture h3") == ["bee.jpg"]
    assert page.focused().get_attribute("aria-label") == "Remove bee.jpg"
    page.press(Keys.ENTER)
    assert page.items() == []
    assert page.focused().get_attribute("id") == "choose"


def test_everything_that_is_operated_has_a_name(page, server, pictures):
    page.open(server.url).choose(*pictures)
    page.settled(3)
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    operated = {"button", "link", "textbox", "combobox", "spinbutton"}
    named = [node["name"]["value"] for node in tree if node.get("role", {}).get("value") in operated]
    assert len(named) >= 10
    assert all(named)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_phone_shows_it_without_scrolling_sideways(page, server, pictures, tmp_path, path):
    page.open(server.url + path, PHONE)
    if path == "/":
        (tmp_path / "notes.jpg").write_text("notes")
        page.choose(*pictures, tmp_path / "notes.jpg")
        page.settled(4)
    else:
        page.wait(lambda: page.all("details"))
        page.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert page.too_wide() == []


def luminance(colour):
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (int(value) / 255 for value in colour[colour.index("(") + 1 : -1].split(",")[:3])
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(page, server, pictures, tmp_path, scheme):
    (tmp_path / "notes.jpg").write_text("notes")
    page.open(server.url, prefers_color_scheme=scheme).choose(*pictures, tmp_path / "notes.jpg")
    page.settled(4)
    background = luminance(page.run("return getComputedStyle(document.body).backgroundColor"))
    assert (background < 0.1) == (scheme == "dark")
    for selector in ("h1", "label", "select", "#limits", "#choose", "#clear", ".picture h3", ".label", ".facts",
                     ".problem", ".found .soft", "pre", "#foot", "nav a"):  # fmt: skip
        colours = page.run(
            "let e = document.querySelector(arguments[0]); const c = [getComputedStyle(e).color];"
            "while (getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)') e = e.parentElement;"
            "return [...c, getComputedStyle(e).backgroundColor]",
            selector,
        )
        low, high = sorted(map(luminance, colours))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (selector, colours)


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_for_those_who_want_it_so(page, server, pictures, motion):
    page.open(server.url, prefers_reduced_motion=motion).choose(pictures[0])
    page.settled(1)
    animation = page.run("return getComputedStyle(document.querySelector('.bar i')).animationName")
    assert (animation == "none") == (motion == "reduce")


def test_without_javascript_it_says_how_to_ask(page, server):
    page.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    page.open(server.url)
    assert "curl --data-binary" in page.text("noscript")
    assert not page.one("#app").is_displayed()


def test_a_lost_network_is_said_and_tried_again(page, server, pictures):
    page.open(server.url)
    page.wait(lambda: page.text("#foot") != "")
    page.driver.set_network_conditions(offline=True, latency=0, throughput=-1)
    try:
        page.choose(pictures[0])
        (text,) = page.settled(1)
        assert "The server cannot be reached." in text
    finally:
        page.driver.delete_network_conditions()
    page.one("[aria-label='Send ant.png again']").click()
    page.wait(lambda: "m, version 2" in page.items()[0])


def test_four_at_a_time_and_none_that_was_removed(page, export, pictures, tmp_path):
    with blocked(export, tmp_path) as server:
        page.open(server.url).choose(*pictures, *pictures)
        page.wait(lambda: page.texts(".found") == ["Sending…"] * 4 + ["Waiting…"] * 2)
        page.choose(pictures[0])
        assert page.texts(".found") == ["Waiting…", *["Sending…"] * 4, *["Waiting…"] * 2]
        assert page.text("#summary") == "7 pictures, 7 in progress"
        page.one(".picture:nth-child(2) .title button").click()
        page.wait(lambda: any(line.get("status") == 499 for line in server.log()))
        # The one that is shown first is the next.
        page.wait(lambda: page.texts(".found") == ["Sending…"] * 4 + ["Waiting…"] * 2)
        (tmp_path / "shut").unlink()
        assert all("m, version 1" in text for text in page.settled(6))


def test_a_busy_server_is_asked_again(page, export, pictures, tmp_path):
    with blocked(export, tmp_path, "--max-queue", 1) as server:
        page.open(server.url).choose(*pictures, pictures[0])
        page.wait(lambda: any("The server is busy. Trying again in 1 s (1 of 5)…" in text for text in page.items()))
        (tmp_path / "shut").unlink()
        assert all("m, version 1" in text for text in page.settled(4))


def test_pictures_wait_for_a_model(page, export, pictures, tmp_path):
    (tmp_path / "m").mkdir()
    config = tmp_path / "models.config"
    config.write_text(f'model_config_list {{ config {{ name: "m" base_path: "{tmp_path}/m" }} }}')
    with serving("--models-config", config) as server:
        page.open(server.url)
        page.wait(lambda: "No model is loaded yet." in page.text("#notice"))
        page.choose(pictures[0])
        assert page.texts(".found") == ["Waiting…"]
        shutil.copytree(export / "m" / "1", tmp_path / "m" / "incoming")
        (tmp_path / "m" / "incoming").rename(tmp_path / "m" / "1")
        (text,) = page.settled(1)
        assert "m, version 1" in text
        assert not page.one("#notice").is_displayed()


def test_a_token_is_asked_for_and_kept_in_the_tab(page, export, pictures):
    with serving(export, environment={"GRAFT_TOKEN": TOKEN}) as server:
        page.open(server.url)
        page.wait(lambda: page.one("#token").is_displayed())
        assert page.focused().get_attribute("id") == "token"
        page.choose(pictures[0])
        assert page.texts(".found") == ["Waiting…"]
        page.press(*"a wrong one", Keys.ENTER)
        page.wait(lambda: "no spaces" in page.text("#token-problem"))
        page.one("#token").clear()
        page.one("#token").send_keys("a-wrong-one", Keys.ENTER)
        page.wait(lambda: page.text("#token-problem") == "The server does not accept this token.")
        page.one("#token").clear()
        page.one("#token").send_keys(TOKEN, Keys.ENTER)
        (text,) = page.settled(1)
        assert "m, version 2" in text
        assert not page.one("#token").is_displayed()
        assert '-H "Authorization: Bearer $GRAFT_TOKEN"' in page.text("#curl pre")
        assert TOKEN not in page.run("return document.documentElement.outerHTML")
        assert page.run("return [...Object.values(sessionStorage), localStorage.length, document.cookie]") == [
            TOKEN,
            0,
            "",
        ]
        page.driver.refresh()
        page.choose(pictures[0])
        page.settled(1)
        assert not page.one("#token").is_displayed()


def test_the_reference_shows_every_route(page, server):
    page.open(f"{server.url}/docs")
    page.wait(lambda: page.all("details"))
    shown = page.run("return [...document.querySelectorAll('.path')].map((each) => each.textContent)")
    assert sorted(shown) == sorted(document()["paths"])
    assert page.one("a[href='openapi.json']").text == "/openapi.json"
    page.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    text = page.text("main")
    for word in ("top_k", "predictions[].classes[].probability", "Retry-After", "429", f"{server.url}/v1/models/"):
        assert word in text


def test_a_route_is_linked_to(page, server):
    page.open(f"{server.url}/docs#predict")
    page.wait(lambda: page.all("details"))
    assert page.wait(lambda: page.one("#predict").get_attribute("open"))
