"""Write the demo as one HTML file that needs no server and no network.

    python scripts/static_demo.py OUTPUT.html

Two digits are chosen in the latent plane of the embedded model, by clicks or from lists; the page
shows the straight line and the geodesic, solved beforehand, with decoded images and lengths.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from geolatent.explorer.static import static_page
from geolatent.files import write_file
from geolatent.lab.printing import make_console, print_last, working


def main() -> None:
    """Solve, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("output", type=Path, help="the HTML file")
    parser.add_argument("--per_label", type=int, default=4, help="digits of each label to choose")
    options = parser.parse_args()
    console = make_console()
    with working(console, "solving all pairs") as tell:
        page = static_page(options.per_label, tell=tell)
    write_file(options.output, page.encode())
    print_last(console, f"{options.output}, {len(page.encode()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
