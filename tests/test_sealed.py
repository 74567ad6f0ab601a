"""The seal of JSON objects, and the one reader of JSON."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmtpt.errors import ArtifactError, BackboneError
from bmtpt.sealed import SEAL, digest, parse_json, read_json, read_sealed, sealed, sealed_line, unsealed

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text().filter(lambda key: key != SEAL), values, max_size=4)


@given(objects, st.sampled_from([16, 64]))
def test_a_sealed_object_comes_back_through_json(found, digits):
    assert unsealed(parse_json(json.dumps(sealed(found, digits)))) == found


@given(objects, objects)
def test_a_seal_fits_no_other_object(found, other):
    if json.dumps(found, sort_keys=True) == json.dumps(other, sort_keys=True):
        return
    with pytest.raises(ValueError, match="SHA-256 differs"):
        unsealed({**other, SEAL: sealed(found)[SEAL]})


def test_the_seal_is_the_sha256_of_the_object_as_plain_json():
    assert digest({"b": [1.5, "é"], "a": None}) == hashlib.sha256(rb'{"a":null,"b":[1.5,"\u00e9"]}').hexdigest()


def test_a_seal_whose_name_was_changed_is_noticed():
    with pytest.raises(ValueError, match="SHA-256 differs"):
        unsealed(parse_json(sealed_line({"a": 1}).replace("sha256", "sha25v")))
    assert unsealed({}) == {}
    assert unsealed({"a": 1, "note": "0" * 16}) == {"a": 1, "note": "0" * 16}


@pytest.mark.parametrize("seal", ["", "00", None, 3, ["x"]])
def test_a_seal_that_is_none_is_refused(seal):
    with pytest.raises(ValueError, match="SHA-256 differs"):
        unsealed({"a": 1, SEAL: seal})


@pytest.mark.parametrize(
    "content", [b"[" * 10**6, b'{"a":' * 10**5, b"\xff", b'"\\ud800"', b"", b"{", b"1" * 10**5, b"\xef\xbb\xbf{}"]
)
def test_what_is_not_json_is_refused_with_the_file_and_the_kind_of_error_asked_for(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    for kind in (ArtifactError, BackboneError):
        with pytest.raises(kind, match=r"x\.json is not JSON \(") as error:
            read_json(tmp_path / "x.json", kind)
        assert "\n" not in str(error.value)


def test_a_sealed_file_that_was_changed_is_refused_and_an_older_one_without_a_seal_is_read(tmp_path):
    path = tmp_path / "x.json"
    assert read_sealed(path) is None
    path.write_text(sealed_line({"scale": "small"}))
    assert read_sealed(path) == {"scale": "small"}
    path.write_text(path.read_text().replace("small", "smalk"))
    with pytest.raises(BackboneError, match=r"x\.json is not as it was written .* delete it if you changed it"):
        read_sealed(path, BackboneError)
    path.write_text('{"scale": "small"}')
    assert read_sealed(path) == {"scale": "small"}
    path.write_text("[]")
    with pytest.raises(ArtifactError, match=r"x\.json is not a JSON object"):
        read_sealed(path)


def test_a_json_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot read .*x\.json: no such file"):
        read_json(tmp_path / "x.json")
