"""nbval: runs and figures go to a temporary folder, and what a cell writes to stderr is not compared."""

import os
import tempfile

os.environ["WORKBOOK_OUT"] = tempfile.mkdtemp(prefix="workbook-")
os.environ["TQDM_DISABLE"] = "1"


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
