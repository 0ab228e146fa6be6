"""What `mkdocs build` does with our pages beside Markdown: mkdocs.yml names this file.

``<!-- include: RESULTS.md -->`` and ``<!-- include: CONTRIBUTING.md#Add an op -->`` stand for a
file of the repository, without its title, or for the text of one section. ``<!-- keys: PSIS.CPMASK
-->`` is a table of config keys, made from psis_d2/config.py. Formulas are written as GitHub has
them, fenced as ``math`` or in $`...`$, and become MathML. ``<!-- needs: COCO -->`` in front of a
code block says that it does not run everywhere, and is shown.
"""

import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from psis_d2.config import psis_keys

from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]
# Files of the repository that are, or are part of, a page.
PAGES = {
    "CONTRIBUTING.md": "architecture.md",
    "MODEL_ZOO.md": "model-zoo.md",
    "README.md": "index.md",
    "RESULTS.md": "results.md",
}


def on_page_markdown(markdown: str, page, **_) -> str:
    """mkdocs: the Markdown of a page before it becomes HTML."""
    return finish_page(markdown, page.file.src_uri)


def finish_page(markdown: str, page: str) -> str:
    """Replace all that the head of this file lists.

    Args:
        markdown: of the page.
        page: its path in docs/.
    """

    def included(found: re.Match) -> str:
        return relink(included_text(found[1]), page)

    markdown = re.sub(r"^<!-- include: (.+?) -->$", included, markdown, flags=re.MULTILINE)
    markdown = re.sub(
        r"^<!-- keys: (.+?) -->$", lambda x: key_table(x[1]), markdown, flags=re.MULTILINE
    )
    markdown = re.sub(
        r"^<!-- needs: (.+?) -->$",
        lambda x: f'<p class="needs">needs {html.escape(x[1])}</p>\n',
        markdown,
        flags=re.MULTILINE,
    )
    return with_formulas(markdown)


# ---------------------------------------------------------------------------------- included files


def outside_code(lines: list[str]) -> Iterator[bool]:
    """For every line, whether it is outside of fenced code."""
    fence = ""
    for line in lines:
        mark = re.match(r" *(```+|~~~+)", line)
        if fence:
            yield False
            if mark and mark[1].startswith(fence) and line.strip() == mark[1]:
                fence = ""
        else:
            fence = mark[1] if mark else ""
            yield not fence


def included_text(name: str) -> str:
    """A file of the repository without its title, or ``FILE#Title``: a section up to any heading.

    Raises:
        ValueError: there is no such section.
    """
    name, _, title = name.partition("#")
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    headings = [
        i
        for i, (line, text) in enumerate(zip(lines, outside_code(lines), strict=True))
        if text and re.match(r"#+ ", line)
    ]
    if not title:
        return "\n".join(lines[headings[0] + 1 :])
    for i, end in zip(headings, [*headings[1:], len(lines)], strict=True):
        if lines[i].lstrip("#").strip() == title:
            return "\n".join(lines[i + 1 : end])
    raise ValueError(f"{name} has no section '{title}'")


def relink(markdown: str, page: str) -> str:
    """Links of a file in the repository's root, as they are on a page; those that it lacks as text.

    Args:
        markdown: text of the file.
        page: path of the page in docs/.
    """
    here = posixpath.dirname(page)

    def link(found: re.Match) -> str:
        text, target = found[1], found[2]
        if "://" in target or target.startswith("#"):
            return found[0]
        path, mark, anchor = target.partition("#")
        path = PAGES.get(path) or (path[5:] if path.startswith("docs/") else "")
        if not path:
            return text.lstrip("!").strip("[]")
        return f"{text}({posixpath.relpath(path, here or '.')}{mark}{anchor})"

    return re.sub(r"(!?\[[^\]]*\])\(([^)\s]+)\)", link, markdown)


# ---------------------------------------------------------------------------------- config keys


def key_reasons() -> dict[str, str]:
    """The reason of every key of psis_d2: the comment above it where it is declared."""
    reasons: dict[str, str] = {}
    prefix, comment, last = "", [], ""
    files = [ROOT / "psis_d2" / name for name in ("config.py", "config_methods.py")]
    for line in "\n\n".join(x.read_text(encoding="utf-8") for x in files).splitlines():
        if found := re.match(r' +node = Keys\(keys, "([\w.]+)"', line):
            prefix, comment, last = found[1], [], ""
        elif found := re.match(r" +node\.(\w+) = ", line):
            # Two keys below one comment share it.
            last = " ".join(comment) or last
            reasons[f"{prefix}.{found[1]}"] = last
            comment = []
        elif found := re.match(r" +# (?!----)(.*)", line):
            comment.append(found[1])
        elif not line.strip() or "# ----" in line:
            comment, last = [], ""
    return reasons


def key_table(wanted: str) -> str:
    """A table of config keys: name, default, what it may be, reason.

    Args:
        wanted: names of keys or of nodes (their own keys alone), separated by commas.

    Raises:
        ValueError: a name is that of no key or node.
    """
    keys, reasons = psis_keys(), key_reasons()
    names: list[str] = []
    for name in map(str.strip, wanted.split(",")):
        found = [key for key in keys if name in (key, key.rpartition(".")[0])]
        if not found:
            raise ValueError(f"psis_d2 has no config key or node {name}")
        names += found
    rows = ["| key | default | may be | what for |", "|---|---|---|---|"]
    for name in names:
        default = repr(keys[name].default)
        cells = [f"`{name}`", f"`{default}`", keys[name].check.wants(), reasons[name]]
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


# ---------------------------------------------------------------------------------- formulas


def with_formulas(markdown: str) -> str:
    """Formulas in TeX as MathML."""

    def block(found: re.Match) -> str:
        formulas = [convert(part, display="block") for part in found[1].strip().split("\n\n")]
        return f'<div class="formula">{"".join(formulas)}</div>'

    markdown = re.sub(r"^```math\n(.*?)^```$", block, markdown, flags=re.DOTALL | re.MULTILINE)
    # In a span: a line that begins with <math> would be a block of its own.
    return re.sub(r"\$`([^`\n]+)`\$", lambda x: f"<span>{convert(x[1])}</span>", markdown)
