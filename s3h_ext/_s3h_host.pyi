from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def sample_view_boxes(
    sizes: NDArray[np.int64],
    sample_index: NDArray[np.int64],
    view: NDArray[np.int64],
    constraint: Sequence[float],
    *,
    seed: int,
    epoch: int,
    stream: int,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]: ...
