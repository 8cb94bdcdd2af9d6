"""All kinds of input, by name: one module per part of the package."""

import fuzz_commands
import fuzz_files

TARGETS = {target.name: target for target in [*fuzz_files.TARGETS, *fuzz_commands.TARGETS]}

try:
    import readers  # of images, sounds, archives and tables
except ModuleNotFoundError:
    pass
else:
    TARGETS |= {target.name: target for target in readers.TARGETS}
