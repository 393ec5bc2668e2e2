"""Only permissively licensed packages are used for training. The packages are made here in pip's layout."""

import pytest

from fastdraft.data.package_licences import Package, licensed_packages

DECLARED = {
    "free-mit": ("License-Expression: MIT", True),
    "free-bsd": ("Classifier: License :: OSI Approved :: BSD License", True),
    "free-apache": ("License: Apache 2.0", True),
    "free-several": ("License-Expression: BSD-3-Clause AND 0BSD AND MIT", True),
    "bound-lgpl": ("Classifier: License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)", False),
    "bound-mpl": ("License-Expression: MPL-2.0", False),
    "bound-mpl-and-mit": ("License-Expression: MPL-2.0 AND MIT", False),
    "bound-mozilla": ("Classifier: License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)", False),
    "bound-agpl": ("License: AGPL-3.0", False),
    "expression-wins": ("License-Expression: GPL-3.0-only\nLicense: MIT", False),
    "proprietary": ("License: Other/Proprietary License", False),
    "no-licence": ("Summary: no licence field", False),
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    def install(name: str, declared: str, requires: list[str]) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{declared}\n{needs}")
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text("x = 1\n")
        (info / "RECORD").write_text(f"{module}.py,,\n../outside.py,,\n{info.name}/METADATA,,\n")

    for name, (declared, _) in DECLARED.items():
        install(name, declared, [])
    install("bridge", "License-Expression: LGPL-2.1-only", list(DECLARED))
    install("other-system", "License-Expression: MIT", [])
    install("only-an-extra", "License-Expression: MIT", [])
    install("cycle", "License-Expression: MIT", ["licence-test-root"])
    needs = [
        "Bridge>=1",
        "cycle",
        'other-system; sys_platform == "nowhere"',
        'only-an-extra; extra == "more"',
        "absent",
    ]
    install("licence-test-root", "License-Expression: MIT", needs)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "licence-test-root"


def test_only_permissively_licensed_packages(root):
    assert [package.name for package in licensed_packages(root)] == sorted(
        [name for name, (_, permissive) in DECLARED.items() if permissive] + ["cycle"]
    )


def test_python_files_of_a_package(root, tmp_path):
    assert list(Package("free-mit", "1.0", "MIT").python_files()) == [(tmp_path / "free_mit.py", "free_mit.py")]
