"""A folder says what its code may touch: read from the source, without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from helpers import ROOT

PACKAGES = ("lightning_modules", "datamodules", "callbacks")
SCRIPTS = ROOT / "scripts"
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}


def files(*places: Path) -> list[Path]:
    return sorted(path for place in places for path in ([place] if place.suffix else place.rglob("*.py")))


SOURCE = files(*(ROOT / package for package in PACKAGES), SCRIPTS)


def module(path: Path) -> str:
    """How others import the file."""
    inside = path.relative_to(SCRIPTS if path.is_relative_to(SCRIPTS) else ROOT)
    return ".".join(inside.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path) for path in SOURCE}
IMPURE = ("classifier.py", "cifar10.py")  # and what re-exports them
PURE = {
    path
    for path in files(ROOT / "lightning_modules", ROOT / "datamodules", ROOT / "callbacks/pure")
    if path.name not in IMPURE and path not in [ROOT / package / "__init__.py" for package in PACKAGES]
}


def imports(path: Path) -> Iterator[tuple[str, str, str]]:
    """Module, name taken from it ("" for the module itself) and the name it gets, for every import in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from ((str(node.module), alias.name, alias.asname or alias.name) for alias in node.names)


def imported(path: Path) -> set[str]:
    """All modules that the file imports, with ``package.module`` for ``from package import module``."""
    return {f"{source}.{name}" if f"{source}.{name}" in MODULES else source for source, name, _ in imports(path)}


def found(breaches: list[str]) -> None:
    assert not breaches, "\n".join(["", *breaches])


def test_there_is_something_to_look_at() -> None:
    assert len(SOURCE) > 30
    assert {"alexnet.py", "lrn.py", "shapes10.py", "official.py", "knn.py"} <= {path.name for path in PURE}
    assert "datamodules.sources.official" in MODULES
    assert "running.errors" in MODULES
    assert {"lightning", "datamodules.shapes10"} <= imported(ROOT / "datamodules/cifar10.py")


def test_the_packages_do_not_import_each_other_nor_the_scripts() -> None:
    scripts = {module(path).split(".")[0] for path in files(SCRIPTS)}
    found(
        [
            f"{module(path)} imports {other}"
            for path in SOURCE
            if (home := module(path).split(".")[0]) in PACKAGES
            for other in imported(path)
            if other.split(".")[0] in ({*PACKAGES} - {home}) | scripts
        ]
    )


def test_nothing_takes_a_private_name_from_another_file() -> None:
    breaches = []
    for path in SOURCE:
        ours = {}
        for source, name, called in imports(path):
            whole = f"{source}.{name}" if name else source
            if source in MODULES and name.startswith("_"):
                breaches.append(f"{module(path)} imports {whole}")
            if whole in MODULES:
                ours[called] = whole
        for node in ast.walk(ast.parse(path.read_text())):
            private = isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
            if private and (owner := ours.get(ast.unparse(node.value))):
                breaches.append(f"{module(path)} uses {owner}.{node.attr}")
    found(breaches)


def test_pure_code_imports_no_lightning_and_only_pure_code() -> None:
    pure = {module(path) for path in PURE}
    found(
        [
            f"{module(path)} imports {other}"
            for path in sorted(PURE)
            for other in imported(path)
            if other.split(".")[0] in LIGHTNING or (other in MODULES and other not in pure)
        ]
    )


def test_nothing_imports_a_script() -> None:
    """Scripts share packages, such as ``running``, and never each other."""
    entries = {module(path) for path in SCRIPTS.glob("*.py")}
    found(
        [f"{module(path)} imports {other}" for path in files(SCRIPTS) for other in imported(path) if other in entries]
    )
