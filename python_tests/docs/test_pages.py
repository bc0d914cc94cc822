"""Links, code blocks and commands in the documentation."""

import importlib.util
import re
import shlex
import sys
import types
from pathlib import Path

import pytest
from torch import nn

from s3h_ext import __version__, losses
from s3h_ext.data import samplers
from s3h_ext.data.views import recipes
from s3h_ext.presets import preset_names
from s3h_ext.runs.consistency import check_options
from s3h_ext.runs.options import parse_options

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/*.md")),
    ROOT / "results/README.md",
]
#: Pages whose Python blocks are one program, from top to bottom.
PROGRAMS = [
    "README.md",
    "docs/data.md",
    "docs/extending.md",
    "docs/recipes.md",
    "docs/views.md",
    "docs/your-trainer.md",
]
FENCE = re.compile(
    r"(?P<mark><!-- not run:[^\n]*-->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


def blocks(page, language):
    """The blocks of a language that are not marked as not to be run."""
    return [
        found["code"]
        for found in FENCE.finditer(page.read_text(encoding="utf-8"))
        if found["language"] == language and not found["mark"]
    ]


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def prose(page):
    """The text of a page without its code blocks, whose comments look like headings."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.M | re.S)


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings}


def broken_links(page):
    """The targets of links to files or headings that are not there."""
    for target in re.findall(r"\]\(\s*([^)\s]+)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        inside = place.is_relative_to(ROOT) and place.exists()
        if not inside or (anchor and anchor not in anchors(place)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert [*broken_links(page)] == []


def test_a_link_that_leads_nowhere_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading\n[a](#a-heading) [b](page.md#a-heading) [c](https://example.org)\n"
        "```bash\n# a comment\n[d](none.md)\n```\n"
        "[e](none.md) ![f](none.png) [g](#a-comment) [two\nlines](page.md#none)\n"
        f"[h](../{tmp_path.parent.name}/)\n",
        "utf-8",
    )
    assert [*broken_links(page)] == [
        *("none.md", "none.png", "#a-comment", "page.md#none"),
        f"../{tmp_path.parent.name}/",
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_name_modules_and_presets_that_exist(page):
    for code in blocks(page, "bash"):
        for module in re.findall(r"-m (s3h_ext[\w.]*)", code):
            assert importlib.util.find_spec(module), f"{page.name}: {module}"
        for preset in re.findall(r"--preset ([\w/-]+)", code):
            assert preset in {*preset_names(), "NAME"}, f"{page.name}: {preset}"


def test_every_hop_of_the_walks_is_there():
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    hops = re.findall(r"^\|[^|]+\| `([\w/.]+)` \| `(\w+)` \|$", page, re.MULTILINE)
    assert len(hops) > 15
    for file, function in hops:
        code = (ROOT / file).read_text("utf-8")
        assert re.search(rf"(\bdef |^[\w:<>, ]* ){function}\b\(", code, re.M), file


class StandIn(nn.Module):
    """What of timm's models a contrastive branch uses."""

    num_features = 8

    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, self.num_features, 3, 2)
        self.fc = nn.Linear(self.num_features, num_classes)

    def forward_features(self, images):
        return self.stem(images).relu()

    def forward_head(self, maps, pre_logits=False):
        pooled = maps.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)


@pytest.fixture
def stand_in_for_timm(monkeypatch):
    module = types.ModuleType("timm")
    module.create_model = lambda name, pretrained, num_classes: StandIn(num_classes)
    monkeypatch.setitem(sys.modules, "timm", module)


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.usefixtures("stand_in_for_timm", "full_size_digits")
@pytest.mark.filterwarnings("ignore")  # other packages' own
def test_python_blocks_run(name, tmp_path, monkeypatch):
    if name.endswith("your-trainer.md"):
        pytest.importorskip("pytorch_lightning")
    monkeypatch.chdir(tmp_path)
    # What a page adds is of this test alone.
    monkeypatch.setattr(recipes, "RECIPES", dict(recipes.RECIPES))
    # Classes of the page name their module.
    page = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)
    code = blocks(ROOT / name, "python")
    assert code
    for number, block in enumerate(code):
        exec(compile(block, f"{name}, block {number + 1}", "exec"), vars(page))


def first_column(name, above):
    """The names in the first column of the next table of a page."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    table = re.search(r"(^\|.*\n)+", text[text.index(above) :], re.MULTILINE)[0]
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    return [found for cell in cells for found in re.findall(r"`([\w+-]+)", cell)]


def test_every_loss_is_listed_and_can_be_imported():
    public = set(losses.__all__)
    assert all(hasattr(losses, name) for name in public)
    functions = {name for name in public if name.endswith("_loss")}
    page = (ROOT / "docs" / "your-trainer.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in functions)
    listed = first_column("your-trainer.md", "## The losses")
    assert set(listed) == public - functions - {"ContrastiveStats"}


def test_every_sampler_and_recipe_is_listed():
    listed = first_column("training.md", "## What a step sees")
    assert listed == list(samplers.SAMPLERS)
    listed = first_column("recipes.md", "any recipes on the same images")
    assert set(listed) == set(recipes.RECIPES)


def test_the_methods_on_folders_are_those_the_page_names():
    page = (ROOT / "docs/photographs.md").read_text("utf-8").replace("\\\n", " ")
    start = shlex.split(
        re.search(r'^TRAIN="python -m s3h_ext.train (.*)"$', page, re.M)[1]
    )
    found = set()
    for line in re.findall(r"^\$TRAIN (.*)$", page, re.M):
        options = shlex.split(line, comments=True)
        config, _ = parse_options([*start, *options])
        assert check_options(config) == [], line
        found.add(config.method.label)
    assert found == {
        *("balanced-softmax", "focal", "cb-ce", "ce-drw", "ldam-drw", "bcl", "crt"),
        "tau-norm",
    }


def test_the_release_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    cited = re.search(
        r"^version: (?P<version>.+)\ndate-released: (?P<date>.+)$",
        citation,
        re.MULTILINE,
    )
    changes = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(
        r"^## \[(?P<version>\d.*)\] - (?P<date>.+)$", changes, re.MULTILINE
    )
    assert cited["version"] == newest["version"] == __version__
    assert cited["date"] == newest["date"]
