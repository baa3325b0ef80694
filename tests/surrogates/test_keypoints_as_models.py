"""Surrogates for keypoints as models: recordings of them, learning, saving, precision, what is refused."""

import pytest
import torch

from hf_reloss import AutoSurrogate, PredictionRecorder, SurrogateTrainer, load_metric
from hf_reloss.learning.trainer import SurrogateTrainingArguments
from hf_reloss.losses.base import Evidence
from hf_reloss.losses.heatmaps import decode_heatmaps, gaussian_targets
from hf_reloss.surrogates.keypoints import SurrogateForKeypoints

from .test_keypoints import METRICS, bodies, fresh, metrics, noise, with_random_weights


@metrics
def test_recordings_give_the_losses_of_the_outputs_and_score_as_the_metric_does(metric):
    labels, heatmaps = bodies(7, metric=metric), noise(7)
    labels[0, 1, 0] = torch.nan
    columns = SurrogateForKeypoints.recorded({"heatmaps": heatmaps}, labels, {})
    surrogate = with_random_weights(7, metric)
    expected = surrogate(heatmaps, labels)
    assert surrogate(columns, columns["labels"]) == expected
    known = load_metric(metric, **METRICS[metric])
    assert known.compute(columns["decided"], columns["labels"]) == known.compute(decode_heatmaps(heatmaps), labels)
    groups = {name: column[None].expand(3, *column.shape) for name, column in columns.items()}
    torch.testing.assert_close(surrogate(groups, groups["labels"]), expected.expand(3))


@metrics
def test_gradients_are_exact_and_can_be_differentiated(metric):
    surrogate = with_random_weights(8, metric).double()
    evidence = surrogate.evidence(noise(8, n=1, size=4), bodies(8, n=1, metric=metric, size=4))
    heatmaps, labels = evidence.outputs.double().requires_grad_(), evidence.labels.double()

    def check(outputs: torch.Tensor) -> torch.Tensor:
        return surrogate(Evidence(outputs, labels, evidence.counts))

    assert torch.autograd.gradcheck(check, heatmaps)
    assert torch.autograd.gradgradcheck(check, heatmaps)


@metrics
def test_the_penalty_holds_gradients_to_those_of_the_start(metric):
    learned, start = with_random_weights(9, metric), fresh(metric)
    evidence = start.evidence(noise(9)[None], bodies(9, metric=metric)[None])
    norms, wanted = learned.network.gradient_norms(evidence)
    assert norms.shape == wanted.shape == (1, 5, 3)
    torch.testing.assert_close(wanted, start.network.gradient_norms(evidence)[0].detach())
    assert not torch.allclose(norms, wanted, rtol=0.05)


def test_what_is_learned_is_of_heatmaps_with_one_peak():
    surrogate = fresh()
    evidence = surrogate.evidence(noise(0), bodies(0))
    canonical = surrogate.network.canonical(evidence).outputs
    torch.testing.assert_close(canonical.amax((-2, -1)), torch.ones(5, 3))
    nothing = surrogate.network.canonical(evidence._replace(outputs=torch.zeros(5, 3, 12, 12)))
    assert (nothing.outputs == 0).all()


def test_it_is_learned_from_a_recording(tmp_path):
    recorder = PredictionRecorder()
    for step in range(8):
        labels = bodies(step, n=40)
        off = labels[..., :2] + (1 - step / 8) * 3 * torch.randn(40, 3, 2)
        recorder.add({"heatmaps": gaussian_targets(off, 12, 12) + 0.1 * noise(step, n=40)}, labels, step / 8)
    predictions = recorder.dataset(metric="pck")
    assert predictions.features["heatmaps"].shape == (3, 12, 12)
    surrogate = SurrogateForKeypoints.for_metric("pck")
    args = SurrogateTrainingArguments(
        str(tmp_path), num_groups=64, num_eval_groups=64, group_size=16, num_train_epochs=1, disable_tqdm=True,
        per_device_train_batch_size=16, use_cpu=True,
    )  # fmt: skip
    SurrogateTrainer(surrogate, args, train_dataset=predictions, metric="pck").train()
    assert surrogate.config.record["alignment"] > 0.8
    assert "alignment_mean_squared_error" in surrogate.config.record
    assert surrogate.network.log_falls.abs().max() > 0


# Forms of outputs, and words


def test_any_form_of_outputs_is_read():
    surrogate, labels, heatmaps = with_random_weights(2), bodies(5), noise(5)
    expected = surrogate(heatmaps, labels)
    for outputs in ({"loss": torch.tensor(3.0), "heatmaps": heatmaps}, (torch.tensor(3.0), heatmaps), (heatmaps,)):
        assert surrogate(outputs, labels) == expected


def test_it_is_found_for_its_outputs_only():
    outputs, labels = {"heatmaps": noise(0)}, bodies(0)
    assert AutoSurrogate.reading(outputs, labels) is SurrogateForKeypoints
    assert not SurrogateForKeypoints.reads({"logits": noise(0)}, labels)
    assert not SurrogateForKeypoints.reads(outputs, labels.long())
    assert not SurrogateForKeypoints.reads(outputs, labels[:, 0])


@pytest.mark.parametrize("config", [{}, {"metric": "oks"}, {"architecture": "paper", "num_pixels": 144}])
def test_a_saved_surrogate_is_the_same(tmp_path, config):
    surrogate = with_random_weights(9, **config)
    surrogate.save_pretrained(tmp_path)
    loaded = AutoSurrogate.from_pretrained(tmp_path)
    labels = bodies(1, metric=config.get("metric", "pck"))
    assert loaded(noise(1), labels) == surrogate(noise(1), labels)


def test_it_computes_in_float32_under_autocast_and_for_bfloat16():
    surrogate, labels = with_random_weights(4), bodies(3)
    heatmaps = noise(3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = surrogate(heatmaps, labels)
    assert mixed.dtype == torch.float32
    assert mixed == surrogate(heatmaps.float(), labels)


def test_the_structure_fits_the_metric():
    of = SurrogateForKeypoints.for_metric
    assert of(load_metric("pck", alpha=0.1, length=(0, 1))).network.metric == load_metric(
        "pck", alpha=0.1, length=(0, 1)
    )
    assert of(load_metric("oks", sigmas=[0.1, 0.2])).config.scores == {"oks": {"sigmas": [0.1, 0.2]}}
    assert of(lambda predictions, references: 0.0).network.metric == load_metric("pck")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(2, 3, 2)}, r"labels \[..., N, K, 3\].*\[2, 3, 8, 8\] and \[2, 3, 2\]"),
        ({"labels": torch.zeros(2, 4, 3)}, r"\[2, 3, 8, 8\] and \[2, 4, 3\]"),
        ({"labels": None}, "and None"),
        ({"labels": torch.zeros(2, 3, 3, dtype=torch.long)}, "floating-point numbers, but these are torch.int64"),
        ({"heatmaps": torch.zeros(3, 8, 8)}, r"\[3, 8, 8\]"),
        ({"heatmaps": torch.full((2, 3, 8, 8), torch.nan)}, "384 of 384 pixels of heatmaps are not finite"),
        ({"heatmaps": None}, "'heatmaps'"),
    ],
)
def test_bad_input_says_what_is_wanted(change, message):
    given_input = {"heatmaps": torch.zeros(2, 3, 8, 8), "labels": torch.ones(2, 3, 3)} | change
    with pytest.raises(ValueError, match=message):
        fresh()(given_input, given_input.pop("labels"))


def test_similarity_wants_areas_and_a_sigma_for_each_joint():
    with pytest.raises(ValueError, match="with the area of the object"):
        fresh("oks")(noise(0), bodies(0))
    with pytest.raises(ValueError, match="2 sigmas, but there are 3 joints"):
        fresh("oks", options={"sigmas": [0.1, 0.1]})(noise(0), bodies(0, metric="oks"))


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match=r"'pck' and 'oks'.*'accuracy'"):
        fresh("accuracy", options={})
    with pytest.raises(ValueError, match="'hits' or 'paper'"):
        fresh(architecture="margin")
