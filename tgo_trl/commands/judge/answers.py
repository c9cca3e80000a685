"""The judge's answers on disk, each as soon as it is there: who pays for answers does not want to lose one."""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...rewards.chat import Answer
from ...storage.files import replace_file
from .questions import Question

logger = logging.getLogger(__name__)


class AnswerLog:
    """A file with an answer a line, by the key of its question.

    A process that is killed leaves at most one line that is torn, which is asked again.

    Args:
        path: of the file; made when the first answer comes.
        host: of the server that answers now.

    Attributes:
        answers: those that are there, by key.
        hosts: of the servers that gave them, by key, as far as it is known.
    """

    def __init__(self, path: Path, host: str) -> None:
        self.path = path
        self.host = host
        self._lines: dict[str, str] = {}
        self.answers: dict[str, Answer] = {}
        self.hosts: dict[str, str] = {}
        if path.is_file():
            self._read()

    def add(self, question: Question, answer: Answer) -> None:
        """Adds an answer; it is on the disk when this returns."""
        comparison = question.comparison
        entry = {"key": question.key, "prompt": comparison.subject.prompt, "sample_index": comparison.sample_index}
        line = json.dumps({**entry, **asdict(answer), "host": self.host}, sort_keys=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._lines[question.key], self.answers[question.key] = line, answer
        self.hosts[question.key] = self.host

    def sort(self) -> None:
        """Brings the lines into an order that does not depend on which answer came first."""
        if list(self._lines) != sorted(self._lines):
            self._lines = dict(sorted(self._lines.items()))
            write_lines(self.path, self._lines.values())

    def _read(self) -> None:
        num_damaged = 0
        text = self.path.read_bytes().decode("utf-8", "replace")
        for line in text.split("\n"):
            try:
                entry: Any = json.loads(line)
                answer = _answer(entry)
                self._lines[entry["key"]], self.answers[entry["key"]] = line, answer
                if isinstance(entry.get("host"), str):
                    self.hosts[entry["key"]] = entry["host"]
            except (ValueError, KeyError, TypeError, RecursionError):
                num_damaged += bool(line)
        if num_damaged:
            logger.warning("%d lines of %s are damaged, as after a kill; they are asked again.", num_damaged, self.path)
        if num_damaged or not text.endswith("\n"):  # or the next answer would be added to half a line
            write_lines(self.path, self._lines.values())


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a text file that is either whole or as it was."""
    text = "".join(f"{line}\n" for line in lines)
    replace_file(path, lambda temporary: temporary.write_text(text, "utf-8"))


def _answer(entry: Mapping[str, Any]) -> Answer:
    """The answer of a line; raises as `_read` expects if it is of something else."""
    if not isinstance(entry["key"], str) or not isinstance(entry["text"], str):
        raise TypeError
    names = ("text", "prompt_tokens", "completion_tokens", "finish_reason", "refusal")
    return Answer(*(entry[name] for name in names))
