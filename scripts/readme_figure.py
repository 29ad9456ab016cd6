"""The README's figure from a finished run: `python scripts/readme_figure.py runs/demo`."""

import sys
from pathlib import Path

from rayscope.files import write_whole
from rayscope.report.figures import bits_figure, styles
from rayscope.report.inputs import read_csv
from rayscope.report.tables import COLUMNS, points

run = Path(sys.argv[1])
table = points(read_csv(run / "evaluation.csv", COLUMNS))
table = table.query("position0 == 'excluded'")
target = Path(__file__).parents[1] / "docs/figures/fvu_against_bits.svg"
write_whole(target, bits_figure(table, "fvu", styles(table)))
