"""Prompts for vLLM, which reads embeddings on its completions route: prompt.safetensors, request.json, client.py.

vLLM has no adapters of soft prompts any more. What it takes instead (docs.vllm.ai, "Prompt Embedding Inputs"; its
`renderers/embed_utils.py`) is `prompt_embeds`: the base64 of what `torch.save` writes of one dense tensor [tokens,
hidden] in fp32, fp16 or bf16. For us that is cat([P, E[ids]]), as our engines read a text: no chat template, and the
answer goes on from the text. The server writes answers; it does not rank label words.
"""

from __future__ import annotations

import json
import logging
import shlex
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors

from bmtpt.artifacts.files import write_files_atomically
from bmtpt.artifacts.saved import Prompt
from bmtpt.errors import BackboneError, SettingsError
from bmtpt.tasks import saved_task
from bmtpt.tasks.spec import pieces, placeholders

log = logging.getLogger("bmtpt")

WEIGHTS = "prompt.safetensors"
REQUEST = "request.json"
CLIENT = "client.py"
README = "README.md"


def export_vllm(prompt: Prompt, folder: str | Path, base_model: str) -> None:
    """Write a prompt, the body of a request and a client that asks a vLLM server with them.

    Args:
        base_model: Hub id or folder of the model that the server runs.

    Raises:
        BackboneError: The prompt is for an encoder-decoder.
        SettingsError: The prompt is an ensemble.
        ArtifactError: The folder cannot be written.
    """
    card = prompt.card
    if not card.backbone.decoder_only:
        raise BackboneError(
            f"vLLM runs decoder-only models, and backbone '{card.backbone.name}' is an encoder-decoder; export it to "
            "peft, or serve it with bmtpt serve"
        )
    if len(prompt.prompts) > 1:
        raise SettingsError(
            f"vLLM writes answers, and this ensemble of {len(prompt.prompts)} prompts averages label probabilities; "
            "adapt with average 'none', or serve it with bmtpt serve"
        )
    task = saved_task(card.task_definition)
    if prompt.readouts or task.fixed_words:
        log.warning(
            "vLLM writes the likeliest answer: what is exported has no probabilities of label words, and not the "
            "prompt's readout or temperature"
        )
    tokens = card.answer_tokens or 10
    request = {"model": base_model, "prompt_embeds": _PLACE, "max_tokens": tokens, "temperature": 0.0}
    row = json.dumps(dict.fromkeys(placeholders(task.text), "a text"), ensure_ascii=False)
    weights = prompt.prompts[0].detach().to("cpu", torch.float32).clone()
    named = {
        "base": base_model,
        "tokens": len(weights),
        "task": task.name,
        "row": shlex.quote(row),
        "length": task.max_length,
    }
    files = {
        WEIGHTS: to_safetensors({"prompt": weights}, metadata={"format": "pt"}),
        REQUEST: (json.dumps(request, indent=2, ensure_ascii=False) + "\n").encode(),
        CLIENT: _CLIENT.replace("PIECES", repr(list(pieces(task.text))), 1).encode(),
        README: _README.format_map(named).encode(),
    }
    write_files_atomically(Path(folder), files)


_PLACE = "base64 of torch.save(cat([P, E[ids]]))"

_CLIENT = """import base64, io, json, sys
from pathlib import Path
from urllib.request import Request, urlopen

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

SERVER, FOLDER = "http://127.0.0.1:8000", Path(__file__).parent
TEXT = PIECES  # literal text, and the column that follows it
request = json.loads((FOLDER / "request.json").read_text(encoding="utf-8"))
tokenizer = AutoTokenizer.from_pretrained(request["model"])
embed = AutoModelForCausalLM.from_pretrained(request["model"], dtype="auto").get_input_embeddings()
prompt = load_file(FOLDER / "prompt.safetensors")["prompt"].to(embed.weight.dtype)
framed, plain = tokenizer.encode(":"), tokenizer.encode(":", add_special_tokens=False)
head = framed[: framed.index(plain[0])]  # what the tokenizer puts before a text


@torch.no_grad()
def embeddings(row):  # [tokens, hidden]
    text = "".join(words + ("" if column is None else str(row[column]).strip()) for words, column in TEXT)
    ids = head + tokenizer.encode(text.rstrip(), add_special_tokens=False, split_special_tokens=True)
    return torch.cat([prompt, embed(torch.tensor(ids))])


def answer(row):
    torch.save(embeddings(row), saved := io.BytesIO())
    body = {**request, "prompt_embeds": base64.b64encode(saved.getvalue()).decode()}
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(SERVER + "/v1/completions", json.dumps(body).encode(), headers)) as reply:
        return json.load(reply)["choices"][0]["text"].strip()


if __name__ == "__main__":
    print(answer(json.loads(sys.argv[1])))
"""

_README = """# A soft prompt for the task {task}, for vLLM

Made by bmtpt. `prompt.safetensors` holds the prompt, [{tokens}, hidden]; `request.json` the body of a request to the
completions route, in which `client.py` fills in the prompt and a row's text:

```sh
vllm serve {base} --enable-prompt-embeds
python client.py {row}
```

The client needs torch, transformers and safetensors. It loads the model for its table of embeddings alone, and does not
cut texts: bmtpt cuts those of more than {length} tokens. Use the completions route: on the chat route the prompt would
come after the role's header, where it was not trained. Turn `--enable-prompt-embeds` on for callers whom you trust:
vLLM's documentation warns that a tensor of a wrong shape can crash it.
"""
