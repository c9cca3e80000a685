"""Tables in Markdown hold any text."""

from tgo_trl.messages.markdown import markdown_table


def test_cells_stay_in_their_line_and_column():
    table = markdown_table(["a", "b | c"], [["two\nlines", 1], ["x\\|y", "\\frac"]])
    assert table == "| a | b \\| c |\n|---|---|\n| two lines | 1 |\n| x\\\\\\|y | \\frac |"
