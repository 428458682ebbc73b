"""--check-config: checks whether the hub could serve with these options.

Serves, changes and leaves behind nothing, and works while another hub runs.
"""

from __future__ import annotations

from vhost_balloon import __version__
from vhost_balloon.hub.options import HubOptions
from vhost_balloon.hub.reload import read
from vhost_balloon.log.output import print_out
from vhost_balloon.metrics.server import check_metrics
from vhost_balloon.service.listeners import find_group


async def check_config(options: HubOptions) -> None:
    """Check the files, the group and the addresses; print the version. Raises OperatorError."""
    await read(options.files)
    find_group(options.control_access.group)
    await check_metrics(options.metrics)
    print_out(f"vhost-balloon-hub {__version__}\n")
