"""Imports flow one way, and files stay short and documented."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import redraft

ROOT = Path(redraft.__file__).parent
ORDER = [
    "errors",
    "files",
    "records",
    "pages",
    "drawing",
    "randomness",
    "data",
    "schedules",
    "processes",
    "models",
    "objectives",
    "recipes",
    "sampling",
    "constraints",
    "guidance",
    "training",
    "evaluation",
    "generation",
    "writing",
    "answering",
    "presets",
    "publishing",
    "lm",
    "trace",
    "continuation",
    "conversion",
    "runs",
    "distillation",
    "finetuning",
    "studies",
    "frontiers",
    "reporting",
    "options",
    "printing",
    "flags",
    "sweeping",
    "measuring",
    "drafting",
    "chatting",
    "handover",
    "safety",
    "harness",
    "dglm",
    "listing",
    "cli",
]
ALLOWED = {layer: set(ORDER[: i + 1]) for i, layer in enumerate(ORDER)}
ALLOWED["data"] = {"data", "errors", "files"}
ALLOWED["training"] -= {"sampling", "guidance"}
FILES = sorted(ROOT.rglob("*.py"))


def layer(path: Path) -> str:
    """The first name below ``redraft``: a package or a module."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """The layers a file imports, anywhere in it; a relative import is refused."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: line {node.lineno}: relative import"
            below = [f"redraft.{alias.name}" for alias in node.names]
            names = below if node.module == "redraft" else [node.module or ""]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("redraft."))


def test_every_part_has_its_place():
    assert {layer(path) for path in FILES} - {"__init__"} <= set(ORDER)


@pytest.mark.parametrize("path", [p for p in FILES if layer(p) != "__init__"], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_flow_downwards(path):
    upwards = set(imported(path)) - ALLOWED[layer(path)] - {"__version__"}
    assert not upwards, f"{path.relative_to(ROOT)} imports {sorted(upwards)}, which stand above it"


def test_imported_sees_all_forms(tmp_path):
    file = tmp_path / "one.py"
    file.write_text("import redraft.cli\nfrom redraft import lm\ndef f():\n    from redraft.data.toy import LENGTH\n")
    assert sorted(imported(file)) == ["cli", "data", "lm"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short_and_documented(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "a module says what it is for"
    assert text.count("\n") <= 400
