"""01: the training stage, its network found again, the pulls of both losses."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support import left_lines, one_line_error, train_config, training_config

from mgkit.checkpoints import load_checkpoint, load_network
from mgkit.config import NetworkConfig, TrainConfig, make
from mgkit.data.decoding import UnreadableImageError
from mgkit.engine.loop import Training
from mgkit.engine.run import latest_results, stage_folder
from mgkit.model import get_multigrain
from mgkit.stages import inputs
from mgkit.stages import train as balance
from mgkit.stages import train as module
from mgkit.stages.train import run_training, shares_by_lambda, shares_of_runs, trained_network

pytestmark = pytest.mark.usefixtures("here")


ONCE = {"len_factor": 1.0, "lambda_": 1.0, "repetitions": 1}  # an epoch sees every image, once


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def weights_after(config):
    return load_checkpoint(run_training(config))["model_state"]


@pytest.mark.parametrize("augmentation", ["torch", "full", "senet", "AA"])
def test_an_epoch_runs_with_every_augmentation(config, augmentation):
    run_training(config(augmentation=augmentation))
    [line] = left_lines("metrics.jsonl")
    assert all(np.isfinite(value) for value in line.values())


@pytest.mark.parametrize(("lambda_", "repetitions"), [(1.0, 1), (0.5, 3), (0.0, 3)])
def test_an_epoch_runs_with_either_loss_and_both(config, lambda_, repetitions):
    run_training(config(lambda_=lambda_, repetitions=repetitions))
    [line] = left_lines("metrics.jsonl")
    mix = lambda_ * line["cross_entropy"] + (1 - lambda_) * line["margin"]
    assert line["loss"] == pytest.approx(mix, rel=1e-5)
    assert (line["margin"] > 0) == (lambda_ < 1)
    assert (line["beta"] != pytest.approx(1.2, abs=1e-7)) == (lambda_ < 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_synchronised_statistics_of_several_processes_on_a_cpu_are_refused_before_any_work(config):
    with one_line_error(ValueError, "batch_norm", "GPU", "local or frozen"):
        module.train(config(batch_norm="sync", gpus=2))
    assert not Path("outputs").exists()


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_training_runs_in_either_precision_and_keeps_float32_weights(config, precision):
    state = weights_after(config(precision=precision))
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    assert all(value.isfinite().all() for value in state.values())


def test_there_is_a_line_of_metrics_an_epoch_and_a_line_in_the_log(config, capsys):
    run_training(config(epochs=3, lr=0.1, lr_drops=[1]))
    lines = left_lines("metrics.jsonl")
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["lr"] for line in lines] == pytest.approx([0.1, 0.1, 0.01])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in printed] == ["epoch 1", "epoch 2", "epoch 3"]
    assert latest_results(train_config())["top1"] == lines[-1]["val_top1"]


def test_the_checkpoint_holds_the_trained_network_bit_for_bit(config, monkeypatch):
    trained, finish = [], Training.finish

    def watched(training):
        trained.append(copy.deepcopy(training.net.state_dict()))
        return finish(training)

    monkeypatch.setattr(Training, "finish", watched)
    path = run_training(config(p=2.5))
    net, checkpoint = load_network(path)
    assert same_bits(net.state_dict(), trained[-1])
    assert not same_bits(net.state_dict(), get_multigrain("resnet8", num_classes=12).state_dict())
    assert (checkpoint["backbone"], checkpoint["epoch"], checkpoint["p"]) == ("resnet8", 1, 2.5)
    assert len(checkpoint["classes"]) == 12


@pytest.mark.parametrize("tokens", ["class", "both"])
def test_a_transformer_is_trained_on_the_tokens_that_are_asked_for_and_found_again(config, tokens):
    path = run_training(config(backbone="timm/test_vit", tokens=tokens, **ONCE))
    net, _ = load_network(path)
    assert net.tokens == tokens and net.pool.signed and net.classifies
    found, _ = trained_network(make(NetworkConfig, {"checkpoint": str(path), "tokens": tokens}))
    assert torch.equal(found.classifier.weight.cpu(), net.classifier.weight)
    with one_line_error(ValueError, "tokens", path, f"pools {tokens}, not patches"):
        trained_network(make(NetworkConfig, {"checkpoint": str(path), "tokens": "patches"}))


def test_training_learns_its_images(config):
    run_training(
        config(epochs=6, lr=0.005, batch_size=24, augmentation="torch", crop_scale=0.8, lr_drops=[], **ONCE)
    )
    lines = left_lines("metrics.jsonl")
    assert lines[-1]["cross_entropy"] < 0.9 * lines[0]["cross_entropy"]
    assert lines[-1]["top1"] > 2 * lines[0]["top1"]


def test_the_same_seed_gives_the_same_weights_whatever_the_workers(config):
    alone, parallel = (weights_after(config(workers=workers, epochs=2, resume=False)) for workers in (0, 2))
    assert same_bits(alone, parallel)


def test_another_seed_gives_other_weights(config):
    one, other = (weights_after(config(seed=seed)) for seed in (0, 1))
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])


def test_the_global_random_state_before_a_training_does_not_matter(config):
    states = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        states.append(weights_after(config(resume=False)))
    assert same_bits(*states)


def test_a_last_batch_of_one_sample_is_passed_over(config):
    checkpoint = load_checkpoint(
        run_training(config(len_factor=0.52))
    )  # 37 samples: three batches of 12, and one
    assert checkpoint["model_state"]["features.bn1.num_batches_tracked"] == 3


@pytest.mark.parametrize(("len_factor", "told"), [(0.1, True), (0.17, False)])
def test_an_epoch_of_fewer_samples_than_a_batch_is_told(config, capsys, len_factor, told):
    run_training(config(len_factor=len_factor))  # 7 samples, or 12
    assert ("7 samples, fewer than batch_size 12" in capsys.readouterr().out) == told


def test_an_epoch_without_a_batch_to_train_on_is_refused(config):
    with one_line_error(UnreadableImageError, "too few readable images"):
        run_training(config(len_factor=0.015, lambda_=1.0, repetitions=1))  # one sample


@pytest.fixture
def damaged(mini_root, here):
    """A copy of the labelled images, and the training image in it that cannot be read."""
    shutil.copytree(mini_root / "imagenet", here / "damaged")
    path = sorted((here / "damaged" / "train").rglob("*.JPEG"))[7]
    path.write_bytes(path.read_bytes()[:300])
    return here / "damaged", path


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_training_image_stops_the_training_and_is_named(config, damaged, workers):
    data, path = damaged
    with one_line_error(UnreadableImageError, path):
        run_training(config(data=str(data), workers=workers, **ONCE))


def test_unreadable_training_images_may_be_skipped_and_are_listed(config, damaged, capsys):
    data, path = damaged
    run_training(config(data=str(data), on_unreadable="skip", **ONCE))
    printed = capsys.readouterr().out
    assert "skipped 1 " in printed and printed.count(str(path)) == 1
    assert Path("outputs/t/train/checkpoint.pth").is_file()


def test_an_earlier_training_with_other_parameters_is_kept(config, here):
    run_training(config())
    before = (here / "outputs/t/train/checkpoint.pth").read_bytes()
    run_training(config(seed=1))
    assert (here / "outputs/t/train.1/checkpoint.pth").read_bytes() == before
    assert (here / "outputs/t/train/checkpoint.pth").read_bytes() != before


def test_a_missing_training_on_data_of_one_s_own_names_the_command(damaged):
    data, _ = damaged
    with one_line_error(FileNotFoundError, "papermill", "01_train.ipynb", data):
        trained_network(make(NetworkConfig, {"experiment": "t", "data": str(data)}))


def test_a_checkpoint_that_was_asked_for_and_is_missing_is_named(mini_root):
    with one_line_error(FileNotFoundError, "lost.pth"):
        trained_network(make(NetworkConfig, {"data": str(mini_root), "checkpoint": "lost.pth"}))


def test_a_published_network_stands_in_for_a_checkpoint_and_pools_by_averaging(monkeypatch, here):
    asked = {}

    def published(backbone, **options):
        asked.update(options, backbone=backbone)
        return get_multigrain(backbone, p=options["p"])

    monkeypatch.setattr(inputs, "get_multigrain", published)
    config = make(NetworkConfig, {"experiment": "t", "backbone": "resnet8", "pretrained_backbone": True})
    net, content = trained_network(config)
    assert asked == {"backbone": "resnet8", "p": 1.0, "pretrained_backbone": True, "tokens": "patches"}
    assert net.pool.p.item() == 1.0 and not net.training and content == {} and net.source == ""


def test_published_weights_are_trained_on_the_classes_of_the_data(here, image_folders, recipe):
    """By the recipe, but for size and length: one step moves the weights a little, the classifier is new."""
    data = image_folders([(40, 30)] * 4)  # 3 classes of 4 images, one of them held out
    short = {
        "experiment": "t",
        "data": str(data.root),
        "size": 32,
        "batch_size": 9,
        "workers": 0,
        "epochs": 1,
    }
    checkpoint = load_checkpoint(run_training(make(TrainConfig, recipe | short)))
    state = checkpoint["model_state"]
    assert (checkpoint["backbone"], checkpoint["classes"]) == ("efficientnet_lite0", list(data.classes))
    assert state["classifier.weight"].shape == (3, 1280) and checkpoint["position"]["step"] == 1
    published = get_multigrain("efficientnet_lite0", pretrained_backbone=True).state_dict()
    for key, value in published.items():
        if key.endswith(("running_mean", "running_var")):  # frozen by the recipe
            assert torch.equal(state[key], value), key
        elif key.startswith("features.") and value.ndim == 4:
            assert 0 < (state[key] - value).norm() < 0.1 * value.norm(), key


@pytest.fixture
def recipe():
    """The parameters of the recipe for training from published weights."""
    folder = Path(__file__).parents[2] / "notebooks" / "recipes"
    return yaml.safe_load((folder / "train_efficientnet_lite0.yaml").read_text(encoding="utf-8"))


def test_short_trainings_of_the_embedded_set_are_made_once(here, mini_root, monkeypatch):
    config = training_config(mini_root, batch_size=6)
    shares = shares_by_lambda(config)
    assert list(shares) == list(balance.LAMBDAS)
    for lambda_, noted in shares.items():
        steps, of_classes = zip(*noted, strict=True)
        assert len(steps) >= 2 and list(steps) == sorted(steps)
        assert all(0 < share < 1 for share in of_classes)
        assert (stage_folder(train_config(experiment=f"t-lambda{lambda_:g}")) / "checkpoint.pth").is_file()
    assert [noted[0][1] for noted in shares.values()] == sorted(noted[0][1] for noted in shares.values())
    assert not stage_folder(train_config()).exists()  # the experiment's own training is another matter
    monkeypatch.setattr(balance, "run_training", lambda config: pytest.fail("trained again"))
    assert shares_by_lambda(config) == shares


@pytest.mark.parametrize("values", [{"lambda_": 1.0, "repetitions": 1}, {"size": 16}])
def test_short_trainings_have_positives_and_are_not_too_small(values):
    short = balance.short_training(training_config("mini", **values), 0.5)
    assert (short.lambda_, short.size, short.epochs) == (0.5, 32, 1) and short.repetitions >= 2


def test_short_trainings_of_several_machines_are_made_once():
    several = {"nnodes": 2, "node_rank": 1, "rdzv_endpoint": "localhost:1"}
    short = balance.short_training(training_config("mini", **several), 0.5)
    assert (short.nnodes, short.node_rank) == (1, 0)  # so that one makes them while the others wait


def leave_run(experiment, name, *, lambda_, steps):
    """What a training with this λ leaves of what matters here."""
    folder = stage_folder(train_config(experiment=experiment)).with_name(name)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"lambda_": lambda_}))
    (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1}) + "\n")
    (folder / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))


def test_other_data_have_the_shares_that_their_runs_noted(here, image_folders):
    def noted(share):
        return [{"step": 20, "loss": 1.0, "gradient_share": share}, {"step": 40, "loss": 0.5}]

    leave_run("t", "train", lambda_=0.5, steps=noted(0.6))  # the latest
    leave_run("t", "train.1", lambda_=0.2, steps=noted(0.1))
    leave_run("t", "train.2", lambda_=0.5, steps=noted(0.9))
    leave_run("t", "train.3", lambda_=0.2, steps=noted(0.3))
    leave_run("t", "train.4", lambda_=0.7, steps=[{"step": 20, "loss": 1.0}])
    data = image_folders([(24, 24)]).root
    assert shares_by_lambda(training_config(data)) == {0.2: [(20, 0.3)], 0.5: [(20, 0.6)]}


def test_an_experiment_without_runs_has_no_shares(here):
    assert shares_of_runs(train_config()) == {}
