"""Rules of the house. A rule that is only prose does not hold, so each one here is a test."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("vlm", "visual_tools", "datasets", "rewards", "train", "eval")
LEAVES = ("foveate", "benchmarks", "demo", "docs", "launch")
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_LOOP_LINES = 400, 80, 199

# Who may import whom: prefixes of modules below foveate. Everybody may import from his own room.
ARROWS: dict[str, tuple[str, ...]] = {
    "vlm": (),
    "visual_tools": ("vlm.records", "vlm.messages", "vlm.images"),
    "datasets": ("vlm", "visual_tools"),
    "rewards": ("vlm", "visual_tools"),
    "train": ("vlm", "visual_tools", "datasets", "rewards"),
    "eval": ("vlm", "visual_tools", "datasets", "rewards"),
}
ONLY_TORCH = ("train/losses.py", "train/divergence.py")
MAY_IMPORT_RICH = ("foveate/", "train/recorder.py", "train/progress.py")  # who talks to the terminal
FORBIDDEN_CALLS = {
    "eval": "model text and configuration are never executed",
    "exec": "model text and configuration are never executed",
    "hasattr": "ask the type, not the object",
    "getattr": "ask the type, not the object",
    "print": "only the command line talks to the terminal, through rich",
}
# Where the library of an object offers no other way; each entry says why.
ALLOWED_CALLS: set[tuple[str, str]] = set()


def sources(*folders: str) -> list[Path]:
    """Python files below top-level folders, links not followed."""
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if not _through_link(path)]


def _through_link(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    return any((ROOT / Path(*parts[:depth])).is_symlink() for depth in range(1, len(parts)))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """``(line, absolute dotted name)`` of everything that a module imports, wherever in the file it does so.

    ``from ..vlm import load`` in ``foveate.train.loop`` gives ``foveate.vlm`` and ``foveate.vlm.load``: the name may be a module.
    """
    package = module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}"


def forbidden_arrows(room: str, tree: ast.AST, module: str) -> list[str]:
    """Imports of our own code that the table lacks, as ``line: name``."""
    wrong = []
    for line, name in imports(tree, module):
        first, _, rest = name.partition(".")
        if first in ROOMS and first != "datasets":
            wrong.append(f"{line}: {name} (works from the repository root only; write it relative)")
        elif first == "foveate":
            allowed = (room, *ARROWS[room])
            if not any(rest == prefix or rest.startswith(prefix + ".") for prefix in allowed):
                wrong.append(f"{line}: {name}")
    return wrong


def module_name(path: Path) -> str:
    return "foveate." + ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_table(room: str) -> None:
    wrong = [
        f"{name_of(path)}:{arrow}" for path in sources(room) for arrow in forbidden_arrows(room, parsed(path), module_name(path))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_import_rule_sees_lazy_and_relative_imports() -> None:
    tree = ast.parse(
        "def f():\n    from ..eval import runner\n    from .. import demo\n"
        "from ..vlm.records import Sample\nimport vlm.load\nimport datasets\n"
    )
    assert [line.split(" (")[0] for line in forbidden_arrows("train", tree, "foveate.train.loop")] == [
        "5: vlm.load",
        "2: foveate.eval.runner",
        "3: foveate.demo",
    ]
    deep = ast.parse("from ...vlm.load import load\nfrom ...vlm.images import Picture\nfrom ..boxes import clip\n")
    assert forbidden_arrows("visual_tools", deep, "foveate.visual_tools.dialects.hermes") == ["1: foveate.vlm.load.load"]


@pytest.mark.parametrize("name", ONLY_TORCH)
def test_losses_import_only_torch(name: str) -> None:
    path = ROOT / name
    own = {module_name(ROOT / other) for other in ONLY_TORCH}
    others = {
        found
        for _, found in imports(parsed(path), module_name(path))
        if found.split(".")[0] not in (*sys.stdlib_module_names, "torch") and found.rpartition(".")[0] not in own
    }
    assert not others


def test_the_loop_fits_a_screen_or_two() -> None:
    num_lines = len((ROOT / "train/loop.py").read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_LOOP_LINES


def test_files_and_functions_stay_short() -> None:
    wrong = []
    for path in sources(*ROOMS, *LEAVES):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            wrong.append(f"{name_of(path)}: {lines} lines")
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    wrong.append(f"{name_of(path)}:{node.lineno}: {node.name} has {length} lines")
    assert not wrong, "\n".join(wrong)


def forbidden_calls(path_name: str, tree: ast.AST) -> list[str]:
    return [
        f"{path_name}:{node.lineno}: {node.func.id}() - {FORBIDDEN_CALLS[node.func.id]}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in FORBIDDEN_CALLS
        and (path_name, node.func.id) not in ALLOWED_CALLS
    ]


def broad_excepts(path_name: str, tree: ast.AST) -> list[str]:
    """Handlers that catch everything: bare, Exception or BaseException, alone or in a tuple."""
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if any(kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException")) for kind in kinds):
                wrong.append(f"{path_name}:{node.lineno}: catches everything; name the errors that are meant")
    return wrong


def test_forbidden_calls_and_broad_excepts() -> None:
    wrong = []
    for path in sources(*ROOMS, "foveate"):
        wrong += forbidden_calls(name_of(path), parsed(path)) + broad_excepts(name_of(path), parsed(path))
    assert not wrong, "\n".join(wrong)


def test_the_call_rules_can_fail() -> None:
    tree = ast.parse(
        "eval('1')\nmodel.eval()\ngetattr(a, 'b')\n"
        "try:\n    pass\nexcept (OSError, Exception):\n    pass\ntry:\n    pass\nexcept:\n    pass\n"
    )
    assert [line.split(":")[1] for line in forbidden_calls("x", tree)] == ["1", "3"]
    assert [line.split(":")[1] for line in broad_excepts("x", tree)] == ["6", "10"]


def test_only_the_terminal_modules_import_rich() -> None:
    wrong = [
        f"{name_of(path)}:{line}"
        for path in sources(*ROOMS)
        if not name_of(path).startswith(MAY_IMPORT_RICH)
        for line, name in imports(parsed(path), module_name(path))
        if name.split(".")[0] == "rich"
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_linked_namespace_folders(room: str) -> None:
    """An ``__init__.py`` in datasets/ would hide Hugging Face's datasets from every library started at the root."""
    assert not [name_of(path) for path in (ROOT / room).rglob("__init__.py")]
    link = ROOT / "foveate" / room
    assert link.is_symlink()
    assert link.readlink() == Path("..", room)


def run_python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_datasets_is_hugging_faces() -> None:
    import datasets

    assert "site-packages" in str(datasets.__file__)
    assert datasets.load_dataset


@pytest.mark.parametrize("how", ["python -c", "python -m pytest"])
def test_datasets_is_hugging_faces_from_the_root(how: str, tmp_path: Path) -> None:
    code = "import datasets, foveate.datasets.spec; assert datasets.load_dataset"
    if how == "python -c":
        run_python("-c", code)
        return
    (tmp_path / "test_it.py").write_text(f"def test_it():\n    {code}\n", encoding="utf-8")
    assert "1 passed" in run_python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "pyproject.toml", "--rootdir", ".", str(tmp_path / "test_it.py")
    )


def test_records_data_rewards_and_recipes_import_no_model_stack() -> None:
    light = ["foveate.vlm.records", "foveate.train.config", *(module_name(path) for path in sources("datasets", "rewards"))]
    heavy = ("transformers", "vllm", "deepspeed", "peft", "accelerate", "trl", "torchvision")
    code = f"import importlib, sys\nfor name in {light!r}: importlib.import_module(name)\n"
    code += f"print(*sorted(set({heavy!r}) & set(sys.modules)))"
    assert run_python("-c", code).split() == []


def recipes() -> list[str]:
    return sorted(path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in (ROOT / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("name", recipes())
def test_recipes_load_and_say_what_they_are(name: str) -> None:
    from foveate.train.recipes import load_any, recipe_path

    load_any(name)
    assert recipe_path(name).read_text(encoding="utf-8").startswith("#"), (
        "a recipe's head says what it does and what differs from the paper"
    )


def test_there_are_recipes() -> None:
    methods = ("vision_opd", "imagine_opd", "opsd", "sft", "grpo")
    assert {f"{setting}/{method}" for method in methods for setting in ("tiny", "paper")} <= set(recipes())
