"""Who may import whom: kernels know Triton alone, lstm never sees it, bench sees both as a user.

Examples are users too; one takes its images from bench.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Of bench, two read machine code and compile the kernels themselves, one times launches of them
# alone, one takes them away, one counts what their tiles do, and one calls the peers.
EXTRA = {
    "bounds.py": {"kernels"},
    "sass.py": {"triton"},
    "static_report.py": {"triton", "kernels"},
    "stages.py": {"kernels"},
    "host.py": {"kernels"},
    "cases.py": {"flashrnn", "torchrl"},
}
MAY_IMPORT = {
    "kernels": {"triton", "kernels"},
    "lstm": {"torch", "lstm", "kernels"},
    "bench": {"torch", "torchvision", "numpy", "matplotlib", "tqdm", "pytest", "lstm", "bench"},
    "lstm/examples": {"torch", "openunmix", "lstm", "bench"},
}
FILES = [path for folder in MAY_IMPORT for path in sorted((ROOT / folder).glob("*.py"))]


def imported(path):
    """The packages a file imports. A relative import is of its own; lstm.kernels is kernels."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            own = path.parent.name + "." if node.level else ""
            names = [own + (node.module or "")]
        else:
            continue
        for name in names:
            top = name.split(".")
            yield "kernels" if top[:2] == ["lstm", "kernels"] else top[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_stay_within_the_layers(path):
    allowed = MAY_IMPORT[str(path.parent.relative_to(ROOT))] | sys.stdlib_module_names
    if path.parent.name == "bench":
        allowed |= EXTRA.get(path.name, set())
    assert set(imported(path)) <= allowed
