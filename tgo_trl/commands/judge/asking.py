"""Asking the judge what it has not answered yet, several questions at a time, and stopping before money is burnt."""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from tqdm.auto import tqdm

from ...media.images import load_image
from ...messages.values import shown
from ...rewards.chat import Answer, ChatClient, Part, RequestFailedError
from .answers import AnswerLog
from .config import JudgeConfig
from .costs import Usage
from .questions import BEFORE, SCHEMA, Question, prompt_text, read_verdict, system_text
from .samples import ModelSamples

MOST_FAILED = 5
"""Requests in a row that failed in all attempts, after which the server is taken to be gone."""
MOST_UNREADABLE = 20
"""Answers in a row, from the first on, without a verdict, after which the rest is not paid for."""


def ask_missing(
    questions: Sequence[Question], models: Sequence[ModelSamples], config: JudgeConfig, client: ChatClient,
    log: AnswerLog,
) -> None:  # fmt: skip
    """Asks what `log` has no answer to, and adds the answers as they come; none of requests that failed for good.

    Args:
        questions: all of them; of two with the same key, one is asked.
        models: whose images they are about.
        config: of the command.
        client: of the judge.
        log: of the answers.

    Raises:
        EndpointError: if the server has gone.
        ValueError: if none of the first answers has a verdict, or an image cannot be read.
    """
    missing = list({question.key: question for question in questions if question.key not in log.answers}.values())
    watch = _Watch(has_verdict=any(read_verdict(answer.text) for answer in log.answers.values()))
    usage = Usage(config)
    pool = ThreadPoolExecutor(config.max_concurrent)
    running: dict[Future[Answer], Question] = {}
    waiting = iter(missing)
    try:
        with tqdm(
            total=len(missing), desc="Judging", unit="question", disable=config.disable_tqdm or not missing
        ) as bar:
            while True:
                for question in islice(waiting, 2 * config.max_concurrent - len(running)):
                    files = _files(question, models)  # here, since `datasets` is not for several threads
                    running[pool.submit(_ask, question, files, config, client)] = question
                if not running:
                    break
                for question, future in _done(running):
                    failure = _take(question, future, log)
                    usage.add(log.answers.get(question.key))
                    bar.set_postfix_str(usage.text(), refresh=False)
                    bar.update(1)
                    watch.see(failure, log.answers.get(question.key))
    finally:  # of an interrupt too: what is on its way is paid for
        client.stop()
        pool.shutdown(cancel_futures=True)
        for future, question in running.items():
            if not future.cancelled() and future.exception() is None:
                log.add(question, future.result())


def _files(question: Question, models: Sequence[ModelSamples]) -> list[bytes]:
    """The two image files, in the order in which they are shown, and before them those that both were made from."""
    comparison = question.comparison
    subject, sample = comparison.subject, comparison.sample_index
    places = (comparison.second, comparison.first) if question.is_swapped else (comparison.first, comparison.second)
    return [*models[places[0]].sources(subject, sample), *(models[place].image(subject, sample) for place in places)]


def _ask(question: Question, files: Sequence[bytes], config: JudgeConfig, client: ChatClient) -> Answer:
    comparison = question.comparison
    try:
        *sources, first, second = map(load_image, files)
    except ValueError as error:
        where = f"prompt {shown(comparison.subject.prompt)}, sample {comparison.sample_index}"
        raise ValueError(f"One of the images of {where}: {error}. Mend or drop it.") from error
    before: tuple[Part, ...] = (BEFORE, *sources) if sources else ()
    parts = (prompt_text(comparison.subject.prompt), *before, "First image:", first, "Second image:", second)
    return client.ask(system_text(config, bool(sources)), parts, SCHEMA)


def _done(running: dict[Future[Answer], Question]) -> Iterator[tuple[Question, Future[Answer]]]:
    """The questions that are done with, which are taken out."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in list(done):
        yield running.pop(future), future


def _take(question: Question, future: Future[Answer], log: AnswerLog) -> RequestFailedError | None:
    """Adds the answer; returns why there is none, if another question may have one."""
    try:
        log.add(question, future.result())
    except RequestFailedError as error:
        return error
    return None


class _Watch:
    """Sees when it is of no use to go on.

    Args:
        has_verdict: whether an answer of an earlier run had one.
    """

    def __init__(self, has_verdict: bool) -> None:
        self.has_verdict = has_verdict
        self._failed_in_a_row = 0
        self._num_unreadable = 0

    def see(self, failure: RequestFailedError | None, answer: Answer | None) -> None:
        """Raises if the run is to end after this."""
        if failure is not None:
            self._failed_in_a_row += 1
            if self._failed_in_a_row == MOST_FAILED:
                raise failure
            return
        self._failed_in_a_row = 0
        assert answer is not None
        if read_verdict(answer.text) is not None:
            self.has_verdict = True
        self._num_unreadable += 1
        if not self.has_verdict and self._num_unreadable == MOST_UNREADABLE:
            said = f"the server says {answer.refusal}" if answer.refusal else f"the last is {shown(answer.text, 200)}"
            length = ", which ended for want of `max_tokens`" if answer.finish_reason == "length" else ""
            raise ValueError(
                f"None of the first {MOST_UNREADABLE} answers has a verdict; {said}{length}. So no more are paid for: "
                "name another `model`, or raise `max_tokens` for one that thinks aloud."
            )
