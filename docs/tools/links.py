"""MkDocs' hook: what the pages say of files outside docs/.

In: pages whose links lead to files of the repository, relative to the page, as they are read beside the code. Out: the
same words as code with the file's path on them, for the site holds no code; tables of bench/results become pages of the
site, and links to them lead there. Left out: links between pages (MkDocs checks them).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
RESULTS, RESULT_PAGES = Path("bench/results"), Path("learn/results")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The tables of bench/results, as pages."""
    for table in sorted((ROOT / RESULTS).glob("*.md")):
        files.append(File.generated(config, (RESULT_PAGES / table.name).as_posix(), abs_src_path=str(table)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links to files of the repository turned."""
    docs = Path(config.docs_dir)
    folder = docs / Path(page.file.src_uri).parent

    def turned(link: re.Match[str]) -> str:
        text, target = link.groups()
        path = Path(os.path.normpath(folder / target))
        if "://" in target or path.is_relative_to(docs):
            return link[0]
        name = path.relative_to(ROOT)
        if name.parent == RESULTS:
            return f"[{text}]({os.path.relpath(docs / RESULT_PAGES / name.name, folder)})"
        return f'<code title="{name.as_posix()}">{text.strip("`")}</code>'

    return LINK.sub(turned, markdown)
