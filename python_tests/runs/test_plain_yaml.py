import pytest
import yaml

from s3h_ext.runs.options import OptionError, parse_options
from s3h_ext.runs.plain_yaml import MAX_CHARACTERS, MAX_DEPTH, load_yaml

BOMB = "a: &a [1, 1]\n" + "\n".join(
    f"{name}: &{name} [*{before}, *{before}]"
    for before, name in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"line 2: aliases \(\*a\) are not accepted"),
        ("a: &a\n  b: *a\n", "aliases"),
        ("a: &a {b: 1}\nc:\n  <<: *a\n", "aliases"),
        ("[" * 100_000, "nested deeper|nesting|depth"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested deeper than"),
        ("#" * (MAX_CHARACTERS + 1), "at most 100000 characters"),
        ("a: [", "expected"),
        ("!!python/object/apply:os.system [touch executed]", "could not determine"),
    ],
)
def test_what_options_do_not_need_is_refused(text, message, tmp_path):
    with pytest.raises(yaml.YAMLError, match=message):
        load_yaml(text)
    path = tmp_path / "own.yaml"
    path.write_text(f"data:\n  root: {text}\n" if text.startswith("!") else text)
    with pytest.raises(OptionError) as caught:
        parse_options(["--config", str(path)])
    assert len(str(caught.value)) < 5000


def test_plain_yaml_is_read_as_before():
    assert load_yaml("a: {b: [1, 2.5, x, null, true, 1e-4]}") == {
        "a": {"b": [1, 2.5, "x", None, True, 1e-4]}
    }
    depth = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert load_yaml(depth) is not None


@pytest.mark.parametrize("option", ["--preset", "--config"])
def test_an_option_without_its_value_is_an_error_not_an_exit(option):
    with pytest.raises(OptionError, match=f"{option}: expected a value"):
        parse_options([option])
