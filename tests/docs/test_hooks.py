"""What the documentation makes of its pages: included files, tables of keys, formulas, figures."""

import importlib.util
import re
import subprocess
import sys

from psis_d2.config import psis_keys

import pytest

from doc_blocks import PAGES, ROOT, read_page

pytest.importorskip("latex2mathml", reason="requirements-docs.txt is not installed")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load(ROOT / "docs" / "hooks.py")


def test_a_section_ends_at_the_next_heading_but_not_in_code(tmp_path, monkeypatch):
    text = "# T\nx\n## A\none\n```bash\n# no heading\n```\n### B\ntwo\n## C\nthree\n"
    (tmp_path / "a.md").write_text(text)
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    assert hooks.included_text("a.md#A") == "one\n```bash\n# no heading\n```"
    assert hooks.included_text("a.md#B") == "two"
    assert hooks.included_text("a.md").startswith("x\n## A")
    with pytest.raises(ValueError, match="no section 'D'"):
        hooks.included_text("a.md#D")


def test_links_of_included_text_fit_the_page():
    text = (
        "![p](docs/results.png) [r](RESULTS.md#b) [c](psis_d2/config.py) [w](https://x.y) [a](#a)"
    )
    assert hooks.relink(text, "methods/index.md") == (
        "![p](../results.png) [r](../results.md#b) c [w](https://x.y) [a](#a)"
    )
    assert hooks.relink("[z](MODEL_ZOO.md)", "index.md") == "[z](model-zoo.md)"


def test_every_key_has_a_reason_and_is_on_the_page_of_keys():
    reasons = hooks.key_reasons()
    assert reasons.keys() == psis_keys().keys()
    assert [key for key, reason in reasons.items() if len(reason) < 5] == []
    page = hooks.finish_page(read_page("docs/keys.md"), "keys.md")
    assert [key for key in psis_keys() if f"| `{key}` |" not in page] == []


def test_a_table_of_keys():
    table = hooks.key_table("PSIS.HOURGLASS, PSIS.FCN_UPSAMPLINGS").splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == [
        "`PSIS.HOURGLASS.CHANNELS`",
        "`PSIS.HOURGLASS.BLOCKS`",
        "`PSIS.FCN_UPSAMPLINGS`",
    ]
    assert "| `1` | a whole number, at least 1 | FCNMaskHead doubles" in table[-1]
    with pytest.raises(ValueError, match="PSIS.NONE"):
        hooks.key_table("PSIS.NONE")


def test_formulas_become_mathml():
    page = hooks.finish_page("a $`x_1`$ b\n\n```math\ny = 2\n\nz\n```\n", "a.md")
    assert page.startswith("a <span><math") and page.count("<math") == 3 and "```" not in page


def test_every_method_has_its_figure():
    pages = {p for p in PAGES if p.startswith("docs/methods/") and not p.endswith("index.md")}
    shown = {re.search(r"figures/(\w+)\.svg", read_page(p))[1] for p in pages}
    assert len(pages) == len(shown) == 10
    drawn = {p.stem for p in (ROOT / "docs" / "figures").glob("*.svg")}
    listing = "import draw; print(*draw.FIGURES)"
    names = subprocess.run(
        [sys.executable, "-c", listing],
        cwd=ROOT / "docs" / "figures",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert set(names) == drawn == shown | {"road"}
