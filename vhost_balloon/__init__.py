"""vhost-balloon: a vhost-user back end that gives KVM guests a virtio memory balloon."""

from typing import Final

__version__: Final = "0.1.0"
