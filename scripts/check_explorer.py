"""Measure the explorer's page: seconds from a click to the curve, on the embedded model.

Starts ``geolatent explore`` in a process of its own and clicks in the latent plane of a real
Chromium at seeded places. Two times are taken in the browser, from the release of the pointer:
until the first answer is drawn, which the page calls so, and until the asked tolerance is reached
and shown. ``--screenshot FILE`` saves a picture of the page with the last pair. Needs the extras
``explore`` and ``test``, and Chromium.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright

_WATCH = """() => {
  const gd = document.querySelector("#plane .js-plotly-plot");
  const state = (window.timed = { clicked: null, drawn: null, refined: null });
  window.addEventListener("pointerup", () => { state.clicked = performance.now(); },
    { once: true, capture: true });
  const look = () => {
    const curve = gd.data.find((trace) => trace.meta === "geodesic");
    const text = document.querySelector("#numbers").innerText;
    if (state.clicked !== null && curve.x.length > 2) {
      if (state.drawn === null) state.drawn = performance.now();
      const ended = document.querySelector("#stop").disabled;
      if (ended && !text.includes("first answer")) state.refined = performance.now();
    }
    if (state.refined === null) requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}"""
_READY = """() => {
  const rows = document.querySelector("#numbers"), stop = document.querySelector("#stop");
  return rows && rows.innerText && !rows.innerText.includes("first answer") && stop.disabled;
}"""


@contextmanager
def serving() -> Iterator[str]:
    """Run the command and yield the page's address."""
    command = [sys.executable, "-m", "geolatent", "explore", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout or ():
                found = re.search(r"http://\S+", line)
                if found:
                    yield found[0]
                    return
            raise RuntimeError("`geolatent explore` ended before it told an address.")
        finally:
            process.terminate()


def click(page: Page, x: float, y: float) -> tuple[float, float]:
    """Click at shares of the plane; return seconds until the first curve, and the refined one."""
    box = page.locator("#plane .nsewdrag").bounding_box()
    if box is None:
        raise RuntimeError("The page has no plane.")
    page.evaluate(_WATCH)
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.wait_for_function("() => window.timed.refined !== null", timeout=60_000)
    timed = page.evaluate("() => window.timed")
    return tuple((timed[name] - timed["clicked"]) / 1000 for name in ("drawn", "refined"))


def main() -> None:
    """Click, and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--clicks", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--screenshot", help="PNG file for a picture of the page")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="path of Chromium")
    options = parser.parse_args()
    places = random.Random(options.seed)
    with serving() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=options.chromium, args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(address)
        page.wait_for_function(_READY, timeout=60_000)
        times = [
            click(page, places.uniform(0.2, 0.8), places.uniform(0.2, 0.8))
            for _ in range(options.clicks)
        ]
        if options.screenshot:
            page.screenshot(path=options.screenshot)
        browser.close()
    names = ("first answer drawn", "asked tolerance reached")
    for name, seconds in zip(names, zip(*times, strict=True), strict=True):
        print(
            f"{name}: median {statistics.median(seconds):.2f} s, "
            f"from {min(seconds):.2f} to {max(seconds):.2f} s, {len(seconds)} clicks"
        )


if __name__ == "__main__":
    main()
