"""Translation and summaries trained on what the model itself writes, on paired seeds.

    HF_RELOSS_DATA=... python benchmarks/text_candidates.py --seeds 5

compares policy gradients, ranking, minimum risk and half of the soft metric with label smoothing, the usual loss, for
as many steps and for as much time, going on from a base: of Multi30k, English to German, autoregressive, and of one
that was trained three times as long; of RO-STS, English to Romanian; of SciTLDR, one sentence for an abstract. Metrics,
and the length of what is written beside the references', are those of greedy search and of a beam of 4, on test data;
with `--split validation` on development data, on which the ways' options may be chosen. Training is for the pair's
metric of single texts, where a way names no other.

Each goes on for 100 steps. A run of the usual loss is a minute of a processor core, one on what the model writes about
6, most of them for writing: 5 seeds of all are 3 hours of one core for each pair. The longer base takes half an hour of
two, the others half an hour of one.
"""

import functools
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import romanian
import summaries
import torch
import translation
from paired import arguments, compared, stored_runs
from pairs import Pair
from ranked_texts import RankedByCorrelation, RankedByMargin
from task_pairs import multi30k_autoregressive, multi30k_trained_longer
from transformers import PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, set_seed
from transformers.utils import logging

from hf_reloss import ReLossSeq2SeqTrainer, ReLossSeq2SeqTrainingArguments, SurrogateForTokens, load_metric
from hf_reloss.metrics import Metric

STEPS = 100

METEOR = load_metric("meteor", synonyms=False, tokenizer=str.split)
"""It counts equal words and stems, as there is no WordNet of German."""

USUAL, AS_LONG = "label smoothing", "label smoothing, as long"

WAYS: dict[str, dict[str, Any]] = {
    USUAL: {},
    AS_LONG: {},
    "half soft metric": {"model_loss_share": 0.5},
    "minimum risk": {"surrogate": "minimum_risk", "label_smoothing_factor": 0.0},
    "ranked by margin": {"surrogate": RankedByMargin.word},
    "ranked by correlation": {"surrogate": RankedByCorrelation.word},
    "policy": {"surrogate": "policy"},
    "policy, METEOR": {"surrogate": "policy", "metric": METEOR},
}
"""Ways to train, with what is not as usual: `surrogate=`, `metric=` and training arguments."""


@dataclass(frozen=True)
class Texts:
    """Data and a model that writes texts.

    Attributes:
        pair: makes them.
        source: has the tokenizer, and of a part of the data tokens and references.
        parts: the part of the data, by split.
        measures: metrics that are reported, in points.
        longer: steps of the usual loss that take as long as one on what the model writes, 4 texts for each source, on a
            core.
    """

    pair: Callable[[], Pair]
    source: ModuleType
    parts: dict[str, str]
    measures: tuple[Metric, ...]
    longer: int


_MULTI30K = {
    "source": translation,
    "parts": {"test": "test2016", "validation": "dev"},
    "measures": (load_metric("sacrebleu"), load_metric("chrf"), METEOR),
    "longer": 11,
}

TEXT_PAIRS = {
    "multi30k_autoregressive": Texts(multi30k_autoregressive, **_MULTI30K),
    "multi30k_trained_longer": Texts(multi30k_trained_longer, **_MULTI30K),
    "romanian": Texts(
        romanian.pair,
        romanian,
        {"test": "test", "validation": "dev"},
        (load_metric("sacrebleu"), load_metric("chrf")),
        longer=11,
    ),
    "scitldr": Texts(
        summaries.pair,
        summaries,
        {"test": "test", "validation": "dev"},
        (load_metric("rougeL"), load_metric("rouge1"), load_metric("sacrebleu"), load_metric("chrf"), METEOR),
        longer=6,
    ),
}
"""By name."""

IN_POINTS = ("sacrebleu", "chrf")
"""Metrics in 0-100; all others are in 0-1, and are reported in points, too."""

DECODINGS = {"greedy": translation.GREEDY, "beam": translation.GREEDY | {"num_beams": 4}}


def run(name: str, split: str, way: str, seed: int) -> dict[str, float]:
    """What one run measures: metrics and length by decoding, and seconds of processor time for training."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    texts, changed = TEXT_PAIRS[name], dict(WAYS[way])
    pair = texts.pair()
    surrogate, metric = changed.pop("surrogate", None), changed.pop("metric", pair.metric)
    if way == "half soft metric":
        surrogate = SurrogateForTokens.for_metric(pair.metric)
    changed |= {"max_steps": texts.longer * STEPS if way == AS_LONG else STEPS, "generation_max_length": 60}
    set_seed(seed)
    make: Callable[..., Seq2SeqTrainer] = Seq2SeqTrainer
    kind: type[Seq2SeqTrainingArguments] = Seq2SeqTrainingArguments
    if surrogate is not None:
        make = functools.partial(ReLossSeq2SeqTrainer, surrogate=surrogate, metric=metric)
        kind = ReLossSeq2SeqTrainingArguments
    with tempfile.TemporaryDirectory() as folder:
        args = pair.arguments(folder, seed, kind, **changed)
        trainer = make(pair.make_model(), args, train_dataset=pair.train, **pair.options)
        trainer.pop_callback(PrinterCallback)
        started = time.process_time()
        trainer.train()
        seconds = time.process_time() - started
        return measured(trainer.model, texts, texts.parts[split]) | {"seconds": seconds}


def measured(model: torch.nn.Module, of: Texts, part: str) -> dict[str, float]:
    """Metrics in points, and length in percent of the first references' words, by decoding."""
    found, references, data = {}, of.source.references(part), of.source.encoded(part)
    first = [each if isinstance(each, str) else each[0] for each in references]
    for name, options in DECODINGS.items():
        texts = of.source.written(model, data, **options)
        for metric in of.measures:
            scale = 1 if metric.name in IN_POINTS else 100
            found[f"{metric.name}, {name}"] = scale * metric.compute(texts, references)
        words = (sum(len(text.split()) for text in side) for side in (texts, first))
        found[f"length, {name}"] = 100 * next(words) / next(words)
    return found


def summary(done: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Of each pair, split and measure the means, and the paired differences to both runs of the usual loss."""
    found: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    for key, values in done.items():
        name, split, way, seed = key.split("; ")
        for measure, value in values.items():
            found.setdefault(f"{name}, {split}", {}).setdefault(measure, {}).setdefault(way, {})[int(seed)] = value
    return {name: compared(measures, (USUAL, AS_LONG)) for name, measures in found.items()}


def main() -> None:
    parser = arguments(__doc__, TEXT_PAIRS, "text_candidates.json")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    options = parser.parse_args()
    jobs = {
        f"{name}; {options.split}; {way}; {seed}": (name, options.split, way, seed)
        for name in options.pairs
        for seed in range(options.seeds)
        for way in options.ways
    }
    print(json.dumps(summary(stored_runs("text_candidates.py", jobs, run, options, summary)), indent=2))


if __name__ == "__main__":
    main()
