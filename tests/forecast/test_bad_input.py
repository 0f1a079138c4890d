"""Every input that cannot serve is refused in one line that says where and what to do; nothing half-written stays."""

import builtins
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

Maker = Callable[..., Any]
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, long_frame: Maker, learned: Maker) -> Path:
    """A checkpoint of a window of 8 and a horizon of 4, and one with covariates beside it; read only."""
    folder = tmp_path_factory.mktemp("trained")
    learned(long_frame(60)).save_pretrained(folder / "plain")
    learned(long_frame(60, covariates=True), "arnet-covariates").save_pretrained(folder / "covariates")
    return folder


@pytest.fixture
def refused(command: Command, trained: Path, tmp_path: Path) -> Callable[..., str]:
    """A function: `forecast`, `evaluate`, `backtest` or `train` of a table; its one line, and nothing is written."""

    def run(table: Any, *options: Any, verb: str = "forecast", checkpoint: str = "plain") -> str:
        out = tmp_path / "out"
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        first = [trained / checkpoint, table]
        if verb == "train":
            recipe = tmp_path / "recipe.yaml"
            model = {"name": "ARNet", "window": 8, "horizon": 4}
            sections = {"model": model, "data": {"name": "Table", "csv": str(table)}, "loss": {"name": "MSE"}}
            recipe.write_text(
                yaml.safe_dump({**sections, "optimizer": {"name": "Adam", "lr": 0.01}, "train": {"epochs": 1}})
            )
            before[recipe] = recipe.read_bytes()
            first = [recipe]
        result = command(verb, *first, *([] if verb == "evaluate" else ["-o", out]), *options, "-q")
        assert result.exit_code == 1, result.stdout
        assert len(result.stderr.splitlines()) == 1, result.stderr
        if verb != "evaluate":  # whose table of the files that could be scored is then empty
            assert result.stdout == ""
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert after == before
        return str(result.stderr.strip())

    return run


@pytest.fixture
def table(tmp_path: Path, long_frame: Maker) -> Callable[..., Path]:
    """A function that writes a table, changed by a function; returns its path."""

    def write(
        change: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame, rows: int = 60, **options: Any
    ) -> Path:
        path = tmp_path / "sales.csv"
        change(long_frame(rows)).to_csv(path, **{"index": False, **options})
        return path

    return write


VERBS = ("forecast", "evaluate", "backtest", "train")


def spoiled(value: Any, row: int = 70) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A change: a cell of y is another value."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        y = frame["y"].astype(object)
        y.loc[row] = value
        return frame.assign(y=y)

    return change


@pytest.mark.parametrize("verb", VERBS)
def test_a_missing_column(verb: str, table: Maker, refused: Maker) -> None:
    option = {"train": ["data.targets=[sale]"]}.get(verb, [])
    line = refused(
        table(lambda frame: frame.rename(columns={"ds": "when_it_was"}).assign(when_it_was="x")), *option, verb=verb
    )
    assert "sales.csv: " in line or "recipe.yaml" in line
    if verb == "forecast":
        line = refused(table(), "--targets", "sale", verb=verb)
        assert re.search(r"sales\.csv: .*'sale'", line)


@pytest.mark.parametrize("verb", VERBS)
def test_a_cell_that_is_no_number_is_named_with_its_row(verb: str, table: Maker, refused: Maker) -> None:
    line = refused(table(spoiled("many")), verb=verb)
    assert "sales.csv" in line
    assert "72" in line  # the header is line 1
    assert "'many'" in line


@pytest.mark.parametrize("verb", VERBS)
def test_infinity(verb: str, table: Maker, refused: Maker) -> None:
    line = refused(table(spoiled("inf")), verb=verb)
    assert "72" in line
    assert "inf" in line.lower()


@pytest.mark.parametrize("verb", VERBS)
def test_two_rows_of_a_stamp_are_named_with_both_values(verb: str, table: Maker, refused: Maker) -> None:
    path = table(lambda frame: pd.concat([frame, frame.iloc[[65]].assign(y=1234.5)]))
    line = refused(path, verb=verb)
    assert "'b'" in line
    assert "2024-01-06" in line
    assert "1234.5" in line


@pytest.mark.parametrize("verb", VERBS)
def test_a_frequency_that_cannot_be_inferred(verb: str, table: Maker, refused: Maker) -> None:
    stamps = [pd.Timestamp("2024-01-01") + pd.Timedelta(minutes=int(at**2.3)) for at in range(60)]
    line = refused(table(lambda frame: frame.assign(ds=np.tile(np.array(stamps), 3))), verb=verb)
    assert "sales.csv" in line
    assert "freq" in line


def shortened(rows: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A change: series c has so many rows."""
    return lambda frame: frame[(frame["unique_id"] != "c") | (frame.groupby("unique_id").cumcount() < rows)]


@pytest.mark.parametrize("verb", ["forecast", "train"])
def test_a_series_that_is_too_short(verb: str, table: Maker, refused: Maker) -> None:
    rows = {"forecast": 5}.get(verb, 7)
    line = refused(table(shortened(rows)), verb=verb)
    needed = {"forecast": "8 (window 8)"}.get(verb, "12 (window 8 + horizon 4)")
    assert f"series 'c' has {rows} rows; needed are {needed}" in line
    assert "skip-short" in line


@pytest.mark.parametrize("verb", ["evaluate", "backtest"])
def test_scores_say_which_series_are_too_short(
    verb: str, table: Maker, command: Command, trained: Path, tmp_path: Path, refused: Maker
) -> None:
    path = table(shortened(7))
    result = command(verb, trained / "plain", path, "-o", tmp_path / "first", "-q")
    assert result.exit_code == 0, result.stderr
    said = " ".join((result.stdout + result.stderr).split())
    assert "left out 1 series: 'c' (7): fewer than 12 rows: window 8 + horizon 4" in said
    line = refused(table(rows=11), verb=verb)
    assert "every series is too short: series 'a' has 11 rows; needed are 12 (window 8 + horizon 4)" in line


def test_short_series_are_left_out_where_it_is_said(
    table: Maker, command: Command, trained: Path, tmp_path: Path
) -> None:
    path = table(shortened(5))
    result = command("forecast", trained / "plain", path, "-o", tmp_path / "out", "--skip-short", "-q")
    assert result.exit_code == 0
    assert "'c' (5)" in result.stderr + result.stdout
    assert list(pd.read_csv(tmp_path / "out" / "sales.csv")["unique_id"].unique()) == ["a", "b"]


def test_horizon_0(command: Command, trained: Path, table: Maker, tmp_path: Path) -> None:
    result = command("forecast", trained / "plain", table(), "-o", tmp_path / "out", "--horizon", 0)
    assert result.exit_code == 2  # as every option out of its range
    assert not (tmp_path / "out").exists()


def test_an_unknown_protocol(table: Maker, refused: Maker) -> None:
    line = refused(table(), "--protocol", "tsib", verb="evaluate")
    assert line.startswith("protocol must be one of last, fractions, tslib")
    assert line.endswith("got 'tsib'")
    line = refused(table(), "data.split=tsib", verb="train")
    assert "protocol must be one of" in line


def test_covariates_that_are_missing_ahead(tmp_path: Path, long_frame: Maker, refused: Maker) -> None:
    frame = long_frame(60, covariates=True)
    path = tmp_path / "sales.csv"
    frame.to_csv(path, index=False)
    line = refused(path, checkpoint="covariates")
    assert "future covariates (price) are missing for 12 of 12 rows of the horizon, first id 'a', ds 2024-03-01" in line
    ahead = pd.DataFrame(
        {"unique_id": np.repeat(["a", "b", "c"], 4), "ds": np.tile(pd.date_range("2024-03-01", periods=4), 3)}
    )
    ahead["price"] = 1.0
    ahead.drop(index=6).to_csv(tmp_path / "ahead.csv", index=False)
    line = refused(path, "--future-frame", tmp_path / "ahead.csv", checkpoint="covariates")
    assert "missing for 1 of 12 rows of the horizon, first id 'b', ds 2024-03-03" in line
    assert "--future-frame" in line


@pytest.mark.parametrize("verb", ["evaluate", "backtest", "forecast"])
def test_a_table_of_constants_is_no_error_for_a_model_that_has_learnt(
    verb: str, table: Maker, command: Command, trained: Path, tmp_path: Path
) -> None:
    path = table(lambda frame: frame.assign(y=3.0), 100)
    result = command(verb, trained / "plain", path, "-o", tmp_path / "out", "-q")
    assert result.exit_code == 0, result.stderr
    assert "nan" not in result.stdout.lower()


def test_nothing_is_learnt_from_constants(table: Maker, command: Command, tmp_path: Path, recipe: Maker) -> None:
    path = table(lambda frame: frame.assign(y=3.0), 100)
    result = command("train", recipe("arnet", data={"csv": str(path)}), "-o", tmp_path / "out", "-q")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "every series is constant (the first is 3 in all rows): nothing can be learnt from them" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["forecast", "evaluate", "backtest"])
def test_a_checkpoint_of_other_columns(verb: str, table: Maker, refused: Maker, tmp_path: Path) -> None:
    line = refused(table(lambda frame: frame.assign(z=frame["y"] + 1).rename(columns={"y": "x"})), verb=verb)
    assert re.search(r"sales\.csv: .*no column 'y'", line)
    hours = lambda frame: frame.assign(  # noqa: E731
        ds=pd.Timestamp("2024-01-01") + pd.to_timedelta(frame.groupby("unique_id").cumcount(), unit="h")
    )
    line = refused(table(hours), verb=verb)
    assert "has steps of h; ARNet was trained on steps of D" in line


@pytest.mark.parametrize("form", ["bom", "semicolons", "decimal commas", "tabs", "crlf"])
def test_forms_of_a_csv_that_people_have(
    form: str, table: Maker, command: Command, trained: Path, tmp_path: Path
) -> None:
    plain = table()
    assert command("forecast", trained / "plain", plain, "-o", tmp_path / "plain", "-q", "--no-preview").exit_code == 0
    options: dict[str, Any] = {
        "bom": {"encoding": "utf-8-sig"},
        "semicolons": {"sep": ";"},
        "decimal commas": {"sep": ";", "decimal": ","},
        "tabs": {"sep": "\t"},
        "crlf": {"lineterminator": "\r\n"},
    }[form]
    path = table(**options)
    result = command("forecast", trained / "plain", path, "-o", tmp_path / "other", "-q", "--no-preview")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "plain" / "sales.csv").read_bytes() == (tmp_path / "other" / "sales.csv").read_bytes()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("content", [b"", b"\n\n", b"unique_id,ds,y\n"])
def test_an_empty_file(verb: str, content: bytes, tmp_path: Path, refused: Maker) -> None:
    path = tmp_path / "empty.csv"
    path.write_bytes(content)
    line = refused(path, verb=verb)
    assert "empty.csv" in line
    assert "empty" in line or "no rows" in line


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["data.csv", "data.parquet", "data.npz"])
def test_a_pickle_is_not_opened(verb: str, name: str, tmp_path: Path, refused: Maker) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / name
    path.write_bytes(pickle.dumps(Trap()))
    line = refused(path, verb=verb)
    assert name in line
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_parquet_without_pyarrow(
    verb: str, table: Maker, refused: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sales.parquet"
    pytest.importorskip("pyarrow")
    pd.read_csv(table()).to_parquet(path)
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name.split(".")[0] == "pyarrow":
            raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    line = refused(path, verb=verb)
    assert "pyarrow" in line
    assert "recurra-forecast[parquet]" in line
    if verb == "forecast":
        line = refused(table(), "--format", "parquet")
        assert "recurra-forecast[parquet]" in line


@pytest.mark.parametrize("verb", ["forecast", "evaluate", "backtest"])
def test_an_output_that_is_the_input(
    verb: str, trained: Path, command: Command, tmp_path: Path, long_frame: Maker
) -> None:
    name = {"forecast": "sales.csv", "evaluate": "metrics.csv", "backtest": "backtest.csv"}[verb]
    path = tmp_path / name
    long_frame(100).to_csv(path, index=False)
    before = path.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    for out in (tmp_path, link):
        result = command(verb, trained / "plain", path, "-o", out, "--overwrite", "-q")
        assert result.exit_code == 1, result.stdout
        assert len(result.stderr.splitlines()) == 1
        assert name in result.stderr
        assert path.read_bytes() == before


def test_what_is_no_checkpoint(command: Command, table: Maker, tmp_path: Path) -> None:
    for name in ("nothing", "empty"):
        folder = tmp_path / name
        if name == "empty":
            folder.mkdir()
        for verb in ("forecast", "evaluate", "backtest"):
            result = command(verb, folder, table(), "-o", tmp_path / "out", "-q")
            assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1), result.stderr
            assert name in result.stderr
            assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--levels", "0"], "level"),
        (["--levels", "abc"], "level"),
        (["--minimum", "3", "--maximum", "1"], "minimum 3 is greater than maximum 1"),
        (["--fill", "guess"], "fill must be one of none, linear, zero, calendar, previous"),
        (["--freq", "fortnight"], "fortnight"),
        (["--zone", "Mars/Crater"], "Mars/Crater"),
    ],
)
def test_options_that_do_not_serve(options: list[str], line: str, table: Maker, refused: Maker) -> None:
    assert line in refused(table(), *options)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--baselines", "drifts"], "drift"),
        (["--cutoff", "2024-02-20", "--origins", "3"], "--cutoff names the origins"),
        (["--cutoff", "soon"], "--cutoff 'soon' is no stamp"),
        (["--cutoff", "2030-01-01"], "to 2024-02-29 00:00:00: give another --cutoff"),
        (["--refit", "2"], "recipe.yaml"),
        (["--trading"], "one series"),
    ],
)
def test_backtests_that_cannot_be(options: list[str], line: str, table: Maker, refused: Maker) -> None:
    assert line in refused(table(), *options, verb="backtest")


def test_a_value_missing_in_the_window_is_named(table: Maker, refused: Maker, tmp_path: Path) -> None:
    path = table(spoiled("", 117))
    line = refused(path)
    assert "series 'b' has no value at 2024-02-27" in line
    assert "--fill" in line


@pytest.mark.parametrize("verb", VERBS)
def test_text_in_another_encoding(verb: str, table: Maker, refused: Maker) -> None:
    assert "sales.csv: is text in UTF-16; expected a table as CSV in UTF-8" in refused(
        table(encoding="utf-16"), verb=verb
    )
