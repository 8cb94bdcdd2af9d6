"""Pages that are made when the site is built: README.md as the first, one per public module from its docstrings, and the order of all."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path

import mkdocs_gen_files

ROOT = Path(__file__).resolve().parents[2]
GUIDES = {
    "Components": "components.md",
    "Your own data": "own_data.md",
    "Add a tokenizer": "add_a_tokenizer.md",
    "Add a generator": "add_a_generator.md",
    "Certify a sampler": "certify.md",
    "A model over HTTP": "serve.md",
    "The hub, ONNX, codes": "hub_and_export.md",
    "Devices": "devices.md",
    "On a cluster": "cluster.md",
    "What a big run needs": "scaling.md",
}
ABOUT = {"A tour": "architecture.md", "Glossary": "glossary.md", "Contributing": "CONTRIBUTING.md", "Changes": "CHANGELOG.md"}
PUBLIC = (
    "gentok.bundle.model.load",
    "gentok.bundle.model.Bundle",
    "gentok.bundle.publishing",
    "gentok.sampling.sample",
    "gentok.sampling.Samples",
    "gentok.training.own_data.train",
    "gentok.certification.certify",
    "gentok.certification.Certificate",
    "gentok.rng.RowRNG",
    "gentok.errors",
)
"""Shown whole on the page of `import gentok`: they lie in none of the rooms below."""
ROOMS = (
    "", "types", "interfaces", "codebooks", "tokenizers", "generators", "samplers", "watermarks", "flow", "losses", "metrics", "nn", "data",
)  # fmt: skip
"""Packages whose modules get a page; "": the names that `import gentok` gives."""


def title(path: Path) -> str:
    """The first heading of a page."""
    return next((line[2:].strip() for line in path.read_text().splitlines() if line.startswith("# ")), path.stem)


def documented(path: Path) -> bool:
    """Whether a module has a public class or function with a docstring."""
    nodes = ast.parse(path.read_text()).body
    public = [node for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_"]
    return any(ast.get_docstring(node) for node in public)


def reference() -> list[str]:
    lines = []
    for room in ROOMS:
        if not room:
            write("reference/gentok.md", public())
            lines.append("    * [gentok](reference/gentok.md)")
            continue
        folder = ROOT / "gentok" / room
        modules = [path for path in sorted(folder.rglob("*.py")) if path.stem[0] != "_" and documented(path)]
        lines.append(f"    * {room}")
        for path in modules:
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            write(f"reference/{name}.md", f"# {name.removeprefix('gentok.')}\n\n::: {name}\n    options:\n      show_root_heading: false\n")
            lines.append(f"        * [{path.stem}](reference/{name}.md)")
    return lines


def public() -> str:
    """The page of what `import gentok` gives: a row per name, with a link to its own page where it has one."""
    import gentok

    rows = ["| name | what it is |", "|---|---|"]
    for name in gentok.__all__:
        value = getattr(gentok, name)
        about = (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ") if callable(value) else f"the code {value}"
        where = getattr(value, "__module__", "")
        linked = any(where.startswith(f"gentok.{room}.") for room in ROOMS if room)
        rows.append(f"| {f'[`{name}`][{where}.{name}]' if linked else f'`{name}`'} | {about} |")
    head = ["# gentok\n", "::: gentok", "    options:", "      members: false", "      show_root_heading: false\n"]
    return "\n".join([*head, *rows, *(f"\n::: {where}" for where in PUBLIC)]) + "\n"


def write(path: str, text: str) -> None:
    with mkdocs_gen_files.open(path, "w") as file:
        file.write(text)


def notebooks() -> list[tuple[str, str]]:
    """Writes a page per notebook of docs/notebooks, its text and code; (title, page) of each."""
    made = []
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        parts = []
        for cell in json.loads(path.read_text())["cells"]:
            text = "".join(cell["source"])
            parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        head, *rest = "\n\n".join(parts).split("\n\n", 1)
        write(f"notebooks/{path.stem}.md", "\n\n".join([head, f"As a notebook: [{path.name}]({path.name}).", *rest]) + "\n")
        made.append((head.removeprefix("# "), f"notebooks/{path.stem}.md"))
    return made


def summary() -> str:
    docs = ROOT / "docs"
    results = sorted((title(path), f"results/{path.name}") for path in (docs / "results").glob("*.md"))
    decisions = sorted((title(path), f"decisions/{path.name}") for path in (docs / "decisions").glob("*.md") if path.name != "README.md")
    listed = {*GUIDES.values(), *ABOUT.values()}
    guides = [*GUIDES.items(), *sorted((title(path), path.name) for path in docs.glob("*.md") if path.name not in listed)]
    parts = [("Guides", guides), ("Notebooks", notebooks()), ("How it is built", list(ABOUT.items())), ("Results", results)]
    lines = ["* [Start](index.md)"]
    for head, pages in parts:
        lines += [f"* {head}", *(f"    * [{name}]({path})" for name, path in pages)]
    lines += ["    * [Trained models](zoo/README.md)", "* [Decisions](decisions/README.md)"]
    lines += [f"    * [{name}]({path})" for name, path in decisions]
    return "\n".join([*lines, "* Reference", *reference()]) + "\n"


write("index.md", (ROOT / "README.md").read_text())
write("SUMMARY.md", summary())
