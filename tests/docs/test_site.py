"""The documentation: reference up to date, links that lead somewhere, a site that builds."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def generator():
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(path):
    """Without code, in which brackets are no links."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "`code`", text)


def anchors(path):
    """As renderers make them of headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = []
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        words = re.sub(r"[^\w\s-]", "", heading.lower().strip())
        found.append(re.sub(r"\s", "-", words))
    return found


@pytest.mark.parametrize("name", ["commands.md", "run-file.md", "catalog.md"])
def test_the_reference_is_what_the_code_says(name):
    path = DOCS / "reference" / name
    assert path.read_text() == generator().pages()[name], "run: python docs/make_reference.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page):
    for found in LINK.findall(text_of(page)):
        link = found[0] or found[1]
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {link}"


def nav(entries):
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(value, list):
                yield from nav(value)
            else:
                yield value


def test_every_page_is_in_the_navigation_once():
    listed = list(nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(listed) == len(set(listed))
    here = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert set(listed) == here, "see nav in mkdocs.yml"


def test_the_site_builds(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    page = (tmp_path / "kubernetes" / "index.html").read_text()
    sources = re.findall(r'(?:src|<link[^>]*href)="(https?://[^"]+)"', page)
    assert not sources, "a page loads something from elsewhere"


def test_versions_agree():
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((ROOT / "helm" / "perennial" / "Chart.yaml").read_text())
    assert chart["appVersion"] == package
    compose = (ROOT / "deploy" / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{TAG:-([^}]*)\}", compose)) == {package}
