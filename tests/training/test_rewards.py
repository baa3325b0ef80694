"""metric_reward, as TRL's trainers call it and against the libraries that define what it gives."""

import pickle

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_reloss import load_metric, metric_reward

TEXTS = ["the cat sat on the mat", "a dog", "it rains again today", ""]
ANSWERS = ["the cat lay on the mat", "the old dog barks", "it rains again today", "nothing"]


def test_rewards_are_what_rouge_score_and_sacrebleu_give_each_sentence():
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    sacrebleu = pytest.importorskip("sacrebleu")
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    expected = [scorer.score(answer, text)["rougeL"].fmeasure for text, answer in zip(TEXTS, ANSWERS, strict=True)]
    assert metric_reward("rougeL")(completions=TEXTS, answer=ANSWERS) == pytest.approx(expected)
    bleu = sacrebleu.BLEU(effective_order=True)
    expected = [bleu.sentence_score(text, [answer]).score for text, answer in zip(TEXTS, ANSWERS, strict=True)]
    assert 0 < expected[1] < expected[0] < 100
    assert metric_reward("sacrebleu", references="gold")(completions=TEXTS, gold=ANSWERS) == pytest.approx(expected)


def test_less_of_an_error_rate_is_more_reward():
    jiwer = pytest.importorskip("jiwer")
    rewards = metric_reward("wer")(completions=TEXTS, answer=ANSWERS)
    expected = [-jiwer.wer(answer, text) for text, answer in zip(TEXTS, ANSWERS, strict=True)]
    assert rewards == pytest.approx(expected)
    own = load_metric(lambda predictions, references: len(predictions[0]), name="length", higher_is_better=False)
    assert metric_reward(own)(completions=["abc", ""], answer=["", ""]) == [-3.0, 0.0]


def test_of_conversations_the_last_message_counts_and_of_that_what_is_text():
    asked = [{"role": "tool", "content": "4"}, {"role": "assistant", "content": " four "}]
    in_parts = [{"role": "assistant", "content": [{"type": "text", "text": "fo"}, {"type": "text", "text": "ur"}]}]
    calls = [{"role": "assistant", "content": None, "tool_calls": []}]
    reward = metric_reward("exact_match")
    assert reward(completions=[asked, in_parts, calls, []], answer=["four"] * 4) == [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="a list of messages"):
        reward(completions=[7], answer=["four"])


def test_there_is_no_reward_where_there_is_nothing_to_compare_with_or_no_score():
    reward = metric_reward("exact_match")
    assert reward(completions=["a", "b", "b", "d"], answer=[None, ["a", "b"], "a", []]) == [None, 1.0, 0.0, None]
    assert reward(completions=["a"], answer=[None]) == [None]
    unanswered = metric_reward("squad_v2_f1")  # of which an empty list of answers is the right one
    assert unanswered(completions=["", "x"], answer=[[], {"text": ["x"], "answer_start": [0]}]) == [100.0, 100.0]
    share = metric_reward(load_metric(lambda predictions, references: float(predictions[0]), name="share"))
    assert share(completions=["nan", "0.5"], answer=["", ""]) == [None, 0.5]


def test_it_says_what_it_lacks_and_goes_along_to_other_processes():
    reward = pickle.loads(pickle.dumps(metric_reward("chrf", references="gold")))
    assert reward.__name__ == "chrf_reward"
    with pytest.raises(ValueError, match=r"column 'gold', but the data have \['answer'\]: pass .*references="):
        reward(prompts=["p"], completions=["c"], completion_ids=[[1]], answer=["a"], trainer_state=None)
    with pytest.raises(ValueError, match="'accuracy' does not score these"):
        metric_reward("accuracy")
    with pytest.raises(ValueError, match="Unknown metric"):
        metric_reward("rougel2")


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(13))]
    tokens = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def make_language_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=16, num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None, **sizes)
    )


@pytest.mark.parametrize("name", ["GRPO", "RLOO"])
def test_trls_trainers_train_on_it(tmp_path, name):
    trl = pytest.importorskip("trl")
    data = datasets.Dataset.from_list([{"prompt": "w1 w2", "answer": "w5 w5"}, {"prompt": "w3", "answer": None}] * 8)
    args = getattr(trl, f"{name}Config")(
        str(tmp_path), max_steps=8, per_device_train_batch_size=16, num_generations=8, max_completion_length=2,
        learning_rate=0.05, logging_steps=1, use_cpu=True, disable_tqdm=True, save_strategy="no", bf16=False,
        gradient_checkpointing=False, beta=0.0,
    )  # fmt: skip
    trainer = getattr(trl, f"{name}Trainer")(
        make_language_model(), metric_reward("rouge1"), args, train_dataset=data, processing_class=make_tokenizer()
    )
    trainer.train()
    rewards = [entry.get("rewards/rouge1_reward/mean") for entry in trainer.state.log_history]
    rewards = [reward for reward in rewards if reward is not None]  # of two prompts without an answer there is none
    assert len(rewards) > 4
    assert max(rewards[-3:]) > rewards[0] + 0.2
