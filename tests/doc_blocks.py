"""The code blocks of README, CONTRIBUTING and docs/, and what a test may do with them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.md")),
]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language ("" for none), its text, its line, and what it needs."""

    language: str
    code: str
    line: int
    needs: str = ""


def blocks_of(text: str) -> list[Block]:
    """All fenced blocks of a Markdown text.

    ``<!-- needs: COCO -->`` in the line before says that a block cannot run everywhere.
    """
    found = []
    pattern = r"(?:^ *<!-- needs: (.+?) -->\n)?^( *)```(\w*)\n(.*?)^ *```$"
    for match in re.finditer(pattern, text, re.DOTALL | re.MULTILINE):
        needs, indent, language, code = match.groups()
        line = text.count("\n", 0, match.start(4))
        code = re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
        found.append(Block(language, code, line, needs or ""))
    return found


def read_page(name: str) -> str:
    """The text of a page, by its path in the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def goes_on_after(text: str) -> str:
    """The page in whose folder this one goes on (``<!-- after: PAGE -->``); "" for none."""
    found = re.search(r"^<!-- after: (\S+) -->$", text, re.MULTILINE)
    return f"docs/{found[1]}" if found else ""


def can_run(block: Block) -> bool:
    """Whether a test runs this block."""
    return block.language in ("bash", "python") and not block.needs
