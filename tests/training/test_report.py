"""The verdict says what came of a run, and no more than is known."""

import pytest
import torch

from hf_reloss.decisions.credit import ExpectedCredit
from hf_reloss.decisions.tuning import TunedDecision
from hf_reloss.training.report import Gain, LossReport

GAIN = Gain(0.015, 0.012, 0.018, 1.0, 2_000)
SHOWN = "+0.0150 [+0.0120, +0.0180], 2,000 examples"
RULE = ExpectedCredit(1.0, torch.zeros(2), torch.eye(2))


def decision(rule):
    return TunedDecision(rule, 0.8, 0.81, -0.01, 0.03, 500, "f1", torch.zeros(500).long(), RULE)


@pytest.mark.parametrize(("report", "verdict"), [
    (LossReport("f1"), "kept the model's own loss"),
    (LossReport("f1", reason="too few"), "kept the model's own loss: too few"),
    (LossReport("f1", loss="soft F1", reason="the run was resumed"), "kept the model's own loss: the run was resumed"),
    (LossReport("f1", loss="soft F1", kept=True), "trained on soft F1, unjudged"),
    (LossReport("f1", loss="soft F1", kept=True, reason="no data"), "trained on soft F1, unjudged: no data"),
    (
        LossReport("f1", "dev", "soft F1", True, "before", GAIN),
        f"trained on soft F1 (no harm seen in its first steps: {SHOWN}) (f1 on dev)",
    ),
    (
        LossReport("f1", "dev", "soft F1", False, "before", GAIN),
        f"kept the model's own loss (the first steps on soft F1 changed it: {SHOWN}) (f1 on dev)",
    ),
    (
        LossReport("f1", "dev", "soft F1", True, "own loss", GAIN),
        f"soft F1 gained over the model's own loss: {SHOWN} (f1 on dev)",
    ),
    (
        LossReport("f1", "dev", "soft F1", False, "own loss", GAIN),
        f"kept the model's own loss (soft F1 would have changed it: {SHOWN}) (f1 on dev)",
    ),
    (
        LossReport("f1", "dev", decision=decision(RULE)),
        "kept the model's own loss; the decision gained: +0.0100 [-0.0100, +0.0300], 500 examples (f1 on dev)",
    ),
    (
        LossReport("f1", "dev", decision=decision(None)),
        "kept the model's own loss; the decision was left at argmax (a tuned one would have changed it: "
        "+0.0100 [-0.0100, +0.0300], 500 examples) (f1 on dev)",
    ),
])  # fmt: skip
def test_verdicts(report, verdict):
    assert report.verdict == f"VERDICT: {verdict}"
