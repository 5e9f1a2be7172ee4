"""The documentation builds without a warning, and its pages load nothing from the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.fixtures.pages import DOCS, ROOT

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""What a browser fetches by itself, by the attribute that says from where."""
STRANGE = re.compile(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//")
"""In a style sheet: something from elsewhere."""


def build(target: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """As `make docs` does it, to another place. Not quietly: MkDocs then counts no warnings."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target), *options]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    done = build(target)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_make_builds_the_site_as_this_test_does():
    recipe = (ROOT / "Makefile").read_text().partition("\ndocs:")[2].split("\n")[1]
    assert recipe.split("mkdocs ")[1] == "build --strict"


def test_a_link_that_leads_nowhere_ends_the_build(tmp_path):
    """With the settings of the site, on two pages."""
    pages = {"index.md": "# A\n\n[nowhere](absent.md) [no part](b.md#absent)\n", "b.md": "# B\n"}
    (tmp_path / "docs").mkdir()
    for name, text in pages.items():
        (tmp_path / "docs" / name).write_text(text)
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    kept = {key: value for key, value in settings.items() if key not in ("nav", "hooks", "extra_css")}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(kept))
    done = build(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert done.returncode == 1
    assert "contains a link 'absent.md'" in done.stderr
    assert "does not contain an anchor '#absent'" in done.stderr


class Fetched(HTMLParser):
    """Addresses of what a page fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(LOADS.get(tag, ""))
        if address is not None:
            self.addresses.append(address)


def fetched(page: Path) -> list[str]:
    parser = Fetched()
    parser.feed(page.read_text())
    return parser.addresses


def test_every_page_of_docs_and_every_table_of_bench_is_a_page_of_the_site(site):
    written = {page.relative_to(DOCS).with_suffix(".html").as_posix() for page in DOCS.rglob("*.md")}
    tables = {f"learn/results/{table.stem}.html" for table in (ROOT / "bench" / "results").glob("*.md")}
    built = {page.relative_to(site).as_posix() for page in site.rglob("*.html")}
    assert len(written) > 15 and len(tables) > 2
    assert (written | tables) - built == set()


def test_no_page_fetches_from_the_network(site):
    pages = list(site.rglob("*.html"))
    found = [
        (page.name, address) for page in pages for address in fetched(page) if re.match(r"(?:https?:)?//", address)
    ]
    assert found == []
    sheets = [sheet.name for sheet in site.rglob("*.css") if STRANGE.search(sheet.read_text())]
    assert sheets == []


def test_what_a_page_fetches_is_there(site):
    lacking = [
        (page.name, address)
        for page in site.rglob("*.html")
        for address in fetched(page)
        if page.name != "404.html" and not (page.parent / address.partition("?")[0]).exists()
    ]
    assert lacking == []


def test_no_page_has_what_material_fetches_a_library_for(site):
    """Diagrams in mermaid would be drawn by a script from elsewhere."""
    assert [page.name for page in site.rglob("*.html") if 'class="mermaid"' in page.read_text()] == []


def test_the_site_holds_no_code_and_says_where_files_are(site):
    assert list(site.rglob("*.py")) == []
    how = (site / "learn" / "how_it_works.html").read_text()
    assert '<code title="cluster/ppo.py">ppo.py</code>' in how
    benches = (site / "learn" / "benches.html").read_text()
    assert 'href="results/soak.html"' in benches, "a table of bench/results is a page"
    assert "../../" not in re.sub(r"<(?:pre|code).*?</", "", benches.partition("<article")[2])
