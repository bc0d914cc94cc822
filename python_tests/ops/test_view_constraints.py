import math

import pytest

from s3h_ext.ops.view_constraints import (
    FOUR_CORNERS,
    HALVES,
    Centre,
    Constraint,
    Grid,
    Overlap,
    PadCrop,
    RandomResizedCrop,
    Whole,
    as_constraint,
)

NAN, INFINITY = math.nan, math.inf


@pytest.mark.parametrize(
    ("constraint", "arguments"),
    [
        (Grid, {"rows": 0}),
        (Grid, {"columns": 1025}),
        (Grid, {"height": 0.0}),
        (Grid, {"height": NAN}),
        (Grid, {"width": 1.01}),
        (Grid, {"pick": "random"}),
        (PadCrop, {"padding": -1}),
        (PadCrop, {"padding": 1 << 24}),
        (Centre, {"share": 0.0}),
        (Centre, {"share": NAN}),
        (Centre, {"share": 2.0}),
        (RandomResizedCrop, {"scale": (0.0, 1.0)}),
        (RandomResizedCrop, {"scale": (0.5, 0.2)}),
        (RandomResizedCrop, {"scale": (0.5, 1.5)}),
        (RandomResizedCrop, {"scale": (NAN, 1.0)}),
        (RandomResizedCrop, {"scale": (0.2, NAN)}),
        (RandomResizedCrop, {"ratio": (0.01, 1.0)}),
        (RandomResizedCrop, {"ratio": (2.0, 1.0)}),
        (RandomResizedCrop, {"ratio": (1.0, INFINITY)}),
        (RandomResizedCrop, {"ratio": (NAN, 1.0)}),
        (RandomResizedCrop, {"ratio": (1.0, NAN)}),
        (RandomResizedCrop, {"tries": 0}),
        (RandomResizedCrop, {"tries": 1001}),
        (Overlap, {"least": -0.1}),
        (Overlap, {"least": NAN}),
        (Overlap, {"least": 0.5, "most": 0.4}),
        (Overlap, {"most": 1.1}),
        (Overlap, {"most": NAN}),
        (Overlap, {"attempts": 0}),
    ],
)
def test_wrong_values_are_named(constraint, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        constraint(**arguments)


@pytest.mark.parametrize(
    ("constraint", "arguments"),
    [
        (PadCrop, {"padding": 4.0}),
        (RandomResizedCrop, {"tries": 2.5}),
        (Overlap, {"attempts": "3"}),
        (Constraint, {"crop": "centre"}),
        (Constraint, {"region": "corners"}),
        (Constraint, {"overlap": 0.5}),
    ],
)
def test_wrong_types_are_named(constraint, arguments):
    with pytest.raises(TypeError, match=next(iter(arguments))):
        constraint(**arguments)


def test_a_crop_is_meant_in_the_whole_image():
    assert as_constraint(Centre()) == Constraint(Centre(), Grid(), None)
    constraint = Constraint(Whole(), HALVES)
    assert as_constraint(constraint) is constraint
    with pytest.raises(TypeError, match="constraint"):
        as_constraint(FOUR_CORNERS)


def test_numbers_hold_every_setting():
    base = (RandomResizedCrop(), FOUR_CORNERS, Overlap(0.1, 0.5))
    changes = [
        *(Whole(), PadCrop(), PadCrop(5), Centre(), Centre(0.5)),
        *(RandomResizedCrop((0.1, 1.0)), RandomResizedCrop((0.2, 0.9))),
        *(RandomResizedCrop(ratio=(1, 4 / 3)), RandomResizedCrop(ratio=(3 / 4, 1))),
        RandomResizedCrop(tries=9),
        *(HALVES, Grid(2, 1, 0.8, 0.8), Grid(2, 2, 0.7, 0.8)),
        Grid(2, 2, 0.8, 0.8, "drawn"),
        *(Overlap(0.2, 0.5), Overlap(0.1, 0.6), Overlap(0.1, 0.5, 21), None),
    ]
    places = {Grid: 1, Overlap: 2, type(None): 2}
    numbers = {tuple(Constraint(*base).numbers())}
    for change in changes:
        parts = list(base)
        parts[places.get(type(change), 0)] = change
        numbers.add(tuple(Constraint(*parts).numbers()))
    assert len(numbers) == 1 + len(changes)
    assert {len(values) for values in numbers} == {18}
