"""Surrogates on the Hub: their pages, publishing, and finding them.

A page is made of sections, each between two comments. What lies outside of them, and any section that somebody edited,
stays as it is when the page is written again, and one that was taken out stays away, as long as there are others; what
was added to the metadata stays, too.
"""

import hashlib
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, ModelInfo, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

if TYPE_CHECKING:
    from .surrogates.base import Surrogate

TAG = "reloss"
"""All surrogates have it, so that they can be found."""

PAGE, PICTURE = "README.md", "alignment.png"

SECTION = re.compile(r"<!-- section (\w+) (\w+) -->\n(.*?)<!-- end of section -->\n", re.DOTALL)


def write_page(surrogate: "Surrogate", folder: str | Path, name: str | None = None) -> None:
    """Writes the page of a surrogate, README.md, and its picture.

    All figures are from `config.record`, which `SurrogateTrainer` writes. What somebody
    wrote into a page that lies in the folder stays.

    Args:
        surrogate: whose page it is.
        folder: that the surrogate is saved in.
        name: what it is loaded by, such as the id of its repository; by default the folder.
    """
    folder = Path(folder)
    record = surrogate.config.record
    if record and "held_out" in record:
        from .plots import plot_surrogate

        plot_surrogate(folder / PICTURE, surrogate)
    page = folder / PAGE
    former = ModelCard(page.read_text(encoding="utf-8"), ignore_metadata_errors=True) if page.exists() else None
    data = _metadata(surrogate, name or folder.name).to_dict()
    if former is not None:
        data = _merged(former.data.to_dict(), data)
    text = _with_sections(former.text if former is not None else "", _sections(surrogate, name or str(folder)))
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

    Returns:
        The address of the commit.

    Raises:
        OSError: if the server refused or failed.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / PAGE
        try:
            published = hf_hub_download(repo_id, PAGE, revision=revision, token=token)
            page.write_bytes(Path(published).read_bytes())
        except (EntryNotFoundError, RevisionNotFoundError):
            pass  # a new repository
        surrogate.save_pretrained(folder)
        write_page(surrogate, folder, repo_id)
        try:
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or f"Upload {type(surrogate).__name__}",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )
        except RuntimeError as error:  # with which the client tells of a large file that did not arrive
            raise OSError(
                f"{repo_id} is as it was before, nothing was published: {error} ({error.__cause__}). Push it again."
            ) from error
    return commit.pr_url or commit.commit_url


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
        task: `"classification"`, `"tokens"`, `"spans"` or `"keypoints"`; by default any.
        author: a user or an organisation; by default any.
        token: by default the one of `hf auth login`.
    """
    tags = [tag for tag in (TAG, metric, task and _task_tag(task)) if tag]
    return list(HfApi(token=token).list_models(filter=tags, author=author))


def _task_tag(task: str) -> str:
    return f"{TAG}-{task}"


def _metric_name(surrogate: "Surrogate") -> str | None:
    return surrogate.config.metric and surrogate.config.metric.split("|")[0]


def _metadata(surrogate: "Surrogate", name: str) -> ModelCardData:
    metric, record = _metric_name(surrogate), surrogate.config.record
    tags = [tag for tag in (TAG, metric, _task_tag(surrogate.task)) if tag]
    results = None
    if record and "alignment" in record:
        result = EvalResult(
            task_type=surrogate.pipeline_tag or "other",
            dataset_type="held-out-groups",
            dataset_name="held-out groups of predictions",
            metric_type="spearmanr",
            metric_name=f"alignment with {metric}",
            metric_value=record["alignment"],
        )
        results = [result]
    return ModelCardData(
        library_name="hf_reloss",
        pipeline_tag=surrogate.pipeline_tag,
        tags=tags,
        model_name=name.rpartition("/")[2],
        eval_results=results,
    )


def _merged(former: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Metadata of which what somebody wrote stays, but for the results, and no tag is lost."""
    merged = ours | former
    merged["tags"] = [*dict.fromkeys([*(former.get("tags") or []), *ours["tags"]])]
    return merged | {name: value for name, value in ours.items() if name == "model-index"}


def _sections(surrogate: "Surrogate", name: str) -> dict[str, str]:
    """The sections of its page."""
    config = surrogate.config
    record = config.record or {}
    usual = surrogate.original_loss
    shown = {
        key: f"{value:.4f}" if isinstance(value, float) else value
        for key, value in record.items()
        if "alignment" not in key and key != "held_out"
    }
    default = type(config)()
    options = set(type(config).__annotations__) - {"task", "architecture", "metric", "record"}
    changed = {key: getattr(config, key) for key in options if getattr(config, key) != getattr(default, key)}
    details = {
        "metric": f"`{config.metric}`" if config.metric else "not recorded",
        "architecture": f"`{config.architecture}`, {surrogate.num_parameters():,} parameters",
        **{key: f"`{value}`" for key, value in sorted(changed.items())},
        **surrogate.network.learned(),
        **shown,
    }
    metric = _metric_name(surrogate)
    context = {
        "title": name.rpartition("/")[2] or name,
        "name": name,
        "task": surrogate.task,
        "metric": metric,
        "record": record,
        "original": usual.replace("_", " "),
        "usual": record.get(f"alignment_{usual}"),
        "picture": PICTURE if "held_out" in record else None,
        "details": {key.replace("_", " "): str(value).replace("|", "\\|") for key, value in details.items()},
    }
    loader = jinja2.PackageLoader("hf_reloss", "")
    template = jinja2.Environment(loader=loader, trim_blocks=True).get_template("model_card.md.jinja")
    made = {name: "".join(block(template.new_context(context))).strip() for name, block in template.blocks.items()}
    return {name: text + "\n" for name, text in made.items() if text}


def _with_sections(page: str, sections: dict[str, str]) -> str:
    """A page with its sections written anew; one that has none gets them at its end."""

    def marked(name: str, text: str) -> str:
        return f"<!-- section {name} {_mark(text)} -->\n{text}<!-- end of section -->\n"

    def anew(match: re.Match) -> str:
        name, mark, text = match.groups()
        edited = mark != _mark(text) or name not in sections
        return match[0] if edited else marked(name, sections[name])

    if SECTION.search(page):
        return SECTION.sub(anew, page)
    return "\n".join([*([page] if page.strip() else []), *(marked(name, text) for name, text in sections.items())])


def _mark(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:12]
