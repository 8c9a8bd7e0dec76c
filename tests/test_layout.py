"""The tree: imports go one way, no two modules import each other, and the root has few Python files."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

# Each package may import those before it, and itself.
ORDER = (
    "curriculums",  # plain data, which imports nothing
    "common",
    "settings",
    "fields",
    "siren",
    "triplane",
    "discriminators",
    "generators",
    "checkpoints",
    "distributed",
    "visualization",
    "viewing",
    "web",
    "heads",
    "loading",
    "dataset",
    "metrics",
    "inversion",
    "training",
    "tools",
)
MAX_ROOT_FILES = 14
NOT_PRODUCT = ("tests", "benchmarks", "docs", ".venv")


def modules_of(repo: Path) -> dict[str, Path]:
    """The product's modules by dotted name."""
    found = {}
    for path in sorted(repo.rglob("*.py")):
        parts = path.relative_to(repo).with_suffix("").parts
        if parts[0] not in NOT_PRODUCT:
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports_of(path: Path, known: set[str]) -> set[str]:
    """The product's modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & known


def package_of(module: str) -> str:
    return module.split(".")[0]


def test_imports_go_one_way(repo: Path) -> None:
    modules = modules_of(repo)
    commands = {name for name in modules if "." not in name and package_of(name) not in ORDER}
    wrong = []
    for name, path in modules.items():
        if name in commands:
            continue
        for imported in imports_of(path, set(modules)):
            own, other = package_of(name), package_of(imported)
            if other in commands or ORDER.index(other) > ORDER.index(own):
                wrong.append(f"{name} imports {imported}")
    assert not wrong


def test_no_two_modules_import_each_other(repo: Path) -> None:
    modules = modules_of(repo)
    is_package = {name for name, path in modules.items() if path.name == "__init__.py"}
    graph = {name: imports_of(path, set(modules)) - is_package for name, path in modules.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the cycle


def test_the_root_holds_few_python_files(repo: Path) -> None:
    assert len(list(repo.glob("*.py"))) <= MAX_ROOT_FILES


def reads_text_as_the_system_does(call: ast.Call) -> bool:
    """Whether a call opens a text file without saying its encoding, so that Windows would read it as another one."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in ("read_text", "write_text", "open", "fdopen") or any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if name in ("read_text", "write_text"):
        return True
    modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    modes = [mode for mode in modes if set(mode) <= set("rwaxbt+")]
    return any("b" not in mode for mode in modes) or (isinstance(call.func, ast.Name) and name == "open" and not modes)


def test_text_files_name_their_encoding(repo: Path) -> None:
    wrong = []
    for name, path in modules_of(repo).items():
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        wrong += [f"{name}:{call.lineno}" for call in calls if reads_text_as_the_system_does(call)]
    assert not wrong
