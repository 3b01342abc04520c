"""The site has every page of docs/, and links to files outside docs/ work on it."""

import importlib.util
import types

import pytest
import yaml
from helpers import ROOT


def list_pages(entries: list) -> list[str]:
    """Returns the pages of a navigation."""
    pages = []
    for entry in entries:
        [value] = entry.values()
        pages += [value] if isinstance(value, str) else list_pages(value)
    return pages


def test_every_page_of_docs_is_in_the_navigation_once():
    pages = list_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert len(set(pages)) == len(pages)
    assert {file.name for file in (ROOT / "docs").glob("*.md")} <= set(pages)


def test_links_out_of_docs_lead_to_pages_or_copies_on_the_site():
    structure = pytest.importorskip("mkdocs.structure.files")  # in the extra docs
    spec = importlib.util.spec_from_file_location("site_links", ROOT / "docs" / "site_links.py")
    assert spec and spec.loader
    site_links = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site_links)
    plugins = types.SimpleNamespace(_current_plugin="")
    config = types.SimpleNamespace(site_dir="site", use_directory_urls=False, plugins=plugins)
    files = site_links.on_files(structure.Files([]), config=config)

    def rewrite(name: str, text: str) -> str:
        page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri=name))
        return site_links.on_page_markdown(text, page=page, config=config, files=files)

    assert rewrite("a.md", "[x](../launch/README.md#traps)") == "[x](launch.md#traps)"
    assert rewrite("launch.md", "[x](../docs/studies.md)") == "[x](studies.md)"
    assert rewrite("readme.md", "![x](docs/results/transfer.png)") == "![x](results/transfer.png)"
    copy = "repository/imbalance_jax/__init__.py.txt"
    assert rewrite("a.md", "[x](../imbalance_jax/__init__.py)") == f"[x]({copy})"
    assert files.get_file_from_path(copy)
    assert rewrite("launch.md", "[x](hardware.py)") == "[x](repository/launch/hardware.py.txt)"
    for left in ("[x](none.md)", "[x](../../outside)", "[x](https://arxiv.org/abs/2404.07982)"):
        assert rewrite("a.md", left) == left
