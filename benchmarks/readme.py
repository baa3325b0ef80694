"""Writes the tables of README.md and docs/ from benchmarks/results/: python benchmarks/readme.py."""

import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_reloss.hub import ORGANISATION

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

NAMES = {
    "mean_squared_error": "mean squared error",
    "cross_entropy": "cross-entropy",
    "label_smoothing": "label smoothing 0.1",
    "class_weights": "class weights",
    "logit_adjustment": "logit adjustment",
    "soft_f1": "soft F1",
    "lovasz": "Lovász-softmax",
    "poly1": "poly-1",
    "auc_margin": "AUC margin",
    "smooth_ap": "smooth AP",
    "ala": "adaptive loss alignment",
    "ala_transferred": "adaptive loss alignment, a policy of Fashion-MNIST",
    "ala_half": "half cross-entropy, half adaptive loss alignment",
    "focal": "focal",
    "minimum_risk": "minimum risk training",
    "approximation": "learned approximation",
    "bag_of_ngrams": "bag of n-grams (BoN-L1)",
    "bag_of_ngrams_reloss": "half BoN-L1, half ReLoss",
    "reloss": "**ReLoss**, learned on one run, used on the others",
    "reloss_half": "half cross-entropy, half **ReLoss**",
    "twin": "its twin, with nothing learned",
    "label_smoothing_reloss": "half label smoothing, half **ReLoss**",
    "label_smoothing_twin": "half label smoothing, half the twin",
    "transferred": "ReLoss, learned on another model (of hub_cards/)",
    "auto": 'ReLoss, `surrogate="auto"`',
    "logit_adjustment_auto": 'half logit adjustment, half **ReLoss**, `"auto"`',
    "paper": "the paper's network",
}

MEASURES = {
    "accuracy": "accuracy",
    "f1": "macro-F1",
    "f1_imbalanced": "macro-F1, test images imbalanced as in training",
    "bleu": "BLEU",
    "bleu_beam": "BLEU, beam of 4",
    "rougeL": "ROUGE-L",
    "squad_f1": "F1",
    "squad_exact_match": "exact match",
    "pck@0.1": "PCK@0.1",
    "pck@0.2": "PCK@0.2",
}


TRANSFERS = {
    "fashion_mnist_resnet": ("a CNN, Fashion-MNIST", "a ResNet, Fashion-MNIST"),
    "cifar10": ("a CNN, Fashion-MNIST", "a ResNet, CIFAR-10"),
    "cifar10_imbalanced": ("MiniLM, HWU64 (intents)", "a ResNet, imbalanced CIFAR-10 (images)"),
    "multi30k_nat": ("an autoregressive translator, English to German", "a non-autoregressive one"),
    "multi30k_de_en_nat": ("an autoregressive translator, German to English", "a non-autoregressive one"),
    "squad_small": ("MiniLM, a part of SQuAD", "half of MiniLM, SQuAD"),
    "lsp_bottlenecks": ("a ResNet, Leeds Sports Pose", "one of bottlenecks, of twice the depth"),
}
"""Of tasks on which a surrogate of hub_cards/ is tried: what it was learned on, and what is trained on it."""


PAIR_NAMES = {
    "digits_slowly": "digits, at a tenth of the best learning rate, accuracy",
    "fashion_accuracy": "Fashion-MNIST, accuracy",
    "fashion_macro_f1": "imbalanced Fashion-MNIST, macro-F1",
    "fashion_rare": "Fashion-MNIST, 3 % shirts, binary F1",
    "cifar10_accuracy": "CIFAR-10, 10,000 images, accuracy",
    "cifar10_macro_f1": "imbalanced CIFAR-10, macro-F1",
    "hwu64_accuracy": "HWU64, accuracy",
    "hwu64_macro_f1": "HWU64, macro-F1",
    "clinc150_macro_f1": "imbalanced CLINC150, macro-F1",
    "hwu64_class_costs": "HWU64, hidden costs of classes",
    "hwu64_pair_costs": "HWU64, hidden costs of confusions",
    "hwu64_hand_over": "HWU64, handing over to a person",
    "sick_kappa": "SICK, quadratic kappa",
}
"""Pairs of data and metric, of benchmarks/pairs.py."""


def quality(name: str) -> str:
    """A table of losses: each measure with its paired difference and interval, and alignment."""
    result = json.loads((RESULTS / f"quality_{name}_test.json").read_text())
    measures, original = [MEASURES[measure] for measure in result["scores"]], NAMES[result["original"]]
    heads = ["loss", *(head for measure in measures for head in (measure, f"over {original} [95 %]")), "alignment"]
    rows = [_row(heads), _row(["---"] * len(heads))]
    records = result["surrogates"]
    alignments = {loss: f"{record['alignment']:.4f}" for loss, record in records.items()}
    usual = next(key for key in next(iter(records.values())) if key.startswith("alignment_") and "canonical" not in key)
    alignments[result["original"]] = f"{next(iter(records.values()))[usual]:.4f}"
    for loss, label in NAMES.items():
        cells = [label + _since(loss, result)]
        for measure, scores in result["scores"].items():
            if loss in scores:
                gain = result["over_original"][measure].get(loss)
                cells.append(f"{statistics.fmean(scores[loss].values()):.2f}")
                cells.append(f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]" if gain else "")
        if len(cells) > 1:
            half = loss.rpartition("_")[2]  # of a loss that is half a surrogate's, the surrogate
            rows.append(_row([*cells, alignments.get(loss, alignments.get(half, ""))]))
    return "\n".join(rows)


def _since(loss: str, result: dict[str, Any]) -> str:
    """Behind "auto" where the stored runs are of version 0.1, in which what was learned had no trust region."""
    is_older = result["environment"].get("hf-reloss") == "0.1.0"
    return " (version 0.1)" if is_older and loss.endswith("auto") else ""


def rivals(name: str) -> str:
    """A table of all ways to train for a metric, each at the learning rate that was best for it on validation data."""
    result = json.loads((RESULTS / f"rivals_{name}.json").read_text())
    measure = MEASURES[result["measure"]]
    rows = [_row(("loss", "learning rate", measure, "over cross-entropy [95 %]", "over the twin [95 %]"))]
    rows.append(_row(["---"] * 5))
    scores = result["scores"]
    for loss in sorted(scores, key=lambda loss: -statistics.fmean(scores[loss].values())):
        gains = [result["over"][baseline].get(loss) for baseline in ("cross_entropy", "twin")]
        told = (f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]" if gain else "" for gain in gains)
        named = NAMES.get(loss, loss.replace("_", " ")) + _since(loss, result)
        mean = f"{statistics.fmean(scores[loss].values()):.2f}"
        rows.append(_row((named, f"{result['learning_rates'][loss]:g}", mean, *told)))
    return "\n".join(rows)


RIVAL_TASKS = {
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10, 10,000 images",
    "cifar10_full": "CIFAR-10, all images",
    "fashion_mnist_imbalanced": "imbalanced Fashion-MNIST",
    "hwu64_frozen": "HWU64, frozen MiniLM",
}
"""The tasks of the overview, as far as there are results."""


def overview(of: str) -> str:
    """A table of what each way to train gains over cross-entropy, on all tasks of benchmarks/rivals.py."""
    stored = {label: RESULTS / f"{of}_{name}.json" for name, label in RIVAL_TASKS.items()}
    results = {label: json.loads(path.read_text()) for label, path in stored.items() if path.exists()}
    results = {label: result for label, result in results.items() if "scores" in result}  # all of it has been run
    heads = [f"{label}, {MEASURES[result['measure']]}" for label, result in results.items()]
    rows = [_row(["over cross-entropy [95 %]", *heads]), _row(["---"] * (len(heads) + 1))]
    means = [f"{statistics.fmean(result['scores']['cross_entropy'].values()):.2f}" for result in results.values()]
    rows.append(_row(["cross-entropy itself", *means]))
    gains = [result["over"]["cross_entropy"] for result in results.values()]
    losses = dict.fromkeys(loss for of_task in gains for loss in of_task)

    def mean_gain(loss: str) -> float:
        return statistics.fmean(of_task[loss]["mean"] for of_task in gains if loss in of_task)

    for loss in sorted(losses, key=mean_gain, reverse=True):
        cells = [
            f"{_gain(of_task[loss])}{_since(loss, result)}" if loss in of_task else ""
            for of_task, result in zip(gains, results.values(), strict=True)
        ]
        rows.append(_row([NAMES.get(loss, loss.replace("_", " ")), *cells]))
    return "\n".join(rows)


FIRST_RUNS = {
    "intents": "64 intents, 960 sentences, MiniLM in 60 steps: accuracy",
    "tagger": "tags, 400 sentences, a BERT from scratch: F1 of entities",
    "questions": "300 questions, MiniLM with a new head: F1",
    "translation": "translation, 600 pairs, a T5 from scratch: BLEU",
    "summarization": "summaries, 600 abstracts, a BART from scratch: ROUGE-L",
    "language_model": "600 sentences, a GPT-2 from scratch: token accuracy",
    "poses": "poses, 60 images, from scratch: PCK@0.2",
    "poor_learning_rate": "digits, a tenth of the best learning rate: accuracy",
    "breast_cancer": "breast cancer, two classes: accuracy",
}


def first_runs(of: str) -> str:
    """A table of first runs with a Trainer and with "auto", nothing tuned."""
    rows = [_row(("first run", "usual loss", '`"auto"`', "difference [95 %]")), _row(["---"] * 4)]
    for name, run in json.loads((RESULTS / "first_runs.json").read_text())["runs"].items():
        means = (statistics.fmean(found["metric"] for found in run[way].values()) for way in ("usual", "auto"))
        rows.append(_row((FIRST_RUNS[name], *(f"{mean:.2f}" for mean in means), _gain(run["over"]))))
    return "\n".join(rows)


def unfitted(of: str) -> str:
    """A table of what the soft metric and "auto" gain over cross-entropy where a model does not fit its data."""
    result = json.loads((RESULTS / "unfitted.json").read_text())
    heads = ("over cross-entropy [95 %]", "cross-entropy", "soft metric, nothing learned", '`"auto"`')
    rows = [_row(heads), _row(["---"] * 4)]
    names = {
        "cifar10": "CIFAR-10, 10,000 images, accuracy",
        "fashion_mnist_imbalanced": "imbalanced Fashion-MNIST, macro-F1",
    }
    for task, scores in result["scores"].items():
        named = names.get(task, f"{task}, a tenth of the best learning rate")
        usual = f"{statistics.fmean(scores['cross_entropy'].values()):.2f}"
        rows.append(_row((named, usual, *(_gain(result["over"][task][way]) for way in ("soft_metric", "auto")))))
    return "\n".join(rows)


def _gain(gain: dict[str, float]) -> str:
    return f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]"


def fit(name: str) -> str:
    """A table of what losses gain over cross-entropy, by how many training images there are."""
    result = json.loads((RESULTS / f"fit_{name}.json").read_text())["by_training_images"]
    losses = list(next(iter(result.values()))["over_cross_entropy"])
    heads = ("training images", "training accuracy", "test accuracy", *(NAMES[loss] for loss in losses))
    rows = [_row(heads), _row(["---"] * len(heads))]
    for images, found in result.items():
        gains = (found["over_cross_entropy"][loss] for loss in losses)
        cells = (f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]" for gain in gains)
        usual = (f"{found[part]['cross_entropy']:.2f}" for part in ("training", "test"))
        rows.append(_row((f"{int(images):,}", *usual, *cells)))
    return "\n".join(rows)


def transfer(folder: str) -> str:
    """A table of the surrogates in a folder, hub_cards, each used on a model that it never saw."""
    heads = ("surrogate", "learned on", "used on", "measure", "usual loss", "with it", "gain [95 %]", "its twin's gain")
    rows = [_row(heads), _row(["---"] * len(heads))]
    for task, places in TRANSFERS.items():
        result = json.loads((RESULTS / f"quality_{task}_test.json").read_text())
        measure, scores = next(iter(result["scores"].items()))
        means = {loss: f"{statistics.fmean(values.values()):.2f}" for loss, values in scores.items()}
        gains = {
            loss: f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]"
            for loss, gain in result["over_original"][measure].items()
        }
        name = f"`{ORGANISATION}/{result['surrogates']['transferred']['card']}`"
        cells = (MEASURES[measure], means[result["original"]], means["transferred"], gains["transferred"])
        rows.append(_row([name, *places, *cells, gains.get("twin", "")]))
    return "\n".join(rows)


EMBEDDING_LOSSES = {
    "untrained": "nothing learned",
    "triplet": "triplet",
    "ala_triplet": "triplet, adapted",
    "margin_loss": "margin",
    "ala_margin_loss": "margin, adapted",
}


def embeddings(name: str) -> str:
    """A table of losses of embeddings, each with its difference to the one that it is compared with."""
    result = json.loads((RESULTS / f"{name}.json").read_text())
    rows = [_row(("loss", "Recall@1", "difference [95 %]")), _row(["---"] * 3)]
    differences = {}
    for pair, gain in result["over"].items():
        loss, _, baseline = pair.partition(" over ")
        told = f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]"
        differences[loss] = f"{told} over {EMBEDDING_LOSSES[baseline]}"
    for loss, label in EMBEDDING_LOSSES.items():
        mean = statistics.fmean(result["scores"][loss].values())
        rows.append(_row((label, f"{mean:.2f}", differences.get(loss, ""))))
    return "\n".join(rows)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def alignment(name: str) -> str:
    """A table of metrics: mean alignment of losses, and the learned one's paired difference to cross-entropy."""
    result = json.loads((RESULTS / f"alignment_{name}.json").read_text())
    heads = ["metric", "learned surrogate", "its twin", "cross-entropy", "learned over cross-entropy [95 %]"]
    rows = [_row(heads), _row(["---"] * len(heads))]
    for metric, losses in result["alignment"].items():
        mean = {loss: f"{statistics.fmean(values.values()):.3f}" for loss, values in losses.items()}
        for form, called in (("", metric), ("_canonical", f"{metric}, at one scale")):
            gain = result["over_cross_entropy"][metric][f"learned{form}"]
            gained = f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
            rows.append(_row([called, *(mean[loss + form] for loss in ("learned", "twin", "cross_entropy")), gained]))
    return "\n".join(rows)


def speed(device: str) -> str:
    """A table of ratios."""
    result = json.loads((RESULTS / f"speed_{device}.json").read_text())
    rows = ["| | ours | theirs | ratio |", "|---|---|---|---|"]
    for what, row in result["rows"].items():
        if "ours_mb" in row:
            rows.append(f"| {what} | {row['ours_mb']:.0f} MB | {row['theirs_mb']:.0f} MB | {row['ratio']:.2f}× |")
        elif "ratio" in row:
            rows.append(f"| {what} | {row['ours_ms']:.2f} ms | {row['theirs_ms']:.2f} ms | {row['ratio']:.2f}× |")
        else:
            rows.append(f"| {what} | {_time(row['seconds'])} | | |")
    return "\n".join(rows)


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"


def scaling(device: str) -> str:
    """A table of the time that ranking takes, by groups."""
    result = json.loads((RESULTS / f"scaling_{device}.json").read_text())
    rows = [_row(("groups ranked together", "time on one thread")), _row(("---", "---"))]
    rows += [_row((f"{int(groups):,}", f"{ms:.1f} ms")) for groups, ms in result["ranking_ms"].items()]
    return "\n".join(rows)


def gathered(device: str) -> str:
    """A table of the bytes that are gathered, by processes."""
    result = json.loads((RESULTS / f"scaling_{device}.json").read_text())["bytes"]
    rows = [_row(("a step of a process", *(f"{processes} processes" for processes in result)))]
    rows.append(_row(["---"] * (len(result) + 1)))
    for what in next(iter(result.values())):
        rows.append(_row((what, *(f"{counted[what]:,} bytes" for counted in result.values()))))
    return "\n".join(rows)


def recording(device: str) -> str:
    """A table of what drawing groups from a large recording takes."""
    rows = json.loads((RESULTS / f"speed_{device}.json").read_text())["rows"]
    (found,) = [row for row in rows.values() if "predictions_read" in row]
    lines = [_row(("predictions on disk", "size", "read", "time", "memory")), _row(["---"] * 5)]
    sizes = (f"{found['disk_mb']:,.0f} MB", f"{found['predictions_read']:,}")
    cells = (f"{found['predictions']:,}", *sizes, f"{found['seconds']:.1f} s", f"{found['memory_mb']:,.0f} MB")
    return "\n".join([*lines, _row(cells)])


def decisions(name: str) -> str:
    """A table of what tuning the decision gains over argmax, by task."""
    result = json.loads((RESULTS / "decisions.json").read_text())
    ways = [way for way in next(iter(result["runs"].values())) if way != "argmax"]
    rows = [_row(("over argmax [95 %]", *ways)), _row(["---"] * (1 + len(ways)))]
    for task, gains in result["over_argmax"].items():
        cells = [f"{gains[way]['mean']:+.2f} [{gains[way]['low']:+.2f}, {gains[way]['high']:+.2f}]" for way in ways]
        rows.append(_row((PAIR_NAMES[task], *cells)))
    return "\n".join(rows)


def promise(name: str) -> str:
    """A table of what one changed line does to the metric, on many pairs of data and metric."""
    result = json.loads((RESULTS / "promise.json").read_text())
    ways = ["usual, decision tuned", "soft metric", "field's own", "auto", "auto, strict"]
    rows = [_row(("points over the usual loss [95 %]", *ways, "steps")), _row(["---"] * (2 + len(ways)))]
    for pair, gains in result["over_usual"].items():
        cells = [
            f"{gains[way]['mean']:+.2f} [{gains[way]['low']:+.2f}, {gains[way]['high']:+.2f}]" if way in gains else ""
            for way in ways
        ]
        costs = [
            statistics.fmean(
                run["cost"] for key, run in result["runs"].items() if key.rpartition(", ")[0] == f"{pair}, {way}"
            )
            for way in ("auto", "auto, strict")
            if way in gains
        ]
        rows.append(_row((PAIR_NAMES[pair], *cells, " / ".join(f"{cost:.2f}" for cost in costs))))
    return "\n".join(rows)


TABLES = {
    table.__name__: table
    for table in (
        decisions,
        promise,
        quality,
        rivals,
        overview,
        first_runs,
        unfitted,
        fit,
        transfer,
        alignment,
        embeddings,
        speed,
        scaling,
        gathered,
        recording,
    )
}


def filled(text: str) -> str:
    """The text with each table between its markers made anew."""

    def table(match: re.Match) -> str:
        kind, name = match["kind"], match["name"]
        return f"<!-- {kind} {name} -->\n{TABLES[kind](name)}\n<!-- end -->"

    kinds = "|".join(TABLES)
    return re.sub(rf"<!-- (?P<kind>{kinds}) (?P<name>\w+) -->.*?<!-- end -->", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in (
        ROOT / "README.md",
        *(ROOT / "docs" / f"{name}.md" for name in ("rivals", "scaling", "decisions", "promise")),
    ):
        page.write_text(filled(page.read_text()))
