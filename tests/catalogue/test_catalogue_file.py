"""The file: made, migrated, refused, damaged, and no room for it."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from catalogue_values import add, manifest, run
from sqlalchemy.schema import CreateTable

from ddfs import errors
from ddfs.catalogue import catalogue as module
from ddfs.catalogue import migrate, schema
from ddfs.catalogue.catalogue import Catalogue


def execute(path, *statements):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        return [connection.execute(statement).fetchall() for statement in statements]


def test_file_migrations_end_at_the_tables_in_schema(catalogue):
    with catalogue._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.METADATA) == []
    scripts = ScriptDirectory(str(migrate.SCRIPTS))
    assert scripts.get_current_head() == migrate.HEAD


def test_file_has_wal_and_a_row_counter_that_only_grows(catalogue):
    add(catalogue)
    with catalogue._engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    full = 2
    assert pragmas == {
        "journal_mode": "wal", "synchronous": full, "foreign_keys": 1, "busy_timeout": 5000
    }  # fmt: skip
    [[(sql,)]] = execute(catalogue.path, "SELECT sql FROM sqlite_schema WHERE name = 'template'")
    assert "AUTOINCREMENT" in sql
    assert "AUTOINCREMENT" in str(CreateTable(schema.template).compile(catalogue._engine))


def test_file_opening_a_current_one_imports_no_alembic(tmp_path):
    Catalogue.open(tmp_path).close()
    program = (
        "import sys, pathlib\n"
        "from ddfs.catalogue.catalogue import Catalogue\n"
        "Catalogue.open(pathlib.Path(sys.argv[1])).close()\n"
        "sys.exit('alembic' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


NEXT = """
revision = "next"
down_revision = "{head}"
branch_labels = depends_on = None
from alembic import op
import sqlalchemy as sa
def upgrade():
    with op.batch_alter_table("template") as batch:
        batch.add_column(sa.Column("tried", sa.Boolean(), nullable=False, server_default="0"))
    {then}
"""


def scripts_with_a_next_one(directory, then="pass"):
    scripts = directory / "migrations"
    shutil.copytree(migrate.SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "next.py").write_text(NEXT.format(head=migrate.HEAD, then=then))
    return scripts


def test_file_of_an_older_ddfs_is_copied_and_migrated(tmp_path):
    Catalogue.open(tmp_path).close()
    old = Catalogue.open(tmp_path)
    added = add(old)
    old.close()
    engine = module._engine(old.path)
    migrate.bring_up(engine, old.path, scripts=scripts_with_a_next_one(tmp_path), head="next")
    engine.dispose()
    version, tried = execute(
        old.path, "SELECT version_num FROM alembic_version", "SELECT name, tried FROM template"
    )
    assert (version, tried) == ([("next",)], [("debian-12", 0)])
    copy = tmp_path / "catalogue.db.before-next"
    assert copy.stat().st_mode & 0o777 == 0o600
    # The copy is a catalogue of the old version.
    (tmp_path / "restored").mkdir()
    shutil.copy(copy, tmp_path / "restored" / "catalogue.db")
    restored = Catalogue.open(tmp_path / "restored")
    assert restored.templates() == [added]
    restored.close()


def test_file_whose_migration_fails_is_as_it_was(tmp_path):
    old = Catalogue.open(tmp_path)
    added = add(old)
    old.close()
    scripts = scripts_with_a_next_one(tmp_path, "op.execute('INSERT INTO nowhere VALUES (1)')")
    engine = module._engine(old.path)
    with pytest.raises(Exception, match="no such table: nowhere"):
        migrate.bring_up(engine, old.path, scripts=scripts, head="next")
    engine.dispose()
    again = Catalogue.open(tmp_path)
    assert again.templates() == [added]
    again.close()


def test_file_of_a_newer_ddfs_is_refused_untouched(tmp_path):
    Catalogue.open(tmp_path).close()
    path = tmp_path / "catalogue.db"
    execute(path, "UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    with pytest.raises(errors.CatalogueError, match=r"newer ddfs \(schema 9999\); install that"):
        Catalogue.open(tmp_path)
    assert path.read_bytes() == before


def test_file_of_another_program_is_refused_untouched(tmp_path):
    path = tmp_path / "catalogue.db"
    execute(path, "CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(errors.CatalogueError, match="another program; move it away"):
        Catalogue.open(tmp_path)
    assert path.read_bytes() == before


def cut(data):
    return data[: len(data) // 2]


def garbage(data):
    return b"not a database at all" * 1000


def holes(data):
    """Everything behind the first page, which has the list of tables."""
    return data[:4096] + b"\xa5" * (len(data) - 4096)


@pytest.mark.parametrize("damage", [cut, garbage, holes])
def test_file_that_is_damaged_is_refused_untouched(tmp_path, damage):
    whole = Catalogue.open(tmp_path)
    for number in range(50):
        add(whole, f"t{number}", manifest(number))
    whole.close()
    path = tmp_path / "catalogue.db"
    broken = damage(path.read_bytes())
    path.write_bytes(broken)
    with pytest.raises(errors.CatalogueError) as caught:
        Catalogue.open(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{path}: it is damaged; stop ddfs, put a backup in its place")
    assert "\n" not in text
    assert path.read_bytes() == broken


def test_file_with_damage_that_no_listing_touches(tmp_path):
    whole = Catalogue.open(tmp_path)
    add(whole)
    whole.close()
    [[(page,)]] = execute(whole.path, "SELECT rootpage FROM sqlite_schema WHERE name = 'mirror'")
    with open(whole.path, "r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 100)
    with pytest.raises(errors.CatalogueError, match="it is damaged"):
        Catalogue.open(tmp_path)


def test_file_that_is_damaged_while_open(catalogue):
    for number in range(50):
        add(catalogue, f"t{number}", manifest(number))
    path = catalogue.path
    execute(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))
    with pytest.raises(errors.CatalogueError, match="it is damaged"):
        catalogue.templates()


def test_file_that_is_a_directory(tmp_path):
    (tmp_path / "catalogue.db").mkdir()
    with pytest.raises(errors.CatalogueError, match=r"catalogue.db: Is a directory"):
        Catalogue.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.CatalogueError, match="Not a directory"):
        Catalogue.open(tmp_path / "file" / "state")


def test_file_in_a_read_only_directory(small):
    Catalogue.open(small / "state").close()
    run("mount", "-o", "remount,ro", str(small))
    for directory in (small / "state", small / "fresh"):
        with pytest.raises(errors.CatalogueError, match="Read-only file system") as caught:
            Catalogue.open(directory)
        assert "state_dir" in str(caught.value)


def test_file_on_a_full_disk_loses_nothing(small):
    catalogue = Catalogue.open(small / "state")
    added = add(catalogue)
    large = manifest(2, size=100_000 * 2**20)  # 3 MB of piece hashes on 2 MB
    with pytest.raises(errors.CatalogueError, match="no room left on its disk; free some"):
        add(catalogue, "large", large)
    assert catalogue.templates() == [added]
    add(catalogue, "small", manifest(3))
    catalogue.close()
    again = Catalogue.open(small / "state")
    assert [template.name for template in again.templates()] == ["debian-12", "small"]
    again.close()


def test_file_cannot_be_made_on_a_full_disk(small):
    with pytest.raises(OSError, match="No space left"):
        (small / "ballast").write_bytes(bytes(4 * 2**20))
    with pytest.raises(errors.CatalogueError, match=r"(left on its disk|is full);?.* try again"):
        Catalogue.open(small / "state")
    os.unlink(small / "ballast")
    Catalogue.open(small / "state").close()


def test_file_that_somebody_holds(catalogue, monkeypatch):
    with contextlib.closing(sqlite3.connect(catalogue.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(module, "BUSY_TIMEOUT_SECONDS", 0.1)
        impatient = module.Catalogue(catalogue.path, module._engine(catalogue.path))
        with pytest.raises(errors.CatalogueError, match="another program holds it"):
            add(impatient)
        impatient.close()
        other.execute("ROLLBACK")
    add(catalogue)
