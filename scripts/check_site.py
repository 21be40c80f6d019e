"""Check a built site: every link within it leads somewhere, and it needs nothing from elsewhere.

    python scripts/check_site.py docs/_build/html

Walks the HTML files of a folder. Each href and src that is not an address of its own must be a file
of the folder, and its fragment an id or a name in that file. Scripts, style sheets, images and
fonts must not come from a network.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# what a browser loads by itself; an <a> waits for a reader
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
LOADED_LINKS = {"stylesheet", "preload", "icon", "shortcut icon", "modulepreload"}


@dataclass
class Page(HTMLParser):
    """Targets and links of one page."""

    text: str
    targets: set[str] = field(default_factory=lambda: {"", "top"})
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the ids and links of a tag."""
        found = {name: value or "" for name, value in attrs}
        self.targets |= {found[name] for name in ("id", "name") if name in found}
        self.links += [found[name] for name in ("href", "src", "data") if name in found]
        if tag in LOADED and LOADED[tag] in found:
            self.loaded.append(found[LOADED[tag]])
        if tag == "link" and found.get("rel", "") in LOADED_LINKS:
            self.loaded.append(found.get("href", ""))


def check_site(folder: Path) -> list[str]:
    """Return what is wrong, a line each."""
    # a theme's own templates lie beside its scripts
    paths = [
        path.resolve() for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts
    ]
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in paths}
    wrong = [] if pages else [f"{folder}: no HTML file"]
    for path, page in pages.items():
        name = path.relative_to(folder.resolve())
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                wrong.append(f"{name}: {link} leads nowhere")
            elif target in pages and unquote(parts.fragment) not in pages[target].targets:
                wrong.append(f"{name}: {link} has no such place")
        wrong += [f"{name}: {link} is fetched" for link in page.loaded if is_remote(link)]
    for path in sorted(folder.rglob("*.css")):
        urls = re.findall(r"(?:url\(|@import\s+)[\"']?([^\"')\s;]+)", path.read_text("utf-8"))
        name = path.relative_to(folder)
        wrong += [f"{name}: {link} is fetched" for link in urls if is_remote(link)]
    return wrong


def is_remote(link: str) -> bool:
    """Return whether a browser would go to a network for it."""
    parts = urlsplit(link)
    return bool(parts.netloc) or parts.scheme in ("http", "https")


def main() -> None:
    """Print what is wrong with the folder that is given, and leave with status 1 if anything is."""
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/check_site.py FOLDER")
    folder = Path(sys.argv[1])
    wrong = check_site(folder)
    if wrong:
        sys.exit("\n".join([*wrong, f"{len(wrong)} links to mend"]))
    print(f"{folder}: every link leads somewhere, nothing is fetched from elsewhere")


if __name__ == "__main__":
    main()
