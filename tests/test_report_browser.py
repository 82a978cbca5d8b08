"""The page in a browser: nothing is fetched, nothing complains, it fits a phone and follows the dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capfl.report.page import write_page
from support import tiny_run

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -c constraints.txt playwright")
PLACES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
OUTSIDE = """[...document.querySelectorAll('svg text')].filter(text => {
  const [box, outer] = [text, text.ownerSVGElement].map(element => element.getBoundingClientRect());
  return box.left < outer.left - 0.5 || box.right > outer.right + 0.5;
}).map(text => text.textContent)"""  # labels of charts that are cut off


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = next(filter(None, map(shutil.which, PLACES)), own if Path(own).is_file() else None)
        if found is None:
            pytest.skip("no Chromium: apt-get install chromium (Debian), or playwright install chromium")
        started = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))  # with a profile of its own
        yield started
        started.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("browser") / "run"
    tiny_run(out, method__name="ca-pfl", method__rank_floor=1.0, partition__validation=0.2, data__sites=3,
             evaluation__references=["local"], codec__values="ternary")  # fmt: skip
    return write_page(out, out / "report.html")


SEEN = {  # what whoever opens the page has to see: selector -> a text in it
    "h1": "ca-pfl, 3 clients",
    "main > p.note": " rounds in ",
    "p.verdict": "oining",  # whether it paid, and for whom
    "main > ul": "sent for each client and round: ",
    "h2:first-of-type": "Clients: right answers, %; on each client's own test items",
    "thead": "local only",
    "tbody": "bank",
    "tfoot": "± 95 %",
    "details:first-of-type": "What the columns mean",
    "figure:nth-of-type(1)": "Every client, accuracy, %",
    "figure:nth-of-type(2)": "Validation of the shared adapters against bytes, accuracy, %",
    "figure:nth-of-type(3)": "Training loss, nats a token",
    "figure:nth-of-type(4)": "Mean rank of a client's modules",
    "main > .scroll:nth-last-of-type(2)": "left the site",
    "main > .scroll:last-of-type": "came back",
    "details:nth-last-of-type(2)": "config.toml",
    "details:last-of-type": "run.json",
}
OPENED = ("personal: the client's own adapter", 'name = "ca-pfl"', '"python"')  # behind what has to be opened


def seen(page: Any) -> dict[str, str]:
    """What of ``SEEN`` is not to be seen, and what is there instead."""
    wrong = {}
    for selector, text in SEEN.items():
        place = page.locator(selector).first
        if not place.is_visible() or text not in place.inner_text():
            wrong[selector] = place.inner_text() if place.count() else "nothing"
    return wrong


def brightness(page: Any, element: str, what: str) -> float:
    colour = page.evaluate(f"getComputedStyle(document.querySelector('{element}')).{what}")
    red, green, blue = (float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])
    return (red + green + blue) / 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_keeps_readers_out(browser: Any, page_file: Path, scheme: str) -> None:
    reason = "no axe: pip install -c constraints.txt axe-playwright-python, or make test-tools"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=reason)
    context = browser.new_context(color_scheme=scheme, bypass_csp=True)  # the page lets no other script run
    page = context.new_page()
    page.goto(page_file.as_uri())
    found = axe.Axe().run(page).response
    assert [violation["id"] for violation in found["violations"]] == []
    assert len(found["passes"]) > 10
    context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "light"), (390, "dark")])
def test_it_fits_asks_for_nothing_and_prints(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    page.wait_for_load_state("networkidle")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    assert seen(page) == {}
    assert not any(text in page.inner_text("main") for text in OPENED)
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    assert all(text in page.inner_text("main") for text in OPENED)
    letters = "[...document.querySelectorAll('svg text')].map(text => text.getBoundingClientRect().height)"
    assert min(page.evaluate(letters)) >= 9  # pixels; turned text is as wide as a letter is high, or wider
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OUTSIDE) == []
    assert (brightness(page, "body", "backgroundColor") < 60) is (scheme == "dark")
    assert (brightness(page, "svg text", "fill") > 130) is (scheme == "dark")
    page.emulate_media(media="print", color_scheme=scheme)
    assert brightness(page, "body", "backgroundColor") == 255
    assert page.pdf().startswith(b"%PDF")
    page.close()
