"""nbval: runs and figures go to a temporary folder, and what a cell writes to stderr is not compared."""

import os
import tempfile

out = tempfile.TemporaryDirectory(prefix="workbook-")  # removed when the tests end
os.environ["WORKBOOK_OUT"] = out.name
os.environ["TQDM_DISABLE"] = "1"


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
