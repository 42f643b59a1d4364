"""Build the optional C extensions; everything static is in pyproject.toml.

SERVICE_BUILD_SPEEDUPS: "no" skips them, "yes" makes a failure an error, unset
builds them when a compiler is at hand.

SERVICE_DEBUG_SPEEDUPS: not empty for a slow build whose every read is checked
against its bounds; it ends the process at the first one outside.

SERVICE_ASAN_SPEEDUPS: not empty for a build with AddressSanitizer. Run it with
libasan preloaded and PYTHONMALLOC=malloc, or it sees no blocks.
"""

import glob
import os
import platform
import shutil

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

wanted = os.environ.get("SERVICE_BUILD_SPEEDUPS", "")
checked = bool(os.environ.get("SERVICE_DEBUG_SPEEDUPS"))
sanitized = bool(os.environ.get("SERVICE_ASAN_SPEEDUPS"))
extensions = []
if wanted not in ("", "yes", "no"):
    raise SystemExit(f"SERVICE_BUILD_SPEEDUPS is yes, no or unset, got {wanted!r}")
if wanted != "no" and platform.python_implementation() == "CPython":
    from Cython.Build import cythonize

    # Flags go here: a CFLAGS in the environment would replace Python's own, its -O3
    # included. Contraction would round a*b+c once where Python rounds it twice.
    flags = ["-O3", "-g0", "-ffp-contract=off"]
    links = []
    if checked or sanitized:
        flags = ["-O1", "-g", "-ffp-contract=off", "-fno-omit-frame-pointer"]
    if checked:
        flags.append("-DSTEADWIRE_CHECKED")
    if sanitized:
        flags.append("-fsanitize=address")
        links.append("-fsanitize=address")
    if os.name == "nt":
        flags, links = [], []
    extensions = cythonize(
        [
            Extension(
                f"_speedups.{name}_c",
                [f"_speedups/{source}"],
                depends=glob.glob(f"_speedups/{name}_*.pxd"),
                extra_compile_args=flags,
                extra_link_args=links,
            )
            for name, source in (
                ("json", "json_c.pyx"),
                ("frames", "frames_c.pyx"),
                ("outbox", "outbox_py.py"),
                ("rtt", "rtt_py.py"),
                ("backoff", "backoff_py.py"),
                ("delta", "delta_py.py"),
            )
        ],
        force=True,  # x_c.pxd is not the file Cython would look for
        compiler_directives={
            "language_level": 3,
            "annotation_typing": False,  # types come from the .pxd alone
            "boundscheck": checked,
            "wraparound": False,
            "cdivision": False,  # keep Python's // and %
            "freethreading_compatible": True,
            "binding": False,  # plain built-ins: the interpreter calls them faster
        },
    )
    for extension in extensions:
        extension.optional = wanted != "yes"  # cythonize would lose it


class BuildPy(build_py):
    """Puts the page into the package; sources that are used in place have it beside."""

    def run(self):
        """Copy the package, and the page into it."""
        super().run()
        if not self.editable_mode:
            page = os.path.join(self.build_lib, "service", "demo", "page")
            os.makedirs(page, exist_ok=True)
            for path in (*glob.glob("demo/*"), "clients/agui/threads.js"):
                shutil.copy(path, page)


setup(
    cmdclass={"build_py": BuildPy},
    options={"build_ext": {"parallel": os.cpu_count()}},
    ext_modules=extensions,
    # The sources are for whoever builds from an sdist; generated C is for nobody.
    package_data={"_speedups": ["*.pyx", "*.pxd"]},
    exclude_package_data={"_speedups": ["*.c"]},
)
