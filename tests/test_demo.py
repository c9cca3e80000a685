"""`tgo-trl demo`: the quick start's commands on the package's own files, from a source tree and from a wheel."""

import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tgo_trl.cli import main
from tgo_trl.commands.demo import DemoConfig
from tgo_trl.commands.demo.run import FILES, as_typed, demo, demo_commands, digits_folder, read_means

from .devices import cpu_environment
from .test_four_commands import commands as quick_start

ROOT = Path(__file__).parents[1]


def options(words):
    """The values of each option of a command."""
    found = {}
    for word in words:
        if word.startswith("--"):
            found[word] = []
        elif found:
            found[list(found)[-1]].append(word)
    return found


@pytest.mark.parametrize("name", ["generate", "score", "inspect", "train"])
def test_the_commands_are_those_of_the_quick_start(name):
    typed = shlex.split(as_typed(name, demo_commands(DemoConfig("outputs"))[name]).replace("\\\n", " "))
    assert typed[:2] == ["tgo-trl", name]
    shown = {
        option: [value.replace("outputs/digits/", "examples/digits/") for value in values]
        for option, values in options(typed).items()
    }
    expected = options(quick_start()[name])
    for found in (shown, expected):
        found["--learning_rate"] = [float(value) for value in found.get("--learning_rate", [])]
        found["--seed"] = found.get("--seed", ["42"])
    assert shown == expected


def test_a_printed_command_survives_the_shell():
    folder = "my demo's $HOME"
    typed = as_typed("inspect", demo_commands(DemoConfig(folder))["inspect"])
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    script = f'tgo-trl() {{ {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"; }}\n{typed}\n'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [
        "inspect", "--dataset_name", f"{folder}/scored", "--output_dir", f"{folder}/report"
    ]  # fmt: skip


def test_the_comparison_draws_other_images_than_those_of_training():
    settings = demo_commands(DemoConfig(seed=7))
    assert [settings[name]["seed"] for name in ("generate", "train", "evaluate")] == [7, 7, 8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_dir": ""}, "`output_dir` is ''"),
        ({"output_dir": "a+b"}, "without a `\\+`"),
        ({"output_dir": 3}, "`output_dir` is 3"),
        ({"quick": "no"}, "`quick` is 'no'"),
        ({"seed": -1}, "`seed` is -1; write 0 to 4294967294"),
        ({"seed": 2**32 - 1}, "`seed` is 4294967295"),
        ({"seed": 0.5}, "`seed` is 0.5"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DemoConfig(**settings)


def test_without_scikit_learn_nothing_is_done_and_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # so that it cannot be imported
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith('pip install "tgo_trl[demo]"')
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_or_of_another_demo_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'thesis.txt' and no demo.json"):
        demo(DemoConfig(str(tmp_path)))
    (tmp_path / "demo.json").write_text(json.dumps({"settings": {"quick": True, "seed": 42}}))
    with pytest.raises(ValueError, match=r"a demo with other settings: `quick` True, `seed` 42\. Set another"):
        demo(DemoConfig(str(tmp_path)))
    assert not (tmp_path / "digits").exists()


def test_the_files_are_found_in_the_source_tree():
    assert digits_folder() == ROOT / "examples" / "digits"


@pytest.mark.slow
def test_it_runs_and_runs_again_to_the_same_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--quick"]) == 0
    printed, out = capsys.readouterr().out, tmp_path / "tgo-demo"
    weights = load_file(out / "adapter" / "pytorch_lora_weights.safetensors")
    shares = json.loads((out / "demo.json").read_text())["share_of_asked_digits"]
    assert shares == read_means(out / "evaluation")
    assert all(share * 40 == pytest.approx(round(share * 40)) for share in shares.values())  # of 40 images
    assert f"asked for: base {100 * shares['base']:.1f} %, adapter {100 * shares['adapter']:.1f} %." in printed
    assert [line for line in printed.splitlines() if line.startswith("tgo-trl ")] == [
        f"tgo-trl {name} \\" for name in ("generate", "score", "inspect", "train", "evaluate")
    ]
    picture = out / "evaluation" / "grid-1.png"
    assert picture.is_file()
    assert f"Look at: {picture.relative_to(tmp_path)}," in printed
    drawn = {path: path.stat().st_mtime_ns for path in out.glob("drawn/data/*.parquet")}
    assert main(["demo", "--quick"]) == 0
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn  # not drawn again
    again = load_file(out / "adapter" / "pytorch_lora_weights.safetensors")
    assert all(again[name].equal(value) for name, value in weights.items())
    assert json.loads((out / "demo.json").read_text())["share_of_asked_digits"] == shares


@pytest.mark.slow
def test_it_runs_from_a_wheel(tmp_path):
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), str(ROOT)]
    built = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, check=False)
    assert built.returncode == 0, built.stderr[-2000:]
    [wheel] = tmp_path.glob("tgo_trl-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(installed)
    place, source = installed / "tgo_trl" / "commands" / "demo" / "digits", ROOT / "examples" / "digits"
    assert {path.name for path in place.iterdir()} == set(FILES)
    wanted = [path for name in FILES for path in (source / name, *(source / name).rglob("*")) if path.is_file()]
    for path in wanted:
        assert (place / path.relative_to(source)).read_bytes() == path.read_bytes()

    environment = cpu_environment(PYTHONPATH=str(installed), HF_HOME=str(tmp_path / "home"))
    code = (
        "import tgo_trl.commands.demo.run as it; from tgo_trl.cli import main\n"
        f"assert str(it.digits_folder()) == {str(place)!r}, it.digits_folder()\n"
        "raise SystemExit(main(['demo', '--quick', '--output_dir', 'out']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Look at: out/evaluation/grid-1.png" in done.stdout.replace(os.sep, "/")
