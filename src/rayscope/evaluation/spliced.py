"""Which points are spliced: a splice takes as long as everything else that is measured of a point."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from rayscope.evaluation.calibration import Calibration
from rayscope.evaluation.codecs import DictionaryCodec
from rayscope.evaluation.entry import Entry
from rayscope.evaluation.fronts import Front
from rayscope.streams.positions import VIEWS

VIEW = "excluded"
GAIN = 0.01  # of its error, by which a point must be below the last of fewer bits


def spliced_views(errors: Mapping[Entry, Mapping[int | None, float]]) -> dict[str, Mapping[int | None, Sequence[str]]]:
    """{entry.name: {value_bits: the views in which this point is spliced}}.

    Each entry at its most bits per value, in both views; and, position 0 left out, what lies on the front of error on
    validation against bits of its method, coder and seed (see `Front`). errors: of the entries of one site, at each
    of their value_bits.
    """
    curves: dict[tuple, list[tuple[float, float, str, int | None]]] = defaultdict(list)
    for entry, of in errors.items():
        for b, error in of.items():
            bits = entry.dictionary.bits() if b is None else entry.dictionary.bits(value_bits=b)
            curves[entry.method, entry.coder, entry.seed].append((bits, error, entry.name, b))
    found = {
        curve[point][2:]
        for curve in curves.values()
        for point in worth_it([bits for bits, *_ in curve], [error for _, error, *_ in curve])
    }
    views: dict[str, Mapping[int | None, Sequence[str]]] = {}
    for entry, of in errors.items():
        first = {b: [VIEW] if (entry.name, b) in found else [] for b in of}
        views[entry.name] = first | {list(of)[-1]: list(VIEWS)}
    return views


def worth_it(bits: Sequence[float], errors: Sequence[float]) -> list[int]:
    """Places of the points on the front, without those that lower the error by less than GAIN of it."""
    front = Front.of(bits, errors)
    kept: list[int] = []
    for point in front.points_P.tolist() if front else []:
        if not kept or errors[point] < (1 - GAIN) * errors[kept[-1]]:
            kept.append(point)
    return kept


def validation_errors(codec: DictionaryCodec, seen: Calibration) -> dict[int | None, float]:
    """{value_bits: sum of |x - x_hat|^2 over validation vectors, position 0 left out}.

    That of codes as they are, and (the error of each value)^2 |its direction|^2: the errors of values are taken to be
    independent of each other and of what the codes as they are leave.
    """
    if not codec.quantisers:
        return dict.fromkeys(codec.value_bits, seen.error)
    values, first = seen.values, len(seen.values.count_C) // 2
    square_L = codec.dictionary.directions.detach().double().square().sum(1).cpu()
    later_V = values.cell_V < first
    cell_V, u_V = values.cell_V[later_V], values.u_V[later_V]
    size_V = values.low_C[cell_V] + values.width_C[cell_V] * u_V
    weight_V = square_L[cell_V // (1 + seen.ends)]
    found = {b: quantiser.to("cpu").nearest(cell_V, size_V) - size_V for b, quantiser in codec.quantisers.items()}
    return {b: seen.error + (weight_V * error_V.square()).sum().item() for b, error_V in found.items()}
