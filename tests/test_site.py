"""The documentation's website: links that work in the repository work in the site, and it builds without a warning."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def rewritten():
    spec = importlib.util.spec_from_file_location("links", ROOT / "docs" / "site" / "links.py")
    links = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(links)
    known = {"index.md", "cluster.md", "zoo/README.md", "results/audio.md", "results/audio.json", "results/one.png"}
    files = SimpleNamespace(get_file_from_path=lambda path: path if path in known else None)
    config = SimpleNamespace(repo_url="https://example.org/gentok/")

    def of(page, text):
        return links.on_page_markdown(text, SimpleNamespace(file=SimpleNamespace(src_uri=page)), config, files)

    return of


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("index.md", "docs/cluster.md", "cluster.md"),
        ("index.md", "docs/results/one.png", "results/one.png"),
        ("index.md", "docs/zoo", "zoo/README.md"),
        ("index.md", "LICENSE", "https://example.org/gentok/blob/main/LICENSE"),
        ("cluster.md", "../README.md#sound", "index.md#sound"),
        ("results/audio.md", "audio.json", "audio.json"),
        ("results/audio.md", "../cluster.md#a", "../cluster.md#a"),
        ("results/audio.md", "../../tests/exact/kit.py", "https://example.org/gentok/blob/main/tests/exact/kit.py"),
        ("cluster.md", "#below", "#below"),
        ("cluster.md", "https://example.com/a.md", "https://example.com/a.md"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(rewritten, page, link, expected):
    assert rewritten(page, f"see [x]({link}), ![y]({link})") == f"see [x]({expected}), ![y]({expected})"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="make docs installs it: pip install -e '.[docs]'")
    for name in ("docs", "gentok", "README.md", ".mkdocs.yml"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    words = [sys.executable, "-m", "mkdocs", "build", "-q", "-f", ".mkdocs.yml", "--strict"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "outputs" / "site" / "reference" / "gentok.samplers.maskgit" / "index.html").read_text()
    assert "maskgit" in page and "temperature" in page
