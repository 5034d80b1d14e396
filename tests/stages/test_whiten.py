"""03: what the whitened network keeps."""

from mgkit.checkpoints import load_checkpoint
from mgkit.config import WhitenConfig, make
from mgkit.stages import whiten
from mgkit.stages.whiten import run_whitening


def test_the_classes_of_a_published_network_are_kept(tiny_net, mini_root, here, monkeypatch, capsys):
    """They are the network's own: there is no checkpoint that names them."""
    tiny_net.classes = ("n01440764", "n01443537", "n01484850")
    monkeypatch.setattr(whiten, "trained_network", lambda config: (tiny_net, {}))
    values = {"experiment": "t", "data": str(mini_root), "size": 32, "p": 1.0, "workers": 0}
    run_whitening(make(WhitenConfig, values))
    content = load_checkpoint(here / "outputs/t/whiten/checkpoint.pth")
    assert content["classes"] == [*tiny_net.classes] and content["training_p"] == 3.0
    assert "not checked whether folding keeps the classes" in capsys.readouterr().out
