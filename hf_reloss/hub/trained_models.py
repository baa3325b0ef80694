"""What the page of a trained model says of the loss that it was trained on."""

from pathlib import Path

from huggingface_hub import ModelCard

from . import LIBRARY, PAGE
from .facts import SurrogateFacts
from .pages import environment


def write_loss(
    folder: str | Path,
    surrogate: SurrogateFacts | None,
    *,
    risk: str | None = None,
    own_share: float,
    of_transformers: bool,
) -> None:
    """Adds to the page of a trained model, README.md, which loss it was trained on.

    Args:
        folder: of the page, as a Trainer has written it.
        surrogate: the loss; None if none had been learned yet.
        risk: in its place, the signature of the metric whose expected risk was the loss.
        own_share: of the model's own loss in the sum.
        of_transformers: whether the model is loaded with that library, as the page says.
    """
    page = Path(folder) / PAGE
    card = ModelCard.load(page)
    card.data.tags = [*dict.fromkeys([*(card.data.tags or []), LIBRARY])]
    if not of_transformers:
        card.data.library_name = None
    name, revision = surrogate.name_and_revision if surrogate is not None else ("", "")
    template = environment().get_template("trained_model.md.jinja")
    section = template.render(surrogate=surrogate, risk=risk, own_share=own_share, name=name, revision=revision)
    text = f"---\n{card.data.to_yaml()}\n---\n{card.text.strip()}\n\n{section}"
    page.write_text(text, encoding="utf-8", newline="\n")
