"""Programs that the distributed tests start as real processes: python -m tests.distributed.programs NAME FOLDER."""

import os
import resource
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from hf_reloss import (
    ReLossTrainer,
    ReLossTrainingArguments,
    SurrogateConfig,
    SurrogateForClassification,
    SurrogateForTokens,
    SurrogateTrainer,
    SurrogateTrainingArguments,
    load_metric,
)
from hf_reloss.adaptive_loss.children import launched
from hf_reloss.predictions import groups

from ..conftest import TinyClassifier, synthetic_predictions, tiny_rows
from ..training.test_text_trainers import make_tokenizer, sentences, translating

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))


class FirstGradients(TrainerCallback):
    """Keeps the gradients of the first step, after they have been reduced over processes."""

    def __init__(self):
        self.seen = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.seen:
            self.seen = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def random_surrogate() -> SurrogateForClassification:
    surrogate = SurrogateForClassification(SurrogateConfig())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in surrogate.parameters():
            parameter.normal_(generator=generator)
    return surrogate


def reloss(folder: Path) -> None:
    """ReLossTrainer: batches of 8 in all."""
    torch.manual_seed(0)
    spy = FirstGradients()
    args = ReLossTrainingArguments(
        str(folder / "run"), per_device_train_batch_size=8 // PROCESSES, num_train_epochs=3, learning_rate=0.01,
        max_grad_norm=0, save_strategy="no", disable_tqdm=True, use_cpu=True, seed=3, ddp_find_unused_parameters=False,
    )  # fmt: skip
    trainer = ReLossTrainer(
        TinyClassifier(), args, train_dataset=tiny_rows(80), eval_dataset=tiny_rows(37, seed=1),
        surrogate=random_surrogate(), callbacks=[spy],
        compute_metrics=lambda evaluation: {"examples": float(len(evaluation.label_ids))},
    )  # fmt: skip
    trainer.train()
    measured = [trainer.evaluate()["eval_examples"]]
    args.per_device_eval_batch_size = 8 // PROCESSES
    of_groups = ReLossTrainer(trainer.model, args, eval_dataset=tiny_rows(37, seed=1), surrogate="soft_f1")
    measured += [of_groups.evaluate()["eval_loss"]]
    finish(trainer, folder, {"measured": torch.tensor(measured), **{f"gradient.{n}": g for n, g in spy.seen.items()}})


def adaptive(folder: Path) -> None:
    """ReLossTrainer with a loss that is adapted: batches of 8 in all, validation data that do not fill the last one."""
    torch.manual_seed(0)
    spy = FirstGradients()
    args = ReLossTrainingArguments(
        str(folder / "run"), per_device_train_batch_size=8 // PROCESSES, num_train_epochs=4, learning_rate=0.01,
        adapt_steps=5, save_strategy="no", disable_tqdm=True, use_cpu=True, seed=3, ddp_find_unused_parameters=False,
    )  # fmt: skip
    trainer = ReLossTrainer(
        TinyClassifier(), args, train_dataset=tiny_rows(80), eval_dataset=tiny_rows(37, seed=1), surrogate="ala",
        metric="accuracy", callbacks=[spy],
    )  # fmt: skip
    trainer.train()
    learned = {f"policy.{name}": weight for name, weight in trainer.strategy.controller.state_dict().items()}
    learned |= {
        "correlations": trainer.strategy.network.correlations,
        "rewards": torch.tensor(trainer.strategy.rewards),
    }
    finish(trainer, folder, learned | {f"gradient.{n}": g for n, g in spy.seen.items()})


def children(folder: Path) -> None:
    """A model of its own in each process, and one controller; child 1 dies in step 34, if that is asked for."""

    class Fate(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 33 and "dies" in sys.argv and launched().rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    args = ReLossTrainingArguments(
        str(folder / "run"), per_device_train_batch_size=8, max_steps=60, save_steps=20, learning_rate=0.01,
        adapt_steps=5, surrogate_warmup=0.2, adapt_children=True, disable_tqdm=True, use_cpu=True, seed=3,
        ddp_timeout=20,
    )  # fmt: skip
    torch.manual_seed(args.seed)
    trainer = ReLossTrainer(
        TinyClassifier(dropout=0.1), args, train_dataset=tiny_rows(80), eval_dataset=tiny_rows(37, seed=1),
        surrogate="ala", metric="accuracy", callbacks=[Fate()],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint="resumes" in sys.argv)
    adaptation = trainer.strategy
    seen = {f"policy.{name}": weight for name, weight in adaptation.controller.state_dict().items()}
    seen |= {"values": adaptation.network.values(), "rewards": torch.tensor(adaptation.rewards)}
    seen |= {"remembered": torch.tensor([len(siblings) for siblings in adaptation.learning.memory])}
    seen |= {"batches": torch.tensor([len(trainer.get_train_dataloader())])}
    seen |= {"best": torch.tensor([adaptation.best_child]), "error": torch.tensor([adaptation.former_error])}
    finish(trainer, folder / f"child_{launched().rank}", seen)


def surrogate(folder: Path, metric: str = "accuracy") -> None:
    """SurrogateTrainer: 32 groups in all, ranked together."""
    torch.manual_seed(0)
    spy = FirstGradients()
    args = SurrogateTrainingArguments(
        str(folder / "run"), num_groups=128, num_eval_groups=50, group_size=32, num_train_epochs=2, max_grad_norm=0,
        per_device_train_batch_size=32 // PROCESSES, disable_tqdm=True, use_cpu=True, seed=1,
        ddp_find_unused_parameters=False,
    )  # fmt: skip
    trainer = SurrogateTrainer(
        SurrogateForClassification.for_metric(load_metric(metric)), args, train_dataset=synthetic_predictions(),
        metric=metric, callbacks=[spy],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=sys.argv[3] if len(sys.argv) > 3 else None)
    measured = torch.tensor([trainer.accelerator.unwrap_model(trainer.model).config.record["alignment"]])
    finish(trainer, folder, {"measured": measured, **{f"gradient.{n}": g for n, g in spy.seen.items()}})


def counts(folder: Path) -> None:
    """The same with a surrogate whose loss is a group's."""
    surrogate(folder, metric="matthews_correlation")


def large(folder: Path) -> None:
    """The same, of a recording of which a sample is read, a part of it in each process."""
    groups.MOST_SAMPLED = 500
    surrogate(folder)


def seq2seq(folder: Path, surrogate: str = "given") -> None:
    """ReLossSeq2SeqTrainer, which generates in evaluation, on a loss that is a mean over sentences."""
    spy, learns = FirstGradients(), surrogate == "auto"
    torch.manual_seed(0)
    options = {"surrogate": "auto", "metric": "rouge1", "num_train_epochs": 8, "surrogate_warmup": 0.5}
    if not learns:
        given = SurrogateForTokens(SurrogateConfig(task="tokens", architecture="paper", hidden_size=8))
        options = {"surrogate": given, "num_train_epochs": 2}
    trainer = translating(
        folder / "run", make_tokenizer(), per_device_train_batch_size=8 // PROCESSES, per_device_eval_batch_size=4,
        max_grad_norm=0, use_cpu=True, seed=3, ddp_find_unused_parameters=False, callbacks=[spy],
        compute_metrics=lambda evaluation: {"examples": float(len(evaluation.predictions))}, **options,
    )  # fmt: skip
    trainer.train()
    measured = torch.tensor([trainer.evaluate()["eval_examples"]])
    learned = {f"surrogate.{name}": weight for name, weight in trainer.surrogate.state_dict().items()}
    gradients = {f"gradient.{n}": g for n, g in spy.seen.items()}
    finish(trainer, folder, {"measured": measured, **gradients, **learned}, every_process=learns)


def seq2seq_auto(folder: Path) -> None:
    """The same with "auto", of a metric of texts."""
    seq2seq(folder, surrogate="auto")


def minimum_risk(folder: Path) -> None:
    """ReLossSeq2SeqTrainer on the expected risk of what is drawn, and cross-entropy; the last batch is not full. Before
    that it is tuned which text is written."""
    spy = FirstGradients()
    trainer = translating(
        folder / "run", make_tokenizer(), surrogate="minimum_risk",
        metric="chrf", model_loss_share=0.25, risk_alpha=0.5, per_device_train_batch_size=6 // PROCESSES,
        num_train_epochs=1, max_grad_norm=0, use_cpu=True, seed=3, ddp_find_unused_parameters=False, callbacks=[spy],
    )  # fmt: skip
    tuned = trainer.tune_decision(sentences(51, seed=3), num_beams=3, metric="chrf")
    measured = torch.cat([torch.tensor([tuned.before, tuned.after]), tuned.decided])
    trainer.train()
    finish(trainer, folder, {"measured": measured} | {f"gradient.{n}": g for n, g in spy.seen.items()})


def auto(folder: Path) -> None:
    """ReLossTrainer with "auto": the surrogate is learned by all processes, and is one and the same."""
    torch.manual_seed(0)
    args = ReLossTrainingArguments(
        str(folder / "run"), per_device_train_batch_size=8 // PROCESSES, num_train_epochs=4, learning_rate=0.01,
        gradient_accumulation_steps=2, surrogate_warmup=0.5, save_strategy="steps", save_steps=30, disable_tqdm=True,
        use_cpu=True, seed=3, ddp_find_unused_parameters=False,
    )  # fmt: skip
    trainer = ReLossTrainer(
        TinyClassifier(dropout=0.1), args, train_dataset=tiny_rows(320), eval_dataset=tiny_rows(201, seed=1),
        surrogate="auto", metric="accuracy",
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=sys.argv[3] if len(sys.argv) > 3 else None)
    learned = {f"surrogate.{name}": weight for name, weight in trainer.surrogate.state_dict().items()}
    predictions = torch.tensor([trainer.surrogate.config.record["predictions"]])
    report = trainer.loss_report
    learned["judged"] = torch.tensor([report.gain.mean, report.gain.better, report.decision.after])
    finish(trainer, folder, {"measured": predictions, **learned}, every_process=True)


def victim(folder: Path) -> None:
    """ReLossTrainer with checkpoints, whose process 1 dies or diverges, or whose disk is full, in step 7, if told."""
    torch.manual_seed(0)

    class Fate(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 6 and "dies" in sys.argv and args.process_index == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if state.global_step == 6 and "full" in sys.argv:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
            if state.global_step == 6 and "diverges" in sys.argv and args.process_index == 1:
                kwargs["model"].register_forward_hook(overflow)

    def overflow(model, inputs, outputs):
        outputs["logits"] = outputs["logits"] * 1e38  # finite, but its loss is not

    args = ReLossTrainingArguments(
        str(folder / "run"), per_device_train_batch_size=8 // PROCESSES, max_steps=12, save_steps=4, save_total_limit=1,
        learning_rate=0.01, disable_tqdm=True, use_cpu=True, seed=3, ddp_timeout=20, ddp_find_unused_parameters=False,
    )  # fmt: skip
    trainer = ReLossTrainer(
        TinyClassifier(), args, train_dataset=tiny_rows(80), surrogate=random_surrogate(), callbacks=[Fate()]
    )
    trainer.train(resume_from_checkpoint="resumes" in sys.argv)
    finish(trainer, folder, {})


def finish(trainer, folder: Path, tensors: dict[str, torch.Tensor], every_process: bool = False) -> None:
    """Writes tensors and the trained weights."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    tensors |= {f"weight.{name}": weight for name, weight in model.state_dict().items()}
    if every_process or trainer.is_world_process_zero():
        folder.mkdir(exist_ok=True)
        path = folder / f"result_{trainer.args.process_index}.safetensors"
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    programs = (reloss, adaptive, children, surrogate, counts, large, seq2seq, seq2seq_auto, minimum_risk, auto, victim)
    {program.__name__: program for program in programs}[sys.argv[1]](Path(sys.argv[2]))
    os._exit(0)  # all is written, and taking down gloo's threads with the interpreter may hang
