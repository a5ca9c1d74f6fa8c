"""What a newcomer meets first: the command, a bare checkout, the files that an installation needs, a CUDA-built torchvision."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from foveate import _torchvision

ROOT = Path(__file__).resolve().parent.parent


def run_foveate(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "foveate", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_a_bare_checkout_has_the_command() -> None:
    """The repository root is on ``sys.path`` of ``python -m``; nothing needs to be installed."""
    done = run_foveate("--help")
    assert done.returncode == 0, done.stderr
    for command in ("train", "data", "tiny", "recipes", "report", "doctor"):
        assert command in done.stdout


def test_the_wheel_takes_code_recipes_and_weights() -> None:
    """setuptools follows the links of ``foveate/`` and takes what package-data names, below every folder."""
    from setuptools import find_namespace_packages

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = find_namespace_packages(str(ROOT), include=settings["packages"]["find"]["include"])
    for package in (
        "foveate.vlm.families",
        "foveate.train.signals",
        "foveate.datasets",
        "foveate.recipes",
        "foveate.recipes.tiny",
    ):
        assert package in packages
    assert not [package for package in packages if "__pycache__" in package or package.split(".")[0] != "foveate"]
    patterns = settings["package-data"]["*"]
    needed = ["train/templates/report.html.j2", "foveate/py.typed", "recipes/tiny/vision_opd.yaml", *weights()]
    assert not [name for name in needed if not any(Path(name).match(pattern) for pattern in patterns)]


def weights() -> list[str]:
    return (
        [path.relative_to(ROOT).as_posix() for path in (ROOT / "vlm/tiny/weights").iterdir()]
        if (ROOT / "vlm/tiny/weights").is_dir()
        else []
    )


def test_all_imported_libraries_are_declared() -> None:
    """What the rooms import at module level is a dependency of the base, under the name by which it is installed."""
    import ast

    named = {
        "PIL": "pillow",
        "cv2": "opencv-python-headless",
        "yaml": "pyyaml",
        "qwen_vl_utils": "qwen-vl-utils",
        "math_verify": "math-verify",
        "tokenizers": "transformers",
        "markupsafe": "jinja2",
    }
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    names = {entry.partition("#")[0].split("[")[0].split("=")[0].split(">")[0].strip().lower() for entry in declared}
    missing = set()
    for folder in ("vlm", "visual_tools", "datasets", "rewards", "train", "eval"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    found = [node.module]
                for name in (one.split(".")[0] for one in found):
                    if name not in sys.stdlib_module_names and named.get(name, name).lower() not in names:
                        missing.add(f"{path.relative_to(ROOT)}: {name}")
    assert not missing


def test_torchvision_built_for_cuda_imports_beside_cpu_torch() -> None:
    """PyPI's torchvision is a CUDA build; beside a CPU torch it fails to import, and transformers' processors with it."""
    code = "import foveate, torchvision.transforms.v2, qwen_vl_utils\nfrom transformers import AutoProcessor"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_torchvision_hook_is_needed_here() -> None:
    """Without the hook the import fails where it should: beside a CPU torch with a CUDA-built torchvision."""
    import importlib.metadata

    import torch

    if torch.version.cuda is not None or importlib.metadata.version("torchvision").endswith("+cpu"):
        pytest.skip("torch and torchvision are of one kind here: nothing to mend")
    done = subprocess.run([sys.executable, "-c", "import torchvision"], cwd="/", capture_output=True, text=True, timeout=300)
    assert "operator torchvision::nms does not exist" in done.stderr


def test_the_hook_is_installed_once() -> None:
    before = list(sys.meta_path)
    _torchvision.install()
    assert sys.meta_path == before
