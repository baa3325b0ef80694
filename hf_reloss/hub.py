"""Surrogates on the Hub: their pages, publishing, finding them; and what a trained model's page says of its loss.

A page is made of sections, each between two comments. What lies outside of them, and any section that somebody edited,
stays as it is when the page is written again, and one that was taken out stays away; what was added to the metadata
stays, too.
"""

import contextlib
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, ModelInfo, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RevisionNotFoundError
from transformers.utils import CONFIG_NAME

from .losses.hand_made.base import AdjustableLoss, HandMadeLoss
from .metrics import load_metric
from .plain import plain

if TYPE_CHECKING:
    from .surrogates.base import Surrogate

LIBRARY = "hf_reloss"

TAG = "reloss"
"""All surrogates have it, so that they can be found; models that were trained on them have the library's name."""

ORGANISATION = "reloss"
"""Whose surrogates come with this package."""

PAGE, PICTURE = "README.md", "alignment.png"

ORIGIN = re.compile(r"([\w.-]+(?:/[\w.-]+)*)@([\w.+-]+)")
"""Where a surrogate was loaded from: its repository, perhaps a folder in that, and the revision."""

SECTION = re.compile(r"<!-- section (\w+) (\w+) -->\n(.*?)<!-- end of section -->\n", re.DOTALL)


def included(name: str, *, revision: str | None = None, force_download: bool = False, **asked: Any) -> Path | None:
    """The folder of a surrogate that comes with this package, or None if that is not what was asked for.

    Args:
        name: what is to be loaded.
        revision, force_download: if they are given, the Hub's is meant.
        asked: what else was, which makes no difference.
    """
    organisation, _, short = name.partition("/")
    if organisation != ORGANISATION or revision or force_download or Path(name).is_dir():
        return None
    here = Path(__file__).parent
    if not re.fullmatch(r"\w[\w.-]*", short):  # a path could lead out of the folder
        return None
    folders = (place / "hub_cards" / short for place in (here, here.parent))  # installed, or in a checkout
    return next((folder for folder in folders if (folder / CONFIG_NAME).is_file()), None)


def write_page(surrogate: "Surrogate", folder: str | Path, name: str | None = None, **card_data: Any) -> None:
    """Writes the page of a surrogate, README.md, and its picture.

    All figures are from `config.record`, which `SurrogateTrainer` writes. What somebody
    wrote into a page that lies in the folder stays.

    Args:
        surrogate: whose page it is.
        folder: that the surrogate is saved in.
        name: what it is loaded by, such as the id of its repository; by default the folder.
        card_data: for the page's metadata (`license`, `datasets`, `base_model`, `language`), what is None left out.
    """
    folder = Path(folder)
    if _has_picture(surrogate):
        from .plots import plot_surrogate

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


def push_surrogate(
    surrogate: "Surrogate",
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    card_data: Mapping[str, Any] | None = None,
) -> str:
    """Publishes a surrogate with its page, in one commit: all of it, or if anything fails nothing.

    Args:
        surrogate: to be published.
        repo_id: of a repository, which is made if there is none.
        commit_message, commit_description: of the commit.
        private: whether a new repository is; by default as its organisation has it.
        token: by default the one of `hf auth login`.
        revision: a branch, which is made if there is none; by default main.
        create_pr: whether to open a pull request instead.
        card_data: for the metadata of the page, such as `{"license": "mit", "datasets": ["squad"]}`.

    Returns:
        The address of the commit.

    Raises:
        OSError: if the server refused or failed.
    """
    api = HfApi(token=token)
    with _told(f"Nothing was published to {repo_id}"), tempfile.TemporaryDirectory() as folder:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with contextlib.suppress(RemoteEntryNotFoundError, RevisionNotFoundError):  # of a new repository
            published = hf_hub_download(repo_id, PAGE, revision=revision, token=token, force_download=True)
            shutil.copy(published, Path(folder) / PAGE)
        surrogate.save_pretrained(folder, repo_id=repo_id, card_data=card_data)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or f"Upload {type(surrogate).__name__}",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    return commit.pr_url or commit.commit_url


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Raises what goes wrong on the way to the Hub as an OSError, which says what that means."""
    # Of a large file that did not arrive the client tells with a RuntimeError, and of a network that is not there with
    # the errors of its HTTP library, from which its own are derived, too.
    try:
        yield
    except (RuntimeError, ValueError, *HfHubHTTPError.__bases__) as error:
        cause = f" ({error.__cause__})" if error.__cause__ and str(error.__cause__) not in str(error) else ""
        raise OSError(f"{what}: {error}{cause}") from error


def list_surrogates(
    *,
    metric: str | None = None,
    task: str | None = None,
    author: str | None = None,
    token: bool | str | None = None,
) -> list[ModelInfo]:
    """The surrogates on the Hub.

    Args:
        metric: that they were learned for, by its name, such as `"f1"`; by default any.
        task: `"classification"`, `"embeddings"`, `"tokens"`, `"spans"` or `"keypoints"`; by default any.
        author: a user or an organisation; by default any.
        token: by default the one of `hf auth login`.
    """
    tags = [tag for tag in (TAG, metric, task and _task_tag(task)) if tag]
    with _told("The surrogates could not be listed"):
        return list(HfApi(token=token).list_models(filter=tags, author=author))


def write_loss(
    folder: str | Path,
    surrogate: "Surrogate | None",
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
    template = _environment().get_template("trained_model.md.jinja")
    config = surrogate and surrogate.config
    section = template.render(
        surrogate=config, kind=_kind_of_loss(surrogate), risk=risk, own_share=own_share, **_origin(surrogate)
    )
    text = f"---\n{card.data.to_yaml()}\n---\n{card.text.strip()}\n\n{section}"
    page.write_text(text, encoding="utf-8", newline="\n")


def _kind_of_loss(surrogate: "Surrogate | None") -> str | None:
    """Whether a loss is adapted, hand-made, the soft form of a metric with nothing learned, or learned."""
    if surrogate is None:
        return None
    if isinstance(surrogate.network, HandMadeLoss):
        return "adapted" if isinstance(surrogate.network, AdjustableLoss) else "hand-made"
    # At its start, a surrogate is the soft form of its metric, and all that is learned is 0.
    return "learned" if any(parameter.any() for parameter in surrogate.parameters()) else "soft"


def _origin(surrogate: "Surrogate | None") -> dict[str, str]:
    """The repository and the revision that a surrogate was loaded from, if it was."""
    found = ORIGIN.fullmatch((surrogate and surrogate.config.origin) or "")
    name, revision = found.groups() if found else ("", "")
    return {"name": name, "revision": revision}


def _has_picture(surrogate: "Surrogate") -> bool:
    """Whether its record holds all that the picture shows."""
    record, usual = surrogate.config.record or {}, surrogate.original_loss
    shown = {"alignment", f"alignment_{usual}"} <= record.keys()
    return shown and {"score", "loss", usual} <= record.get("held_out", {}).keys()


def _task_tag(task: str) -> str:
    return f"{TAG}-{task}"


def _metric_name(surrogate: "Surrogate") -> str | None:
    return surrogate.config.metric and surrogate.config.metric.split("|")[0]


def _is_metric(name: str) -> bool:
    try:
        return bool(load_metric(name))
    except (ImportError, ValueError):
        return False


def _metric_label(surrogate: "Surrogate") -> str | None:
    """The metric's name with those of its options that are not the default ones."""
    name, *options = (surrogate.config.metric or "").split("|")
    try:
        usual = load_metric(name).signature.split("|")
    except (ImportError, ValueError):  # one that is not known here, or somebody's own
        usual = options
    changed = ", ".join(option.replace(":", " ") for option in options if option not in usual)
    return f"{name} ({changed})" if changed else name or None


def _metadata(surrogate: "Surrogate", name: str) -> ModelCardData:
    metric, record = _metric_name(surrogate), surrogate.config.record or {}
    tags = [tag for tag in (TAG, plain(metric or ""), _task_tag(surrogate.task)) if tag]
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
    return merged | {name: value for name, value in ours.items() if name == "model-index"}


def _sections(surrogate: "Surrogate", name: str) -> dict[str, str]:
    """The sections of its page."""
    config = surrogate.config
    record = config.record or {}
    usual = surrogate.original_loss
    shown = {
        key: f"{value:.4f}" if isinstance(value, float) else value
        for key, value in record.items()
        if "alignment" not in key and key not in ("held_out", "models", "data", "settings")
    }
    default = type(config)()
    elsewhere = {"task", "architecture", "metric", "record", "origin", "hf_reloss_version"}
    learned = surrogate.network.learned()
    options = set(type(config).__annotations__) - elsewhere - learned.keys()
    changed = {key: getattr(config, key) for key in options if getattr(config, key) != getattr(default, key)}
    context = {
        "title": name.rpartition("/")[2] or name,
        "name": name,
        "task": surrogate.task,
        "metric": _metric_label(surrogate),
        "record": record,
        "original": usual.replace("cross_", "cross-").replace("_", " "),
        "usual": record.get(f"alignment_{usual}"),
        "picture": PICTURE if _has_picture(surrogate) else None,
        "example": surrogate.example(),
        "config": config,
        "parameters": surrogate.num_parameters(),
        "changed": dict(sorted(changed.items())),
        "details": learned | dict(sorted(shown.items())) | record.get("settings", {}),
    }
    template = _environment().get_template("model_card.md.jinja")
    made = {name: "".join(block(template.new_context(context))).strip() for name, block in template.blocks.items()}
    return {name: text + "\n" if text else "" for name, text in made.items()}


def _environment() -> jinja2.Environment:
    """Of the templates, which write all markup of a page: every value that is put into them is plain text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hf_reloss", ""), trim_blocks=True, keep_trailing_newline=True, finalize=plain
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

    def anew(match: re.Match) -> str:
        name, mark, text = match.groups()
        edited = mark != _mark(text) or name not in sections
        return match[0] if edited else marked(name, sections[name])

    page = former.text if former is not None else ""
    if former is not None and former.data.library_name == LIBRARY:
        return SECTION.sub(anew, page)
    return "\n".join([*([page] if page.strip() else []), *(marked(name, text) for name, text in sections.items())])


def _mark(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:12]
