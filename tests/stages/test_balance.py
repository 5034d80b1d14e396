"""Figure 5's shares: from short trainings of the embedded set, and from the runs of an experiment."""

import json

import pytest
import yaml
from support import training_config

from mgkit.engine.run import stage_folder
from mgkit.stages import train as balance
from mgkit.stages.train import shares_by_lambda, shares_of_runs


def test_short_trainings_of_the_embedded_set_are_made_once(here, mini_root, monkeypatch):
    config = training_config(mini_root, batch_size=6)
    shares = shares_by_lambda(config)
    assert list(shares) == list(balance.LAMBDAS)
    for lambda_, noted in shares.items():
        steps, of_classes = zip(*noted, strict=True)
        assert len(steps) >= 2 and list(steps) == sorted(steps)
        assert all(0 < share < 1 for share in of_classes)
        assert (stage_folder(f"t-lambda{lambda_:g}", "train") / "checkpoint.pth").is_file()
    assert [noted[0][1] for noted in shares.values()] == sorted(noted[0][1] for noted in shares.values())
    assert not stage_folder("t", "train").exists()  # the experiment's own training is another matter
    monkeypatch.setattr(balance, "run_training", lambda config: pytest.fail("trained again"))
    assert shares_by_lambda(config) == shares


@pytest.mark.parametrize("values", [{"lambda_": 1.0, "repetitions": 1}, {"size": 16}])
def test_short_trainings_have_positives_and_are_not_too_small(values):
    short = balance.short_training(training_config("mini", **values), 0.5)
    assert (short.lambda_, short.size, short.epochs) == (0.5, 32, 1) and short.repetitions >= 2


def leave_run(experiment, name, *, lambda_, steps):
    """What a training with this λ leaves of what matters here."""
    folder = stage_folder(experiment, name)
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
    assert shares_of_runs("t") == {}
