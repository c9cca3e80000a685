"""Imports point one way, and the trainer knows no model."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import tgo_trl
from tgo_trl.families import FAMILIES

PACKAGE = Path(tgo_trl.__file__).parent
MODULES = {
    ".".join(("tgo_trl", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def modules_in(*parts):
    return {name for name in MODULES if any(f"{name}.".startswith(f"tgo_trl.{part}.") for part in parts)}


PURE = modules_in("losses", "labels", "noise")
FAMILY_MODULES = modules_in("families")


class Imports(ast.NodeVisitor):
    """Names of the modules that a file imports at run time, functions' bodies included."""

    def __init__(self, module, is_package):
        self.package = module if is_package else module.rpartition(".")[0]
        self.names = set()

    def visit_If(self, node):
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Import(self, node):
        self.names |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node):
        source = node.module or ""
        if node.level:
            parents = self.package.split(".")
            source = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
        submodules = {f"{source}.{alias.name}" for alias in node.names} & MODULES.keys()
        self.names |= submodules or {source}


def imports_of(module):
    path = MODULES[module]
    visitor = Imports(module, path.name == "__init__.py")
    visitor.visit(ast.parse(path.read_text()))
    return visitor.names


def test_imports_are_found():
    # What the other tests rely on: relative imports, submodules, and blocks for type checkers.
    assert "tgo_trl.losses.tgo" in imports_of("tgo_trl.trainer.tgo_trainer")
    assert "tgo_trl.trainer.checkpoints" in imports_of("tgo_trl.trainer.tgo_trainer")  # from . import checkpoints
    assert "tgo_trl.noise" in imports_of("tgo_trl.families.base")  # from ..noise import NoiseProcess
    assert "tgo_trl.noise.base" in imports_of("tgo_trl.noise.diffusion")
    assert "torch" in imports_of("tgo_trl.losses.tgo")
    assert "from .tgo_trainer import" in MODULES["tgo_trl.trainer.callbacks"].read_text()  # for type checkers
    assert len(PURE) >= 6
    assert len(FAMILY_MODULES) >= 3


@pytest.mark.parametrize("module", sorted(PURE))
def test_the_theory_imports_only_torch(module):
    for name in imports_of(module):
        assert name in PURE or name.partition(".")[0] in {"torch", *sys.stdlib_module_names}, name


@pytest.mark.parametrize("module", sorted(FAMILY_MODULES))
def test_families_import_only_processes_and_models_of_the_package(module):
    own = {name for name in imports_of(module) if name.partition(".")[0] == "tgo_trl"}
    assert own <= PURE | FAMILY_MODULES | modules_in("models")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_imports_the_trainer(module):
    if module != "tgo_trl.commands.train.run":  # what the trainer is there for
        # the package's `__init__` loads it by name, on first use
        assert "tgo_trl.trainer.tgo_trainer" not in imports_of(module)


def test_imports_have_no_cycles():
    graph = {module: imports_of(module) & MODULES.keys() for module in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) == MODULES.keys()


def test_the_trainer_names_no_family():
    source = MODULES["tgo_trl.trainer.tgo_trainer"].read_text()
    families = {family.__name__ for family in FAMILIES.values()}
    pipelines = set(FAMILIES)
    assert not [name for name in families | pipelines if name in source]
    # Nor does it look into a pipeline for the parts that a family names.
    tree = ast.walk(ast.parse(source))
    attributes = {node.attr for node in tree if isinstance(node, ast.Attribute)}
    parts = set()
    for family in FAMILIES.values():
        parts |= {*family.network_names, *family.image_encoders, *family.prompt_encoders}
    assert not attributes & parts


def test_exports():
    for name in tgo_trl.__all__:
        assert getattr(tgo_trl, name) is not None
    assert tgo_trl.TGOConfig.__module__ == "tgo_trl.trainer.tgo_config"
    assert tgo_trl.TGOTrainer.__module__ == "tgo_trl.trainer.tgo_trainer"
    with pytest.raises(AttributeError, match="has no attribute 'DPOTrainer'"):
        tgo_trl.DPOTrainer  # noqa: B018


def test_pure_modules_load_no_heavy_library():
    names = sorted(PURE | {"tgo_trl.policy.draws"})
    code = f"""
import importlib, sys
import tgo_trl
assert "torch" not in sys.modules
for name in {names}:
    importlib.import_module(name)
heavy = ("transformers", "diffusers", "datasets", "peft", "accelerate", "matplotlib")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""
    assert done.stdout == "[]\n"
