"""Every command line of the pages: its program knows the settings, and the files of this repository are there."""

import re
import shlex
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from tgo_trl.commands.table import COMMANDS, settings_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LONGEST_LINE = 92
"""Of a command in the README: as much as a page of GitHub shows, or one of the site, without scrolling."""


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """The words of each command of a block, without comments and files to write; `$NAME` is what the block says."""
    text = re.sub(r"(^|\s)#.*$|\s>\s*\S+", "", block.replace("\\\n", " "), flags=re.MULTILINE)
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|<>()\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";&|()\n"):
            found.append([])
        else:
            found[-1].append(word)
    variables: dict[str, str] = {}
    for words in found:
        while words and (name := re.match(r"(\w+)=", words[0])):
            variables[name[1]] = words.pop(0).removeprefix(name[0])
    return [
        [part for word in words for part in (shlex.split(variables[word[1:]]) if word[1:] in variables else [word])]
        for words in found if words
    ]  # fmt: skip


@cache
def options_of(command: str) -> dict[str, object]:
    return settings_parser(command)._option_string_actions


def refused(words: list[str]) -> str | None:
    """What the parser of `tgo-trl` says against a command; what it requires may be in a file, or left out."""
    command, *arguments = words[1:]
    if command not in COMMANDS:
        return f"there is no command {command}"
    parser = settings_parser(command)
    for action in parser._actions:
        action.required = False
    arguments = [word for word in arguments if word not in ("...", "--help-all")]
    try:
        _, unknown = parser.parse_known_args(arguments)
    except SystemExit:
        return "see what is printed"
    return f"unknown: {unknown}" if unknown else None


PROGRAMS = ("tgo-trl", "make", "python")
LAUNCHERS = ("accelerate", "torchrun", "deepspeed")
"""They take a script among their words, as if it were a program."""


def programs(words: list[str]) -> list[list[str]]:
    """The commands of programs of this repository in a command, also one that others start: `srun`, `bash -c "..."`."""
    shells = [word for before, word in pairwise(words) if before == "-c"]
    found = [inner for shell in shells for part in commands(shell) for inner in programs(part)]
    for i, word in enumerate(words):
        if words[0] in LAUNCHERS and word.endswith(".py"):
            return [*found, ["python", *words[i:]]]
        if word == "tgo-trl" or (i == 0 and word in PROGRAMS):
            return [*found, words[i:]]
    return found


def test_commands_of_a_block_are_found():
    block = 'A="--x 1\n  --y 2"\ntgo-trl score $A \\\n    --z "a b"   # why\n# no\n'
    block += "HF_HOME=/x make demo > b && python a.py &\n"
    assert commands(block) == [["tgo-trl", "score", "--x", "1", "--y", "2", "--z", "a b"], ["make", "demo"],
                               ["python", "a.py"]]  # fmt: skip


def test_programs_that_others_start_are_found():
    def found(line: str) -> list[list[str]]:
        return [words for command in commands(line) for words in programs(command)]

    assert found("accelerate launch --num_processes 2 examples/a.py --x 1") == [["python", "examples/a.py", "--x", "1"]]
    assert found("srun --wait=6 bash -c 'RANK=$A exec tgo-trl train --x 1'") == [["tgo-trl", "train", "--x", "1"]]
    assert found('hf jobs run i bash -c "pip install tgo_trl && tgo-trl score --x 1"') == [
        ["tgo-trl", "score", "--x", "1"]
    ]
    assert found("nohup tgo-trl train --x 'a b' > log &") == [["tgo-trl", "train", "--x", "a b"]]
    assert found("make demo") == [["make", "demo"]]
    assert found("pip install make") == []
    assert found("tgo-trl score --prompts 'make it red'") == [["tgo-trl", "score", "--prompts", "make it red"]]


def test_what_no_command_takes_is_refused(capsys):
    assert refused(["tgo-trl", "score", "--reward", "x"]) == "unknown: ['--reward', 'x']"
    assert refused(["tgo-trl", "train", "--max_steps", "many"]) == "see what is printed"
    assert "invalid int value: 'many'" in capsys.readouterr().err
    assert refused(["tgo-trl", "sing"]) == "there is no command sing"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_taken(page):
    found = [words for block in blocks(page) for words in commands(block)]
    for words in (inner for command in found for inner in programs(command)):
        if words[0] == "tgo-trl":
            assert refused(words) is None, words
        elif words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), words
        elif words[0] == "python":
            source = Path(*words[2].split(".")).with_suffix(".py") if words[1] == "-m" else Path(words[1])
            assert (ROOT / source).is_file(), words
            sources = "".join(path.read_text() for path in (ROOT / source).parent.glob("*.py"))
            for option in (word for word in words if word.startswith("--")):
                assert re.search(rf"\b{option[2:]}\b", sources), (words, option)
    for word in (word for words in found for word in words):
        if re.match(r"(examples|recipes)/", word):
            assert (ROOT / word.partition(":")[0]).exists(), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_of_commands_in_sentences_are_known(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for command, rest in re.findall(r"`tgo-trl (\w+)((?: [^`]*)?)`", text):
        assert command in COMMANDS
        for option in re.findall(r"(--\w+)", rest):
            assert option in options_of(command) or option in ("--help", "--help-all"), (command, option)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_settings_have_settings_of_a_command(page):
    known = {name: {option.removeprefix("--") for option in options_of(name)} | {"env"} for name in COMMANDS}
    for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        names = set(yaml.safe_load(block))
        assert any(names <= settings for settings in known.values()), names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_in_sentences_are_known(page):
    """As `name: value`, of files, and `name=value`, of Python; or they are names of the package or of its tests."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`([a-z]\w+)(?:: |=)[^`=]+`", text))
    assert (
        named <= {option.removeprefix("--") for name in COMMANDS for option in options_of(name)} | words_of_the_code()
    )


@cache
def words_of_the_code() -> set[str]:
    files = (path for folder in ("tgo_trl", "tests") for path in (ROOT / folder).rglob("*.py"))
    return {word for path in files for word in re.findall(r"\w+", path.read_text())}


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda recipe: recipe.stem)
def test_commands_of_a_recipe_are_taken_and_name_it(recipe):
    lines = re.findall(r"^#   (.*)$", recipe.read_text(), re.MULTILINE)
    found = [words for words in commands("\n".join(lines)) if words[0] == "tgo-trl"]
    for words in found:
        assert refused(words) is None, words
        assert words[1] != "train" or words[2:4] == ["--config", f"recipes/{recipe.name}"]
    assert "train" in {words[1] for words in found}


def test_commands_of_the_readme_are_read_without_scrolling():
    for line in "".join(blocks(ROOT / "README.md")).splitlines():
        assert len(line) <= LONGEST_LINE, line
