from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError
from safetensors.torch import save

from bmtpt.artifacts.card import BackboneCard, PosteriorCard, PromptCard, require_backbone
from bmtpt.artifacts.card import versions as installed_versions
from bmtpt.artifacts.files import write_text_atomically
from bmtpt.artifacts.folder import output_folder
from bmtpt.artifacts.readouts import to_tensors
from bmtpt.artifacts.saved import Posterior, Prompt, read_artifact
from bmtpt.errors import ArtifactError, BackboneError, TaskError
from bmtpt.posterior.readout import Readout, Spread
from bmtpt.sealed import sealed, unsealed
from bmtpt.tasks import saved_task
from damages import flipped

BACKBONE = BackboneCard(name="tiny", fingerprint="a" * 64, parameters=28_832, d_model=5, vocab_size=160)


def a_posterior(seed: int = 0) -> Posterior:
    card = PosteriorCard(
        backbone=BACKBONE,
        sources=("sst2", "mnli"),
        settings={"particles": 3, "kernel": "rbf"},
        diagnostics={"spread": 0.5, "loss": [1.0, 2.0]},
        steps=200,
        seconds=12.5,
        versions={"bmtpt": "0.1.0"},
        created="2026-11-21T09:00:00Z",
    )
    return Posterior(torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed)), card)


def a_prompt(members: int = 1) -> Prompt:
    card = PromptCard(
        backbone=BACKBONE,
        task="cb",
        task_definition={"name": "cb", "metric": "accuracy"},
        method="map",
        sources=("sst2",),
        posterior="b" * 64,
        settings={"prior_std": 1.0},
        selection={"step": 100},
        trained_parameters=20,
        steps=300,
        seconds=3.0,
        versions={},
        created="2026-11-21T09:00:00Z",
    )
    return Prompt(torch.randn(members, 4, 5, generator=torch.Generator().manual_seed(members)), card)


def sentence(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


def test_a_posterior_comes_back_bit_for_bit(tmp_path: Path):
    saved = a_posterior().save(tmp_path / "deep" / "run")
    loaded = Posterior.load(tmp_path / "deep" / "run")
    assert torch.equal(loaded.particles, a_posterior().particles)
    assert loaded.card == saved.card
    assert loaded.card.sources == ("sst2", "mnli")


@pytest.mark.parametrize("members", [1, 3])
def test_a_prompt_comes_back_bit_for_bit(tmp_path: Path, members: int):
    saved = a_prompt(members).save(tmp_path)
    loaded = read_artifact(tmp_path)
    assert isinstance(loaded, Prompt)
    assert torch.equal(loaded.prompts, a_prompt(members).prompts)
    assert loaded.card == saved.card


WORDS = ("yes", "no", "perhaps")


def with_readouts(members: int, linear: bool, spread: bool = False) -> Prompt:
    plain, generator = a_prompt(members), torch.Generator().manual_seed(9)
    definition = {"name": "cb", "text": "{text}", "label": "y", "labels": dict(enumerate(WORDS)), "file": "rows.csv"}
    own = tuple(
        Readout(
            0.5 * m,
            torch.randn(3, generator=generator).double(),
            torch.randn(3, 5).double() if linear else None,
            Spread(0.25 + m, *(torch.randn(*shape).double() for shape in ((5,), (5,), (4, 6)))) if spread else None,
        ).float32()
        for m in range(members)
    )
    return replace(plain, card=plain.card.model_copy(update={"task_definition": definition}), readouts=own)


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize(("members", "linear"), [(1, False), (1, True), (3, True)])
def test_a_prompt_comes_back_with_its_readouts(tmp_path: Path, members: int, linear: bool, spread: bool):
    saved = with_readouts(members, linear, spread)
    saved.save(tmp_path / "prompt")
    found = Prompt.load(tmp_path / "prompt").readouts
    assert len(found) == members
    for each, truth in zip(found, saved.readouts, strict=True):
        assert each.slope == truth.slope
        assert torch.equal(each.offset, truth.offset)
        assert (each.weights is None) == (not linear)
        assert not linear or torch.equal(each.weights, truth.weights)
        assert (each.spread is None) == (not spread)
        if spread:
            assert each.spread.offset == truth.spread.offset
            for part in ("mean", "scale", "directions"):
                assert torch.equal(getattr(each.spread, part), getattr(truth.spread, part))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"slope": torch.ones(2)}, r"slope has shape \[2\] where \[1\] is right"),
        ({"offset": torch.ones(1, 2)}, r"offset has shape \[1, 2\] where \[1, 3\] is right"),
        ({"weights": torch.ones(1, 3, 4)}, r"weights has shape \[1, 3, 4\] where \[1, 3, 5\] is right"),
        ({"slope": None}, r"slope has no tensor where \[1\] is right"),
        ({"spread_mean": None}, r"spread_mean has no tensor where \[1, 5\] is right"),
        ({"spread_scale": torch.ones(1, 4)}, r"spread_scale has shape \[1, 4\] where \[1, 5\] is right"),
        (
            {"spread_directions": torch.ones(1, 2, 5)},
            r"spread_directions has shape \[1, 2, 5\] where \[1, any, 6\] is right",
        ),
    ],
)
def test_a_readout_that_does_not_fit_its_task_is_refused(tmp_path: Path, tensors, words: str):
    saved = with_readouts(1, linear=True, spread=True)
    stored = {"prompts": saved.prompts, **to_tensors(saved.readouts), **tensors}
    folder = tmp_path / "prompt"
    saved.save(folder)
    content = save({name: tensor.float().contiguous() for name, tensor in stored.items() if tensor is not None})
    (folder / "prompt.safetensors").write_bytes(content)
    _edit_card(folder, weights_sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(ArtifactError, match=words):
        Prompt.load(folder)


def test_the_posterior_mean_is_the_sum_over_particles_divided_by_their_number():
    particles = a_posterior().particles.double()
    total = sum(particles[m] for m in range(3))
    torch.testing.assert_close(replace(a_posterior(), particles=particles).mean, total / 3, rtol=0, atol=1e-12)


def test_a_wrong_shape_is_caught_while_tests_run():
    with pytest.raises(TypeCheckError, match="M P D"):
        Posterior(torch.zeros(4, 5), a_posterior().card)


def test_the_card_and_the_unsaved_posterior_name_the_hash_of_the_file(tmp_path: Path):
    saved = a_posterior().save(tmp_path)
    on_disk = hashlib.sha256((tmp_path / "posterior.safetensors").read_bytes()).hexdigest()
    assert saved.card.weights_sha256 == a_posterior().weights_sha256 == on_disk
    assert json.loads((tmp_path / "card.json").read_text())["weights_sha256"] == on_disk


def test_saving_into_a_run_folder_keeps_its_other_files(tmp_path: Path):
    (tmp_path / "events.jsonl").write_text("{}\n")
    (tmp_path / "checkpoints").mkdir()
    a_posterior().save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "events.jsonl",
        "checkpoints",
        "card.json",
        "posterior.safetensors",
    }
    assert (tmp_path / "events.jsonl").read_text() == "{}\n"


def test_an_artifact_is_replaced_only_when_asked(tmp_path: Path):
    a_posterior(0).save(tmp_path)
    with pytest.raises(ArtifactError, match="holds a run already") as error:
        a_posterior(1).save(tmp_path)
    assert str(tmp_path) in sentence(error)
    assert torch.equal(Posterior.load(tmp_path).particles, a_posterior(0).particles)
    a_posterior(1).save(tmp_path, overwrite=True)
    assert torch.equal(Posterior.load(tmp_path).particles, a_posterior(1).particles)


def test_a_prompt_never_replaces_a_posterior(tmp_path: Path):
    a_posterior().save(tmp_path)
    with pytest.raises(ArtifactError, match="holds a posterior and not a prompt"):
        a_prompt().save(tmp_path, overwrite=True)
    assert isinstance(read_artifact(tmp_path), Posterior)


def test_a_posterior_is_not_loaded_as_a_prompt(tmp_path: Path):
    a_posterior().save(tmp_path)
    with pytest.raises(ArtifactError, match="holds a posterior where a prompt is needed"):
        Prompt.load(tmp_path)


def _edit_card(folder: Path, **changes: object) -> None:
    """Change fields of a card and seal it anew, so that only the later checks can object."""
    card = unsealed(json.loads((folder / "card.json").read_text()))
    (folder / "card.json").write_text(json.dumps(sealed({**card, **changes})))


def _edit_text(folder: Path, old: str, new: str) -> None:
    text = (folder / "card.json").read_text()
    assert old in text
    (folder / "card.json").write_text(text.replace(old, new, 1))


def _without_seal(folder: Path, **changes: object) -> None:
    card = unsealed(json.loads((folder / "card.json").read_text()))
    (folder / "card.json").write_text(json.dumps({**card, **changes}))


def _put_weights(folder: Path, content: bytes) -> None:
    """Replace the weights and make the card vouch for them, so that only the later checks can object."""
    (folder / "posterior.safetensors").write_bytes(content)
    _edit_card(folder, weights_sha256=hashlib.sha256(content).hexdigest())


def _truncate(folder: Path) -> None:
    path = folder / "posterior.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _flip_one_bit(folder: Path) -> None:
    path = folder / "posterior.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(bytes(content))


NAN = torch.full((3, 4, 5), float("nan"))
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights cut off": (_truncate, "SHA-256 differs"),
    "one bit flipped": (_flip_one_bit, "SHA-256 differs"),
    "weights missing": (lambda f: (f / "posterior.safetensors").unlink(), "cannot read .*posterior.safetensors"),
    "a pickle": (lambda f: _put_weights(f, pickle.dumps({"particles": [1.0]})), "not a safetensors file"),
    "half a file": (lambda f: _put_weights(f, save({"particles": torch.zeros(3, 4, 5)})[:-4]), "not a safetensors"),
    "no bytes": (lambda f: _put_weights(f, b""), "not a safetensors file"),
    "another tensor": (lambda f: _put_weights(f, save({"prompts": torch.zeros(3, 4, 5)})), r"\['prompts'\]"),
    "another width": (lambda f: _put_weights(f, save({"particles": torch.zeros(3, 4, 6)})), r"\[3, 4, 6\]"),
    "no particle axis": (lambda f: _put_weights(f, save({"particles": torch.zeros(4, 5)})), r"\[4, 5\]"),
    "no particles": (lambda f: _put_weights(f, save({"particles": torch.zeros(0, 4, 5)})), r"\[0, 4, 5\]"),
    "float64": (lambda f: _put_weights(f, save({"particles": torch.zeros(3, 4, 5).double()})), "torch.float64"),
    "not numbers": (lambda f: _put_weights(f, save({"particles": NAN})), "not finite"),
    "a setting edited": (lambda f: _edit_text(f, '"rbf"', '"imq"'), "SHA-256 differs"),
    "a digit edited": (lambda f: _edit_text(f, "12.5", "12.6"), "SHA-256 differs"),
    "the hash edited": (lambda f: _edit_text(f, '"sha256": "', '"sha256": "0'), "SHA-256 differs"),
    "the hash removed": (_without_seal, "its sha256 does not go with format 2"),
    "called version 1": (lambda f: _edit_card(f, format_version=1), "its sha256 does not go with format 1"),
    "another version": (lambda f: _edit_card(f, format_version=3), "format version 3 .* reads 1 and 2"),
    "no version": (lambda f: _edit_card(f, format_version=None), "format version None"),
    "another kind": (lambda f: _edit_card(f, kind=["posterior"]), "not the card of"),
    "an unknown field": (lambda f: _edit_card(f, colour="red"), "colour"),
    "a wrong field": (lambda f: _edit_card(f, steps="many"), "steps"),
    "a wrong setting": (lambda f: _edit_card(f, settings={"max_length": -1}), "settings: max_length"),
    "a wrong loss": (lambda f: _edit_card(f, diagnostics={"mean_nll": {"a": "b"}}), r"diagnostics: mean_nll\.a"),
    "no parameters": (lambda f: _edit_card(f, backbone=BACKBONE.model_dump() | {"parameters": 0}), "parameters"),
    "card cut off": (lambda f: (f / "card.json").write_text('{"kind": "poste'), "not JSON"),
    "card not text": (lambda f: (f / "card.json").write_bytes(b"\xff\xfe\x00"), "not JSON"),
    "card of many brackets": (lambda f: (f / "card.json").write_text("[" * 100_000), "not JSON"),
    "card no mapping": (lambda f: (f / "card.json").write_text("[]"), "not the card of"),
    "card missing": (lambda f: (f / "card.json").unlink(), "holds no posterior or prompt"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_artifact_is_refused_with_one_sentence(tmp_path: Path, damage: str):
    a_posterior().save(tmp_path)
    break_it, words = DAMAGE[damage]
    break_it(tmp_path)
    for load in (Posterior.load, read_artifact):
        with pytest.raises(ArtifactError, match=words) as error:
            load(tmp_path)
        assert str(tmp_path) in sentence(error)


def test_every_seventh_flipped_bit_of_a_card_is_refused_or_changes_nothing(tmp_path: Path):
    saved, path = a_prompt().save(tmp_path), tmp_path / "card.json"
    content, refused = path.read_bytes(), 0
    for bit in range(0, 8 * len(content), 7):
        path.write_bytes(flipped(content, [bit]))
        try:
            assert Prompt.load(tmp_path).card == saved.card
        except ArtifactError:
            refused += 1
    assert refused > 0.5 * 8 / 7 * len(content)  # much of the rest is white space


@pytest.mark.parametrize(
    ("particles", "words"),
    [
        (NAN, "not finite"),
        (torch.zeros(3, 4, 6), "6"),
        (torch.full((1, 1, 5), 1e300, dtype=torch.float64), "not finite"),
    ],
)
def test_a_posterior_that_could_not_be_loaded_is_not_saved(tmp_path: Path, particles: torch.Tensor, words: str):
    with pytest.raises(ArtifactError, match=words):
        Posterior(particles, a_posterior().card).save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_links_are_followed_because_the_hash_decides(tmp_path: Path):
    saved = a_posterior().save(tmp_path / "cache")
    (tmp_path / "linked").mkdir()
    for name in ("card.json", "posterior.safetensors"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "cache" / name)
    assert Posterior.load(tmp_path / "linked").card == saved.card
    a_posterior(1).save(tmp_path / "other")
    (tmp_path / "linked" / "posterior.safetensors").unlink()
    (tmp_path / "linked" / "posterior.safetensors").symlink_to(tmp_path / "other" / "posterior.safetensors")
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        Posterior.load(tmp_path / "linked")


def test_saving_replaces_a_link_and_leaves_what_it_points_to(tmp_path: Path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    for name in ("card.json", "posterior.safetensors"):
        (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
    a_posterior().save(tmp_path / "run", overwrite=True)
    assert (tmp_path / "precious").read_text() == "mine"
    assert torch.equal(Posterior.load(tmp_path / "run").particles, a_posterior().particles)


@pytest.mark.parametrize("name", ["card.json", "posterior.safetensors"])
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder", "a link to itself"])
def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path, name: str, kind: str):
    a_posterior().save(tmp_path)
    path = tmp_path / name
    path.unlink()
    {
        "a pipe": lambda: os.mkfifo(path),
        "a device": lambda: path.symlink_to("/dev/zero"),
        "a folder": path.mkdir,
        "a link to itself": lambda: path.symlink_to(path),
    }[kind]()
    with pytest.raises(ArtifactError):
        Posterior.load(tmp_path)


@pytest.mark.parametrize("kind", ["../posterior", "/etc/passwd", "posterior/../../x", "", None, 3, ["prompt"]])
def test_a_card_cannot_name_a_file_elsewhere(tmp_path: Path, kind: object):
    a_posterior().save(tmp_path)
    _edit_card(tmp_path, kind=kind)
    with pytest.raises(ArtifactError, match="is not the card of a posterior or a prompt"):
        Posterior.load(tmp_path)


def test_a_card_cannot_name_a_task_that_is_a_path(tmp_path: Path):
    a_prompt().save(tmp_path)
    _edit_card(tmp_path, task_definition={"name": "../../x", "text": "{a}", "label": "b", "labels": ["x", "y"]})
    with pytest.raises(TaskError, match="name"):
        saved_task(Prompt.load(tmp_path).card.task_definition)


def test_a_diagnostic_that_is_not_a_number_becomes_null(tmp_path: Path):
    posterior = a_posterior()
    card = posterior.card.model_copy(update={"diagnostics": {"ksd": float("nan"), "loss": [float("inf")]}})
    replace(posterior, card=card).save(tmp_path)
    assert Posterior.load(tmp_path).card.diagnostics == {"ksd": None, "loss": [None]}


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: the write fails half-way, as it does on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_gives_one_sentence_and_leaves_nothing(tmp_path: Path):
    with disk_of(100), pytest.raises(ArtifactError, match="cannot write") as error:
        a_posterior().save(tmp_path / "run")
    assert str(tmp_path / "run") in sentence(error)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_artifact_whole(tmp_path: Path):
    a_posterior(0).save(tmp_path)
    with disk_of(100), pytest.raises(ArtifactError, match="cannot write"):
        a_posterior(1).save(tmp_path, overwrite=True)
    assert torch.equal(Posterior.load(tmp_path).particles, a_posterior(0).particles)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_place_that_cannot_hold_a_folder_gives_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ArtifactError, match="cannot write") as error:
            a_posterior().save(place)
        assert str(place) in sentence(error)


@contextmanager
def killed_before_rename(number: int) -> Iterator[None]:
    rename, seen = Path.replace, []

    def dying(self: Path, target: Path) -> Path:
        seen.append(target)
        if len(seen) == number:
            raise KeyboardInterrupt
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        yield


def test_a_run_killed_between_the_two_renames_leaves_a_pair_that_is_refused(tmp_path: Path):
    a_posterior(0).save(tmp_path)
    with killed_before_rename(2), pytest.raises(KeyboardInterrupt):
        a_posterior(1).save(tmp_path, overwrite=True)
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        Posterior.load(tmp_path)


def test_a_first_save_killed_between_the_two_renames_can_be_repeated(tmp_path: Path):
    with killed_before_rename(2), pytest.raises(KeyboardInterrupt):
        a_posterior().save(tmp_path)
    with pytest.raises(ArtifactError, match="holds no posterior or prompt"):
        read_artifact(tmp_path)
    a_posterior().save(tmp_path)
    assert torch.equal(Posterior.load(tmp_path).particles, a_posterior().particles)


def test_written_files_have_the_permissions_of_ordinary_files(tmp_path: Path):
    a_posterior().save(tmp_path)
    (tmp_path / "ordinary").write_text("")
    expected = (tmp_path / "ordinary").stat().st_mode
    assert (tmp_path / "card.json").stat().st_mode == expected
    assert (tmp_path / "posterior.safetensors").stat().st_mode == expected


def test_an_artifact_of_another_backbone_is_refused_by_both_names():
    require_backbone(BACKBONE, BACKBONE.model_copy(update={"name": "any name for the same weights"}))
    with pytest.raises(BackboneError) as error:
        require_backbone(BACKBONE, BACKBONE.model_copy(update={"fingerprint": "c" * 64, "name": "google/t5-v1_1-base"}))
    assert "'tiny'" in sentence(error)
    assert "'google/t5-v1_1-base'" in sentence(error)


def test_versions_name_what_decides_a_runs_numbers():
    found = installed_versions()
    assert set(found) == {"bmtpt", "torch", "transformers", "python"}
    assert found["torch"] == torch.__version__


def test_text_files_are_replaced_whole(tmp_path: Path):
    path = tmp_path / "new" / "state.txt"
    write_text_atomically(path, "σ")
    with disk_of(10), pytest.raises(ArtifactError, match=r"cannot write .*state.txt"):
        write_text_atomically(path, "x" * 1000)
    assert path.read_text(encoding="utf-8") == "σ"
    assert len(list(path.parent.iterdir())) == 1


def test_an_unfinished_run_is_not_overwritten_unasked(tmp_path: Path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"holds a run already \(checkpoint.safetensors\)"):
        a_posterior().save(tmp_path)
    a_posterior().save(tmp_path, overwrite=True)


@pytest.mark.parametrize("files", [[], ["events.jsonl"]])
def test_a_new_output_folder_is_removed_only_if_nothing_was_written_to_it(tmp_path: Path, files: list[str]):
    def fail() -> None:
        with output_folder(str(tmp_path / "deep" / "run"), "prompt") as made:
            for name in files:
                (made / name).write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "deep" / "run").exists() == bool(files)


def test_a_folder_with_tuned_weights_takes_no_prompt(tmp_path: Path):
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="holds tuned weights and not a prompt"), output_folder(tmp_path, "prompt"):
        pass
