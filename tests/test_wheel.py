"""The wheel ships conf/ and the console scripts, and works outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("hatchling")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, built from the checkout and unpacked into a folder of its own."""
    root = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = root.glob("*.whl")
    with zipfile.ZipFile(wheel) as z:
        z.extractall(root / "site")
    return root


def run(installed: Path, code: str, *words: str) -> subprocess.CompletedProcess:
    """`code` with the unpacked wheel first on the path, in an empty folder."""
    cwd = installed / "elsewhere"
    cwd.mkdir(exist_ok=True)
    env = {**os.environ, "PYTHONPATH": str(installed / "site")}
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=cwd, env=env)


def test_it_holds_every_configuration_and_no_tests(installed):
    shipped = {str(p.relative_to(installed / "site" / "gentok" / "conf")) for p in (installed / "site" / "gentok" / "conf").rglob("*.yaml")}
    assert shipped == {str(p.relative_to(ROOT / "conf")) for p in (ROOT / "conf").rglob("*.yaml")}
    assert all((installed / "site" / "gentok" / "report" / f"page.{kind}").is_file() for kind in ("html", "css", "js"))
    package = installed / "site" / "gentok"
    assert (package / "metrics" / "classifiers" / "cifar10.safetensors").is_file() and (package / "evaluation" / "protocols.yaml").is_file()
    assert not (installed / "site" / "tests").exists() and not (installed / "site" / "docs").exists()
    scripts = next((installed / "site").glob("*.dist-info/entry_points.txt")).read_text()
    assert "gentok = gentok.cli:main" in scripts


def test_it_measures_with_the_eval_classifier_of_the_checkout(installed):
    find = "from gentok.metrics.eval_classifier import STORED, find_eval_classifier as find; from gentok.data.cifar10 import CLASSES; "
    done = run(installed, find + "print(STORED, find('auto', CLASSES, (3, 32, 32))[1]['own_held_out_accuracy'])")
    assert done.stdout.split() == [str(installed / "site" / "gentok" / "metrics" / "classifiers"), "0.8838"], done.stderr


def test_it_works_from_outside_the_checkout(installed):
    where = run(installed, "import gentok.cli; print(gentok.cli.conf_dir())")
    assert where.stdout.strip() == str(installed / "site" / "gentok" / "conf"), where.stderr
    done = run(installed, "from gentok.cli import train; train()", "experiment=mnist5k/vq", "describe=true")
    assert done.returncode == 0 and '"tokens": 64' in done.stdout.splitlines()[-1], done.stderr


WAY = """
import gentok
from gentok.cli import main

tiny = ["tokenizer.width=8", "codebook.vocab_size=32", "steps=2", "budget=null", "trainer.progress_bar=false", "print_config=false"]
for words in (
    ["--help"],
    ["train", "experiment=mnist5k/vq", *tiny, "paths.run=run"],
    ["sample", "ckpt=mnist5k_masked", "n=2", "sampler=maskgit", "sampler.steps=2", "out=drawn"],
    ["evaluate", "ckpt=run/bundle", "max_held_out=20", "out=measured"],
    ["report", "run"],
):
    try:
        main(words)
    except SystemExit as stopped:
        assert not stopped.code, (words, stopped.code)
print(gentok.__file__)
"""


@pytest.mark.slow
def test_help_training_sampling_by_name_evaluation_and_a_report_work_outside_the_checkout(installed):
    pytest.importorskip("mlxtend")
    done = run(installed, WAY)
    assert done.returncode == 0, done.stderr
    assert "gentok COMMAND --help" in done.stdout and done.stdout.splitlines()[-1].startswith(str(installed / "site"))
    made = installed / "elsewhere"
    for name in ("run/bundle/bundle.json", "drawn/0001.png", "measured/reconstruction.json", "run/report.html"):
        assert (made / name).is_file(), name
