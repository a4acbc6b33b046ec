"""Everything around helpers.py: text, batches, counts, training, records, figures, pages. CONTRIBUTING.md has a map."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the workbook's folder
