"""What the page of a trained model says of the loss that it was trained on."""

from pathlib import Path

from huggingface_hub import ModelCard

from . import FORMER_LIBRARY, LIBRARY, PAGE
from .facts import SurrogateFacts
from .pages import environment


def write_loss(
    folder: str | Path,
    surrogate: SurrogateFacts | None,
    *,
    sentence: str = "",
    paper: tuple[str, str] | None = None,
    own_share: float,
    of_transformers: bool,
) -> None:
    """Adds to the page of a trained model, README.md, which loss it was trained on.

    Args:
        folder: of the page, as a Trainer has written it.
        surrogate: the loss; None if it was none, or none had been learned yet.
        sentence: of another loss, what there is to say, after "This model was trained with `hf_reloss` ".
        paper: a method's name and the address of its paper.
        own_share: of the model's own loss in the sum.
        of_transformers: whether the model is loaded with that library, as the page says.
    """
    page = Path(folder) / PAGE
    card = ModelCard.load(page)
    kept = [tag for tag in card.data.tags or [] if tag != FORMER_LIBRARY]
    card.data.tags = [*dict.fromkeys([*kept, LIBRARY])]
    if not of_transformers:
        card.data.library_name = None
    name, revision = surrogate.name_and_revision if surrogate is not None else ("", "")
    template = environment().get_template("trained_model.md.jinja")
    section = template.render(
        surrogate=surrogate, sentence=sentence, paper=paper, own_share=own_share, name=name, revision=revision
    )
    text = f"---\n{card.data.to_yaml()}\n---\n{card.text.strip()}\n\n{section}"
    page.write_text(text, encoding="utf-8", newline="\n")
