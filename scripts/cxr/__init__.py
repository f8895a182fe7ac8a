"""Makes `mimic_cxr_dataset`, which lies beside scripts/, importable for whatever uses `cxr`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # worker processes take over sys.path
