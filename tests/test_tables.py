"""The tables have a line for every measurement."""

from mgkit.mini import QUALITIES
from mgkit.protocols import shown
from mgkit.tables import table


def test_the_table_has_a_line_for_every_measurement(retrieved):
    text = table(retrieved[1])
    whole = [r for r in retrieved[1] if r.retrieval_set.level is None]
    for r in whole:
        assert any(r.descriptor in line and shown(r.result) in line for line in text.splitlines())
    assert text.count(" over ") == len([r for r in whole if r.gain])
    assert text.count("mP@10") == 3
    quality = text[text.index("JPEG quality") :].splitlines()
    assert quality[1].split() == [str(n) for n in QUALITIES]
    [first] = [
        r
        for r in retrieved[1]
        if r.retrieval_set.level == ("jpegqual", QUALITIES[0]) and r.descriptor == "GeM, training p"
    ]
    assert quality[2].split()[-9] == f"{100 * first.result.value:.1f}"
