"""The page of an evaluation: what it says, that nothing in it is executed, and that it needs nothing but itself."""

import base64
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recurra.core.figures import new_figure, png
from recurra.core.report import Page, versions, write_report

PNG = png(new_figure((1.0, 0.5)))
HOSTILE = """"'></th></script></style><img/src=x/onerror=alert(1)><script>alert(2)</script>&amp;{{7*7}}"""
PAGE = Page(
    title="CIRIM on 3 files",
    about="Whole volumes.\nMean over 3 of 4 files.",
    command="recurra-mri evaluate 'runs/my  run' knee --report",
    date="2026-11-28T02:51:07+00:00",
    columns=("method", "nmse", "psnr", "seconds_a_slice"),
    rows=[("zero_filled", 0.03618, 27.52, 0.0008), ("CIRIM", 0.00678, np.float32(34.591), 0.148)],
    file_columns=("file", "method", "nmse", "psnr"),
    file_rows=[
        ("knee10.h5", "zero_filled", 0.03, 28.0),
        ("knee10.h5", "CIRIM", 0.005, 36.0),
        ("knee9.h5", "zero_filled", 0.04, 26.0),
        ("knee9.h5", "CIRIM", math.nan, math.inf),
        ("Größe-名前.h5", "zero_filled", 0.05, 25.0),
        ("Größe-名前.h5", "CIRIM", 0.0061, -math.inf),
    ],
    higher_is_better={"nmse": False, "psnr": True},
    pictures=[("knee10.h5, slice 15", PNG)],
    failures=["broken.h5: truncated"],
    checkpoint={"architecture": "CIRIM", "training_data": "fastMRI"},
    versions={"torch": "2.13.0"},
)


class Parsed(HTMLParser):
    """Elements with their attributes and texts, in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_data(self, data: str) -> None:
        if self.elements:
            self.elements[-1][2].append(data)

    def all(self, *tags: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attrs, "".join(text).strip()) for tag, attrs, text in self.elements if tag in tags]

    @property
    def shape(self) -> list[tuple[str, list[str]]]:
        """The elements and the names of their attributes, without any value."""
        return [(tag, sorted(attrs)) for tag, attrs, _ in self.elements]

    @property
    def rows(self) -> list[list[str]]:
        """The cells of both tables, row by row, without heads; the best of a column in stars."""
        rows: list[list[str]] = []
        for tag, attrs, text in self.elements:
            if tag == "tr":
                rows.append([])
            elif tag == "td" or attrs.get("scope") == "row":
                stars = "*" if "best" in (attrs.get("class") or "") else ""
                rows[-1].append(stars + "".join(text).strip() + stars)
        return [row for row in rows if row]


def parsed(folder: Path, **changes: Any) -> Parsed:
    return Parsed(write_report(folder / "report.html", replace(PAGE, **changes)))


def test_everything_is_there(tmp_path: Path) -> None:
    page = parsed(tmp_path)
    assert [text for _, text in page.all("title", "h1")][:2] == [PAGE.title] * 2
    assert page.all("p")[0][1] == PAGE.about
    assert page.rows == [
        ["zero_filled", "0.03618", "27.52", "0.0008"],
        ["CIRIM", "*0.00678*", "*34.59*", "0.148"],
        ["knee10.h5", "zero_filled", "0.03000", "28.00"],
        ["knee10.h5", "CIRIM", "0.00500", "36.00"],
        ["knee9.h5", "zero_filled", "0.04000", "26.00"],
        ["knee9.h5", "CIRIM", "NaN", "inf"],
        ["Größe-名前.h5", "zero_filled", "0.05000", "25.00"],
        ["Größe-名前.h5", "CIRIM", "0.00610", "-inf"],
    ]
    assert [text for attrs, text in page.all("th") if attrs.get("scope") == "col"][:4] == [
        "method", "nmse", "psnr", "seconds a slice",
    ]  # fmt: skip
    assert [(attrs["title"], text) for attrs, text in page.all("span") if "title" in attrs] == [
        ("lower is better", "↓"), ("higher is better", "↑"),
    ]  # fmt: skip
    assert page.all("li") == [({}, "broken.h5: truncated")]
    assert [text for _, text in page.all("dt", "dd")] == [
        "architecture", "CIRIM", "training data", "fastMRI", "torch", "2.13.0",
    ]  # fmt: skip
    command = re.search(r"<pre>(.*)</pre>", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert command
    assert re.sub("<.*?>", "", command[1]).replace("&#39;", "'") == PAGE.command
    (picture, _), *_ = page.all("img")
    assert picture == {
        "src": "data:image/png;base64," + base64.b64encode(PNG).decode(),
        "width": "150", "height": "75", "alt": "knee10.h5, slice 15",
    }  # fmt: skip


def test_the_same_page_is_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    one = write_report(tmp_path / "1.html", PAGE).read_bytes()
    two = write_report(tmp_path / "2.html", replace(PAGE, pictures=[("knee10.h5, slice 15", tmp_path / "a.png")]))
    assert one == two.read_bytes()
    assert one.startswith(b"<!doctype html>\n")


def everywhere(text: str) -> Page:
    """A page with this text wherever one can stand."""
    return Page(
        title=text,
        about=text,
        command=text,
        date=text,
        columns=[text, f"m{text}"],
        rows=[(text, 1.0), (f"b{text}", 2.0)],
        file_columns=[text, text, f"m{text}", f"n{text}"],
        file_rows=[(text, text, 1.0, text), (f"b{text}", text, 2.0, text)],
        higher_is_better={f"m{text}": True},
        main=f"m{text}",
        pictures=[(text, PNG)],
        failures=[text],
        checkpoint={text: text},
        versions={text: text},
    )


def test_texts_are_never_markup(tmp_path: Path) -> None:
    page = Parsed(write_report(tmp_path / "a.html", everywhere(HOSTILE)))
    assert page.shape == Parsed(write_report(tmp_path / "b.html", everywhere("t"))).shape
    assert page.all("h1")[0][1] == HOSTILE
    assert page.all("img")[0][0]["alt"] == HOSTILE
    assert "&amp;amp;" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_it_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = parsed(tmp_path)
    addresses = [value for _, attrs, _ in page.elements for name, value in attrs.items() if name in {"src", "href"}]
    assert addresses
    assert all(address and address.startswith("data:") for address in addresses)
    assert not [name for _, attrs, _ in page.elements for name in attrs if name.startswith("on") or name == "style"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?:", text)
    policy = next(attrs["content"] for attrs, _ in page.all("meta") if "http-equiv" in attrs)
    assert policy
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.91234, 0.05123], ["*0.9123*", "0.0512"]),
        ([31.2349, 30.0, 29.0, -0.0041], ["*31.23*", "30.00", "29.00", "-0.004"]),  # what is small is not none
        ([0.0, 1.0], ["0.000", "*1.000*"]),
        ([1.25, 0.000181], ["*1.25*", "0.000181"]),  # common decimals would hide its digits
        ([123456.7, 99999.2], ["*123457*", "99999"]),
        ([3e-7, 2e-7], ["*3e-07*", "2e-07"]),
        ([2.5e12, 1.0], ["*2.5e+12*", "1"]),
        ([7, 12], ["7", "*12*"]),
        ([NAN, 1.5], ["NaN", "*1.500*"]),
        ([INF, 1.5, -INF], ["*inf*", "1.500", "-inf"]),
        ([NAN, NAN], ["NaN", "NaN"]),
        ([0.5, 0.5, 0.1], ["*0.5000*", "*0.5000*", "0.1000"]),
        ([None, 2.0], ["–", "*2.000*"]),
        (["refused", 2.0], ["refused", "*2.000*"]),
        ([True, None], ["True", "–"]),
        ([2.0], ["2.000"]),  # nobody to be better than
    ],
)
def test_numbers(values: list[object], shown: list[str], tmp_path: Path) -> None:
    rows = [(f"method {index}", value) for index, value in enumerate(values)]
    page = parsed(tmp_path, columns=("method", "psnr"), rows=rows, file_columns=(), file_rows=())
    assert [row[1] for row in page.rows] == shown


def test_best_is_marked_where_the_direction_is_known(tmp_path: Path) -> None:
    page = parsed(tmp_path, higher_is_better={"nmse": True})
    assert [row[1:3] for row in page.rows[:2]] == [["*0.03618*", "27.52"], ["0.00678", "34.59"]]
    assert "*" not in str(parsed(tmp_path, higher_is_better={}).rows)


def test_nothing_was_scored(tmp_path: Path) -> None:
    page = parsed(tmp_path, rows=[], file_columns=(), file_rows=[], pictures=[], checkpoint={}, versions={})
    assert "Nothing was scored." in [text for _, text in page.all("p")]
    assert not page.all("table", "svg", "img", "dl")
    assert page.all("li") == [({}, "broken.h5: truncated")]
    assert not parsed(tmp_path, failures=[]).all("li")


def places(page: Parsed) -> list[float]:
    return [float(str(attrs["cx"]).rstrip("%")) for attrs, _ in page.all("circle")]


def test_distribution_of_the_first_metric(tmp_path: Path) -> None:
    page = parsed(tmp_path)
    assert np.allclose(places(page), np.interp([0.03, 0.04, 0.05, 0.005, 0.0061], [0.005, 0.05], [6, 94]), atol=0.01)
    tips = [text for _, text in page.all("title")][1:]
    assert tips == [
        "knee10.h5: 0.03000", "knee9.h5: 0.04000", "Größe-名前.h5: 0.05000", "knee10.h5: 0.005000",
        "Größe-名前.h5: 0.006100",
    ]  # fmt: skip
    assert [text for _, text in page.all("text")] == ["0.01", "0.02", "0.03", "0.04", "0.05"]
    notes = [text for attrs, text in page.all("span") if attrs.get("class") == "soft"]
    assert notes == ["median 0.04000", "median 0.005550, 1 not drawn"]


def test_distribution_has_a_box_from_five_files_on(tmp_path: Path) -> None:
    values = [1.0, 2.0, 3.0, 4.0, 11.0]
    rows = [(f"{value}.h5", "CIRIM", 0.0, value) for value in values]
    page = parsed(tmp_path, file_rows=rows, main="psnr")
    frame = page.all("rect")[0][0]
    assert (frame["x"], frame["width"]) == ("14.8%", "17.6%")  # the quartiles 2 and 4 between 1 and 11
    assert page.all("h2")[2][1] == "psnr of each file"
    assert not parsed(tmp_path, file_rows=rows[:4]).all("rect")


@pytest.mark.parametrize(
    "values",
    [[5.0, 5.0], [0.0, 0.0], [1e-300, 2e-300], [-1e99, 1e99], [1.0, 1 + 1e-8], [1e-7, 3e-7], [1e8, 1.5e8, INF]],
)
def test_any_numbers_have_an_axis(values: list[float], tmp_path: Path) -> None:
    page = parsed(tmp_path, file_rows=[(f"{i}.h5", "CIRIM", x, 1.0) for i, x in enumerate(values)])
    assert all(6 <= place <= 94 for place in places(page))
    ticks = [text for _, text in page.all("text")]
    assert 2 <= len(ticks) <= 6
    assert len({float(tick) for tick in ticks}) == len(ticks)


@pytest.mark.parametrize("values", [[], [0.5], [0.5, NAN], [INF, INF], [1e200, 1e200]])
def test_one_file_has_no_distribution(values: list[float], tmp_path: Path) -> None:
    rows = [(f"{i}.h5", "CIRIM", x, 1.0) for i, x in enumerate(values)]
    assert not parsed(tmp_path, file_rows=rows).all("svg")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    assert parsed(tmp_path, failures=["kn\udce9e.h5: bad"]).all("li") == [({}, r"kn\udce9e.h5: bad")]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rows": [("CIRIM", 1.0)]}, r"^rows: a row has 2 values; expected 4, one a column: \('CIRIM', 1.0\)$"),
        ({"file_rows": [("a.h5",)]}, "^file_rows: a row has 1 values; expected 4"),
        ({"pictures": [("slice 15", b"GIF89a")]}, "^picture 'slice 15': expected a PNG file$"),
        ({"pictures": [("slice 15", PNG[:20])]}, "^picture 'slice 15': expected a PNG file$"),
        ({"main": "ssim"}, "^main must be a metric of file_columns, nmse, psnr; got 'ssim'$"),
    ],
)
def test_refusals(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=line):
        parsed(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_writes_aside_then_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(b"before")

    def full_disk(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_report(path, PAGE)
    assert path.read_bytes() == b"before"
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]


def test_versions_of_what_computes() -> None:
    known = versions()
    assert {"recurra-core", "recurra-kernels", "torch", "numpy", "Python", "system"} <= set(known)
    assert all(known.values())


Visit = Callable[..., Any]


@pytest.mark.parametrize("width", [1280, 390])
def test_browser_shows_it(width: int, visit: Visit, tmp_path: Path) -> None:
    for name, content in {"plain": PAGE, "hostile": everywhere(HOSTILE), "long": everywhere("t" * 300)}.items():
        page = visit(write_report(tmp_path / f"{name}.html", content), width=width)
        wide = page.evaluate(
            """() => [...document.body.querySelectorAll("*")]
                .filter(one => !one.closest(".box table"))
                .map(one => [one.outerHTML.slice(0, 200), one.getBoundingClientRect()])
                .filter(([_, at]) => at.left < -1 || at.right > innerWidth + 1)"""
        )
        assert not wide, name
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.close()


def test_browser_sorts(visit: Visit, tmp_path: Path) -> None:
    rows = [(f"knee{index}.h5", "CIRIM", (7 * index % 600) / 600, 1.0) for index in range(600)]
    rows += [("none.h5", "CIRIM", NAN, 1.0), ("all.h5", "CIRIM", INF, 1.0)]
    page = visit(write_report(tmp_path / "report.html", replace(PAGE, file_rows=rows)))

    def first_and_last(head: str) -> list[str]:
        page.get_by_role("button", name=head).click()
        files = page.locator(".tall tbody tr th").all_text_contents()
        assert len(files) == 602
        return [*files[:2], *files[-2:]]

    assert first_and_last("nmse") == ["knee0.h5", "knee343.h5", "all.h5", "none.h5"]
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    assert first_and_last("nmse") == ["all.h5", "knee257.h5", "knee0.h5", "none.h5"]
    assert first_and_last("file") == ["all.h5", "knee0.h5", "knee599.h5", "none.h5"]
    assert page.locator("th[aria-sort]").all_text_contents() == ["file"]
    box = page.locator(".tall")
    assert box.evaluate("box => box.scrollHeight > 10 * box.clientHeight")
    box.evaluate("box => box.scrollTop = 5000")
    assert page.locator(".tall thead th").first.bounding_box()["y"] < box.bounding_box()["y"] + 5  # the head stays


def test_browser_enlarges_pictures(visit: Visit, tmp_path: Path) -> None:
    page = visit(write_report(tmp_path / "report.html", PAGE))
    picture = page.locator("img")
    assert picture.bounding_box()["width"] == 150
    picture.click()
    assert picture.bounding_box() == {"x": 0, "y": 0, "width": 1280, "height": 900}
    page.keyboard.press("Escape")
    assert picture.bounding_box()["width"] == 150


@pytest.mark.parametrize(
    "body",
    ["<img src='http://recurra.invalid/a.png'>", "<img src='data:image/png;base64,AAAA'>", "<script>no()</script>"],
)
def test_browser_sees_what_is_wrong(body: str, visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(f"<!doctype html><title>bad</title>{body}", encoding="utf-8")
    with pytest.raises(AssertionError):
        visit(tmp_path / "bad.html")
