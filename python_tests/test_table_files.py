import csv
import io

import pytest

from s3h_ext.predict import _to_csv
from s3h_ext.report.evaluation_files import _read
from s3h_ext.runs.folder import RunFolder
from s3h_ext.table_files import format_row, format_rows, plain_text
from s3h_ext.training.runlog import RunLog

TEXTS = ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "'=1", "''=1", "'x", "'", ""]
TEXTS += ["a=1", "a,b", 'a"b', "-", "=HYPERLINK(1)", "ü", "\udce9"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_no_formula_and_comes_back(text):
    (cell,) = next(csv.reader(io.StringIO(format_row([text]), newline="")))
    assert cell[:1] not in tuple("=+-@\t\r\n")
    assert plain_text(cell) == text


def test_numbers_stay_numbers():
    assert format_rows([[-1, -0.5, None], ["-1", 2, ""]]) == "-1,-0.5,\n'-1,2,\n"


def test_our_own_reader_gets_what_was_written(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(format_rows([["name", "=x"], *([text, 1] for text in TEXTS[:-1])]))
    found = _read(path, ("name", "=x"), lambda row: row["name"])
    assert found == TEXTS[:-1]


def test_answers_and_terms_of_a_loss_are_no_formulas(tmp_path):
    (line,) = list(_to_csv([("=a.png", None, [(0, "@name", 0.5)])], 1))[1:]
    assert line == "'=a.png,,0,'@name,0.5\n"
    log = RunLog(RunFolder(tmp_path), [{"epoch": 1, "=loss": -0.5}], 1, 1)
    log.close()
    assert (tmp_path / "metrics.csv").read_text() == "epoch,'=loss\n1,-0.5\n"
