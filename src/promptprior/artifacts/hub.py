"""Priors, prompts and results folders on the Hugging Face Hub: safetensors, JSON and text, of one named commit.

Nothing is fetched unless its repository was named. A repository is listed before anything of it is read: one that holds
a pickle, or more than MOST_BYTES, is refused, and files other than SHARED stay where they are.
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from promptprior.config.comparison_folder import PAGE, PLAN, RESULTS, SIMILARITY, WANTED
from promptprior.errors import ArtifactError

RepoType = Literal["model", "dataset"]  # a prior or prompt, or results
README = "README.md"
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors")
SHARED = {
    "model": ("promptprior.json", "prior.safetensors", "prompt.safetensors", *ADAPTERS, README),
    "dataset": (RESULTS, SIMILARITY, PLAN, WANTED, PAGE, README),
}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.dill", "*.npz")
EXAMPLES = re.compile(rb"<!-- examples: .*?<!-- end of examples -->", re.DOTALL)  # of the page: texts of test sets
MOST_BYTES = 2**30  # of all shared files of a repository
REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


def push_folder(
    folder: Path,
    repo: str,
    repo_type: RepoType,
    private: bool | None = None,
    license: str | None = None,
    widget: Sequence[str] = (),
) -> str:
    """Make the repository `repo`, OWNER/NAME, where it is not there, and commit a folder's shared files to it.

    Other files of the folder stay here, and so do the single examples of a report: texts of users are not shared
    unasked. Shared files of an earlier push that this folder has not are deleted there, since they would be read along
    with the new ones. `private` is None for what the account makes by default. The card says `license` in place of
    "other", and shows the texts of `widget` as examples. The token is that of `hf auth login`, or HF_TOKEN. Returns the
    hash of the commit. Raises ArtifactError when the Hub refuses, the card for one, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, ModelCard

    with hub_api(repo) as api:
        names = [name for name in SHARED[repo_type] if (folder / name).is_file()]
        paths = {name: str(folder / name) if name != README else (folder / name).read_bytes() for name in names}
        if README in paths:
            text = ModelCard((folder / README).read_text(encoding="utf-8"))
            if license:
                text.data["license"], text.data["license_name"] = license, None
            if widget:
                text.data["widget"] = [{"text": example} for example in widget]
            paths[README] = str(text).encode()
        if PAGE in paths:
            paths[PAGE] = EXAMPLES.sub(b"", (folder / PAGE).read_bytes())
        api.create_repo(repo, repo_type=repo_type, private=private, exist_ok=True)
        stale = {*api.list_repo_files(repo, repo_type=repo_type)} & {*SHARED[repo_type]} - {*names}
        operations: list[Any] = [CommitOperationDelete(name) for name in sorted(stale)]
        operations += [CommitOperationAdd(name, content) for name, content in paths.items()]
        message = f"Add {', '.join(names)}"
        return str(api.create_commit(repo, operations, commit_message=message, repo_type=repo_type).oid)


def fetch_folder(repo: str, folder: Path, repo_type: RepoType, revision: str | None = None) -> str:
    """Download the shared files of one commit of a repository into an empty folder, and return the commit's hash.

    `revision` is a commit, tag or branch; by default what the repository's main branch is now. Raises ArtifactError
    for a repository that is not there, holds pickles, too much, or nothing that this library reads.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.hf_api import RepoFile

    with hub_api(repo) as api:
        commit = str(api.repo_info(repo, revision=revision, repo_type=repo_type).sha)
        entries = api.list_repo_tree(repo, recursive=True, revision=commit, repo_type=repo_type)
        sizes = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
        where = f"{repo} at {commit[:12]}"
        if pickles := [path for path in sizes if any(fnmatch(path.lower(), pattern) for pattern in PICKLES)]:
            raise ArtifactError(
                f"{where} holds {', '.join(pickles[:3])}: files of this kind can run code when they are read, and no "
                "repository with one is read; ask its owner for safetensors"
            )
        wanted = [name for name in SHARED[repo_type] if name in sizes]
        if not set(wanted) - {README}:
            held = ", ".join(sorted(sizes)[:8]) or "nothing"
            raise ArtifactError(
                f"{where} ({repo_type}) holds {held}; expected {', '.join(SHARED[repo_type][:3])}: check the name, and "
                "--kind (artifact or results)"
            )
        if (total := sum(sizes[name] for name in wanted)) > MOST_BYTES:
            raise ArtifactError(f"{where}: {total:,} bytes; expected at most {MOST_BYTES:,}")
        snapshot_download(
            repo, repo_type=repo_type, revision=commit, allow_patterns=wanted, local_dir=folder, endpoint=api.endpoint
        )
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # notes of huggingface_hub about the download
    return commit


@contextmanager
def hub_api(repo: str) -> Iterator[Any]:
    """The Hub's interface for a repository; whatever goes wrong becomes an ArtifactError that names it."""
    from huggingface_hub import HfApi

    if not REPO.fullmatch(repo):
        raise ArtifactError(f"{repo[:200]!r} is no repository of the Hub; expected OWNER/NAME")
    try:
        yield HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    except ArtifactError:
        raise
    except Exception as error:  # of the network, of HTTP and of the Hub's own checks: two dozen kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ArtifactError(
            f"the Hub does not do that for {repo} ({reason}); check its name, your token (hf auth login, or HF_TOKEN) "
            "and the network"
        ) from error
