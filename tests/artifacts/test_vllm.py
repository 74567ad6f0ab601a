"""vLLM itself does not run here: its part is Hugging Face's model, asked with the tensor that the client makes."""

from __future__ import annotations

import base64
import io
import json
import runpy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from bmtpt.artifacts.card import PromptCard, backbone_card
from bmtpt.artifacts.saved import Prompt
from bmtpt.artifacts.vllm import export_vllm
from bmtpt.backbone import Backbone
from bmtpt.backbone.engine import Query
from bmtpt.errors import BackboneError, SettingsError
from bmtpt.posterior.readout import Readout
from bmtpt.tasks.spec import TaskSpec
from bmtpt.tasks.text import to_examples
from bmtpt.tasks.tokens import tokenise, tokenise_answer
from tiny import write_llama

SENTIMENT = TaskSpec(name="sentiment", text="{{a}} sentence: {the text} ", label="y", labels=["negative", "positive"])
ROWS = [{"the text": text, "y": "positive"} for text in ("the film is good .", " a </s> <|endoftext|> b ", "")]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def backbone(request: Any, tiny_gpt2: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A model whose tokenizer puts nothing in front of a text, and one that puts <s> there."""
    if request.param == "gpt2":
        return tiny_gpt2
    folder = str(write_llama(tmp_path_factory.mktemp("tiny_llama")))
    return Backbone.from_pretrained(folder, precision="float32", device="cpu")


def a_prompt(backbone: Backbone, members: int = 1, task: TaskSpec = SENTIMENT) -> Prompt:
    rows = backbone.embed(torch.randint(3, 100, (members, 5), generator=torch.Generator().manual_seed(3)))
    card = PromptCard(
        backbone=backbone_card(backbone), task=task.name, task_definition=task.model_dump(mode="json"), method="bmtpt",
        sources=(), posterior=None, settings={}, selection={}, trained_parameters=1, steps=1, seconds=1.0, versions={},
        created="2026-11-30T09:00:00Z", answer_tokens=6,
    )  # fmt: skip
    return Prompt(rows, card)


def exported(backbone: Backbone, folder: Path) -> tuple[Prompt, dict[str, Any]]:
    prompt = a_prompt(backbone)
    export_vllm(prompt, folder, backbone.name)
    return prompt, runpy.run_path(str(folder / "client.py"))


@contextmanager
def stand_in(backbone: Backbone) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve the completions route as vLLM's `safe_load_prompt_embeds` reads it; greedy answers by transformers."""
    asked: list[dict[str, Any]] = []

    class Completions(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, **body})
            tensor = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"], validate=True)), weights_only=True)
            assert tensor.ndim == 2
            assert body["temperature"] == 0
            ids = backbone.model.generate(
                inputs_embeds=tensor[None], max_new_tokens=body["max_tokens"], do_sample=False
            )
            text = backbone.tokenizer.decode(ids[0], skip_special_tokens=True)
            content = json.dumps({"choices": [{"text": text}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Completions)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def test_the_clients_tensor_gives_the_label_scores_of_our_engine(backbone: Backbone, tmp_path: Path):
    prompt, client = exported(backbone, tmp_path)
    texts = tokenise(backbone, [each for row in ROWS for each in to_examples(SENTIMENT, row, training=False)], 64)
    answers = [tokenise_answer(backbone, word) for word in SENTIMENT.label_words]
    wanted = backbone.engine.answer_log_likelihoods(prompt.prompts, texts.batch.inputs, answers)[0]
    for row, own in zip(ROWS, wanted, strict=True):
        start = client["embeddings"](row)
        for answer, score in zip(answers, own, strict=True):
            whole = torch.cat([start, backbone.embed(answer)])
            logits = backbone.model(inputs_embeds=whole[None]).logits[0, len(start) - 1 : -1]
            found = logits.log_softmax(-1)[torch.arange(len(answer)), answer].sum()
            torch.testing.assert_close(found, score, rtol=1e-5, atol=1e-4)
    unprompted = backbone.engine.answer_log_likelihoods(backbone.engine.no_prompt, texts.batch.inputs, answers)[0]
    assert (unprompted - wanted).abs().max() > 0.1  # the prompt matters on this model


def test_a_server_that_is_asked_by_the_client_writes_what_our_engine_writes(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prompt, client = exported(backbone, tmp_path)
    (example,) = to_examples(SENTIMENT, ROWS[0], training=False)
    (ids,) = tokenise(backbone, [example], 64).batch.inputs
    (wanted,) = backbone.engine.answer([Query(prompt.prompts[0], ids, max_new_tokens=6)])
    with stand_in(backbone) as (address, asked):
        monkeypatch.setitem(client["answer"].__globals__, "SERVER", address)
        assert client["answer"](ROWS[0]) == wanted.text
    ((sent),) = asked
    assert (sent.pop("path"), sent.keys()) == (
        "/v1/completions",
        json.loads((tmp_path / "request.json").read_text()).keys(),
    )
    assert (sent["model"], sent["max_tokens"]) == (backbone.name, 6)


def test_the_readme_starts_the_server_that_the_client_asks(tiny_gpt2: Backbone, tmp_path: Path):
    export_vllm(a_prompt(tiny_gpt2), tmp_path, "org/model")
    text = (tmp_path / "README.md").read_text()
    assert "vllm serve org/model --enable-prompt-embeds" in text
    assert """python client.py '{"the text": "a text"}'""" in text


def test_what_vllm_cannot_answer_with_is_refused_or_said(
    tiny_gpt2: Backbone, tiny_backbone: Backbone, tmp_path, caplog
):
    with pytest.raises(BackboneError, match=r"vLLM runs decoder-only models, and backbone .* is an encoder-decoder"):
        export_vllm(a_prompt(tiny_backbone), tmp_path, "t5")
    with pytest.raises(SettingsError, match="ensemble of 2 prompts averages label probabilities"):
        export_vllm(a_prompt(tiny_gpt2, 2), tmp_path, "gpt2")
    assert not list(tmp_path.iterdir())
    free = TaskSpec(name="free", text="{a}", answers="b")
    export_vllm(a_prompt(tiny_gpt2, task=free), tmp_path, "gpt2")
    assert not caplog.records
    read_out = replace(a_prompt(tiny_gpt2), readouts=(Readout(1.0, torch.ones(2).double()),))
    export_vllm(read_out, tmp_path, "gpt2")
    assert "no probabilities of label words, and not the prompt's readout" in caplog.text
