"""Decoder-only models, and encoder-decoders beside T5, from a folder to a prediction."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bmtpt.artifacts.card import BackboneCard
from bmtpt.artifacts.inspect import describe_artifact, nearest_tokens
from bmtpt.artifacts.peft import export_peft, import_peft
from bmtpt.artifacts.saved import Prompt
from bmtpt.backbone import Backbone
from bmtpt.backbone.decoder_only.shared_prompt import CausalEngine
from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.errors import ArtifactError, BackboneError
from bmtpt.inference.predict import predict
from bmtpt.inference.score import ANSWER_TOKENS, make_scorer
from bmtpt.methods.registry import get_method
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.stages.evaluate import evaluate
from bmtpt.stages.source import backbone_card, learn
from bmtpt.stages.target import adapt, fit_method
from bmtpt.tasks import few_shot
from bmtpt.tasks.tokens import tokenise, tokenise_answer
from bmtpt.types import Example, TokenBatch
from tiny import END, byte_level_bpe, write_llama, write_model, write_tokenizer

QUICK = {"steps": 3, "evaluate_every": 2, "batch_size": 2, "learning_rate": 0.1}
LEARNING = LearnSettings(**QUICK, particles=2, prompt_length=4, validation_rows=4)
ADAPTING = AdaptSettings(**QUICK, prior_std_grid=(0.5, 5.0))


@pytest.fixture
def copy(tiny_gpt2_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_gpt2_folder, tmp_path / "copy"))


def load(folder: Path, precision: Any = "float32") -> Backbone:
    return Backbone.from_pretrained(str(folder), precision=precision, device="cpu")


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


# Loading


def test_a_decoder_only_backbone_is_frozen_without_dropout_and_needs_no_padding_token(tiny_gpt2: Backbone):
    assert tiny_gpt2.decoder_only
    assert tiny_gpt2.tokenizer.pad_token is None
    assert not any(weight.requires_grad for weight in tiny_gpt2.model.parameters())
    ids = torch.tensor([[5, 6, 7]])
    tiny_gpt2.model.train()
    first, second = (tiny_gpt2.model(ids).logits for _ in range(2))
    tiny_gpt2.model.eval()
    assert torch.equal(first, second)


def test_the_head_gets_one_block_of_memory_where_only_the_last_logits_are_kept(tiny_gpt2: Backbone):
    seen: list[bool] = []
    handle = tiny_gpt2.model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].is_contiguous()))
    texts, prompts = list(torch.arange(3, 15).view(3, 4)), tiny_gpt2.embed(torch.arange(4)).view(2, 2, -1)
    for engine in (tiny_gpt2.engine, replace(tiny_gpt2, engine_name="generic").engine):
        engine.losses(prompts, TokenBatch(texts, [row[:2] for row in texts]))
    handle.remove()
    assert seen
    assert all(seen)


def test_one_models_copies_have_one_fingerprint(tiny_gpt2: Backbone, copy: Path):
    change_config(copy, attn_pdrop=0.3, transformers_version="0.0", use_cache=False, eos_token_id=3, summary_type="x")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "summary_type"}))
    assert {load(copy).fingerprint, load(copy, "bfloat16").fingerprint} == {tiny_gpt2.fingerprint}


@pytest.mark.parametrize("change", [{"n_head": 3}, {"layer_norm_epsilon": 1e-3}, {"activation_function": "relu"}])
def test_a_config_that_changes_the_function_changes_the_fingerprint(tiny_gpt2: Backbone, copy: Path, change: Any):
    change_config(copy, **change)
    other, ids = load(copy), torch.arange(40)[None]
    assert not torch.allclose(other.model(ids).logits, tiny_gpt2.model(ids).logits, atol=1e-9)
    assert other.fingerprint != tiny_gpt2.fingerprint


def test_a_changed_weight_changes_the_fingerprint(tiny_gpt2: Backbone, copy: Path):
    weights = load_file(copy / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"][0, 0] += 0.5
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert load(copy).fingerprint != tiny_gpt2.fingerprint


def test_a_model_whose_tokens_see_what_follows_is_refused(tiny_gpt2_folder: Path, tmp_path: Path):
    from transformers import XLNetConfig

    config = XLNetConfig(vocab_size=60, d_model=24, n_layer=1, n_head=2, d_inner=30)
    write_model(tmp_path, config, "AutoModelForCausalLM")
    with pytest.raises(BackboneError, match=r"is a xlnet model that, .* does not predict the next token"):
        load(tmp_path)


def test_a_tokenizer_without_an_end_is_refused(copy: Path):
    write_tokenizer(copy, byte_level_bpe(), unk_token=END)
    with pytest.raises(BackboneError, match="has no end-of-sequence token"):
        load(copy)


def test_frequent_tokens_of_bpe_are_its_first_merges_without_the_lone_bytes(tiny_gpt2: Backbone):
    tokens = tiny_gpt2.tokenizer.convert_ids_to_tokens(tiny_gpt2.frequent_ids().tolist())
    assert all(len(token) > 1 for token in tokens)
    assert END not in tokens
    assert len(tokens) == len(tiny_gpt2.tokenizer) - 256 - 1
    assert tiny_gpt2.frequent_ids()[0] == 256


# Texts and answers


def test_an_answer_goes_on_from_its_text_as_the_tokenizer_reads_both_in_one(tiny_gpt2: Backbone):
    rows = tokenise(tiny_gpt2, [Example("sentiment sentence: ", "the film is good .", " ", "positive")], 64)
    text, answer = rows.batch.inputs[0].tolist(), rows.batch.targets[0].tolist()
    assert [*text, *answer[:-1]] == tiny_gpt2.tokenizer("sentiment sentence: the film is good . positive").input_ids
    assert answer[-1] == tiny_gpt2.tokenizer.eos_token_id
    assert tiny_gpt2.tokenizer.eos_token_id not in text
    assert tiny_gpt2.tokenizer.decode(answer[:-1]) == " positive"


def test_a_start_token_stands_in_front_of_the_text_and_words_are_marked_once(tmp_path: Path):
    backbone = load(write_llama(tmp_path))
    rows = tokenise(backbone, [Example("", "the film is good .", "", "positive")], 64)
    text, answer = rows.batch.inputs[0].tolist(), rows.batch.targets[0].tolist()
    assert [*text, *answer[:-1]] == backbone.tokenizer("the film is good . positive").input_ids
    assert (text[0], answer[-1]) == (1, 2)
    assert backbone.tokenizer.convert_ids_to_tokens(answer[:1])[0].startswith("▁p")


def test_a_long_text_is_cut_in_its_context_to_the_limit(tiny_gpt2: Backbone):
    rows = tokenise(tiny_gpt2, [Example("where: ", "the dog is good . " * 20, " is ben", "x")], 20)
    assert (rows.cut, len(rows.batch.inputs[0])) == (1, 20)
    assert tiny_gpt2.tokenizer.decode(rows.batch.inputs[0]).endswith(" is ben")


def test_an_encoder_decoders_answer_is_framed_as_its_tokenizer_frames_a_text(bart: Backbone):
    assert tokenise_answer(bart, "positive").tolist() == bart.tokenizer("positive").input_ids
    rows = tokenise(bart, [Example("", "good", "", "positive")], 64)
    assert rows.batch.inputs[0].tolist() == bart.tokenizer("good").input_ids
    assert rows.batch.inputs[0].tolist()[0] == 2  # its tokenizer puts a start in front


# The method


def test_a_posterior_is_learned_and_adapted_and_its_prompt_answers(
    tiny_gpt2: Backbone, tiny_tasks: Any, tmp_path: Path
):
    assert type(tiny_gpt2.engine) is CausalEngine
    posterior = learn(tiny_gpt2, [tiny_tasks["pairs"], tiny_tasks["answers"]], LEARNING, folder=tmp_path / "post")
    prompt = adapt(posterior, tiny_tasks["sentiment"], ADAPTING, backbone=tiny_gpt2, folder=tmp_path / "prompt")
    test = tiny_tasks["sentiment"].test
    found = evaluate(tiny_gpt2, prompt, test)
    assert found.probabilities is not None
    assert torch.allclose(found.probabilities.sum(dim=1), torch.ones(len(test)))
    answers = list(predict(tiny_gpt2, Prompt.load(tmp_path / "prompt"), test))
    assert [answer["label"] for answer in answers] == found.predictions
    assert len(evaluate(tiny_gpt2, prompt, test, scorer="generate").predictions) == len(test)
    assert "2 × 4 × 24" in describe_artifact(posterior)["shape"]
    assert len(list(nearest_tokens(prompt, tiny_gpt2, 2))) == 2


def test_a_free_answer_is_generated(tiny_gpt2: Backbone, tiny_tasks: Any):
    posterior = learn(tiny_gpt2, [tiny_tasks["pairs"]], LEARNING)
    prompt = adapt(posterior, tiny_tasks["answers"], ADAPTING, backbone=tiny_gpt2)
    test = tiny_tasks["answers"].test
    inputs = tokenise(tiny_gpt2, test, 256).batch.inputs
    written = [answer["label"] for answer in predict(tiny_gpt2, prompt, test)]
    generic = replace(tiny_gpt2, engine_name="generic").engine
    assert written == generic.generate(prompt.prompts, inputs, ANSWER_TOKENS)[0]
    assert evaluate(tiny_gpt2, prompt, test).predictions == written


def test_another_encoder_decoder_runs_through_the_generic_engine(bart: Backbone, tiny_tasks: Any):
    assert type(bart.engine) is HuggingFaceEngine
    posterior = learn(bart, [tiny_tasks["pairs"]], LEARNING)
    prompt = adapt(posterior, tiny_tasks["sentiment"], ADAPTING, backbone=bart)
    test = tiny_tasks["sentiment"].test
    ranked = evaluate(bart, prompt, test)
    assert len(ranked.predictions) == len(test)
    assert len(evaluate(bart, prompt, test, scorer="generate").predictions) == len(test)


@pytest.fixture(scope="module")
def bart(tiny_t5_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A random BART with beams in its generation settings, and the tiny T5's words in a frame of <unk> and </s>."""
    from tokenizers import Tokenizer, processors
    from transformers import BartConfig

    folder = tmp_path_factory.mktemp("tiny_bart")
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 30, "decoder_ffn_dim": 30}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "decoder_start_token_id": 1}
    config = BartConfig(vocab_size=160, d_model=24, encoder_layers=1, decoder_layers=1, **heads, **tokens)
    write_model(folder, config, "AutoModelForSeq2SeqLM")
    (folder / "generation_config.json").write_text(json.dumps({**tokens, "num_beams": 4, "no_repeat_ngram_size": 1}))
    words = Tokenizer.from_file(str(tiny_t5_folder / "tokenizer.json"))
    frame = [("<unk>", 2), ("</s>", 1)]
    words.post_processor = processors.TemplateProcessing(single="<unk> $A </s>", special_tokens=frame)
    write_tokenizer(folder, words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return load(folder)


def test_greedy_means_greedy_whatever_the_folders_generation_settings_say(bart: Backbone):
    from transformers.modeling_outputs import BaseModelOutput

    engine, text = HuggingFaceEngine(bart), torch.tensor([2, 30, 40, 1])
    prompt = torch.randn(1, 3, 24, generator=torch.Generator().manual_seed(0))
    states = bart.model.get_encoder()(inputs_embeds=torch.cat([prompt, bart.embed(text)[None]], dim=1))
    ids = [bart.model.config.decoder_start_token_id]
    while len(ids) < 7 and (len(ids) == 1 or ids[-1] != 1):
        encoded = BaseModelOutput(last_hidden_state=states.last_hidden_state)
        logits = bart.model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
    truth = bart.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert engine.generate(prompt, [text], max_new_tokens=6) == [[truth]]


def test_baselines_without_a_prompt_read_the_model_as_hugging_face_runs_it(tiny_gpt2: Backbone, tiny_tasks):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    target, settings = tiny_tasks["sentiment"], AdaptSettings(shots=12)
    words = [tokenise_answer(tiny_gpt2, word) for word in target.task.label_words]

    def plain(text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The label words' log-likelihoods, and what the head reads after the text: one unpadded row at a time."""
        scores = []
        for word in words:
            logits = tiny_gpt2.model(torch.cat([text, word])[None]).logits[0, len(text) - 1 : -1]
            scores.append(logits.log_softmax(-1)[torch.arange(len(word)), word].sum())
        return torch.stack(scores), tiny_gpt2.model(text[None], output_hidden_states=True).hidden_states[-1][0, -1]

    def states(examples: Any) -> Any:
        return torch.stack([plain(ids)[1] for ids in tokenise(tiny_gpt2, examples, 64).batch.inputs]).numpy()

    rows = few_shot(target.train, 12, settings.seed)
    truth = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    truth.fit(states(rows), [row.label for row in rows])
    texts = tokenise(tiny_gpt2, target.test, 64).batch.inputs
    wanted = {
        "zero_shot": torch.stack([plain(ids)[0] for ids in texts]).softmax(dim=1),
        "encoder_logreg": torch.from_numpy(truth.predict_proba(states(target.test))).float(),
    }
    for name, shares in wanted.items():
        found = fit_method(get_method(name), tiny_gpt2, [target], settings)["sentiment"]
        answers = evaluate(tiny_gpt2, found, target.test).probabilities
        torch.testing.assert_close(answers.float(), shares, atol=1e-5, rtol=1e-4)


# PEFT


def a_prompt(backbone: Backbone, tiny_tasks: Any) -> Prompt:
    posterior = learn(backbone, [tiny_tasks["pairs"]], LEARNING)
    return adapt(posterior, tiny_tasks["sentiment"], ADAPTING, backbone=backbone)


def test_peft_gives_an_exported_prompts_probabilities_for_rows_alone(
    tiny_gpt2: Backbone, tiny_gpt2_folder: Path, tiny_tasks: Any, tmp_path: Path
):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    prompt = a_prompt(tiny_gpt2, tiny_tasks)
    export_peft(prompt, tmp_path, str(tiny_gpt2_folder))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    plain = AutoModelForCausalLM.from_pretrained(tiny_gpt2_folder, dtype=torch.float32).eval()
    tuned = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    task, rows = tiny_tasks["sentiment"].task, tokenise(tiny_gpt2, tiny_tasks["sentiment"].test[:3], 64)
    answers = make_scorer(tiny_gpt2, task).answers
    found = tiny_gpt2.engine.answer_log_likelihoods(prompt.prompts, rows.batch.inputs, answers)
    for n, text in enumerate(rows.batch.inputs):
        for c, answer in enumerate(answers):
            ids = torch.cat([text, answer])[None]
            with torch.no_grad():
                logits = tuned(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            places = torch.arange(len(answer)) + 4 + len(text) - 1
            truth = logits[places].log_softmax(-1)[torch.arange(len(answer)), answer].sum()
            assert found[0, n, c].item() == pytest.approx(truth.item(), rel=1e-5)


def test_an_adapter_that_peft_saved_for_a_decoder_only_model_is_imported(
    tiny_gpt2: Backbone, tiny_gpt2_folder: Path, tmp_path: Path
):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_gpt2_folder), config)
    model.save_pretrained(tmp_path)
    imported = import_peft(tmp_path, backbone_card(tiny_gpt2), "sentiment", {}, "2026-11-21T09:00:00Z")
    assert torch.equal(imported.prompts[0], model.get_prompt_embedding_to_save("default"))


def test_an_adapter_for_an_encoder_decoder_is_refused_for_a_decoder_only_model(
    tiny_gpt2: Backbone, tiny_tasks: Any, tmp_path: Path
):
    prompt = a_prompt(tiny_gpt2, tiny_tasks)
    export_peft(prompt, tmp_path, "tiny")
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace("CAUSAL_LM", "SEQ_2_SEQ_LM"))
    with pytest.raises(ArtifactError, match=r"is for task type SEQ_2_SEQ_LM,? and backbone .* needs CAUSAL_LM"):
        import_peft(tmp_path, backbone_card(tiny_gpt2), "sentiment", {}, "2026-11-21T09:00:00Z")


def test_a_card_written_before_decoder_only_models_is_that_of_an_encoder_decoder():
    card = BackboneCard(name="tiny", fingerprint="a" * 64, parameters=1, d_model=2, vocab_size=3)
    assert not card.decoder_only
