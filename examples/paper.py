"""The paper's experiments, from prompts to tables: a command for each setting, whose steps are commands of `tgo-trl`.

    python examples/paper.py --setting sd15              # draws, scores, trains, compares, and writes the tables
    python examples/paper.py --setting sd15 --print      # only prints the commands, to be run by hand
    python examples/paper.py --setting sd15 --estimate   # disk, memory and GPU hours that it takes, with the arithmetic
    python examples/paper.py --setting sd15 --tiny       # offline, on the CPU, in minutes, with tiny random models

Settings: `sd15`, `flux`, `meissonic`, `pickapic` and `wan`, each a file in `recipes/paper/` that gives the source of
its numbers. What was done is not done again: the same command goes on where it was stopped. `docs/paper.md` has what
differs from the paper.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tgo_trl.settings import read_settings
from tgo_trl.storage.files import replace_file, write_json

RECIPES = Path(__file__).parents[1] / "recipes" / "paper"
SETTINGS = ("sd15", "flux", "meissonic", "pickapic", "wan")
STATISTICS = {"means": "Mean", "medians": "Median"}
Recipe = dict[str, Any]


class Step(NamedTuple):
    """A command.

    Attributes:
        name: of what it does.
        words: of the command line: `tgo-trl` and its arguments, or `python` and those of this script.
    """

    name: str
    words: list[str]

    def __str__(self) -> str:
        """As one would type it, an option a line."""
        lines = [shlex.quote(self.words[0])]
        for word in self.words[1:]:
            lines += [shlex.quote(word)] if word.startswith("--") else []
            if not word.startswith("--"):
                lines[-1] += f" {shlex.quote(word)}"
        return " \\\n    ".join(lines)


# ---- The commands ----


def read_recipe(
    setting: str,
    methods: Sequence[str] | None = None,
    model: str | None = None,
    max_prompts: int | None = None,
    max_eval_prompts: int | None = None,
) -> Recipe:
    """What is run, by command.

    Args:
        setting: one of [`SETTINGS`].
        methods: those to train and compare; all, if None.
        model: in place of the recipe's.
        max_prompts: to train on, if fewer.
        max_eval_prompts: to compare on, of each set.

    Raises:
        ValueError: for a method that the setting does not have, or prompts where it draws none.
    """
    path = RECIPES / f"{setting}.yaml"
    recipe = {name: setting.value for name, setting in read_settings(path).items()}
    recipe = {"inspect": {"skip_images": True, "dataset_streaming": True}, **recipe}
    if methods is not None:
        unknown = set(methods) - {*recipe["methods"]}
        if unknown:
            raise ValueError(
                f"`--methods` has {', '.join(sorted(unknown))}, but {path} has {', '.join(recipe['methods'])}."
            )
        recipe["methods"] = {label: own for label, own in recipe["methods"].items() if label in methods}
    if model is not None:
        recipe["model"] = model
    if max_prompts is not None:
        if "generate" not in recipe:
            raise ValueError(f"`--max_prompts` is set, but {path} draws nothing to train on. Leave it out.")
        place, name = (recipe["prompts"], "train") if "prompts" in recipe else (recipe["generate"], "max_prompts")
        place[name] = min(max_prompts, place[name])
    if max_eval_prompts is not None:
        recipe["evaluate"]["max_prompts"] = max_eval_prompts
    return recipe


def find_steps(recipe: Recipe, folder: Path, own_options: Sequence[str]) -> list[Step]:
    """The commands, in order.

    Args:
        recipe: what is run.
        folder: where all of it goes.
        own_options: of this script, for the step that is its own.
    """
    steps = []
    model, scored, inspection = recipe["model"], folder / "scored", folder / "inspection"
    if "prompts" in recipe:
        script = os.path.relpath(__file__)
        steps.append(Step("prompts", ["python", script, *own_options, "--write_prompts"]))
    if "convert" in recipe:
        steps.append(_command("convert", {**recipe["convert"], "output_dir": scored}))
    else:
        prompts = {"prompts": folder / "prompts" / "train.jsonl"} if "prompts" in recipe else {}
        drawn = folder / "drawn"
        steps += [
            _command("generate", {"model_name_or_path": model, **prompts, **recipe["generate"], "output_dir": drawn}),
            _command("score", {"dataset_name": drawn, **recipe["score"], "output_dir": scored}),
        ]
    steps.append(_command("inspect", {"dataset_name": scored, **recipe["inspect"], "output_dir": inspection}))

    models = [f"base={model}"]
    for label, own in recipe["methods"].items():
        trained = folder / "models" / label.lower()
        data = {"model_name_or_path": model, "dataset_name": scored, "output_dir": trained}
        settings = {**data, "encoding_cache_dir": folder / "encodings", **recipe["train"], **own}
        steps.append(_command("train", settings, label))
        is_adapter = settings.get("use_peft", True)
        models.append(f"{label}={model}+{trained}" if is_adapter else f"{label}={trained}")

    shared = {name: value for name, value in recipe["evaluate"].items() if name not in ("prompts", "model_settings")}
    theirs = recipe["evaluate"].get("model_settings", {})
    kept = {label: settings for label, settings in theirs.items() if label in recipe["methods"]}
    shared |= {"model_settings": kept} if kept else {}
    for prompts in recipe["evaluate"]["prompts"]:
        source = folder / "prompts" / "test.jsonl" if prompts == "test" else prompts
        settings = {"models": models, "prompts": source, **shared, "output_dir": _evaluation(folder, prompts)}
        steps.append(_command("evaluate", settings, Path(prompts).stem))
    return steps


def _command(command: str, settings: Mapping[str, Any], what: str = "") -> Step:
    words = ["tgo-trl", command]
    for name, value in settings.items():
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        elif isinstance(value, dict):
            words += [f"--{name}", json.dumps(value)]
        else:
            words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return Step(f"{command} {what}".strip(), words)


def _evaluation(folder: Path, prompts: str) -> Path:
    return folder / "evaluation" / Path(prompts).stem


# ---- Running them ----


def run_steps(steps: Sequence[Step], folder: Path, execute: Callable[[list[str]], int]) -> None:
    """Runs what has not been run yet, in order, and what comes after it.

    Args:
        steps: to run; each is printed first. Commands that are run again see for themselves whether there is anything
            to do, and refuse what was made with other settings.
        folder: keeps the command of each that is done.
        execute: runs the words of one, and returns its exit status.

    Raises:
        SystemExit: with the status of a step that fails.
    """
    is_done = True  # all of them so far
    for number, step in enumerate(steps, 1):
        path = folder / "steps" / f"{step.name.lower().replace(' ', '-')}.json"
        print(f"\n# {number} of {len(steps)}: {step.name}\n{step}", flush=True)
        is_done = is_done and path.is_file() and json.loads(path.read_text("utf-8")) == _record(step)
        if is_done:
            print("# Done before.", flush=True)
            continue
        status = execute(step.words)
        if status != 0:
            raise SystemExit(status)
        write_json(path, _record(step))


def _record(step: Step) -> dict[str, Any]:
    """What is kept of a step that is done: its command, and that what it wrote is there."""
    return {"words": step.words, "is_there": Path(step.words[step.words.index("--output_dir") + 1]).exists()}


def in_a_process(words: list[str], **variables: str) -> int:
    """Runs a step in a process of its own, which gives its memory back; returns the exit status."""
    program = [sys.executable, *words[1:]]
    if words[0] == "tgo-trl":
        program = [sys.executable, "-m", "tgo_trl.cli", *words[1:]]
    return subprocess.run(program, env={**os.environ, **variables}, check=False).returncode


def write_prompts(recipe: Recipe, folder: Path) -> None:
    """Writes the first prompts of a source, and those after them, to `prompts/train.jsonl` and `prompts/test.jsonl`.

    Raises:
        ValueError: if the source has too few.
    """
    from tgo_trl.commands.generate.prompts import read_prompts  # slow to load

    wanted = recipe["prompts"]
    total = wanted["train"] + wanted["test"]
    found = read_prompts(wanted["source"], wanted["column"], max_prompts=total)
    if len(found) < total:
        raise ValueError(f"{wanted['source']!r} has {len(found):,} prompts, of which {total:,} are needed.")
    for name, chosen in (("train", found[: wanted["train"]]), ("test", found[wanted["train"] :])):
        lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in chosen)
        path = folder / "prompts" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda temporary, lines=lines: temporary.write_text(lines, "utf-8"))
        print(f"Written: {path}, {len(chosen):,} prompts")


def compare_counts(recipe: Recipe, folder: Path) -> list[str]:
    """Rows, and those that are positive, by each rule that ties could have; beside the published; none without those.

    The converted rows follow the first rule. Which one was published is not known, but the counts tell.
    """
    if "expected" not in recipe:
        return []
    from tgo_trl.storage.sources import open_dataset  # slow to load

    columns = ["wins", "ties", "comparisons"]
    found = open_dataset(str(folder / "scored"), split="train", streaming=True, columns=columns)
    rows = [tuple(row[name] for name in columns) for row in found]
    threshold, expected = recipe["inspect"]["threshold_value"], recipe["expected"]
    published = (expected["rows"], expected["positive"])
    decided = [wins for wins, ties, total in rows if ties < total]
    rules = {
        "a tie is no win": [wins for wins, *_ in rows],
        "likewise, and images that only tied are no rows": decided,
        "a tie is half a win": [wins + ties / 2 for wins, ties, _ in rows],
    }
    lines = [f"Published: {published[0]:,} rows, {published[1]:,} of them positive."]
    for rule, scores in rules.items():
        counts = (len(scores), sum(score >= threshold for score in scores))
        same = ": as published" if counts == published else ""
        lines.append(f"Where {rule}: {counts[0]:,} rows, {counts[1]:,} of them positive{same}.")
    return lines


# ---- Tables ----


def write_tables(recipe: Recipe, folder: Path) -> list[Path]:
    """Writes means, medians and win rates of all sets of prompts to `table.md` and `table.tex`; returns the paths."""
    markdown, latex = [f"# {recipe['model']}"], ["% needs \\usepackage{booktabs}"]
    for prompts in recipe["evaluate"]["prompts"]:
        path = _evaluation(folder, prompts) / "evaluation.json"
        report = json.loads(path.read_text("utf-8"))
        published = recipe.get("published", {}).get(prompts, {})
        for title, rows in _tables(recipe, report, published):
            title = f"{title} ({Path(prompts).stem}, {report['prompts']['number']:,} prompts)"
            lines = [f"| {' | '.join(row)} |" for row in rows]
            markdown += [f"## {title}", "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])]
            latex.append(_latex(title, rows))
    intervals = ", ".join(f"`evaluation/{Path(name).stem}/evaluation.md`" for name in recipe["evaluate"]["prompts"])
    markdown.append(f"Intervals, varieties and pictures: {intervals}.")
    paths = [folder / "table.md", folder / "table.tex"]
    for path, text in zip(paths, ("\n\n".join(markdown) + "\n", "\n".join(latex)), strict=True):
        replace_file(path, lambda temporary, text=text: temporary.write_text(text, "utf-8"))
    return paths


def _tables(recipe: Recipe, report: dict[str, Any], published: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Title and cells of each table: a model a row, a reward a column."""
    trained_on = recipe.get("score", {}).get("rewards", [])
    labels, found = ["base", *recipe["methods"]], report["overall"]["rewards"]
    rewards = {_name(spec): found[_name(spec)] for spec in recipe["evaluate"]["rewards"]}
    head = [
        "model",
        *(f"{_name(spec)}{' (trained on)' * (spec in trained_on)}" for spec in recipe["evaluate"]["rewards"]),
    ]
    tables = []
    for statistic, title in STATISTICS.items():
        rows = [[label, *(f"{it[statistic][label]['value']:.4f}" for it in rewards.values())] for label in labels]
        if statistic == "means":
            known = [label for label in labels if any(label in it for it in published.values())]
            whose = " of ".join(["published", *filter(None, [recipe.get("published_model")])])
            rows += [
                [f"{label}, {whose}", *(str(published.get(name, {}).get(label, "-")) for name in rewards)]
                for label in known
            ]
        tables.append((title, [head, *rows]))
    wins = [
        [label, *(f"{100 * it['win_rates'][label]['base']['value']:.1f} %" for it in rewards.values())]
        for label in recipe["methods"]
    ]
    return [*tables, ("Wins against base", [head, *wins])]


def _name(reward: str) -> str:
    """Of a function of a file, its own."""
    return reward.rpartition(":")[2]


def _latex(title: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [" & ".join(cell.replace("%", r"\%").replace("_", r"\_") for cell in row) + r" \\" for row in rows]
    body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    caption = title.replace("_", r"\_")
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n\\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}\n"
        f"{body}\n\\end{{tabular}}\n\\end{{table}}"
    )


# ---- The program ----


def main(argv: Sequence[str] | None = None, execute: Callable[..., int] = in_a_process) -> int:
    """Does what the arguments ask for; returns the exit status.

    Args:
        argv: the arguments; those of the process, if None.
        execute: runs the words of a command.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", required=True, choices=SETTINGS)
    parser.add_argument("--output_dir", type=Path, help="outputs/paper/<setting>, if not set.")
    parser.add_argument("--methods", nargs="+", help="Train and compare these only, by their names in the recipe.")
    parser.add_argument("--model_name_or_path", help="In place of the recipe's, such as CompVis/stable-diffusion-v1-4.")
    parser.add_argument("--max_prompts", type=int, help="Draw the first prompts only, to train on.")
    parser.add_argument("--max_eval_prompts", type=int, help="Compare on the first prompts of each set only.")
    parser.add_argument("--print", action="store_true", help="Print the commands, and run nothing.")
    parser.add_argument("--estimate", action="store_true", help="Compute disk, memory and GPU hours, and run nothing.")
    parser.add_argument("--tiny", action="store_true", help="Try it with tiny random models, offline, on the CPU.")
    parser.add_argument("--write_prompts", action="store_true", help="Write the prompts of a split, and run nothing.")
    given = parser.parse_args(argv)
    folder = given.output_dir or Path("outputs/paper") / (given.setting + "-tiny" * given.tiny)
    try:
        recipe = read_recipe(
            given.setting, given.methods, given.model_name_or_path, given.max_prompts, given.max_eval_prompts
        )
    except ValueError as error:
        parser.error(str(error))
    if given.estimate:
        from paper_costs import print_costs

        print_costs(recipe)
        return 0

    variables = {}
    if given.tiny and given.model_name_or_path is not None:
        parser.error("`--tiny` has a model of its own. Leave `--model_name_or_path` out.")
    if given.tiny:
        from tiny import shrink_paper

        recipe = shrink_paper(recipe, folder / "tiny", write=not given.print)
        variables = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    if given.write_prompts:
        write_prompts(recipe, folder)
        return 0

    options = ["--setting", given.setting, "--output_dir", str(folder), *(["--tiny"] if given.tiny else [])]
    options += ["--max_prompts", str(given.max_prompts)] if given.max_prompts is not None else []
    steps = find_steps(recipe, folder, options)
    if given.print:
        print("\n\n".join(map(str, steps)))
        return 0
    run_steps(steps, folder, lambda words: execute(words, **variables))
    print("\n".join(["", *compare_counts(recipe, folder)]))
    for path in write_tables(recipe, folder):
        print(f"Written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
