"""`tgo-trl demo`: from prompts to an adapter and a comparison, on files that come with the package."""

from dataclasses import dataclass, field

from ...settings import check_types, shown

MOST_SEED = 2**32 - 2
"""Libraries take seeds of 32 bits, and the comparison draws with the next one."""


@dataclass
class DemoConfig:
    """Where the demo writes, and how long it takes; see [`~tgo_trl.commands.demo.run.demo`].

    Attributes:
        output_dir: where everything goes. A demo that was stopped goes on there.
        quick: draw fewer images and train for fewer updates: shows that everything runs, and nothing else.
        seed: of the images and of training; the comparison draws with the next one.
    """

    output_dir: str = field(
        default="tgo-demo", metadata={"help": "Folder of all that is written; a stopped demo goes on there."}
    )
    quick: bool = field(
        default=False, metadata={"help": "Fewer images and updates: shows that everything runs, and nothing else."}
    )
    seed: int = field(default=42, metadata={"help": "Of images and training; the comparison draws with the next."})

    def __post_init__(self) -> None:
        check_types(self, ["output_dir", "quick", "seed"])
        if not self.output_dir or "+" in self.output_dir:
            raise ValueError(
                f"`output_dir` is {shown(self.output_dir)}; write the path of a folder without a `+`, which stands "
                "between a model and its adapter in `tgo-trl evaluate --models`."
            )
        if not 0 <= self.seed <= MOST_SEED:
            raise ValueError(f"`seed` is {shown(self.seed)}; write 0 to {MOST_SEED}.")
