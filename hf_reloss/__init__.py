"""Train on the metric you are judged by: learned surrogate losses for Hugging Face trainers."""

import importlib
from typing import TYPE_CHECKING, Any

import wrapt

__version__ = "0.2.0"

_MODULES = {
    "training.adaptive_trainer": ["AdaptiveLossTrainer"],
    "training.attached": ["AttachedLoss", "attach"],
    "training.arguments": ["ReLossSeq2SeqTrainingArguments", "ReLossTrainingArguments"],
    "adaptive_loss.controller": ["LossController", "LossControllerConfig"],
    "decisions.base": ["DecisionRule"],
    "decisions.consensus": ["Consensus"],
    "decisions.text_tuning": ["TunedTexts", "tune_text_decision"],
    "decisions.tuning": ["TunedDecision", "tune_decision"],
    "hub.publishing": ["list_surrogates"],
    "losses.hand_made": ["hand_made_losses"],
    "metrics": ["Metric", "load_metric"],
    "metrics.batches": ["batch_compute_metrics"],
    "ranking": ["hard_rank", "soft_rank", "spearman"],
    "predictions.record": ["record_predictions"],
    "predictions.recorder": ["PredictionRecorder"],
    "training.loss_monitor": ["LossMetricMonitor"],
    "training.mixin": ["ReLossMixin"],
    "training.preferences": ["preference_pairs"],
    "training.report": ["LossReport"],
    "training.rewards": ["metric_reward"],
    "training.strategies.base": ["LossDescription", "LossStrategy", "StrategyLoss", "SurrogateStrategy"],
    "training.trainer": ["ReLossSeq2SeqTrainer", "ReLossTrainer"],
    "learning.trainer": ["MisalignedSurrogateError", "SurrogateTrainer", "SurrogateTrainingArguments"],
    "surrogates.auto": ["AutoSurrogate"],
    "surrogates.base": ["Surrogate"],
    "surrogates.classification": ["SurrogateForClassification"],
    "surrogates.config": ["SurrogateConfig"],
    "surrogates.embeddings": ["SurrogateForEmbeddings"],
    "surrogates.hand_made": ["hand_made_loss"],
    "surrogates.keypoints": ["SurrogateForKeypoints"],
    "surrogates.multilabel": ["SurrogateForMultilabel"],
    "surrogates.regression": ["SurrogateForRegression"],
    "surrogates.segmentation": ["SurrogateForSegmentation"],
    "surrogates.spans": ["SurrogateForSpans"],
    "surrogates.tokens": ["SurrogateForTokens", "next_token_labels"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from .adaptive_loss.controller import LossController, LossControllerConfig
    from .decisions.base import DecisionRule
    from .decisions.consensus import Consensus
    from .decisions.text_tuning import TunedTexts, tune_text_decision
    from .decisions.tuning import TunedDecision, tune_decision
    from .hub.publishing import list_surrogates
    from .learning.trainer import MisalignedSurrogateError, SurrogateTrainer, SurrogateTrainingArguments
    from .losses.hand_made import hand_made_losses
    from .metrics import Metric, load_metric
    from .metrics.batches import batch_compute_metrics
    from .predictions.record import record_predictions
    from .predictions.recorder import PredictionRecorder
    from .ranking import hard_rank, soft_rank, spearman
    from .surrogates.auto import AutoSurrogate
    from .surrogates.base import Surrogate
    from .surrogates.classification import SurrogateForClassification
    from .surrogates.config import SurrogateConfig
    from .surrogates.embeddings import SurrogateForEmbeddings
    from .surrogates.hand_made import hand_made_loss
    from .surrogates.keypoints import SurrogateForKeypoints
    from .surrogates.multilabel import SurrogateForMultilabel
    from .surrogates.regression import SurrogateForRegression
    from .surrogates.segmentation import SurrogateForSegmentation
    from .surrogates.spans import SurrogateForSpans
    from .surrogates.tokens import SurrogateForTokens, next_token_labels
    from .training.adaptive_trainer import AdaptiveLossTrainer
    from .training.arguments import ReLossSeq2SeqTrainingArguments, ReLossTrainingArguments
    from .training.attached import AttachedLoss, attach
    from .training.loss_monitor import LossMetricMonitor
    from .training.mixin import ReLossMixin
    from .training.preferences import preference_pairs
    from .training.report import LossReport
    from .training.rewards import metric_reward
    from .training.strategies.base import LossDescription, LossStrategy, StrategyLoss, SurrogateStrategy
    from .training.trainer import ReLossSeq2SeqTrainer, ReLossTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


# AutoConfig and AutoModel know surrogates as soon as they themselves are imported: importing them here, for everyone,
# would take torch and a second.
@wrapt.when_imported("transformers.models.auto.configuration_auto")
def _register_config(module: Any) -> None:
    from .surrogates.config import SurrogateConfig

    module.AutoConfig.register(SurrogateConfig.model_type, SurrogateConfig, exist_ok=True)


@wrapt.when_imported("transformers.models.auto.modeling_auto")
def _register_model(module: Any) -> None:
    from .surrogates.auto import AutoSurrogate

    module.AutoModel.register(AutoSurrogate.config_class, AutoSurrogate, exist_ok=True)
