"""`kyc-pipeline query`: every format, and errors in one line."""

import csv
import datetime
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from kyc_pipeline.cli.query import TABLE_ROWS, interruptibly, query
from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.lake.storage import duckdb_path

VALUES = (
    "SELECT * FROM (VALUES (DATE '2024-09-08', 'plain', 0.5::DOUBLE, 1.25::DECIMAL(9, 2), true, ['a', 'b']),"
    " (NULL, '=1+1', 'nan'::DOUBLE, NULL, false, [])) AS t(day, text, share, cost, ok, list)"
)


def make_warehouse(path: Path) -> None:
    with duckdb.connect(path) as connection:
        connection.execute(
            "CREATE TABLE pass_rates AS SELECT 'LIVENESS' AS check_type, 0.9::DOUBLE AS pass_rate"
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "kyc.duckdb"
    make_warehouse(path)
    return path


@pytest.fixture
def warehouse(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = Path(shutil.copy(made, tmp_path))
    monkeypatch.setenv("KYC_WAREHOUSE", str(path))
    monkeypatch.chdir(tmp_path)
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(query, arguments, catch_exceptions=False)


def test_a_table_is_the_default(warehouse: Path) -> None:
    assert run("FROM pass_rates").stdout.splitlines() == [
        "check_type  pass_rate",
        "----------  ---------",
        "LIVENESS          0.9",
    ]


def test_a_long_table_says_that_it_is_cut(warehouse: Path) -> None:
    result = run("FROM range(1000)")
    assert len(result.stdout.splitlines()) == TABLE_ROWS + 2
    assert "only the first 200 rows" in result.stderr


def test_control_characters_do_not_reach_the_terminal(warehouse: Path) -> None:
    assert "\x1b" not in run("SELECT chr(27) || '[31mred' AS \"\x1b[31mname\"").stdout


def test_nor_in_any_format(warehouse: Path) -> None:
    """The output of a real terminal; a pipe gets the bytes as they are."""
    sql = "SELECT chr(27) || '[31m' || chr(155) || '2J' || chr(8238) || 'Zoë' AS text"
    run_all = f"[query([{sql!r}, '--format', f], standalone_mode=False) for f in ('table', 'csv', 'json')]"
    command = [sys.executable, "-c", f"from kyc_pipeline.cli.query import query; {run_all}"]
    ours, terminals = os.openpty()
    subprocess.run(command, stdout=terminals, cwd=Path(__file__).parents[3], check=True)
    os.close(terminals)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert shown.count("Zoë") == 3
    assert not set(shown) & set("\x1b\x9b\u202e")


def test_csv(warehouse: Path) -> None:
    rows = list(csv.reader(io.StringIO(run(VALUES, "--format", "csv").stdout)))
    assert rows == [
        ["day", "text", "share", "cost", "ok", "list"],
        ["2024-09-08", "plain", "0.5", "1.25", "True", '["a", "b"]'],
        ["", "'=1+1", "nan", "", "False", "[]"],
    ]


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "A;=1+1",
        'A;"=1+1',
        "A;; @SUM(1)",
        "A\t-1+1",
        "A|+1",
        "A\n=1+1",
        "A\r\n;=1+1",
        "-1;-1",
        "\n=1",
        "＝1+1",
        "A;＠x",
    ],
)
def test_no_spreadsheet_takes_a_text_for_a_formula(warehouse: Path, text: str) -> None:
    """Whatever the country's separator, in whatever column, in a list, and as a name that PIVOT makes."""
    quoted = text.replace("'", "''")
    name = text.replace('"', '""')
    written = run(
        f"SELECT 5 AS number, '{quoted}' AS text, '{quoted}' AS again, ['{quoted}'] AS \"{name}\"",
        "--format",
        "csv",
    ).stdout
    cells = [
        cell
        for separator in ",;\t|"
        for row in csv.reader(io.StringIO(written, newline=""), delimiter=separator)
        for cell in row
    ]
    assert [cell for cell in cells if cell.strip(' "\t\r\n').startswith(tuple("=+-@＝＋－＠"))] == []


def test_json(warehouse: Path) -> None:
    assert json.loads(run(VALUES, "--format", "json").stdout) == [
        {"day": "2024-09-08", "text": "plain", "share": 0.5, "cost": 1.25, "ok": True, "list": ["a", "b"]},
        {"day": None, "text": "=1+1", "share": None, "cost": None, "ok": False, "list": []},
    ]
    assert json.loads(run("FROM pass_rates WHERE false", "--format", "json").stdout) == []
    assert json.loads(run("SELECT map {'a': 1.5, 'b': NULL} AS m", "--format", "json").stdout) == [
        {"m": {"a": 1.5, "b": None}}
    ]


def test_parquet_to_a_file(warehouse: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    assert run(VALUES, "--format", "parquet", "--output", str(target)).exit_code == 0
    assert pq.read_table(target).num_rows == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kyc.duckdb", "out.parquet"]


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_every_format_goes_to_a_file(warehouse: Path, tmp_path: Path, form: str) -> None:
    to_screen = run("FROM pass_rates", "--format", form).stdout
    run("FROM pass_rates", "--format", form, "--output", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text(encoding="utf-8") == to_screen


def test_the_format_is_that_of_the_output_s_name(warehouse: Path, tmp_path: Path) -> None:
    for form in ("csv", "json", "parquet"):
        named, asked = tmp_path / f"named.{form}", tmp_path / "asked"
        run("FROM pass_rates", "--output", str(named))
        run("FROM pass_rates", "--output", str(asked), "--format", form)
        assert named.read_bytes() == asked.read_bytes()
    run("FROM pass_rates", "--output", str(tmp_path / "OUT.CSV"))
    assert (tmp_path / "OUT.CSV").read_bytes() == (tmp_path / "named.csv").read_bytes()
    with pytest.raises(UsageError, match="unnamed does not say how"):
        run("FROM pass_rates", "--output", str(tmp_path / "unnamed"))
    with pytest.raises(UsageError, match=r"out\.ods does not say how.*--format table\|csv"):
        run("FROM pass_rates", "--output", str(tmp_path / "out.ods"))
    assert not (tmp_path / "out.ods").exists()


XLSX = (
    "SELECT * FROM (VALUES (9007199254740993::BIGINT, 7::BIGINT, 9007199254740993::BIGINT, '=1+1', '0012',"
    " 0.25::DOUBLE, 1.5::DECIMAL(9, 2), DATE '2024-09-08', TIMESTAMP '2024-09-08 10:00:00',"
    " TIMESTAMPTZ '2024-09-08 12:00:00+02', chr(1) || 'x' || chr(55), ['a'], true),"
    " (NULL, NULL, NULL, NULL, '', 'nan'::DOUBLE, NULL, NULL, NULL, NULL, NULL, NULL, NULL))"
    " AS t(verification_id, n, long, formula, code, share, cost, day, moment, zoned, odd, list, ok)"
)


def test_xlsx_has_every_value_as_it_is(warehouse: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.xlsx"
    assert run(XLSX, "--output", str(target)).exit_code == 0
    sheet = openpyxl.load_workbook(target).worksheets[0]
    head, full, empty = ([cell.value for cell in row] for row in sheet.iter_rows())
    row = dict(zip(head, full, strict=True))
    assert row["verification_id"] == row["long"] == "9007199254740993"
    assert (row["n"], row["formula"], row["code"], row["share"]) == (7, "=1+1", "0012", 0.25)
    assert sheet.cell(2, head.index("formula") + 1).data_type == "s"
    assert (row["cost"], row["odd"], row["list"], row["ok"]) == (1.5, "?x7", '["a"]', True)
    assert row["day"] == datetime.datetime(2024, 9, 8)
    assert row["moment"] == row["zoned"] == datetime.datetime(2024, 9, 8, 10)
    assert {value for value in empty if value} == set()


def test_xlsx_goes_to_standard_output(warehouse: Path) -> None:
    content = run("FROM pass_rates", "--format", "xlsx").stdout_bytes
    assert openpyxl.load_workbook(io.BytesIO(content)).worksheets[0]["A2"].value == "LIVENESS"


def test_more_rows_than_a_sheet_has_leave_no_file(
    warehouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kyc_pipeline.cli.query.SHEET_ROWS", 10)
    run("FROM range(9)", "--output", str(tmp_path / "fits.xlsx"))
    with pytest.raises(UsageError, match="a sheet has 10 rows"):
        run("FROM range(10)", "--output", str(tmp_path / "out.xlsx"))
    assert not (tmp_path / "out.xlsx").exists()


def test_a_byte_order_mark_only_in_csv(warehouse: Path, tmp_path: Path) -> None:
    plain, marked = tmp_path / "plain.csv", tmp_path / "marked.csv"
    run("SELECT 'Größe' AS text", "--output", str(plain))
    run("SELECT 'Größe' AS text", "--output", str(marked), "--bom")
    assert marked.read_bytes() == b"\xef\xbb\xbf" + plain.read_bytes()
    with pytest.raises(UsageError, match="--bom is for csv"):
        run("SELECT 1", "--format", "json", "--bom")


def test_of_several_statements_the_last_is_shown(warehouse: Path) -> None:
    assert run("SET VARIABLE wanted = 'LIVENESS'; FROM pass_rates WHERE check_type = getvariable('wanted')")


def test_a_result_without_rows_says_so(warehouse: Path) -> None:
    assert run("FROM pass_rates WHERE false").stderr == "no rows\n"


@pytest.mark.parametrize(
    "statement",
    [
        "SHOW TABLES",
        "DESCRIBE pass_rates",
        "SUMMARIZE pass_rates",
        "PIVOT pass_rates ON check_type USING sum(pass_rate) AS pass_rate",
    ],
)
def test_statements_that_tell_about_tables(warehouse: Path, statement: str) -> None:
    assert "pass_rate" in run(statement).stdout


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT nonsense FROM pass_rates", "nonsense"),
        ("SELECT * FROM nowhere", "nowhere"),
        ("SELEKT 1", "syntax error"),
        ("DROP TABLE pass_rates", "read-only"),
        (" -- nothing", "no rows to show: end with a query"),
        ("SELECT 1\nFROM FROM", r"syntax error.* \(line 2\)"),
        ("FROM pass_rate", 'Did you mean "pass_rates"'),
        ("SELECT pass_rat FROM pass_rates", 'Candidate bindings: "pass_rate"'),
        ("SELECT error('my reason')", "my reason"),
        ("SELECT '\udcff'", "cannot be read as UTF-8 text"),
    ],
)
def test_wrong_sql_is_one_line(warehouse: Path, sql: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        run(sql)
    assert "\n" not in str(raised.value)


FILE, NEW, LAKE = "{folder}/secret.csv", "{folder}/new", "{folder}/lake/curated/new.parquet"
STEM = "{folder}/lake/curated/facts/part-0"
FACTS = f"{STEM}.parquet"
READ = f"read_parquet('{FACTS}')"


@pytest.fixture(scope="module", params=[False, True], ids=["tables", "views"])
def sealed_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It has a warehouse, its lake and a file that no query may read."""
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "secret.csv").write_text("a\n1\n")
    (folder / ".tmp").mkdir()  # where DuckDB spills by default
    (folder / ".tmp" / "notes.txt").write_text("secret")
    facts = Path(FACTS.format(folder=folder))
    facts.parent.mkdir(parents=True)
    make_warehouse(folder / "kyc.duckdb")
    with duckdb.connect(folder / "kyc.duckdb") as connection:
        connection.execute(f"COPY (SELECT 7 AS a) TO '{facts}'")
        kind = "VIEW" if request.param else "TABLE"
        connection.execute(f"CREATE {kind} facts AS FROM read_parquet(['{facts}'])")
    return folder


@pytest.fixture
def sealed(sealed_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KYC_WAREHOUSE", str(sealed_folder / "kyc.duckdb"))
    monkeypatch.setenv("KYC_LAKE", str(sealed_folder / "lake"))
    monkeypatch.chdir(sealed_folder)
    return sealed_folder


@pytest.mark.usefixtures("sealed")
def test_facts_are_read_from_tables_and_from_views() -> None:
    assert run("FROM facts", "--format", "csv").stdout.splitlines() == ["a", "7"]


@pytest.mark.usefixtures("sealed")
@pytest.mark.parametrize(
    "sql",
    [
        "WITH few AS (FROM facts LIMIT 5) SELECT a + 1 AS b FROM few WHERE a IN (FROM few) ORDER BY ALL",
        "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 3) FROM r, main.facts",
        "SELECT *, row_number() OVER (ORDER BY a) AS n FROM kyc.main.facts QUALIFY n = 1",
        "FROM facts AS f JOIN LATERAL (SELECT f.a * x AS b FROM unnest([1, 2]) AS u (x)) ON true",
        "SELECT list_transform([a], lambda x: x + 1), {'a': a}, (SELECT max(a) FROM facts) FROM facts",
        "FROM facts UNION ALL SELECT range::INTEGER FROM range(3) EXCEPT VALUES (1)",
        "PIVOT facts ON a IN (7) USING count(*)",
        "UNPIVOT facts ON a",
        "FROM facts TABLESAMPLE 100%",
        'WITH "the facts" AS (FROM facts) SELECT "f g".a FROM "the facts" AS "f g"',
        "DESCRIBE facts",
        "SUMMARIZE facts",
        "SHOW TABLES",
        "SHOW ALL TABLES",
        "SELECT view_name FROM duckdb_views() UNION ALL SELECT table_name FROM information_schema.tables",
        "SELECT function_name, comment FROM duckdb_functions() LIMIT 1",
        "SELECT 1; FROM pass_rates",
        f"SELECT {' + '.join(['1'] * 90)}",
        "SELECT 'FROM read_parquet()' AS \"FROM 'x.parquet'\" -- FROM 'x.parquet'",
    ],
)
def test_queries_run_on_tables_and_on_views(sql: str) -> None:
    assert len(run(sql, "--format", "csv").stdout.splitlines()) >= 2


@pytest.mark.parametrize(
    "sql",
    [
        f"FROM read_text('{FILE}')",
        f"FROM read_csv('{FILE}')",
        f"FROM '{FILE}'",
        f"FROM query('FROM read_csv(''{FILE}'')')",
        f"FROM query_table('{FILE}')",
        "FROM glob('{folder}/*')",
        "FROM read_text('.tmp/notes.txt')",
        "FROM glob('.tmp/*')",
        "FROM read_blob('/proc/self/environ')",
        f"COPY (FROM pass_rates) TO '{NEW}'; SELECT 1",
        f"COPY (FROM pass_rates) TO '{LAKE}'; SELECT 1",
        f"EXPLAIN ANALYZE COPY (FROM pass_rates) TO '{LAKE}'",
        f"/* */ explain (analyze) copy pass_rates to '{LAKE}'",
        f"PREPARE p AS COPY (FROM pass_rates) TO '{LAKE}'; EXECUTE p",
        f"COPY (PIVOT pass_rates ON check_type) TO '{LAKE}'; SELECT 1",
        f"CREATE TABLE memory.t (a INT); COPY memory.t FROM '{FILE}'; FROM memory.t",
        f"EXPORT DATABASE '{NEW}'; SELECT 1",
        f"IMPORT DATABASE '{NEW}'; SELECT 1",
        f"ATTACH '{NEW}' AS other; SELECT 1",
        f"ATTACH '{LAKE}' AS other; CREATE TABLE other.t AS SELECT 1; SELECT 1",
        f"/* */ attach or replace database '{LAKE}' as other; SELECT 1",
        f"PREPARE p AS ATTACH '{LAKE}' AS other; EXECUTE p",
        f"COPY FROM DATABASE kyc TO '{NEW}'; SELECT 1",
        f"FROM sniff_csv('{FILE}')",
        f"FROM read_json('{FILE}')",
        f"FROM parquet_schema('{FILE}')",
        f"SUMMARIZE FROM '{FILE}'",
        f'DESCRIBE FROM "{FILE}"',
        f"CREATE VIEW memory.v AS FROM '{FILE}'; FROM memory.v",
        f"CREATE MACRO memory.m() AS TABLE FROM '{FILE}'; FROM memory.m()",
        "FROM 'https://127.0.0.1:9/x.csv'",
        f"LOAD '{NEW}.duckdb_extension'; SELECT 1",
        "FORCE INSTALL httpfs; SELECT 1",
        "SET GLOBAL temp_directory = '/tmp'; SELECT 1",
        "SET home_directory = '/'; SELECT 1",
        "PRAGMA enable_profiling = 'json'; SELECT 1",
        "COPY (FROM pass_rates) TO '.tmp/new.csv'; SELECT 1",
        "INSTALL httpfs; SELECT 1",
        "LOAD httpfs; SELECT 1",
        "SELECT getenv('HOME')",
        "FROM text",  # a variable of the code that runs the query
        "SET enable_external_access = true; SELECT 1",
        "RESET lock_configuration; SELECT 1",
        "SET allowed_directories = ['/']; SELECT 1",
        f"PRAGMA profiling_output = '{NEW}'; SELECT 1",
        "CREATE SECRET s (TYPE s3, KEY_ID 'x'); SELECT 1",
        f"CALL enable_logging(storage = 'file', storage_config = {{{{'path': '{NEW}'}}}}); SELECT 1",
        "UPDATE EXTENSIONS",
        "UPDATE EXTENSIONS (httpfs); SELECT 1",
        # The files of the facts, as DuckDB may open them if these are views
        f"FROM {READ}",
        f"FROM system.main.parquet_scan('{FACTS}')",
        "FROM Read_Parquet(['{folder}/lake/curated/**/*.parquet'])",
        f"FROM '{FACTS}'",
        f'TABLE "{FACTS}"',
        f'FROM "{STEM}".parquet',
        f'DESCRIBE "{FACTS}"',
        f"SUMMARIZE '{FACTS}'",
        f"SHOW '{FACTS}'",
        f"FROM (SUMMARIZE FROM {READ})",
        f"FROM query('FROM ''{FACTS}''')",
        f"FROM query('FROM ' || $${READ}$$)",
        f"FROM query_table('{FACTS}')",
        f"FROM query_table(['facts', '{FACTS}'])",
        f"FROM histogram('{FACTS}', a)",
        f"FROM histogram_values('{FACTS}', a)",
        f"FROM json_execute_serialized_sql(json_serialize_sql('FROM ''{FACTS}'''))",
        f"PRAGMA json_execute_serialized_sql(json_serialize_sql('FROM ''{FACTS}'''))",
        f"FROM parquet_metadata('{FACTS}')",
        f"FROM parquet_kv_metadata('{FACTS}')",
        f"SELECT size FROM read_blob('{FACTS}')",
        "FROM glob('{folder}/lake/curated/**')",
        f"CALL read_parquet('{FACTS}')",
        f"EXPLAIN ANALYZE FROM {READ}",
        f"PREPARE p AS FROM {READ}; EXECUTE p",
        f"SET VARIABLE x = (SELECT max(a) FROM {READ}); SELECT getvariable('x')",
        f"CREATE TEMP TABLE t AS FROM {READ}; FROM t",
        f"CREATE TEMP VIEW v AS FROM {READ}; FROM v",
        f"CREATE TEMP MACRO m(x) AS TABLE FROM read_parquet(x); FROM m('{FACTS}')",
        f"CREATE TEMP MACRO m() AS (SELECT max(a) FROM {READ}); SELECT m()",
        f"PIVOT {READ} ON a",
        f"PIVOT {READ} ON a IN (7) USING count(*)",
        f"UNPIVOT {READ} ON a",
        f"SELECT 1; FROM {READ}",
        f"FROM {READ}; SELECT 1",
        f"WITH x AS MATERIALIZED (FROM {READ}) FROM x",
        f"WITH RECURSIVE x AS (FROM {READ} UNION FROM x WHERE false) FROM x",
        f'FROM (WITH "{FACTS}" AS (SELECT 1) FROM "{FACTS}") CROSS JOIN "{FACTS}"',
        f"SELECT (SELECT max(a) FROM {READ})",
        f"SELECT [x FOR x IN (SELECT list(a) FROM {READ})]",
        f"SELECT {{{{'a': (SELECT max(a) FROM {READ})}}}}",
        f"SELECT * REPLACE ((SELECT max(a) FROM {READ}) AS a) FROM facts",
        f"SELECT sum((SELECT max(a) FROM {READ})) OVER () FROM facts",
        f"SELECT count(*) FILTER (EXISTS (FROM {READ})) FROM facts",
        f"SELECT count(*) FROM facts GROUP BY (SELECT max(a) FROM {READ})",
        f"SELECT count(*) FROM facts HAVING 7 IN (FROM {READ})",
        f"FROM facts QUALIFY row_number() OVER () IN (FROM {READ})",
        f"FROM facts WHERE a = ANY (FROM {READ})",
        f"FROM facts ORDER BY (SELECT max(a) FROM {READ})",
        f"FROM facts LIMIT (SELECT max(a) FROM {READ})",
        f"FROM facts JOIN {READ} AS r USING (a)",
        f"FROM facts AS f JOIN facts AS g ON f.a = (SELECT max(a) FROM {READ})",
        f"FROM facts, LATERAL (FROM {READ})",
        f"FROM range((SELECT max(a) FROM {READ}))",
        f"FROM unnest((SELECT list(a) FROM {READ}))",
        f"FROM facts POSITIONAL JOIN {READ}",
        f"FROM facts EXCEPT ALL FROM {READ}",
        f"VALUES ((SELECT max(a) FROM {READ}))",
        f"FROM facts WHERE a BETWEEN 0 AND (SELECT max(a) FROM {READ})",
        f"WITH x AS (INSERT INTO facts FROM {READ} RETURNING a) FROM x",
    ],
)
def test_sql_reads_the_warehouse_and_nothing_else(sealed: Path, sql: str) -> None:
    before = sorted(sealed.rglob("*"))
    with pytest.raises(UsageError) as raised:
        run(sql.format(folder=sealed))
    assert "\n" not in str(raised.value)
    assert sorted(sealed.rglob("*")) == before


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT stats(a) FROM facts",
        "SELECT f.a.STATS() FROM facts AS f",
        "SELECT json_serialize_plan('FROM facts')",
        "EXPLAIN ANALYZE FROM facts",
        f"SELECT {' + '.join(['1'] * 900)}",
    ],
)
def test_sql_on_views_does_not_see_how_duckdb_reads_them(
    sealed: Path, sql: str, request: pytest.FixtureRequest
) -> None:
    if "tables" in request.node.name:
        run(sql)
    else:
        with pytest.raises(UsageError, match=r"facts are views over the lake|too many levels"):
            run(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 'infinity'::DATE AS day",
        "SELECT '-infinity'::TIMESTAMPTZ AS day",
        "SELECT ['0044-03-15 (BC)'::DATE] AS day",
        "SELECT date AS day, * FROM test_all_types()",
    ],
)
@pytest.mark.parametrize("form", ["table", "csv", "json", "xlsx"])
def test_dates_that_python_lacks_are_one_line(warehouse: Path, sql: str, form: str) -> None:
    with pytest.raises(UsageError, match=r"^column day has a value .*: cast it to VARCHAR$"):
        run(sql, "--format", form)


def test_types_that_parquet_lacks_are_one_line(warehouse: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Unhandled type .*: cast the column"):
        run("FROM test_all_types()", "--output", str(tmp_path / "out.parquet"))
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.usefixtures("sealed")
def test_what_does_not_fit_into_memory_is_written_to_a_scratch_folder() -> None:
    wanted = "SELECT current_setting('temp_directory') AS folder"
    (folder,) = run(wanted, "--format", "csv").stdout.splitlines()[1:]
    assert Path(folder).name.startswith("kyc-scratch-")
    assert not Path(folder).exists()


def test_facts_that_are_views_are_read_from_a_lake_with_an_odd_name(
    warehouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = tmp_path / "it's [1]"
    (lake / "curated").mkdir(parents=True)
    monkeypatch.setenv("KYC_LAKE", str(lake))
    file = str(lake / "curated" / "facts.parquet")
    pq.write_table(pa.table({"a": [7]}), file)
    with duckdb.connect(warehouse) as connection:
        literal = duckdb_path(file).replace("'", "''")
        connection.execute(f"CREATE VIEW facts AS FROM read_parquet(['{literal}'])")
    assert run("FROM facts", "--format", "csv").stdout.splitlines() == ["a", "7"]


def test_sql_from_a_file_and_from_standard_input(warehouse: Path, tmp_path: Path) -> None:
    sql = "-- Größen\nSELECT check_type\nFROM pass_rates;\n"
    script = tmp_path / "question.sql"
    script.write_text(sql, encoding="utf-8")
    wanted = run("SELECT check_type FROM pass_rates").stdout
    assert run("--file", str(script)).stdout == wanted
    assert CliRunner().invoke(query, ["-f", "-"], input=sql, catch_exceptions=False).stdout == wanted


def test_sql_or_a_file_but_not_both_and_not_neither(warehouse: Path, tmp_path: Path) -> None:
    script = tmp_path / "question.sql"
    script.write_bytes(b"SELECT '\xff'")
    with pytest.raises(UsageError, match="give the SQL, or name its file with --file"):
        run()
    with pytest.raises(UsageError, match="not both"):
        run("SELECT 1", "--file", str(script))
    with pytest.raises(UsageError, match=r"question\.sql cannot be read as UTF-8 text"):
        run("--file", str(script))


def test_a_query_that_fails_leaves_the_file_as_it_was(warehouse: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    target.write_text("old")
    half_way = "SELECT CASE WHEN range = 90000 THEN error('half-way') ELSE range END FROM range(100000)"
    with pytest.raises(UsageError, match="half-way"):
        run(half_way, "--format", "csv", "--output", str(target))
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kyc.duckdb", "out.csv"]


def test_an_output_that_cannot_be_written_is_one_line(warehouse: Path, tmp_path: Path) -> None:
    result = run("FROM pass_rates", "--output", str(tmp_path / "nowhere" / "out.csv"))
    assert (result.exit_code, f"the folder {tmp_path}/nowhere does not exist" in result.stderr) == (2, True)
    assert not (tmp_path / "nowhere").exists()
    result = run("FROM pass_rates", "--output", str(tmp_path / ("n" * 300) / "out.csv"))
    assert (result.exit_code, "does not exist" in result.stderr) == (2, True)
    with pytest.raises(KycError, match="cannot write"):
        run("FROM pass_rates", "--output", "/proc/out.csv")


def test_an_output_that_is_no_regular_file_is_refused(warehouse: Path, tmp_path: Path) -> None:
    """A device would be replaced, too."""
    pipe, link = tmp_path / "pipe.csv", tmp_path / "link.csv"
    os.mkfifo(pipe)
    link.symlink_to("/proc/self/fd/1")
    for output in (pipe, link):
        result = run("FROM pass_rates", "--output", str(output))
        assert (result.exit_code, "is not a regular file" in result.stderr) == (2, True)
    assert (pipe.is_fifo(), link.is_symlink()) == (True, True)


def test_no_warehouse_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYC_WAREHOUSE", str(tmp_path / "kyc.duckdb"))
    with pytest.raises(KycError, match="there is no warehouse"):
        run("SELECT 1")


@pytest.mark.parametrize(
    ("sql", "form", "start"),
    [
        ("FROM range(10_000_000)", "csv", b"range\r\n"),
        ("SELECT md5(range::VARCHAR) FROM range(10_000)", "xlsx", b"PK"),
    ],
)
def test_a_reader_that_stops_reading_ends_the_command(
    warehouse: Path, sql: str, form: str, start: bytes
) -> None:
    command = [sys.executable, "-c", "from kyc_pipeline.cli import main; main()"]
    with subprocess.Popen(
        [*command, "query", sql, "--format", form],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(len(start)) == start
        process.stdout.close()
        assert process.stderr is not None
        printed = process.stderr.read()
        assert b"Traceback" not in printed
        assert b"Exception ignored" not in printed
    assert process.returncode == 1


def test_ctrl_c_ends_a_query_that_has_no_rows_yet() -> None:
    """Without the interruption it takes days, and the test times out."""
    with duckdb.connect() as connection:

        def work() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            connection.sql(
                "SELECT count(*) FROM range(10_000_000) a, range(10_000_000) b WHERE a <> b"
            ).fetchall()

        with pytest.raises(KeyboardInterrupt):
            interruptibly(connection, work)
        assert connection.sql("SELECT 1").fetchall() == [(1,)]
