"""The house itself: what is in the wheel, what the README promises, how large files may grow."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = ("mmrl", "dlm", "video", "image_gen")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in a wheel built from a copy of the tracked and new files; no network."""
    import shutil

    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    keep = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=keep)
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl"))).namelist()


def test_the_wheel_holds_the_code_and_the_configurations(wheel: list[str]) -> None:
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        assert f"mmrl/configs/{path.relative_to(ROOT / 'configs').as_posix()}" in wheel
    for package in CODE:
        for path in (ROOT / package).rglob("*"):
            if (
                path.suffix in (".py", ".j2", ".css", ".js", ".npz", ".safetensors", ".json", ".jinja")
                and "__pycache__" not in path.parts
            ):
                assert path.relative_to(ROOT).as_posix() in wheel


def test_the_wheel_holds_nothing_else(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {t for t in tops if not t.endswith(".dist-info")} <= set(CODE)
    assert not [n for n in wheel if "/tests/" in n or "/docs/" in n or "/benchmarks/" in n or n.endswith(".pyc")]
    assert any(n.endswith("licenses/LICENSE") for n in wheel)


def blocks(name: str) -> list[str]:
    """Command lines in the shell blocks of a document, comments cut off, continuation lines joined."""
    text = (ROOT / name).read_text(encoding="utf-8")
    lines: list[str] = []
    for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\s+#.*", "", line).strip().removeprefix("$ ")
            if line and not line.startswith("#"):
                lines.append(line)
    return lines


def test_readme_starts_with_the_two_commands() -> None:
    assert blocks("README.md")[:2] == ["make quickstart", "make test"]


def test_ci_runs_the_readmes_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "make test" in script and "make test" in blocks("README.md")


def make(*arguments: str) -> str:
    done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_quickstart_and_make_test_do_what_they_say() -> None:
    assert "mmrl quickstart vlm --seed 0" in make("quickstart")
    assert "--steps 3" in make("quickstart", "STEPS=3")
    assert "--editable '.[dev]'" in make("-W", "pyproject.toml", "test")
    recipe = make("test")
    order = [recipe.index(step) for step in ("ruff check", "ruff format --check", "mypy", "lint-imports", "pytest")]
    assert order == sorted(order)
    assert "not slow" in recipe


def test_every_mmrl_command_in_the_documents_parses() -> None:
    """Each `mmrl ...` line names a command and options that exist."""
    import typer

    from mmrl.cli.main import app

    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    seen = set()
    for document in ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]:
        for line in blocks(document):
            words = [word.removeprefix(".venv/bin/") for word in line.split()]
            if "mmrl" not in words:
                continue
            name, *rest = words[words.index("mmrl") + 1 :]
            if name.startswith("-"):
                continue
            assert name in known, f"{document}: {line}"
            seen.add(name)
            command = known[name]
            if hasattr(command, "commands"):  # a group: `mmrl data convert ...`
                name, *rest = rest
                assert name in command.commands, f"{document}: {line}"
                command = command.commands[name]
            options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            for word in rest:
                if word.startswith("--"):
                    assert word.split("=")[0] in options, f"{document}: {line}"
    assert seen == set(known)  # every command is shown somewhere


def test_documents_link_to_files_that_exist() -> None:
    for document in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://")):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_readme_lists_every_recipe() -> None:
    from mmrl.recipes import available

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in available():
        assert f"`{name}`" in text, name


def test_the_core_imports_torch_and_the_standard_library_only() -> None:
    """What the import linter cannot say: any third package is refused, not only listed ones."""
    allowed = {"torch", "mmrl"} | set(sys.stdlib_module_names)
    for path in (ROOT / "mmrl" / "core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in allowed, f"{path}: {name}"
                if name.startswith("mmrl"):
                    assert name.startswith(("mmrl.core", "mmrl.errors")), f"{path}: {name}"


def imported() -> set[str]:
    """Third-party packages that the code imports anywhere, lazily or not."""
    found = set()
    for package in CODE:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
                found |= {name.split(".")[0] for name in names}
    return found - set(sys.stdlib_module_names) - set(CODE)


#: Import name -> distribution where they differ; and what is needed without an import statement.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "open_clip": "open_clip_torch", "math_verify": "math-verify"}
INDIRECT = {
    "torchvision": "transformers' picture processors",
    "accelerate": "transformers and peft",
    "tensorboard": "torch.utils.tensorboard",
    "diffusers": "the pipelines and schedulers that image_gen's steps and tables equal",
}


def test_dependencies_are_what_the_code_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def named(lines: list[str]) -> set[str]:
        return {re.split(r"[<>=\[ ]", line)[0].lower() for line in lines}

    required = named(project["dependencies"])
    optional = named([line for extra in project["optional-dependencies"].values() for line in extra])
    used = {DISTRIBUTIONS.get(name, name) for name in imported()}
    assert used <= required | optional, used - required - optional
    assert required <= used | set(INDIRECT), required - used
    assert all(">=" in line for line in project["dependencies"])


def test_files_stay_small() -> None:
    for package in CODE:
        for path in (ROOT / package).rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_one_file_holds_the_version() -> None:
    from importlib import metadata

    import mmrl

    assert metadata.version("mmrl") == mmrl.__version__
    assert mmrl.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
