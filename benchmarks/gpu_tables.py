"""What the results of `gpu_speed` say: tables for docs/performance.md, and the bars that speed is held to."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgo_trl.cards.sections import with_section
from tgo_trl.messages.markdown import markdown_table

from .gpu_cases import PEER_BATCHES, QUANTISED, TRAINED, Case, plan
from .gpu_models import MODELS
from .peer_steps import ORDERS, TITLES

AS_MUCH_WORK = frozenset(
    {"compile_repeated_blocks", "torch_compile_mode", "attention_backend", "bf16_autocast", "optim"}
)
"""Settings with which a step still trains on as many rows, by as many forwards."""
NOT_MEASURED = "not measured"
SECTION = "gpu"
"""The name of the section, in the comments around it."""
RECORD = "gpu_speed.json"
"""The results behind the tables of a page, beside it."""


class Results:
    """Results of one card, by the name of their case.

    Raises:
        ValueError: if they are of several cards or of several versions of a library, which cannot be compared.
    """

    def __init__(self, found: Iterable[dict[str, Any]]) -> None:
        self.by_name = {Case(**result["case"]).name: result for result in found}
        for what, kinds in (
            ("cards", {result["hardware"]["name"] for result in self.by_name.values()}),
            ("versions", {tuple(result["versions"].items()) for result in self.by_name.values()}),
        ):
            if len(kinds) > 1:
                raise ValueError(f"The results are of several {what}: {sorted(kinds)}. Measure each in its own folder.")

    def of(self, case: Case) -> dict[str, Any] | None:
        """The result of a case; None if it was not measured."""
        return self.by_name.get(case.name)

    def measured(self, **wanted: Any) -> list[dict[str, Any]]:
        """The results of as much work as without settings whose case has these values, if they fitted in memory."""
        wanted = {"bits": 16, **wanted}
        return [
            result
            for result in self.by_name.values()
            if result["outcome"] == "measured"
            and all(result["case"][name] == it for name, it in wanted.items())
            and AS_MUCH_WORK.issuperset(result["case"]["settings"])
        ]

    @property
    def place(self) -> str:
        """The card and the versions, a sentence; empty without any result."""
        if not self.by_name:
            return ""
        result = next(iter(self.by_name.values()))
        card, libraries = result["hardware"], result["versions"]
        rates = [it["hardware"]["matmul_tflops"] for it in self.by_name.values() if it["hardware"]["matmul_tflops"]]
        memory = f", {card['memory_gb']:.0f} GB" if card["memory_gb"] else ""
        rate = f", {min(rates):.0f} to {max(rates):.0f} TFLOP/s in bfloat16" if rates else ""
        return f"{card['name']}{memory}{rate}; {', '.join(f'{name} {it}' for name, it in libraries.items())}."


# ---- Tables ----

COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "s a step": lambda it: f"{it['trainer']['seconds']:.3f}",
    "samples/s": lambda it: f"{it['samples_per_second']:.3g}",
    "over the bare loop": lambda it: f"{it['ratio']:.3f}",
    "spread of the bare loop": lambda it: f"{it['bare']['spread']:.1%}",
    "peak, GB": lambda it: _number(it["trainer"]["peak_gb"], ".1f"),
    "utilisation": lambda it: _number(it["trainer"].get("utilisation"), ".0%"),
    "waits for data": lambda it: f"{it['data_share']:.1%}",
}
"""Of a case of the trainer, what stands below each head."""


def step_table(results: Results, scale: str = "real") -> str:
    """A row for each model, what is trained, and batch: without gradient checkpointing / with it."""
    cases = plan(list(MODELS), scale=scale)
    planned = [(it.model, it.trained, it.batch_size, it.bits) for it in cases]
    rows = []
    for key in dict.fromkeys(planned):
        model, trained, size, bits = key
        pair = [Case(model, trained, size, again, bits, scale=scale) for again in (False, True)]
        found = [results.of(case) for case in pair if case in cases]
        kind = TRAINED[trained] + (f" on {bits} bits, checkpointing" if bits != 16 else "")
        rows.append([MODELS[model].title, kind, size, *_pair_cells(found)])
    return markdown_table(("model", "trained", "batch", *COLUMNS), rows)


def _pair_cells(found: Sequence[dict[str, Any] | None]) -> list[str]:
    if not any(found):
        return [NOT_MEASURED] + [""] * (len(COLUMNS) - 1)
    cells = []
    for number, write in enumerate(COLUMNS.values()):
        parts = []
        for result in found:
            if result is None:
                parts.append(NOT_MEASURED if number == 0 else "")
            elif result["outcome"] == "measured":
                parts.append(write(result))
            else:
                parts.append(result["outcome"] if number == 0 else "")
        cells.append(" / ".join(parts) if any(parts) else "")
    return cells


def settings_table(results: Results) -> str:
    """A row for each result with settings of its own, and how much shorter its step is than without; empty if none."""
    rows = []
    for result in results.by_name.values():
        case = Case(**result["case"])
        if not case.settings:
            continue
        plain = results.of(Case(**{**result["case"], "settings": {}}))
        gain = ""
        if plain is not None and {plain["outcome"], result["outcome"]} == {"measured"}:
            gain = f"{plain['trainer']['seconds'] / result['trainer']['seconds']:.2f}"
        settings = ", ".join(f"`{name}={value}`" for name, value in case.settings.items())
        again = "yes" if case.checkpointing else "no"
        start = [MODELS[case.model].title, TRAINED[case.trained], case.batch_size, again, settings]
        rows.append([*start, *_pair_cells([result]), gain])
    if not rows:
        return ""
    return markdown_table(("model", "trained", "batch", "checkpointing", "settings", *COLUMNS, "times as fast"), rows)


def peer_table(results: Results, scale: str = "real") -> str:
    """A row for each order of operations and batch, beside ours with checkpointing, as theirs."""
    rows = []
    for order in ORDERS:
        for size in PEER_BATCHES:
            result = results.of(Case("sd15-512", order, size, True, scale=scale))
            if result is None or result["outcome"] != "measured":
                rows.append([TITLES[order], size, NOT_MEASURED if result is None else result["outcome"], "", "", ""])
                continue
            ours = results.of(Case("sd15-512", "lora", size, True, scale=scale))
            ratio = ""
            if ours is not None and ours["outcome"] == "measured":
                ratio = f"{ours['samples_per_second'] / result['samples_per_second']:.2f}"
            peer = result["peer"]
            rate = f"{result['samples_per_second']:.3g}"
            rows.append([TITLES[order], size, f"{peer['seconds']:.3f}", rate, _number(peer["peak_gb"], ".1f"), ratio])
    head = ("order of", "images in a step", "s a step", "images/s", "peak, GB", "LoRA here, times as fast")
    return markdown_table(head, rows)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


# ---- Bars ----


@dataclass(frozen=True)
class Bar:
    """What speed is held to.

    Attributes:
        text: what is asked.
        value: what the results give, and of which case; None as long as they do not say.
        limit: what is asked for.
        at_least: whether the value may be larger, or else smaller.
        form: of the numbers.
    """

    text: str
    value: Callable[[Results], tuple[float, str] | None]
    limit: float
    at_least: bool
    form: str = ".2f"

    def row(self, results: Results) -> tuple[str, str, str, str]:
        """What is asked, what was measured, of which case, and whether the bar is met or by how much it is missed."""
        asked = f"{self.text}: {'at least' if self.at_least else 'at most'} {self.limit:{self.form}}"
        found = self.value(results)
        if found is None:
            return asked, "", "", NOT_MEASURED
        value, title = found
        short = self.limit - value if self.at_least else value - self.limit
        return asked, f"{value:{self.form}}", title, "met" if short <= 0 else f"missed by {short:{self.form}}"


def _best(
    found: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float | None], largest: bool
) -> tuple[float, str] | None:
    known = [(number, it["title"]) for it in found if (number := value(it)) is not None]
    if not known:
        return None
    return (max if largest else min)(known)


def _beside_peers(size: int) -> Callable[[Results], tuple[float, str] | None]:
    def value(results: Results) -> tuple[float, str] | None:
        theirs = [results.measured(model="sd15-512", trained=it, batch_size=size) for it in ("dpo-lora", "kto-lora")]
        ours = results.measured(model="sd15-512", trained="lora", batch_size=size)
        if not all(theirs) or not ours:
            return None
        fastest = max(it["samples_per_second"] for found in theirs for it in found)
        return _best(ours, lambda it: it["samples_per_second"] / fastest, largest=True)

    return value


def _utilisation(model: str, at_largest: bool) -> Callable[[Results], tuple[float, str] | None]:
    def value(results: Results) -> tuple[float, str] | None:
        found = results.measured(model=model, trained="lora", checkpointing=False)
        if at_largest:  # of those that fit, and only where it was tried
            largest = max((it["case"]["batch_size"] for it in found), default=0)
            found = [it for it in found if it["case"]["batch_size"] == largest > 1]
        else:
            found = [it for it in found if it["case"]["batch_size"] == 1]
        return _best(found, lambda it: it["trainer"].get("utilisation"), largest=True)

    return value


def _seconds(model: str) -> Callable[[Results], tuple[float, str] | None]:
    return lambda results: _best(
        results.measured(model=model, trained="lora", batch_size=1), lambda it: it["trainer"]["seconds"], largest=False
    )


def _worst(key: str) -> Callable[[Results], tuple[float, str] | None]:
    return lambda results: _best(results.measured(), lambda it: it.get(key), largest=True)


def _peak(**case: Any) -> Callable[[Results], tuple[float, str] | None]:
    return lambda results: _best(results.measured(**case), lambda it: it["trainer"]["peak_gb"], largest=False)


BARS = (
    *(
        Bar(f"SD 1.5 over the faster of the peers' LoRA scripts, batch {size}", _beside_peers(size), 3, True)
        for size in PEER_BATCHES
    ),
    *(
        Bar(f"{MODELS[name].title}: utilisation at {batch}, without checkpointing", _utilisation(name, it), limit, True)
        for batch, it, limit in (("the largest batch", True, 0.45), ("batch 1", False, 0.33))
        for name in ("sdxl-1024", "flux-512", "flux-1024")
    ),
    *(
        Bar(f"{MODELS[name].title}: seconds of a step at batch 1", _seconds(name), limit, False)
        for name, limit in (("sdxl-1024", 0.3), ("flux-512", 0.25), ("flux-1024", 0.5))
    ),
    Bar("trainer over bare loop, the worst case", _worst("ratio"), 1.03, False, ".3f"),
    Bar("share of a step that waits for data, the worst case", _worst("data_share"), 0.01, False, ".4f"),
    Bar("FLUX.1, 512, LoRA on 4 bits: peak GB", _peak(model=QUANTISED.model, bits=4, batch_size=1), 24, False, ".1f"),
    Bar("SD 1.5, 512, LoRA: peak GB", _peak(model="sd15-512", trained="lora", batch_size=1), 4, False, ".1f"),
)  # fmt: skip


def bar_table(results: Results) -> str:
    """A row for each bar."""
    return markdown_table(("asked", "measured", "of", ""), [bar.row(results) for bar in BARS])


def missed(results: Results) -> list[str]:
    """The bars that are not met, or not measured."""
    rows = [bar.row(results) for bar in BARS]
    return [f"{asked}: {verdict}" for asked, _, _, verdict in rows if verdict != "met"]


# ---- The page ----


def section(results: Results) -> str:
    """The tables, as docs/performance.md has them."""
    if not results.by_name:
        return "No GPU was at hand yet: nothing is measured, and nothing is estimated. The tables come to stand here."
    parts = [results.place, step_table(results), peer_table(results), settings_table(results), bar_table(results)]
    return "\n\n".join(part for part in parts if part)


def write_section(page: str, results: Results) -> str:
    """The text of a page with the tables in it, in the place of those that were there."""
    return with_section(page, SECTION, section(results))


def write_page(page: Path, results: Results) -> None:
    """Puts the tables into a page, and what they are made of into a file beside it, by which a test holds the page."""
    page.write_text(write_section(page.read_text("utf-8"), results), "utf-8")
    page.with_name(RECORD).write_text(json.dumps(list(results.by_name.values()), indent=1) + "\n", "utf-8")


def read_page_results(page: Path) -> Results:
    """The results that a page was written from; none if there is no such file."""
    record = page.with_name(RECORD)
    return Results(json.loads(record.read_text("utf-8")) if record.exists() else [])


def write_result(result: Mapping[str, Any]) -> str:
    """A line that says what was measured."""
    start = f"{result['title']}: "
    if result["outcome"] != "measured":
        return start + result["outcome"]
    rate = f"{result['samples_per_second']:.3g} samples/s"
    if "peer" in result:
        return f"{start}{result['peer']['seconds']:.3f} s a step, {rate}"
    bare = f"{result['ratio']:.3f} of the bare loop (which spreads over {result['bare']['spread']:.1%})"
    return f"{start}{result['trainer']['seconds']:.3f} s a step, {rate}, {bare}"
