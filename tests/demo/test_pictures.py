"""An executed notebook keeps its plots and loses every picture that may show a photograph."""

import nbformat
import pytest

from mgkit.demo.pictures import PLOTS, REMOVED, without_photographs

PICTURE = "iVBORw0KGgo="
NOTEBOOK = "02_finetune_p"


def cell(source, *data):
    outputs = [nbformat.v4.new_output("display_data", data=each) for each in data]
    return nbformat.v4.new_code_cell(source, outputs=outputs)


def left(one_cell, plots=("p_star",)):
    """What remains of the outputs of a cell."""
    notebook = without_photographs(nbformat.v4.new_notebook(cells=[one_cell]), plots)
    return [output.get("data", output.get("text")) for output in notebook.cells[0].outputs]


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "image/svg+xml"])
def test_a_named_plot_stays(kind):
    data = {kind: PICTURE, "text/plain": "<Figure>"}
    assert left(cell('save_figure(plots.p_search(found), config, "p_star.png")', data)) == [data]


@pytest.mark.parametrize(
    "source",
    [
        'save_figure(stills.repooled(held), config, "p_slider.png")',  # not in the list
        'save_figure(figure, config, f"neighbours_{name}.png")',
        "display(figure)",
        'display(figure)\nprint("p_star.png")',
        'save_figure(a, config, "p_star.png")\nsave_figure(b, config, "p_slider.png")',
        'save_figure(a, config, "p_star.png.png")',
    ],
)
def test_any_other_picture_is_removed(source):
    assert left(cell(source, {"image/png": PICTURE, "text/plain": "<Figure>"})) == [{"text/plain": REMOVED}]


def test_no_picture_stays_in_a_cell_that_shows_several():
    one = {"image/png": PICTURE, "text/plain": "<Figure>"}
    assert left(cell('save_figure(x, config, "p_star.png")', one, one)) == [{"text/plain": REMOVED}] * 2


@pytest.mark.parametrize(
    "data",
    [
        {"text/html": f"<img src='data:image/png;base64,{PICTURE}'>", "text/plain": "<HTML>"},
        {"text/markdown": "![](data:image/png;base64,aaaa)"},
        {"text/plain": f"HTML(value='<img src=\"data:image/png;base64,{PICTURE}\">')"},
        {"application/json": {"picture": PICTURE}},
    ],
)
def test_pictures_in_other_outputs_are_removed(data):
    named = 'save_figure(plots.p_search(found), config, "p_star.png")'
    for source in ("display(browser)", named):
        assert left(cell(source, data)) == [{"text/plain": REMOVED}]
    plot = {"image/png": PICTURE}
    assert left(cell(named, plot, data)) == [plot, {"text/plain": REMOVED}]


def test_of_html_and_widgets_the_text_stays():
    shown = {"text/html": "<b>def</b> fold", "text/plain": "def fold"}
    live = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "A slider"}
    assert left(cell("show_source(fold)", shown, live)) == [
        {"text/plain": "def fold"},
        {"text/plain": "A slider"},
    ]


def test_text_stays_and_attachments_and_widgets_go():
    printed = nbformat.v4.new_code_cell(
        "print(1)", outputs=[nbformat.v4.new_output("stream", text="p* = 1.14")]
    )
    assert left(printed) == ["p* = 1.14"]
    assert left(cell("1", {"text/plain": "1"})) == [{"text/plain": "1"}]
    attached = nbformat.v4.new_markdown_cell("![a](attachment:a.png)")
    attached["attachments"] = {"a.png": {"image/png": PICTURE}}
    notebook = nbformat.v4.new_notebook(cells=[attached], metadata={"widgets": {"state": PICTURE}})
    assert PICTURE not in nbformat.writes(without_photographs(notebook, ()))


@pytest.mark.parametrize("name", sorted(PLOTS))
def test_the_named_plots_are_saved_by_cells_that_draw_no_photographs(name):
    """A cell that saves a named plot calls functions of `plots` that draw curves or bars."""
    from notebook_support import cells_of

    drawn = {
        "plots.p_paths(found)", "plots.p_search(found)", "plots.search_by_resolution(found)",
        "plots.spectrum(whitened.variances, config.shrinkage)", "plots.accuracy_by_size(rows)",
        "retrieval_plots.retrieval_bars(measured)", "retrieval_plots.precision_recall(measured)",
        "retrieval_plots.reranking_gains(reranked)",
        "retrieval_plots.resolution_figure(curves)",
    }  # fmt: skip
    for plot in PLOTS[name]:
        [source] = [each.source for each in cells_of(name) if f'"{plot}.png"' in each.source]
        assert any(f'save_figure({call}, config, "{plot}.png")' in source for call in drawn), source
