"""The `reloss` command."""

import os
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from httpx import TransportError  # of huggingface_hub
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from transformers.utils import logging

from . import __version__
from .hub.plain import plain

if TYPE_CHECKING:
    from .surrogates.base import Surrogate

Result = TypeVar("Result")

MOST_IN_TWO_LINES = 22
"""Of a program that has more options, the help has a line for each, so that it fits a screen."""

app = typer.Typer(help="Train on the metric you are judged by.", no_args_is_help=True, pretty_exceptions_enable=False)
console = Console()


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False
) -> None:
    """Train on the metric you are judged by."""
    if version:
        console.print(f"hf_reloss {__version__}", highlight=False)
    elif context.invoked_subcommand is None:
        console.print(context.get_help(), highlight=False)


@app.command()
def demo(
    seeds: Annotated[int, typer.Option(min=2, help="Paired training runs of each loss.")] = 10,
    output: Annotated[Path, typer.Option(help="The folder for the picture, the surrogate and the numbers.")] = Path(
        "demo"
    ),
) -> None:
    """Learn a loss on handwritten digits and compare it with cross-entropy. Nothing is downloaded."""
    from .compare.demo import run_demo

    _be_quiet()
    _or_exit(run_demo, seeds, output, console)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    options_metavar="",
)
def train(
    context: typer.Context,
    program: Annotated[str | None, typer.Argument(help="Such as text_classification; none lists them.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="How many Accelerate launches.")] = 1,
) -> None:
    """Train with one of the programs, on data from the Hub or from files. PROGRAM --help says how."""
    from . import programs

    if program in (None, "--help", "-h"):
        console.print(
            "[bold]reloss train PROGRAM ...[/], with --processes N before it on several; PROGRAM --help says how"
        )
        console.print(*(f"  {name}" for name in programs.program_names()), sep="\n", highlight=False)
    elif "--help" in context.args:
        _be_quiet()
        about, groups = _or_exit(programs.described, program)
        console.print(Text(about), highlight=False)
        for of, options in groups.items():
            table = Table(title=of, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
            width, lines = console.width - 4 - max(len(option) for option, _ in options), 1
            if of != "data" and sum(map(len, groups.values())) <= MOST_IN_TWO_LINES:
                lines = 2
            for option, text in options:
                table.add_row(option, Text("\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))))
            console.print(table)
        console.print(f"and all of TrainingArguments and ReLossTrainingArguments: reloss train {program} -h")
    else:
        raise typer.Exit(_or_exit(programs.run_program, program, context.args, processes))


@app.command()
def compare(
    task: Annotated[str, typer.Argument(help="A Python file with model(), train_dataset, eval_dataset; or: digits.")],
    losses: Annotated[
        str,
        typer.Option(
            help="Names, separated by commas (reloss: learned on one run, used on the others; auto: learned in each). "
            "Cross-entropy always runs."
        ),
    ] = "label_smoothing,focal,reloss,ala,approximation",
    metric: Annotated[str, typer.Option(help="What is reported, and learned.")] = "accuracy",
    metric_options: Annotated[str, typer.Option(help='As JSON, such as {"average": "macro"}.')] = "{}",
    seeds: Annotated[int, typer.Option(min=2, help="Paired training runs of each loss.")] = 5,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The folder for numbers and picture; what is there is not run again. "
            "By default one for each task and metric, such as comparison/digits-accuracy."
        ),
    ] = None,
) -> None:
    """Compare losses on your own model and data, with paired seeds and intervals."""
    from .compare.study import compare as run_comparison
    from .compare.task import load_task
    from .metrics import load_metric

    _be_quiet()
    chosen = _or_exit(lambda: load_metric(metric, **_options(metric_options)))
    names = [name.strip() for name in losses.split(",") if name.strip()]
    loaded = _or_exit(load_task, task)
    output = output or _default_output(task, metric, metric_options)
    _or_exit(lambda: run_comparison(loaded, names, chosen, seeds=seeds, output=output, console=console))


@app.command()
def decide(
    predictions: Annotated[
        Path, typer.Argument(help="A file with logits and labels of held-out examples: .npz, .csv, .tsv or .parquet.")
    ],
    metric: Annotated[str, typer.Option(help="By which the decision is tuned.")] = "f1",
    metric_options: Annotated[str, typer.Option(help='As JSON, such as {"average": "macro"}.')] = "{}",
    model: Annotated[
        str | None, typer.Option(help="The classifier: a folder or Hub id. By default the rule alone.")
    ] = None,
    output: Annotated[Path, typer.Option(help="The folder for the model with the rule, or for the rule.")] = Path(
        "decided"
    ),
) -> None:
    """Tune how a trained model decides, by the metric. Nothing is trained; what does not gain is not written."""
    from .decisions.files import decide_for
    from .metrics import load_metric

    _be_quiet()
    chosen = _or_exit(lambda: load_metric(metric, **_options(metric_options)))
    found, place = _or_exit(lambda: decide_for(predictions, chosen, output, model))
    console.print(Text(f"{found}\n{place}"), soft_wrap=True)  # so that paths can be copied


@app.command("app")
def app_() -> None:
    """Serve a page that says, from predictions and labels, whether another loss or decision would help."""
    from .app import launch

    _be_quiet()
    _or_exit(launch)


@app.command()
def inspect(surrogate: Annotated[str, typer.Argument(help="A folder, or the id of a repository on the Hub.")]) -> None:
    """Show what a surrogate was learned for, how well it is aligned, and its curve."""
    from .surrogates.auto import AutoSurrogate

    _be_quiet()
    model = _or_exit(AutoSurrogate.from_pretrained, surrogate)
    config = model.config
    table = Table(title=Text(surrogate), show_header=False)
    record = dict(config.record or {"record": "none: it has not been trained, or was converted"})
    record.pop("held_out", None)
    settings = record.pop("settings", {})
    rows = {
        "metric": config.metric or "not recorded",
        "task": config.task,
        "architecture": config.architecture,
        **model.network.learned(),
        "parameters": model.num_parameters(),
        **({"loaded from": config.origin} if config.origin else {}),
        **record,
        **settings,
    }
    for name, value in rows.items():
        value = ", ".join(map(str, value)) if isinstance(value, list) else value
        table.add_row(*_cells(name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else value))
    console.print(table)
    if model.network.curve_of is not None:
        console.print(_curve_table(model, model.network.curve_of))


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="A checkpoint of the paper's authors: of classification or pose.")],
    out: Annotated[Path, typer.Argument(help="The folder to write the surrogate to.")],
) -> None:
    """Turn a checkpoint with the authors' names of weights into a surrogate."""
    from .surrogates.convert import convert_checkpoint

    _be_quiet()
    surrogate = _or_exit(convert_checkpoint, file)
    surrogate.save_pretrained(out)
    console.print(
        f"Wrote {escape(str(out))}: a surrogate for {surrogate.config.task}, {surrogate.num_parameters():,} parameters."
    )


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Of a saved surrogate.")],
    repo: Annotated[str, typer.Argument(help="The id of a repository, which is made if there is none.")],
    private: Annotated[bool | None, typer.Option("--private/--public", help="Of a new repository.")] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, which is made if there is none.")] = None,
) -> None:
    """Publish a surrogate with its page."""
    from .surrogates.auto import AutoSurrogate

    _be_quiet()
    surrogate = _or_exit(AutoSurrogate.from_pretrained, folder)
    console.print(escape(_or_exit(lambda: surrogate.push_to_hub(repo, private=private, revision=revision))))


@app.command("list")
def list_(
    metric: Annotated[str | None, typer.Option(help="By its name, such as f1.")] = None,
    task: Annotated[str | None, typer.Option(help="Such as classification or tokens.")] = None,
    author: Annotated[str | None, typer.Option(help="A user or an organisation.")] = None,
) -> None:
    """List the surrogates on the Hub."""
    from .hub.publishing import list_surrogates

    table = Table("surrogate", "tags", "downloads")
    for found in _or_exit(lambda: list_surrogates(metric=metric, task=task, author=author)):
        table.add_row(*_cells(found.id, ", ".join(found.tags or []), found.downloads or 0))
    console.print(table)


def _cells(*values: object) -> list[Text]:
    """Cells of a table that show what strangers wrote as it is: as markup of rich it could be an error, or a lie."""
    return [Text(plain(value)) for value in values]


def _curve_table(model: "Surrogate", curve_of: str) -> Table:
    """The loss over what the surrogate looks at, drawn with bars."""
    import torch

    points = torch.linspace(-6, 6, 13) if curve_of == "margin" else torch.linspace(0, 1, 11)
    losses = model.curve(points)
    table = Table(title="the learned curve")
    table.add_column(curve_of, justify="right")
    table.add_column("loss", justify="right")
    table.add_column("")
    top = float(losses.max()) or 1.0
    for point, loss in zip(points.tolist(), losses.tolist(), strict=True):
        table.add_row(f"{point:.1f}", f"{loss:.3f}", "█" * round(40 * loss / top))
    return table


def _options(text: str) -> dict[str, Any]:
    """The options of a metric from JSON."""
    import json

    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"""--metric-options is JSON, such as '{{"average": "macro"}}', but got {text!r}.""")
    return found


def _default_output(task: str, metric: str, metric_options: str) -> Path:
    """A folder of its own for each task and metric, below `comparison`."""
    place = os.path.relpath(Path(task).with_suffix(""))
    return Path("comparison") / re.sub(r"\W+", "-", f"{place} {metric} {metric_options}").strip("-")


def _or_exit(function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls a function; what it refuses is said in one line, without a traceback."""
    try:
        return function(*arguments)
    except (ImportError, OSError, ValueError, TransportError) as error:  # the last of a connection that is cut
        message = "".join(letter for letter in str(error) if letter.isprintable() or letter == "\n")
        console.print("[bold red]error:[/]", Text(message), highlight=False)
        raise typer.Exit(1) from error


def _be_quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
