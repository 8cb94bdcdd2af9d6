"""A component outside the package is one file and one yaml: those of docs/add_a_*.md are found, built, tested and trained."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def files_of(page: str, folder: Path, role: str, name: str) -> Path:
    """A folder with the page's files: mine/NAME.py and mine/conf/ROLE/NAME.yaml."""
    text, package = (ROOT / "docs" / page).read_text(), folder / "mine"
    (package / "conf" / role).mkdir(parents=True, exist_ok=True)
    (package / f"{name}.py").write_text(re.search(r"```python\n(.*?)```", text, re.S).group(1))
    (package / "conf" / role / f"{name}.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.S).group(1))
    return folder


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    files_of("add_a_generator.md", folder, "generator", "convolutions")
    return files_of("add_a_tokenizer.md", folder, "tokenizer", "patches")


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **environment}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, cwd=folder)


@pytest.mark.parametrize(("which", "least"), [("patches and fsq", 5), pytest.param("patches", 30, marks=pytest.mark.slow)])
def test_the_contract_tests_find_it(mine, which, least):
    words = {"GENTOK_TEST_CONF": str(mine / "mine" / "conf"), "GENTOK_TEST_TRUST": "mine"}
    tests = str(ROOT / "tests" / "tokenizers" / "test_tokenizer_contract.py")
    done = run(mine, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), tests, "-k", which, "-p", "no:cacheprovider", **words)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) >= least


USE = f"""
import sys
import gentok
from gentok.cli import train

def attempt(*words):
    sys.argv = ["train.py", "hydra.searchpath=[file://mine/conf]", "trainer.progress_bar=false", "logger=none", "steps=2", *words]
    try:
        train()
    except SystemExit as stopped:
        print("status", stopped.code, flush=True)

attempt("tokenizer=patches", "paths.run=refused")
attempt("tokenizer=patches", "paths.run=patches", "codebook=fsq", "trust=[mine]")
print(gentok.load("patches/bundle", trust=["mine"]).spec.grid, flush=True)
attempt("task=generator", "generator=convolutions", "paths.run=convolutions", "trust=[mine]", "limit_items=32", "batch_size=8",
        "data=mnist5k", "tokenizer=from_bundle", "tokenizer.ckpt={ROOT / 'docs/zoo/mnist5k_vq'}")
model = gentok.load("convolutions/bundle", trust=["mine"])
for name in ("halton", "first_hitting", "maskgit"):
    print(name, model.sample(n=2, condition=7, guidance=2.0, sampler=name, seed=0).shape, flush=True)
gentok.load("patches/bundle")"""
"""All that is done with components of one's own, in one process."""


@pytest.fixture(scope="module")
def used(mine):
    return run(mine, "-c", USE)


def test_it_trains_with_any_codebook_and_its_bundle_needs_trust(used):
    assert "Raster(h=8, w=8)" in used.stdout, used.stderr[-3000:]
    last = used.stderr.splitlines()[-1]
    assert used.returncode == 1 and "tokenizer/patches" in last and "trust=[its_name]" in last


def test_without_trust_it_is_refused_with_a_line(mine, used):
    line = used.stderr.splitlines()[0]
    assert used.stdout.count("status") == 1 and "status 2" in used.stdout
    assert line.startswith("gentok: ") and "trust=" in line and not (mine / "refused").exists()


def test_an_own_generator_trains_and_every_masked_sampler_draws_from_it(used):
    assert used.stdout.count("[2, 1, 32, 32]") == 3, used.stderr[-3000:]
