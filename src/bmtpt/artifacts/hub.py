"""Posteriors and prompts on the Hugging Face hub: a repository is an artifact's folder, with a README of its card.

`hub:user/name`, or `hub:user/name@revision`, stands for a folder wherever an artifact is read, and so does the name of
a posterior that the package brings (`published`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bmtpt.artifacts.card import Card, PosteriorCard, PromptCard, read_card
from bmtpt.artifacts.folder import CARD
from bmtpt.errors import ArtifactError
from bmtpt.hub import hub_or_cache

PREFIX = "hub:"
README = "README.md"
LIBRARY = "bmtpt"
PUBLISHED = Path(__file__).with_name("published")


def published() -> tuple[str, ...]:
    """Return the names of the posteriors that the package brings: those of their backbones."""
    return tuple(sorted(place.name for place in PUBLISHED.iterdir() if (place / CARD).is_file()))


def local(folder: str | Path) -> Path:
    """Return a folder as it is, or, of a name on the hub, the folder in the hub's cache that holds its files.

    A name in `published` stands for that posterior's folder, unless a folder of that name is there.

    Raises:
        ArtifactError: The hub has no such repository or revision, or does not answer.
    """
    if str(folder) in published() and not Path(folder).exists():
        return PUBLISHED / folder
    if not on_hub(folder):
        return Path(folder)
    name, _, revision = str(folder).removeprefix(PREFIX).partition("@")
    return pulled(name, revision or None)


def on_hub(folder: str | Path) -> bool:
    """Tell whether a name stands for a repository on the hub."""
    return str(folder).startswith(PREFIX)


def pulled(name: str, revision: str | None = None, token: str | None = None) -> Path:
    """Return a folder of the hub's cache with a repository's card and weights; nothing else of it is fetched.

    Args:
        name: `user/name`.
        revision: Branch, tag or commit; None takes the default branch.
        token: None takes the one that `hf auth login` or HF_TOKEN has left.

    Raises:
        ArtifactError: As `local`.
    """
    from huggingface_hub import snapshot_download

    wanted = [CARD, "*.safetensors"]
    with hub_or_cache() as answers, _told(name, revision, answers):
        found = snapshot_download(
            name, revision=revision, token=token, allow_patterns=wanted, local_files_only=not answers
        )
    if not (Path(found) / CARD).is_file():
        raise ArtifactError(f"{name} on the hub holds no {CARD}, so it is no artifact of bmtpt; check the name")
    return Path(found)


def pushed(
    folder: str | Path,
    name: str,
    *,
    facts: Mapping[str, str],
    scores: Mapping[str, float] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str | None = None,
) -> str:
    """Upload an artifact's card and weights with a README, and return the address of the repository.

    Args:
        folder: Holds the artifact.
        name: `user/name`; a repository that does not exist is made.
        facts: What the README tells of the artifact (`describe_artifact`).
        scores: Metrics on the test rows of a prompt's task; they go into the README and its model index.
        private: Whether a new repository is private; None takes the account's setting.
        revision: An existing branch; None takes the default one.
        message: Of the commit.

    Raises:
        ArtifactError: The folder holds no artifact, or the hub refuses or does not answer.
    """
    from huggingface_hub import HfApi

    card = read_card(Path(folder), PosteriorCard, PromptCard)
    files = {CARD: (Path(folder) / CARD).read_bytes()}
    weights = f"{card.kind}.safetensors"
    files[weights] = (Path(folder) / weights).read_bytes()
    files[README] = readme(card, name, facts, scores or {}).encode()
    api = HfApi(token=token, library_name=LIBRARY)
    with hub_or_cache() as answers, _told(name, revision, answers), tempfile.TemporaryDirectory() as place:
        if not answers:
            raise ArtifactError("the hub does not answer, so nothing was uploaded; try again")
        for file, content in files.items():
            (Path(place) / file).write_bytes(content)
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=place,
            revision=revision,
            commit_message=message or f"Upload a {card.kind} of {LIBRARY}",
        )
    return str(address)


@contextmanager
def _told(name: str, revision: str | None, answers: bool) -> Iterator[None]:
    """Say in one sentence what the hub refuses."""
    from huggingface_hub import errors

    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise ArtifactError(f"{name} on the hub has no revision '{revision}'; leave it out for the newest") from error
    except errors.RepositoryNotFoundError as error:
        raise ArtifactError(
            f"the hub has no repository '{name}' that you may see; check the name, or log in (hf auth login)"
        ) from error
    except errors.HFValidationError as error:
        raise ArtifactError(f"'{name}' is no name of a repository; give user/name") from error
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise ArtifactError(f"the hub does not let you write to '{name}'; log in (hf auth login)") from error
        if answers:
            raise ArtifactError(f"the hub refuses '{name}': {str(error).splitlines()[0]}") from error
        raise ArtifactError(
            f"'{name}' is not in the hub's cache, and the hub does not answer; try again, or give a folder"
        ) from error


def readme(card: Card, name: str, facts: Mapping[str, str], scores: Mapping[str, float]) -> str:
    """Return the README of a repository: what the hub indexes, what the artifact is, and how to use it."""
    from huggingface_hub import EvalResult, ModelCardData

    task = card.task if isinstance(card, PromptCard) else ""
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=task,
            dataset_name=task,
            dataset_split="test",
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in scores.items()
    ]
    base = card.backbone.name
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag="text-classification" if task else None,
        base_model=base if "/" in base and not Path(base).is_absolute() else None,
        tags=[LIBRARY, "soft-prompt", card.kind],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return _README.format(
        index=data.to_yaml(),
        title=name,
        kind=_KINDS[card.kind].format(backbone=base, task=task),
        facts="\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items()),
        scores="".join(f"| {metric}, test rows | {value:.4g} |\n" for metric, value in scores.items()),
        use=_USES[card.kind].format(name=name, task=task),
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


_KINDS = {
    "posterior": "A posterior over soft prompts for the frozen model `{backbone}`: adapt it to a task of yours.",
    "prompt": "A soft prompt for the frozen model `{backbone}`, which answers the task `{task}`.",
}
_USES = {
    "posterior": """bmtpt adapt --posterior hub:{name} --target task.yaml --out prompt""",
    "prompt": """echo "a text" | bmtpt predict --prompt hub:{name}
bmtpt serve --prompts hub:{name}""",
}
_README = """---
{index}
---

# {title}

{kind} Made with bmtpt, Bayesian Multi-Task Prompt Tuning ([arXiv 2402.08594](https://arxiv.org/abs/2402.08594)).
The files are safetensors and JSON, and reading them runs no code.

```sh
{use}
```

| | |
|---|---|
{facts}
{scores}"""
