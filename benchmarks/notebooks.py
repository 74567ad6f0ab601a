"""Execute examples/notebooks/*.ipynb and store their outputs, with the real `offline` backbone: minutes.

python benchmarks/notebooks.py
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def executed(path: Path, before: str = "") -> nbformat.NotebookNode:
    """Return a notebook with its outputs; a cell that fails raises.

    Args:
        before: Code that its kernel runs first.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[:0] = [nbformat.v4.new_code_cell(before)] if before else []
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(FOLDER)}}).execute()
    del notebook.cells[: bool(before)]
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of the run
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]  # notes of libraries
    return notebook


def main() -> None:
    """Execute every notebook and write it back."""
    for path in NOTEBOOKS:
        nbformat.write(executed(path), path)


if __name__ == "__main__":
    main()
