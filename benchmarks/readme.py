"""Writes the tables of README.md and docs/ from benchmarks/results/: python benchmarks/readme.py."""

import json
import re
import statistics
from typing import Any

import promise_tables
import text_tables
import time_tables
from tables import RESULTS, ROOT, row, shown_gain

from hf_reloss.hub import ORGANISATION

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
    "unlearned": "the soft metric, nothing learned",
    "label_smoothing_reloss": "half label smoothing, half **ReLoss**",
    "label_smoothing_unlearned": "half label smoothing, half the soft metric",
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
    "cohen_kappa": "quadratic kappa",
}


TRANSFERS = {
    "fashion_mnist_resnet": ("a CNN, Fashion-MNIST", "a ResNet, Fashion-MNIST"),
    "cifar10": ("a CNN, Fashion-MNIST", "a ResNet, CIFAR-10"),
    "cifar10_imbalanced": ("MiniLM, HWU64 (intents)", "a ResNet, imbalanced CIFAR-10 (images)"),
    "multi30k_nat": ("an autoregressive translator, English to German", "a non-autoregressive one"),
    "multi30k_de_en_nat": ("an autoregressive translator, German to English", "a non-autoregressive one"),
    "squad_small": ("MiniLM, a part of SQuAD", "half of MiniLM, SQuAD"),
    "lsp_bottlenecks": ("a ResNet, Leeds Sports Pose", "one of bottlenecks, of twice the depth"),
    "goemotions_words": ("frozen MiniLM, GoEmotions (28 emotions)", "a bag-of-words network, GoEmotions"),
    "hwu64_slot_kinds": ("frozen MiniLM, GoEmotions (28 emotions)", "frozen MiniLM, HWU64 (54 kinds of slots)"),
    "sick_linear": ("frozen MiniLM, SICK (relatedness)", "one linear layer, SICK"),
    "sick_words": ("frozen MiniLM, SICK (relatedness)", "a bag-of-words network, SICK"),
    "hwu64_slot_numbers": ("frozen MiniLM, SICK (relatedness)", "frozen MiniLM, HWU64 (how many slots)"),
}
"""Of tasks on which a surrogate of hub_cards/ is tried: what it was learned on, and what is trained on it."""


def quality(name: str) -> str:
    """A table of losses: each measure with its paired difference and interval, and alignment."""
    result = json.loads((RESULTS / f"quality_{name}_test.json").read_text())
    measures, original = [MEASURES[measure] for measure in result["scores"]], NAMES[result["original"]]
    heads = ["loss", *(head for measure in measures for head in (measure, f"over {original} [95 %]")), "alignment"]
    rows = [row(heads), row(["---"] * len(heads))]
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
                cells.append(shown_gain(gain) if gain else "")
        if len(cells) > 1:
            half = loss.rpartition("_")[2]  # of a loss that is half a surrogate's, the surrogate
            rows.append(row([*cells, alignments.get(loss, alignments.get(half, ""))]))
    return "\n".join(rows)


def _since(loss: str, result: dict[str, Any]) -> str:
    """Behind "auto" where the stored runs are of version 0.1, in which what was learned had no trust region."""
    is_older = result["environment"].get("hf-reloss") == "0.1.0"
    return " (version 0.1)" if is_older and loss.endswith("auto") else ""


def baselines(name: str) -> str:
    """A table of all ways to train for a metric, each at the learning rate that was best for it on validation data."""
    result = json.loads((RESULTS / f"baselines_{name}.json").read_text())
    measure = MEASURES[result["measure"]]
    rows = [row(("loss", "learning rate", measure, "over cross-entropy [95 %]", "over the soft metric [95 %]"))]
    rows.append(row(["---"] * 5))
    scores = result["scores"]
    for loss in sorted(scores, key=lambda loss: -statistics.fmean(scores[loss].values())):
        gains = [result["over"][baseline].get(loss) for baseline in ("cross_entropy", "unlearned")]
        shown = (shown_gain(gain) if gain else "" for gain in gains)
        named = NAMES.get(loss, loss.replace("_", " ")) + _since(loss, result)
        mean = f"{statistics.fmean(scores[loss].values()):.2f}"
        rows.append(row((named, f"{result['learning_rates'][loss]:g}", mean, *shown)))
    return "\n".join(rows)


BASELINE_TASKS = {
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10, 10,000 images",
    "cifar10_full": "CIFAR-10, all images",
    "fashion_mnist_imbalanced": "imbalanced Fashion-MNIST",
    "hwu64_frozen": "HWU64, frozen MiniLM",
}
"""The tasks of the overview, as far as there are results."""


def overview(of: str) -> str:
    """A table of what each way to train gains over cross-entropy, on all tasks of benchmarks/baselines.py."""
    stored = {label: RESULTS / f"{of}_{name}.json" for name, label in BASELINE_TASKS.items()}
    results = {label: json.loads(path.read_text()) for label, path in stored.items() if path.exists()}
    results = {label: result for label, result in results.items() if "scores" in result}  # all of it has been run
    heads = [f"{label}, {MEASURES[result['measure']]}" for label, result in results.items()]
    rows = [row(["over cross-entropy [95 %]", *heads]), row(["---"] * (len(heads) + 1))]
    means = [f"{statistics.fmean(result['scores']['cross_entropy'].values()):.2f}" for result in results.values()]
    rows.append(row(["cross-entropy itself", *means]))
    gains = [result["over"]["cross_entropy"] for result in results.values()]
    losses = dict.fromkeys(loss for of_task in gains for loss in of_task)

    def mean_gain(loss: str) -> float:
        return statistics.fmean(of_task[loss]["mean"] for of_task in gains if loss in of_task)

    for loss in sorted(losses, key=mean_gain, reverse=True):
        cells = [
            f"{shown_gain(of_task[loss])}{_since(loss, result)}" if loss in of_task else ""
            for of_task, result in zip(gains, results.values(), strict=True)
        ]
        rows.append(row([NAMES.get(loss, loss.replace("_", " ")), *cells]))
    return "\n".join(rows)


def fit(name: str) -> str:
    """A table of what losses gain over cross-entropy, by how many training images there are."""
    result = json.loads((RESULTS / f"fit_{name}.json").read_text())["by_training_images"]
    losses = list(next(iter(result.values()))["over_cross_entropy"])
    heads = ("training images", "training accuracy", "test accuracy", *(NAMES[loss] for loss in losses))
    rows = [row(heads), row(["---"] * len(heads))]
    for images, found in result.items():
        gains = (found["over_cross_entropy"][loss] for loss in losses)
        cells = (shown_gain(gain) for gain in gains)
        usual = (f"{found[part]['cross_entropy']:.2f}" for part in ("training", "test"))
        rows.append(row((f"{int(images):,}", *usual, *cells)))
    return "\n".join(rows)


def transfer(folder: str) -> str:
    """A table of the surrogates in a folder, hub_cards, each used on a model that it never saw."""
    heads = (
        "surrogate",
        "learned on",
        "used on",
        "measure",
        "usual loss",
        "with it",
        "gain [95 %]",
        "the soft metric's gain",
    )
    rows = [row(heads), row(["---"] * len(heads))]
    for task, places in TRANSFERS.items():
        result = json.loads((RESULTS / f"quality_{task}_test.json").read_text())
        measure, scores = next(iter(result["scores"].items()))
        means = {loss: f"{statistics.fmean(values.values()):.2f}" for loss, values in scores.items()}
        gains = {loss: shown_gain(gain) for loss, gain in result["over_original"][measure].items()}
        name = f"`{ORGANISATION}/{result['surrogates']['transferred']['card']}`"
        cells = (MEASURES[measure], means[result["original"]], means["transferred"], gains["transferred"])
        rows.append(row([name, *places, *cells, gains.get("unlearned", "")]))
    return "\n".join(rows)


def gained(card: str) -> str:
    """A table of what models gained, for which a surrogate of hub_cards/ was the loss, for its page."""
    heads = ("learned on", "used on", "measure", "usual loss", "with it", "gain [95 %]", "gain of the soft metric")
    rows = [row(heads), row(["---"] * len(heads))]
    for task, places in TRANSFERS.items():
        result = json.loads((RESULTS / f"quality_{task}_test.json").read_text())
        if result["surrogates"]["transferred"]["card"] != card:
            continue
        for measure, scores in result["scores"].items():
            means = (f"{statistics.fmean(scores[loss].values()):.2f}" for loss in (result["original"], "transferred"))
            over = result["over_original"][measure]
            soft = shown_gain(over["unlearned"]) if "unlearned" in over else ""
            rows.append(row((*places, MEASURES[measure], *means, shown_gain(over["transferred"]), soft)))
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
    rows = [row(("loss", "Recall@1", "difference [95 %]")), row(["---"] * 3)]
    differences = {}
    for pair, gain in result["over"].items():
        loss, _, baseline = pair.partition(" over ")
        shown = shown_gain(gain)
        differences[loss] = f"{shown} over {EMBEDDING_LOSSES[baseline]}"
    for loss, label in EMBEDDING_LOSSES.items():
        mean = statistics.fmean(result["scores"][loss].values())
        rows.append(row((label, f"{mean:.2f}", differences.get(loss, ""))))
    return "\n".join(rows)


def alignment(name: str) -> str:
    """A table of metrics: mean alignment of losses, and the learned one's paired difference to cross-entropy."""
    result = json.loads((RESULTS / f"alignment_{name}.json").read_text())
    heads = ["metric", "learned surrogate", "soft metric", "cross-entropy", "learned over cross-entropy [95 %]"]
    rows = [row(heads), row(["---"] * len(heads))]
    for metric, losses in result["alignment"].items():
        mean = {loss: f"{statistics.fmean(values.values()):.3f}" for loss, values in losses.items()}
        for form, called in (("", metric), ("_canonical", f"{metric}, at one scale")):
            gain = result["over_cross_entropy"][metric][f"learned{form}"]
            gained = f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
            rows.append(
                row([called, *(mean[loss + form] for loss in ("learned", "unlearned", "cross_entropy")), gained])
            )
    return "\n".join(rows)


OWN = (quality, baselines, overview, fit, transfer, gained, alignment, embeddings)

TABLES = {table.__name__: table for table in (*promise_tables.TABLES, *OWN, *text_tables.TABLES, *time_tables.TABLES)}


def filled(text: str) -> str:
    """The text with each table between its markers made anew."""

    def table(match: re.Match) -> str:
        kind, name = match["kind"], match["name"]
        return f"<!-- {kind} {name} -->\n{TABLES[kind](name)}\n<!-- end -->"

    kinds = "|".join(TABLES)
    return re.sub(rf"<!-- (?P<kind>{kinds}) (?P<name>[\w-]+) -->.*?<!-- end -->", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in (
        ROOT / "README.md",
        *(
            ROOT / "docs" / f"{name}.md"
            for name in ("baselines", "scaling", "decisions", "promise", "results", "index")
        ),
        *sorted((ROOT / "docs" / "tasks").glob("*.md")),
        *sorted((ROOT / "hub_cards").glob("*/README.md")),
    ):
        page.write_text(filled(page.read_text()))
