"""`bmtpt serve` refuses what it cannot serve in one sentence, before a model is loaded."""

from __future__ import annotations

import builtins

import pytest


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "no prompt says which backbone to load; give --prompts DIR"),
        (["--prompts", "no-such"], "cannot read no-such: no such file"),
        (["--prompts", "{post}"], "holds a posterior where a prompt is needed"),
        (["--prompts", "{prompt}", "--host", "0.0.0.0"], "host '0.0.0.0' lets other machines in"),
        (["--prompts", "{prompt}", "--port", "70000"], "option 'port' cannot be '70000'"),
        (["--prompts", "{prompt}", "--queue", "0"], "option 'queue' cannot be '0'"),
        (["--prompts", "{prompt}", "--token-file", "no-such"], "cannot read no-such"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(options, sentence, bmtpt, runs):
    ran = bmtpt("serve", *[option.format(post=runs / "post", prompt=runs / "prompt") for option in options])
    assert ran.code == 2
    assert sentence in ran.err
    assert len(ran.err.splitlines()) == 1


def test_without_the_extra_the_pip_command_is_told(bmtpt, runs, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name.startswith("bmtpt.serve") and "run" in (rest[2] or ()):
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    ran = bmtpt("serve", "--prompts", runs / "prompt")
    assert ran.code == 2
    assert "serving needs uvicorn; run: pip install 'bmtpt[serve]'" in ran.err


def test_every_setting_is_an_option_with_its_default(bmtpt):
    ran = bmtpt("serve", "--show-config", "--max-batch", "7")
    assert ran.code == 0
    assert "max_batch: 7" in ran.out
    assert "host: 127.0.0.1" in ran.out
    assert "precision: float32" in ran.out  # in bfloat16 answers depend on the rows that share their pass
