"""Print the oldest release of every dependency that pyproject.toml allows, as constraints for pip: `make test-lowest`.

torch is left out: it is installed by the version that the Makefile names, as in every environment here.
"""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for line in project["dependencies"] + project["optional-dependencies"]["dev"]:
    package, bound, version = line.partition(">=")
    if not bound:
        raise SystemExit(f"pyproject.toml: `{line}` has no lower bound\n  do: write {line}>=VERSION")
    if package != "torch":
        print(f"{package}=={version}")
# typer 0.25, to which huggingface_hub 1 holds the OpenVINO set, uses what click 8.5 deprecates; warnings are errors.
print("click<8.5")
