from __future__ import annotations

import concurrent.futures
import dataclasses
import sqlite3
import threading
from pathlib import Path

import pytest

from zerostate_node.errors import ConfigError
from zerostate_node.ledger import migrate
from zerostate_node.ledger.migrate import Migration

ONE = Migration(1, "0001_one.sql", "CREATE TABLE a (x INTEGER);")
TWO = Migration(2, "0002_two.sql", "ALTER TABLE a ADD COLUMN y TEXT;\nCREATE TABLE b (z);")
BROKEN = Migration(3, "0003_broken.sql", "CREATE TABLE c (x);\nINSERT INTO nowhere VALUES (1);")


def tables(path: Path) -> set[str]:
    with sqlite3.connect(path) as conn:
        return {name for (name,) in conn.execute("SELECT name FROM sqlite_schema")}


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_the_carried_migrations_apply_to_an_empty_file_and_then_to_nothing(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "db.sqlite"
    carried = migrate.carried(kind)
    assert migrate.pending(path, carried) == [migration.name for migration in carried]
    assert not path.exists()
    assert migrate.migrate(path, carried, now_ms=5) == [migration.name for migration in carried]
    assert migrate.migrate(path, carried, now_ms=6) == []
    assert migrate.applied(path) == [migration.name for migration in carried]
    assert migrate.pending(path, carried) == []


def test_a_later_version_applies_only_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    migrate.migrate(path, [ONE], now_ms=1)
    assert migrate.migrate(path, [ONE, TWO], now_ms=2) == [TWO.name]
    assert {"a", "b"} <= tables(path)


def test_a_failed_migration_keeps_nothing_and_names_its_statement(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    with pytest.raises(ConfigError, match="nowhere") as caught:
        migrate.migrate(path, [ONE, TWO, BROKEN], now_ms=1)
    assert caught.value.code == "failed_migration"
    assert "statement 2 of 0003_broken.sql" in caught.value.message
    assert "c" not in tables(path)
    assert migrate.applied(path) == [ONE.name, TWO.name]
    mended = dataclasses.replace(BROKEN, sql="CREATE TABLE c (x);")
    assert migrate.migrate(path, [ONE, TWO, mended], now_ms=2) == [mended.name]


def test_an_edited_migration_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    migrate.migrate(path, [ONE], now_ms=1)
    edited = dataclasses.replace(ONE, sql=ONE.sql + " ")
    with pytest.raises(ConfigError) as caught:
        migrate.migrate(path, [edited, TWO], now_ms=2)
    assert caught.value.code == "edited_migration"
    assert caught.value.hint
    assert "b" not in tables(path)


def test_a_database_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    migrate.migrate(path, [ONE, TWO], now_ms=1)
    with pytest.raises(ConfigError, match="newer") as caught:
        migrate.migrate(path, [ONE], now_ms=2)
    assert caught.value.code == "newer_database"


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    path.write_bytes(b"my thesis" * 1000)
    with pytest.raises(ConfigError) as caught:
        migrate.migrate(path, [ONE], now_ms=1)
    assert caught.value.code == "bad_database"
    with pytest.raises(ConfigError):
        migrate.applied(path)
    assert path.read_bytes() == b"my thesis" * 1000


def test_a_symbolic_link_is_not_followed_to_a_database(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="regular file"):
        migrate.migrate(path, [ONE], now_ms=1)
    assert not (tmp_path / "elsewhere").exists()


def test_a_migration_cannot_end_its_own_transaction(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    sneaky = Migration(1, "0001_sneaky.sql", "CREATE TABLE a (x); COMMIT; CREATE TABLE b (x);")
    with pytest.raises(ConfigError) as caught:
        migrate.migrate(path, [sneaky], now_ms=1)
    assert caught.value.code == "bad_migrations"
    assert migrate.applied(path) == []


def test_two_that_start_at_once_apply_each_migration_once(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    start = threading.Barrier(4)

    def run(_: int) -> list[str]:
        start.wait()
        return migrate.migrate(path, [ONE, TWO], now_ms=1)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        names = [name for found in pool.map(run, range(4)) for name in found]
    assert sorted(names) == [ONE.name, TWO.name]


def test_statements_are_split_where_sql_ends_them() -> None:
    sql = """
    -- a comment; with a semicolon
    CREATE TABLE a (x TEXT DEFAULT ';');
    CREATE TRIGGER t AFTER INSERT ON a BEGIN
      INSERT INTO a VALUES (';'); DELETE FROM a;
    END;
    -- the end
    """
    first, second = migrate.statements(sql)
    assert first.endswith("DEFAULT ';');")
    assert second.startswith("CREATE TRIGGER")
    assert second.endswith("END;")
