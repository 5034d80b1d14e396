"""Executed notebooks without any picture that shows a photograph: only named plots stay.

The photographs of `make real` may be measured, but not shown. A figure stays if its cell saves it by a name
of PLOTS, and shows no other picture. HTML, widgets and attachments are removed; their text stays."""

import re

import nbformat

PLOTS = {
    "02_finetune_p": ("p_paths", "p_star", "figure_4"),
    "03_whiten": ("spectrum",),
    "04_evaluate_imagenet": ("accuracy",),
    "05_evaluate_retrieval": ("retrieval", "precision_recall", "reranking", "figure_4"),
}
REMOVED = "(a picture of photographs, which is not part of the reference)"
SAVED = re.compile(r"""save_figure\(.*?, config, "(\w+)\.png"\)""")


def without_photographs(notebook: nbformat.NotebookNode, plots: tuple[str, ...]) -> nbformat.NotebookNode:
    """Remove all pictures but the named plots from an executed notebook, which is changed and returned."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.pop("attachments", None)
        kept = len(pictures_of(cell)) == 1 and shows_plot(cell, plots)
        for output in cell.get("outputs", []):
            if "data" in output:
                output["data"] = shown_data(output["data"], pictures=kept)
    return notebook


def shows_plot(cell: nbformat.NotebookNode, plots: tuple[str, ...]) -> bool:
    """Whether a cell saves one figure, and by one of these names."""
    return len(saved := SAVED.findall(cell.source)) == 1 and saved[0] in plots


def pictures_of(cell: nbformat.NotebookNode) -> list[dict]:
    """The outputs of a cell that are pictures."""
    return [each for each in cell.get("outputs", []) if any(map(is_picture, each.get("data", {})))]


def shown_data(data: dict, *, pictures: bool) -> dict:
    """What stays of an output {MIME type: content}: its text, and the picture if pictures stay."""
    if pictures and any(map(is_picture, data)):
        return {kind: content for kind, content in data.items() if is_picture(kind) or kind == "text/plain"}
    text = "".join(data.get("text/plain", ""))
    lost = any(map(is_picture, data)) or any(trace in str(data) for trace in ("data:image", "<img", "<svg"))
    return {"text/plain": REMOVED if lost or not text else text}


def is_picture(kind: str) -> bool:
    return kind.startswith("image/")
