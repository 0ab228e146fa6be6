"""The built site: every link leads somewhere. Troubleshooting quotes what the program says."""

import ast
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import detectron2
import pytest

from doc_blocks import ROOT, blocks_of, read_page


class Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("href", "src") and value is not None:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def dead_links(site: Path) -> list[str]:
    """Links within a site to files or anchors that are not there."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    dead = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are for a server's root
            continue
        for link in page.links:
            if re.match(r"(https?|mailto|data|javascript):", link):
                continue
            target, anchor = urldefrag(link)
            file = (path.parent / unquote(target)).resolve() if target else path
            if file.is_dir():
                file = file / "index.html"
            known = pages[file].anchors if file in pages else None
            if not file.is_file() or (
                anchor and known is not None and unquote(anchor) not in known
            ):
                dead.append(f"{path.relative_to(site)}: {link}")
    return dead


def test_dead_links_are_found(tmp_path):
    (tmp_path / "b.html").write_text('<h1 id="top">b</h1>')
    links = ("b.html#top", "b.html#no", "c.html", "#here", "https://x.y")
    text = '<p id="here">' + "".join(f'<a href="{link}">x</a>' for link in links)
    (tmp_path / "a.html").write_text(text)
    assert dead_links(tmp_path) == ["a.html: b.html#no", "a.html: c.html"]


@pytest.mark.slow
def test_the_site_builds_strictly_and_no_link_is_dead(tmp_path):
    for name in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(name, reason="requirements-docs.txt is not installed")
    line = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    assert len(list(site.rglob("*.html"))) > 30
    assert dead_links(site) == []


def sentences() -> str:
    """All texts of the program, one a line, with … for what is filled in."""
    engine = Path(detectron2.__file__).parent / "engine"
    lines = []
    for folder in (ROOT / "psis_d2", engine):
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [x.value if isinstance(x, ast.Constant) else "…" for x in node.values]
                    lines.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    lines.append(node.value)
    return "\n".join(lines)


def test_troubleshooting_quotes_what_the_program_says():
    quotes = [b.code.strip() for b in blocks_of(read_page("docs/troubleshooting.md"))]
    assert len(quotes) > 10
    said = sentences()
    assert [quote for quote in quotes if quote not in said] == []
