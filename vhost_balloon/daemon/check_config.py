"""--check-config: checks whether the daemon could serve with these options.

Serves, changes and leaves behind nothing, and works while another daemon serves the VM. An upgrade
in place runs it with the installed program before it gives anything up.
"""

from __future__ import annotations

from vhost_balloon import __version__
from vhost_balloon.config.config import Config
from vhost_balloon.errors import OperatorError, StateError
from vhost_balloon.log.lines import logger
from vhost_balloon.log.output import print_out
from vhost_balloon.service.listeners import find_group
from vhost_balloon.store.record import Record
from vhost_balloon.vm.doubts import doubts


async def check_config(config: Config) -> None:
    """Check files, groups, addresses and the system's resources; print the version.

    Raises OperatorError.
    """
    for access in (config.control_access, config.settings.access):
        find_group(access.group)
    try:
        Record.create().close()
    except (OSError, StateError) as error:
        raise OperatorError(f"cannot create a memory file: {error}") from None
    if config.metrics is not None:
        # Loads the modules that serving would load.
        from vhost_balloon.metrics.server import check_metrics

        await check_metrics(config.metrics)
    for doubt in doubts(config.settings):
        logger.warning("%s", doubt)
    print_out(f"vhost-balloon {__version__}\n")
