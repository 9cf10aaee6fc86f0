"""What is read when the daemon starts does not grow with every template but in rows."""

from catalogue_values import add, manifest, statements


def test_starting_asks_as_often_for_thirty_templates_as_for_one(catalogue):
    def start():
        catalogue.templates()
        catalogue.all_declarations()
        catalogue.references()
        catalogue.families.states()

    add(catalogue, "first", manifest(0))
    for_one = statements(start)
    for number in range(1, 30):
        add(catalogue, f"more-{number}", manifest(number))
    assert len(catalogue.templates()) == 30
    assert statements(start) == for_one


def test_starting_reads_no_piece_hashes_and_no_mirrors(catalogue):
    add(catalogue)

    def start():
        catalogue.templates()
        catalogue.all_declarations()

    said = statements(start)
    assert any("FROM template" in statement for statement in said)
    assert not any("piece_digests" in s or "FROM mirror" in s for s in said)
