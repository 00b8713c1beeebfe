"""Pages of measured tables: a new page, a part replaced inside a hand-written one, markers that do not fit."""

import pytest

from dassl_prompts.run.pages import END, begin, write_page

HAND = f"""# Mine

Written by hand.

{begin("a ablate")}
old
{END}

Between the two.

{begin("a compare")}
other
{END}
The end.
"""


def write(path, name="a ablate", text="| new |"):
    write_page(path, name, "A title", "python -m a ablate --seed 1", text)


def test_a_new_page_has_title_command_and_table(tmp_path):
    write(tmp_path / "new" / "page.md")
    page = (tmp_path / "new" / "page.md").read_text()
    assert page == f"# A title\n\n{begin('a ablate')}\n```\npython -m a ablate --seed 1\n```\n\n| new |\n{END}\n"


def test_only_the_marked_part_changes(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(HAND)
    write(path)
    expected = HAND.replace("\nold\n", "\n```\npython -m a ablate --seed 1\n```\n\n| new |\n")
    assert path.read_text() == expected
    write(path)
    assert path.read_text() == expected


def test_text_added_to_a_written_page_survives_the_next_table(tmp_path):
    path = tmp_path / "page.md"
    write(path, text="| old |")
    path.write_text(path.read_text() + "\nWhat it means.\n")
    write(path)
    assert path.read_text().endswith("| new |\n<!-- end -->\n\nWhat it means.\n")


def test_a_page_without_markers_is_written_anew(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("| old |")
    write(path)
    assert "old" not in path.read_text() and path.read_text().startswith("# A title\n")


@pytest.mark.parametrize(
    ("page", "match"),
    [
        (HAND.replace("a ablate", "b"), r"page\.md: it has no <!-- begin: a ablate -->, only <!-- begin: b -->"),
        (HAND.replace(END, ""), "has no <!-- end -->"),
        (HAND.replace(END, "", 1), "has no <!-- end -->"),
        (HAND.replace("a compare", "a ablate"), "occurs 2 times"),
    ],
)
def test_markers_that_do_not_fit(tmp_path, page, match):
    path = tmp_path / "page.md"
    path.write_text(page)
    with pytest.raises(ValueError, match=match):
        write(path)
    assert path.read_text() == page
