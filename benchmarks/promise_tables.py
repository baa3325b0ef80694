"""Tables of what one changed line and tuned decisions gain, by pairs of data and metric."""

import json
import statistics

from tables import RESULTS, row, shown_gain

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
    "sick_pearson": "SICK, Pearson's correlation",
    "sick_spearman": "SICK, Spearman's correlation",
    "sick_kappa_of_scores": "SICK, quadratic kappa of one output, rounded",
    "goemotions_macro_f1": "GoEmotions, 28 labels, macro-F1",
    "goemotions_micro_f1": "GoEmotions, 28 labels, micro-F1",
    "answers_map": "TREC questions, MAP",
    "answers_mrr": "TREC questions, MRR",
    "retrieval_intents": "HWU64, 64 intents, Recall@1",
    "retrieval_new_intents": "CLINC150, intents not trained on, Recall@1",
    "hwu64_slots": "HWU64, slots, F1 of seqeval",
    "camvid_mean_iou": "CamVid, mean IoU",
    "squad_f1": "SQuAD, F1",
    "lsp_pck": "Leeds Sports Pose, PCK@0.1",
    "multi30k_nat": "Multi30k, not autoregressive, BLEU",
    "multi30k_autoregressive": "Multi30k, autoregressive, beam of 4, BLEU",
}
"""Pairs of data and metric, of benchmarks/pairs.py and of the other files there named ..._pairs.py."""

OF_CLASSES = (
    *("digits_slowly", "fashion_accuracy", "fashion_macro_f1", "fashion_rare", "cifar10_accuracy", "cifar10_macro_f1"),
    *("hwu64_accuracy", "hwu64_macro_f1", "clinc150_macro_f1"),
    *("hwu64_class_costs", "hwu64_pair_costs", "hwu64_hand_over", "sick_kappa"),
)
"""Pairs of one class for each example."""

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
    "emotions": "several of 28 emotions, 800 comments, MiniLM: micro-F1",
    "relatedness": "relatedness, 800 pairs of sentences, MiniLM: Pearson's r",
    "answers": "which of four answers, MiniLM in 40 steps: accuracy",
    "unanswered_questions": "300 questions, a third without an answer, MiniLM: F1",
    "written_answers": "answers in words, 600 questions, a T5 from scratch: F1",
    "masked_words": "masked words, 800 sentences, a BERT from scratch: accuracy",
    "spoken_digits": "spoken digits, 800, a wav2vec 2.0 from scratch: accuracy",
    "spoken_numbers": "spoken numbers by CTC, 800, from scratch: words right",
    "whispered_numbers": "spoken numbers, 800, a Whisper from scratch: words right",
    "street_scenes": "street scenes, 200 images, a SegFormer from scratch: mean IoU",
}


def first_runs(of: str) -> str:
    """A table of first runs with a Trainer and with "auto", nothing tuned."""
    rows = [row(("first run", "usual loss", '`"auto"`', "difference [95 %]")), row(["---"] * 4)]
    for name, run in json.loads((RESULTS / "first_runs.json").read_text())["runs"].items():
        means = (statistics.fmean(found["metric"] for found in run[way].values()) for way in ("usual", "auto"))
        rows.append(row((FIRST_RUNS[name], *(f"{mean:.2f}" for mean in means), shown_gain(run["over"]))))
    return "\n".join(rows)


def unfitted(of: str) -> str:
    """A table of what the soft metric and "auto" gain over cross-entropy where a model does not fit its data."""
    result = json.loads((RESULTS / "unfitted.json").read_text())
    heads = ("over cross-entropy [95 %]", "cross-entropy", "soft metric, nothing learned", '`"auto"`')
    rows = [row(heads), row(["---"] * 4)]
    names = {
        "cifar10": "CIFAR-10, 10,000 images, accuracy",
        "fashion_mnist_imbalanced": "imbalanced Fashion-MNIST, macro-F1",
    }
    for task, scores in result["scores"].items():
        named = names.get(task, f"{task}, a tenth of the best learning rate")
        usual = f"{statistics.fmean(scores['cross_entropy'].values()):.2f}"
        rows.append(row((named, usual, *(shown_gain(result["over"][task][way]) for way in ("soft_metric", "auto")))))
    return "\n".join(rows)


def decisions(name: str) -> str:
    """A table of what tuning the decision gains over argmax, by task."""
    result = json.loads((RESULTS / "decisions.json").read_text())
    ways = [way for way in next(iter(result["runs"].values())) if way != "argmax"]
    rows = [row(("over argmax [95 %]", *ways)), row(["---"] * (1 + len(ways)))]
    for task, gains in result["over_argmax"].items():
        cells = [shown_gain(gains[way]) for way in ways]
        rows.append(row((PAIR_NAMES[task], *cells)))
    return "\n".join(rows)


def promise(name: str) -> str:
    """A table of what one changed line does to the metric: on all pairs of data and metric, those of classes, those of
    some data, or one."""
    result = json.loads((RESULTS / "promise.json").read_text())
    ways = ["usual, decision tuned", "soft metric", "field's own", "auto", "auto, strict"]
    rows = [row(("points over the usual loss [95 %]", *ways, "steps", "auto over the soft metric"))]
    rows.append(row(["---"] * (3 + len(ways))))
    for pair, gains in result["over_usual"].items():
        if not (name in ("all", pair) or pair.startswith(f"{name}_") or (name == "classes" and pair in OF_CLASSES)):
            continue
        cells = [shown_gain(gains[way]) if way in gains else "" for way in ways]
        costs = [
            statistics.fmean(
                run["cost"] for key, run in result["runs"].items() if key.rpartition(", ")[0] == f"{pair}, {way}"
            )
            for way in ("auto", "auto, strict")
            if way in gains
        ]
        over_soft_metric = shown_gain(result["auto_over_soft_metric"][pair])
        rows.append(row((PAIR_NAMES[pair], *cells, " / ".join(f"{cost:.2f}" for cost in costs), over_soft_metric)))
    return "\n".join(rows)


def headlines(page: str) -> str:
    """The three promises of README.md, or of the index of the site, each with its figures."""
    docs = "docs/" if page == "README" else ""
    result = json.loads((RESULTS / "promise.json").read_text())
    gains = result["over_usual"]
    above, below = (
        {way: sum(sign * of_pair[way][end] > 0 for of_pair in gains.values()) for way in ("auto", "auto, strict")}
        for sign, end in ((1, "low"), (-1, "high"))
    )
    costs = [run["cost"] for key, run in result["runs"].items() if key.rpartition(", ")[0].endswith(", auto")]
    pairs = "cifar10_macro_f1", "hwu64_hand_over"
    rare, costly = (f"{shown_gain(gains[pair]['auto'])} points" for pair in pairs)
    decided = " and ".join(f"{gains[pair]['usual, decision tuned']['mean']:+.2f}" for pair in pairs)
    return f"""- **Not worse.** On {len(gains)} pairs of data and metric the test metric is significantly below the
  usual loss on {below["auto"] or "none"} and above it on {above["auto"]}; with `guard="strict"` below on \
{below["auto, strict"] or "none"} and above on {above["auto, strict"]} ([all pairs]({docs}promise.md)).
- **Better where loss and metric disagree.** Over cross-entropy [95 %]: {rare} of macro-F1 where classes are rare,
  {costly} of a utility that rewards handing over to a person; the tuned decision alone: {decided} \
([results]({docs}results.md)).
- **Honest, and cheap.** Every run ends with a line that says what was done, and on what evidence; it took
  {statistics.fmean(costs):.2f} times the steps on average, {max(costs):.2f} at most \
([what one line does]({docs}promise.md))."""


def tried(pair: str) -> str:
    """A table of what ideas gain over the usual loss on a pair, with argmax and with the decision tuned."""
    gains = json.loads((RESULTS / "tried.json").read_text())["over_usual"][pair]
    rows = [row((f"{PAIR_NAMES[pair]}, over the usual loss [95 %]", "argmax", "decision tuned")), row(["---"] * 3)]
    for way in gains:
        if not way.endswith(", decided"):
            argmax = shown_gain(gains[way]) if way != "usual" else ""
            rows.append(row((way, argmax, shown_gain(gains[f"{way}, decided"]))))
    return "\n".join(rows)


SPEECH_LOSSES = {
    "digits_ctc": {"usual": "CTC", "field's own": "CTC, smoothed"},
    "digits_whisper": {
        "usual": "cross-entropy",
        "field's own": "cross-entropy, smoothed labels",
        "soft metric": "soft metric, nothing learned",
        "auto": '`"auto"`',
        "auto, strict": '`"auto"`, `guard="strict"`',
    },
}
"""What ways of training are called that have another name there, by pair of benchmarks/speech_pairs.py."""


def speech(pair: str) -> str:
    """A table of word error rates by the loss that a model of speech goes on with."""
    result, names = json.loads((RESULTS / "speech.json").read_text()), SPEECH_LOSSES[pair]
    rows = [row(("loss", "WER", f"less {names['usual']}'s [95 %]")), row(["---"] * 3)]
    for way, mean in result["means"][pair].items():
        over = shown_gain(result["over_usual"][pair][way]) if way != "usual" else ""
        rows.append(row((names.get(way, way), f"{mean:.2f}", over)))
    return "\n".join(rows)


TABLES = (decisions, headlines, promise, speech, tried, first_runs, unfitted)
