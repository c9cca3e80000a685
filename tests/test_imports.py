"""The plan of the house: rooms, what each may import, no circle among them, and a trainer that knows no model."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import tgo_trl
from tgo_trl.families import FAMILIES

PACKAGE = Path(tgo_trl.__file__).parent
FACE = "tgo_trl"

ROOMS = {
    "losses": {"torch"},
    "labels": {"torch"},
    "noise": {"torch"},
    "messages": set(),
    "media": {"torch", "numpy", "PIL", "datasets", "huggingface_hub", "av", "pyarrow"},
    "storage": {
        "torch", "safetensors", "datasets", "accelerate", "pyarrow", "fsspec", "huggingface_hub", "filelock", "psutil",
        "tqdm", "PIL",
    },
}  # fmt: skip
"""What the lower rooms import besides the standard library and rooms of this package."""
THEORY = ("losses", "labels", "noise")
BELOW = {
    "losses": {"losses"},
    "labels": {"labels"},
    "noise": {"noise"},
    "messages": {"messages"},
    "media": {"media", "messages"},
    "storage": {"storage", "media", "messages"},
    "measures": {"measures", "media"},
    "models": {"models"},
    "families": {"families", "models", "media", "noise", "precision"},
    "hub": {"hub", "cards", "storage", "messages"},
}
"""The rooms, or modules at the root, that a room may import from."""
TRAINING = "tgo_trl.trainer"
MOST_AT_THE_ROOT = 8


def modules_of(package):
    """The path of each module by its name."""
    name = package.name
    return {
        ".".join((name, *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }


MODULES = modules_of(PACKAGE)


class Imports(ast.NodeVisitor):
    """Names of the modules that a file imports, functions' bodies and blocks for type checkers included."""

    def __init__(self, module, is_package, modules, with_types):
        self.package = module if is_package else module.rpartition(".")[0]
        self.modules = modules
        self.with_types = with_types
        self.names = set()

    def visit_If(self, node):
        if not self.with_types and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
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
        submodules = {f"{source}.{alias.name}" for alias in node.names} & self.modules.keys()
        self.names |= submodules or {source}


def imports_of(module, modules=MODULES, with_types=True):
    """What a module imports, itself left out."""
    path = modules[module]
    visitor = Imports(module, path.name == "__init__.py", modules, with_types)
    visitor.visit(ast.parse(path.read_text()))
    return visitor.names - {module}


def graph_of(modules, with_types=True):
    """The modules of the package that each imports. Its face names what it hands on, and imports none of it."""
    face = min(modules, key=len)
    return {
        module: (imports_of(module, modules, with_types) & modules.keys()) - ({face} if module != face else set())
        for module in modules
        if module != face
    }


def room_of(module):
    """The room, or the module itself at the root."""
    parts = module.split(".")
    return ".".join(parts[:2])


def rooms_of(graph):
    """Which rooms each room imports from."""
    rooms = {room_of(module): set() for module in graph}
    for module, names in graph.items():
        rooms[room_of(module)] |= {room_of(name) for name in names} - {room_of(module)}
    return rooms


def in_rooms(*rooms):
    return [module for module in sorted(MODULES) if any(f"{module}.".startswith(f"tgo_trl.{room}.") for room in rooms)]


def outside(module):
    """The libraries that a module imports."""
    names = {name.partition(".")[0] for name in imports_of(module)}
    return names - {FACE, *sys.stdlib_module_names}


# ---- The tests' own eyes ----


def test_imports_are_found():
    # What the other tests rely on: relative imports, submodules, and blocks for type checkers.
    assert "tgo_trl.losses" in imports_of("tgo_trl.trainer.tgo_trainer")
    assert "tgo_trl.trainer.checkpoints" in imports_of("tgo_trl.trainer.resumable_trainer")  # from . import checkpoints
    assert "tgo_trl.noise" in imports_of("tgo_trl.families.base")  # from ..noise import NoiseProcess
    assert "tgo_trl.noise.base" in imports_of("tgo_trl.noise.diffusion")
    assert "torch" in imports_of("tgo_trl.losses.tgo")
    assert "tgo_trl.settings" in imports_of("tgo_trl.cli")  # for type checkers, and in functions
    for room in (*ROOMS, *BELOW):
        assert in_rooms(room)


def write(folder, **files):
    package = folder / "house"
    for name, text in {"__init__": "", **files}.items():
        path = package / f"{name.replace('__room__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for room in {path.parent for path in package.rglob("*.py")}:
        (room / "__init__.py").touch()
    return modules_of(package)


def test_circles_of_files_and_of_rooms_are_found_those_of_types_too(tmp_path):
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .one import One\n"
    files = graph_of(write(tmp_path / "files", one="from .other import x\n", other=typed))
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter(files).static_order())
    run_time = graph_of(write(tmp_path / "files", one="from .other import x\n", other=typed), with_types=False)
    list(graphlib.TopologicalSorter(run_time).static_order())

    rooms = graph_of(
        write(
            tmp_path / "rooms",
            a__room__low="",
            a__room__high="from ..b.all import x\n",
            b__room__all="from ..a.low import y\n",
        )
    )
    list(graphlib.TopologicalSorter(rooms).static_order())
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter(rooms_of(rooms)).static_order())


def test_a_theory_that_imports_diffusers_would_be_found(tmp_path, monkeypatch):
    path = tmp_path / "bad.py"
    path.write_text('"""A loss."""\n\n\ndef loss():\n    from diffusers import UNet2DModel\n    return UNet2DModel\n')
    monkeypatch.setitem(MODULES, "tgo_trl.losses.bad", path)
    with pytest.raises(AssertionError, match="diffusers"):
        test_a_lower_room_imports_only_what_it_is_built_on("tgo_trl.losses.bad")


# ---- Rooms ----


def test_few_modules_stand_at_the_root():
    root = [module for module, path in MODULES.items() if path.parent == PACKAGE and path.name != "__main__.py"]
    assert len(root) <= MOST_AT_THE_ROOT, root


@pytest.mark.parametrize("with_types", [True, False])
def test_there_is_no_circle_of_files(with_types):
    graph = graph_of(MODULES, with_types)
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) == MODULES.keys() - {FACE}


def test_there_is_no_circle_of_rooms():
    rooms = rooms_of(graph_of(MODULES))
    order = list(graphlib.TopologicalSorter(rooms).static_order())
    assert len(order) == len(rooms) > 10


@pytest.mark.parametrize("module", in_rooms(*ROOMS))
def test_a_lower_room_imports_only_what_it_is_built_on(module):
    room = module.split(".")[1]
    assert outside(module) <= ROOMS[room], f"{module} imports {sorted(outside(module) - ROOMS[room])}"


@pytest.mark.parametrize("module", in_rooms(*BELOW))
def test_a_room_looks_only_down(module):
    own = {room_of(name).removeprefix("tgo_trl.") for name in imports_of(module) if name.partition(".")[0] == FACE}
    assert own <= BELOW[module.split(".")[1]]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_but_the_commands_that_train_imports_the_trainer(module):
    commands = tuple(f"tgo_trl.commands.{name}." for name in ("train", "plan", "rounds", "demo"))
    others = not f"{module}.".startswith((f"{TRAINING}.", *commands))
    shims = ("tgo_trl", "tgo_trl.config", "tgo_trl.sampling")  # the face and the older paths hand it on
    if others and module not in shims:
        assert not [name for name in imports_of(module) if f"{name}.".startswith(f"{TRAINING}.")]


# ---- The trainer knows no model, and no loss ----


TRAINERS = [module for module in in_rooms("trainer") if module.endswith("_trainer")]


@pytest.mark.parametrize("module", TRAINERS)
def test_the_trainers_name_no_family(module):
    source = MODULES[module].read_text()
    families = {family.__name__ for family in FAMILIES.values()}
    pipelines = set(FAMILIES)
    assert not [name for name in families | pipelines if name in source]
    # Nor do they look into a pipeline for the parts that a family names.
    tree = ast.walk(ast.parse(source))
    attributes = {node.attr for node in tree if isinstance(node, ast.Attribute)}
    parts = set()
    for family in FAMILIES.values():
        parts |= {*family.network_names, *family.image_encoders, *family.prompt_encoders}
    assert not attributes & parts


def test_the_trainers_are_two_on_four_floors_that_they_share():
    floors = [
        "alignprop_trainer",
        "base_trainer",
        "published_trainer",
        "resumable_trainer",
        "selecting_trainer",
        "tgo_trainer",
    ]
    assert [module.rpartition(".")[2] for module in TRAINERS] == floors


def is_string(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize("module", [module for module in sorted(MODULES) if "tgo_trl.losses" not in module])
def test_nobody_asks_for_the_name_of_a_loss(module):
    from tgo_trl.losses import LOSSES

    compared = [
        part.value
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.Compare) and "loss_type" in ast.unparse(node)
        for part in ast.walk(node)
        if is_string(part)
    ]
    assert not set(compared) & LOSSES.keys()


# ---- Names and weight ----


def test_exports():
    for name in tgo_trl.__all__:
        assert getattr(tgo_trl, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'DPOTrainer'"):
        tgo_trl.DPOTrainer  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'DPOTrainer'"):
        tgo_trl.trainer.DPOTrainer  # noqa: B018


def test_the_older_paths_of_public_names_lead_to_the_same():
    from tgo_trl.config import TGOConfig
    from tgo_trl.data.collator import RowCollator
    from tgo_trl.families import Clip, VideoFormat
    from tgo_trl.noise import DiffusionProcess, NoiseProcess
    from tgo_trl.processes import DiffusionProcess as OlderDiffusion
    from tgo_trl.processes import Process
    from tgo_trl.sampling import SampleGridCallback
    from tgo_trl.trainer import TGOTrainer

    assert TGOConfig is tgo_trl.TGOConfig
    assert TGOTrainer is tgo_trl.TGOTrainer
    assert SampleGridCallback is tgo_trl.SampleGridCallback
    assert Clip is VideoFormat
    assert (Process, OlderDiffusion) == (NoiseProcess, DiffusionProcess)
    assert RowCollator.__module__ == "tgo_trl.data.collator"


HEAVY = ("transformers", "diffusers", "datasets", "peft", "accelerate", "matplotlib")
LIGHT = {
    "theory": [*in_rooms(*THEORY), "tgo_trl.policy.draws", "tgo_trl.media.types", "tgo_trl.precision"],
    "settings of commands": [module for module in in_rooms("commands") if module.endswith(("config", "settings"))],
    "messages and storage": [*in_rooms("messages"), "tgo_trl.storage.files", "tgo_trl.settings", "tgo_trl.cli"],
}


def loaded_with(modules, libraries):
    code = f"""
import importlib, sys
import tgo_trl
assert "torch" not in sys.modules
for name in {modules}:
    importlib.import_module(name)
print([name for name in {libraries} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("what", LIGHT)
def test_what_is_light_loads_no_heavy_library(what):
    assert len(LIGHT[what]) > 4
    libraries = HEAVY if what == "theory" else ("torch", *HEAVY)
    assert loaded_with(LIGHT[what], libraries) == "[]\n"


def test_a_size_and_a_dtype_load_no_diffusers():
    assert loaded_with(in_rooms("media"), ("diffusers", "transformers", "peft")) == "[]\n"
