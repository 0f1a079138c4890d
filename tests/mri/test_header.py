"""ISMRMRD headers that no scan can have are one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recurra.core.errors import FileError
from recurra.mri.data.header import parse_header, write_header

PATH = Path("scan.h5")


def text(**changes: str) -> str:
    """A header of a scan of 20 x 14, with texts replaced."""
    made = write_header(
        (20, 14, 1),
        (10, 14, 1),
        encoded_fov=(320.0, 224.0, 5.0),
        recon_fov=(160.0, 224.0, 5.0),
        limits=(7, 13),
        coils=2,
    )
    for old, new in changes.items():
        assert f"<{old}>" in made
        start = made.index(f"<{old}>") + len(old) + 2
        made = made[:start] + new + made[made.index(f"</{old}>", start) :]
    return made


def test_bytes_text_and_an_array_of_one_are_the_same() -> None:
    header = parse_header(text(), PATH)
    assert (header.encoded, header.center, header.maximum, header.needed_readout) == ((20, 14, 1), 7, 13, 10)
    assert parse_header(text().encode(), PATH) == parse_header(np.array([text().encode()]), PATH) == header


def test_what_is_not_filled_in_is_unknown() -> None:
    header = parse_header(text(center="", maximum=" "), PATH)
    assert (header.center, header.maximum, header.padding) == (None, None, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (text(x="0"), "has encodedSpace/matrixSize 0 x 14; expected at least 1 x 1"),
        (text(x="-20"), "has encodedSpace/matrixSize/x '-20'; expected a whole number from 0 to 65535"),
        (text(y="1" * 5000), f"has encodedSpace/matrixSize/y '{'1' * 40}'; expected a whole number"),
        (text(y="99999999"), "has encodedSpace/matrixSize/y '99999999'; expected a whole number"),
        (text(x="nan"), "has encodedSpace/matrixSize/x 'nan'; expected a whole number"),
        (text(y=""), "lacks encodedSpace/matrixSize x, y and z; got [20, None, 1]"),
        (text(center="1e3"), "has encodingLimits/kspace_encoding_step_1/center '1e3'; expected a whole"),
        (text(fieldOfView_mm="<x>inf</x>"), "has encodedSpace/fieldOfView_mm/x 'inf'; expected millimetres"),
        (text(fieldOfView_mm="<x>1</x><y>wide</y>"), "has encodedSpace/fieldOfView_mm/y 'wide'; expected millimetres"),
        (text(fieldOfView_mm="<z>-3</z>"), "has encodedSpace/fieldOfView_mm/z '-3'; expected millimetres"),
        (text().replace("utf-8", "martian").encode(), "is in an unknown encoding: unknown encoding: martian"),
        (text().replace("utf-8", "utf-32").encode(), ""),
        ("<a>" * 100_000, "cannot be read: is nested more than 50 deep"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>', "cannot be read: has a document type"),
        ("\0" * 30, "is not well-formed XML"),
        ("", "is not well-formed XML"),
        (b"\xff\xfe\x00", ""),
        (" " * 2**25, "has 33,554,432 characters; expected at most"),
        (None, "is NoneType; expected XML text"),
        (3.5, "is float; expected XML text"),
        (np.zeros(3), "is ndarray; expected XML text"),
    ],
)
def test_a_header_of_no_scan_is_one_line(given: Any, said: str) -> None:
    with pytest.raises(FileError) as caught:
        parse_header(given, PATH)
    assert str(caught.value).startswith(f"scan.h5: the ISMRMRD header {said}")
    assert "\n" not in str(caught.value)
