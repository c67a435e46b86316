"""Packages of the wheel: the code, and configs/ as mmrl/configs. Everything else is in pyproject.toml.

Tests, docs, examples and benchmarks stay out because only the named packages are searched.
"""

from setuptools import find_namespace_packages, find_packages, setup

CODE = ("mmrl", "dlm", "video", "image_gen")

setup(
    packages=[
        *find_packages(include=[pattern for name in CODE for pattern in (name, f"{name}.*")]),
        "mmrl.configs",
        *(f"mmrl.configs.{name}" for name in find_namespace_packages("configs")),
    ],
    package_dir={"mmrl.configs": "configs"},
    package_data={
        "": ["*.npz", "*.j2", "*.css", "*.js", "py.typed"],
        "mmrl": ["**/*.safetensors", "**/*.json", "**/*.jinja"],
        "image_gen": ["**/*.safetensors", "**/*.json"],
        "dlm": ["**/*.safetensors", "**/*.json", "**/*.jinja"],
        "video": ["**/*.safetensors", "**/*.json", "**/*.jinja"],
        "mmrl.configs": ["**/*.yaml", "**/*.json", "**/*.jsonl", "**/*.txt"],
    },
)
