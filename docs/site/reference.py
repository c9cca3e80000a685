"""The pages of the API: which names are on them. What they say is in the docstrings, where mkdocstrings reads it."""

import re

API: dict[str, tuple[str, ...]] = {
    "Trainers": (
        "TGOTrainer", "TGOConfig", "AlignPropTrainer", "AlignPropConfig", "SampleGridCallback",
        "trainer.base_trainer.BaseTrainer", "trainer.published_trainer.PublishedTrainer",
        "trainer.selecting_trainer.SelectingTrainer",
    ),
    "Commands": (
        "generate", "GenerateConfig", "score", "ScoreConfig", "convert", "ConvertConfig", "inspect", "InspectConfig",
        "rounds", "RoundsConfig", "strength", "StrengthConfig", "export", "ExportConfig", "evaluate", "EvaluateConfig",
        "judge", "JudgeConfig", "commands.generate.config.SamplingSettings", "commands.settings.DatasetSettings",
    ),
    "Losses": (
        "losses.base.Loss", "losses.base.LossInputs", "losses.base.RowErrors", "losses.base.Predictions",
        "losses.base.RowLosses", "losses.likelihood.log_likelihood", "losses.likelihood.log_ratio",
        "losses.likelihood.relative_log_ratio", "losses.likelihood.implicit_reward", "losses.likelihood.toward_label",
    ),
    "Labels and weights": ("labels.rule.LabelRule", "labels.rule.Labels", "labels.fitting.fit_label_rule"),
    "Noise processes": (
        "noise.base.NoiseProcess", "noise.diffusion.DiffusionProcess", "noise.flow_matching.FlowMatchingProcess",
        "noise.masked_tokens.MaskedTokenProcess",
    ),
    "Families": (
        "Family", "MeissonicPipeline", "families.base_latents.LatentFamily", "families.base_flow.FlowMatchingFamily",
        "families.base_tokens.MaskedTokenFamily", "families.base_sources.SourceFamily",
    ),
    "Rewards": (
        "rewards.load_reward", "rewards.base.ModelReward", "rewards.base.DifferentiableReward", "rewards.base.NoScore",
        "rewards.ensemble.Ensemble", "rewards.ensemble.Member",
    ),
    "Commands of your own": (
        "commands.table.Command", "commands.sharded_run.ShardedRun", "commands.sharded_run.write_dataset",
        "commands.sharded_run.check_destination", "commands.sharded_run.locks_output_dir",
        "commands.generate.prompts.read_prompts", "cards.dataset_card.card_head",
        "cards.dataset_card.dataset_info", "storage.processes.process_state", "data.rows.RowSource",
        "data.columns.check_columns", "data.rows.read_cell", "media.origin.Origin",
    ),
    "Spreading weights": (
        "policy.distributed.Replication", "policy.distributed.Sharding", "policy.reference.Reference",
    ),
}  # fmt: skip
"""Names of the package by the page that they are on: the public ones, and what docs/extending.md builds on."""
GROUPED = ("TGOConfig", "AlignPropConfig")
"""Classes whose docstrings have each parameter and its default, and whose signatures are screens long."""


def api_pages() -> dict[str, str]:
    """Markdown of each page, by its path in the site; mkdocstrings puts the docstrings into it."""
    return {f"api/{title.lower().replace(' ', '_')}.md": _page(title, names) for title, names in API.items()}


def _page(title: str, names: tuple[str, ...]) -> str:
    return "\n".join([f"# {title}\n", *(f"::: tgo_trl.{name}\n{_options(name)}" for name in names)])


def _options(name: str) -> str:
    """Of mkdocstrings: settings are what their docstring lists, and no page for what the commands make of them."""
    options = ["show_signature: false"] * (name in GROUPED) + ["members: false"] * name.endswith(("Config", "Settings"))
    return "    options:\n" * bool(options) + "".join(f"      {option}\n" for option in options)


def documented() -> dict[str, str]:
    """The full name of each object of the API, by its own name."""
    return {name.rpartition(".")[2]: f"tgo_trl.{name}" for names in API.values() for name in names}


def as_markdown(text: str, known: dict[str, str]) -> str:
    """A docstring with links to known names, whose groups of parameters are lists.

    Args:
        text: the docstring.
        known: the full names that have a place of their own, by the last part.
    """

    def link(found: re.Match[str]) -> str:
        name = found[1].rpartition(".")[2]
        return f"[`{name}`][{known[name]}]" if name in known else f"`{name}`"

    text = re.sub(r"\[`~?([\w.]+)`\](?![(\[])", link, text)
    head, heading, groups = text.partition("Parameters\n----------\n")
    if not heading:
        text = re.sub(r"^( +\w+) \(.*\):$", r"\1:", text, flags=re.MULTILINE)  # for types, the signature is read
        return re.sub(r"^(?:Args|Attributes):\n(?: {4}.*\n?|\n)+", _one_name_each, text, flags=re.MULTILINE)
    groups = re.sub(r"^    ", "", groups, flags=re.MULTILINE)
    groups = re.sub(r"^> Parameters that control (.*)$", r"**Parameters that control \1**", groups, flags=re.MULTILINE)
    groups = re.sub(r"^((?:\w+, )*\w+) (\(.*\)):\n    ", r"- **`\1`** \2: ", groups, flags=re.MULTILINE)
    return head + re.sub(
        r"^> \[!(\w)(\w+)\]", lambda note: f"> **{note[1]}{note[2].lower()}**\n>", groups, flags=re.MULTILINE
    )


def _one_name_each(section: re.Match[str]) -> str:
    """A section whose entries of several names, which griffe takes for a name and its type, are an entry each."""

    def apart(entry: re.Match[str]) -> str:
        return "".join(f"    {name}: {entry[2].rstrip()}\n" for name in entry[1].split(", "))

    return re.sub(r"^ {4}(\w+(?:, \w+)+): (.*\n?(?: {5,}.*\n?)*)", apart, section[0], flags=re.MULTILINE)
