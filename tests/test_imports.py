"""The directions in which rooms may import each other, read from the source; and what an import costs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gentok"

BASE = {"atomic", "devices", "errors", "settings", "types", "interfaces", "rng", "distributed", "precision"}
MAY = {  # room or file -> what of gentok it may import (beside itself)
    "atomic": set(),
    "errors": set(),
    "folder_lock": {"errors"},
    "settings": set(),
    "rng": set(),
    "distributed": set(),
    "devices": {"errors"},
    "precision": set(),
    "unfilled": set(),
    "types": {"errors", "settings", "rng"},
    "interfaces": {"settings", "types", "rng", "precision"},
    "build": {"errors", "settings", "interfaces"},
    "flow": BASE,
    "layouts": {*BASE, "flow"},
    "grammar": {*BASE, "nn"},
    "nn": {*BASE, "flow"},
    "losses": {*BASE, "layouts", "nn"},
    "metrics": {*BASE, "layouts", "nn"},
    "drawings": BASE,
    "data": {*BASE, "layouts", "nn", "drawings"},
    "codebooks": {*BASE, "flow", "nn"},
    "tokenizers": {*BASE, "flow", "nn", "codebooks", "drawings"},
    "generators": {*BASE, "flow", "nn", "layouts", "grammar"},
    "samplers": {*BASE, "flow", "layouts", "grammar", "generators.base"},
    "watermarks": {*BASE, "samplers.draws"},
    "entropy": set(),
    "durations": set(),
    "moved": set(),
    "value_checks": {"errors", "settings", "durations"},
    "cli": {"errors", "value_checks", "sweep", "command", "training.run", "training.slurm", "sample_files", "launch"},
    "codec_file": {"entropy", "errors", "types"},
    "command": set(),
    "sweep": {"command"},
    "bundle": {*BASE, "build", "sampling", "samplers.base", "unfilled"},
    "prompt": {*BASE, "bundle", "data"},
    "region_likelihood": {*BASE, "generators", "layouts", "flow", "prompt"},
}
ANYTHING = {
    "training", "adopt", "push", "export", "codes", "certification", "evaluate", "evaluation", "eval_classifier", "benchmark",
    "benchmarks", "sampling", "sampling_plan", "sample_parts", "launch", "watch", "serving", "sample_files", "codec", "resynthesis",
    "watermark", "describe", "device_check", "demo", "report", "tracing", "__init__",
}  # fmt: skip
ONLY_IN = {  # packages that one place wraps
    "lightning": lambda room, path: room in ("training", "launch") or path.name == "overhead.py",  # where it is needed
    "fastapi": lambda room, path: path.name in ("app.py", "live.py", "server.py"),  # which are imported where they are needed
    "hydra": lambda room, path: path.name == "hydra_run.py",
    "torchaudio": lambda room, path: "sound" in path.name or "audio" in path.name or room in ("tokenizers", "metrics"),
    "encodec": lambda room, path: room in ("tokenizers", "benchmarks"),
    "diffusers": lambda room, path: room == "tokenizers",
    "transformers": lambda room, path: room in ("tokenizers", "nn", "benchmarks"),
    "huggingface_hub": lambda room, path: path.name == "hub.py",
}
LAZY = (
    "torchmetrics",
    "torchaudio",
    "encodec",
    "diffusers",
    "transformers",
    "huggingface_hub",
    "sklearn",
    "mlxtend",
    "matplotlib",
    "efficientnet_lite_pytorch",
)


def _room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def _imports(source: str) -> list[tuple[str, bool]]:
    """(dotted name, at the top level of the file) of every import; `from a import b` gives a.b as well."""
    tree = ast.parse(source)
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, id(node) in top))
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


def violations(path: Path, source: str) -> list[str]:
    room, found = _room(path), []
    for name, top in _imports(source):
        parts = name.split(".")
        if parts[0] == "gentok" and len(parts) > 1 and room not in ANYTHING:
            allowed = MAY.get(room)
            assert allowed is not None, f"{room} is a new room: say in MAY what it may import"
            fits = parts[1] == room or parts[1] in allowed or any(name == f"gentok.{a}" or name.startswith(f"gentok.{a}.") for a in allowed)
            known_room = (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file()
            if known_room and not fits and name not in [f"gentok.{a.split('.')[0]}" for a in allowed if "." in a]:
                found.append(f"{room} imports {name}")
        if parts[0] in ONLY_IN and not ONLY_IN[parts[0]](room, path):
            found.append(f"{path.relative_to(PACKAGE)} imports {parts[0]}")
        if parts[0] in LAZY and top:
            found.append(f"{path.relative_to(PACKAGE)} imports {parts[0]} before it is used")
    return found


def test_imports_follow_the_directions():
    found = [v for path in sorted(PACKAGE.rglob("*.py")) for v in violations(path, path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "path, planted",
    [
        ("generators/x.py", "from gentok.codebooks.vq import VQ"),
        ("generators/x.py", "import gentok.tokenizers.vqgan"),
        ("samplers/x.py", "def f():\n    from gentok.nn.transformer import Transformer"),
        ("samplers/x.py", "from gentok.generators.autoregressive import Autoregressive"),
        ("tokenizers/x.py", "from gentok import samplers"),
        ("types/x.py", "from gentok.layouts import Layout"),
        ("types/x.py", "from gentok.nn.rope import rotation"),
        ("generators/x.py", "from gentok.data.mnist5k import MNIST5k"),
        ("nn/x.py", "import lightning as L"),
        ("training/x.py", "import hydra"),
        ("metrics/x.py", "import torchmetrics"),
    ],
)
def test_a_planted_forbidden_import_is_found(path, planted):
    assert violations(PACKAGE / path, planted)


def fresh(script: str) -> str:
    """What a new interpreter prints."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=ROOT, check=True).stdout


def loaded_by(statement: str, *names: str) -> list[str]:
    """Which of `names` are in sys.modules after `statement`, in a new interpreter."""
    return ast.literal_eval(fresh(f"import sys\n{statement}\nprint([m for m in {names} if m in sys.modules])").splitlines()[-1])


def test_importing_gentok_imports_neither_torch_nor_lightning():
    assert loaded_by("import gentok", "torch", "lightning", "torchmetrics", "hydra") == []


def test_loading_a_model_imports_no_trainer():
    heavy = ("lightning", "torchmetrics", "hydra", "mlxtend", "sklearn", "matplotlib")
    assert loaded_by("import gentok.bundle, gentok.sampling", *heavy) == []


def test_the_help_of_the_command_line_imports_no_torch():
    """Under 4 s on two cores; here by what it loads, since a clock in a test is a coin."""
    script = "import atexit, sys, gentok.cli; sys.argv = ['train.py', '--help']; atexit.register(lambda: print('torch' in sys.modules))"
    out = fresh(script + "; gentok.cli.train()")
    assert out.splitlines()[-1] == "False" and "experiment" in out
