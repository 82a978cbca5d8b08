"""Takes the pictures of docs/screens.md: the page of a run, the terminal, and this site.

    make site && python docs/site/screens.py RUN        # writes docs/pictures/screen-*.png

RUN is a finished run. Needs playwright (`make test-tools`) and Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console

from capfl.report.findings import verdicts
from capfl.report.page import write_page
from capfl.report.summary import read_summary
from capfl.report.tables import summary_table

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs/pictures"
SITE = ROOT / "dist/site"
DESKTOP, PHONE, TALLEST = (1100, 800), (390, 780), 1500  # CSS pixels; of what is taller the top is shown
COLOURS = 96  # of a picture
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def keep(data: bytes, name: str) -> None:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture = picture.crop((0, 0, picture.width, min(picture.height, TALLEST)))
    picture.quantize(COLOURS).save(PICTURES / f"screen-{name}.png", optimize=True)


def terminal(run: Path) -> str:
    """What the run printed in the end, as HTML."""
    summary = read_summary(run)
    console = Console(record=True, width=112, file=io.StringIO(), force_terminal=True)
    console.print(summary_table(summary, verdicts(summary)))
    return console.export_html(inline_styles=True)


def shoot(browser: Any, name: str, size: tuple[int, int], where: str, html: str = "", dark: bool = False) -> None:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light"
    )
    page = context.new_page()
    page.goto(where)
    if html:
        page.set_content(html)
    keep(page.locator("pre").screenshot() if html else page.screenshot(full_page=True), name)
    context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = write_page(run, Path(folder) / "report.html").absolute().as_uri()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        shoot(browser, "page", DESKTOP, page)
        shoot(browser, "page-dark", DESKTOP, page, dark=True)
        shoot(browser, "page-phone", PHONE, page)
        shoot(browser, "terminal", DESKTOP, "about:blank", terminal(run))
        shoot(browser, "site", DESKTOP, (SITE / "index.html").as_uri())
        browser.close()


if __name__ == "__main__":
    main()
