"""Tables of what training on a model's own texts gains, and of what deciding which text is written does."""

import json
from typing import Any

from tables import RESULTS, row, shown_gain


def _of_ways(
    result: dict[str, Any], usual: str, measures: dict[str, str], others: dict[str, str], ways: dict[str, str]
) -> str:
    """A row for each way: means of measures with their differences to the usual way, and means of others."""
    heads = ["", *(head for name in measures.values() for head in (name, "difference [95 %]")), *others.values()]
    rows = [row(heads), row(["---"] * len(heads))]
    for way, label in ways.items():
        if way not in result[next(iter(measures))]["means"]:
            continue
        cells = [label]
        for measure in measures:
            gain = result[measure][f"over {usual}"].get(way)
            cells += [f"{result[measure]['means'][way]:.2f}", "" if gain is None else shown_gain(gain)]
        for measure in others:
            mean = result.get(measure, {}).get("means", {}).get(way)
            cells.append("" if mean is None else f"{mean:.1f}")
        rows.append(row(cells))
    return "\n".join(rows)


def text_decisions(name: str) -> str:
    """A table of ways to decide which text is written, after the same training."""
    result = json.loads((RESULTS / "text_decisions.json").read_text())[name]
    ways = {way: way for way in result["sacrebleu"]["means"]}
    others = {"length": "length, %", "development": "BLEU, development"}
    return _of_ways(result, "4 beams", {"sacrebleu": "BLEU", "chrf": "chrF"}, others, ways)


def text_candidates(name: str) -> str:
    """A table of ways to train on what a model itself writes, beside the usual loss for as many steps."""
    result = json.loads((RESULTS / "text_candidates.json").read_text())[f"{name}, test"]
    labels = {
        "label smoothing": "label smoothing",
        "label smoothing, as long": "label smoothing, as much time",
        "half soft metric": "half of the soft metric",
        "minimum risk": '`"minimum_risk"`',
        "policy": '`"policy"`',
        "policy, METEOR": '`"policy"`, for METEOR',
        "ranked by margin": "ranked by margins (BRIO's loss)",
    }
    others = {"chrf, beam": "chrF, beam", "length, beam": "length, beam, %", "seconds": "seconds"}
    if "rougeL, beam" in result:
        measures = {"rougeL, greedy": "ROUGE-L, greedy", "rougeL, beam": "ROUGE-L, beam of 4"}
        others = {"sacrebleu, beam": "BLEU, beam"} | others
    else:
        measures = {"sacrebleu, greedy": "BLEU, greedy", "sacrebleu, beam": "BLEU, beam of 4"}
    if "meteor, beam" in result:
        measures["meteor, beam"] = "METEOR, beam"
    return _of_ways(result, "label smoothing", measures, others, labels)


TABLES = (text_decisions, text_candidates)
