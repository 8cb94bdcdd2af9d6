"""A component outside the package is one file and one yaml: those of docs/add_a_tokenizer.md are found, built, tested and trained."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "add_a_tokenizer.md").read_text()


@pytest.fixture
def mine(tmp_path):
    """A folder with the page's files: mine/patches.py and mine/conf/tokenizer/patches.yaml."""
    package = tmp_path / "mine"
    (package / "conf" / "tokenizer").mkdir(parents=True)
    (package / "patches.py").write_text(re.search(r"```python\n(.*?)```", PAGE, re.S).group(1))
    (package / "conf" / "tokenizer" / "patches.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.S).group(1))
    return tmp_path


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **environment}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, cwd=folder)


def test_the_contract_tests_find_it(mine):
    words = {"GENTOK_TEST_CONF": str(mine / "mine" / "conf"), "GENTOK_TEST_TRUST": "mine"}
    tests = str(ROOT / "tests" / "tokenizers" / "test_tokenizer_contract.py")
    done = run(mine, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), tests, "-k", "patches", "-p", "no:cacheprovider", **words)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) >= 30


def test_it_trains_with_any_codebook_and_its_bundle_needs_trust(mine):
    words = ["trust=[mine]", "tokenizer=patches", "codebook=fsq", "steps=2", "trainer.progress_bar=false", "logger=none", "paths.run=run"]
    done = run(mine, str(ROOT / "train.py"), "hydra.searchpath=[file://mine/conf]", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    loads = "import gentok\nprint(gentok.load('run/bundle', trust=['mine']).spec.grid, flush=True)\ngentok.load('run/bundle')"
    loaded = run(mine, "-c", loads)
    assert "Raster(h=8, w=8)" in loaded.stdout
    assert "tokenizer/patches" in loaded.stderr and "trust=[its_name]" in loaded.stderr


def test_without_trust_it_is_refused_with_a_line(mine):
    done = run(mine, str(ROOT / "train.py"), "hydra.searchpath=[file://mine/conf]", "tokenizer=patches", "steps=2", "paths.run=run")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "trust=" in done.stderr and not (mine / "run").exists()
