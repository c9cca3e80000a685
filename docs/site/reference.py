"""The pages of the API: which names are on them. What they say is in the docstrings, where mkdocstrings reads it."""

import tgo_trl

EXTENSION_POINTS = {
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
        "families.base_latents.LatentFamily", "families.base_flow.FlowMatchingFamily",
        "families.base_tokens.MaskedTokenFamily", "families.base_sources.SourceFamily",
    ),
    "Rewards": (
        "rewards.load_reward", "rewards.base.ModelReward", "rewards.base.DifferentiableReward", "rewards.base.NoScore",
        "rewards.ensemble.Ensemble", "rewards.ensemble.Member",
    ),
    "Commands of your own": (
        "cli.Command", "commands.sharded_run.ShardedRun", "commands.sharded_run.write_dataset",
        "commands.sharded_run.check_destination", "commands.sharded_run.locks_output_dir",
        "commands.settings.DatasetSettings", "commands.generate.prompts.read_prompts", "cards.dataset_card.card_head",
        "cards.dataset_card.dataset_info", "storage.processes.process_state", "data.rows.RowSource",
        "data.columns.check_columns", "data.rows.read_cell", "media.origin.Origin",
    ),
    "Spreading weights": ("policy.distributed.Replication", "policy.distributed.Sharding", "policy.reference.Reference"),
}  # fmt: skip
"""What docs/extending.md builds on, by the page that it is on: each a name of the package."""


def api_pages() -> dict[str, tuple[str, list[str]]]:
    """Title and full names of the objects of each page, by its path in the site: public names, then extension points."""
    exports = tgo_trl._EXPORTS
    rooms = {"Trainers": "trainer.", "Commands": "commands.", "Families": ("families", "models")}
    names = {title: [name for name, module in exports.items() if module.startswith(room)] for title, room in rooms.items()}
    for title, others in EXTENSION_POINTS.items():
        names.setdefault(title, []).extend(others)
    return {
        f"api/{title.lower().replace(' ', '_')}.md": (title, [f"tgo_trl.{name}" for name in found])
        for title, found in names.items()
    }


def documented() -> dict[str, str]:
    """The full name of each object of the API, by its own name."""
    return {name.rpartition(".")[2]: name for _, names in api_pages().values() for name in names}


def api_markdown(title: str, names: list[str]) -> str:
    """Markdown of a page, in which mkdocstrings puts the docstrings."""
    return "\n".join([f"# {title}", "", *(f"::: {name}\n" for name in names)])
