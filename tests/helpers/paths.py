"""Where the project's files are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
REFERENCE = ROOT / "tests" / "reference"  # computed with the published code
EXAMPLES = ROOT / "examples"
