"""The pages of surrogates on the Hub.

A page is made of sections, each between two comments. What lies outside of them, and any section that somebody edited,
stays as it is when the page is written again, and one that was taken out stays away; what was added to the metadata
stays, too.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..metrics import load_metric
from . import FORMER_LIBRARY, LIBRARY, PAGE, PICTURE, TAG
from .facts import SurrogateFacts
from .plain import plain

SECTION = re.compile(r"<!-- section (\w+) (\w+) -->\n(.*?)<!-- end of section -->\n", re.DOTALL)


def write_page(surrogate: SurrogateFacts, folder: str | Path, name: str | None = None, **card_data: Any) -> None:
    """Writes the page of a surrogate, README.md, and its picture.

    All figures are from its record, which `SurrogateTrainer` writes. What somebody
    wrote into a page that lies in the folder stays.

    Args:
        surrogate: whose page it is.
        folder: that the surrogate is saved in.
        name: what it is loaded by, such as the id of its repository; by default the folder.
        card_data: for the page's metadata (`license`, `datasets`, `base_model`, `language`), what is None left out.
    """
    folder = Path(folder)
    if surrogate.has_picture:
        from .pictures import plot_surrogate

        plot_surrogate(folder / PICTURE, surrogate)
    page = folder / PAGE
    former = ModelCard(page.read_text(encoding="utf-8"), ignore_metadata_errors=True) if page.exists() else None
    data = _metadata(surrogate, name or folder.name).to_dict()
    if former is not None:
        data = _merged(former.data.to_dict(), data)
    given = {key: value for key, value in card_data.items() if value is not None}
    data |= given | {"tags": [*dict.fromkeys([*data["tags"], *given.get("tags", [])])]}
    text = _with_sections(former, _sections(surrogate, name or str(folder)))
    card = ModelCard(f"---\n{ModelCardData(**data).to_yaml()}\n---\n{text}")
    page.write_text(str(card), encoding="utf-8", newline="\n")


def task_tag(task: str) -> str:
    """The tag of surrogates for a task."""
    return f"{TAG}-{task}"


def _is_metric(name: str) -> bool:
    try:
        return bool(load_metric(name))
    except (ImportError, ValueError):
        return False


def _metric_label(surrogate: SurrogateFacts) -> str | None:
    """The metric's name with those of its options that are not the default ones."""
    name, *options = (surrogate.metric or "").split("|")
    try:
        usual = load_metric(name).signature.split("|")
    except (ImportError, ValueError):  # one that is not known here, or somebody's own
        usual = options
    changed = ", ".join(option.replace(":", " ") for option in options if option not in usual)
    return f"{name} ({changed})" if changed else name or None


def _metadata(surrogate: SurrogateFacts, name: str) -> ModelCardData:
    metric, record = surrogate.metric_name, surrogate.record
    tags = [tag for tag in (TAG, plain(metric or ""), task_tag(surrogate.task)) if tag]
    checkpoints = [plain(checkpoint) for model in record.get("models", []) if (checkpoint := model.partition(" ")[2])]
    results = None
    if "alignment" in record:
        result = EvalResult(
            task_type=surrogate.pipeline_tag or "other",
            dataset_type="held-out-groups",
            dataset_name="held-out groups of predictions",
            metric_type="spearmanr",
            metric_name=f"alignment with {plain(_metric_label(surrogate))}",
            metric_value=record["alignment"],
        )
        results = [result]
    return ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=surrogate.pipeline_tag,
        base_model=checkpoints or None,
        tags=tags,
        model_name=name.rpartition("/")[2],
        eval_results=results,
    )


def _merged(former: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Metadata of which what somebody wrote stays, but for the results, and no tag but those of another surrogate."""
    kept = [tag for tag in former.get("tags") or [] if not tag.startswith(f"{TAG}-") and not _is_metric(tag)]
    merged = ours | former | {"tags": [*dict.fromkeys([*ours["tags"], *kept])]}
    anew = {"model-index", "library_name"} if former.get("library_name") == FORMER_LIBRARY else {"model-index"}
    return merged | {name: value for name, value in ours.items() if name in anew}


def _sections(surrogate: SurrogateFacts, name: str) -> dict[str, str]:
    """The sections of its page."""
    record = surrogate.record
    shown = {
        key: f"{value:.4f}" if isinstance(value, float) else value
        for key, value in record.items()
        if "alignment" not in key and key not in ("held_out", "models", "data", "settings")
    }
    context = {
        "title": name.rpartition("/")[2] or name,
        "name": name,
        "surrogate": surrogate,
        "metric": _metric_label(surrogate),
        "record": record,
        "usual": record.get(f"alignment_{surrogate.usual_loss}"),
        "picture": PICTURE if surrogate.has_picture else None,
        "details": dict(surrogate.learned) | dict(sorted(shown.items())) | record.get("settings", {}),
    }
    template = environment().get_template("model_card.md.jinja")
    made = {name: "".join(block(template.new_context(context))).strip() for name, block in template.blocks.items()}
    return {name: text + "\n" if text else "" for name, text in made.items()}


def environment() -> jinja2.Environment:
    """Of the templates, which write all markup of a page: every value that is put into them is plain text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hf_reloss.hub", ""), trim_blocks=True, keep_trailing_newline=True, finalize=plain
    )
    environment.filters["cell"] = _cell
    return environment


def _cell(value: Any) -> str:
    """A value as plain text in a cell of a table, which a `|` would end."""
    return re.sub(r"\\*\|", r"\\|", plain(value))


def _with_sections(former: ModelCard | None, sections: dict[str, str]) -> str:
    """A page with its sections written anew; they are put at the end of one that is not of this library yet."""

    def marked(name: str, text: str) -> str:
        return f"<!-- section {name} {_mark(text)} -->\n{text}<!-- end of section -->\n"

    def anew(match: re.Match[str]) -> str:
        name, mark, text = match.groups()
        edited = mark != _mark(text) or name not in sections
        return match[0] if edited else marked(name, sections[name])

    page = former.text if former is not None else ""
    if former is not None and former.data.get("library_name") in (LIBRARY, FORMER_LIBRARY):
        return SECTION.sub(anew, page)
    return "\n".join([*([page] if page.strip() else []), *(marked(name, text) for name, text in sections.items())])


def _mark(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:12]
