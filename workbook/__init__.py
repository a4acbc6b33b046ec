"""Everything around helpers.py: text, batches, counts, training, records, figures, pages. CONTRIBUTING.md has a map."""
