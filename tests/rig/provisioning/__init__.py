"""What the rig downloads: Debian packages, unpacked below the cache folder."""
