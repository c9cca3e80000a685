"""`tgo-trl completion`: which shell."""

from dataclasses import dataclass, field

from ...settings import check_choice

SHELLS = ("bash", "zsh", "fish")


@dataclass
class CompletionConfig:
    """Which shell the script is for; see [`~tgo_trl.commands.completion.run.completion`].

    Attributes:
        shell: `"bash"`, `"zsh"` or `"fish"`.
    """

    shell: str = field(metadata={"help": "Whose script is printed.", "choices": list(SHELLS)})

    def __post_init__(self) -> None:
        check_choice("shell", self.shell, SHELLS)
