"""Pictures of the page of `bmtpt serve` for the docs: light, dark, and on a phone, in Debian's Chromium.

python benchmarks/page_pictures.py prompts/tickets
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from bmtpt.artifacts.saved import Prompt
from bmtpt.backbone import Backbone
from bmtpt.serve.app import create_app
from bmtpt.serve.service import Service
from local import listening

CHROMIUM = "/usr/bin/chromium"
VIEWS = {
    "light": {"viewport": {"width": 760, "height": 600}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 760, "height": 600}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 700}, "color_scheme": "light", "device_scale_factor": 1.5},
}
TEXTS = "Where is my money?\nThe app closes when I take a photo.\nThe parcel is open and a cup is missing."


def picture(browser: Browser, url: str, view: str, path: Path) -> None:
    """Ask the page's first task about some texts and save what it then shows."""
    page = browser.new_page(**VIEWS[view])  # type: ignore[arg-type]
    page.goto(url)
    page.locator("textarea").fill(TEXTS)
    page.get_by_role("button", name="Answer").click()
    expect(page.locator("#answers > li")).to_have_count(3)
    page.evaluate("document.activeElement.blur()")
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    shot.quantize(64).save(path, optimize=True)  # a third of the size
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("prompts", nargs="+", type=Path, help="folders of prompts, that of one column first")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images")
    options = parser.parse_args()
    prompts = {folder.name: Prompt.load(folder) for folder in options.prompts}
    backbone = Backbone.from_pretrained(next(iter(prompts.values())).card.backbone.name, precision="float32")
    options.out.mkdir(parents=True, exist_ok=True)
    with listening(create_app(Service.of(backbone, prompts)), 8000) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for view in VIEWS:
            picture(browser, url, view, options.out / f"page-{view}.png")
        browser.close()


if __name__ == "__main__":
    main()
