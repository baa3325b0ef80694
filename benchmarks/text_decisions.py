"""Which of a beam's texts is written, tuned by the metric: Multi30k, English to German, autoregressive; paired seeds.

    HF_RELOSS_DATA=... python benchmarks/text_decisions.py --seeds 5

Models go on from one base on label-smoothed cross-entropy, the pair's usual loss. Then nothing is trained: on
development data a consensus of some beams is tuned by sacreBLEU, and, for comparison, the length penalty of as many
beams. What is written for test2016 is judged by BLEU, chrF and its length beside the references'. A seed is about 4
minutes of a processor core.
"""

import functools
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import translation
from paired import arguments, compared, stored_runs
from pairs import Pair
from task_pairs import multi30k_autoregressive
from transformers import PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, set_seed
from transformers.utils import logging

from hf_reloss import load_metric, tune_text_decision
from hf_reloss.decisions.consensus import beams

TEXT_PAIRS: dict[str, Callable[[], Pair]] = {"multi30k_autoregressive": multi30k_autoregressive}
"""Data and models, by name."""

BEAMS = (4, 8, 16)
LENGTH_PENALTIES = (1.0, 1.2, 1.4, 1.6)
"""Of which the best on development data is taken; 1 is usual."""

USUAL = "4 beams"


def run(name: str, seed: int) -> dict[str, dict[str, float]]:
    """What is measured on test data, by the way to decide, after a run on the usual loss."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pair = TEXT_PAIRS[name]()
    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        args = pair.arguments(folder, seed, Seq2SeqTrainingArguments)
        trainer = Seq2SeqTrainer(pair.make_model(), args, train_dataset=pair.train, **pair.options)
        trainer.pop_callback(PrinterCallback)
        trainer.train()
    model, found = trainer.model, {}
    references = {part: translation.references(part) for part in ("dev", "test2016")}
    for number in BEAMS:
        begun = time.process_time()
        dev, test = (_beams(model, part, number) for part in ("dev", "test2016"))
        searching = time.process_time() - begun
        tuned = tune_text_decision(*dev, references["dev"], pair.metric)
        rule = tuned.rule or tuned.fitted
        begun = time.process_time()
        chosen = rule.choose(*test)
        seconds = {"seconds": searching / 2, "choosing seconds": time.process_time() - begun}
        ways = {f"{number} beams": [each[0] for each in test[0]]}
        ways[f"consensus of {number} beams"] = [
            each[place] for each, place in zip(test[0], chosen.tolist(), strict=True)
        ]
        for way, texts in ways.items():
            found[way] = measured(texts, references["test2016"]) | seconds
        of_tuning = {"kept": float(tuned.rule is not None), "development": tuned.after - tuned.before}
        found[f"consensus of {number} beams"] |= of_tuning | {"sharpness": rule.sharpness}
    found["4 beams, length penalty tuned"] = _with_penalty(model, references)
    return found


def _beams(model: Any, part: str, number: int, **options: Any) -> tuple[list[list[str]], torch.Tensor]:
    """What beam search finds for a part of the data: texts [n][K] and scores [n, K]."""
    tokenizer, data = translation.tokenizer(), translation.encoded(part)
    order = sorted(range(len(data)), key=lambda row: len(data[row]["input_ids"]))
    texts, scores = [[""]] * len(data), torch.zeros(len(data), number)
    for first in range(0, len(order), 100):
        rows = order[first : first + 100]
        batch = tokenizer.pad([{"input_ids": data[row]["input_ids"]} for row in rows], return_tensors="pt")
        _, written, of_each = beams(
            model.generate, tokenizer, number, **batch, **translation.GREEDY | {"max_length": 50} | options
        )
        scores[rows] = of_each
        for row, each in zip(rows, written, strict=True):
            texts[row] = each
    return texts, scores


def _with_penalty(model: Any, references: dict[str, list[str]]) -> dict[str, float]:
    """What is measured with the length penalty that is best on development data, of 4 beams."""
    metric = load_metric("sacrebleu")
    likeliest = functools.partial(_likeliest, model)
    of_dev = {each: metric.compute(likeliest("dev", each), references["dev"]) for each in LENGTH_PENALTIES}
    best = max(of_dev, key=of_dev.__getitem__)
    gained = of_dev[best] - of_dev[1.0]
    return measured(likeliest("test2016", best), references["test2016"]) | {"penalty": best, "development": gained}


def _likeliest(model: Any, part: str, penalty: float) -> list[str]:
    return [each[0] for each in _beams(model, part, 4, length_penalty=penalty)[0]]


def measured(texts: list[str], references: list[str]) -> dict[str, float]:
    """BLEU and chrF in points, and the length in percent of the references' words."""
    words = [sum(len(text.split()) for text in side) for side in (texts, references)]
    return {
        "sacrebleu": load_metric("sacrebleu").compute(texts, references),
        "chrf": load_metric("chrf").compute(texts, references),
        "length": 100 * words[0] / words[1],
    }


def summary(done: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Of each pair and measure the means, and the paired differences to 4 beams."""
    found: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    for key, ways in done.items():
        name, seed = key.split("; ")
        for way, measures in ways.items():
            for measure, value in measures.items():
                found.setdefault(name, {}).setdefault(measure, {}).setdefault(way, {})[int(seed)] = value
    return {name: compared(measures, (USUAL,)) for name, measures in found.items()}


def main() -> None:
    options = arguments(__doc__, TEXT_PAIRS, "text_decisions.json").parse_args()
    jobs = {f"{name}; {seed}": (name, seed) for name in options.pairs for seed in range(options.seeds)}
    print(json.dumps(summary(stored_runs("text_decisions.py", jobs, run, options, summary)), indent=2))


if __name__ == "__main__":
    main()
