"""Minimum risk training of CTC: candidates along the frames, what they cost, and what a model learns by it."""

import itertools

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from hf_reloss import load_metric
from hf_reloss.training.strategies import aligned
from hf_reloss.training.strategies.aligned import collapsed, ctc_log_probabilities, drawn_paths, frame_lengths
from hf_reloss.training.strategies.candidates import RandomNumbers, different
from hf_reloss.training.strategies.minimum_risk import expected_risk

from ..test_speech import LETTERS, collate, letters, recognizer, recognizing, recordings, transcripts  # noqa: F401

BLANK = 0


def stands_for(path: list[int]) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != BLANK)


def likeliest_paths(log_probabilities: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """In place of draws, the path of the k-th likeliest tokens, which no random number decides."""
    return log_probabilities.topk(numbers.shape[-1]).indices.transpose(1, 2)


@pytest.fixture(scope="module")
def trained(letters, tmp_path_factory):  # noqa: F811
    """A model that makes some mistakes."""
    trainer = recognizing(
        tmp_path_factory.mktemp("trained"), letters, surrogate="minimum_risk", model_loss_share=1.0, max_steps=150,
        learning_rate=5e-3,
    )  # fmt: skip
    trainer.train()
    return trainer.model


def copy_of(model: nn.Module, **options) -> nn.Module:
    copy = recognizer(**options)
    copy.load_state_dict(model.state_dict())
    return copy


def test_paths_stand_for_what_they_stand_for_one_by_one():
    paths = torch.randint(0, 3, (7, 5, 12), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([12, 11, 7, 3, 1, 0, 12])
    found = collapsed(paths, lengths[:, None], BLANK)
    for paths_of, length, ids_of in zip(paths.tolist(), lengths.tolist(), found.tolist(), strict=True):
        for path, ids in zip(paths_of, ids_of, strict=True):
            expected = stands_for(path[:length])
            assert tuple(ids[: len(expected)]) == expected
            assert set(ids[len(expected) :]) <= {-100}
    assert collapsed(torch.zeros(2, 4, dtype=torch.long), torch.tensor([4, 4]), BLANK).tolist() == [[-100], [-100]]


def test_paths_are_drawn_frame_by_frame_and_no_other_random_numbers_are_touched():
    chances = torch.tensor([[[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]]])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    drawn = drawn_paths(chances.log(), RandomNumbers(1, 0, 0).next(1, 2, 8000))
    assert drawn.shape == (1, 8000, 2)
    found = torch.stack([torch.bincount(drawn[0, :, frame], minlength=3) / 8000 for frame in range(2)])
    torch.testing.assert_close(found, chances[0], atol=0.02, rtol=0)  # four standard deviations
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(drawn, drawn_paths(chances.log(), RandomNumbers(1, 0, 0).next(1, 2, 8000)))
    assert not torch.equal(drawn, drawn_paths(chances.log(), RandomNumbers(2, 0, 0).next(1, 2, 8000)))


def test_the_probability_of_a_text_is_that_of_all_its_paths():
    log_p = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1).requires_grad_()
    lengths = torch.tensor([5, 3])
    ids = torch.tensor([[1, 2, 1], [1, 1, -100], [-100, -100, -100], [2, -100, -100], [1, 1, 2]])
    examples = torch.tensor([0, 0, 1, 1, 1])
    found = ctc_log_probabilities(log_p, lengths, ids, examples, BLANK)
    for text, example, log_probability in zip(ids.tolist(), examples.tolist(), found.tolist(), strict=True):
        wanted, frames = tuple(token for token in text if token >= 0), int(lengths[example])
        chances = log_p[example].exp().tolist()
        total = 0.0
        for path in itertools.product(range(3), repeat=frames):
            if stands_for(path) == wanted:
                total += torch.tensor([chances[frame][token] for frame, token in enumerate(path)]).prod().item()
        assert torch.tensor(log_probability).exp().item() == pytest.approx(total, abs=1e-6)
    assert found[-1] == -torch.inf  # "1 1 2" takes four frames
    found[-1:].clamp(min=-9).sum().backward()
    assert not log_p.grad.any()


def test_with_all_texts_among_the_candidates_the_risk_is_the_exact_expectation():
    log_p = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    texts = sorted({stands_for(path) for path in itertools.product(range(3), repeat=3)})
    chance = dict.fromkeys(texts, 0.0)
    for path in itertools.product(range(3), repeat=3):
        chance[stands_for(path)] += log_p[0, range(3), path].sum().exp().item()
    risk = {text: abs(len(text) - 2) / 2 for text in texts}
    drawn = collapsed(drawn_paths(log_p, RandomNumbers(0, 0, 0).next(1, 3, 5000)), torch.tensor([[3]]), BLANK)
    ids = different(drawn).ids
    assert len(ids) == len(texts)
    found = ctc_log_probabilities(log_p, torch.tensor([3]), ids, torch.zeros(len(ids), dtype=torch.long), BLANK)
    risks = torch.tensor([risk[tuple(token for token in row if token >= 0)] for row in ids.tolist()])
    assert expected_risk(found, risks, 1.0).item() == pytest.approx(sum(chance[text] * risk[text] for text in texts))


def test_frames_are_counted_as_the_model_counts_them():
    model, batch = recognizer(), collate(recordings(8))
    frames = model(batch["input_values"], batch["attention_mask"]).logits
    lengths = frame_lengths(model, batch, frames)
    for row, length in zip(recordings(8), lengths.tolist(), strict=True):
        assert model(row["input_values"][None]).logits.shape[1] == length
    assert lengths.max() == frames.shape[1]
    assert frame_lengths(model, {}, frames).tolist() == [frames.shape[1]] * 8
    masked = {"attention_mask": torch.tensor([[1, 1, 0]])}
    assert frame_lengths(nn.Linear(1, 1), masked, torch.zeros(1, 3, 2)).tolist() == [2]
    with pytest.raises(ValueError, match="_get_feat_extract_output_lengths"):
        frame_lengths(nn.Linear(1, 1), masked, torch.zeros(1, 2, 2))
    strided = nn.Linear(1, 1)
    strided._get_output_attention_mask = lambda mask, target_length: mask[:, ::2]
    assert frame_lengths(strided, masked, torch.zeros(1, 2, 2)).tolist() == [1]


@pytest.mark.parametrize("share", [0.0, 0.25])
@pytest.mark.parametrize("with_reference", [True, False])
def test_the_loss_by_hand(letters, tmp_path, trained, monkeypatch, share, with_reference):  # noqa: F811
    monkeypatch.setattr(aligned, "drawn_paths", likeliest_paths)
    model, rows = copy_of(trained), recordings(5, seed=4)
    trainer = recognizing(
        tmp_path, letters, model, surrogate="minimum_risk", model_loss_share=share, risk_alpha=0.05, risk_candidates=3,
        risk_reference=with_reference,
    )  # fmt: skip
    model.train()
    trainer.compute_loss(model, collate(rows)).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}

    model.zero_grad()
    metric, losses = load_metric("wer"), []
    for row in rows:
        log_p = model(row["input_values"][None]).logits[0].double().log_softmax(-1)
        texts = [stands_for(path) for path in log_p.topk(3).indices.T.tolist()]
        texts = dict.fromkeys([tuple(row["labels"].tolist()), *texts] if with_reference else texts)
        weights, risks = [], []
        for text in texts:
            target = torch.tensor([text], dtype=torch.long)
            lengths = torch.tensor(len(log_p)), torch.tensor(len(text))
            loss = nn.functional.ctc_loss(log_p, target[0], *lengths, reduction="sum")
            weights.append((-loss * 0.05).exp())
            both = text, row["labels"].tolist()
            said = ["".join(LETTERS[token] for token in ids).replace("|", " ") for ids in both]
            risks.append(metric.compute([said[0]], [said[1]]))
        losses.append(sum(w * r for w, r in zip(weights, risks, strict=True)) / sum(weights))
    expected = (1 - share) * sum(losses) / len(rows) + share * model(**collate(rows)).loss
    expected.backward()
    assert max(gradient.abs().max() for gradient in found.values()) > 1e-3
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-3, atol=1e-5)


def test_policy_gradients_of_what_paths_stand_for(letters, tmp_path, trained, monkeypatch):  # noqa: F811
    monkeypatch.setattr(aligned, "drawn_paths", likeliest_paths)
    model, rows = copy_of(trained), recordings(5, seed=4)
    trainer = recognizing(tmp_path, letters, model, surrogate="policy", model_loss_share=0.0, risk_candidates=3)
    model.train()
    loss = trainer.compute_loss(model, collate(rows))
    metric, losses = load_metric("wer"), []
    for row in rows:
        logits = model(row["input_values"][None]).logits[0].log_softmax(-1)
        texts = [stands_for(path) for path in logits.topk(3).indices.T.tolist()]  # equal ones count as often as drawn
        chances, risks = [], []
        for text in texts:
            lengths = torch.tensor(len(logits)), torch.tensor(len(text))
            chances.append(-nn.functional.ctc_loss(logits, torch.tensor(text), *lengths, reduction="sum"))
            said = ["".join(LETTERS[i] for i in ids).replace("|", " ") for ids in (text, row["labels"].tolist())]
            risks.append(metric.compute(said[:1], said[1:]))
        mean = sum(risks) / 3
        losses.append(sum(1.5 * (risk - mean) * chance for risk, chance in zip(risks, chances, strict=True)) / 3)
    assert loss.abs() > 1e-3
    torch.testing.assert_close(loss, sum(losses) / 5, rtol=1e-3, atol=1e-5)


def test_accumulated_gradients_equal_those_of_the_whole_batch(letters, tmp_path, trained, monkeypatch):  # noqa: F811
    monkeypatch.setattr(aligned, "drawn_paths", likeliest_paths)
    found = []

    class Spy(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            found.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])

    for size, parts in ((7, 1), (3, 3)):  # of seven, the last part has one
        trainer = recognizing(
            tmp_path, letters, copy_of(trained), recordings(7), surrogate="minimum_risk", max_steps=1, max_grad_norm=0,
            per_device_train_batch_size=size, gradient_accumulation_steps=parts, callbacks=[Spy()],
        )  # fmt: skip
        trainer.train()
    for whole, accumulated in zip(*found, strict=True):
        torch.testing.assert_close(accumulated, whole, rtol=1e-3, atol=1e-6)


def test_a_model_hears_better_for_it_and_is_resumed_to_the_bit(letters, tmp_path, trained):  # noqa: F811
    rows = recordings(200, seed=5)
    before = load_metric("wer").compute(*transcripts(trained, letters, rows))
    options = {
        "surrogate": "minimum_risk", "max_steps": 60, "save_strategy": "steps", "save_steps": 30,
        "model_loss_share": 0.1, "rows": recordings(300, seed=6),
    }  # fmt: skip
    trainer = recognizing(tmp_path / "whole", letters, copy_of(trained, hidden_dropout=0.1), **options)
    trainer.train()
    assert load_metric("wer").compute(*transcripts(trainer.model, letters, rows)) < 0.5 * before
    logged = [entry["loss/surrogate"] for entry in trainer.state.log_history if "loss/surrogate" in entry]
    assert logged[-1] < logged[0]
    resumed = recognizing(tmp_path / "resumed", letters, copy_of(trained, hidden_dropout=0.1), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-30"))
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_examples_without_words_and_texts_that_frames_are_too_few_for_do_no_harm(letters, tmp_path):  # noqa: F811
    rows = [
        *recordings(4),
        {"input_values": torch.randn(300), "labels": torch.full((0,), 3)},
        {"input_values": torch.randn(40), "labels": torch.full((9,), 3)},
    ]
    trainer = recognizing(tmp_path, letters, recognizer(), surrogate="minimum_risk", model_loss_share=0.0)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, collate(rows))
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad.isfinite().all() for weight in trainer.model.parameters() if weight.grad is not None)


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        (
            {"ctc_loss_reduction": "sum"},
            {"model_loss_share": 0.1},
            r"'sum' adds .* \(model_loss_share=0.1\): set it to 'mean'",
        ),
        ({"pad_token_id": None}, {}, "config.pad_token_id for the blank"),
        ({}, {"metric": "accuracy"}, "the metric 'accuracy' cannot"),
        ({}, {"metric": None}, "wants the metric that texts are scored by"),
        ({}, {"risk_alpha": 0.0}, "risk_alpha is the power of the candidates' probabilities"),
    ],
)
def test_what_does_not_fit_is_refused(letters, tmp_path, changed, options, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        recognizing(tmp_path, letters, recognizer(**changed), surrogate="minimum_risk", **options)


def test_a_sum_is_no_hindrance_where_it_has_no_share(letters, tmp_path):  # noqa: F811
    model, options = recognizer(ctc_loss_reduction="sum"), {"model_loss_share": 0, "max_steps": 2}
    trainer = recognizing(tmp_path, letters, model, surrogate="minimum_risk", **options)
    trainer.train()
    assert trainer.state.global_step == 2
