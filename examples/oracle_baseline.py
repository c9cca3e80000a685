"""How far one global threshold is from the oracle, in a world small enough to compute the oracle.

    python examples/oracle_baseline.py --output_dir outputs/oracle_baseline
    python examples/oracle_baseline.py --output_dir outputs/oracle_baseline --quick

TGO replaces the oracle baseline `tau*(x) = beta log Z(x)` by one number. Here every prompt has eight possible outputs,
so `Z(x)`, the optimal policy and the objective are sums of eight terms, and what a threshold costs can be measured.
`docs/oracle_baseline.md` says what was asked and what came out.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from scipy.stats import t as student_t
from torch import Tensor

from tgo_trl.labels.thresholds import mean_threshold, percentile_threshold, prompt_baseline
from tgo_trl.labels.weights import confidence_weights
from tgo_trl.losses.likelihood import implicit_reward
from tgo_trl.losses.tgo import tgo_loss
from tgo_trl.plots import legend_below

NUM_OUTPUTS = 8  # Y
PROMPT_SIZE, OUTPUT_SIZE = 4, 8  # numbers that describe a prompt (the first is 1) and an output
POLICIES = ("shared", "tabular")


@dataclass(frozen=True)
class Method:
    """A rule for the threshold, and of how many images of a prompt it knows the scores at once."""

    name: str
    kind: str
    num_images: int = 1
    color: str = "black"

    @property
    def is_global(self) -> bool:
        """Whether it is one number for all prompts. The others follow a prompt's level, so that it cancels."""
        return self.kind in ("median", "mean")


METHODS = (
    Method("median", "median", 1, "#c44e52"),
    Method("mean", "mean", 1, "#dd8452"),
    Method("prompt mean, 4", "prompt_mean", 4, "#937860"),
    Method("prompt baseline, 2", "prompt_baseline", 2, "#8ecae6"),
    Method("prompt baseline, 4", "prompt_baseline", 4, "#4c72b0"),
    Method("prompt baseline, 16", "prompt_baseline", 16, "#1d3557"),
    Method("exact", "exact"),
)


@dataclass
class Options:
    """Options of the experiment; `spreads` and `noises` are in score units, in which the quality has spread 1."""

    output_dir: Path = Path("outputs/oracle_baseline")
    beta: float = 1.0
    spreads: Sequence[float] = (0.0, 0.5, 1.0, 2.0, 4.0)
    noises: Sequence[float] = (0.0, 0.5, 1.0)
    coefs: Sequence[float] = (0.0, 5.0)
    num_seeds: int = 8
    num_rows: int = 1024  # of the shared policy, in all
    num_test_prompts: int = 256
    num_tabular_prompts: int = 32
    rows_per_tabular_prompt: int = 128
    learning_rate: float = 0.03
    num_updates: dict[str, int] = field(default_factory=lambda: {"shared": 250, "tabular": 500})

    def quick(self) -> "Options":
        """The same in seconds: fewer of everything, and the ends of the sweeps."""
        return replace(
            self,
            spreads=(0.0, 2.0, 4.0),
            noises=(0.0, 0.5),
            num_seeds=3,
            num_rows=512,
            num_test_prompts=64,
            num_tabular_prompts=16,
            num_updates={"shared": 60, "tabular": 150},
        )


@dataclass
class World:
    """Prompts with all their outputs, `S` independent worlds side by side.

    Attributes:
        log_reference: `[S, P, Y]`, `log pi_ref(y|x)`.
        quality: `[S, P, Y]`, the part of the reward that the outputs of a prompt differ by.
        level: `[S, P]`, the part that they share, of spread 1: low for hard prompts, high for easy ones.
        features: `[S, P, Y, F]`, what the shared policy sees of a prompt and an output.
    """

    log_reference: Tensor
    quality: Tensor
    level: Tensor
    features: Tensor

    def reward(self, spread: float) -> Tensor:
        """`R(x, y) = sigma_x level(x) + quality(x, y)`; `[S, P, Y]`."""
        return self.quality + spread * self.level[..., None]

    def oracle(self, beta: float, spread: float) -> Tensor:
        """`tau*(x) = beta log Z(x)`, with `Z(x)` summed over all outputs; `[S, P]`."""
        return beta * torch.logsumexp(self.log_reference + self.reward(spread) / beta, -1)

    def optimum(self, beta: float) -> Tensor:
        """`log pi*(y|x)`, `[S, P, Y]`. The level cancels against `Z(x)`."""
        return (self.log_reference + self.quality / beta).log_softmax(-1)

    def objective(self, log_policy: Tensor, beta: float, spread: float = 0.0) -> Tensor:
        """`E_pi[R] - beta KL(pi || pi_ref)` of each prompt; `[S, ..., P, Y]` to `[S, ..., P]`."""
        extra = log_policy.dim() - self.quality.dim()
        reward, reference = (
            value[(slice(None), *[None] * extra)] for value in (self.reward(spread), self.log_reference)
        )
        return (log_policy.exp() * (reward - beta * (log_policy - reference))).sum(-1)


def make_world(num_prompts: int, num_seeds: int, generator: torch.Generator) -> World:
    """A world per seed. The rule from features to quality is the same in all the worlds of one seed.

    Quality is linear in the product of prompt and output features, so that the shared policy can express the optimum,
    and the level is linear in the prompt's, so that it can also learn to treat hard prompts in another way.
    """
    rule = torch.Generator().manual_seed(0)
    to_quality = torch.randn(num_seeds, PROMPT_SIZE * OUTPUT_SIZE, generator=rule, dtype=torch.float64)
    to_quality /= to_quality.square().mean(1, keepdim=True).sqrt() * (PROMPT_SIZE * OUTPUT_SIZE) ** 0.5
    to_level = torch.randn(num_seeds, PROMPT_SIZE - 1, generator=rule, dtype=torch.float64)
    to_level /= to_level.norm(dim=1, keepdim=True)

    size = (num_seeds, num_prompts)
    prompts = torch.randn(*size, PROMPT_SIZE, generator=generator, dtype=torch.float64)
    prompts[..., 0] = 1
    outputs = torch.randn(*size, NUM_OUTPUTS, OUTPUT_SIZE, generator=generator, dtype=torch.float64)
    features = (prompts[:, :, None, :, None] * outputs[:, :, :, None, :]).flatten(-2)
    return World(
        log_reference=torch.randn(*size, NUM_OUTPUTS, generator=generator, dtype=torch.float64).log_softmax(-1),
        quality=torch.einsum("spyf,sf->spy", features, to_quality),
        level=torch.einsum("spf,sf->sp", prompts[..., 1:], to_level),
        features=features,
    )


@dataclass
class Rows:
    """Scored samples of the reference: `n` of each prompt.

    Attributes:
        outputs: int64 `[S, P, n]`, which output was drawn.
        noise: `[S, P, n]`, logistic of scale 1: what the scorer adds, and no policy can predict.
    """

    outputs: Tensor
    noise: Tensor

    def scores(self, world: World, spread: float, noise: float) -> Tensor:
        """`s = R(x, y) + noise`, `[S, P, n]`."""
        return world.reward(spread).gather(-1, self.outputs) + noise * self.noise


def draw_rows(world: World, num_images: int, generator: torch.Generator) -> Rows:
    """`num_images` samples of the reference for each prompt."""
    size = world.log_reference.shape[:2]
    probabilities = world.log_reference.exp().flatten(0, 1)
    outputs = torch.multinomial(probabilities, num_images, replacement=True, generator=generator).view(
        *size, num_images
    )
    return Rows(outputs, torch.rand(outputs.shape, generator=generator, dtype=torch.float64).logit(eps=1e-12))


def threshold_rows(method: Method, scores: Tensor, oracle: Tensor, beta: float) -> Tensor:
    """`tau` of each row of one seed, from scores `[P, n]` and the exact baselines `[P]`; `[P, n]`.

    A per-prompt rule sees `method.num_images` consecutive rows of a prompt at a time.
    """
    if method.kind == "exact":
        return oracle[:, None].expand_as(scores)
    flat = scores.flatten()
    if method.kind == "median":
        return percentile_threshold(flat, 50).expand_as(scores)
    if method.kind == "mean":
        return mean_threshold(flat).expand_as(scores)
    if method.kind == "prompt_mean":
        means = flat.view(-1, method.num_images).mean(1)
        return means.repeat_interleave(method.num_images).view_as(scores)
    assert method.kind == "prompt_baseline"
    return prompt_baseline(flat, torch.arange(len(flat)) // method.num_images, beta).view_as(scores)


@dataclass
class Problem:
    """One cell of the experiment: what is trained on, and what came out.

    `positive` and `negative` hold, per prompt and output, the summed weights of rows of either label over the number
    of rows, `[S, P, Y]`: rows of one output share their log-ratio, so the mean loss over rows is a sum over outputs.
    """

    policy: str
    method: Method
    noise: float
    spread: float
    coef: float
    positive: Tensor
    negative: Tensor
    flipped: list[float]  # of each seed: share of labels that the exact baseline would give otherwise
    gap: list[float]  # of each seed: E[w |tau - tau*(x)|]
    checkpoints: list[int] = field(default_factory=list)
    attained: list[list[float]] = field(default_factory=list)  # [checkpoint][seed], 0 the reference and 1 the optimum
    lost_by_prompt: Tensor = field(default_factory=lambda: torch.empty(0))  # [checkpoint, S, P], in units of the gain

    @property
    def stop(self) -> int:
        """The checkpoint with the highest attained objective, one for all seeds."""
        means = [sum(seeds) for seeds in self.attained]
        return means.index(max(means))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = ("policy", "noise", "spread", "coef", "flipped", "gap", "checkpoints", "attained")
        best = {"best_updates": self.checkpoints[self.stop], "best": interval(self.attained[self.stop])}
        values = {name: getattr(self, name) for name in names}
        return {"method": self.method.name, **best, "last": interval(self.attained[-1]), **values}


def make_problem(
    policy: str, method: Method, world: World, rows: Rows, noise: float, spread: float, coef: float, beta: float
) -> Problem:
    """Scores, labels and weights of the rows, as training sees them."""
    scores, oracle = rows.scores(world, spread, noise), world.oracle(beta, spread)
    threshold = torch.stack([threshold_rows(method, *seed, beta) for seed in zip(scores, oracle, strict=True)])
    is_positive, weight = scores >= threshold, confidence_weights(scores, threshold, coef)
    right = scores >= oracle[..., None]
    num_rows = scores[0].numel()
    sums = [
        torch.zeros_like(world.quality).scatter_add(-1, rows.outputs, weight * side) / num_rows
        for side in (is_positive, ~is_positive)
    ]
    flipped = (is_positive != right).double().mean((1, 2)).tolist()
    gap = (weight * (threshold - oracle[..., None]).abs()).mean((1, 2)).tolist()
    return Problem(policy, method, noise, spread, coef, *sums, flipped, gap)


def log_policy(world: World, theta: Tensor) -> Tensor:
    """`log pi_theta(y|x)`, `[S, G, P, Y]`; theta is `[S, G, F]` (shared policy) or `[S, G, P, Y]` (tabular policy)."""
    shared = theta.dim() == 3
    logits = torch.einsum("spyf,sgf->sgpy", world.features.to(theta), theta) if shared else theta
    logits = world.log_reference[:, None].to(theta) + logits
    return logits - logits.logsumexp(-1, keepdim=True)  # for so few outputs, three times as fast as `log_softmax`


def mean_loss(world: World, theta: Tensor, positive: Tensor, negative: Tensor, beta: float) -> Tensor:
    """The TGO loss, mean over rows; theta as in [`log_policy`], summed weights `[S, G, P, Y]`; to `[S, G]`."""
    log_ratio = log_policy(world, theta) - world.log_reference[:, None].to(theta)
    reward = implicit_reward(log_ratio, beta)
    yes, no = torch.tensor(True), torch.tensor(False)
    return (tgo_loss(reward, yes, positive) + tgo_loss(reward, no, negative)).sum((-2, -1))


def train(world: World, judge: World, problems: Sequence[Problem], options: Options) -> None:
    """Trains all the problems at once from the reference, and fills in what each attains on the prompts of `judge`."""
    positive, negative = (
        torch.stack([getattr(problem, side) for problem in problems], 1).float() for side in ("positive", "negative")
    )
    num_updates = options.num_updates[problems[0].policy]
    shared = (*positive.shape[:2], world.features.shape[-1])
    size = shared if problems[0].policy == "shared" else positive.shape
    theta = torch.zeros(size, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=options.learning_rate)
    for update in range(1, num_updates + 1):
        optimizer.zero_grad()
        mean_loss(world, theta, positive, negative, options.beta).sum().backward()
        optimizer.step()
        if update in checkpoint_updates(num_updates):
            record(judge, theta.detach(), problems, update, options.beta)


def checkpoint_updates(num_updates: int) -> list[int]:
    """1, 2, 3, 4, 5, 8, 11, 15, ... and the last: each some 1.4 times the one before."""
    steps = {round(1.4**i) for i in range(100) if 1.4**i < num_updates}
    return sorted(steps | {num_updates})


def record(judge: World, theta: Tensor, problems: Sequence[Problem], update: int, beta: float) -> None:
    """Adds the attained objective of each problem and seed, normalised between the reference and the optimum."""
    attained = judge.objective(log_policy(judge, theta.double()), beta)
    reference, optimum = judge.objective(judge.log_reference, beta), judge.objective(judge.optimum(beta), beta)
    gain = (optimum - reference).mean(-1)
    lost = (optimum[:, None] - attained) / gain[:, None, None]
    for i, problem in enumerate(problems):
        problem.checkpoints.append(update)
        problem.attained.append((1 - lost[:, i].mean(-1)).tolist())
        problem.lost_by_prompt = torch.cat([problem.lost_by_prompt, lost[None, :, i]])


def tabular_world(options: Options) -> World:
    """The prompts that the tabular policy is trained and judged on."""
    return make_world(options.num_tabular_prompts, options.num_seeds, torch.Generator().manual_seed(0))


def run(options: Options) -> list[Problem]:
    """All cells of the experiment."""
    problems = []
    test = make_world(options.num_test_prompts, options.num_seeds, torch.Generator().manual_seed(1))
    for num_images in sorted({method.num_images for method in METHODS}):
        # as many rows for each rule: with more images of each prompt, there are fewer prompts
        generator = torch.Generator().manual_seed(2 + num_images)
        world = make_world(options.num_rows // num_images, options.num_seeds, generator)
        rows = draw_rows(world, num_images, generator)
        methods = [method for method in METHODS if method.num_images == num_images]
        problems += sweep("shared", methods, world, test, rows, options)
    # the tabular policy learns nothing about other prompts: many rows of each, and judged on the same ones
    world = tabular_world(options)
    rows = draw_rows(world, options.rows_per_tabular_prompt, torch.Generator().manual_seed(2))
    return problems + sweep("tabular", METHODS, world, world, rows, options)


def sweep(
    policy: str, methods: Sequence[Method], world: World, judge: World, rows: Rows, options: Options
) -> list[Problem]:
    """All noises, spreads and weights for some rules on one set of rows."""
    problems = []
    for noise in options.noises:
        batch = [
            make_problem(policy, method, world, rows, noise, spread, coef, options.beta)
            for method in methods
            # the level cancels in `s - tau(x)`: at every spread, a rule that follows the prompt gives the same run
            for spread in (options.spreads if method.is_global else options.spreads[:1])
            for coef in options.coefs
        ]
        train(world, judge, batch, options)
        problems += batch
    return problems


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds, and half the width of its 95 % confidence interval (Student's t)."""
    tensor = torch.tensor(values, dtype=torch.float64)
    half = student_t.ppf(0.975, len(values) - 1) * tensor.std().item() / len(values) ** 0.5
    return tensor.mean().item(), float(half)


def select(problems: Sequence[Problem], **wanted: object) -> list[Problem]:
    """The cells with the given policy, noise, spread, coef or method (its name), in their order."""

    def value(problem: Problem, name: str) -> object:
        return problem.method.name if name == "method" else getattr(problem, name)

    return [problem for problem in problems if all(value(problem, name) == want for name, want in wanted.items())]


def at_spread(problems: Sequence[Problem], method: Method, spread: float, **wanted: object) -> Problem:
    """The one cell of a rule at a spread; rules that follow the prompt have the same at all spreads."""
    found = select(problems, method=method.name, **wanted)
    return next(problem for problem in found if problem.spread == spread or not method.is_global)


def write_table(problems: Sequence[Problem], policy: str, options: Options) -> str:
    """Markdown: attained objective in per cent, at the best number of updates (and at the last)."""
    columns = [(noise, coef) for noise in options.noises for coef in options.coefs]
    lines = [
        "| threshold | spread | " + " | ".join(f"noise {noise:g}, c = {coef:g}" for noise, coef in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for method in METHODS:
        for spread in options.spreads if method.is_global else options.spreads[:1]:
            cells = []
            for noise, coef in columns:
                problem = at_spread(problems, method, spread, policy=policy, noise=noise, coef=coef)
                (best, half), (last, _) = interval(problem.attained[problem.stop]), interval(problem.attained[-1])
                cells.append(f"{100 * best:.0f} ± {100 * half:.0f} ({round(100 * last)})")
            name = f"{spread:g}" if method.is_global else "any"
            lines.append(f"| {method.name} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def correlations(problems: Sequence[Problem], options: Options) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation of the lost objective with E[w |tau - tau*|] and with the share of flipped labels."""
    groups = {"all": list(problems)}
    groups |= {f"c = {coef:g}": select(problems, coef=coef) for coef in options.coefs}
    for side, name in ((True, "one threshold"), (False, "per prompt")):
        for coef in options.coefs:
            group = [problem for problem in select(problems, coef=coef) if problem.method.is_global == side]
            groups[f"{name}, c = {coef:g}"] = [problem for problem in group if problem.method.kind != "exact"]
    return {
        name: {
            which: float(spearmanr([mean(getattr(p, which)) for p in group], [lost(p) for p in group]).statistic)
            for which in ("gap", "flipped")
        }
        for name, group in groups.items()
    }


def mean(values: Sequence[float]) -> float:
    """The mean over seeds."""
    return sum(values) / len(values)


def lost(problem: Problem) -> float:
    """Share of the gain that is not attained at the best number of updates, mean over seeds."""
    return 1 - mean(problem.attained[problem.stop])


def plot_sweep(problems: Sequence[Problem], policy: str, options: Options, path: Path) -> None:
    """Attained objective over the spread of difficulty; a column per noise, a row per `c`."""
    figure = Figure(figsize=(3.4 * len(options.noises) + 1.9, 6.4), layout="constrained")
    grid = figure.subplots(len(options.coefs), len(options.noises), sharex=True, sharey=True, squeeze=False)
    for row, coef in enumerate(options.coefs):
        for column, noise in enumerate(options.noises):
            axes = grid[row, column]
            for method in METHODS:
                if method.kind != "mean":  # lies on the median
                    cells = [
                        at_spread(problems, method, spread, policy=policy, noise=noise, coef=coef)
                        for spread in options.spreads
                    ]
                    _draw_line(axes, method, cells, options.spreads)
            axes.axhline(0, color="grey", linewidth=0.8)
            axes.set_title(f"score noise {noise:g}, c = {coef:g}", fontsize=10)
        grid[row, 0].set_ylabel("attained objective\n(0 reference, 1 optimum)")
    for axes in grid[-1]:
        axes.set_xlabel("spread of difficulty over prompts")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    figure.savefig(path, dpi=120)


def _draw_line(axes: Any, method: Method, cells: Sequence[Problem], spreads: Sequence[float]) -> None:
    means, halves = zip(*(interval(cell.attained[cell.stop]) for cell in cells), strict=True)
    width = 2.5 if method.is_global or method.kind == "exact" else 1.5
    style = "--" if method.kind == "exact" else "-"
    axes.plot(spreads, means, style, color=method.color, linewidth=width, label=method.name, marker="o", markersize=3)
    low, high = ([m + sign * h for m, h in zip(means, halves, strict=True)] for sign in (-1, 1))
    axes.fill_between(spreads, low, high, color=method.color, alpha=0.12, linewidth=0)


def plot_why(problems: Sequence[Problem], options: Options, path: Path) -> None:
    """Training length, hard and easy prompts, and what the bound says against what was lost."""
    figure = Figure(figsize=(13, 8.4), layout="constrained")
    grid = figure.subplots(2, 2)
    noise, spread = options.noises[1], 2.0
    _plot_length(grid[0, 0], problems, noise, spread)
    _plot_prompts(grid[0, 1], problems, noise, spread, options)
    for axes, which, label in ((grid[1, 0], "gap", "E[w |tau - tau*(x)|]"), (grid[1, 1], "flipped", "flipped labels")):
        for coef, filled in zip(options.coefs, (True, False), strict=False):
            for method in METHODS:
                cells = select(problems, method=method.name, coef=coef)
                x, y = [mean(getattr(cell, which)) for cell in cells], [lost(cell) for cell in cells]
                face = method.color if filled else "none"
                name = f"{method.name}, c = {coef:g}"
                marker = "o" if method.is_global else "s"
                axes.scatter(x, y, s=26, marker=marker, facecolors=face, edgecolors=method.color, label=name)
        axes.set(xlabel=label, ylabel="lost objective (share of the gain)")
    grid[1, 0].set_xscale("symlog", linthresh=0.1)
    grid[1, 0].set_title("the bound, and what was lost: every cell of the experiment", fontsize=10)
    grid[1, 1].set_title("flipped labels, and what was lost", fontsize=10)
    figure.legend(*grid[1, 1].get_legend_handles_labels(), loc="outside right lower", fontsize=8)
    figure.savefig(path, dpi=120)


def _plot_length(axes: Any, problems: Sequence[Problem], noise: float, spread: float) -> None:
    for method in METHODS:
        if method.kind in ("median", "exact") or method.num_images == 2:
            for coef, style in ((0.0, "-"), (5.0, "--")):
                cell = at_spread(problems, method, spread, policy="shared", noise=noise, coef=coef)
                values = [mean(seeds) for seeds in cell.attained]
                axes.plot(cell.checkpoints, values, style, color=method.color, label=f"{method.name}, c = {coef:g}")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="updates", ylabel="attained objective")
    axes.set_title(f"shared policy, spread {spread:g}, noise {noise:g}: when to stop", fontsize=10)
    legend_below(axes)


def _plot_prompts(axes: Any, problems: Sequence[Problem], noise: float, spread: float, options: Options) -> None:
    world = tabular_world(options)
    level = (spread * world.level).flatten()
    bins = level.argsort().tensor_split(8)
    gain = world.objective(world.optimum(options.beta), options.beta) - world.objective(
        world.log_reference, options.beta
    )
    gain = (gain / gain.mean(1, keepdim=True)).flatten()
    lines = [("median", 0.0, "best"), ("median", 0.0, "last"), ("median", 5.0, "best"), ("median", 5.0, "last")]
    for name, coef, when in [*lines, ("exact", 5.0, "best")]:
        method = next(method for method in METHODS if method.name == name)
        cell = at_spread(problems, method, spread, policy="tabular", noise=noise, coef=coef)
        lost_by_prompt = cell.lost_by_prompt[cell.stop if when == "best" else -1].flatten()
        attained = [1 - (lost_by_prompt[rows].sum() / gain[rows].sum()).item() for rows in bins]
        color = "#dd8452" if name == "median" and coef == 5 else method.color
        style = "-" if when == "best" else ":"
        positions = [level[rows].mean().item() for rows in bins]
        label = f"{name}, c = {coef:g}, {when} update"
        axes.plot(positions, attained, style, color=color, marker="o", markersize=4, label=label)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xlabel="level(x): hard prompts on the left, easy ones on the right", ylabel="attained objective")
    axes.set_title(f"tabular policy, spread {spread:g}, noise {noise:g}: where it is lost", fontsize=10)
    legend_below(axes)


def main(options: Options) -> None:
    """Runs the experiment, and writes `results.json`, `tables.md` and three figures."""
    start = time.perf_counter()
    torch.set_num_threads(1)  # on problems this small, threads cost more than they give
    options.output_dir.mkdir(parents=True, exist_ok=True)
    problems = run(options)
    tables = {policy: write_table(problems, policy, options) for policy in POLICIES}
    plot_sweep(problems, "shared", options, options.output_dir / "oracle_baseline.png")
    plot_sweep(problems, "tabular", options, options.output_dir / "oracle_baseline_tabular.png")
    plot_why(problems, options, options.output_dir / "oracle_baseline_why.png")
    (options.output_dir / "tables.md").write_text("\n\n".join(tables.values()) + "\n")
    results = {
        "options": asdict(options) | {"output_dir": str(options.output_dir)},
        "rank_correlation_with_lost": correlations(problems, options),
        "cells": [problem.to_dict() for problem in problems],
    }
    (options.output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    for policy, table in tables.items():
        print(f"Objective attained by the {policy} policy, % of the optimum's gain: best number of updates (last)")
        print(table)
    for name, values in results["rank_correlation_with_lost"].items():
        print(
            f"rank correlation with the lost objective, {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in values.items())
        )
    print(f"Wrote {options.output_dir} in {time.perf_counter() - start:.0f} s.")


def parse_options(argv: Sequence[str] | None = None) -> Options:
    """Options from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Options.output_dir)
    parser.add_argument("--beta", type=float, default=Options.beta)
    parser.add_argument("--num_seeds", type=int, default=None)
    parser.add_argument("--quick", action="store_true", help="a small version, in seconds")
    arguments = parser.parse_args(argv)
    options = Options(output_dir=arguments.output_dir, beta=arguments.beta)
    options = options.quick() if arguments.quick else options
    return options if arguments.num_seeds is None else replace(options, num_seeds=arguments.num_seeds)


if __name__ == "__main__":
    main(parse_options())
