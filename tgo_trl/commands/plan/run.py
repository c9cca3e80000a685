"""Tells what `tgo-trl train` would do with the same settings; no weights are loaded, and nothing is written."""

from ...storage.processes import process_state
from ...trainer.plan import RunPlan, plan_run
from ...trainer.summary import print_summary
from ...trainer.tgo_config import TGOConfig
from ..train.config import TrainArguments
from ..train.run import named_pipeline, open_datasets, quantization_of, subject_of, take_recorded_class
from .text import plan_lines


def plan(arguments: TrainArguments, args: TGOConfig) -> RunPlan:
    """Prints the plan, and returns it.

    Args:
        arguments: what would be trained, and on what.
        args: how.

    Raises:
        ValueError: for what `train` would refuse, but for settings of a run that would go on: these are printed.
    """
    take_recorded_class(arguments, args)
    datasets = open_datasets(arguments, args)
    found = plan_run(
        named_pipeline(arguments, args, weights=False),
        subject_of(arguments),
        args,
        datasets[0],
        datasets[1] if len(datasets) > 1 else None,
        quantization_of(arguments),
    )
    if process_state().is_main_process:
        print_summary(plan_lines(found, args), "Plan: nothing is loaded or written yet")
    return found
