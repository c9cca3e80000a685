"""Whose images are better: pairs of them shown to a model that sees images, and its verdicts counted."""

import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...messages.public import public_name, public_value
from ...rewards.chat import ChatClient, EndpointError
from ...storage.files import replace_file, sweep, write_json
from ...storage.fingerprints import fingerprint
from ...storage.processes import process_state
from ...storage.records import read_record
from ..sharded_run import check_own_folder, locks_output_dir
from .agreements import VERDICTS_NAME, Agreement, Others, agree, read_others
from .answers import AnswerLog, write_lines
from .asking import ask_missing
from .config import JudgeConfig
from .costs import Usage
from .plots import PICTURES, plot_judgement
from .questions import SCHEMA, Question, find_questions, system_text
from .report import JudgeReport, build_report
from .samples import find_comparisons, open_models
from .text import markdown, print_judgement
from .verdicts import FAILED, Verdict, find_verdicts

logger = logging.getLogger(__name__)

RECORD_NAME = "judge.json"
PAGE_NAME = "judge.md"
ANSWERS_NAME = "answers.jsonl"


@locks_output_dir
def judge(config: JudgeConfig) -> JudgeReport | None:
    """Has all pairs judged that are not yet, prints the report, and writes it with its pictures to `config.output_dir`.

    Of a distributed launch, the main process does all that; the others wait, and return None.

    Returns:
        The report, as it stands in `judge.json` and, in words, in `judge.md`. Beside them are `verdicts.jsonl`, a line
        for each comparison, and `answers.jsonl`, which a later run takes answers from instead of asking again.

    Raises:
        ValueError: for settings or data that cannot work, a folder that holds something else, or answers that say
            nothing.
        EndpointError: if the server cannot be reached, or some requests failed in all attempts. The report on the
            others is written then, and the same command asks those again.
    """
    state = process_state()
    report = _judge(config) if state.is_main_process else None
    state.wait_for_everyone()
    return report


def _judge(config: JudgeConfig) -> JudgeReport:
    folder = Path(config.output_dir)
    check_own_folder(folder, RECORD_NAME)
    client = ChatClient(config)
    is_complete = bool((read_record(folder, RECORD_NAME) or {}).get("is_complete"))
    if not is_complete:  # or there may be nothing to ask
        client.check(SCHEMA)

    # What can fail, before answers are paid for.
    models = open_models(config)
    of_edits = models[0].source_column is not None
    comparisons = find_comparisons(models, config)
    names = config.model_names()
    others = [
        read_others(str(source), names, comparisons, config.source_column) for source in config.agreement_with or ()
    ]
    questions = find_questions(comparisons, models, config)

    # The answers.
    sweep(folder)
    log = AnswerLog(folder / ANSWERS_NAME, config.host)
    num_missing = len({question.key for question in questions} - log.answers.keys())
    if num_missing:
        if is_complete:
            client.check(SCHEMA)
        write_json(folder / RECORD_NAME, {"settings": _settings(config, of_edits), "is_complete": False})
        _remove(folder, VERDICTS_NAME, PAGE_NAME, *PICTURES)  # which are not of all these questions
        _announce(config, len(questions), num_missing)
        ask_missing(questions, models, config, client, log)
    log.sort()  # also of a run that was killed when it had asked the last

    # The report.
    verdicts = find_verdicts(questions, log.answers)
    usage, hosts = _usage(questions, log, config), Counter(map(log.hosts.get, {question.key for question in questions}))
    report = build_report(verdicts, config, usage, _agreements(verdicts, others), hosts)
    write_lines(folder / VERDICTS_NAME, (json.dumps(verdict.row(names)) for verdict in verdicts))
    _remove(folder, *PICTURES)  # or those of categories would stay, where none are asked for now
    pictures = plot_judgement(report, folder)
    page = markdown(report, pictures)
    replace_file(folder / PAGE_NAME, lambda path: path.write_text(page, "utf-8"))
    num_failed = report.num_missing(FAILED)
    record = {"settings": _settings(config, of_edits), "is_complete": not num_failed, **asdict(report)}
    write_json(folder / RECORD_NAME, record)
    written = [str(folder / name) for name in (RECORD_NAME, PAGE_NAME, VERDICTS_NAME, *pictures)]
    print_judgement(report, written, _next_step(config))
    if num_failed:
        raise EndpointError(
            f"{num_failed:,} of {len(verdicts):,} comparisons got no answer from {config.host} in all attempts; the "
            "report leaves them out. The same command asks these again."
        )
    return report


def _remove(folder: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _announce(config: JudgeConfig, num_questions: int, num_missing: int) -> None:
    """Says where images go before they do, with progress bars or without."""
    answered = f" ({num_questions - num_missing:,} are answered already)" if num_missing < num_questions else ""
    tqdm.write(
        f"{num_missing:,} questions{answered}: prompts and images are sent to {config.host}, to be judged by "
        f"{config.model}.",
        file=sys.stderr,
    )


def _usage(questions: Sequence[Question], log: AnswerLog, config: JudgeConfig) -> Usage:
    usage = Usage(config)
    for key in dict.fromkeys(question.key for question in questions):
        usage.add(log.answers.get(key))
    return usage


def _agreements(verdicts: Sequence[Verdict], others: Sequence[Others]) -> list[Agreement]:
    found = []
    for given in others:
        agreement = agree(verdicts, given)
        if agreement is None:
            logger.warning("There is no verdict on what %s judged, and so nothing to agree on.", given.name)
        else:
            found.append(agreement)
    return found


def _settings(config: JudgeConfig, of_edits: bool) -> dict[str, Any]:
    """What the report is a function of and does not say itself."""
    instructions = system_text(config, of_edits)
    return {
        "datasets": [public_name(str(name)) for name in config.datasets],
        "split": config.dataset_split,
        "compare": config.compare,
        "order": config.order,
        "seed": config.seed,
        "max_prompts": config.max_prompts,
        "max_samples_per_prompt": config.max_samples_per_prompt,
        "instructions": {"text": instructions, "fingerprint": fingerprint(instructions)},
        "max_image_side": config.max_image_side,
        "image_format": config.image_format,
        "max_tokens": config.max_tokens,
        "extra_body": public_value(config.extra_body),
    }


def _next_step(config: JudgeConfig) -> str:
    if config.agreement_with:
        return "Next: look at some of the verdicts and their reasons."
    return (
        "Next: look at some of the verdicts and their reasons, or have another judge see the same, with "
        f"`--agreement_with {config.output_dir}` and another `--output_dir`."
    )
