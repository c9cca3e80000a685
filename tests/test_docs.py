"""The pages: their links lead somewhere, and the data formats that they show are read."""

import ast
import csv
import importlib
import io
import json
import re
from inspect import signature
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Image, concatenate_datasets
from PIL import Image as Pictures

import tgo_trl
from tgo_trl import InspectConfig, inspect
from tgo_trl.commands.generate.prompts import read_prompts
from tgo_trl.labels.fitting import fit_label_rule
from tgo_trl.losses.likelihood import implicit_reward, log_ratio

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_listed():
    index = (ROOT / "docs" / "index.md").read_text()
    assert set(re.findall(r"\]\((\w+\.md)\)", index)) == {page.name for page in (ROOT / "docs").glob("*.md")} - {
        "index.md"
    }


# ---- Python ----


def unknown_names(code: str) -> list[str]:
    """What code imports from this package, or passes to its classes and functions by name, that is not there."""
    tree = ast.parse(code)
    known = {name: getattr(tgo_trl, name) for name in tgo_trl.__all__}
    unknown = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.partition(".")[0] == "tgo_trl":
            module = importlib.import_module(node.module)
            known |= {it.name: getattr(module, it.name, None) for it in node.names}
            unknown += [it.name for it in node.names if not hasattr(module, it.name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = known.get(getattr(node.func, "id", getattr(node.func, "attr", "")))
            parameters = signature(called).parameters if callable(called) else {}
            if called is not None and not any(it.kind is it.VAR_KEYWORD for it in parameters.values()):
                unknown += [f"{called.__name__}: {it.arg}" for it in node.keywords if it.arg not in {None, *parameters}]
    return unknown


def test_unknown_names_are_found():
    code = "from tgo_trl import TGOConfig, Nothing\nTGOConfig('a', beta=1, gamma=2)\nother(gamma=2)\n"
    code += "import tgo_trl\ntgo_trl.generate(tgo_trl.GenerateConfig('a', 'b', 'c', sed=1), family=None)"
    assert unknown_names(code) == ["Nothing", "TGOConfig: gamma", "GenerateConfig: sed"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_the_pages_uses_what_there_is(page):
    text = page.read_text()
    for code in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if not code.startswith(
            ("# tgo_trl/", "# in ", "# above ")
        ):  # parts of files, which test_extending.py puts there
            assert unknown_names(code) == []
    for code in re.findall(
        r"`(?:tgo_trl\.)?((?:\w+Config|TGOTrainer|AlignPropTrainer)\([^`]*\))`", without_fences(text)
    ):
        assert unknown_names(code.replace("...", "1")) == []


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


# ---- Data formats ----

DATA = (ROOT / "docs" / "data.md").read_text()


def block(language: str) -> str:
    """The first code block of docs/data.md in a language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", DATA, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def save_image(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pictures.new("RGB", (16, 16), "red").save(path)
    return str(path)


def write_folder(folder: Path) -> Path:
    (folder / "scored").mkdir()
    (folder / "scored" / "metadata.csv").write_text(block("csv"))
    for row in csv.DictReader(io.StringIO(block("csv"))):
        save_image(folder / "scored" / row["file_name"])
    return folder / "scored"


def write_json_lines(folder: Path) -> Path:
    save_image(folder / "images" / "fox_1.png")
    (folder / "rows.jsonl").write_text(block("json") + block("json").replace("4.5", "1.5"))
    return folder / "rows.jsonl"


def write_parquet(folder: Path) -> Path:
    code = block("python")
    save_image(folder / "images" / "fox_1.png")
    for name in ("images/fox_1.png", "rows.parquet"):
        assert name in code
        code = code.replace(name, str(folder / name))
    exec(code, {})
    (folder / "images" / "fox_1.png").unlink()  # as it is inside
    one = Dataset.from_parquet(str(folder / "rows.parquet"))
    assert one.features["image"] == Image()
    concatenate_datasets([one, one.remove_columns("score").add_column("score", [1.5])]).to_parquet(
        str(folder / "rows.parquet")
    )
    return folder / "rows.parquet"


@pytest.mark.parametrize("write", [write_folder, write_json_lines, write_parquet])
def test_formats_of_the_page_are_read_from_another_folder(write, tmp_path):
    path = write(tmp_path)
    assert f"--dataset_name {path.name}\n" in DATA
    report = inspect(InspectConfig(dataset_name=str(path), output_dir=str(tmp_path / "report")))
    assert (report.num_usable, report.num_prompts, report.problems) == (2, 1, {})
    assert (report.scores.minimum, report.scores.maximum) == (1.5, 4.5)
    assert report.images is not None


@pytest.mark.parametrize("path", ["docs/quick_start.md", "examples/quick_start.ipynb"])
def test_the_quick_start_takes_rows_of_a_stream_with_their_files_as_they_are(path):
    text = (ROOT / path).read_text()
    if path.endswith(".ipynb"):
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    code = re.search(r"^rows = stream.*?^dataset = [^\n]*", text, re.MULTILINE | re.DOTALL)
    file = io.BytesIO()
    Pictures.effect_noise((16, 16), 64).save(file, "JPEG", quality=95)
    rows = {"prompt": ["a fox"] * 3, "image": [{"bytes": file.getvalue(), "path": None}] * 3}
    dataset = Dataset.from_dict({**rows, "alignment_score": [1.0, 2.0, 3.0], "other": [0] * 3})
    stream = dataset.cast_column("image", Image()).to_iterable_dataset()
    names = {"stream": stream, "Dataset": Dataset, "score_column": "alignment_score", "num_rows": 2}
    exec(code[0], names)
    found = names["dataset"]
    assert found.column_names == ["prompt", "image", "alignment_score"]
    assert found["alignment_score"][:2] == [1.0, 2.0]
    assert found[0]["image"].size == (16, 16)
    assert found.cast_column("image", Image(decode=False))[0]["image"]["bytes"] == file.getvalue()


def test_how_it_works_shows_what_the_code_makes_of_its_scores():
    text = (ROOT / "docs" / "how_it_works.md").read_text()
    rows = re.findall(r"^\| (?:a [^|]+) \| ([\d.]+) \| (positive|negative) \| ([\d.]+) \|$", text, re.MULTILINE)
    scores, prompts = [float(row[0]) for row in rows], ["a red fox in the snow"] * 4
    rule = fit_label_rule(scores, prompts)
    assert f"median of all scores, here {rule.threshold:g}." in " ".join(text.split())
    labels = rule.apply(scores, prompts)
    assert ["positive" if it else "negative" for it in labels.is_positive] == [row[1] for row in rows]
    assert labels.weights.tolist() == pytest.approx([float(row[2]) for row in rows])
    reward = implicit_reward(log_ratio(torch.tensor([0.099]), torch.tensor([0.1]), 0.001), 1.0)
    losses = [-torch.nn.functional.logsigmoid(sign * reward).item() for sign in (1, -1)]
    assert "here {:.2f} and {:.2f}, times the weight".format(*losses) in " ".join(text.split())


def test_prompts_of_the_page_are_read(tmp_path):
    text = (ROOT / "docs" / "generate.md").read_text()
    for language, suffix in (("text", "txt"), ("json", "jsonl"), ("csv", "csv")):
        (content,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        (tmp_path / f"prompts.{suffix}").write_text(content)
        assert read_prompts(str(tmp_path / f"prompts.{suffix}")) == ["a red fox in the snow", "a lighthouse at dusk"]
