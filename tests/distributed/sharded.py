"""What the tests of FSDP and DeepSpeed start: accelerate launch -m tests.distributed.sharded FOLDER [bf16]

BERT is trained on a surrogate: one that is loaded, one that is made, whose loss is a group's, and one that is learned,
in a run that is then resumed from before and after that. A step has 16 examples, however many processes there are.
"""

import os
import sys
from pathlib import Path

from safetensors.torch import save_file
from transformers import BertForSequenceClassification

from hf_reloss import ReLossTrainer, ReLossTrainingArguments, SurrogateForClassification

from ..invariant.test_modes import make_bert, sentences


def train(folder: Path, case: str, surrogate, checkpoint: Path | None = None, **options) -> None:
    """Trains and writes all weights, put together again."""
    start = folder / f"start_{os.environ.get('RANK', '0')}"
    make_bert().save_pretrained(start)
    args = ReLossTrainingArguments(
        str(folder / case), per_device_train_batch_size=16 // int(os.environ.get("WORLD_SIZE", "1")), max_steps=20,
        learning_rate=0.5, optim="sgd", lr_scheduler_type="constant", save_steps=8, disable_tqdm=True, use_cpu=True,
        seed=3, model_loss_share=0.25, ddp_find_unused_parameters=False, **options,
    )  # fmt: skip
    model = BertForSequenceClassification.from_pretrained(start)
    metric = "accuracy" if surrogate == "auto" else None
    trainer = ReLossTrainer(model, args, train_dataset=sentences(), surrogate=surrogate, metric=metric)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        weights |= {f"surrogate.{name}": weight for name, weight in trainer.surrogate.state_dict().items()}
        whole = {name: weight.float().cpu().contiguous() for name, weight in weights.items()}
        save_file(whole, folder / f"{case}.safetensors")
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if "bf16" in sys.argv:
        train(folder, "loaded", "reloss/accuracy", bf16=True)
    else:
        train(folder, "loaded", "reloss/accuracy")
        train(folder, "of_groups", SurrogateForClassification.for_metric("matthews_correlation"))
        train(folder, "auto", "auto")
        train(folder, "resumed_before", "auto", folder / "auto" / "checkpoint-8")
        train(folder, "resumed_after", "auto", folder / "auto" / "checkpoint-16")
    sys.stdout.flush()
    os._exit(0)  # all is written, and taking down gloo's threads with the interpreter may hang
