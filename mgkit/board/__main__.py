"""Print the board: `python -m mgkit.board`."""

from mgkit.board.entries import board, elsewhere
from mgkit.board.text import table

if __name__ == "__main__":
    print(table(board(), elsewhere()))
