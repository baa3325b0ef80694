"""Surrogates on the Hub: publishing them, finding them, and those that come with this package."""

import contextlib
import difflib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelInfo, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RevisionNotFoundError
from transformers.utils import CONFIG_NAME

from . import ORGANISATION, PAGE, TAG
from .pages import task_tag


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
    return _come_along().get(short)


def nearest_included(name: str) -> str | None:
    """The surrogate that comes with this package of which the name is nearly that; None if there is none."""
    near = difflib.get_close_matches(name.lower(), [f"{ORGANISATION}/{short}" for short in _come_along()], n=1)
    return near[0] if near else None


def _come_along() -> dict[str, Path]:
    """The folders of the surrogates that come with this package, by their names without the organisation."""
    here = Path(__file__).parents[1]
    places = (here.parent / "hub_cards", here / "hub_cards")  # in a checkout, or installed
    return {file.parent.name: file.parent for place in places for file in place.glob(f"*/{CONFIG_NAME}")}


def publish(
    write: Callable[[str, str], None],
    repo_id: str,
    *,
    commit_message: str,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Publishes a folder with its page, in one commit: all of it, or if anything fails nothing.

    Args:
        write: puts the files into a folder, for a repository: what is published there as the page lies in it already.
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
    with _failing_as(f"Nothing was published to {repo_id}"), tempfile.TemporaryDirectory() as folder:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with contextlib.suppress(RemoteEntryNotFoundError, RevisionNotFoundError):  # of a new repository
            published = hf_hub_download(repo_id, PAGE, revision=revision, token=token, force_download=True)
            shutil.copy(published, Path(folder) / PAGE)
        write(folder, repo_id)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    return commit.pr_url or commit.commit_url


@contextlib.contextmanager
def _failing_as(what: str) -> Iterator[None]:
    """Raises what goes wrong on the way to the Hub as an OSError, which says what that means."""
    # Of a large file that did not arrive the client raises a RuntimeError, and of a network that is not there with
    # the errors of its HTTP library, from which its own are derived, too.
    try:
        yield
    except (RuntimeError, ValueError, *HfHubHTTPError.__bases__) as error:  # type: ignore[misc]  # all exceptions
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
    tags = [tag for tag in (TAG, metric, task and task_tag(task)) if tag]
    with _failing_as("The surrogates could not be listed"):
        return list(HfApi(token=token).list_models(filter=tags, author=author))
