"""Makes the links of a page work on the site where they lead outside docs/.

`mkdocs build` calls the two functions below; mkdocs.yml names this file as a hook. A link to a file
of the repository leads to a copy of it on the site. A link to a file that does not exist is left as
it is, and `mkdocs build --strict` refuses it.
"""

import pathlib
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parents[1]
# File of the repository -> the page that it is on the site.
PAGES = {
    "README.md": "readme.md",
    "launch/README.md": "launch.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages that lie outside docs/."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns the text of a page with links that work on the site."""
    sources = {page: path for path, page in PAGES.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def rewrite_link(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        if not (ROOT / path).is_file() or path.startswith("../"):
            return link[0]
        if path in PAGES:
            target = PAGES[path]
        elif path.startswith("docs/"):
            target = path.removeprefix("docs/")
        else:
            target = f"repository/{path}.txt"  # which every browser shows
            if not files.get_file_from_path(target):
                files.append(File.generated(config, target, abs_src_path=str(ROOT / path)))
        here = posixpath.dirname(page.file.src_uri) or "."
        return f"]({posixpath.relpath(target, here)}{link[2] or ''})"

    return _LINK.sub(rewrite_link, markdown)
