"""Puts the network that ships into the package as it is built; pyproject.toml says the rest."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SOURCE, TARGET = Path("inference_pipeline"), Path("multipass", "model", "shipped")
NAMES = ("best_model.pth", "best_model.pth.sha256")


class BuildWithNetwork(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the package is then read where the network lies beside it
            return
        self.mkpath(str(Path(self.build_lib, TARGET)))
        for name in NAMES:
            self.copy_file(str(SOURCE / name), str(Path(self.build_lib, TARGET, name)))

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *(str(SOURCE / name) for name in NAMES)]


setup(cmdclass={"build_py": BuildWithNetwork})
