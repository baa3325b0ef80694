"""The page of `reloss app`: whether another loss or another decision would help a model, by its predictions."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from .compare.prospects import Prospects, prospects
from .compare.task import digit_predictions
from .decisions.base import FILE
from .decisions.files import read_predictions
from .decisions.tuning import TunedDecision
from .hub.plain import plain
from .metrics import load_metric
from .metrics.base import need
from .predictions.tables import ENDINGS, ScoredLabels, columns_of, logits_of, read_table

if TYPE_CHECKING:
    import gradio

RARE, DIGITS, OWN = "digits, some of them rare", "digits", "my own table"

METRICS: dict[str, dict[str, Any]] = {
    "f1": {"average": "macro"},
    "accuracy": {},
    "balanced_accuracy": {},
    "precision": {"average": "macro"},
    "recall": {"average": "macro"},
    "fbeta": {"average": "macro", "beta": 2.0},
    "matthews_correlation": {},
    "cohen_kappa": {"weights": "quadratic"},
    "roc_auc": {},
    "subset_accuracy": {},
    "pearsonr": {},
    "mae": {},
}
"""Metrics to pick, with the options that are filled in. Any other can be typed."""

SECONDS = 5.0
"""For which a surrogate is learned: somebody waits."""

CLOSE = 0.01
"""Rank correlations that differ by less are taken for alike."""

TITLE = "Will another loss, or another decision, help?"

ABOUT = f"""# {TITLE}

A model is trained on a loss and judged by a metric. From what it puts out for examples that it was **not trained on**,
this page says how well its loss ranks as the metric does, and what another decision would gain, with an interval.
All of it is computed where the page is served.
"""

FORMAT = """One row for each example: a column of scores (logits or probabilities) for each class, and one called
`label` with the class, by its number from 0 on or by its name.

```
score_cat,score_dog,score_fox,label
2.1,-0.3,0.4,cat
-1.0,0.2,1.9,dog
```

Of several labels for each example there are as many columns of labels, 0 or 1. One column of scores is of a
model of numbers, such as grades. An `.npz` file has the arrays `logits` and `labels`.
The decision wants 50 rows, the loss 160; more say more.
"""

USE = (
    "from hf_reloss import DecisionRule",
    "",
    f'rule = DecisionRule.load(".")  # the folder of {FILE}',
    "rule.decide(logits)  # or rule.attach(model)",
)

WAITING = "What comes of it appears here, after some ten seconds."


def page() -> "gradio.Blocks":
    """The page, which its `launch` serves.

    Raises:
        ImportError: without gradio; it says how to install it.
    """
    gr = need("gradio", "app")
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                source = gr.Radio([RARE, DIGITS, OWN], value=RARE, label="Predictions")
                with gr.Column(visible=False) as own:
                    file = gr.File(file_types=[*ENDINGS, ".npz"], label="A table")
                    scores, labels = (
                        gr.Dropdown([], label=label, multiselect=True, allow_custom_value=True, visible=False)
                        for label in ("Columns of scores", "Column of labels")
                    )
                    with gr.Accordion("What is in a table", open=False):
                        gr.Markdown(FORMAT)
                metric = gr.Dropdown(list(METRICS), value="f1", allow_custom_value=True, label="Metric")
                options = gr.Textbox(json.dumps(METRICS["f1"]), label="Its options, as JSON")
                look = gr.Button("Look", variant="primary", elem_id="look")
            with gr.Column(scale=5, min_width=300):
                said = gr.Markdown(WAITING, elem_id="said")
                rule = gr.DownloadButton(f"Download {FILE}", visible=False, elem_id="rule")
                pictures = [
                    gr.Image(format="png", alt_text=text, show_label=False, visible=False, buttons=["fullscreen"])
                    for text in ("Held-out groups of predictions", "What was learned", "The decision rule")
                ]
        source.change(lambda chosen: gr.update(visible=chosen == OWN), source, own, api_visibility="private")
        file.change(_columns, file, [scores, labels], api_visibility="private")
        metric.change(lambda name: json.dumps(METRICS.get(name, {})), metric, options, api_visibility="private")
        look.click(
            _look, [source, file, scores, labels, metric, options], [said, rule, *pictures],
            api_name="look", concurrency_limit=1,
        )  # fmt: skip
    return blocks


def launch(**options: Any) -> Any:
    """Serves the page; options and what is returned are those of `gradio.Blocks.launch`."""
    theme = need("gradio", "app").themes.Default(primary_hue="orange", neutral_hue="slate")
    return page().launch(**{"theme": theme, "max_file_size": "100mb", "footer_links": ["api"]} | options)


def _columns(file: str | None) -> list[Any]:
    """The columns of a table to choose from, and those that probably hold scores, and labels."""
    gr = need("gradio", "app")
    if file is None or Path(file).suffix.lower() not in ENDINGS:
        return [gr.update(choices=[], value=[], visible=False)] * 2
    with _errors_shown():
        table = read_table(file)
        return [gr.update(choices=list(table), value=found, visible=True) for found in columns_of(table)]


def _look(source: str, file: str | None, scores: list[str], labels: list[str], metric: str, options: str) -> list[Any]:
    """The text, the decision rule and the pictures that the page shows."""
    gr = need("gradio", "app")
    with _errors_shown():
        chosen = load_metric(metric, **_options(options))
        read = _predictions(source, file, scores, labels)
        found = prospects(read.logits, read.labels, chosen, seconds=SECONDS)
        folder = Path(tempfile.mkdtemp(prefix="reloss-app-"))  # gradio copies what it shows, and cleans that up
        files = [_saved_rule(found, folder), *_drawn(found, read, folder)]
    shown = [gr.update(value=path and str(path), visible=path is not None) for path in files]
    return [described(found, read), *shown]


def _options(written: str) -> dict[str, Any]:
    """Options of a metric, from JSON."""
    try:
        found = json.loads(written or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f'Its options are JSON, such as {{"average": "macro"}}, but got {written!r}.')
    return found


def _predictions(source: str, file: str | None, scores: list[str], labels: list[str]) -> ScoredLabels:
    if source != OWN:
        return logits_of(*digit_predictions(source == RARE))
    if file is None:
        raise ValueError("There is no table yet: upload one, or pick digits.")
    return read_predictions(file, scores or None, labels or None)


def _saved_rule(found: Prospects, folder: Path) -> Path | None:
    if found.decision is None or found.decision.rule is None:
        return None
    found.decision.rule.save(folder)
    return folder / FILE


def _drawn(found: Prospects, read: ScoredLabels, folder: Path) -> list[Path | None]:
    """Pictures of the held-out groups, of what was learned and of the decision; None for what there is not."""
    from .decisions.pictures import plot_rule
    from .hub.pictures import plot_groups, plot_learned

    groups, learned, rule = (folder / f"{name}.png" for name in ("groups", "learned", "rule"))
    if found.surrogate is not None:
        plot_groups(groups, found.surrogate.facts())
        plot_learned(learned, found.surrogate.facts())
    if found.decision is not None:
        plot_rule(rule, found.decision.rule or found.decision.fitted, read.names if len(read.names) > 1 else None)
    return [path if path.exists() else None for path in (groups, learned, rule)]


def described(found: Prospects, read: ScoredLabels) -> str:
    """What was found, in words, as Markdown."""
    name, outputs = plain(found.metric.name), read.logits.shape[-1]
    kind = "probabilities" if read.of_probabilities else "logits" if outputs > 1 else "a number"
    rows = f"{len(read.labels):,} rows of {f'{outputs} {kind}' if outputs > 1 else kind}"
    lines = [f"{rows}, of which {name} is **{found.score:.4f}**.", "", "## The loss", ""]
    if found.alignments:
        lines += _alignments(found, name)
    else:
        lines.append(f"No loss was learned: {plain(found.no_surrogate_because)}")
    lines += ["", "## The decision", ""]
    if found.decision is None:
        lines.append(f"There is none to tune: {plain(found.no_decision_because)}")
    else:
        lines += _decision(found.decision, name)
    return "\n".join(lines)


def _alignments(found: Prospects, name: str) -> list[str]:
    usual, best = next(iter(found.alignments)), found.best_aligned
    gain = found.alignments[best] - found.alignments[usual]
    if gain < CLOSE:
        verdict = f"{_spelled(usual)} ranks as well as any: as far as this says, another loss has little to gain"
    else:
        verdict = f"{_spelled(best)} ranks best, by {gain:.3f}: another loss may gain"
    return [
        f"**{verdict[0].upper()}{verdict[1:]}.** 1 is perfect: groups of predictions are in the order of {name}. What "
        "a model gains by it only training says: `reloss compare`.",
        "",
        f"| loss | rank correlation with {name} |",
        "|---|---|",
        *(f"| {_spelled(loss)} | {value:.3f} |" for loss, value in found.alignments.items()),
    ]


def _decision(tuned: TunedDecision, name: str) -> list[str]:
    gain = f"{tuned.after - tuned.before:+.4f} [{tuned.low:+.4f}, {tuned.high:+.4f}]"
    changed = f"A decision made for {name} changes it by {gain}"
    what = f"{tuned.usual} is kept: {gain}" if tuned.rule is None else changed
    lines = [
        f"**{what}**, with the 95 % interval; {tuned.before:.4f} before. Each of {tuned.examples:,} rows is decided by "
        "a rule that was fitted on others."
    ]
    if tuned.rule is not None:
        lines += ["", "```python", *USE, "```"]
    return lines


def _spelled(loss: str) -> str:
    return {"learned": "a learned loss", "soft metric": "the soft metric"}.get(
        loss, loss.replace("cross_", "cross-").replace("_", " ")
    )


@contextlib.contextmanager
def _errors_shown() -> Iterator[None]:
    """What goes wrong is shown on the page, and no bars in the log."""
    gr = need("gradio", "app")
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # also of a metric that reads something else
        refused = isinstance(error, ImportError | ValueError)
        raise gr.Error(plain(error), duration=None, print_exception=not refused) from error
